//! The reference: no helper, no tap, no guest. Outbound and published cells run over the host's
//! `lo`, remote ones over the uplink's veth pair; what a helper reaches of it is the ratio in the
//! report.

use super::{Attached, Kind, Peer};
use crate::procfs::Processes;

pub fn peer() -> Peer {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Peer {
        name: "host".into(),
        kind: Kind::Host,
        program: Default::default(),
        version: format!("Linux {}", kernel.trim()),
        backend: None,
    }
}

pub fn attach() -> Attached {
    let init = std::process::id().cast_signed();
    Attached {
        guest: Some(init),
        address: None,
        processes: Processes::default(),
        ready: None,
        _programs: Vec::new(),
    }
}
