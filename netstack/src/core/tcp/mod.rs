//! A TCP flow: the guest's half in the engine, the host's half behind [`HostStream`], and the one
//! place where bytes cross ([`TcpFlow::serve`], with `host_side`).
//!
//! Life of a flow of the guest: its SYN is kept while the driver dials (`Dialling`); a refusal goes
//! back as RST or ICMP, silence stays silence; once the host answers, the engine does and the flow
//! is `Open`. A published flow starts `Open` in SYN-SENT. Half-close is two facts: the guest's FIN
//! is passed on when everything before it is, the host's FIN likewise. RST passes both ways.
//! Back-pressure needs no code: what one side does not take stays in the engine's buffer, whose
//! window closes. How a flow leaves for the kernel is told in `driver::hand_over`.

mod engine;
mod handover;
mod host_side;
mod memory;
mod promotion_policy;
mod retransmit_watch;
mod smoltcp_device;
mod wire_state;

use std::net::SocketAddr;

use etherparse::TcpSlice;
use smoltcp::socket::tcp::State;

pub use engine::{Connection, Egress, Engine};
pub use handover::{Handover, Snapshot, Stragglers};
pub use host_side::{HostStream, Readiness};
pub use memory::{MAX_BUFFERED, MemoryUse};
pub use promotion_policy::{Motive, NotPromoted, Promote};
pub use wire_state::WireState;

use super::flow::Cause;
use super::link::Link;
use super::{Duration, Instant};
use host_side::HostSide;
use promotion_policy::PromotionPolicy;
use retransmit_watch::RetransmitWatch;

/// How long a guest may leave unanswered what it has to answer, by state; smoltcp itself repeats
/// for ever. `None` where a peer may rightly be silent.
fn patience(state: State) -> Option<Duration> {
    match state {
        // The SYN of a published connection; its client is waiting.
        State::SynSent => Some(Duration::from_secs(30)),
        // Linux repeats a SYN-ACK for 63 s (net.ipv4.tcp_synack_retries = 5).
        State::Listen | State::SynReceived => Some(Duration::from_secs(60)),
        // Our FIN, and data before it. RFC 9293 3.9.1 (R2) asks for 100 s at least.
        State::FinWait1 | State::Closing | State::LastAck => Some(Duration::from_secs(120)),
        State::Established
        | State::CloseWait
        | State::FinWait2
        | State::TimeWait
        | State::Closed => None,
    }
}

/// How often a published connection is opened anew at once when the guest answers its SYN with a
/// bare ACK.
const MAX_REOPENED: u8 = 3;

/// Who sent the first SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initiator {
    Guest,
    Host,
}

/// One TCP flow.
pub struct TcpFlow {
    pub initiator: Initiator,
    pub born: Instant,
    pub bytes_to_guest: u64,
    pub bytes_from_guest: u64,
    phase: Phase,
    promotion: PromotionPolicy,
    /// The guest has not finished the handshake yet, as far as [`TcpFlow::completes_handshake`] was
    /// asked.
    is_half_open: bool,
    host: HostSide,
    reset_by_guest: bool,
    /// Where the guest's half stood when it last moved, and when that was.
    progress: (State, usize),
    moved: Instant,
    retransmit_watch: RetransmitWatch,
    /// How often the guest mistook our SYN for one of an earlier connection.
    reopened: u8,
    /// This is the second attempt of a published connection: the guest has refused it in the
    /// client's own family.
    is_second_attempt: bool,
    /// Our last ACK is out. smoltcp would forget unread data when TIME-WAIT expires, so it gets no
    /// more turns.
    time_wait: bool,
}

/// Where a flow stands. A flow of the guest begins as `Dialling` and is `Open` once it is
/// [`TcpFlow::answered`]; one of a client is `Open` from the start, and is opened anew by
/// [`TcpFlow::connect_again`]. [`TcpFlow::promoted`] is the last step.
pub enum Phase {
    /// The guest's SYN, to be answered when the dial ends. Nothing is known to the engine.
    Dialling {
        syn: Box<[u8]>,
        /// Whom the driver dials.
        to: SocketAddr,
        /// Until then the SYN waits for its turn.
        has_begun: bool,
    },
    /// The engine talks to the guest.
    Open(Connection),
    /// The kernel serves the flow; the engine is out of it.
    Promoted(Handover),
}

/// What a turn left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// Wait for the next event.
    Waiting,
    /// There is more to send to the guest right now.
    More,
    /// The flow rests: it can be handed over to the kernel.
    Promote,
    Closed(Cause),
}

impl TcpFlow {
    pub fn dialling(syn: &[u8], to: SocketAddr, promote: Promote, now: Instant) -> Self {
        let phase = Phase::Dialling {
            syn: syn.into(),
            to,
            has_begun: false,
        };
        Self::new(Initiator::Guest, phase, promote, now)
    }

    pub fn published(connection: Connection, promote: Promote, now: Instant) -> Self {
        Self::new(Initiator::Host, Phase::Open(connection), promote, now)
    }

    fn new(initiator: Initiator, phase: Phase, promote: Promote, now: Instant) -> Self {
        Self {
            initiator,
            born: now,
            bytes_to_guest: 0,
            bytes_from_guest: 0,
            phase,
            promotion: PromotionPolicy::new(promote, now),
            is_half_open: true,
            host: HostSide::default(),
            reset_by_guest: false,
            retransmit_watch: RetransmitWatch::default(),
            reopened: 0,
            is_second_attempt: false,
            progress: (State::Closed, 0),
            moved: now,
            time_wait: false,
        }
    }

    /// The guest has repeated its SYN while we dial. One that reuses the port starts over with
    /// another sequence number; the dial serves both.
    pub fn repeat_syn(&mut self, packet: &[u8]) {
        if let Phase::Dialling { syn, .. } = &mut self.phase {
            *syn = packet.into();
        }
    }

    /// The dial is about to begin. What it is for has waited until now.
    pub fn dial_begins(&mut self) {
        if let Phase::Dialling { has_begun, .. } = &mut self.phase {
            *has_begun = true;
        }
    }

    /// The host has answered the dial, and `connection` the guest's SYN.
    pub fn answered(&mut self, connection: Connection) {
        self.phase = Phase::Open(connection);
    }

    /// Takes one IP packet of the guest, which carries `segment`.
    pub fn ingest(
        &mut self,
        engine: &mut Engine,
        packet: &[u8],
        segment: &TcpSlice,
        now: Instant,
        link: &mut impl Link,
    ) {
        if let Phase::Open(connection) = &mut self.phase {
            let before = connection.state();
            engine.ingest(connection, packet, now, link);
            // A bare ACK to our SYN: the guest still has an earlier connection of a client with
            // this port, in TIME-WAIT. smoltcp has answered with the RST that ends it (RFC 9293
            // 3.10.7.3), and would repeat the SYN after a second.
            if before == State::SynSent
                && connection.state() == State::SynSent
                && segment.ack()
                && !segment.syn()
                && !segment.rst()
                && self.reopened < MAX_REOPENED
            {
                self.reopened += 1;
                engine.connect_again(connection);
            }
            self.promotion.heard(now);
            if is_synchronized(connection.state()) {
                // A closed window may stay closed for as long as the guest answers our probes (RFC
                // 9293 3.8.6.1).
                self.moved = now;
            }
            // A guest that has sent FIN and taken ours has nothing left to take back; a RST is then
            // its answer to a stray segment, and what it sent before still goes to the host (RFC
            // 9293 3.10.7.4).
            let parted = matches!(
                before,
                State::Closing | State::LastAck | State::TimeWait | State::Closed
            );
            self.reset_by_guest |= segment.rst() && !parted && is_over(connection.state());
        }
    }

    /// Whether the guest has answered the SYN of a client with RST.
    pub fn is_refused(&self) -> bool {
        self.is_half_open && self.reset_by_guest && self.initiator == Initiator::Host
    }

    /// The guest says by ICMP that the segment with number `seq` did not arrive. True if that
    /// refuses the connection, as a RST would: if it was our SYN (RFC 1122 4.2.3.9, RFC 5927 4.1).
    pub fn take_refusal(&mut self, seq: u32) -> bool {
        let Phase::Open(connection) = &self.phase else {
            return false;
        };
        let refused = connection.state() == State::SynSent && seq == connection.wire().iss;
        self.reset_by_guest |= refused;
        refused
    }

    pub fn has_tried_other_family(&self) -> bool {
        self.is_second_attempt
    }

    /// Goes on as `connection`, which is still to be opened. Returns the one that the guest
    /// refused.
    pub fn connect_again(
        &mut self,
        connection: Connection,
        promote: Promote,
        now: Instant,
    ) -> Option<Connection> {
        self.promotion = PromotionPolicy::new(promote, now);
        self.is_second_attempt = true;
        self.reset_by_guest = false;
        self.reopened = 0;
        self.progress = (State::Closed, 0);
        self.moved = now;
        match std::mem::replace(&mut self.phase, Phase::Open(connection)) {
            Phase::Open(refused) => Some(refused),
            Phase::Dialling { .. } | Phase::Promoted(_) => None,
        }
    }

    pub fn host_ready(&mut self, readiness: Readiness) {
        self.host.ready(readiness);
    }

    /// Moves what can be moved, both ways, and says what has to be said to the guest.
    pub fn serve(
        &mut self,
        engine: &mut Engine,
        now: Instant,
        host: &mut impl HostStream,
        link: &mut impl Link,
    ) -> Served {
        let Phase::Open(connection) = &mut self.phase else {
            return Served::Waiting;
        };
        // What it left unread goes with the connection, as in a kernel (RFC 9293 3.10.7.4).
        if self.reset_by_guest {
            return Served::Closed(Cause::ResetByGuest);
        }
        let progress = (connection.state(), connection.socket().send_queue());
        if progress != self.progress {
            self.progress = progress;
            self.moved = now;
        }
        if patience(progress.0).is_some_and(|patience| now >= self.moved + patience) {
            connection.socket_mut().abort();
            engine.egress(connection, now, link);
            return Served::Closed(Cause::GuestSilent);
        }
        let mut crossing = self
            .host
            .pass_from_guest(connection, host, &mut self.bytes_from_guest);
        if self.promotion.takes_from_host() {
            crossing = crossing.and_then(|()| {
                self.host
                    .pass_to_guest(engine, connection, host)
                    .map(|count| self.bytes_to_guest += count)
            });
        }
        engine.give_back(connection);
        if crossing.is_err() || self.host.failed {
            // What the remote said before it broke off comes first, as far as the guest's window
            // goes.
            engine.egress(connection, now, link);
            connection.socket_mut().abort();
            engine.egress(connection, now, link);
            return Served::Closed(Cause::ResetByHost);
        }
        let rested = !self.promotion.takes_from_host();
        if self.advances_to_promotion(now) {
            return Served::Promote;
        }
        // What the host sent meanwhile is still to be taken.
        let resumes = rested && self.promotion.takes_from_host();
        let egress = self.speak(engine, now, link);
        let Phase::Open(connection) = &mut self.phase else {
            return Served::Waiting;
        };
        match connection.state() {
            // smoltcp delays the ACK of data just before the guest's FIN, and with it that of the
            // FIN.
            State::TimeWait if owes_last_ack(connection, self.bytes_from_guest) => match egress {
                Egress::Quiet => Served::Waiting,
                Egress::More => Served::More,
            },
            // Everything was said on the guest's side; what it sent last may still wait for the
            // host.
            State::TimeWait | State::Closed if egress == Egress::Quiet => {
                self.time_wait = true;
                if connection.socket().can_recv() {
                    Served::Waiting
                } else {
                    Served::Closed(Cause::Finished)
                }
            }
            // smoltcp acknowledges without end here if the guest closed its window (see engine.rs).
            State::FinWait2 if egress == Egress::More && link.has_room() => {
                connection.socket_mut().abort();
                engine.egress(connection, now, link);
                Served::Closed(Cause::ResetByHost)
            }
            _ if egress == Egress::More || resumes => Served::More,
            _ => Served::Waiting,
        }
    }

    /// Says to the guest what is due, unless nothing may be said any more, or for the moment.
    fn speak(&mut self, engine: &mut Engine, now: Instant, link: &mut impl Link) -> Egress {
        let Phase::Open(connection) = &mut self.phase else {
            return Egress::Quiet;
        };
        if self.time_wait || !self.promotion.may_speak() {
            return Egress::Quiet;
        }
        if self.retransmit_watch.is_due(now) {
            engine.remind(connection, now, link);
        }
        let egress = engine.egress(connection, now, link);
        let all_sent = || connection.has_sent_all();
        if self.promotion.asks_for_ack(all_sent, now) {
            engine.ask_for_ack(connection, link);
        }
        egress
    }

    /// Resets the guest's half.
    pub fn abort(&mut self, engine: &mut Engine, now: Instant, link: &mut impl Link) {
        if let Phase::Open(connection) = &mut self.phase {
            connection.socket_mut().abort();
            engine.egress(connection, now, link);
        }
    }

    /// Gives back what the flow had of the engine.
    pub fn end(self, engine: &mut Engine) {
        let carried = self.bytes_to_guest.max(self.bytes_from_guest);
        match self.phase {
            Phase::Dialling { .. } => {}
            Phase::Open(connection) => engine.recycle(connection, carried),
            Phase::Promoted(handover) => engine.memory().settle(handover.unread),
        }
    }

    /// When the flow wants to be served if nothing happens before.
    ///
    /// A time in the past would be served again at once, and for ever if nothing comes of it, so it
    /// is in the future; but for a muted flow, which is so for a millisecond.
    pub fn deadline(&mut self, engine: &mut Engine, now: Instant) -> Option<Instant> {
        match &self.phase {
            Phase::Open(_) if !self.promotion.may_speak() => self.promotion.deadline(),
            Phase::Open(connection) if !self.time_wait => {
                let deadline = engine.deadline(connection, now);
                let forgotten = deadline.is_none() && connection.awaits_ack();
                let reminder = self.retransmit_watch.watch(forgotten, now);
                let end = patience(connection.state()).map(|patience| self.moved + patience);
                let deadlines = [deadline, reminder, self.promotion.deadline(), end];
                let next = deadlines.into_iter().flatten().min()?;
                Some(next.max(now + Duration::from_millis(1)))
            }
            _ => None,
        }
    }

    /// How the flow ends for a new connection of the same tuple, whose SYN has the number `isn`.
    /// `None` when it goes on: the SYN is a copy of its own, or bytes of the guest still wait for
    /// the host, and the guest will ask again.
    ///
    /// TIME-WAIT makes way, as RFC 9293 3.10.7.4 allows: on this link no old segment can turn up.
    /// So does an open connection of the guest. RFC 5961 4 has us challenge it against blind
    /// attackers, but nobody else is on the link: a guest that sends another SYN has forgotten the
    /// connection.
    pub fn makes_way(&self, isn: u32) -> Option<Cause> {
        let Phase::Open(connection) = &self.phase else {
            return None;
        };
        let state = connection.state();
        if is_over(state) || state == State::TimeWait {
            return match self.reset_by_guest {
                true => Some(Cause::ResetByGuest),
                false if connection.socket().can_recv() => None,
                false => Some(Cause::Finished),
            };
        }
        let is_new = self.initiator == Initiator::Guest && isn != connection.wire().irs;
        is_new.then_some(Cause::ResetByGuest)
    }

    /// Whether the guest has finished the handshake since this was last asked.
    pub fn completes_handshake(&mut self) -> bool {
        let completes = self.is_half_open && is_synchronized(self.state());
        self.is_half_open &= !completes;
        completes
    }

    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    pub fn is_half_open(&self) -> bool {
        self.is_half_open
    }

    /// Why the engine still has the flow.
    pub fn not_promoted(&self) -> NotPromoted {
        self.promotion.not_promoted()
    }

    /// In the words of RFC 9293 3.3.2.
    pub fn state(&self) -> State {
        match &self.phase {
            // The guest believes so.
            Phase::Dialling { .. } => State::SynSent,
            Phase::Open(connection) => connection.state(),
            Phase::Promoted(_) => State::Established,
        }
    }
}

/// Whether the handshake is behind us.
fn is_synchronized(state: State) -> bool {
    !matches!(
        state,
        State::Closed | State::Listen | State::SynSent | State::SynReceived
    )
}

/// CLOSED after a RST or after our FIN was acknowledged; LISTEN is where smoltcp returns to when
/// SYN-RECEIVED is reset.
fn is_over(state: State) -> bool {
    matches!(state, State::Closed | State::Listen)
}

/// Whether the guest's FIN, which came after `passed_on` and what is still unread, is not
/// acknowledged yet.
fn owes_last_ack(connection: &Connection, passed_on: u64) -> bool {
    let wire = connection.wire();
    let received = passed_on + connection.socket().recv_queue() as u64;
    let syn_and_fin = 2;
    let everything = wire
        .irs
        .wrapping_add(received as u32)
        .wrapping_add(syn_and_fin);
    wire.last_ack != Some(everything)
}
