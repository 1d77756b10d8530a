//! Router advertisements (RFC 4861 4.2): how a guest gets an IPv6 address by itself (RFC 4862), its
//! default route, the link's MTU, and resolvers (RFC 8106).

use std::net::IpAddr;

use etherparse::Icmpv6Type;
use etherparse::icmpv6::{
    PrefixInformation, RouterAdvertisementHeader, RouterAdvertisementPayload,
};

use super::LEASE_SECONDS;
use super::names::Names;
use crate::core::Duration;
use crate::core::addresses::Prefix;
use crate::core::packet::MacAddr;

/// What a router says of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Router {
    /// In which the guest may choose an address; of 64 bits, or the guest does not.
    pub prefix: Option<Prefix>,
}

/// How often routers say it unasked (RFC 4861 6.2.1, MaxRtrAdvInterval).
pub const INTERVAL: Duration = Duration::from_secs(600);

impl Router {
    /// The message, and what follows its header. `has_lease` says that DHCPv6 gives addresses.
    pub fn advertisement(
        &self,
        names: &Names,
        has_lease: bool,
        mtu: Option<u16>,
        mac: MacAddr,
    ) -> (Icmpv6Type, Vec<u8>) {
        let message = Icmpv6Type::RouterAdvertisement(RouterAdvertisementHeader {
            cur_hop_limit: crate::core::link::HOP_LIMIT,
            managed_address_config: has_lease,
            other_config: has_lease,
            router_lifetime: LIFETIME_SECONDS as u16,
        });
        // The guest's own timers.
        let timers = RouterAdvertisementPayload {
            reachable_time: 0,
            retrans_timer: 0,
        };
        let mut body = timers.to_bytes().to_vec();
        body.extend([OPTION_SOURCE_LINK_LAYER_ADDRESS, 1]);
        body.extend(mac);
        if let Some(mtu) = mtu {
            body.extend([OPTION_MTU, 1, 0, 0]);
            body.extend(u32::from(mtu).to_be_bytes());
        }
        if let Some(Prefix {
            network: IpAddr::V6(prefix),
            len,
        }) = self.prefix
        {
            let prefix = PrefixInformation {
                prefix_length: len,
                on_link: true,
                autonomous_address_configuration: true,
                valid_lifetime: LEASE_SECONDS,
                preferred_lifetime: LEASE_SECONDS,
                prefix: prefix.octets(),
            };
            body.extend(prefix.to_bytes());
        }
        write_names(&mut body, OPTION_RESOLVERS, Some(&names.resolvers_v6()));
        write_names(&mut body, OPTION_SEARCH_LIST, names.search.encoded());
        (message, body)
    }
}

/// An option of RFC 8106, unless there is nothing in it: `data` is filled up to whole units.
fn write_names(body: &mut Vec<u8>, option: u8, data: Option<&[u8]>) {
    let Some(data) = data.filter(|data| !data.is_empty()) else {
        return;
    };
    let units = 1 + data.len().div_ceil(UNIT);
    // Three resolvers, or 255 bytes of names, are 33 units at most.
    body.extend([option, units as u8, 0, 0]);
    body.extend(LIFETIME_SECONDS.to_be_bytes());
    body.extend_from_slice(data);
    let filled = body.len().next_multiple_of(UNIT);
    body.resize(filled, 0);
}

/// Three times the interval (RFC 4861 6.2.1, AdvDefaultLifetime; RFC 8106 5.1).
const LIFETIME_SECONDS: u32 = 1800;
/// Options are as long as a whole number of these (RFC 4861 4.6).
const UNIT: usize = 8;

const OPTION_SOURCE_LINK_LAYER_ADDRESS: u8 = 1;
const OPTION_MTU: u8 = 5;
const OPTION_RESOLVERS: u8 = 25;
const OPTION_SEARCH_LIST: u8 = 31;

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;
    use crate::core::autoconf::names::SearchList;

    const ROUTER: Router = Router {
        prefix: Some(Prefix {
            network: IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0)),
            len: 64,
        }),
    };

    /// Kind and length of each option.
    fn options_of(body: &[u8]) -> Vec<(u8, usize)> {
        let mut rest = &body[RouterAdvertisementPayload::LEN..];
        let mut options = Vec::new();
        while let [option, units, ..] = *rest {
            let len = usize::from(units) * UNIT;
            options.push((option, len));
            rest = &rest[len..];
        }
        assert!(rest.is_empty());
        options
    }

    #[test]
    fn it_has_what_the_guest_needs() {
        let (message, body) = ROUTER.advertisement(&Names::default(), false, Some(1500), [1; 6]);
        let Icmpv6Type::RouterAdvertisement(header) = message else {
            panic!("a router advertisement is expected");
        };
        assert_eq!(
            (header.managed_address_config, header.router_lifetime),
            (false, 1800)
        );
        assert_eq!(options_of(&body), [(1, 8), (OPTION_MTU, 8), (3, 32)]);
        let alone = Router { prefix: None };
        let (message, body) = alone.advertisement(&Names::default(), true, None, [1; 6]);
        assert_eq!(options_of(&body), [(1, 8)]);
        assert!(matches!(
            message,
            Icmpv6Type::RouterAdvertisement(header) if header.managed_address_config
        ));
    }

    #[test]
    fn names_fill_whole_units() {
        let domain = |len| "a".repeat(len).parse().unwrap();
        for (lens, expected) in [
            (&[3][..], 16),
            (&[6], 16),
            (&[7], 24),
            (&[62, 62, 62, 61], 264),
        ] {
            let domains: Vec<_> = lens.iter().map(|len| domain(*len)).collect();
            let names = Names {
                resolvers: ["fd00::3", "10.0.2.3"].map(|ip| ip.parse().unwrap()).into(),
                search: SearchList::new(&domains).unwrap(),
                ..Names::default()
            };
            let (_, body) = ROUTER.advertisement(&names, false, Some(1500), [1; 6]);
            let found = &options_of(&body)[3..];
            assert_eq!(
                found,
                [(OPTION_RESOLVERS, 24), (OPTION_SEARCH_LIST, expected)]
            );
        }
    }
}
