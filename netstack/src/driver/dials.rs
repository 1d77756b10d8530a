//! What is to be dialled, when SYNs come faster than that goes: each remote has its turn, so that a
//! flood of SYNs to one delays no connection to another (as stochastic fairness queueing does, P.
//! McKenney 1990).

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use crate::core::flow::FlowId;

/// Remotes that share a lane wait for each other.
const LANES: usize = 64;

/// Dials that have not begun. The core says how many that may be, and gives up the oldest: those
/// are still in here.
pub struct DialQueue {
    lanes: [VecDeque<(FlowId, SocketAddr)>; LANES],
    /// Whose turn it is.
    next: usize,
    len: usize,
    /// None may begin for a moment.
    pub is_held_up: bool,
}

impl Default for DialQueue {
    fn default() -> Self {
        Self {
            lanes: std::array::from_fn(|_| VecDeque::new()),
            next: 0,
            len: 0,
            is_held_up: false,
        }
    }
}

impl DialQueue {
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether there is something to begin now, and not only in a moment.
    pub fn has_work(&self) -> bool {
        self.len > 0 && !self.is_held_up
    }

    pub fn push(&mut self, id: FlowId, to: SocketAddr) {
        self.lanes[lane(to)].push_back((id, to));
        self.len += 1;
    }

    /// The next one in turn that `begin` agrees to; those that it does not agree to are forgotten.
    pub fn pop(&mut self, mut begin: impl FnMut(FlowId) -> bool) -> Option<(FlowId, SocketAddr)> {
        while self.len > 0 {
            let lane = &mut self.lanes[self.next];
            self.next = (self.next + 1) % LANES;
            while let Some((id, to)) = lane.pop_front() {
                self.len -= 1;
                if begin(id) {
                    return Some((id, to));
                }
            }
        }
        None
    }
}

/// The same for every connection to one service.
fn lane(to: SocketAddr) -> usize {
    let ip = match to.ip() {
        IpAddr::V4(ip) => ip.to_bits(),
        IpAddr::V6(ip) => {
            let bits = ip.to_bits();
            (bits >> 96 ^ bits >> 64 ^ bits >> 32 ^ bits) as u32
        }
    };
    // Fibonacci hashing: the top bits depend on all others.
    let mixed = (ip ^ u32::from(to.port()) << 8).wrapping_mul(0x9e37_79b1);
    mixed as usize >> 26
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: u32) -> FlowId {
        FlowId {
            index,
            generation: 0,
        }
    }

    fn remote(port: u16) -> SocketAddr {
        ([198, 51, 100, 7], port).into()
    }

    #[test]
    fn a_flood_to_one_remote_does_not_delay_another() {
        let mut queue = DialQueue::default();
        (0..1000).for_each(|index| queue.push(id(index), remote(9)));
        queue.push(id(5000), remote(7));
        let first: Vec<_> = (0..4).map(|_| queue.pop(|_| true).unwrap().0).collect();
        assert!(first.contains(&id(5000)), "{first:?}");
        // Among those to one remote the first is the first.
        let rest: Vec<_> = std::iter::from_fn(|| queue.pop(|_| true)).collect();
        assert_eq!(rest.len() + first.len(), 1001);
        assert!(rest.is_sorted_by_key(|(id, _)| id.index));
        assert!(queue.is_empty());
    }

    #[test]
    fn those_given_up_are_passed_over() {
        let mut queue = DialQueue::default();
        (0..100).for_each(|index| queue.push(id(index), remote(index as u16 % 7)));
        let begun = std::iter::from_fn(|| queue.pop(|id| id.index >= 90));
        assert_eq!(begun.count(), 10);
        assert!(queue.is_empty());
        assert_eq!(queue.pop(|_| true), None);
    }

    #[test]
    fn remotes_are_spread_over_the_lanes() {
        let lanes = |remotes: &mut dyn Iterator<Item = SocketAddr>| {
            let mut used = [false; LANES];
            remotes.for_each(|remote| used[lane(remote)] = true);
            used.iter().filter(|used| **used).count()
        };
        assert!(lanes(&mut (1..1000).map(remote)) > LANES / 2);
        let hosts = &mut (1..=255).map(|host| SocketAddr::from(([10, 1, 2, host], 443)));
        assert!(lanes(hosts) > LANES / 2);
        let hosts = &mut (1..1000u16)
            .map(|host| SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, host], 443)));
        assert!(lanes(hosts) > LANES / 2);
    }
}
