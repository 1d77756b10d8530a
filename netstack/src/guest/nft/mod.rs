//! The gate: nftables rules in the guest's network namespace that turn the segments of chosen connections away from the
//! tap, to sockets inside the namespace. One set per family holds the connections; adding one is one small netlink
//! transaction (NETLINK_NETFILTER, nfnetlink batches, Linux 4.1), no program is executed.
//!
//! The rules live in the one table `coracle` of family inet and touch nobody else's. Somebody may flush them away; the
//! next change then fails with [`GateError::Gone`], and its caller installs the gate again.

use std::io;

/// Why the gate is not there, or did not change.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    #[error("nftables cannot be used in the guest's network namespace: {reason}: {source}")]
    Unavailable {
        reason: &'static str,
        source: io::Error,
    },
    #[error("the guest's firewall was flushed, and the table coracle with it")]
    Gone,
    #[error("cannot change the set of diverted connections: {0}")]
    Change(#[source] io::Error),
}
