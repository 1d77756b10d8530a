//! One bound over what all connections buffer, [`MAX_BUFFERED`], whatever the guest and its remotes
//! do.
//!
//! A receive buffer counts in full from the beginning: the guest was offered a window, may fill it
//! at any time, and the offer is not taken back (RFC 9293 3.8.6). So a new connection gets a buffer
//! by what is left ([`TIERS`]). A send buffer counts by the bytes of it that were written to: when
//! nothing is left, the host is not read from. What a promoted connection had received, and the
//! host has still to take, counts until then.
//!
//! Each connection may have a little in any case, so that none can keep another from going on; that
//! much is set aside. So what is counted here is what goes beyond.

use crate::core::MAX_FLOWS;

/// Most bytes that the connections in user space buffer together. Beside it each connection costs
/// some 10 KiB: its state, and pages that are used in part.
pub const MAX_BUFFERED: usize = 256 << 20;
/// Of each buffer, whatever the others have. Enough to go on with: a round trip through the tap
/// takes microseconds.
const MIN_RECEIVE: usize = 1 << 10;
const MIN_SEND: usize = 512;
/// What is left beyond that for all.
const SHARED: usize = MAX_BUFFERED - MAX_FLOWS * (MIN_RECEIVE + MIN_SEND);

/// The largest window without a shift (RFC 9293 3.1).
const MAX_WINDOW: usize = 65535;

/// The buffers of a connection that is opened while receive buffers have less than `below` bytes of
/// what is shared.
pub struct Tier {
    pub receive: usize,
    pub send: usize,
    below: usize,
}

/// Sizes are what the largest window can be at a shift, or less than that without one: smoltcp
/// asserts that nothing is received beyond its buffer, and takes the unscaled window of a SYN-ACK
/// for a scaled one. Near 1 MiB for the first connections. Smaller ones cost throughput (64 KiB:
/// half of it, where nothing is promoted), larger ones the cache. A thousand connections have 64
/// KiB at least; those that come when more are open get less, down to [`MIN_RECEIVE`]. An eighth of
/// what is shared is left for sending.
pub const TIERS: [Tier; 6] = [
    Tier::new(MAX_WINDOW << 4, MAX_WINDOW << 4, 64 << 20),
    Tier::new(MAX_WINDOW << 2, MAX_WINDOW << 2, 72 << 20),
    Tier::new(MAX_WINDOW, MAX_WINDOW, 128 << 20),
    Tier::new(16 << 10, MAX_WINDOW, 136 << 20),
    Tier::new(4 << 10, MAX_WINDOW, SHARED / 8 * 7),
    Tier::new(MIN_RECEIVE, MAX_WINDOW, usize::MAX),
];

/// A send buffer of which no more than this was written to is not worth giving back.
const WORTH_RELEASE: usize = 16 << 10;

impl Tier {
    const fn new(receive: usize, send: usize, below: usize) -> Self {
        Self {
            receive,
            send,
            below,
        }
    }

    fn promise(&self) -> usize {
        self.receive - MIN_RECEIVE
    }
}

/// What all connections have of what is shared.
#[derive(Debug, Default)]
pub struct Memory {
    /// In receive buffers.
    promised: usize,
    /// Written to in send buffers.
    written: usize,
    /// Received by connections that were promoted since, and not yet taken by the host.
    owed: usize,
    exhausted: u64,
    /// Send buffers have most of what is left to them: idle ones give theirs back.
    tight: bool,
    became_tight: bool,
}

/// How much of a connection's send buffer is in use. smoltcp writes to it from the beginning
/// whenever it has run empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    /// Bytes since it was empty.
    run: usize,
    /// From its beginning, since it was given back.
    most: usize,
}

/// What is counted, for status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// The windows that guests were promised, what send buffers hold, and what promoted connections
    /// still owe the host.
    pub receive: usize,
    pub send: usize,
    pub owed: usize,
    /// How often a connection had to do with less because nothing was left.
    pub exhausted: u64,
}

impl Memory {
    /// A connection is opened: the index in [`TIERS`] of what it gets.
    pub fn open(&mut self) -> usize {
        let fits = |tier: &Tier| {
            self.promised + tier.promise() <= tier.below && tier.promise() <= self.left()
        };
        let last = TIERS.len() - 1;
        let tier = TIERS.iter().position(fits).unwrap_or(last);
        self.exhausted += u64::from(tier == last);
        self.promised += TIERS[tier].promise();
        self.notice_tightness();
        tier
    }

    /// A connection of that tier has gone.
    pub fn close(&mut self, tier: usize, written: &mut Written) {
        self.promised -= TIERS[tier].promise();
        self.release(written);
    }

    /// How many bytes more of a send buffer of `capacity` bytes may be written to; `is_empty` says
    /// that it holds none.
    pub fn allowance(&mut self, written: Written, capacity: usize, is_empty: bool) -> usize {
        let run = if is_empty { 0 } else { written.run };
        if run >= capacity {
            // It has gone round: all of it counts already.
            return capacity;
        }
        let again = written.most - run.min(written.most);
        let minimum = MIN_SEND.saturating_sub(written.most);
        let allowance = again + self.left().max(minimum);
        self.exhausted += u64::from(allowance == 0);
        allowance
    }

    /// `count` bytes were written.
    pub fn note(&mut self, written: &mut Written, count: usize, capacity: usize, is_empty: bool) {
        if is_empty {
            written.run = 0;
        }
        written.run = written.run.saturating_add(count);
        let most = written.most.max(written.run.min(capacity));
        self.written += beyond_minimum(most) - beyond_minimum(written.most);
        written.most = most;
        self.notice_tightness();
    }

    /// Whether a send buffer, empty now, should be given back.
    pub fn wants_back(&self, written: &Written) -> bool {
        self.tight && written.most > WORTH_RELEASE
    }

    /// A send buffer, empty now, was given back.
    pub fn release(&mut self, written: &mut Written) {
        self.written -= beyond_minimum(written.most);
        *written = Written::default();
        self.notice_tightness();
    }

    /// `count` bytes go with a connection to the kernel.
    pub fn owe(&mut self, count: usize) {
        self.owed += count;
    }

    pub fn settle(&mut self, count: usize) {
        self.owed -= count;
    }

    /// Whether it has become tight since the last call: then idle connections are to be looked
    /// after.
    pub fn take_became_tight(&mut self) -> bool {
        std::mem::take(&mut self.became_tight)
    }

    /// `open` connections have it.
    pub fn in_use(&self, open: usize) -> MemoryUse {
        MemoryUse {
            receive: self.promised + open * MIN_RECEIVE,
            send: self.written,
            owed: self.owed,
            exhausted: self.exhausted,
        }
    }

    fn left(&self) -> usize {
        SHARED.saturating_sub(self.promised + self.written + self.owed)
    }

    /// Apart from each other, so that no traffic makes the connections be looked after again and
    /// again.
    fn notice_tightness(&mut self) {
        let for_sending = SHARED.saturating_sub(self.promised + self.owed);
        if self.written > for_sending / 4 * 3 {
            self.became_tight |= !self.tight;
            self.tight = true;
        } else if self.written < for_sending / 2 {
            self.tight = false;
        }
    }
}

fn beyond_minimum(written: usize) -> usize {
    written.saturating_sub(MIN_SEND)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Operation {
        Open,
        Close(usize),
        /// The host has that much to say; the guest has taken everything, or nothing.
        Send(usize, usize, bool),
        Promote(usize, usize),
    }

    fn operations() -> impl Strategy<Value = Vec<Operation>> {
        let one = prop_oneof![
            3 => Just(Operation::Open),
            1 => (0usize..1000).prop_map(Operation::Close),
            5 => (0usize..1000, 1usize..2 << 20, any::<bool>())
                .prop_map(|(which, len, empty)| Operation::Send(which, len, empty)),
            1 => (0usize..1000, 0usize..1 << 20)
                .prop_map(|(which, unread)| Operation::Promote(which, unread)),
        ];
        prop::collection::vec(one, 0..2000)
    }

    proptest! {
        /// Connections that take whatever they are given never have more than the bound together,
        /// and none is ever without any.
        #[test]
        fn the_bound_holds(operations in operations()) {
            let mut memory = Memory::default();
            let mut open: Vec<(usize, Written)> = Vec::new();
            let mut owed = 0;
            for operation in operations {
                match operation {
                    Operation::Open => open.push((memory.open(), Written::default())),
                    Operation::Close(which) if which < open.len() => {
                        let (tier, mut written) = open.swap_remove(which);
                        memory.close(tier, &mut written);
                    }
                    Operation::Promote(which, unread) if which < open.len() => {
                        let (tier, mut written) = open.swap_remove(which);
                        memory.close(tier, &mut written);
                        let unread = unread.min(TIERS[tier].receive);
                        memory.owe(unread);
                        owed += unread;
                    }
                    Operation::Send(which, len, empty) if which < open.len() => {
                        let (tier, written) = &mut open[which];
                        let capacity = TIERS[*tier].send;
                        let empty = empty || written.run == 0;
                        let allowed = memory.allowance(*written, capacity, empty);
                        prop_assert!(allowed > 0 || !empty);
                        memory.note(written, len.min(allowed).min(capacity), capacity, empty);
                        if empty && memory.wants_back(written) {
                            memory.release(written);
                        }
                    }
                    _ => {}
                }
                let receive: usize = open.iter().map(|(tier, _)| TIERS[*tier].receive).sum();
                let send: usize = open.iter().map(|(_, written)| written.most).sum();
                prop_assert!(receive + send + owed <= MAX_BUFFERED);
                prop_assert_eq!(memory.in_use(open.len()).receive, receive);
            }
            for (tier, mut written) in open {
                memory.close(tier, &mut written);
            }
            memory.settle(owed);
            let none = MemoryUse { exhausted: memory.exhausted, receive: 0, send: 0, owed: 0 };
            prop_assert_eq!(memory.in_use(0), none);
        }
    }

    #[test]
    fn as_many_connections_as_there_may_be_have_room() {
        let mut memory = Memory::default();
        let tiers: Vec<usize> = (0..MAX_FLOWS).map(|_| memory.open()).collect();
        let receive: usize = tiers.iter().map(|tier| TIERS[*tier].receive).sum();
        assert!(receive + MAX_FLOWS * MIN_SEND <= MAX_BUFFERED);
        assert!(memory.left() >= SHARED / 8, "some is left for sending");
        assert!(tiers.is_sorted());
        assert_eq!(tiers[63], 0, "64 hauls at once have the largest buffers");
        assert!(TIERS[tiers[999]].receive == MAX_WINDOW);
    }

    #[test]
    fn tightness_is_told_once() {
        let mut memory = Memory::default();
        let mut one = Written::default();
        memory.note(&mut one, SHARED / 8 * 7, usize::MAX, true);
        assert!(memory.take_became_tight() && !memory.take_became_tight());
        assert!(memory.wants_back(&one));
        memory.release(&mut one);
        memory.note(&mut one, SHARED / 4, usize::MAX, true);
        assert!(!memory.take_became_tight() && !memory.wants_back(&one));
    }
}
