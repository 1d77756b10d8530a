//! The two ends of a TCP connection of the guest, as its kernel sees them: what names the
//! connection to the firewall's set, to connection tracking and to the kernel's table of sockets.

use std::fmt;
use std::net::SocketAddr;

use crate::core::flow::{Protocol, Tuple};

/// Both ends, of one address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoints {
    guest: SocketAddr,
    remote: SocketAddr,
}

impl Endpoints {
    /// `None` if the families differ.
    pub fn new(guest: SocketAddr, remote: SocketAddr) -> Option<Endpoints> {
        (guest.is_ipv4() == remote.is_ipv4()).then_some(Endpoints { guest, remote })
    }

    /// Those of a flow; `None` unless it is TCP.
    pub fn of(tuple: &Tuple) -> Option<Endpoints> {
        match (tuple.protocol, tuple.remote) {
            (Protocol::Tcp, Some(remote)) => Endpoints::new(tuple.guest, remote),
            _ => None,
        }
    }

    /// The guest's own end.
    pub fn guest(&self) -> SocketAddr {
        self.guest
    }

    /// Whom the guest believes it talks to.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} - {}", self.guest, self.remote)
    }
}
