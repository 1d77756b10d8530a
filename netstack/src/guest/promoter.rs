//! Everything in the guest that it takes to hand a flow over to the kernel, in the order that keeps every step but the
//! last one silent: repair socket, diversion, first word.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::netlink::NetlinkError;
use super::nft::{Conntrack, Gate, GateError, Owner};
use super::repair::{RepairError, RepairSocket, Snapshot, SocketPool, SocketTable};
use super::{DiversionError, Endpoints, GuestThread, GuestThreadEnded, divert_marked};

/// Hands flows over and takes the traces of ended ones away. Works from any thread.
#[derive(Debug)]
pub struct Promoter {
    guest: Arc<GuestThread>,
    gate: Gate,
    conntrack: Conntrack,
    sockets: SocketPool,
    table: SocketTable,
}

/// Why this system or this flow cannot be promoted.
#[derive(Debug, thiserror::Error)]
pub enum PromoterError {
    #[error(transparent)]
    Diversion(#[from] DiversionError),
    #[error(transparent)]
    Gate(#[from] GateError),
    #[error(transparent)]
    Repair(#[from] RepairError),
    #[error("cannot ask the guest whose connection {0} is: {1}")]
    Owner(Endpoints, #[source] NetlinkError),
    /// Its segments come from a container inside the guest, by way of the guest's address translation.
    #[error("{0} is not the guest's own connection")]
    Forwarded(Endpoints),
    #[error(transparent)]
    Guest(#[from] GuestThreadEnded),
}

impl Promoter {
    /// Prepares the guest behind the tap `tap`: routes, firewall table, sockets.
    pub fn set_up(
        guest: Arc<GuestThread>,
        tap: &str,
        ipv6: bool,
    ) -> Result<Promoter, PromoterError> {
        let name = tap.to_owned();
        guest.run(move || divert_marked(&name, ipv6))??;
        let gate = Gate::install(&guest)?;
        let conntrack = Conntrack::open(&guest)?;
        let sockets = SocketPool::new(&guest)?;
        let table = SocketTable::open(&guest)?;
        Ok(Promoter {
            guest,
            gate,
            conntrack,
            sockets,
            table,
        })
    }

    /// Makes the kernel carry the flow from here on, and returns the socket that faces the guest. On an error the guest
    /// has noticed nothing.
    pub fn take_over(&mut self, snapshot: &Snapshot) -> Result<OwnedFd, PromoterError> {
        let endpoints = snapshot.endpoints;
        let owner = self.conntrack.owner(&endpoints);
        if owner.map_err(|error| PromoterError::Owner(endpoints, error))? != Owner::Guest {
            return Err(PromoterError::Forwarded(endpoints));
        }
        let is_ipv6 = endpoints.remote().is_ipv6();
        let fresh = self.sockets.take(&self.guest, is_ipv6)?;
        let socket = RepairSocket::restore(fresh, snapshot)?;
        self.gate.add(endpoints)?;
        socket.leave().map_err(|error| {
            // The engine goes on, so the guest's segments have to come back to it.
            let _ = self.gate.remove(endpoints);
            error.into()
        })
    }

    /// Ends the diversion of a flow whose socket has been closed, and makes its tuple free for the guest to use again.
    pub fn release(&mut self, endpoints: &Endpoints) -> Result<(), PromoterError> {
        // Without an answer the tuple stays in TIME-WAIT, and a flow that uses it again stays in the engine.
        let _ = self.table.forget(endpoints);
        Ok(self.gate.remove(*endpoints)?)
    }

    /// Puts the diversion back that somebody has flushed.
    pub fn heal(&mut self) -> Result<(), PromoterError> {
        Ok(self.gate.heal()?)
    }
}
