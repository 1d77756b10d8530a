//! The links of a network of containers behind a guest: a bridge in the guest's network namespace,
//! and a pair of virtual Ethernet interfaces for each container, one end in the bridge and the
//! other in the container's namespace.
//!
//! Both namespaces may belong to user namespaces of their own. A process that has made both has
//! rights over both, but can be in neither: it uses a route socket that was opened in the bridge's
//! namespace and handed to it ([`Links::adopt`]). What is in the container's namespace is set up by
//! whoever has joined that ([`End::set_up`]).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{
    AddressMessageBuilder, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth,
    RouteMessageBuilder,
};
use tracing::warn;

use super::interface::{
    ADDRESS_WITHIN, CREATE_OR_REPLACE, index_of, is_local_within, prepare_ipv6,
};
use super::{InterfaceError, RING_FRAMES};
use crate::core::MacAddr;
use crate::netlink::{Netlink, NetlinkError};

/// The step that failed, and the kernel's reason.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    #[error("cannot open a route socket: {0}")]
    Open(#[source] io::Error),
    #[error("cannot make the bridge {name}: {source}")]
    Bridge { name: String, source: NetlinkError },
    #[error("cannot make the interface {name}: {source}")]
    Pair { name: String, source: NetlinkError },
    #[error("cannot set up {name}: {source}")]
    Up { name: String, source: NetlinkError },
    #[error("cannot remove {name}: {source}")]
    Remove { name: String, source: NetlinkError },
    #[error("cannot give {name} the address {address}: {source}")]
    Address {
        name: String,
        address: IpAddr,
        source: NetlinkError,
    },
    #[error("cannot make {gateway} the way out of {name}: {source}")]
    Route {
        name: String,
        gateway: IpAddr,
        source: NetlinkError,
    },
    #[error(transparent)]
    Interface(#[from] InterfaceError),
}

/// A route socket of the network namespace that has the bridge.
#[derive(Debug)]
pub struct Links(Netlink);

/// A container's end of a pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The interface's name in the container.
    pub name: String,
    pub mac: MacAddr,
    /// Bytes of an IP packet; the kernel's 1500 if there is none.
    pub mtu: Option<u32>,
    /// With the lengths of their prefixes, in bits.
    pub addresses: Vec<(IpAddr, u8)>,
    /// The ways out, one of a family.
    pub gateways: Vec<IpAddr>,
}

impl Links {
    /// Opens one in the calling thread's network namespace.
    pub fn open() -> Result<Self, BridgeError> {
        let netlink = Netlink::open(libc::NETLINK_ROUTE).map_err(BridgeError::Open)?;
        Ok(Self(netlink))
    }

    /// Takes over one that was opened in another network namespace. This process has to have
    /// CAP_NET_ADMIN over that one.
    pub fn adopt(socket: OwnedFd) -> Self {
        Self(Netlink::adopt(socket))
    }

    /// Makes the bridge `name`, with the addresses that are its own, brings it and loopback up, and
    /// returns its index. In the calling thread's network namespace.
    ///
    /// Without a `mac` of its own a bridge has the lowest of its ports', and another one whenever
    /// they change: containers would lose their gateway for seconds.
    pub fn add_bridge(
        &mut self,
        name: &str,
        mac: MacAddr,
        mtu: Option<u32>,
        addresses: &[(IpAddr, u8)],
    ) -> Result<u32, BridgeError> {
        let failed = |source| BridgeError::Bridge {
            name: name.to_owned(),
            source,
        };
        let bridge = LinkBridge::new(name).down().address(mac.to_vec());
        let bridge = bridge.build();
        self.0
            .request(
                RouteNetlinkMessage::NewLink(bridge),
                NLM_F_CREATE | NLM_F_EXCL,
            )
            .map_err(failed)?;
        let index = index_of(name)?;
        prepare_ipv6(name);
        let bridge = LinkUnspec::new_with_index(index).up();
        let bridge = match mtu {
            Some(mtu) => bridge.mtu(mtu),
            None => bridge,
        };
        self.set(name, bridge)?;
        self.set("lo", LinkUnspec::new_with_name("lo").up())?;
        self.add_addresses(name, index, addresses)?;
        Ok(index)
    }

    /// Makes a pair: `name` in the bridge of index `bridge`, and `end` in the network namespace
    /// `container`, over which this process has to have CAP_NET_ADMIN as well. There it is down,
    /// and has no address yet.
    pub fn add_pair(
        &mut self,
        name: &str,
        bridge: u32,
        end: &End,
        container: BorrowedFd<'_>,
    ) -> Result<(), BridgeError> {
        let theirs = LinkUnspec::new_with_name(&end.name)
            .address(end.mac.to_vec())
            .txqueuelen(RING_FRAMES)
            .setns_by_fd(container.as_raw_fd());
        let ours = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(name)
            .controller(bridge);
        let (theirs, ours) = match end.mtu {
            Some(mtu) => (theirs.mtu(mtu), ours.mtu(mtu)),
            None => (theirs, ours),
        };
        let ours = ours.set_info_data(InfoData::Veth(InfoVeth::Peer(theirs.build())));
        self.0
            .request(
                RouteNetlinkMessage::NewLink(ours.build()),
                NLM_F_CREATE | NLM_F_EXCL,
            )
            .map_err(|source| BridgeError::Pair {
                name: end.name.clone(),
                source,
            })?;
        // Not at once: an end without the other cannot be up (veth.c, `veth_open`).
        self.set(name, LinkUnspec::new_with_name(name).up())
    }

    /// Removes an interface, and with one end of a pair the other. One that is not there is as
    /// good.
    pub fn remove(&mut self, name: &str) -> Result<(), BridgeError> {
        let link = LinkUnspec::new_with_name(name).build();
        match self.0.request(RouteNetlinkMessage::DelLink(link), 0) {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
            other => other.map_err(|source| BridgeError::Remove {
                name: name.to_owned(),
                source,
            }),
        }
    }

    fn set(&mut self, name: &str, link: LinkMessageBuilder<LinkUnspec>) -> Result<(), BridgeError> {
        self.0
            .request(RouteNetlinkMessage::SetLink(link.build()), 0)
            .map_err(|source| BridgeError::Up {
                name: name.to_owned(),
                source,
            })
    }

    /// IPv6 addresses are usable at once: nobody else is given them.
    fn add_addresses(
        &mut self,
        name: &str,
        index: u32,
        addresses: &[(IpAddr, u8)],
    ) -> Result<(), BridgeError> {
        for &(address, len) in addresses {
            let message = address_message(address, len, index);
            self.0
                .request(RouteNetlinkMessage::NewAddress(message), CREATE_OR_REPLACE)
                .map_err(|source| BridgeError::Address {
                    name: name.to_owned(),
                    address,
                    source,
                })?;
        }
        Ok(())
    }
}

impl AsFd for Links {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl End {
    /// Brings it up with its addresses, and makes its gateways the ways out. In the calling
    /// thread's network namespace, which is the container's.
    pub fn set_up(&self) -> Result<(), BridgeError> {
        let mut links = Links::open()?;
        let index = index_of(&self.name)?;
        prepare_ipv6(&self.name);
        links.set(&self.name, LinkUnspec::new_with_index(index).up())?;
        links.add_addresses(&self.name, index, &self.addresses)?;
        for address in &self.addresses {
            if let (IpAddr::V6(ip), _) = address
                && !is_local_within(*ip, ADDRESS_WITHIN)
            {
                warn!("the kernel is slow to serve {ip}: its first packets may be late");
            }
        }
        self.lead_out()
    }

    /// Makes its gateways the ways out, in place of those that there were. In the calling thread's
    /// network namespace.
    pub fn lead_out(&self) -> Result<(), BridgeError> {
        let mut links = Links::open()?;
        let index = index_of(&self.name)?;
        for &gateway in &self.gateways {
            let route = default_route(gateway, index);
            links
                .0
                .request(RouteNetlinkMessage::NewRoute(route), CREATE_OR_REPLACE)
                .map_err(|source| BridgeError::Route {
                    name: self.name.clone(),
                    gateway,
                    source,
                })?;
        }
        Ok(())
    }
}

fn address_message(address: IpAddr, len: u8, index: u32) -> AddressMessage {
    let (mut message, flags) = match address {
        IpAddr::V4(ip) => {
            let message = AddressMessageBuilder::<Ipv4Addr>::new().address(ip, len);
            (message.index(index).build(), AddressFlags::Permanent)
        }
        IpAddr::V6(ip) => {
            let message = AddressMessageBuilder::<Ipv6Addr>::new().address(ip, len);
            let flags = AddressFlags::Permanent | AddressFlags::Nodad;
            (message.index(index).build(), flags)
        }
    };
    message.attributes.push(AddressAttribute::Flags(flags));
    message
}

fn default_route(gateway: IpAddr, index: u32) -> RouteMessage {
    match gateway {
        IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(ip)
            .output_interface(index)
            .build(),
        IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new()
            .gateway(ip)
            .output_interface(index)
            .build(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::thread;

    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::testing::in_namespaces;

    #[test]
    fn containers_of_a_bridge_have_addresses_and_a_way_out() {
        in_namespaces(
            module_path!(),
            "containers_of_a_bridge_have_addresses_and_a_way_out",
            || {
                let v4 = |last: u8| IpAddr::from([10, 89, 0, last]);
                let v6 = |last: u16| IpAddr::from([0xfd89, 0, 0, 0, 0, 0, 0, last]);
                let mut links = Links::open().unwrap();
                let own = [(v4(1), 24), (v6(1), 64)];
                let bridge = links
                    .add_bridge("net0", [2, 0, 0, 0, 0, 1], Some(1400), &own)
                    .unwrap();
                let end = End {
                    name: "eth0".to_owned(),
                    mac: [2, 0, 0, 0, 0, 5],
                    mtu: Some(1400),
                    addresses: vec![(v4(5), 24), (v6(5), 64)],
                    gateways: vec![v4(1), v6(1)],
                };
                let (make, made) = std::sync::mpsc::channel();
                let (go, wait) = std::sync::mpsc::channel();
                let container = thread::spawn({
                    let end = end.clone();
                    move || {
                        unshare(CloneFlags::CLONE_NEWNET).unwrap();
                        make.send(File::open("/proc/thread-self/ns/net").unwrap())
                            .unwrap();
                        wait.recv().unwrap();
                        end.set_up().unwrap();
                        // Again, as after a change of networks.
                        end.lead_out().unwrap();
                        std::fs::read_to_string("/proc/thread-self/net/route").unwrap()
                    }
                });
                let namespace = made.recv().unwrap();
                links
                    .add_pair("v5", bridge, &end, namespace.as_fd())
                    .unwrap();
                let again = links.add_pair("v5", bridge, &end, namespace.as_fd());
                assert!(again.unwrap_err().to_string().contains("eth0"));
                go.send(()).unwrap();
                let routes = container.join().unwrap();
                assert!(routes.contains("eth0\t00000000\t0100590A"), "{routes}");
                links.remove("v5").unwrap();
                links.remove("v5").unwrap();
            },
        );
    }
}
