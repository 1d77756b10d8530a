//! How diverted segments find their repair socket: a rule sends packets with the gate's mark to a
//! table whose only route says that every address is local. And one setting of the tap, so that
//! segments may be written back that were in flight at a hand-over: they carry the guest's own
//! address as source, which the kernel drops by default.
//!
//! Reverse path filters (RFC 3704) are left alone: that source is an address of the tap, and what
//! comes by `lo` has been routed on its way out. All of this is idle until the gate marks a packet;
//! it stays when the helper ends, and making it again is no error.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::net::if_::if_nametoindex;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};
use rtnetlink::packet_route::route::{RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use tracing::warn;

use super::mark;
use crate::netlink::{Netlink, NetlinkError};

/// Why diverted segments cannot be routed; without this there is no promotion.
#[derive(Debug, thiserror::Error)]
pub enum DiversionError {
    #[error("cannot open a route socket in the guest's network namespace: {0}")]
    Open(#[source] io::Error),
    #[error("cannot find interface {name}: {source}")]
    Find { name: String, source: io::Error },
    #[error("cannot add the {family} rule for diverted segments: {source}")]
    Rule {
        family: &'static str,
        source: NetlinkError,
    },
    #[error("cannot add the {family} route for diverted segments: {source}")]
    Route {
        family: &'static str,
        source: NetlinkError,
    },
}

/// The routing of diverted segments in a guest's network namespace. Works from any thread.
#[derive(Debug)]
pub struct Diversions {
    netlink: Netlink,
    tap: String,
    tap_index: u32,
    lo_index: u32,
    ipv6: bool,
}

impl Diversions {
    /// In the calling thread's network namespace, whose tap is `tap`; `ipv6` says whether it has
    /// IPv6.
    pub fn open(tap: &str, ipv6: bool) -> Result<Self, DiversionError> {
        Ok(Self {
            netlink: Netlink::open(libc::NETLINK_ROUTE).map_err(DiversionError::Open)?,
            tap: tap.to_owned(),
            tap_index: index(tap)?,
            lo_index: index("lo")?,
            ipv6,
        })
    }

    /// Sets it up. Repeating it is harmless.
    pub fn set_up(&mut self) -> Result<(), DiversionError> {
        let netlink = &mut self.netlink;
        let any = Ipv4Addr::UNSPECIFIED.into();
        divert(netlink, AddressFamily::Inet, any, self.lo_index)?;
        if self.ipv6 {
            let any = Ipv6Addr::UNSPECIFIED.into();
            divert(netlink, AddressFamily::Inet6, any, self.lo_index)?;
        }
        if let Err(error) = accept_local(netlink, self.tap_index) {
            let tap = &self.tap;
            warn!(
                "cannot set net.ipv4.conf.{tap}.accept_local: {error}; frames in flight will be repeated"
            );
        }
        Ok(())
    }
}

fn index(name: &str) -> Result<u32, DiversionError> {
    if_nametoindex(name).map_err(|error| DiversionError::Find {
        name: name.to_owned(),
        source: error.into(),
    })
}

fn divert(
    netlink: &mut Netlink,
    family: AddressFamily,
    any: IpAddr,
    lo: u32,
) -> Result<(), DiversionError> {
    let name = if any.is_ipv4() { "IPv4" } else { "IPv6" };
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::FwMark(mark::DIVERTED),
        RuleAttribute::Table(mark::DIVERTED),
        RuleAttribute::Priority(RULE_PRIORITY),
    ];
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    match netlink.request(RouteNetlinkMessage::NewRule(rule), flags) {
        Err(error) if error.errno() == Some(libc::EEXIST) => {}
        added => added.map_err(|source| DiversionError::Rule {
            family: name,
            source,
        })?,
    }
    let route = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(any, 0)
        .expect("zero bits of any address are a prefix")
        .output_interface(lo)
        .table_id(mark::DIVERTED)
        .kind(RouteType::Local)
        .scope(RouteScope::Host)
        .build();
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    netlink
        .request(RouteNetlinkMessage::NewRoute(route), flags)
        .map_err(|source| DiversionError::Route {
            family: name,
            source,
        })
}

/// Lets packets in by interface `index` whose IPv4 source is an address of our own. By netlink,
/// since /proc/sys is often read-only. (IPv6 has no such check.)
fn accept_local(netlink: &mut Netlink, index: u32) -> Result<(), NetlinkError> {
    netlink.query(
        |encoder| {
            encoder.message(libc::RTM_SETLINK, NLM_F_REQUEST | NLM_F_ACK, |message| {
                // struct ifinfomsg: family and type, index, flags and which of them to change.
                message.put(&[0; 4]);
                message.put(&index.to_ne_bytes());
                message.put(&[0; 8]);
                message.nest(libc::IFLA_AF_SPEC, |families| {
                    families.nest(libc::AF_INET as u16, |family| {
                        family.nest(IFLA_INET_CONF, |settings| {
                            settings.attribute(IPV4_DEVCONF_ACCEPT_LOCAL, &1u32.to_ne_bytes());
                        });
                    });
                });
            });
        },
        |_| {},
    )
}

/// Behind the table of local addresses, before whatever the guest has.
const RULE_PRIORITY: u32 = 100;
/// linux/if_link.h, linux/ip.h.
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_ACCEPT_LOCAL: u16 = 23;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;
    use crate::device::Tap;
    use crate::guest::{InterfaceSettings, configure};
    use crate::network::Network;
    use crate::sys;
    use crate::testing::in_namespaces;

    /// The address that a packet with this mark goes from: what is routed locally is its own
    /// source.
    fn source_with_mark(mark: u32, remote: &str) -> String {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let set = |level, option, value: &[u8]| {
            sys::set_socket_option(socket.as_fd(), level, option, value).unwrap();
        };
        set(libc::SOL_SOCKET, libc::SO_MARK, &mark.to_ne_bytes());
        // Or it could not have such a source.
        set(libc::SOL_IP, libc::IP_TRANSPARENT, &sys::int_option(1));
        socket.connect(remote).unwrap();
        socket.local_addr().unwrap().ip().to_string()
    }

    fn diverted(tap: &str) -> Result<(), DiversionError> {
        Diversions::open(tap, true)?.set_up()
    }

    #[test]
    fn marked_packets_are_local_and_no_others() {
        in_namespaces(
            module_path!(),
            "marked_packets_are_local_and_no_others",
            || {
                let _tap = Tap::open("tap0").unwrap();
                let settings = InterfaceSettings {
                    name: "tap0".to_owned(),
                    mtu: Some(1500),
                    mac: None,
                    network: Network {
                        v6: None,
                        ..Network::default()
                    },
                };
                configure(&settings).unwrap();
                // IPv6 is shown by connections that are taken over.
                for _ in 0..2 {
                    diverted("tap0").unwrap();
                }
                let remote = "198.51.100.7:80";
                assert_eq!(source_with_mark(mark::DIVERTED, remote), "198.51.100.7");
                assert_eq!(source_with_mark(0, remote), "10.0.2.100");
                assert_eq!(source_with_mark(mark::UNTRACKED, remote), "10.0.2.100");
                let accepts_local = |name| {
                    let path = format!("/proc/sys/net/ipv4/conf/{name}/accept_local");
                    fs::read_to_string(path).unwrap()
                };
                assert_eq!(
                    (accepts_local("tap0"), accepts_local("all")),
                    ("1\n".into(), "0\n".into())
                );
                let error = diverted("tap1").unwrap_err();
                assert!(error.to_string().contains("tap1"), "{error}");
            },
        );
    }
}
