//! Links, addresses and routes of a network namespace, by rtnetlink: no `ip` program is needed.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::route::RouteType;
use rtnetlink::{Error, Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::runtime::{Builder, Runtime};

/// A netlink conversation in the network namespace that the calling thread was in when it began.
pub struct Links {
    runtime: Runtime,
    handle: Handle,
}

impl Links {
    pub fn open() -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let _inside = runtime.enter();
        let (connection, handle, _) =
            rtnetlink::new_connection().context("failed to open a netlink socket")?;
        runtime.spawn(connection);
        drop(_inside);
        Ok(Self { runtime, handle })
    }

    pub fn up(&self, link: &str) -> Result<&Self> {
        let up = LinkUnspec::new_with_name(link).up().build();
        self.ask(self.handle.link().set(up).execute(), || {
            format!("bring up {link}")
        })
    }

    pub fn set_mtu(&self, link: &str, mtu: u32) -> Result<&Self> {
        let sized = LinkUnspec::new_with_name(link).mtu(mtu).build();
        self.ask(self.handle.link().set(sized).execute(), || {
            format!("set the MTU of {link}")
        })
    }

    /// A veth pair: `link` here, and `far_link` in the namespace behind `far`.
    pub fn add_veth(&self, link: &str, far_link: &str, far: BorrowedFd) -> Result<&Self> {
        // A name that nothing here has: the two ends may be called the same.
        const PEER: &str = "peer0";
        let pair = LinkVeth::new(link, PEER).build();
        self.ask(self.handle.link().add(pair).execute(), || {
            format!("create the veth pair {link}")
        })?;
        let peer = LinkUnspec::new_with_index(index(PEER)?)
            .name(far_link)
            .setns_by_fd(far.as_raw_fd())
            .build();
        self.ask(self.handle.link().set(peer).execute(), || {
            format!("move {far_link} to its namespace")
        })
    }

    /// A bridge without ports.
    pub fn add_bridge(&self, link: &str) -> Result<&Self> {
        let bridge = LinkBridge::new(link).build();
        self.ask(self.handle.link().add(bridge).execute(), || {
            format!("create the bridge {link}")
        })
    }

    /// Makes `link` a port of `bridge`.
    pub fn join(&self, link: &str, bridge: &str) -> Result<&Self> {
        let port = LinkUnspec::new_with_name(link)
            .controller(index(bridge)?)
            .build();
        self.ask(self.handle.link().set(port).execute(), || {
            format!("make {link} a port of {bridge}")
        })
    }

    /// Gives `link` an Ethernet address.
    pub fn set_mac(&self, link: &str, mac: [u8; 6]) -> Result<&Self> {
        let named = LinkUnspec::new_with_name(link).address(mac.to_vec());
        self.ask(self.handle.link().set(named.build()).execute(), || {
            format!("give {link} an Ethernet address")
        })
    }

    /// Takes `link` away, and the other end with it.
    pub fn remove(&self, link: &str) -> Result<&Self> {
        let request = self.handle.link().del(index(link)?);
        self.ask(request.execute(), || format!("remove {link}"))
    }

    /// An address that is usable at once: duplicate address detection (RFC 4862 5.4) would keep it
    /// tentative for a while even where it is switched off.
    pub fn add_address(&self, link: &str, address: impl Into<IpAddr>, prefix: u8) -> Result<&Self> {
        let address = address.into();
        let mut request = self.handle.address().add(index(link)?, address, prefix);
        let flags = AddressAttribute::Flags(AddressFlags::Nodad);
        request.message_mut().attributes.push(flags);
        self.ask(request.execute(), || format!("add {address} to {link}"))
    }

    /// A route to `destination/prefix` (`0` for the default route) by way of `gateway`.
    pub fn add_route(
        &self,
        destination: impl Into<IpAddr>,
        prefix: u8,
        gateway: impl Into<IpAddr>,
    ) -> Result<&Self> {
        let (destination, gateway) = (destination.into(), gateway.into());
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(destination, prefix)
            .and_then(|route| route.gateway(gateway))
            .with_context(|| format!("no route to {destination}/{prefix} via {gateway}"))?
            .build();
        self.ask(self.handle.route().add(route).execute(), || {
            format!("add a route to {destination}/{prefix} via {gateway}")
        })
    }

    /// A route that makes `connect` fail with EHOSTUNREACH.
    pub fn add_unreachable(&self, destination: impl Into<IpAddr>, prefix: u8) -> Result<&Self> {
        let destination = destination.into();
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(destination, prefix)
            .with_context(|| format!("no route to {destination}/{prefix}"))?
            .kind(RouteType::Unreachable)
            .build();
        self.ask(self.handle.route().add(route).execute(), || {
            format!("make {destination}/{prefix} unreachable")
        })
    }

    /// Waits for the answer to `request`, which is to do `what`.
    fn ask(
        &self,
        request: impl Future<Output = Result<(), Error>>,
        what: impl FnOnce() -> String,
    ) -> Result<&Self> {
        self.runtime
            .block_on(request)
            .with_context(|| format!("failed to {}", what()))?;
        Ok(self)
    }
}

/// Whether this kernel knows IPv6.
pub fn has_ipv6() -> bool {
    std::path::Path::new("/proc/sys/net/ipv6").exists()
}

/// The index of a link in the calling thread's network namespace.
fn index(link: &str) -> Result<u32> {
    if_nametoindex(link).with_context(|| format!("failed to find link {link}"))
}
