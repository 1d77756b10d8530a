//! Links, addresses and routes of the world.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use testbed::links::Links;
pub use testbed::links::has_ipv6;

use crate::namespaces;

/// The host's address on its uplink, where guests reach its services and remote clients its
/// published ports.
pub const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0x5100, 0, 0, 0, 2);
/// The machine elsewhere, which is also the host's default gateway: pasta insists on a default
/// route.
pub const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub const ELSEWHERE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0x5100, 0, 0, 0, 1);

/// The addresses of the guest, and of the host end of its link, behind a helper or in its place:
/// those that slirp4netns gives.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
pub const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100);
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

const ETHERNET_MTU: u32 = 1500;

const UPLINK: &str = "uplink0";
const FAR_END: &str = "far0";
const GUEST_LINK: &str = "guest0";
const GUEST_END: &str = "tap0";

/// Brings up the host side of the world (the calling process's network namespace) and the namespace
/// of process `elsewhere` at the other end of a veth pair.
pub fn connect_elsewhere(elsewhere: i32) -> Result<()> {
    let links = Links::open()?;
    links.up("lo")?;
    add_pair(&links, UPLINK, FAR_END, elsewhere, ETHERNET_MTU)?;
    configure(&links, UPLINK, HOST, HOST6)?;
    add_default_routes(&links, ELSEWHERE, ELSEWHERE6)?;
    namespaces::in_network_of(elsewhere, || {
        let links = Links::open()?;
        links.up("lo")?.set_mtu(FAR_END, ETHERNET_MTU)?;
        configure(&links, FAR_END, ELSEWHERE, ELSEWHERE6)?;
        // Towards a guest that is routed instead of served by a helper.
        add_default_routes(&links, HOST, HOST6)
    })
}

/// Gives the namespace of process `guest` a veth pair to the host, which routes for it: what an
/// engine with root makes, less its bridge and address translation.
pub fn connect_guest(guest: i32, mtu: u16) -> Result<()> {
    let links = Links::open()?;
    add_pair(&links, GUEST_LINK, GUEST_END, guest, mtu.into())?;
    configure(&links, GUEST_LINK, GATEWAY, GATEWAY6)?;
    namespaces::in_network_of(guest, || {
        let links = Links::open()?;
        links.up("lo")?.set_mtu(GUEST_END, mtu.into())?;
        configure(&links, GUEST_END, GUEST, GUEST6)?;
        add_default_routes(&links, GATEWAY, GATEWAY6)
    })?;
    let mut switches = vec!["ipv4/ip_forward"];
    if has_ipv6() {
        switches.push("ipv6/conf/all/forwarding");
    }
    for switch in switches {
        let path = format!("/proc/sys/net/{switch}");
        std::fs::write(&path, "1").with_context(|| format!("failed to write {path}"))?;
    }
    Ok(())
}

/// Makes IPv6 addresses usable at once in the namespace of process `pid`, in links to come as well:
/// duplicate address detection takes a second or two, in which a helper that says it is ready is
/// not.
pub fn skip_duplicate_address_detection(pid: i32) -> Result<()> {
    if !has_ipv6() {
        return Ok(());
    }
    const PATH: &str = "/proc/sys/net/ipv6/conf/default/accept_dad";
    namespaces::in_network_of(pid, || {
        std::fs::write(PATH, "0").with_context(|| format!("failed to write {PATH}"))
    })
}

/// Creates a veth pair with its far end in the namespace of process `far`, which sizes its own end.
fn add_pair(links: &Links, near_end: &str, far_end: &str, far: i32, mtu: u32) -> Result<()> {
    let far = namespaces::open_network_of(far)?;
    links
        .add_veth(near_end, far_end, far.as_fd())?
        .set_mtu(near_end, mtu)?;
    Ok(())
}

fn configure(links: &Links, link: &str, address: Ipv4Addr, address6: Ipv6Addr) -> Result<()> {
    links.add_address(link, address, 24)?;
    if has_ipv6() {
        links.add_address(link, address6, 64)?;
    }
    links.up(link)?;
    Ok(())
}

fn add_default_routes(links: &Links, via: Ipv4Addr, via6: Ipv6Addr) -> Result<()> {
    links.add_route(Ipv4Addr::UNSPECIFIED, 0, via)?;
    if has_ipv6() {
        links.add_route(Ipv6Addr::UNSPECIFIED, 0, via6)?;
    }
    Ok(())
}
