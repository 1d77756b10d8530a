//! One deadline for many flows, each of which has at most one entry: an ordered set of (time,
//! flow).
//!
//! Deadlines move later far more often than earlier, so only the latter costs anything: a flow
//! remembers the time of its entry, a later deadline waits until that one comes up and is asked for
//! again then, an earlier one replaces it.

use std::collections::BTreeSet;

use super::Instant;
use super::flow::FlowId;

/// Deadlines of flows, earliest first.
#[derive(Default)]
pub struct Timers {
    entries: BTreeSet<(Instant, FlowId)>,
}

impl Timers {
    /// Sees to it that `id` comes out of [`Timers::pop`] at `deadline` or before. `scheduled` is
    /// the flow's memory of its entry.
    pub fn schedule(&mut self, id: FlowId, deadline: Instant, scheduled: &mut Option<Instant>) {
        if scheduled.is_none_or(|entry| deadline < entry) {
            self.cancel(id, *scheduled);
            *scheduled = Some(deadline);
            self.entries.insert((deadline, id));
        }
    }

    /// Forgets the entry of a flow that ends.
    pub fn cancel(&mut self, id: FlowId, scheduled: Option<Instant>) {
        if let Some(entry) = scheduled {
            self.entries.remove(&(entry, id));
        }
    }

    /// The next entry that is due. The flow has none from here on.
    pub fn pop(&mut self, now: Instant) -> Option<FlowId> {
        let (deadline, _) = *self.entries.first()?;
        if deadline > now {
            return None;
        }
        self.entries.pop_first().map(|(_, id)| id)
    }

    /// When to come back.
    pub fn next(&self) -> Option<Instant> {
        self.entries.first().map(|(deadline, _)| *deadline)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::Duration;

    const FLOWS: usize = 4;

    #[derive(Clone, Debug)]
    enum Operation {
        Schedule(usize, i64),
        Cancel(usize),
        Wait(i64),
    }

    fn operations() -> impl Strategy<Value = Vec<Operation>> {
        let flow = 0..FLOWS;
        let operation = prop_oneof![
            (flow.clone(), 0i64..1000).prop_map(|(flow, ms)| Operation::Schedule(flow, ms)),
            flow.prop_map(Operation::Cancel),
            (0i64..300).prop_map(Operation::Wait),
        ];
        proptest::collection::vec(operation, 0..300)
    }

    proptest! {
        /// A flow comes up at its deadline or before, never twice for one entry, and holds one
        /// entry at most.
        #[test]
        fn each_flow_has_one_entry(operations in operations()) {
            let mut timers = Timers::default();
            let mut memory = [None; FLOWS];
            let mut wanted: [Option<Instant>; FLOWS] = [None; FLOWS];
            let mut now = Instant::ZERO;
            let id = |flow: usize| FlowId { index: flow as u32, generation: 0 };
            for operation in operations {
                match operation {
                    Operation::Schedule(flow, ms) => {
                        let deadline = now + Duration::from_millis(ms as u64);
                        timers.schedule(id(flow), deadline, &mut memory[flow]);
                        wanted[flow] = Some(deadline);
                    }
                    Operation::Cancel(flow) => {
                        timers.cancel(id(flow), memory[flow].take());
                        wanted[flow] = None;
                    }
                    Operation::Wait(ms) => now += Duration::from_millis(ms as u64),
                }
                while let Some(due) = timers.pop(now) {
                    let flow = due.index as usize;
                    prop_assert!(memory[flow].take().is_some_and(|entry| entry <= now));
                    // Too early for a deadline that has moved on: it is asked for again.
                    if let Some(deadline) = wanted[flow].take_if(|deadline| *deadline > now) {
                        timers.schedule(due, deadline, &mut memory[flow]);
                        wanted[flow] = Some(deadline);
                    }
                    if wanted[flow].is_some_and(|deadline| deadline <= now) {
                        wanted[flow] = None;
                    }
                }
                prop_assert!(timers.entries.len() <= FLOWS);
                for deadline in wanted.iter().flatten() {
                    prop_assert!(timers.next().is_some_and(|next| next <= *deadline));
                }
            }
        }
    }
}
