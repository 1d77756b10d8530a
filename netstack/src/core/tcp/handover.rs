//! What a flow hands over to the kernel, and what is left of it here. `promotion_policy` decides
//! that it should leave, and brings it to rest; `driver::hand_over` carries it out.

use smoltcp::socket::tcp::State;

use super::promotion_policy::{Motive, NotPromoted, Stage};
use super::{Connection, Engine, HostSide, Phase, TcpFlow, WireState};
use crate::core::flow::Endpoints;
use crate::core::link::Link;
use crate::core::{Duration, Instant};

/// How a flow came to be served by the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Handover {
    pub at: Instant,
    pub motive: Motive,
    /// Payload bytes, both ways, that the engine had carried.
    pub after_bytes: u64,
    /// How long the host's bytes had to wait for it.
    pub pause: Duration,
    pub stragglers: Stragglers,
    /// IRS, by which a repeated SYN of the connection is told from that of another one.
    pub irs: u32,
    /// Bytes that the engine had received and the host has still to take, of `unread`.
    pub owed: usize,
    pub unread: usize,
}

/// What becomes of segments of a promoted flow that still come out of the tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stragglers {
    /// Written back into the tap, they reach the kernel socket.
    Return,
    /// The guest has translated their addresses on the way, so that nobody in it would know them
    /// again. They are as good as lost, and TCP repeats what they carried.
    Drop,
}

/// Everything that a kernel socket needs to carry a resting flow on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// As they show on the tap.
    pub endpoints: Endpoints,
    /// Everything sent is acknowledged: `snd_una` is `snd_nxt`. No timestamps (RFC 7323 3) were
    /// negotiated.
    pub wire: WireState,
    /// The next byte from the guest.
    pub rcv_nxt: u32,
    /// Bytes that the guest may send from `rcv_nxt` on, as it was told.
    pub rcv_wnd: u32,
    /// Received and acknowledged, but not yet taken by the host: to be sent there first.
    pub unread: Vec<u8>,
}

impl TcpFlow {
    /// Whether the flow has come to rest and can be handed over now.
    pub(super) fn advances_to_promotion(&mut self, now: Instant) -> bool {
        let Phase::Open(connection) = &self.phase else {
            return false;
        };
        let bytes = self.bytes_to_guest + self.bytes_from_guest;
        let able = is_promotable(connection, &self.host);
        let acknowledged = connection.socket().send_queue() == 0;
        self.promotion.note(bytes, able, now);
        self.promotion.advance(acknowledged, able, now)
    }

    /// The numbers of a flow that rests. `None` if it has ended since, or the guest has spoken;
    /// then the engine goes on.
    pub fn snapshot(&mut self, endpoints: Endpoints) -> Option<Snapshot> {
        let snapshot = self.numbers_at_rest(endpoints);
        if snapshot.is_none() {
            self.promotion.give_up(NotPromoted::NoRest);
        }
        snapshot
    }

    fn numbers_at_rest(&mut self, endpoints: Endpoints) -> Option<Snapshot> {
        let Phase::Open(connection) = &mut self.phase else {
            return None;
        };
        if !matches!(self.promotion.stage(), Stage::Muted { .. })
            || !is_promotable(connection, &self.host)
        {
            return None;
        }
        let wire = *connection.wire();
        if wire.snd_una != wire.snd_nxt {
            return None;
        }
        let mut unread = vec![0; connection.socket().recv_queue()];
        let peeked = connection.socket_mut().peek_slice(&mut unread).ok()?;
        if peeked != unread.len() {
            return None;
        }
        let received = self.bytes_from_guest + unread.len() as u64;
        let rcv_nxt = wire.irs.wrapping_add(1).wrapping_add(received as u32);
        let offered = wire.right_edge()?.wrapping_sub(rcv_nxt).cast_signed();
        Some(Snapshot {
            endpoints,
            wire,
            rcv_nxt,
            rcv_wnd: offered.max(0).cast_unsigned(),
            unread,
        })
    }

    /// The kernel has taken over: the guest is told how far we are, which stands for every
    /// acknowledgement that was held back.
    pub fn promoted(
        &mut self,
        engine: &mut Engine,
        snapshot: &Snapshot,
        stragglers: Stragglers,
        now: Instant,
        link: &mut impl Link,
    ) {
        let irs = match &self.phase {
            Phase::Open(connection) => connection.wire().irs,
            Phase::Dialling { .. } | Phase::Promoted(_) => return,
        };
        let handover = Handover {
            at: now,
            motive: self.promotion.motive(),
            after_bytes: self.bytes_to_guest + self.bytes_from_guest,
            pause: now - self.promotion.rested(),
            stragglers,
            irs,
            owed: snapshot.unread.len(),
            unread: snapshot.unread.len(),
        };
        let phase = std::mem::replace(&mut self.phase, Phase::Promoted(handover));
        if let Phase::Open(mut connection) = phase {
            let window = snapshot.window_from_kernel();
            engine.acknowledge(&mut connection, snapshot.rcv_nxt, window, link);
            let carried = self.bytes_to_guest.max(self.bytes_from_guest);
            engine.recycle(connection, carried);
            engine.memory().owe(handover.unread);
        }
    }

    /// The kernel has passed `count` bytes more of the guest on, those that were unread first.
    pub fn passed_on(&mut self, engine: &mut Engine, count: u64) {
        if let Phase::Promoted(handover) = &mut self.phase {
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            handover.owed = handover.owed.saturating_sub(count);
            if handover.owed == 0 {
                engine.memory().settle(std::mem::take(&mut handover.unread));
            }
        }
    }

    /// The hand-over has failed: the engine goes on where it stopped.
    pub fn promotion_failed(
        &mut self,
        engine: &mut Engine,
        snapshot: &Snapshot,
        why: NotPromoted,
        link: &mut impl Link,
    ) {
        self.promotion.give_up(why);
        if let Phase::Open(connection) = &mut self.phase {
            // No more than was offered before: smoltcp would drop what is beyond.
            engine.acknowledge(connection, snapshot.rcv_nxt, snapshot.rcv_wnd, link);
        }
    }
}

impl Snapshot {
    /// What the kernel's socket offers the guest: enough to go on with, whatever the engine's
    /// buffer had left. A window below the guest's MSS would make it wait for its persist timer.
    pub fn window_from_kernel(&self) -> u32 {
        const MIN_WINDOW: u32 = 64 * 1024;
        self.rcv_wnd.max(MIN_WINDOW)
    }
}

/// A FIN of either side and a guest that does not read are the engine's to see through.
fn is_promotable(connection: &Connection, host: &HostSide) -> bool {
    connection.state() == State::Established
        && !host.hung_up
        && connection.wire().last_ack.is_some()
        && connection.wire().snd_wnd > 0
}
