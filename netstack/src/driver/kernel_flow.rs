//! Flows that the kernel carries: what the driver keeps of each, and what their relays share.

use std::os::fd::OwnedFd;

use portfwd::relay::{PipePool, Relay, Side};

use crate::core::flow::FlowId;
use crate::guest::promotion::Diversion;

/// The guest's side of a relay; the other is the host's.
pub const GUEST: Side = Side::A;
pub const HOST: Side = Side::B;

/// A flow that the kernel carries.
pub struct KernelFlow {
    pub diversion: Diversion,
    pub stage: KernelStage,
}

pub enum KernelStage {
    Relaying(Relaying),
    /// Both sides have finished; TCP still has to see it through, with the guest on this socket.
    Closing(OwnedFd),
}

/// The relay has both sockets.
pub struct Relaying {
    pub relay: Box<Relay>,
    /// Bytes that the core has been told of.
    to_guest: u64,
    from_guest: u64,
}

/// What a shard's relays share.
pub struct Relays {
    pub pipes: PipePool,
    /// Those that want another turn without an event.
    pub unfinished: Vec<FlowId>,
}

impl Relays {
    /// They get `pipes` pipes at most.
    pub fn new(pipes: usize) -> Self {
        Self {
            pipes: PipePool::default().with_at_most(pipes),
            unfinished: Vec::new(),
        }
    }

    pub fn has_work(&self) -> bool {
        !self.unfinished.is_empty()
    }
}

impl Relaying {
    pub fn new(relay: Relay) -> Self {
        Self {
            relay: Box::new(relay),
            to_guest: 0,
            from_guest: 0,
        }
    }

    /// Bytes that have been moved, to the guest and from it, since this was last asked.
    pub fn moved_since(&mut self) -> (u64, u64) {
        let before = (self.to_guest, self.from_guest);
        self.to_guest = self.relay.bytes_from(HOST);
        self.from_guest = self.relay.bytes_from(GUEST);
        (self.to_guest - before.0, self.from_guest - before.1)
    }
}
