//! A network that is a likeness of the host's, with what of it is to be different.

use std::net::{Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};

use super::{Address, Assigned, Family, Template};

/// What is to be different from the host's network, in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes<A> {
    /// The guest's only address.
    pub address: Option<A>,
    /// Of its first address, in bits.
    pub prefix_len: Option<u8>,
    /// The guest's only route leads there.
    pub gateway: Option<A>,
    /// The first address alone.
    pub one_address: bool,
    /// The default route alone.
    pub one_route: bool,
}

/// Nothing is to be different.
impl<A> Default for Wishes<A> {
    fn default() -> Self {
        Self {
            address: None,
            prefix_len: None,
            gateway: None,
            one_address: false,
            one_route: false,
        }
    }
}

/// What the likeness of nothing has.
pub trait StandIn: Address {
    /// The guest's address. An IPv6 guest has the link-local one that its kernel makes.
    const GUEST: Option<Self>;
    const GATEWAY: Self;
    const GUEST_PREFIX_LEN: u8;

    /// Of a network that has this address, if nobody says it.
    fn customary_prefix_len(self) -> u8;
}

impl StandIn for Ipv4Addr {
    const GUEST: Option<Self> = Some(Self::new(169, 254, 2, 1));
    const GATEWAY: Self = Self::new(169, 254, 2, 2);
    const GUEST_PREFIX_LEN: u8 = 16;

    /// By its class (RFC 791 3.2).
    fn customary_prefix_len(self) -> u8 {
        match self.octets()[0] {
            0..128 => 8,
            128..192 => 16,
            192..224 => 24,
            224.. => 32,
        }
    }
}

impl StandIn for Ipv6Addr {
    const GUEST: Option<Self> = None;
    const GATEWAY: Self = Self::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    const GUEST_PREFIX_LEN: u8 = 64;

    fn customary_prefix_len(self) -> u8 {
        64
    }
}

impl<A: StandIn> Family<A> {
    /// What the host has, with `wishes` fulfilled. A host without a network lends nothing; the
    /// guest's way out is there all the same for when the host has one again.
    pub fn likeness(template: Option<&Template<A>>, wishes: &Wishes<A>) -> Self {
        let guest = guest(template, wishes);
        let of_host = template.and_then(|template| template.gateway);
        let gateway = wishes.gateway.or(of_host).unwrap_or(A::GATEWAY);
        let mut routes = Vec::new();
        if let Some(template) = template
            && !wishes.one_route
            && wishes.gateway.is_none()
        {
            let for_guest = |route: &RouteMessage| with_sources_of(route, &guest);
            routes.extend(template.routes.iter().map(for_guest));
        }
        // Clients that cannot appear as themselves appear as the gateway, so it is within reach
        // even where the host has no way out.
        if routes.is_empty() || of_host.is_none() {
            let is_neighbour = guest
                .iter()
                .any(|guest| guest.prefix().contains(gateway.into()));
            let is_everywhere = A::FAMILY == Ipv6Addr::FAMILY && gateway.is_link_local();
            routes.push(A::default_route(gateway, !is_neighbour && !is_everywhere));
        }
        Self {
            guest,
            gateway,
            routes,
            dns: None,
            host_loopback: None,
            shared_host: None,
            isolated: false,
        }
    }
}

fn guest<A: StandIn>(template: Option<&Template<A>>, wishes: &Wishes<A>) -> Vec<Assigned<A>> {
    let mut guest = match (wishes.address, template) {
        (Some(address), _) => vec![Assigned::new(address, address.customary_prefix_len())],
        (None, Some(template)) => template.addresses.clone(),
        (None, None) => {
            let stand_in = |address| Assigned::new(address, A::GUEST_PREFIX_LEN);
            A::GUEST.map(stand_in).into_iter().collect()
        }
    };
    if wishes.one_address {
        guest.truncate(1);
    }
    if let (Some(first), Some(prefix_len)) = (guest.first_mut(), wishes.prefix_len) {
        *first = Assigned::new(first.address, prefix_len);
    }
    if wishes.one_route || wishes.gateway.is_some() {
        // The host may have had a route of its own for each of them.
        guest.iter_mut().for_each(|guest| guest.prefix_route = true);
    }
    guest
}

/// The same route, without a source address that the guest does not have.
fn with_sources_of<A: Address>(route: &RouteMessage, guest: &[Assigned<A>]) -> RouteMessage {
    let mut route = route.clone();
    route.attributes.retain(|attribute| match attribute {
        RouteAttribute::PrefSource(source) => A::of_route(source)
            .is_some_and(|source| guest.iter().any(|guest| guest.address == source)),
        _ => true,
    });
    route
}

#[cfg(test)]
mod tests {
    use rtnetlink::RouteMessageBuilder;

    use super::*;

    fn v4(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    fn template() -> Template<Ipv4Addr> {
        let builder = RouteMessageBuilder::<Ipv4Addr>::new;
        let own = v4("192.0.2.10");
        Template {
            interface: "eth0".to_owned(),
            addresses: vec![
                Assigned {
                    prefix_route: false,
                    ..Assigned::new(own, 24)
                },
                Assigned::new(v4("192.0.2.11"), 24),
            ],
            gateway: Some(v4("192.0.2.1")),
            routes: vec![
                builder()
                    .destination_prefix(v4("192.0.2.0"), 24)
                    .pref_source(own)
                    .build(),
                builder().gateway(v4("192.0.2.1")).build(),
            ],
        }
    }

    #[test]
    fn without_wishes_it_is_as_on_the_host() {
        let template = template();
        let family = Family::likeness(Some(&template), &Wishes::default());
        assert_eq!(family.guest, template.addresses);
        assert_eq!(family.gateway, v4("192.0.2.1"));
        assert_eq!(family.routes, template.routes);
        assert!(!family.isolated);
    }

    #[test]
    fn an_address_of_its_own_has_the_prefix_of_its_class_and_no_foreign_source() {
        let wishes = Wishes {
            address: Some(v4("10.9.8.7")),
            ..Wishes::default()
        };
        let family = Family::likeness(Some(&template()), &wishes);
        assert_eq!(family.guest, [Assigned::new(v4("10.9.8.7"), 8)]);
        let of_host = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(v4("192.0.2.0"), 24)
            .build();
        assert_eq!(family.routes[0], of_host);
        for (address, len) in [("172.16.0.1", 16), ("192.0.2.1", 24), ("240.0.0.1", 32)] {
            assert_eq!(v4(address).customary_prefix_len(), len);
        }
    }

    #[test]
    fn a_gateway_of_its_own_is_the_only_route() {
        let wishes = Wishes {
            address: Some(v4("10.0.2.100")),
            prefix_len: Some(24),
            gateway: Some(v4("10.0.2.2")),
            ..Wishes::default()
        };
        let family = Family::likeness(Some(&template()), &wishes);
        assert_eq!(family.guest, [Assigned::new(v4("10.0.2.100"), 24)]);
        assert_eq!(
            family.routes,
            [Ipv4Addr::default_route(v4("10.0.2.2"), false)]
        );
        // It is a neighbour, whatever the prefix says.
        let alone = Wishes {
            prefix_len: Some(32),
            ..wishes
        };
        let family = Family::likeness(None, &alone);
        assert_eq!(
            family.routes,
            [Ipv4Addr::default_route(v4("10.0.2.2"), true)]
        );
    }

    #[test]
    fn less_can_be_copied() {
        let wishes = Wishes {
            one_address: true,
            one_route: true,
            ..Wishes::default()
        };
        let family = Family::likeness(Some(&template()), &wishes);
        assert_eq!(family.guest, [Assigned::new(v4("192.0.2.10"), 24)]);
        assert_eq!(
            family.routes,
            [Ipv4Addr::default_route(v4("192.0.2.1"), false)]
        );
    }

    #[test]
    fn a_host_without_a_way_out_leaves_the_guest_one() {
        let mut template = template();
        template.gateway = None;
        template.routes.truncate(1);
        let family = Family::likeness(Some(&template), &Wishes::default());
        assert_eq!(family.gateway, v4("169.254.2.2"));
        assert_eq!(family.routes[0], template.routes[0]);
        let way_out = Ipv4Addr::default_route(v4("169.254.2.2"), true);
        assert_eq!(family.routes[1..], [way_out]);
    }

    #[test]
    fn a_host_without_a_network_leaves_the_guest_a_way_out() {
        let family = Family::<Ipv4Addr>::likeness(None, &Wishes::default());
        assert_eq!(family.guest, [Assigned::new(v4("169.254.2.1"), 16)]);
        assert_eq!(
            family.routes,
            [Ipv4Addr::default_route(v4("169.254.2.2"), false)]
        );
        let family = Family::<Ipv6Addr>::likeness(None, &Wishes::default());
        let gateway = "fe80::1".parse().unwrap();
        assert_eq!((family.guest.len(), family.gateway), (0, gateway));
        assert_eq!(family.routes, [Ipv6Addr::default_route(gateway, false)]);
    }
}
