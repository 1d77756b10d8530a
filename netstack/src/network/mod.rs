//! The network that the guest gets: its addresses, its way out, and which addresses lead to the
//! host. It is either a network of its own, whose subnets exist on its link only, or a likeness of
//! the host's (`host`), where all neighbours are real and are reached through us.
//!
//! What is said here is what the guest's kernel is told, by us (`guest::configure`) or by a
//! protocol it asks; [`Network::addresses`] is the core's view of it.

mod autoconf;
mod hidden;
mod host;
mod likeness;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{RouteAddress, RouteMessage};

use crate::core::MacAddr;
use crate::core::addresses::{Addresses, Alias, Prefix};

pub use hidden::{Hidden, HiddenError, hidden_by};
pub use host::{Template, TemplateError};
pub use likeness::{StandIn, Wishes};

/// What the guest has of each family; `None` leaves it without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub v4: Option<Family<Ipv4Addr>>,
    pub v6: Option<Family<Ipv6Addr>>,
}

/// What the guest has of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family<A> {
    /// Its own addresses, the preferred one first. Without one an IPv6 guest has the link-local
    /// address that its kernel makes.
    pub guest: Vec<Assigned<A>>,
    /// We, as the guest's way out. It may lie outside of every prefix, or be link-local.
    pub gateway: A,
    /// Its routes, besides those that come of its prefixes. Of no interface yet.
    pub routes: Vec<RouteMessage>,
    /// We, as the guest's resolver. `None` when there is no forwarder.
    pub dns: Option<A>,
    /// Leads to the host's loopback.
    pub host_loopback: Option<A>,
    /// Leads to the host under the guest's first address, which the guest itself cannot reach there
    /// if the two share it.
    pub shared_host: Option<A>,
    /// The prefixes are on the guest's link and nowhere else. If not, whoever has an address in
    /// them is a host outside.
    pub isolated: bool,
}

/// An address of the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assigned<A> {
    pub address: A,
    /// In bits.
    pub prefix_len: u8,
    /// The kernel makes a route of the prefix.
    pub prefix_route: bool,
}

/// 10.0.2.0/24 and fd00::/64, and a forwarder in each: customary in this family of programs since
/// slirp. RFC 4193 asks for a random prefix; nobody but the guest and us ever sees this one.
impl Default for Network {
    fn default() -> Self {
        let v4 = |number| Ipv4Addr::new(10, 0, 2, number);
        let v6 = |number| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number);
        Self {
            v4: Some(Family::<Ipv4Addr>::isolated(
                v4(100),
                24,
                v4(2),
                Some(v4(3)),
            )),
            v6: Some(Family::<Ipv6Addr>::isolated(
                v6(0x100),
                64,
                v6(2),
                Some(v6(3)),
            )),
        }
    }
}

/// Why the host cannot have an address on this network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoHostAddress {
    #[error("the guest has no address of this family")]
    NoFamily,
    #[error("it is the guest's own")]
    Guest,
    #[error("it is the DNS forwarder's")]
    Forwarder,
}

impl Network {
    /// Who is who on it, IPv4 first.
    pub fn addresses(&self) -> Addresses {
        let mut addresses = Addresses::default();
        if let Some(v4) = &self.v4 {
            v4.list_in(&mut addresses, Ipv4Addr::LOCALHOST);
        }
        if let Some(v6) = &self.v6 {
            v6.list_in(&mut addresses, Ipv6Addr::LOCALHOST);
        }
        addresses
    }

    /// The same, but that the gateway's addresses lead to the host's loopback.
    pub fn with_gateway_as_host(mut self) -> Self {
        if let Some(v4) = &mut self.v4 {
            v4.host_loopback = Some(v4.gateway);
        }
        if let Some(v6) = &mut self.v6 {
            v6.host_loopback = Some(v6.gateway);
        }
        self
    }

    /// The same, but that `ip` leads to the host's loopback.
    pub fn with_host_at(mut self, ip: IpAddr) -> Result<Self, NoHostAddress> {
        match (ip, &mut self.v4, &mut self.v6) {
            (IpAddr::V4(ip), Some(v4), _) => v4.lead_to_host(ip)?,
            (IpAddr::V6(ip), _, Some(v6)) => v6.lead_to_host(ip)?,
            _ => return Err(NoHostAddress::NoFamily),
        }
        Ok(self)
    }

    /// An Ethernet address for us that says whose it is: the prefix that QEMU's user network made
    /// customary, then the gateway's address, or the last of its bytes.
    pub fn our_mac(&self) -> MacAddr {
        let v6 = |v6: &Family<Ipv6Addr>| v6.gateway.to_bits() as u32;
        let gateway = match (&self.v4, &self.v6) {
            (Some(v4), _) => v4.gateway.to_bits(),
            (None, other) => other.as_ref().map_or(0, v6),
        };
        let [a, b, c, d] = gateway.to_be_bytes();
        [0x52, 0x55, a, b, c, d]
    }
}

impl<A: Address> Family<A> {
    /// A subnet of the guest's own with one address, and a route to everywhere.
    pub fn isolated(guest: A, prefix_len: u8, gateway: A, dns: Option<A>) -> Self {
        Self {
            guest: vec![Assigned::new(guest, prefix_len)],
            gateway,
            routes: vec![A::default_route(gateway, false)],
            dns,
            host_loopback: None,
            shared_host: None,
            isolated: true,
        }
    }

    fn lead_to_host(&mut self, ip: A) -> Result<(), NoHostAddress> {
        if self.guest.iter().any(|own| own.address == ip) {
            return Err(NoHostAddress::Guest);
        }
        if self.dns == Some(ip) {
            return Err(NoHostAddress::Forwarder);
        }
        self.host_loopback = Some(ip);
        Ok(())
    }

    /// The guest's preferred address.
    pub fn first(&self) -> Option<Assigned<A>> {
        self.guest.first().copied()
    }

    fn list_in(&self, addresses: &mut Addresses, loopback: A) {
        addresses
            .guest
            .extend(self.guest.iter().map(|guest| guest.address.into()));
        addresses.gateways.push(self.gateway.into());
        addresses.dns.extend(self.dns.map(A::into));
        let shared = self.first().map(|guest| guest.address);
        let aliases = [
            (self.host_loopback, Some(loopback)),
            (self.shared_host, shared),
        ];
        for (shown, host) in aliases {
            if let (Some(shown), Some(host)) = (shown, host) {
                let (shown, host) = (shown.into(), host.into());
                addresses.aliases.push(Alias { shown, host });
            }
        }
        if self.isolated {
            addresses
                .on_link
                .extend(self.guest.iter().map(Assigned::prefix));
        }
        let gateway = Prefix::host(self.gateway.into());
        let is_covered = addresses
            .on_link
            .iter()
            .any(|prefix| prefix.contains(gateway.network));
        // No link-local address is anybody's beyond the link.
        if !is_covered && self.gateway.is_link_local() {
            addresses.on_link.push(gateway);
        }
    }
}

impl<A> Assigned<A> {
    pub fn new(address: A, prefix_len: u8) -> Self {
        Self {
            address,
            prefix_len,
            prefix_route: true,
        }
    }
}

impl<A: Address> Assigned<A> {
    pub fn prefix(&self) -> Prefix {
        Prefix::around(self.address.into(), self.prefix_len)
    }
}

/// What the two families differ in.
pub trait Address: Copy + Eq + Into<IpAddr> {
    const FAMILY: AddressFamily;

    /// `ip`, if it is of this family.
    fn of(ip: IpAddr) -> Option<Self>;
    /// `address`, if it is of this family.
    fn of_route(address: &RouteAddress) -> Option<Self>;
    fn is_link_local(self) -> bool;
    /// The way to everywhere by `gateway`, whose neighbour the guest is whatever its prefix if
    /// `on_link` says so.
    fn default_route(gateway: Self, on_link: bool) -> RouteMessage;
}

impl Address for Ipv4Addr {
    const FAMILY: AddressFamily = AddressFamily::Inet;

    fn of(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        }
    }

    fn of_route(address: &RouteAddress) -> Option<Self> {
        match address {
            RouteAddress::Inet(ip) => Some(*ip),
            _ => None,
        }
    }

    fn is_link_local(self) -> bool {
        Self::is_link_local(&self)
    }

    fn default_route(gateway: Self, on_link: bool) -> RouteMessage {
        let route = RouteMessageBuilder::<Self>::new().gateway(gateway);
        if on_link { route.onlink() } else { route }.build()
    }
}

impl Address for Ipv6Addr {
    const FAMILY: AddressFamily = AddressFamily::Inet6;

    fn of(ip: IpAddr) -> Option<Self> {
        match ip {
            IpAddr::V4(_) => None,
            IpAddr::V6(ip) => Some(ip),
        }
    }

    fn of_route(address: &RouteAddress) -> Option<Self> {
        match address {
            RouteAddress::Inet6(ip) => Some(*ip),
            _ => None,
        }
    }

    fn is_link_local(self) -> bool {
        self.is_unicast_link_local()
    }

    fn default_route(gateway: Self, on_link: bool) -> RouteMessage {
        let route = RouteMessageBuilder::<Self>::new().gateway(gateway);
        if on_link { route.onlink() } else { route }.build()
    }
}
