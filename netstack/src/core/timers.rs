//! One deadline for many flows: a heap with at most a few entries per flow.
//!
//! An entry is never searched for. A flow remembers the earliest entry it has; a later deadline waits until that one
//! comes up and is asked for again then, an earlier one is added.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use smoltcp::time::Instant;

use super::flow::FlowId;

/// Deadlines of flows, earliest first.
#[derive(Default)]
pub struct Timers {
    heap: BinaryHeap<Reverse<(Instant, FlowId)>>,
}

impl Timers {
    /// Sees to it that `id` comes out of [`Timers::pop`] at `deadline` or before. `scheduled` is the flow's memory of
    /// its earliest entry.
    pub fn schedule(&mut self, id: FlowId, deadline: Instant, scheduled: &mut Option<Instant>) {
        if scheduled.is_none_or(|earliest| deadline < earliest) {
            *scheduled = Some(deadline);
            self.heap.push(Reverse((deadline, id)));
        }
    }

    /// The next entry that is due, with its time.
    pub fn pop(&mut self, now: Instant) -> Option<(Instant, FlowId)> {
        let Reverse((deadline, id)) = *self.heap.peek()?;
        if deadline > now {
            return None;
        }
        self.heap.pop();
        Some((deadline, id))
    }

    /// When to come back.
    pub fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((deadline, _))| *deadline)
    }
}
