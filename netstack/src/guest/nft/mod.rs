//! The gate: an nftables table in the guest whose sets say which connections the kernel carries.
//!
//! Segments of a promoted connection are marked: in `output` those that the guest sends, in `prerouting` those that we
//! write back into the tap, and those that a container behind one of the guest's bridges sends, which `raw` keeps away from
//! connection tracking and so from masquerading. [`divert_marked`](super::divert_marked) routes marked packets to the
//! connection's [`RepairSocket`](super::repair::RepairSocket). SYNs are never marked, so a guest that uses a port again
//! gets a new connection. The other direction needs no rule: what the socket sends is addressed to the guest.
//!
//! The table belongs to our netlink socket (NFT_TABLE_F_OWNER, Linux 5.12): `nft flush ruleset` and firewall reloads leave
//! it alone, and it vanishes with the helper, however that ends. On older kernels it is an ordinary table, and
//! [`Gate::heal`] puts back what a flush took. Nobody else's table is touched.

mod conntrack;
mod ruleset;

use std::collections::HashSet;
use std::io;

use super::netlink::{Netlink, NetlinkError};
use super::{Endpoints, GuestThread, GuestThreadEnded};
pub use conntrack::{Conntrack, Owner};
use ruleset::{ELEMENTS_PER_MESSAGE, Family, Features, NFNL_SUBSYS_NFTABLES};

/// The mark of diverted segments, also the number of the table that they are routed by. Reads "coracle".
pub const MARK: u32 = 0xC04A_C1E0;

/// The mark of what a repair socket sends to a connection that the guest only forwards: not to be tracked.
pub const UNTRACKED_MARK: u32 = MARK + 1;

/// Why a connection cannot be diverted; it stays in the engine.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    #[error("no netfilter socket in the guest's network namespace: {0}")]
    Open(#[source] io::Error),
    #[error("nftables table coracle belongs to another program in the guest")]
    Owned,
    /// The kernel lacks nftables (5.2 or newer is needed) or we lack CAP_NET_ADMIN; the kernel's words say which.
    #[error("cannot make nftables table coracle: {0}")]
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
    #[error(transparent)]
    Guest(#[from] GuestThreadEnded),
}

/// The table and what should be in it. Works from any thread; each change is one transaction and takes effect before the
/// method returns (some 20 microseconds).
#[derive(Debug)]
pub struct Gate {
    netlink: Netlink,
    /// What the kernel can do; the first [`Gate::heal`] finds out.
    features: Features,
    elements: HashSet<Endpoints>,
}

impl Gate {
    /// Makes the table in the guest's network namespace. One that an earlier helper left is replaced.
    pub fn install(guest: &GuestThread) -> Result<Gate, GateError> {
        let netlink = guest
            .run(|| Netlink::open(libc::NETLINK_NETFILTER))?
            .map_err(GateError::Open)?;
        let mut gate = Gate {
            netlink,
            features: Features::ALL,
            elements: HashSet::new(),
        };
        gate.heal()?;
        Ok(gate)
    }

    /// Diverts the connection's segments from now on: when this returns, no further one comes out of the tap. Repeating it
    /// is harmless. If somebody has removed the table, all of it is put back.
    pub fn add(&mut self, endpoints: Endpoints) -> Result<(), GateError> {
        match self.put(&[endpoints]) {
            Ok(()) => {
                self.elements.insert(endpoints);
                Ok(())
            }
            Err(error) if error.errno() == Some(libc::ENOENT) => {
                let is_new = self.elements.insert(endpoints);
                let healed = self.heal();
                if healed.is_err() && is_new {
                    self.elements.remove(&endpoints);
                }
                healed
            }
            Err(source) => Err(GateError::Add { endpoints, source }),
        }
    }

    /// Ends the diversion. To be called when no segment of the connection can come any more: the engine, which then gets
    /// to see the guest's segments, answers with RST. One that is not diverted is no error.
    pub fn remove(&mut self, endpoints: Endpoints) -> Result<(), GateError> {
        self.elements.remove(&endpoints);
        let removed = self
            .netlink
            .transaction(NFNL_SUBSYS_NFTABLES, |transaction| {
                ruleset::delete_elements(transaction, Family::of(&endpoints), &[endpoints]);
            });
        match removed {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
            removed => removed.map_err(|source| GateError::Remove { endpoints, source }),
        }
    }

    /// Makes the table anew, with all diverted connections. To be called when segments of one come out of the tap later
    /// than frames in flight would.
    pub fn heal(&mut self) -> Result<(), GateError> {
        self.reset()?;
        let elements: Vec<Endpoints> = self.elements.iter().copied().collect();
        self.put(&elements).map_err(GateError::Unavailable)
    }

    /// Whether the connection is diverted.
    pub fn contains(&self, endpoints: &Endpoints) -> bool {
        self.elements.contains(endpoints)
    }

    /// Whether connections can be diverted that the guest only forwards.
    pub fn diverts_forwarded(&self) -> bool {
        self.features.notrack
    }

    /// Makes an empty table, with as many of our features as the kernel knows.
    fn reset(&mut self) -> Result<(), GateError> {
        loop {
            let features = self.features;
            let made = self
                .netlink
                .transaction(NFNL_SUBSYS_NFTABLES, |transaction| {
                    ruleset::delete_table(transaction);
                    ruleset::make_table(transaction, features);
                });
            let error = match made {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            match error.errno() {
                Some(libc::EPERM) if self.is_owned_by_another() => return Err(GateError::Owned),
                // An unknown flag; an expression that there is no module for.
                Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT) => {
                    self.features = features.fewer().ok_or(GateError::Unavailable(error))?;
                }
                _ => return Err(GateError::Unavailable(error)),
            }
        }
    }

    /// EPERM is the answer to anybody without CAP_NET_ADMIN, too.
    fn is_owned_by_another(&mut self) -> bool {
        let nothing = self.netlink.transaction(NFNL_SUBSYS_NFTABLES, |_| {});
        nothing.is_ok()
    }

    fn put(&mut self, elements: &[Endpoints]) -> Result<(), NetlinkError> {
        for family in Family::BOTH {
            let members: Vec<Endpoints> = elements
                .iter()
                .copied()
                .filter(|element| Family::of(element) == family)
                .collect();
            for members in members.chunks(ELEMENTS_PER_MESSAGE) {
                self.netlink
                    .transaction(NFNL_SUBSYS_NFTABLES, |transaction| {
                        ruleset::add_elements(transaction, family, members);
                    })?;
            }
        }
        Ok(())
    }

    /// As on a kernel before 5.12.
    #[cfg(test)]
    pub(in crate::guest) fn make_ownerless(&mut self) -> Result<(), GateError> {
        self.features.owner = false;
        self.heal()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

    use super::*;
    use crate::testing::in_namespaces;

    fn guest() -> GuestThread {
        let network = File::open("/proc/thread-self/ns/net").unwrap();
        GuestThread::spawn(network.into()).unwrap()
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
                let guest = guest();
                let mut first = Gate::install(&guest).unwrap();
                let error = Gate::install(&guest).unwrap_err();
                assert!(matches!(error, GateError::Owned), "{error}");
                first.add(endpoints(1)).unwrap();
                // Asking for what is there already, or not, is no error.
                first.add(endpoints(1)).unwrap();
                first.remove(endpoints(1)).unwrap();
                first.remove(endpoints(1)).unwrap();
                drop(first);
                let mut second = Gate::install(&guest).unwrap();
                // One that an old kernel's helper left behind is replaced.
                second.make_ownerless().unwrap();
                second.add(endpoints(2)).unwrap();
                drop(second);
                let mut third = Gate::install(&guest).unwrap();
                assert!(!third.contains(&endpoints(2)));
                third.add(endpoints(2)).unwrap();
            },
        );
    }

    #[test]
    fn without_the_capability_it_is_unavailable() {
        in_namespaces(
            module_path!(),
            "without_the_capability_it_is_unavailable",
            || {
                let guest = guest();
                let mut gate = Gate::install(&guest).unwrap();
                let nothing = CapabilitySets {
                    effective: CapabilitySet::empty(),
                    permitted: CapabilitySet::empty(),
                    inheritable: CapabilitySet::empty(),
                };
                set_capabilities(None, nothing).unwrap();
                let error = Gate::install(&guest).unwrap_err();
                assert!(matches!(error, GateError::Unavailable(_)), "{error}");
                let error = gate.add(endpoints(1)).unwrap_err();
                assert!(matches!(error, GateError::Add { .. }), "{error}");
                assert!(!gate.contains(&endpoints(1)));
            },
        );
    }
}
