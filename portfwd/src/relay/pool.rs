//! What a relay borrows for as long as it needs it: pipes, and one copy buffer.
//!
//! A pipe is lent only while bytes are in it, so a few serve thousands of connections. Linux limits
//! an unprivileged user to 64 MiB of pipe buffers over all processes (`pipe-user-pages-soft`, Linux
//! 4.5); past that, pipes come too small to be of use. The pool keeps to a budget below, gives
//! later pipes less than early ones, and lends none rather than fail: the relay then copies.
//!
//! Invariant: a pipe that is lent is empty, so no connection ever sees another's bytes.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

/// Lends pipes and a copy buffer to every [`Relay`](super::Relay) of an event loop.
#[derive(Debug)]
pub struct PipePool {
    budget: usize,
    /// How many pipes may exist. Each has two descriptors.
    max_pipes: usize,
    /// Capacity of the pipes that exist, idle or lent, each of which holds it too; each [`Pipe`]
    /// takes its share off when it is closed.
    in_use: Arc<AtomicUsize>,
    idle: Vec<Pipe>,
    /// How many more requests are turned down before the kernel is asked for a pipe again.
    asks_to_skip: u32,
    copy_buffer: Box<[u8]>,
}

impl PipePool {
    /// A quarter of what `pipe-user-pages-soft` grants a user by default, since helpers of other
    /// containers share it.
    pub const DEFAULT_BUDGET: usize = 16 << 20;

    /// A pool whose pipes have a capacity of at most `budget` bytes in all. With a budget of 0
    /// relays only copy.
    pub fn new(budget: usize) -> Self {
        Self {
            budget,
            max_pipes: usize::MAX,
            in_use: Arc::default(),
            idle: Vec::new(),
            asks_to_skip: 0,
            copy_buffer: vec![0; COPY_BYTES].into_boxed_slice(),
        }
    }

    /// The pool with `pipes` at most, so that their descriptors leave enough for others.
    pub fn with_at_most(self, pipes: usize) -> Self {
        Self {
            max_pipes: pipes,
            ..self
        }
    }

    /// An empty pipe, or `None` when the budget, the user's limit or the descriptors are spent.
    pub(super) fn lend(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.idle.pop() {
            return Some(pipe);
        }
        // An eighth of what is left: a few hauling connections get large pipes, many get something.
        let left = self
            .budget
            .saturating_sub(self.in_use.load(Ordering::Relaxed));
        let pipes = Arc::strong_count(&self.in_use) - 1;
        if left < MIN_PIPE_BYTES || pipes >= self.max_pipes {
            return None;
        }
        if self.asks_to_skip > 0 {
            self.asks_to_skip -= 1;
            return None;
        }
        let capacity = (left / 8).clamp(MIN_PIPE_BYTES, MAX_PIPE_BYTES);
        // The kernel would round up to a power of two, past the budget.
        let pipe = Pipe::open(1 << capacity.ilog2(), &self.in_use);
        if pipe.is_none() {
            tracing::debug!(
                in_use = self.in_use.load(Ordering::Relaxed),
                "no pipe to be had, relays copy"
            );
            self.asks_to_skip = REFUSALS_PER_ASK;
        }
        pipe
    }

    /// Takes a pipe back; one that still holds bytes of its connection is closed.
    pub(super) fn give_back(&mut self, pipe: Pipe) {
        if pipe.held == 0 && self.idle.len() < MAX_IDLE_PIPES {
            self.idle.push(pipe);
        }
    }

    /// Memory for one read, free again once the call that borrowed it returns.
    pub(super) fn copy_buffer(&mut self) -> &mut [u8] {
        &mut self.copy_buffer
    }
}

impl Default for PipePool {
    fn default() -> Self {
        Self::new(Self::DEFAULT_BUDGET)
    }
}

/// A pipe and the number of bytes in it.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) read_end: OwnedFd,
    pub(super) write_end: OwnedFd,
    pub(super) held: usize,
    /// In bytes, as the kernel grants it: a slot per page.
    pub(super) capacity: usize,
    in_use: Arc<AtomicUsize>,
}

impl Pipe {
    /// A pipe of about `capacity` bytes, less where the user's limit says so, but at least
    /// [`MIN_PIPE_BYTES`].
    fn open(capacity: usize, in_use: &Arc<AtomicUsize>) -> Option<Self> {
        let (read_end, write_end) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        let granted = fcntl_setpipe_size(&write_end, capacity)
            .or_else(|_| fcntl_getpipe_size(&write_end))
            .ok()?;
        // Past the soft limit a pipe has two pages (Linux 5.14; one before), which is worse than a
        // copy.
        if granted < MIN_PIPE_BYTES {
            return None;
        }
        in_use.fetch_add(granted, Ordering::Relaxed);
        Some(Self {
            read_end,
            write_end,
            held: 0,
            capacity: granted,
            in_use: Arc::clone(in_use),
        })
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.in_use.fetch_sub(self.capacity, Ordering::Relaxed);
    }
}

/// Size of the copy buffer, and the amount at one read that makes a pipe worth its while.
pub(super) const COPY_BYTES: usize = 16 << 10;

/// The capacity a pipe has by default; it needs no permission.
const MIN_PIPE_BYTES: usize = 64 << 10;

/// `pipe-max-size`, the most an unprivileged process may ask for by default.
const MAX_PIPE_BYTES: usize = 1 << 20;

/// Pipes kept open with no bytes in them: enough for connections that take turns, few since idle
/// ones count against the user.
const MAX_IDLE_PIPES: usize = 4;

/// After a refusal the kernel is asked again only now and then: a failed pipe2 per read would cost
/// more than the copy.
const REFUSALS_PER_ASK: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn lend_all(pool: &mut PipePool) -> Vec<Pipe> {
        std::iter::from_fn(|| pool.lend()).collect()
    }

    #[test]
    fn lends_within_budget_large_pipes_first() {
        let mut pool = PipePool::new(4 << 20);
        let pipes = lend_all(&mut pool);
        let capacities: Vec<_> = pipes.iter().map(|pipe| pipe.capacity).collect();
        assert!(capacities.len() >= 20, "{capacities:?}");
        assert!(
            capacities.is_sorted_by(|early, late| early >= late),
            "{capacities:?}"
        );
        assert!(
            capacities.iter().sum::<usize>() <= 4 << 20,
            "{capacities:?}"
        );
        assert_eq!(*capacities.last().unwrap(), MIN_PIPE_BYTES);
    }

    #[test]
    fn returned_pipes_are_lent_again_and_few_are_kept() {
        let mut pool = PipePool::new(4 << 20);
        let pipes = lend_all(&mut pool);
        pipes.into_iter().for_each(|pipe| pool.give_back(pipe));
        assert_eq!(pool.idle.len(), MAX_IDLE_PIPES);
        let kept: usize = pool.idle.iter().map(|pipe| pipe.capacity).sum();
        assert_eq!(pool.in_use.load(Ordering::Relaxed), kept);
        assert!(pool.lend().is_some());
        assert_eq!(pool.idle.len(), MAX_IDLE_PIPES - 1);
    }

    #[test]
    fn lends_no_more_pipes_than_it_may_have() {
        let mut pool = PipePool::default().with_at_most(3);
        let pipes = lend_all(&mut pool);
        assert_eq!(pipes.len(), 3);
        pipes.into_iter().for_each(|pipe| pool.give_back(pipe));
        assert_eq!(lend_all(&mut pool).len(), 3);
    }

    #[test]
    fn pipe_with_bytes_is_never_lent_again() {
        let mut pool = PipePool::new(MIN_PIPE_BYTES);
        let mut pipe = pool.lend().unwrap();
        assert!(pool.lend().is_none());
        pipe.held = rustix::io::write(&pipe.write_end, b"secret").unwrap();
        pool.give_back(pipe);
        assert!(pool.idle.is_empty());
        // Closed, not lost: its share of the budget is free again.
        assert!(pool.lend().is_some());
    }

    #[test]
    fn empty_budget_lends_nothing() {
        assert!(PipePool::new(0).lend().is_none());
    }
}
