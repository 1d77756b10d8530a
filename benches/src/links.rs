//! Links, addresses and routes of the world, over rtnetlink: nothing here runs `ip`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use rtnetlink::{Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::namespaces;

/// The host's address on its uplink, where guests reach its services and remote clients its published ports.
pub const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0x5100, 0, 0, 0, 2);
/// The machine elsewhere, which is also the host's default gateway: pasta insists on a default route.
pub const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
pub const ELSEWHERE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0x5100, 0, 0, 0, 1);

const UPLINK: &str = "uplink0";
const FAR_END: &str = "far0";

/// Brings up the host side of the world (the calling process's network namespace) and the namespace of process `elsewhere` at the
/// other end of a veth pair.
pub fn connect_elsewhere(elsewhere: i32) -> Result<()> {
    on_netlink(async |handle| {
        set_up(&handle, "lo").await?;
        let pair = LinkVeth::new(UPLINK, FAR_END).build();
        handle
            .link()
            .add(pair)
            .execute()
            .await
            .context("failed to create a veth pair")?;
        let far_end = index(FAR_END)?;
        let moved = LinkUnspec::new_with_index(far_end).setns_by_pid(elsewhere.cast_unsigned());
        handle
            .link()
            .set(moved.build())
            .execute()
            .await
            .context("failed to move a link elsewhere")?;
        configure(&handle, UPLINK, HOST.into(), HOST6.into()).await?;
        let default = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(ELSEWHERE)
            .build();
        handle
            .route()
            .add(default)
            .execute()
            .await
            .context("failed to add the default route")?;
        if !has_ipv6() {
            return Ok(());
        }
        let default6 = RouteMessageBuilder::<Ipv6Addr>::new()
            .gateway(ELSEWHERE6)
            .build();
        handle
            .route()
            .add(default6)
            .execute()
            .await
            .context("failed to add the IPv6 default route")
    })?;
    namespaces::in_network_of(elsewhere, || {
        on_netlink(async |handle| {
            set_up(&handle, "lo").await?;
            configure(&handle, FAR_END, ELSEWHERE.into(), ELSEWHERE6.into()).await
        })
    })
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
    // Duplicate address detection would keep the IPv6 address unusable for a second or two.
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

fn has_ipv6() -> bool {
    std::path::Path::new("/proc/sys/net/ipv6").exists()
}

/// The index of a link in the calling thread's network namespace.
fn index(link: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(link).with_context(|| format!("failed to find link {link}"))
}
