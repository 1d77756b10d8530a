//! The core's part of a hand-over: which flow rests, its numbers, and what became of it in the
//! kernel.

use smoltcp::time::Instant;

use super::Core;
use super::flow::{Cause, FlowId};
use super::link::Link;
use super::tcp::{NotPromoted, Snapshot, Stragglers};

impl Core {
    /// The next flow that rests and wants to be handed over to the kernel. Take its
    /// [`Core::snapshot`], and answer with [`Core::promoted`] or [`Core::promotion_failed`] before
    /// any other call.
    pub fn poll_promotion(&mut self) -> Option<FlowId> {
        self.promotions.pop_front()
    }

    /// The numbers of a resting flow. `None` if it is gone or rests no more.
    pub fn snapshot(&mut self, id: FlowId) -> Option<Snapshot> {
        let endpoints = self.flows.tuple(id)?.endpoints()?;
        self.flows.tcp_mut(id)?.snapshot(endpoints)
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
        if let Some(flow) = self.flows.tcp_mut(id) {
            flow.promoted(&mut self.engine, snapshot, stragglers, now, link);
            self.counters.promotions += 1;
            self.shares.promote();
        }
    }

    /// The kernel has not taken the flow over; the engine goes on.
    pub fn promotion_failed(
        &mut self,
        id: FlowId,
        snapshot: Option<&Snapshot>,
        why: NotPromoted,
        link: &mut impl Link,
    ) {
        if let Some(flow) = self.flows.tcp_mut(id) {
            flow.promotion_failed(&mut self.engine, snapshot, why, link);
            self.counters.promotions_failed += 1;
            self.touch(id);
        }
    }

    /// Whether frames of promoted flows have arrived since the last call that cannot have been in
    /// flight at the hand-over: nothing diverts them any more.
    pub fn take_stray_seen(&mut self) -> bool {
        std::mem::take(&mut self.stray_seen)
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
