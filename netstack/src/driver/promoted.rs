//! What a flow is on the host that the kernel carries. `promotion` makes it and sees it through.

use std::os::fd::OwnedFd;

use portfwd::relay::Relay;

use crate::guest::promotion::Diversion;

/// A flow that the kernel carries.
pub struct Promoted {
    pub diversion: Diversion,
    pub stage: Stage,
}

pub enum Stage {
    /// The relay has both sockets. The numbers are the bytes that the core has been told of.
    Relaying {
        relay: Box<Relay>,
        to_guest: u64,
        from_guest: u64,
    },
    /// Both sides have finished; TCP still has to see it through, with the guest on this socket.
    Closing(OwnedFd),
}
