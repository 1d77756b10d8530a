//! Links, addresses and routes of the world, over rtnetlink: nothing here runs `ip`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};

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

const ETHERNET_MTU: u16 = 1500;

const UPLINK: &str = "uplink0";
const FAR_END: &str = "far0";
const GUEST_LINK: &str = "guest0";
const GUEST_END: &str = "tap0";

/// Brings up the host side of the world (the calling process's network namespace) and the namespace
/// of process `elsewhere` at the other end of a veth pair.
pub fn connect_elsewhere(elsewhere: i32) -> Result<()> {
    on_netlink(async |handle| {
        set_up(&handle, "lo").await?;
        add_pair(&handle, UPLINK, FAR_END, elsewhere, ETHERNET_MTU).await?;
        configure(&handle, UPLINK, HOST.into(), HOST6.into()).await?;
        add_default_routes(&handle, ELSEWHERE, ELSEWHERE6).await
    })?;
    namespaces::in_network_of(elsewhere, || {
        on_netlink(async |handle| {
            set_up(&handle, "lo").await?;
            configure(&handle, FAR_END, ELSEWHERE.into(), ELSEWHERE6.into()).await?;
            // Towards a guest that is routed instead of served by a helper.
            add_default_routes(&handle, HOST, HOST6).await
        })
    })
}

/// Gives the namespace of process `guest` a veth pair to the host, which routes for it: what an
/// engine with root makes, less its bridge and address translation.
pub fn connect_guest(guest: i32, mtu: u16) -> Result<()> {
    on_netlink(async |handle| {
        add_pair(&handle, GUEST_LINK, GUEST_END, guest, mtu).await?;
        configure(&handle, GUEST_LINK, GATEWAY.into(), GATEWAY6.into()).await
    })?;
    namespaces::in_network_of(guest, || {
        on_netlink(async |handle| {
            set_up(&handle, "lo").await?;
            configure(&handle, GUEST_END, GUEST.into(), GUEST6.into()).await?;
            add_default_routes(&handle, GATEWAY, GATEWAY6).await
        })
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

/// Creates a veth pair with its far end in the namespace of process `far`.
async fn add_pair(
    handle: &Handle,
    near_end: &str,
    far_end: &str,
    far: i32,
    mtu: u16,
) -> Result<()> {
    let pair = LinkVeth::new(near_end, far_end).build();
    handle
        .link()
        .add(pair)
        .execute()
        .await
        .with_context(|| format!("failed to create the veth pair {near_end}"))?;
    for link in [near_end, far_end] {
        let sized = LinkUnspec::new_with_name(link).mtu(mtu.into());
        handle
            .link()
            .set(sized.build())
            .execute()
            .await
            .with_context(|| format!("failed to set the MTU of {link}"))?;
    }
    let moved = LinkUnspec::new_with_index(index(far_end)?).setns_by_pid(far.cast_unsigned());
    handle
        .link()
        .set(moved.build())
        .execute()
        .await
        .with_context(|| format!("failed to move {far_end} to its namespace"))
}

async fn add_default_routes(handle: &Handle, via: Ipv4Addr, via6: Ipv6Addr) -> Result<()> {
    let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(via).build();
    handle
        .route()
        .add(route)
        .execute()
        .await
        .with_context(|| format!("failed to add the default route via {via}"))?;
    if !has_ipv6() {
        return Ok(());
    }
    let route = RouteMessageBuilder::<Ipv6Addr>::new().gateway(via6).build();
    handle
        .route()
        .add(route)
        .execute()
        .await
        .with_context(|| format!("failed to add the default route via {via6}"))
}

/// Runs `work` with a netlink connection to the calling thread's network namespace.
fn on_netlink(work: impl AsyncFnOnce(Handle) -> Result<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    runtime.block_on(async {
        let (connection, handle, _) =
            rtnetlink::new_connection().context("failed to open a netlink socket")?;
        tokio::spawn(connection);
        work(handle).await
    })
}

async fn configure(handle: &Handle, link: &str, address: IpAddr, address6: IpAddr) -> Result<()> {
    let index = index(link)?;
    let add = async |address, prefix| {
        let added = handle.address().add(index, address, prefix).execute().await;
        added.with_context(|| format!("failed to add {address} to {link}"))
    };
    add(address, 24).await?;
    if has_ipv6() {
        // Duplicate address detection would keep the address unusable for a second or two.
        let dad = format!("/proc/sys/net/ipv6/conf/{link}/accept_dad");
        std::fs::write(&dad, "0").with_context(|| format!("failed to write {dad}"))?;
        add(address6, 64).await?;
    }
    set_up(handle, link).await
}

async fn set_up(handle: &Handle, link: &str) -> Result<()> {
    let up = LinkUnspec::new_with_name(link).up().build();
    handle
        .link()
        .set(up)
        .execute()
        .await
        .with_context(|| format!("failed to bring up {link}"))
}

/// Whether this kernel knows IPv6.
pub fn has_ipv6() -> bool {
    std::path::Path::new("/proc/sys/net/ipv6").exists()
}

/// The index of a link in the calling thread's network namespace.
fn index(link: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(link).with_context(|| format!("failed to find link {link}"))
}
