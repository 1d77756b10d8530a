//! The links of the guest's network namespace: the settings of the tap without which frames would
//! be lost or delayed, and, where they are ours to give, loopback up, the tap up with its MTU,
//! addresses and routes. Runs on the guest thread.
//!
//! - The tap gets no queueing discipline (`noqueue`) and a ring of `RING_FRAMES`. The tun driver
//!   drops a frame that finds its ring full; with a queueing discipline in between TCP never hears
//!   of it and waits for a retransmission timeout of 200 ms or more. Without one the driver's
//!   NET_XMIT_DROP reaches the sender, which counts the segment as not sent (tcp_output.c,
//!   `tcp_write_xmit`): back-pressure instead of loss.
//! - IPv6 addresses are usable at once: no duplicate address detection (RFC 4862 5.4), since there
//!   is nobody to duplicate them, and no router advertisements, since addresses and routes are
//!   given here.
//! - A guest without IPv6 gets IPv4 only.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::thread;
use std::time::{Duration, Instant};

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rtnetlink::{AddressMessageBuilder, LinkUnspec};
use tracing::{info, warn};

use crate::core::MacAddr;
use crate::netlink::{Netlink, NetlinkError};
use crate::network::{Address, Assigned, Family, Network};

/// What the tap is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceSettings {
    /// The interface's name.
    pub name: String,
    /// Bytes of an IP packet; what the link has stays if there is none.
    pub mtu: Option<u32>,
    /// The Ethernet address; the kernel's choice stays if there is none.
    pub mac: Option<MacAddr>,
    /// Its addresses and routes.
    pub network: Network,
}

/// The step that failed, and the kernel's reason.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    #[error("cannot open a route socket in the guest's network namespace: {0}")]
    Open(#[source] io::Error),
    #[error("cannot find interface {name}: {source}")]
    Find { name: String, source: io::Error },
    #[error("cannot set up {name}: {source}")]
    Up { name: String, source: NetlinkError },
    #[error("cannot give {name} the address {address}: {source}")]
    Address {
        name: String,
        address: String,
        source: NetlinkError,
    },
    #[error("cannot add the route {route} to {name}: {source}")]
    Route {
        name: String,
        route: String,
        source: NetlinkError,
    },
}

/// Does the least for a guest that configures itself, or that somebody else configures: loopback up
/// if `loopback` says so, and for the interface `name`, which stays as it is otherwise, `mac` and a
/// queue that loses nothing.
pub fn prepare(name: &str, loopback: bool, mac: Option<MacAddr>) -> Result<(), InterfaceError> {
    let mut netlink = Netlink::open(libc::NETLINK_ROUTE).map_err(InterfaceError::Open)?;
    if loopback {
        let up = LinkUnspec::new_with_name("lo").up().build();
        set_link(&mut netlink, "lo", up)?;
    }
    let index = index_of(name)?;
    let tap = LinkUnspec::new_with_index(index).txqueuelen(RING_FRAMES);
    let tap = match mac {
        Some(mac) => tap.address(mac.to_vec()),
        None => tap,
    };
    remove_queue(&mut netlink, name, index);
    set_link(&mut netlink, name, tap.build())
}

/// Sets up loopback and the tap in the calling thread's network namespace. Repeating it changes
/// nothing. Returns whether the guest got IPv6.
pub fn configure(settings: &InterfaceSettings) -> Result<bool, InterfaceError> {
    let name = settings.name.as_str();
    let mut netlink = Netlink::open(libc::NETLINK_ROUTE).map_err(InterfaceError::Open)?;
    let index = index_of(name)?;
    let mut link = Link {
        name,
        index,
        netlink: &mut netlink,
    };

    let Network { v4, v6 } = &settings.network;
    let v6 = v6.as_ref().filter(|_| prepare_ipv6(name));
    link.bring_up(settings.mtu, settings.mac)?;
    if let Some(v4) = v4 {
        link.set_up(v4)?;
    }
    if let Some(v6) = v6 {
        link.set_up(v6)?;
        let first = v6.first().map(|guest| guest.address);
        if let Some(first) = first.filter(|first| !is_local_within(*first, ADDRESS_WITHIN)) {
            warn!(
                "the kernel is slow to serve {first}: the guest's first IPv6 packets may be late"
            );
        }
    }
    Ok(v6.is_some())
}

/// Lets the guest route what networks behind it send and are sent; `ipv6` says whether it has that.
///
/// Early demultiplexing looks for a socket of the guest's before a packet is routed. It finds those
/// that carry promoted connections, and the kernel then forwards nothing (ip_forward.c), not even
/// the SYN of a container that has got the address and port of one that is gone.
pub fn forward(ipv6: bool) {
    let v6 = ipv6.then_some(("ipv6/conf/all/forwarding", "1"));
    let v4 = [("ipv4/ip_forward", "1"), ("ipv4/tcp_early_demux", "0")];
    for (key, value) in v4.into_iter().chain(v6) {
        if let Err(error) = fs::write(format!("/proc/sys/net/{key}"), value) {
            warn!(
                "cannot set net.{} = {value} in the guest, where networks may be out of reach: {error}",
                key.replace('/', ".")
            );
        }
    }
}

/// The tap, in the guest's network namespace.
struct Link<'n> {
    name: &'n str,
    index: u32,
    netlink: &'n mut Netlink,
}

impl Link<'_> {
    /// Loopback and the tap.
    fn bring_up(&mut self, mtu: Option<u32>, mac: Option<MacAddr>) -> Result<(), InterfaceError> {
        let Self { name, index, .. } = *self;
        let lo = LinkUnspec::new_with_name("lo").up().build();
        let mut tap = LinkUnspec::new_with_index(index)
            .txqueuelen(RING_FRAMES)
            .up();
        if let Some(mtu) = mtu {
            tap = tap.mtu(mtu);
        }
        if let Some(mac) = mac {
            tap = tap.address(mac.to_vec());
        }
        set_link(self.netlink, "lo", lo)?;
        // While the link is down: the kernel waits for packets under way before it takes the queue
        // of one that is up, more than a millisecond.
        remove_queue(self.netlink, name, index);
        set_link(self.netlink, name, tap.build())
    }

    /// Addresses and routes of one family.
    fn set_up<A: InterfaceAddress>(&mut self, family: &Family<A>) -> Result<(), InterfaceError> {
        for guest in &family.guest {
            let message = A::message(*guest, self.index);
            self.netlink
                .request(RouteNetlinkMessage::NewAddress(message), CREATE_OR_REPLACE)
                .map_err(|source| InterfaceError::Address {
                    name: self.name.to_owned(),
                    address: format!("{}/{}", guest.address.into(), guest.prefix_len),
                    source,
                })?;
        }
        for route in &family.routes {
            let mut message = route.clone();
            message.attributes.push(RouteAttribute::Oif(self.index));
            self.netlink
                .request(RouteNetlinkMessage::NewRoute(message), CREATE_OR_REPLACE)
                .map_err(|source| InterfaceError::Route {
                    name: self.name.to_owned(),
                    route: describe(route),
                    source,
                })?;
        }
        Ok(())
    }
}

fn set_link(netlink: &mut Netlink, name: &str, message: LinkMessage) -> Result<(), InterfaceError> {
    netlink
        .request(RouteNetlinkMessage::SetLink(message), 0)
        .map_err(|source| InterfaceError::Up {
            name: name.to_owned(),
            source,
        })
}

pub(super) const CREATE_OR_REPLACE: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// An address as the kernel is told of it.
trait InterfaceAddress: Address {
    fn message(guest: Assigned<Self>, index: u32) -> AddressMessage;
}

impl InterfaceAddress for Ipv4Addr {
    fn message(guest: Assigned<Self>, index: u32) -> AddressMessage {
        let message = AddressMessageBuilder::<Self>::new()
            .index(index)
            .address(guest.address, guest.prefix_len)
            .build();
        with_flags(message, &guest, AddressFlags::Permanent)
    }
}

impl InterfaceAddress for Ipv6Addr {
    fn message(guest: Assigned<Self>, index: u32) -> AddressMessage {
        let message = AddressMessageBuilder::<Self>::new()
            .index(index)
            .address(guest.address, guest.prefix_len)
            .build();
        with_flags(
            message,
            &guest,
            AddressFlags::Nodad | AddressFlags::Permanent,
        )
    }
}

fn with_flags<A>(
    mut message: AddressMessage,
    guest: &Assigned<A>,
    mut flags: AddressFlags,
) -> AddressMessage {
    flags.set(AddressFlags::Noprefixroute, !guest.prefix_route);
    message.attributes.push(AddressAttribute::Flags(flags));
    message
}

/// A route in the words of ip-route(8).
fn describe(route: &RouteMessage) -> String {
    let mut text = "default".to_owned();
    let mut via = String::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => {
                text = format!("{ip}/{}", route.header.destination_prefix_length);
            }
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => {
                text = format!("{ip}/{}", route.header.destination_prefix_length);
            }
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => via = format!(" via {ip}"),
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => via = format!(" via {ip}"),
            _ => {}
        }
    }
    text + &via
}

/// Waits until the kernel takes packets to `address`. It adds the local route of an IPv6 address
/// from a work queue, after the request was acknowledged (addrconf.c, `addrconf_dad_work`); until
/// then our answer to the guest's first neighbour solicitation would be dropped, and the guest asks
/// again only a second later.
pub(super) fn is_local_within(address: Ipv6Addr, patience: Duration) -> bool {
    let local_route = format!("{:032x} 80 ", address.to_bits());
    let deadline = Instant::now() + patience;
    loop {
        match fs::read_to_string("/proc/thread-self/net/ipv6_route") {
            Ok(routes) if routes.lines().any(|route| route.starts_with(&local_route)) => {
                return true;
            }
            Ok(_) if Instant::now() < deadline => thread::sleep(Duration::from_micros(200)),
            _ => return false,
        }
    }
}

pub(super) fn index_of(name: &str) -> Result<u32, InterfaceError> {
    nix::net::if_::if_nametoindex(name).map_err(|error| InterfaceError::Find {
        name: name.to_owned(),
        source: error.into(),
    })
}

fn remove_queue(netlink: &mut Netlink, name: &str, index: u32) {
    let mut message = TcMessage::default();
    message.header.index = index.cast_signed();
    message.header.parent = TcHandle::ROOT;
    message
        .attributes
        .push(TcAttribute::Kind("noqueue".to_owned()));
    let replaced = netlink.request(
        RouteNetlinkMessage::NewQueueDiscipline(message),
        CREATE_OR_REPLACE,
    );
    if let Err(error) = replaced {
        warn!("{name} keeps its queueing discipline, bursts may lose frames: {error}");
    }
}

/// Before the interface comes up, or its link-local address would be detected as a duplicate for a
/// second. Returns whether there is IPv6 at all.
pub(super) fn prepare_ipv6(name: &str) -> bool {
    let setting = |key: &str| format!("/proc/sys/net/ipv6/conf/{name}/{key}");
    match fs::read_to_string(setting("disable_ipv6")) {
        Err(_) => {
            info!("the guest's kernel has no IPv6: IPv4 only");
            return false;
        }
        Ok(disabled) if disabled.trim() != "0" => {
            info!("IPv6 is disabled in the guest (net.ipv6.conf.{name}.disable_ipv6): IPv4 only");
            return false;
        }
        Ok(_) => {}
    }
    for key in ["accept_dad", "accept_ra"] {
        if let Err(error) = fs::write(setting(key), "0") {
            // Read-only /proc/sys: the address below is exempt by itself, only the link-local one
            // is late.
            info!("cannot set net.ipv6.conf.{name}.{key}: {error}");
        }
    }
    true
}

/// How long an IPv6 address may take to become usable. Usually it is there at once; the queue waits
/// for the kernel's lock of all network configuration, which the removal of other namespaces may
/// hold.
pub(super) const ADDRESS_WITHIN: Duration = Duration::from_secs(2);

/// Length of the tap's ring, in frames. Each of some thousand connections may have a frame on its
/// way before the helper gets to run; what a hostile guest can pin in kernel memory is bounded by
/// 64 KiB times this (256 MiB).
pub const RING_FRAMES: u32 = 4096;

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::os::fd::AsFd;

    use super::*;
    use crate::device::Tap;
    use crate::sys;
    use crate::testing::in_namespaces;

    fn settings() -> InterfaceSettings {
        InterfaceSettings {
            name: "tap0".to_owned(),
            mtu: Some(65520),
            mac: None,
            network: Network::default(),
        }
    }

    /// The address a socket of this family would send from to `remote`: proof of address and route.
    fn source_towards(remote: &str) -> io::Result<String> {
        let any = if remote.starts_with('[') {
            "[::]:0"
        } else {
            "0.0.0.0:0"
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(remote)?;
        Ok(socket.local_addr()?.ip().to_string())
    }

    #[test]
    fn both_families_are_ready_at_once_and_again() {
        in_namespaces(
            module_path!(),
            "both_families_are_ready_at_once_and_again",
            || {
                let _tap = Tap::open("tap0").unwrap();
                for _ in 0..2 {
                    assert!(configure(&settings()).unwrap());
                }
                assert_eq!(source_towards("198.51.100.7:80").unwrap(), "10.0.2.100");
                assert_eq!(source_towards("[2001:db8::7]:80").unwrap(), "fd00::100");
                // Neither tentative nor down.
                for address in [
                    "[fd00::100]:80",
                    "10.0.2.100:80",
                    "127.0.0.1:81",
                    "[::1]:81",
                ] {
                    TcpListener::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
                }
            },
        );
    }

    #[test]
    fn ipv4_alone_when_ipv6_is_disabled_or_unwanted() {
        in_namespaces(
            module_path!(),
            "ipv4_alone_when_ipv6_is_disabled_or_unwanted",
            || {
                let _tap = Tap::open("tap0").unwrap();
                fs::write("/proc/sys/net/ipv6/conf/tap0/disable_ipv6", "1").unwrap();
                assert!(!configure(&settings()).unwrap());
                fs::write("/proc/sys/net/ipv6/conf/tap0/disable_ipv6", "0").unwrap();
                assert!(
                    !configure(&InterfaceSettings {
                        network: Network {
                            v6: None,
                            ..Network::default()
                        },
                        ..settings()
                    })
                    .unwrap()
                );
                assert_eq!(source_towards("198.51.100.7:80").unwrap(), "10.0.2.100");
                source_towards("[2001:db8::7]:80").unwrap_err();
            },
        );
    }

    #[test]
    fn the_sender_is_told_of_a_full_ring() {
        in_namespaces(module_path!(), "the_sender_is_told_of_a_full_ring", || {
            let _tap = Tap::open("tap0").unwrap();
            configure(&settings()).unwrap();
            assert_sender_is_told();
        });
    }

    #[test]
    fn the_sender_is_told_of_it_too_where_others_set_up_the_tap() {
        let name = "the_sender_is_told_of_it_too_where_others_set_up_the_tap";
        in_namespaces(module_path!(), name, || {
            let _tap = Tap::open("tap0").unwrap();
            prepare("tap0", true, None).unwrap();
            let mut netlink = Netlink::open(libc::NETLINK_ROUTE).unwrap();
            let up = LinkUnspec::new_with_name("tap0").up().build();
            set_link(&mut netlink, "tap0", up).unwrap();
            let mut link = Link {
                name: "tap0",
                index: index_of("tap0").unwrap(),
                netlink: &mut netlink,
            };
            link.set_up(settings().network.v4.as_ref().unwrap())
                .unwrap();
            assert_sender_is_told();
        });
    }

    fn assert_sender_is_told() {
        let socket = UdpSocket::bind("10.0.2.100:0").unwrap();
        // UDP reports a drop on the way down only with IP_RECVERR; TCP always heeds it.
        sys::set_socket_option(
            socket.as_fd(),
            libc::SOL_IP,
            libc::IP_RECVERR,
            &sys::int_option(1),
        )
        .unwrap();
        socket.set_broadcast(true).unwrap();
        let sent = (0..2 * RING_FRAMES)
            .take_while(|_| socket.send_to(b"x", "10.0.2.255:9").is_ok())
            .count();
        let error = socket.send_to(b"x", "10.0.2.255:9").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS));
        // A few frames of IPv6's multicast came first.
        assert!(
            (RING_FRAMES as usize - 64..=RING_FRAMES as usize).contains(&sent),
            "{sent}"
        );
    }

    #[test]
    fn failures_name_the_interface() {
        in_namespaces(module_path!(), "failures_name_the_interface", || {
            let error = configure(&settings()).unwrap_err();
            assert!(
                matches!(error, InterfaceError::Find { .. }) && error.to_string().contains("tap0"),
                "{error}"
            );
            let _tap = Tap::open("tap0").unwrap();
            let error = configure(&InterfaceSettings {
                mtu: Some(1 << 20),
                ..settings()
            })
            .unwrap_err();
            assert!(
                matches!(error, InterfaceError::Up { .. }) && error.to_string().contains("tap0"),
                "{error}"
            );
        });
    }
}
