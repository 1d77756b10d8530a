//! The gate: nftables tables in the guest whose sets say which connections the kernel carries.
//!
//! Segments of a promoted connection are marked: in `output` those that the guest sends, in
//! `prerouting` those that we write back into the tap, and those that a container behind one of the
//! guest's bridges sends, which `raw` keeps away from connection tracking and so from masquerading.
//! [`Diversions`](super::route::Diversions) routes marked packets to the connection's
//! [`RepairSocket`](super::repair::RepairSocket). SYNs are never marked, so a guest that uses a
//! port again gets a new connection. The other direction needs no rule: what the socket sends is
//! addressed to the guest.
//!
//! The tables belong to our netlink socket (NFT_TABLE_F_OWNER, Linux 5.12): `nft flush ruleset` and
//! firewall reloads leave them alone, and they vanish with the helper, however that ends. On older
//! kernels they are ordinary tables, and [`Gate::heal`] puts back what a flush took. Nobody else's
//! tables are touched.
//!
//! They hook into nothing until the first connection is promoted: a guest whose connections only
//! talk pays nothing, where chains would cost it a tenth of its requests per second.

use std::collections::HashSet;
use std::io;

use super::ruleset::{self, ELEMENTS_PER_MESSAGE, Family, NFNL_SUBSYS_NFTABLES, Reach};
use crate::core::flow::Endpoints;
use crate::netlink::{Netlink, NetlinkError};

/// Why a connection cannot be diverted; it stays in the engine.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    #[error("no netfilter socket in the guest's network namespace: {0}")]
    Open(#[source] io::Error),
    #[error("nftables tables coracle belong to another program in the guest")]
    Owned,
    /// The kernel lacks nftables (5.2 or newer is needed) or we lack CAP_NET_ADMIN; the kernel's
    /// words say which.
    #[error("cannot make nftables tables coracle: {0}")]
    Unavailable(#[source] NetlinkError),
    #[error("cannot divert {endpoints}: {source}")]
    Add {
        endpoints: Endpoints,
        source: NetlinkError,
    },
    #[error("cannot stop diverting {endpoints}: {source}")]
    Remove {
        endpoints: Endpoints,
        source: NetlinkError,
    },
}

/// The tables and what should be in them. Works from any thread; each change is one transaction and
/// takes effect before the method returns (some 20 microseconds, a few hundred for the first
/// connection).
#[derive(Debug)]
pub struct Gate {
    netlink: Netlink,
    /// Whether the kernel lets us own them.
    owned: bool,
    tables: [Table; 2],
}

/// What should be in the table of one family.
#[derive(Debug)]
struct Table {
    family: Family,
    /// `None` until there is something to divert.
    reach: Option<Reach>,
    elements: HashSet<Endpoints>,
}

impl Gate {
    /// In the calling thread's network namespace, without tables yet.
    pub fn open() -> Result<Self, GateError> {
        Ok(Self {
            netlink: Netlink::open(libc::NETLINK_NETFILTER).map_err(GateError::Open)?,
            owned: true,
            tables: Family::BOTH.map(Table::new),
        })
    }

    /// Makes the tables. What an earlier helper left is replaced.
    pub fn install(&mut self) -> Result<(), GateError> {
        match self.heal() {
            // A flag that the kernel does not know.
            Err(GateError::Unavailable(error))
                if let Some(libc::EINVAL | libc::EOPNOTSUPP) = error.errno() =>
            {
                self.owned = false;
                self.heal()
            }
            made => made,
        }
    }

    /// Diverts the connection's segments from now on: when this returns, no further one comes out
    /// of the tap. `reach` says whose it is. Repeating it is harmless. If somebody has removed the
    /// table, all of it is put back.
    pub fn add(&mut self, endpoints: Endpoints, reach: Reach) -> Result<(), GateError> {
        let table = &mut self.tables[Family::of(&endpoints) as usize];
        let mut added = table.add(&mut self.netlink, endpoints, reach);
        if let Err(error) = &added
            && error.errno() == Some(libc::ENOENT)
            && table.make(&mut self.netlink, self.owned).is_ok()
        {
            added = table.add(&mut self.netlink, endpoints, reach);
        }
        added.map_err(|source| GateError::Add { endpoints, source })
    }

    /// Ends the diversion. To be called when no segment of the connection can come any more: the
    /// engine, which then gets to see the guest's segments, answers with RST. One that is not
    /// diverted is no error.
    pub fn remove(&mut self, endpoints: Endpoints) -> Result<(), GateError> {
        let table = &mut self.tables[Family::of(&endpoints) as usize];
        match table.remove(&mut self.netlink, endpoints) {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
            removed => removed.map_err(|source| GateError::Remove { endpoints, source }),
        }
    }

    /// Makes the tables anew, with all diverted connections. To be called when segments of one come
    /// out of the tap later than frames in flight would.
    pub fn heal(&mut self) -> Result<(), GateError> {
        for table in &mut self.tables {
            if let Err(error) = table.make(&mut self.netlink, self.owned) {
                return Err(match error.errno() {
                    Some(libc::EPERM) if self.is_owned_by_another() => GateError::Owned,
                    _ => GateError::Unavailable(error),
                });
            }
        }
        Ok(())
    }

    /// Whether the connection is diverted.
    pub fn contains(&self, endpoints: &Endpoints) -> bool {
        let table = &self.tables[Family::of(endpoints) as usize];
        table.elements.contains(endpoints)
    }

    /// EPERM is the answer to anybody without CAP_NET_ADMIN, too.
    fn is_owned_by_another(&mut self) -> bool {
        let nothing = self.netlink.transaction(NFNL_SUBSYS_NFTABLES, |_| {});
        nothing.is_ok()
    }

    /// As on a kernel before 5.12.
    #[cfg(test)]
    pub(in crate::guest) fn make_ownerless(&mut self) -> Result<(), GateError> {
        self.owned = false;
        self.heal()
    }
}

impl Table {
    fn new(family: Family) -> Self {
        Self {
            family,
            reach: None,
            elements: HashSet::new(),
        }
    }

    /// Replaces whatever is there.
    fn make(&mut self, netlink: &mut Netlink, owned: bool) -> Result<(), NetlinkError> {
        let Self { family, reach, .. } = *self;
        netlink.transaction(NFNL_SUBSYS_NFTABLES, |transaction| {
            ruleset::delete_table(transaction, family);
            ruleset::make_table(transaction, family, owned);
            if let Some(reach) = reach {
                ruleset::extend_table(transaction, family, None, reach);
            }
        })?;
        let elements: Vec<Endpoints> = self.elements.iter().copied().collect();
        for elements in elements.chunks(ELEMENTS_PER_MESSAGE) {
            netlink.transaction(NFNL_SUBSYS_NFTABLES, |transaction| {
                ruleset::add_elements(transaction, family, elements);
            })?;
        }
        Ok(())
    }

    fn add(
        &mut self,
        netlink: &mut Netlink,
        endpoints: Endpoints,
        reach: Reach,
    ) -> Result<(), NetlinkError> {
        let reach = self.reach.map_or(reach, |present| present.max(reach));
        netlink.transaction(NFNL_SUBSYS_NFTABLES, |transaction| {
            ruleset::extend_table(transaction, self.family, self.reach, reach);
            ruleset::add_elements(transaction, self.family, &[endpoints]);
        })?;
        self.reach = Some(reach);
        self.elements.insert(endpoints);
        Ok(())
    }

    fn remove(&mut self, netlink: &mut Netlink, endpoints: Endpoints) -> Result<(), NetlinkError> {
        self.elements.remove(&endpoints);
        netlink.transaction(NFNL_SUBSYS_NFTABLES, |transaction| {
            ruleset::delete_elements(transaction, self.family, &[endpoints]);
        })
    }
}

#[cfg(test)]
mod tests {

    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

    use super::*;
    use crate::testing::in_namespaces;

    fn installed() -> Result<Gate, GateError> {
        let mut gate = Gate::open()?;
        gate.install()?;
        Ok(gate)
    }

    fn endpoints(port: u16) -> Endpoints {
        let remote = "198.51.100.7:443".parse().unwrap();
        Endpoints::new(([10, 0, 2, 100], port).into(), remote).unwrap()
    }

    #[test]
    fn the_table_is_ours_alone_and_goes_with_us() {
        in_namespaces(
            module_path!(),
            "the_table_is_ours_alone_and_goes_with_us",
            || {
                let mut first = installed().unwrap();
                let error = installed().unwrap_err();
                assert!(matches!(error, GateError::Owned), "{error}");
                first.add(endpoints(1), Reach::Own).unwrap();
                // Asking for what is there already, or not, is no error.
                first.add(endpoints(1), Reach::Own).unwrap();
                first.remove(endpoints(1)).unwrap();
                first.remove(endpoints(1)).unwrap();
                drop(first);
                let mut second = installed().unwrap();
                // One that an old kernel's helper left behind is replaced.
                second.make_ownerless().unwrap();
                second.add(endpoints(2), Reach::Own).unwrap();
                drop(second);
                let mut third = installed().unwrap();
                assert!(!third.contains(&endpoints(2)));
                third.add(endpoints(2), Reach::Own).unwrap();
            },
        );
    }

    #[test]
    fn without_the_capability_it_is_unavailable() {
        in_namespaces(
            module_path!(),
            "without_the_capability_it_is_unavailable",
            || {
                let mut gate = installed().unwrap();
                let nothing = CapabilitySets {
                    effective: CapabilitySet::empty(),
                    permitted: CapabilitySet::empty(),
                    inheritable: CapabilitySet::empty(),
                };
                set_capabilities(None, nothing).unwrap();
                let error = installed().unwrap_err();
                assert!(matches!(error, GateError::Unavailable(_)), "{error}");
                let error = gate.add(endpoints(1), Reach::Own).unwrap_err();
                assert!(matches!(error, GateError::Add { .. }), "{error}");
                assert!(!gate.contains(&endpoints(1)));
            },
        );
    }
}
