//! A TCP flow: the guest's half in the engine, the host's half behind [`HostStream`], and the one place where bytes cross.
//!
//! Life of a flow of the guest: its SYN is kept while the driver dials (`Dialling`); a refusal goes back as RST or
//! ICMP, silence stays silence; once the host answers, the engine does and the flow is `Open`. A published flow starts
//! `Open` in SYN-SENT. Half-close is two facts: the guest's FIN is passed on when everything before it is, the host's
//! FIN likewise. RST passes both ways. Back-pressure needs no code: what one side does not take stays in the engine's
//! buffer, whose window closes.

mod engine;
mod port;

use std::io;

use smoltcp::socket::tcp::State;
use smoltcp::time::{Duration, Instant};

pub use engine::{Connection, Egress, Engine};

use super::link::Link;

/// How long the guest may leave a published connection's SYN unanswered.
const GUEST_ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The host's half of a flow: a connected, non-blocking stream.
pub trait HostStream {
    /// Reads what the remote sent. `Ok(0)` is its FIN.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Sends what the guest sent; may take a part.
    fn send(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Passes the guest's FIN on. The other direction stays open.
    fn finish(&mut self);
}

/// What the driver learnt of a host stream since it last said so. Edges, as epoll reports them with EPOLLET.
#[derive(Clone, Copy, Debug, Default)]
pub struct Readiness {
    pub readable: bool,
    pub writable: bool,
    /// The remote sent FIN or RST: a short read no longer means that nothing is left.
    pub hung_up: bool,
}

/// Why a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Both sides finished, or nothing more is expected of a UDP or echo flow.
    Finished,
    ResetByGuest,
    /// The host stream failed; the guest was sent RST.
    ResetByHost,
    /// The dial failed; the guest was told as the failure asks.
    DialFailed,
    /// The guest never answered the SYN of a published connection.
    GuestSilent,
    /// The guest gave up while we were dialling.
    Cancelled,
}

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
    pub phase: Phase,
    host: HostSide,
    reset_by_guest: bool,
    /// Our last ACK is out. smoltcp would forget unread data when TIME-WAIT expires, so it gets no more turns.
    time_wait: bool,
}

pub enum Phase {
    /// The guest's SYN, to be answered when the dial ends.
    Dialling {
        syn: Box<[u8]>,
    },
    Open(Connection),
}

/// What is known of the host's half.
#[derive(Default)]
struct HostSide {
    readable: bool,
    writable: bool,
    hung_up: bool,
    fin_received: bool,
    fin_sent: bool,
}

/// What a turn left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// Wait for the next event.
    Waiting,
    /// There is more to send to the guest right now.
    More,
    Closed(Cause),
}

impl TcpFlow {
    pub fn dialling(syn: &[u8], now: Instant) -> TcpFlow {
        TcpFlow::new(Initiator::Guest, Phase::Dialling { syn: syn.into() }, now)
    }

    pub fn published(connection: Connection, now: Instant) -> TcpFlow {
        TcpFlow::new(Initiator::Host, Phase::Open(connection), now)
    }

    fn new(initiator: Initiator, phase: Phase, now: Instant) -> TcpFlow {
        TcpFlow {
            initiator,
            born: now,
            bytes_to_guest: 0,
            bytes_from_guest: 0,
            phase,
            host: HostSide::default(),
            reset_by_guest: false,
            time_wait: false,
        }
    }

    /// Takes one IP packet of the guest; `reset` if it is a RST.
    pub fn ingest(
        &mut self,
        engine: &mut Engine,
        packet: &[u8],
        reset: bool,
        now: Instant,
        link: &mut impl Link,
    ) {
        if let Phase::Open(connection) = &mut self.phase {
            engine.ingest(connection, packet, now, link);
            self.reset_by_guest |= reset && is_over(connection.state());
        }
    }

    pub fn host_ready(&mut self, readiness: Readiness) {
        self.host.readable |= readiness.readable;
        self.host.writable |= readiness.writable;
        self.host.hung_up |= readiness.hung_up;
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
        let state = connection.state();
        if state == State::SynSent && now >= self.born + GUEST_ANSWER_TIMEOUT {
            connection.socket_mut().abort();
            engine.egress(connection, now, link);
            return Served::Closed(Cause::GuestSilent);
        }
        let crossing =
            pass_from_guest(connection, &mut self.host, host, &mut self.bytes_from_guest).and_then(
                |()| pass_to_guest(connection, &mut self.host, host, &mut self.bytes_to_guest),
            );
        if self.reset_by_guest {
            return Served::Closed(Cause::ResetByGuest);
        }
        if crossing.is_err() {
            connection.socket_mut().abort();
            engine.egress(connection, now, link);
            return Served::Closed(Cause::ResetByHost);
        }
        let egress = if self.time_wait {
            Egress::Quiet
        } else {
            engine.egress(connection, now, link)
        };
        match connection.state() {
            // Everything was said on the guest's side; what it sent last may still wait for the host.
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
            _ if egress == Egress::More => Served::More,
            _ => Served::Waiting,
        }
    }

    /// Resets the guest's half.
    pub fn abort(&mut self, engine: &mut Engine, now: Instant, link: &mut impl Link) {
        if let Phase::Open(connection) = &mut self.phase {
            connection.socket_mut().abort();
            engine.egress(connection, now, link);
        }
    }

    /// When the flow wants to be served if nothing happens before.
    pub fn deadline(&self, engine: &mut Engine, now: Instant) -> Option<Instant> {
        match &self.phase {
            Phase::Open(connection) if !self.time_wait => {
                let deadline = engine.deadline(connection, now);
                if connection.state() == State::SynSent {
                    let patience = self.born + GUEST_ANSWER_TIMEOUT;
                    return Some(deadline.map_or(patience, |deadline| deadline.min(patience)));
                }
                deadline
            }
            _ => None,
        }
    }

    pub fn state(&self) -> State {
        match &self.phase {
            // The guest believes so.
            Phase::Dialling { .. } => State::SynSent,
            Phase::Open(connection) => connection.state(),
        }
    }
}

/// CLOSED after a RST or after our FIN was acknowledged; LISTEN is where smoltcp returns to when SYN-RECEIVED is reset.
fn is_over(state: State) -> bool {
    matches!(state, State::Closed | State::Listen)
}

/// The guest has said FIN and there is nothing in the buffer before it.
fn guest_finished(connection: &Connection) -> bool {
    matches!(
        connection.state(),
        State::CloseWait | State::LastAck | State::Closing | State::TimeWait | State::Closed
    ) && !connection.socket().can_recv()
}

fn pass_from_guest(
    connection: &mut Connection,
    side: &mut HostSide,
    host: &mut impl HostStream,
    counter: &mut u64,
) -> io::Result<()> {
    while side.writable && connection.socket().can_recv() {
        let sent = connection
            .socket_mut()
            .recv(|bytes| match host.send(bytes) {
                Ok(sent) => (sent, Ok(sent)),
                Err(error) => (0, Err(error)),
            });
        match sent {
            Ok(Ok(sent)) => *counter += sent as u64,
            Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => side.writable = false,
            Ok(Err(error)) => return Err(error),
            Err(_) => break,
        }
    }
    if !side.fin_sent && guest_finished(connection) {
        side.fin_sent = true;
        // After the remote's FIN, closing the stream says the same with one system call less.
        if !side.fin_received {
            host.finish();
        }
    }
    Ok(())
}

fn pass_to_guest(
    connection: &mut Connection,
    side: &mut HostSide,
    host: &mut impl HostStream,
    counter: &mut u64,
) -> io::Result<()> {
    while side.readable && !side.fin_received && connection.socket().can_send() {
        let received = connection.socket_mut().send(|space| {
            let len = space.len();
            match host.receive(space) {
                Ok(received) => (received, Ok((received, len))),
                Err(error) => (0, Err(error)),
            }
        });
        match received {
            Ok(Ok((0, _))) => {
                side.fin_received = true;
                connection.socket_mut().close();
            }
            Ok(Ok((received, space))) => {
                *counter += received as u64;
                side.readable = side.hung_up || received == space;
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => side.readable = false,
            Ok(Err(error)) => return Err(error),
            Err(_) => break,
        }
    }
    Ok(())
}
