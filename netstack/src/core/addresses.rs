//! Who is who on the guest's network: which addresses are the guest's, which are ours, and which
//! exist there at all. What may be reached is the matter of `policy`.
//!
//! Either family may be missing, and each may have several addresses of a kind, of which the first
//! one is preferred. An address of the guest's may be the host's own, too: then neither sees the
//! other under it.
//!
//! Behind the guest there may be networks of containers, which it routes: whoever has an address
//! there is seen under it, on both sides.

use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::special_purpose::{is_another_host, stands_for};

/// The addresses of the guest's network that mean something else there than outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The guest's own.
    pub guest: Vec<IpAddr>,
    /// Ours, as the guest's way out. A family without one is not served. Outside, a host may have
    /// it, the router of a network that the guest's is a likeness of.
    pub gateways: Vec<IpAddr>,
    /// Ours, as the guest's resolver. None where there is no forwarder.
    pub dns: Vec<IpAddr>,
    /// Ours, as the host.
    pub aliases: Vec<Alias>,
    /// Subnets that are on the guest's link and nowhere else: nobody has an address in them but
    /// those above.
    pub on_link: Vec<Prefix>,
    /// Addresses in these subnets that are somebody's outside all the same.
    pub beyond: Vec<IpAddr>,
    /// Networks behind the guest. Where there are any, nobody else's packets are taken but the
    /// guest's own.
    pub behind: Vec<Prefix>,
}

/// An address that leads to the host, under another address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alias {
    /// What the guest calls it. Its gateway's address may be among them.
    pub shown: IpAddr,
    /// Of the same family: loopback, or one of the host's that the guest has for itself.
    pub host: IpAddr,
}

/// The addresses that begin like `network`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    pub network: IpAddr,
    /// In bits: 32 at most for IPv4, 128 for IPv6.
    pub len: u8,
}

impl Addresses {
    pub fn is_guest(&self, ip: IpAddr) -> bool {
        self.guest.contains(&ip)
    }

    pub fn is_gateway(&self, ip: IpAddr) -> bool {
        self.gateways.contains(&ip)
    }

    pub fn is_dns(&self, ip: IpAddr) -> bool {
        self.dns.contains(&ip)
    }

    /// Where on the host `ip` leads if it is an alias.
    pub fn host_behind(&self, ip: IpAddr) -> Option<IpAddr> {
        let alias = self.aliases.iter().find(|alias| alias.shown == ip)?;
        Some(alias.host)
    }

    /// Whether `ip` means us, and nobody else.
    pub fn is_ours(&self, ip: IpAddr) -> bool {
        self.is_dns(ip)
            || self.host_behind(ip).is_some()
            || self.is_gateway(ip) && self.is_on_link(ip)
    }

    /// Whether `ip` is nobody's outside the guest's link, as far as the guest can tell.
    pub fn is_local(&self, ip: IpAddr) -> bool {
        self.is_ours(ip) || self.is_guest(ip) || self.is_on_link(ip) || self.is_behind(ip)
    }

    /// Whether `ip` is of a network behind the guest.
    pub fn is_behind(&self, ip: IpAddr) -> bool {
        self.behind.iter().any(|network| network.contains(ip))
    }

    /// Whether a packet may come from `ip`. Without networks behind it a guest speaks for itself
    /// alone, by whatever address. Who has none yet asks for one (RFC 2131 4.1, RFC 4862 5.4.2).
    pub fn may_be_source(&self, ip: IpAddr) -> bool {
        let is_guests = |ip| {
            self.is_guest(ip) || self.is_on_link(ip) || ip.is_unspecified() || is_link_local(ip)
        };
        self.behind.is_empty() || self.is_behind(ip) || is_guests(ip)
    }

    fn is_on_link(&self, ip: IpAddr) -> bool {
        self.on_link.iter().any(|prefix| prefix.contains(ip)) && !self.beyond.contains(&ip)
    }

    /// The guest's address of the family of `like`.
    pub fn guest(&self, like: IpAddr) -> Option<IpAddr> {
        first_like(&self.guest, like)
    }

    /// The gateway of the family of `like`.
    pub fn gateway(&self, like: IpAddr) -> Option<IpAddr> {
        first_like(&self.gateways, like)
    }

    /// The gateway's address as a router, if it has one for that.
    pub fn link_local_gateway(&self) -> Option<Ipv6Addr> {
        self.gateways.iter().find_map(|ip| match ip {
            IpAddr::V6(ip) => Some(*ip).filter(Ipv6Addr::is_unicast_link_local),
            IpAddr::V4(_) => None,
        })
    }

    /// The guest has `ip`, too, and prefers it to its others. The one that it has preferred least
    /// is forgotten where it has had `MAX_GUEST_ADDRESSES`.
    pub fn prefer_guest(&mut self, ip: IpAddr) {
        self.guest.retain(|known| *known != ip);
        self.guest.truncate(MAX_GUEST_ADDRESSES - 1);
        self.guest.insert(0, ip);
    }

    /// The guest and the gateway in the family that `ip` is not of.
    pub fn in_other_family(&self, ip: IpAddr) -> Option<(IpAddr, IpAddr)> {
        let like = match ip {
            IpAddr::V4(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        };
        Some((self.guest(like)?, self.gateway(like)?))
    }

    /// The address under which a client of a published port appears to the guest: its own, unless
    /// that cannot be told from something else there. The host is what the guest calls it, if it
    /// has a name for that. `None` when the guest lacks the family.
    pub fn appearance(&self, client: IpAddr) -> Option<IpAddr> {
        let gateway = self.gateway(client)?;
        if let Some(alias) = self.aliases.iter().find(|alias| alias.host == client) {
            return Some(alias.shown);
        }
        let is_plain = |ip| is_another_host(ip) && !self.is_local(ip);
        let stands_for_plain = match client {
            IpAddr::V4(_) => true,
            IpAddr::V6(ip) => stands_for(ip).all(|v4| is_plain(v4.into())),
        };
        Some(if stands_for_plain && is_plain(client) {
            client
        } else {
            gateway
        })
    }
}

/// A guest that changes its address for privacy has some ten in use (RFC 8981 3.4).
const MAX_GUEST_ADDRESSES: usize = 32;

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn first_like(addresses: &[IpAddr], like: IpAddr) -> Option<IpAddr> {
    let is_like = |ip: &&IpAddr| ip.is_ipv4() == like.is_ipv4();
    addresses.iter().find(is_like).copied()
}

impl Prefix {
    /// `ip` alone.
    pub fn host(ip: IpAddr) -> Self {
        let len = if ip.is_ipv4() { 32 } else { 128 };
        Self { network: ip, len }
    }

    /// The one of `len` bits that `ip` is in.
    pub fn around(ip: IpAddr, len: u8) -> Self {
        let free = |width: u32| width.saturating_sub(len.into());
        let network = match ip {
            IpAddr::V4(ip) => {
                let mask = u32::MAX.checked_shl(free(32)).unwrap_or(0);
                Ipv4Addr::from_bits(ip.to_bits() & mask).into()
            }
            IpAddr::V6(ip) => {
                let mask = u128::MAX.checked_shl(free(128)).unwrap_or(0);
                Ipv6Addr::from_bits(ip.to_bits() & mask).into()
            }
        };
        Self { network, len }
    }

    /// Reads `10.89.0.0/24` or `fd89::/64`. `None` for anything else, and if there are bits behind
    /// the prefix.
    pub fn read(text: &str) -> Option<Self> {
        let (network, len) = text.split_once('/')?;
        let (network, len) = (network.parse::<IpAddr>().ok()?, len.parse().ok()?);
        let most = Self::host(network).len;
        let prefix = Self::around(network, len);
        (len <= most && prefix.network == network).then_some(prefix)
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        Self::around(ip, self.len) == *self
    }

    /// Whether some address is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        match self.len <= other.len {
            true => self.contains(other.network),
            false => other.contains(self.network),
        }
    }
}

impl Display for Prefix {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.len)
    }
}

/// What the tests of this crate's core speak of.
#[cfg(test)]
impl Addresses {
    pub fn of_the_tests() -> Self {
        let ips = |v4: &str, v6: &str| [v4, v6].map(|text| text.parse().unwrap()).to_vec();
        let on_link = ips("10.0.2.0", "fd00::").into_iter().zip([24, 64]);
        Self {
            guest: ips("10.0.2.100", "fd00::100"),
            gateways: ips("10.0.2.2", "fd00::2"),
            dns: ips("10.0.2.3", "fd00::3"),
            aliases: Vec::new(),
            on_link: on_link
                .map(|(network, len)| Prefix { network, len })
                .collect(),
            beyond: Vec::new(),
            behind: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn prefix(network: &str, len: u8) -> Prefix {
        let network = ip(network);
        Prefix { network, len }
    }

    #[test]
    fn clients_appear_as_themselves_unless_that_would_mislead_the_guest() {
        let addresses = Addresses::of_the_tests();
        for client in ["198.51.100.7", "2001:db8::7", "64:ff9b::c633:6407"] {
            assert_eq!(addresses.appearance(ip(client)), Some(ip(client)));
        }
        for misleading in ["127.0.0.1", "10.0.2.100", "10.0.2.3", "10.0.2.77"] {
            let appears = addresses.appearance(ip(misleading));
            assert_eq!(appears, Some(ip("10.0.2.2")), "{misleading}");
        }
        for misleading in [
            "::1",
            "fe80::5",
            "64:ff9b::127.0.0.1",
            "64:ff9b::10.0.2.100",
            "2002:a9fe:a9fe::1",
        ] {
            let appears = addresses.appearance(ip(misleading));
            assert_eq!(appears, Some(ip("fd00::2")), "{misleading}");
        }
    }

    #[test]
    fn a_family_that_the_guest_lacks_has_nobody() {
        let mut only_v4 = Addresses::of_the_tests();
        only_v4.guest.retain(IpAddr::is_ipv4);
        only_v4.gateways.retain(IpAddr::is_ipv4);
        assert_eq!(only_v4.appearance(ip("2001:db8::7")), None);
        assert_eq!(only_v4.guest(ip("::")), None);
        assert_eq!(only_v4.in_other_family(ip("10.0.2.100")), None);
        let other = only_v4.in_other_family(ip("2001:db8::7"));
        assert_eq!(other, Some((ip("10.0.2.100"), ip("10.0.2.2"))));
    }

    #[test]
    fn networks_behind_the_guest_are_not_outside_and_may_speak() {
        let mut addresses = Addresses::of_the_tests();
        assert!(addresses.may_be_source(ip("203.0.113.9")));
        addresses.behind = vec![prefix("10.89.0.0", 24), prefix("fd89::", 64)];
        for container in ["10.89.0.5", "fd89::5"] {
            assert!(addresses.may_be_source(ip(container)) && addresses.is_local(ip(container)));
            assert!(!addresses.is_ours(ip(container)));
        }
        // The guest's own, the gateway's subnet, and who has no address yet.
        for own in [
            "10.0.2.100",
            "10.0.2.15",
            "fd00::5",
            "fe80::1",
            "0.0.0.0",
            "::",
        ] {
            assert!(addresses.may_be_source(ip(own)), "{own}");
        }
        for foreign in ["10.89.1.5", "203.0.113.9", "fd89:0:0:1::5", "127.0.0.1"] {
            assert!(!addresses.may_be_source(ip(foreign)), "{foreign}");
        }
        assert_eq!(addresses.appearance(ip("10.89.0.7")), Some(ip("10.0.2.2")));
    }

    #[test]
    fn prefixes_overlap_when_one_holds_the_other() {
        for (one, other, overlaps) in [
            (("10.0.0.0", 8), ("10.89.0.0", 24), true),
            (("10.89.0.0", 24), ("10.89.1.0", 24), false),
            (("0.0.0.0", 0), ("fd89::", 64), false),
        ] {
            let (one, other) = (prefix(one.0, one.1), prefix(other.0, other.1));
            assert_eq!(one.overlaps(&other), overlaps, "{one} {other}");
            assert_eq!(other.overlaps(&one), overlaps, "{other} {one}");
        }
    }

    #[test]
    fn prefixes_of_every_length_hold_what_begins_like_them() {
        for (network, len, inside, outside) in [
            ("10.0.2.0", 24, "10.0.2.255", Some("10.0.3.0")),
            ("10.0.2.100", 32, "10.0.2.100", Some("10.0.2.101")),
            ("128.0.0.0", 1, "255.255.255.255", Some("127.255.255.255")),
            ("0.0.0.0", 0, "203.0.113.9", None),
            ("fd00::", 64, "fd00::ffff:0:0:1", Some("fd00:0:0:1::")),
            ("fd00::100", 128, "fd00::100", Some("fd00::101")),
            ("::", 0, "2001:db8::7", None),
        ] {
            let prefix = prefix(network, len);
            assert!(prefix.contains(ip(inside)), "{network}/{len}");
            assert_eq!(Prefix::around(ip(inside), len), prefix);
            if let Some(outside) = outside {
                assert!(!prefix.contains(ip(outside)), "{network}/{len}");
            }
        }
        assert!(!prefix("0.0.0.0", 0).contains(ip("::")));
    }
}
