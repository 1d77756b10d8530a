//! What it takes in the guest for its kernel to carry a connection: a socket made in mid-flow
//! (`repair`), the diversion of the guest's segments to it (`gate`, `route`), and whose connection
//! it is (`conntrack`). [`Promoter::take_over`] is the first phase of a hand-over; the account of
//! the whole is at the head of `driver::hand_over`.

mod conntrack;
mod gate;
mod mark;
mod repair;
mod route;
mod ruleset;
mod socket_pool;
mod socket_table;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{GuestThread, GuestThreadEnded};
use crate::core::flow::Endpoints;
use crate::core::tcp::{Snapshot, Stragglers};
use crate::netlink::NetlinkError;
use conntrack::{Conntrack, Owner};
use gate::GateError;
use repair::{RepairError, RepairSocket};
use route::{DiversionError, Diversions};
use socket_pool::{SocketError, SocketPool};
use socket_table::SocketTable;

pub use gate::Gate;
pub use repair::{KEEPALIVE, is_closed};
pub use ruleset::Reach;

/// Hands flows over and takes the traces of ended ones away. Works from any thread.
#[derive(Debug)]
pub struct Promoter {
    guest: Arc<GuestThread>,
    diversions: Diversions,
    gate: Gate,
    conntrack: Conntrack,
    sockets: SocketPool,
    table: SocketTable,
}

/// A connection that the kernel carries, until [`Promoter::release`].
#[derive(Debug, Clone, Copy)]
pub struct Diversion {
    /// Its ends as they show on the tap.
    shown: Endpoints,
    /// Its ends as the repair socket and the gate know them. Others than shown if the guest
    /// translated them as long as the segments came this way.
    inside: Endpoints,
    /// Whose they are: the guest's own, or of somebody behind it.
    reach: Reach,
}

impl Diversion {
    /// The connection's ends as they show on the tap.
    pub fn shown(&self) -> Endpoints {
        self.shown
    }

    /// What becomes of segments that were on the way to the tap. Written back, only those are
    /// diverted that look as they do inside.
    pub fn stragglers(&self) -> Stragglers {
        if self.shown == self.inside {
            Stragglers::Return
        } else {
            Stragglers::Drop
        }
    }
}

/// Why this system or this flow cannot be promoted.
#[derive(Debug, thiserror::Error)]
pub enum PromoterError {
    #[error(transparent)]
    Diversion(#[from] DiversionError),
    #[error(transparent)]
    Gate(#[from] GateError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Repair(#[from] RepairError),
    #[error("cannot ask the guest whose connection {0} is: {1}")]
    Owner(Endpoints, #[source] NetlinkError),
    /// Diverted segments carry the addresses from before the translation, and are routed by them.
    #[error("the guest translates the addresses of its own connection {0}")]
    Translated(Endpoints),
    #[error(transparent)]
    Guest(#[from] GuestThreadEnded),
}

/// Sockets by which a guest's kernel is asked for what a hand-over takes.
#[derive(Debug)]
pub struct Access {
    diversions: Diversions,
    gate: Gate,
    conntrack: Conntrack,
    table: SocketTable,
}

impl Access {
    /// To the calling thread's network namespace, whose tap is `tap`; `ipv6` says whether it has
    /// IPv6. Changes nothing there.
    pub fn open(tap: &str, ipv6: bool) -> Result<Self, PromoterError> {
        Ok(Self {
            diversions: Diversions::open(tap, ipv6)?,
            gate: Gate::open()?,
            conntrack: Conntrack::open()?,
            table: SocketTable::open()?,
        })
    }
}

impl Promoter {
    /// For the guest that `access` is to. At most `sockets` are kept ready.
    pub fn new(guest: Arc<GuestThread>, access: Access, sockets: usize) -> Self {
        let Access {
            diversions,
            gate,
            conntrack,
            table,
        } = access;
        Self {
            guest,
            diversions,
            gate,
            conntrack,
            sockets: SocketPool::new(sockets),
            table,
        }
    }

    /// Prepares the guest: routes, firewall tables, and in the background sockets. To be called
    /// before the first hand-over; repeating it is harmless.
    pub fn prepare(&mut self) -> Result<(), PromoterError> {
        self.diversions.set_up()?;
        self.gate.install()?;
        Ok(self.sockets.fill(&self.guest)?)
    }

    /// Makes the kernel carry the flow from here on, and returns the socket that faces the guest.
    /// `snapshot` is of the flow as it shows on the tap. On an error the guest has noticed nothing.
    pub fn take_over(
        &mut self,
        snapshot: &Snapshot,
    ) -> Result<(OwnedFd, Diversion), PromoterError> {
        let diversion = self.locate(snapshot.endpoints)?;
        let Diversion { inside, reach, .. } = diversion;
        let fresh = self.sockets.take(&self.guest, inside.remote().is_ipv6())?;
        let socket = RepairSocket::restore(fresh, inside, reach, snapshot)?;
        self.gate.add(inside, reach)?;
        match socket.leave() {
            Ok(socket) => Ok((socket, diversion)),
            Err(error) => {
                // The engine goes on, so the guest's segments have to come back to it.
                let _ = self.gate.remove(inside);
                Err(error.into())
            }
        }
    }

    /// Finds out which ends the connection has inside.
    fn locate(&mut self, shown: Endpoints) -> Result<Diversion, PromoterError> {
        let owner = self.conntrack.owner(&shown);
        let (inside, reach) = match owner.map_err(|error| PromoterError::Owner(shown, error))? {
            Owner::Guest => (shown, Reach::Own),
            Owner::Behind(inside) => (inside, Reach::Forwarded),
            Owner::Translated => return Err(PromoterError::Translated(shown)),
        };
        Ok(Diversion {
            shown,
            inside,
            reach,
        })
    }

    /// Ends the diversion of a flow, and makes its tuple free for the guest to use again. To be
    /// called when the socket has been closed in order, but before it is reset: a guest that takes
    /// the RST's number for wrong asks back (RFC 5961 3.2), and is heard on the tap.
    pub fn release(&mut self, diversion: &Diversion) -> Result<(), PromoterError> {
        let undiverted = self.gate.remove(diversion.inside);
        // Without an answer the tuple stays in TIME-WAIT, and a flow that uses it again stays in
        // the engine.
        let _ = self.table.forget(&diversion.inside);
        if diversion.reach == Reach::Forwarded {
            // Without an answer the entry stays until it is too old.
            let _ = self.conntrack.forget(&diversion.shown);
        }
        Ok(undiverted?)
    }

    /// Puts the diversion back that somebody has flushed.
    pub fn heal(&mut self) -> Result<(), PromoterError> {
        Ok(self.gate.heal()?)
    }
}
