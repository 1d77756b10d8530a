//! What root can have: the guest is connected by a veth pair and routed by the host's kernel, and
//! clients connect to the guest's own address. A rootful engine adds a bridge and address
//! translation to this, and is a little slower.

use anyhow::Result;

use super::{Attached, Kind, Peer, Wanted, loopback};
use crate::cell::Family;
use crate::links::{self, GUEST, GUEST6};
use crate::procfs::Processes;

pub fn peer() -> Peer {
    Peer {
        name: "veth".into(),
        kind: Kind::Veth,
        ..loopback::peer()
    }
}

pub fn attach(wanted: Wanted) -> Result<Attached> {
    links::connect_guest(wanted.guest, wanted.mtu)?;
    Ok(Attached {
        guest: None,
        address: Some(match wanted.family {
            Family::Ipv4 => GUEST.into(),
            Family::Ipv6 => GUEST6.into(),
        }),
        processes: Processes::default(),
        ready: None,
        _programs: Vec::new(),
    })
}
