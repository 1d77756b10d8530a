//! What the host's own network looks like, for a guest that is to have a likeness of it: the
//! interface of the default route, with its addresses and routes. Read once, before any namespace
//! is joined; the guest's traffic follows the host's routes all the same, since host sockets carry
//! it.

use std::io;
use std::net::IpAddr;

use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHopFlags,
    RouteType,
};

use super::{Address, Assigned};
use crate::netlink::{Netlink, NetlinkError};

/// What the host has of one family on one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template<A> {
    pub interface: String,
    /// Those that are valid beyond the link, the best one first.
    pub addresses: Vec<Assigned<A>>,
    /// Of the default route.
    pub gateway: Option<A>,
    /// In an order in which they can be added. Without an interface.
    pub routes: Vec<RouteMessage>,
}

/// What kept us from looking.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("cannot open a route socket: {0}")]
    Open(#[source] io::Error),
    #[error("cannot read the host's routes: {0}")]
    Routes(#[source] NetlinkError),
    #[error("cannot read the host's addresses: {0}")]
    Addresses(#[source] NetlinkError),
    #[error("the host has no interface {0}")]
    NoInterface(String),
}

impl<A: Address> Template<A> {
    /// Looks at the interface `name`, or at the one of the best default route, or else of any
    /// route. `None` if it has no address of this family.
    pub fn read(name: Option<&str>) -> Result<Option<Self>, TemplateError> {
        let mut netlink = Netlink::open(libc::NETLINK_ROUTE).map_err(TemplateError::Open)?;
        let index = match name {
            Some(name) => Some(
                nix::net::if_::if_nametoindex(name)
                    .map_err(|_| TemplateError::NoInterface(name.to_owned()))?,
            ),
            None => external_interface::<A>(&mut netlink)?,
        };
        let Some(index) = index else {
            return Ok(None);
        };
        let interface = match name {
            Some(name) => name.to_owned(),
            None => match nix::net::if_::if_indextoname(index) {
                Ok(name) => name.to_string_lossy().into_owned(),
                // It has gone.
                Err(_) => return Ok(None),
            },
        };
        let addresses = addresses::<A>(&mut netlink, index)?;
        if addresses.is_empty() {
            return Ok(None);
        }
        let mut routes = Vec::new();
        let mut default: Option<(u32, Option<A>)> = None;
        each_route::<A>(&mut netlink, Some(index), |route| {
            let Some(hop) = hops(&route).find(|hop| hop.interface == index) else {
                return;
            };
            let gateway = hop.gateway().and_then(A::of);
            if is_default(&route) && default.is_none_or(|(metric, _)| metric > metric_of(&route)) {
                default = Some((metric_of(&route), gateway));
            }
            routes.extend(without_interface::<A>(&route, &hop));
        })?;
        // What a gateway is reached by comes first.
        routes.sort_by_key(has_gateway);
        Ok(Some(Self {
            interface,
            addresses,
            gateway: default.and_then(|(_, gateway)| gateway),
            routes,
        }))
    }
}

/// The interface of the default route with the lowest metric, or else of any route.
fn external_interface<A: Address>(netlink: &mut Netlink) -> Result<Option<u32>, TemplateError> {
    let mut default: Option<(u32, u32)> = None;
    let mut any = None;
    each_route::<A>(netlink, None, |route| {
        let Some(interface) = hops(&route).map(|hop| hop.interface).next() else {
            return;
        };
        let metric = metric_of(&route);
        if is_default(&route) {
            if default.is_none_or(|(best, _)| best > metric) {
                default = Some((metric, interface));
            }
        } else if !is_within_link::<A>(&route) {
            any = any.or(Some(interface));
        }
    })?;
    Ok(default.map(|(_, interface)| interface).or(any))
}

/// Shows `take` the unicast routes of the main table, those that use `interface` if it is given.
fn each_route<A: Address>(
    netlink: &mut Netlink,
    interface: Option<u32>,
    mut take: impl FnMut(RouteMessage),
) -> Result<(), TemplateError> {
    let mut question = RouteMessage::default();
    question.header.address_family = A::FAMILY;
    question.header.table = RouteHeader::RT_TABLE_MAIN;
    question.header.kind = RouteType::Unicast;
    question
        .attributes
        .extend(interface.map(RouteAttribute::Oif));
    let dumped = netlink.dump(RouteNetlinkMessage::GetRoute(question), |answer| {
        if let RouteNetlinkMessage::NewRoute(route) = answer
            && route.header.address_family == A::FAMILY
            && route.header.table == RouteHeader::RT_TABLE_MAIN
            && route.header.kind == RouteType::Unicast
            && !route.header.flags.contains(RouteFlags::Cloned)
            && !route.header.flags.contains(RouteFlags::Dead)
        {
            take(route);
        }
    });
    match dumped {
        // Without a route there is no table (ENOENT).
        Err(error) if lacks_family(&error) || error.errno() == Some(libc::ENOENT) => Ok(()),
        dumped => dumped.map_err(TemplateError::Routes),
    }
}

fn addresses<A: Address>(
    netlink: &mut Netlink,
    interface: u32,
) -> Result<Vec<Assigned<A>>, TemplateError> {
    let mut question = AddressMessage::default();
    question.header.family = A::FAMILY;
    question.header.index = interface;
    let mut found = Vec::new();
    let dumped = netlink.dump(RouteNetlinkMessage::GetAddress(question), |answer| {
        if let RouteNetlinkMessage::NewAddress(message) = answer
            && message.header.index == interface
        {
            found.extend(assigned::<A>(&message));
        }
    });
    match dumped {
        Err(error) if lacks_family(&error) => {}
        dumped => dumped.map_err(TemplateError::Addresses)?,
    }
    // As they come, but for those that are not to be used for new connections (RFC 4862 5.5.4) or
    // not for long (RFC 8981).
    found.sort_by_key(|(rank, _)| *rank);
    Ok(found.into_iter().map(|(_, address)| address).collect())
}

/// An address that is valid beyond the link, with its rank: the lower, the better.
fn assigned<A: Address>(message: &AddressMessage) -> Option<(u8, Assigned<A>)> {
    if !matches!(
        message.header.scope,
        AddressScope::Universe | AddressScope::Site
    ) {
        return None;
    }
    // With a peer, IFA_ADDRESS is the peer's.
    let own = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    };
    let any = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    };
    let attributes = &message.attributes;
    let address = attributes.iter().find_map(own);
    let address = A::of(address.or_else(|| attributes.iter().find_map(any))?)?;
    let flags = attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let flags =
        flags.unwrap_or_else(|| AddressFlags::from_bits_retain(message.header.flags.bits().into()));
    if flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed) {
        return None;
    }
    let rank = u8::from(flags.contains(AddressFlags::Secondary))
        + 2 * u8::from(flags.contains(AddressFlags::Deprecated));
    let assigned = Assigned {
        address,
        prefix_len: message.header.prefix_len,
        prefix_route: !flags.contains(AddressFlags::Noprefixroute),
    };
    Some((rank, assigned))
}

/// One way that a route may take.
struct Hop<'r> {
    interface: u32,
    on_link: bool,
    attributes: &'r [RouteAttribute],
}

impl Hop<'_> {
    fn gateway(&self) -> Option<IpAddr> {
        self.attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Gateway(RouteAddress::Inet(ip)) => Some(IpAddr::from(*ip)),
                RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => Some(IpAddr::from(*ip)),
                _ => None,
            })
    }
}

/// The route's only way, or each of several.
fn hops(route: &RouteMessage) -> impl Iterator<Item = Hop<'_>> {
    let only = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(interface) => Some(Hop {
                interface: *interface,
                on_link: route.header.flags.contains(RouteFlags::Onlink),
                attributes: &route.attributes,
            }),
            _ => None,
        });
    let several = route
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            RouteAttribute::MultiPath(hops) => Some(hops),
            _ => None,
        });
    let several = several.flatten().map(|hop| Hop {
        interface: hop.interface_index,
        on_link: hop.flags.contains(RouteNextHopFlags::Onlink),
        attributes: &hop.attributes,
    });
    only.into_iter().chain(several)
}

/// The route by `hop` alone, for another interface and another kernel. `None` for what that makes
/// by itself.
fn without_interface<A: Address>(route: &RouteMessage, hop: &Hop) -> Option<RouteMessage> {
    if is_within_link::<A>(route) {
        return None;
    }
    let mut copy = RouteMessage::default();
    copy.header = RouteHeader {
        flags: RouteFlags::empty(),
        ..route.header.clone()
    };
    let is_kept = |attribute: &&RouteAttribute| {
        matches!(
            attribute,
            RouteAttribute::Destination(_)
                | RouteAttribute::PrefSource(_)
                | RouteAttribute::Priority(_)
                | RouteAttribute::Metrics(_)
                | RouteAttribute::Preference(_)
        )
    };
    copy.attributes
        .extend(route.attributes.iter().filter(is_kept).cloned());
    // A gateway of the other family (RFC 8950) is left out: all that the guest reaches, it reaches
    // by us.
    if let Some(gateway) = hop.gateway() {
        copy.header.flags.set(RouteFlags::Onlink, hop.on_link);
        copy.attributes
            .push(RouteAttribute::Gateway(gateway.into()));
    }
    Some(copy)
}

fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0
}

/// Whether its destination is link-local.
fn is_within_link<A: Address>(route: &RouteMessage) -> bool {
    route.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Destination(to) => A::of_route(to).is_some_and(A::is_link_local),
        _ => false,
    })
}

fn has_gateway(route: &RouteMessage) -> bool {
    let is_gateway = |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::Gateway(_));
    route.attributes.iter().any(is_gateway)
}

/// The lowest one counts (RTA_PRIORITY).
fn metric_of(route: &RouteMessage) -> u32 {
    let metric = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Priority(metric) => Some(*metric),
            _ => None,
        });
    metric.unwrap_or(0)
}

/// This kernel was made or started without it.
fn lacks_family(error: &NetlinkError) -> bool {
    matches!(error.errno(), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;
    use crate::device::Tap;
    use crate::guest::{InterfaceSettings, configure};
    use crate::network::{Family, Network, Wishes};
    use crate::testing::in_namespaces;

    fn set_up(name: &str, network: Network) -> Tap {
        let tap = Tap::open(name).unwrap();
        let settings = InterfaceSettings {
            name: name.to_owned(),
            mtu: Some(1500),
            mac: None,
            network,
        };
        configure(&settings).unwrap();
        tap
    }

    #[test]
    fn what_was_set_up_is_read() {
        in_namespaces(module_path!(), "what_was_set_up_is_read", || {
            assert_eq!(Template::<Ipv4Addr>::read(None).unwrap(), None);
            assert_eq!(Template::<Ipv6Addr>::read(None).unwrap(), None);
            let Network { v4, v6 } = Network::default();
            let mut v4 = v4.unwrap();
            v4.guest.push(Assigned::new([10, 0, 2, 101].into(), 32));
            let _tap = set_up(
                "tap0",
                Network {
                    v4: Some(v4.clone()),
                    v6: v6.clone(),
                },
            );
            let read = Template::<Ipv4Addr>::read(None).unwrap().unwrap();
            assert_eq!(read.interface, "tap0");
            assert_eq!(read.addresses, v4.guest);
            assert_eq!(read.gateway, Some(v4.gateway));
            let lens = |routes: &[RouteMessage]| -> Vec<u8> {
                routes
                    .iter()
                    .map(|route| route.header.destination_prefix_length)
                    .collect()
            };
            assert_eq!(lens(&read.routes), [24, 0]);
            let read = Template::<Ipv6Addr>::read(Some("tap0")).unwrap().unwrap();
            let v6 = v6.unwrap();
            assert_eq!(
                (&read.addresses, read.gateway),
                (&v6.guest, Some(v6.gateway))
            );
            assert_eq!(lens(&read.routes), [64, 0]);
            assert_eq!(Template::<Ipv4Addr>::read(Some("lo")).unwrap(), None);
            let error = Template::<Ipv4Addr>::read(Some("nosuch0")).unwrap_err();
            assert!(error.to_string().contains("nosuch0"), "{error}");
        });
    }

    #[test]
    fn the_default_route_with_the_lowest_metric_decides() {
        in_namespaces(
            module_path!(),
            "the_default_route_with_the_lowest_metric_decides",
            || {
                let metric = |mut family: Family<Ipv4Addr>, metric| {
                    let route = &mut family.routes[0];
                    route.attributes.push(RouteAttribute::Priority(metric));
                    Network {
                        v4: Some(family),
                        v6: None,
                    }
                };
                let family = |last: u8| {
                    let ip = |number| Ipv4Addr::new(192, 0, 2, number);
                    Family::isolated(ip(last), 32, ip(1), None)
                };
                let on_link = |mut family: Family<Ipv4Addr>| {
                    family.routes[0].header.flags = RouteFlags::Onlink;
                    family
                };
                let _first = set_up("tap0", metric(on_link(family(10)), 200));
                let _second = set_up("tap1", metric(on_link(family(20)), 100));
                let read = Template::<Ipv4Addr>::read(None).unwrap().unwrap();
                assert_eq!(read.interface, "tap1");
                assert_eq!(read.addresses, [Assigned::new([192, 0, 2, 20].into(), 32)]);

                // What was read can be given, to the last flag, and is read the same again.
                let likeness = Family::likeness(Some(&read), &Wishes::default());
                let network = Network {
                    v4: Some(likeness),
                    v6: None,
                };
                let _copy = set_up("copy0", network);
                let copy = Template::<Ipv4Addr>::read(Some("copy0")).unwrap().unwrap();
                let interface = read.interface.clone();
                assert_eq!(Template { interface, ..copy }, read);
            },
        );
    }
}
