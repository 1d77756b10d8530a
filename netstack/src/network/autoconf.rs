//! What a guest is told that configures itself: the same as `guest::configure` would set, as far as
//! protocols can say it.
//!
//! - On a network of its own it gets an IPv4 address from .15 on, as with libslirp, and chooses one
//!   of IPv6 itself.
//! - On a likeness of the host's it gets the addresses that it is to have; of IPv6 it may choose
//!   one besides, in the 64 bits that the address begins with.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU8;

use super::{Address, Family, Network};
use crate::core::addresses::Prefix;
use crate::core::autoconf::{Autoconf, Dhcpv6, Names, Pool, Router};

/// The number of the first address that DHCP gives, and how many it has.
const FIRST: u32 = 15;
const SIZE: NonZeroU8 = NonZeroU8::new(16).expect("not zero");

impl Network {
    /// All of it, and the forwarders as resolvers. `mtu` is told if there is one.
    pub fn autoconf(&self, mtu: Option<u16>) -> Autoconf {
        let pool = self.v4.as_ref().and_then(pool);
        let v6 = self.v6.as_ref();
        let prefix = v6.and_then(|v6| own_prefix(v6, SLAAC_LEN));
        let given = v6.and_then(Family::first).map(|guest| guest.address);
        let v4_prefix = self.v4.as_ref().and_then(|v4| own_prefix(v4, 32));
        let forwarders = [
            self.v4.as_ref().and_then(|v4| v4.dns).map(IpAddr::from),
            v6.and_then(|v6| v6.dns).map(IpAddr::from),
        ];
        Autoconf {
            pool,
            dhcpv6: v6.map(|v6| Dhcpv6 {
                address: given.filter(|_| !v6.isolated),
            }),
            router: v6.map(|_| Router { prefix }),
            names: Names {
                resolvers: forwarders.into_iter().flatten().collect(),
                ..Names::default()
            },
            mtu,
            chosen_in: v4_prefix.into_iter().chain(prefix).collect(),
            ..Autoconf::default()
        }
    }
}

/// What a guest chooses an address in (RFC 4291 2.5.1).
const SLAAC_LEN: u8 = 64;

/// What the guest may choose its address in: all of a subnet that nobody else has addresses in, or
/// else the `len` bits that its own begins with.
fn own_prefix<A: Address>(family: &Family<A>, len: u8) -> Option<Prefix> {
    let first = family.first()?;
    Some(match family.isolated {
        true => first.prefix(),
        false => Prefix::around(first.address.into(), len),
    })
}

fn pool(v4: &Family<Ipv4Addr>) -> Option<Pool> {
    let own = v4.first()?;
    let (first, size) = match own.prefix().network {
        IpAddr::V4(network) if v4.isolated => {
            (Ipv4Addr::from_bits(network.to_bits() | FIRST), SIZE)
        }
        _ => (own.address, NonZeroU8::MIN),
    };
    Some(Pool {
        first,
        size,
        prefix_len: own.prefix_len,
        router: v4.gateway,
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;
    use crate::network::Assigned;

    fn prefix(network: &str, len: u8) -> Prefix {
        let network = network.parse().unwrap();
        Prefix { network, len }
    }

    #[test]
    fn a_network_of_its_own_leaves_the_guest_a_choice() {
        let autoconf = Network::default().autoconf(Some(1500));
        let pool = autoconf.pool.unwrap();
        assert_eq!(
            (pool.first, pool.last()),
            ([10, 0, 2, 15].into(), [10, 0, 2, 30].into())
        );
        assert_eq!((pool.prefix_len, pool.router), (24, [10, 0, 2, 2].into()));
        assert_eq!(autoconf.dhcpv6, Some(Dhcpv6 { address: None }));
        let v6 = prefix("fd00::", 64);
        assert_eq!(autoconf.router, Some(Router { prefix: Some(v6) }));
        assert_eq!(autoconf.chosen_in, [prefix("10.0.2.0", 24), v6]);
        let dns = ["10.0.2.3", "fd00::3"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(autoconf.names.resolvers, dns);
        assert_eq!(autoconf.mtu, Some(1500));
    }

    #[test]
    fn a_likeness_of_the_hosts_gives_the_addresses_that_there_are() {
        let mut network = Network::default();
        let (v4, v6) = (network.v4.as_mut().unwrap(), network.v6.as_mut().unwrap());
        (v4.isolated, v6.isolated) = (false, false);
        v6.guest = vec![Assigned::new(
            "2001:db8::7".parse::<Ipv6Addr>().unwrap(),
            128,
        )];
        let autoconf = network.autoconf(None);
        let pool = autoconf.pool.unwrap();
        assert_eq!(
            (pool.first, pool.last()),
            ([10, 0, 2, 100].into(), [10, 0, 2, 100].into())
        );
        let given = "2001:db8::7".parse().unwrap();
        assert_eq!(
            autoconf.dhcpv6,
            Some(Dhcpv6 {
                address: Some(given)
            })
        );
        let chosen = prefix("2001:db8::", 64);
        assert_eq!(
            autoconf.router,
            Some(Router {
                prefix: Some(chosen)
            })
        );
        assert_eq!(autoconf.chosen_in, [prefix("10.0.2.100", 32), chosen]);
    }

    #[test]
    fn a_family_that_is_missing_is_not_configured() {
        let v4 = Network {
            v6: None,
            ..Network::default()
        }
        .autoconf(None);
        assert!(v4.pool.is_some() && v4.dhcpv6.is_none() && v4.router.is_none());
        let v6 = Network {
            v4: None,
            ..Network::default()
        }
        .autoconf(None);
        assert!(v6.pool.is_none() && v6.dhcpv6.is_some() && v6.router.is_some());
    }
}
