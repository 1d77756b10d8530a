//! Which flow of a limited kind goes when the limit is reached: of those of the holder who has
//! most, the one that began first and has not been used since it was last looked at ("second
//! chance", as for pages of memory). Neither a new flow nor a packet costs a scan.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use super::Instant;
use super::flow::FlowId;

/// Whose a flow is: a limit is shared among these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// The guest's, by whatever address.
    Guest,
    /// Of somebody in a network behind it.
    Behind(IpAddr),
}

/// The flows of one kind, by holder. Whoever has fewer than others never has to give way to them.
pub struct FairQueue {
    by_holder: BTreeMap<Holder, EvictionQueue>,
    /// Holders with their counts, the one with most last.
    ranking: BTreeSet<(usize, Holder)>,
    count: usize,
    limit: usize,
}

impl FairQueue {
    /// For a kind of which `limit` may exist.
    pub fn new(limit: usize) -> Self {
        Self {
            by_holder: BTreeMap::new(),
            ranking: BTreeSet::new(),
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

    /// A flow of `holder` has begun. `last_use` tells about flows of this kind, `None` of those
    /// that have ended.
    pub fn begin(
        &mut self,
        id: FlowId,
        holder: Holder,
        now: Instant,
        last_use: impl Fn(FlowId) -> Option<Instant>,
    ) {
        self.count += 1;
        let queue = self.by_holder.entry(holder).or_default();
        self.ranking.remove(&(queue.count, holder));
        queue.begin(id, now, last_use);
        self.ranking.insert((queue.count, holder));
    }

    /// A flow of `holder` has ended.
    pub fn end(&mut self, holder: Holder) {
        let Some(queue) = self.by_holder.get_mut(&holder) else {
            return;
        };
        self.count -= 1;
        self.ranking.remove(&(queue.count, holder));
        queue.end();
        if queue.count > 0 {
            self.ranking.insert((queue.count, holder));
        } else if holder != Holder::Guest {
            // The guest's is always in use again soon.
            self.by_holder.remove(&holder);
        }
    }

    /// Since when the first one is here of the holder who has most.
    pub fn first(&mut self, last_use: impl Fn(FlowId) -> Option<Instant>) -> Option<Instant> {
        let (_, holder) = self.ranking.last()?;
        self.by_holder.get_mut(holder)?.first(last_use)
    }

    /// Takes out the flow that has to go, which is not `keep`. `None` when there is no other.
    pub fn pop(
        &mut self,
        keep: Option<FlowId>,
        last_use: impl Fn(FlowId) -> Option<Instant>,
    ) -> Option<FlowId> {
        let Self {
            by_holder, ranking, ..
        } = self;
        let mut holders = ranking.iter().rev();
        holders.find_map(|(_, holder)| by_holder.get_mut(holder)?.pop(keep, &last_use))
    }
}

/// Flows that are spared in a row because they were used; then the next one goes all the same.
const MAX_SPARED: usize = 16;

/// Flows in a queue that is not worth a sweep.
const MIN_SWEPT: usize = 16;

/// The flows of one kind and holder: how many there are, and, in the order in which they began,
/// each with its last use when it was queued. Some in the queue have ended since.
#[derive(Default)]
struct EvictionQueue {
    flows: VecDeque<(FlowId, Instant)>,
    count: usize,
}

impl EvictionQueue {
    fn begin(&mut self, id: FlowId, now: Instant, last_use: impl Fn(FlowId) -> Option<Instant>) {
        self.count += 1;
        // Each sweep leaves half of them at most, and is due when as many have been pushed.
        if self.flows.len() >= 2 * self.count.max(MIN_SWEPT) {
            self.flows.retain(|(id, _)| last_use(*id).is_some());
        }
        self.flows.push_back((id, now));
    }

    /// A flow has ended. The queue learns it by and by.
    fn end(&mut self) {
        self.count -= 1;
    }

    /// Since when the one that began first is here.
    fn first(&mut self, last_use: impl Fn(FlowId) -> Option<Instant>) -> Option<Instant> {
        while let Some((id, queued)) = self.flows.front() {
            if last_use(*id).is_some() {
                return Some(*queued);
            }
            self.flows.pop_front();
        }
        None
    }

    /// As [`FairQueue::pop`].
    fn pop(
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
        let mut queue = EvictionQueue::default();
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
        queue.count = 0;
        for index in 0..10_000 {
            queue.begin(id(index), at(1), |_| None);
            queue.end();
        }
        assert!(queue.flows.len() <= 2 * MIN_SWEPT);
    }

    #[test]
    fn the_holder_of_most_gives_way() {
        let behind = |last| Holder::Behind([10, 89, 0, last].into());
        let mut queue = FairQueue::new(6);
        let all = |_| Some(at(0));
        queue.begin(id(0), behind(1), at(0), all);
        for index in 1..5 {
            queue.begin(id(index), behind(2), at(0), all);
        }
        queue.begin(id(5), Holder::Guest, at(0), all);
        assert!(queue.is_full());
        // Three of four go, until all have one.
        for index in 1..4 {
            assert_eq!(queue.pop(None, all), Some(id(index)));
            queue.end(behind(2));
        }
        assert_eq!(queue.len(), 3);
        queue.end(behind(1));
        queue.end(behind(2));
        assert_eq!(
            queue.pop(Some(id(5)), |id| (id.index == 5).then_some(at(0))),
            None
        );
        assert_eq!(
            queue.pop(None, |id| (id.index == 5).then_some(at(0))),
            Some(id(5))
        );
        queue.end(Holder::Guest);
        assert_eq!(
            (queue.len(), queue.by_holder.len(), queue.ranking.len()),
            (0, 1, 0)
        );
    }
}
