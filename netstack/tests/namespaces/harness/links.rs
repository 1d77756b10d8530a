//! Links, addresses and routes of the host and elsewhere namespaces, by rtnetlink: no `ip` program
//! is needed.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::route::RouteType;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::Netns;

/// One netlink conversation inside a namespace.
pub struct Links<'a> {
    netns: &'a Netns,
}

impl<'a> Links<'a> {
    pub fn of(netns: &'a Netns) -> Self {
        Links { netns }
    }

    pub fn up(&self, link: &str) -> &Self {
        self.request(async |netlink| {
            let index = index(link);
            netlink
                .link()
                .set(LinkUnspec::new_with_index(index).up().build())
                .execute()
                .await
        })
    }

    pub fn set_mtu(&self, link: &str, mtu: u32) -> &Self {
        self.request(async |netlink| {
            let index = index(link);
            netlink
                .link()
                .set(LinkUnspec::new_with_index(index).mtu(mtu).build())
                .execute()
                .await
        })
    }

    /// A veth pair: `link` here, its peer of the same name in the namespace behind `other`.
    pub fn add_veth(&self, link: &str, other: BorrowedFd) -> &Self {
        const PEER: &str = "peer0";
        self.request(async |netlink| {
            netlink
                .link()
                .add(LinkVeth::new(link, PEER).build())
                .execute()
                .await?;
            let peer = LinkUnspec::new_with_index(index(PEER))
                .name(link)
                .setns_by_fd(other.as_raw_fd());
            netlink.link().set(peer.build()).execute().await
        })
    }

    /// A bridge without ports.
    pub fn add_bridge(&self, link: &str) -> &Self {
        self.request(async |netlink| {
            let bridge = LinkBridge::new(link);
            netlink.link().add(bridge.build()).execute().await
        })
    }

    /// Makes `link` a port of `bridge`.
    pub fn join(&self, link: &str, bridge: &str) -> &Self {
        self.request(async |netlink| {
            let port = LinkUnspec::new_with_index(index(link)).controller(index(bridge));
            netlink.link().set(port.build()).execute().await
        })
    }

    /// An address that is usable at once: duplicate address detection (RFC 4862 5.4) would keep it
    /// tentative for a while even where it is switched off.
    pub fn add_address(&self, link: &str, address: impl Into<IpAddr>, prefix: u8) -> &Self {
        let address = address.into();
        self.request(async |netlink| {
            let mut request = netlink.address().add(index(link), address, prefix);
            let flags = AddressAttribute::Flags(AddressFlags::Nodad);
            request.message_mut().attributes.push(flags);
            request.execute().await
        })
    }

    /// A route to `destination/prefix` (`0` for the default route) by way of `gateway`.
    pub fn add_route(
        &self,
        destination: impl Into<IpAddr>,
        prefix: u8,
        gateway: impl Into<IpAddr>,
    ) -> &Self {
        let (destination, gateway) = (destination.into(), gateway.into());
        self.request(async |netlink| {
            let route = RouteMessageBuilder::<IpAddr>::new()
                .destination_prefix(destination, prefix)
                .and_then(|route| route.gateway(gateway))
                .expect("families match");
            netlink.route().add(route.build()).execute().await
        })
    }

    /// A route that makes `connect` fail with EHOSTUNREACH.
    pub fn add_unreachable(&self, destination: impl Into<IpAddr>, prefix: u8) -> &Self {
        let destination = destination.into();
        self.request(async |netlink| {
            let route = RouteMessageBuilder::<IpAddr>::new()
                .destination_prefix(destination, prefix)
                .expect("a prefix of the address's family")
                .kind(RouteType::Unreachable);
            netlink.route().add(route.build()).execute().await
        })
    }

    fn request(
        &self,
        conversation: impl AsyncFn(Handle) -> Result<(), rtnetlink::Error> + Sync,
    ) -> &Self {
        self.netns.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()
                .expect("runtime");
            runtime.block_on(async {
                let (connection, netlink, _) = rtnetlink::new_connection().expect("netlink socket");
                tokio::spawn(connection);
                conversation(netlink)
                    .await
                    .expect("netlink request of the harness");
            });
        });
        self
    }
}

/// The index of a link in the calling thread's network namespace.
fn index(link: &str) -> u32 {
    if_nametoindex(link).unwrap_or_else(|errno| panic!("link {link}: {errno}"))
}
