//! The core's part of a hand-over (see `driver::hand_over`): which flow rests, its numbers, and
//! what became of it in the kernel.

use tracing::debug;

use super::flow::{Cause, FlowId};
use super::link::Link;
use super::tcp::{NotPromoted, Snapshot, Stragglers};
use super::{Core, Instant};

impl Core {
    /// The next flow that rests and is to be handed over to the kernel, and its numbers. Answer
    /// with [`Core::promoted`] or [`Core::promotion_failed`] before any other call: a frame of the
    /// guest's would change them.
    pub fn poll_promotion(&mut self) -> Option<(FlowId, Snapshot)> {
        while let Some(id) = self.promotions.pop_front() {
            let endpoints = self.flows.tuple(id).and_then(|tuple| tuple.endpoints());
            if let (Some(endpoints), Some(flow)) = (endpoints, self.flows.tcp_mut(id)) {
                match flow.snapshot(endpoints) {
                    Some(snapshot) => return Some((id, snapshot)),
                    None => self.goes_on(id),
                }
            }
        }
        None
    }

    /// The kernel has taken the flow over. `stragglers` says what to do with frames of it that
    /// still arrive.
    pub fn promoted(
        &mut self,
        id: FlowId,
        snapshot: &Snapshot,
        stragglers: Stragglers,
        now: Instant,
        link: &mut impl Link,
    ) {
        self.span(id).in_scope(|| debug!("is the kernel's"));
        if let Some(flow) = self.flows.tcp_mut(id) {
            flow.promoted(&mut self.engine, snapshot, stragglers, now, link);
            self.counters.promotions += 1;
        }
        if let Some(entry) = self.flows.get(id) {
            self.shares.promote(entry.holder);
        }
    }

    /// The kernel has not taken the flow over; the engine goes on.
    pub fn promotion_failed(
        &mut self,
        id: FlowId,
        snapshot: &Snapshot,
        why: NotPromoted,
        link: &mut impl Link,
    ) {
        self.span(id)
            .in_scope(|| debug!(?why, "stays in the engine"));
        if let Some(flow) = self.flows.tcp_mut(id) {
            flow.promotion_failed(&mut self.engine, snapshot, why, link);
            self.goes_on(id);
        }
    }

    fn goes_on(&mut self, id: FlowId) {
        self.counters.promotions_failed += 1;
        self.touch(id);
    }

    /// Whether frames of promoted flows have arrived since the last call that cannot have been in
    /// flight at the hand-over: nothing diverts them any more.
    pub fn take_stray_seen(&mut self) -> bool {
        std::mem::take(&mut self.stray_seen)
    }

    /// The next promoted flow whose ends the guest wants for another connection, by a SYN that it
    /// will repeat. It is to be broken off.
    pub fn poll_superseded(&mut self) -> Option<FlowId> {
        self.superseded.pop_front()
    }

    /// A promoted flow has moved so many bytes more.
    pub fn handle_relayed(&mut self, id: FlowId, to_guest: u64, from_guest: u64) {
        if let Some(flow) = self.flows.tcp_mut(id) {
            flow.bytes_to_guest += to_guest;
            flow.bytes_from_guest += from_guest;
            flow.passed_on(&mut self.engine, from_guest);
            self.counters.bytes_to_guest += to_guest;
            self.counters.bytes_from_guest += from_guest;
        }
    }

    /// A promoted flow has ended.
    pub fn handle_relay_ended(&mut self, id: FlowId, cause: Cause) {
        self.close(id, cause);
    }
}
