//! Which flow of a limited kind goes when the limit is reached: the one that began first and has
//! not been used since it was last looked at ("second chance", as for pages of memory). Neither a
//! new flow nor a packet costs a scan.

use std::collections::VecDeque;

use super::Instant;
use super::flow::FlowId;

/// Flows that are spared in a row because they were used; then the next one goes all the same.
const MAX_SPARED: usize = 16;

/// The flows of one kind: how many there are, and, in the order in which they began, each with its
/// last use when it was queued. Some in the queue have ended since.
pub struct EvictionQueue {
    flows: VecDeque<(FlowId, Instant)>,
    count: usize,
    limit: usize,
}

impl EvictionQueue {
    /// For a kind of which `limit` may exist.
    pub fn new(limit: usize) -> Self {
        Self {
            flows: VecDeque::new(),
            count: 0,
            limit,
        }
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    pub fn is_full(&self) -> bool {
        self.count >= self.limit
    }

    /// A flow has begun. `last_use` tells about flows of this kind, `None` of those that have
    /// ended.
    pub fn begin(
        &mut self,
        id: FlowId,
        now: Instant,
        last_use: impl Fn(FlowId) -> Option<Instant>,
    ) {
        self.count += 1;
        // Each sweep takes out as many as were pushed since the last one.
        if self.flows.len() >= 2 * self.limit {
            self.flows.retain(|(id, _)| last_use(*id).is_some());
        }
        self.flows.push_back((id, now));
    }

    /// A flow has ended. The queue learns it by and by.
    pub fn end(&mut self) {
        self.count -= 1;
    }

    /// Since when the one that began first is here.
    pub fn first(&mut self, last_use: impl Fn(FlowId) -> Option<Instant>) -> Option<Instant> {
        while let Some((id, queued)) = self.flows.front() {
            if last_use(*id).is_some() {
                return Some(*queued);
            }
            self.flows.pop_front();
        }
        None
    }

    /// Takes out the flow that has to go, which is not `keep`. `None` when there is no other.
    pub fn pop(
        &mut self,
        keep: Option<FlowId>,
        last_use: impl Fn(FlowId) -> Option<Instant>,
    ) -> Option<FlowId> {
        let mut spared = 0;
        let mut kept = None;
        let mut evicted = None;
        while let Some((id, queued)) = self.flows.pop_front() {
            match last_use(id) {
                None => {}
                Some(_) if Some(id) == keep => kept = Some((id, queued)),
                Some(used) if used > queued && spared < MAX_SPARED => {
                    self.flows.push_back((id, used));
                    spared += 1;
                }
                Some(_) => {
                    evicted = Some(id);
                    break;
                }
            }
        }
        self.flows.extend(kept);
        evicted
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn id(index: u32) -> FlowId {
        FlowId {
            index,
            generation: 0,
        }
    }

    fn at(millis: i64) -> Instant {
        Instant::from_millis(millis)
    }

    /// Flows 0 to `count` - 1, begun at 0 ms.
    fn filled(count: u32) -> (EvictionQueue, HashMap<FlowId, Instant>) {
        let mut queue = EvictionQueue::new(4);
        for index in 0..count {
            queue.begin(id(index), at(0), |_| Some(at(0)));
        }
        (queue, (0..count).map(|index| (id(index), at(0))).collect())
    }

    #[test]
    fn the_first_goes_first() {
        let (mut queue, uses) = filled(3);
        let order: Vec<_> = (0..4)
            .map(|_| queue.pop(None, |id| uses.get(&id).copied()))
            .collect();
        assert_eq!(order, [Some(id(0)), Some(id(1)), Some(id(2)), None]);
    }

    #[test]
    fn a_flow_in_use_is_spared() {
        let (mut queue, mut uses) = filled(3);
        uses.insert(id(0), at(5));
        assert_eq!(queue.pop(None, |id| uses.get(&id).copied()), Some(id(1)));
        assert_eq!(queue.pop(None, |id| uses.get(&id).copied()), Some(id(2)));
        assert_eq!(
            queue.pop(None, |id| uses.get(&id).copied()),
            Some(id(0)),
            "not used since"
        );
    }

    #[test]
    fn one_goes_even_if_all_are_in_use() {
        let (mut queue, mut uses) = filled(3);
        uses.values_mut().for_each(|used| *used = at(5));
        assert!(queue.pop(None, |id| uses.get(&id).copied()).is_some());
    }

    #[test]
    fn the_one_that_needs_room_is_kept() {
        let (mut queue, mut uses) = filled(3);
        uses.insert(id(1), at(5));
        uses.insert(id(2), at(5));
        let mut pop = || queue.pop(Some(id(0)), |id| uses.get(&id).copied());
        assert_eq!((pop(), pop(), pop()), (Some(id(1)), Some(id(2)), None));
        assert_eq!(queue.pop(None, |id| uses.get(&id).copied()), Some(id(0)));
    }

    #[test]
    fn flows_that_ended_are_forgotten() {
        let (mut queue, mut uses) = filled(3);
        uses.remove(&id(0));
        let first = queue.first(|id| uses.get(&id).copied());
        assert_eq!(first, Some(at(0)));
        assert_eq!(queue.pop(None, |id| uses.get(&id).copied()), Some(id(1)));
        assert_eq!(queue.first(|_| None), None);
        for index in 0..10_000 {
            queue.begin(id(index), at(1), |_| None);
        }
        assert!(queue.flows.len() <= 8);
    }
}
