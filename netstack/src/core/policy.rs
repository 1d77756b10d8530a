//! Where a packet of the guest may go. Who is who on its network is the matter of `addresses`.
//!
//! The rules, first match wins:
//! - a protocol that is switched off is prohibited;
//! - queries to the DNS address go to the host's resolvers (`dns`);
//! - an alias of the host leads there (`Addresses::aliases`); without one the host's loopback
//!   cannot be reached;
//! - other packets to the DNS address are refused, and so are those to the gateway where nobody
//!   else has its address, unless it is to have no network behind it;
//! - other addresses that are the guest's, or of its link only, do not exist (`Addresses::beyond`
//!   lists exceptions);
//! - loopback, link-local, multicast, unspecified and reserved addresses are prohibited, and so are
//!   metadata services of clouds, which are link-local or have an address of their own;
//! - everything else is dialled as it is.
//!
//! Of what would leave by these rules, the user's own (`egress`) may prohibit some. They speak of
//! addresses as the guest writes them, an alias of the host among these.
//!
//! An IPv6 address that stands for an IPv4 address (`special_purpose`) goes where that one goes,
//! and is dialled as it is only if that one would be.

use std::net::{IpAddr, SocketAddr};

use super::addresses::Addresses;
use super::dns;
use super::egress::Egress;
use super::flow::Protocol;
use super::special_purpose::{is_another_host, stands_for};

/// What the guest is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// What it may not reach besides.
    pub egress: Egress,
    /// A gateway that leads nowhere has no network behind it, instead of being a host that refuses:
    /// some callers expect to read that.
    pub gateway_is_no_host: bool,
    /// Encrypted queries are forwarded, too (DNS over TLS and over QUIC, port 853).
    pub encrypted_dns: bool,
    pub no_tcp: bool,
    pub no_udp: bool,
    /// No ICMP echo beyond the guest's link.
    pub no_echo: bool,
}

/// What becomes of a packet of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Talk to this host address.
    Dial(SocketAddr),
    /// Talk to one of the host's resolvers.
    Resolve,
    /// Talk to it at the port that was asked for.
    ResolveEncrypted,
    /// The address exists, nothing listens: RST, or port unreachable.
    Refuse,
    /// No such address here: host unreachable.
    Unreachable,
    /// Nothing is routed there: network unreachable.
    NoRoute,
    /// Administratively prohibited.
    Prohibit,
}

impl Policy {
    /// Where a packet to `remote` goes, of a guest on the network of `addresses`. Everything that
    /// leaves for the host has come through here.
    pub fn judge(&self, addresses: &Addresses, protocol: Protocol, remote: SocketAddr) -> Verdict {
        if !self.carries(protocol) {
            return Verdict::Prohibit;
        }
        if let IpAddr::V6(ip) = remote.ip() {
            for v4 in stands_for(ip) {
                let v4 = SocketAddr::new(v4.into(), remote.port());
                let verdict = self.judge_as_written(addresses, protocol, v4);
                if verdict != Verdict::Dial(v4) {
                    return verdict;
                }
            }
        }
        self.judge_as_written(addresses, protocol, remote)
    }

    fn judge_as_written(
        &self,
        addresses: &Addresses,
        protocol: Protocol,
        remote: SocketAddr,
    ) -> Verdict {
        match self.judge_by_meaning(addresses, protocol, remote) {
            Verdict::Dial(_) | Verdict::Resolve | Verdict::ResolveEncrypted
                if !self.egress.allows(addresses, protocol, remote) =>
            {
                Verdict::Prohibit
            }
            verdict => verdict,
        }
    }

    fn judge_by_meaning(
        &self,
        addresses: &Addresses,
        protocol: Protocol,
        remote: SocketAddr,
    ) -> Verdict {
        let ip = remote.ip();
        let is_dns = addresses.is_dns(ip);
        if is_dns && dns::is_query(protocol, remote.port()) {
            return Verdict::Resolve;
        }
        if is_dns && self.encrypted_dns && dns::is_encrypted(protocol, remote.port()) {
            return Verdict::ResolveEncrypted;
        }
        if let Some(host) = addresses.host_behind(ip) {
            return Verdict::Dial(SocketAddr::new(host, remote.port()));
        }
        if is_dns {
            return Verdict::Refuse;
        }
        if addresses.is_gateway(ip) && addresses.is_ours(ip) {
            return match self.gateway_is_no_host {
                true => Verdict::NoRoute,
                false => Verdict::Refuse,
            };
        }
        if addresses.is_local(ip) {
            return Verdict::Unreachable;
        }
        if !is_another_host(ip) {
            return Verdict::Prohibit;
        }
        Verdict::Dial(remote)
    }

    /// Whether `protocol` is not switched off.
    pub fn carries(&self, protocol: Protocol) -> bool {
        !match protocol {
            Protocol::Tcp => self.no_tcp,
            Protocol::Udp => self.no_udp,
            Protocol::Echo => self.no_echo,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::core::addresses::Alias;
    use crate::core::dns::DNS_PORT;

    /// The network of the tests; its gateway may be the host's loopback.
    fn addresses(gateway_is_loopback: bool) -> Addresses {
        let mut addresses = Addresses::of_the_tests();
        if gateway_is_loopback {
            let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            let pairs = addresses.gateways.iter().zip(loopback);
            addresses.aliases = pairs.map(|(&shown, host)| Alias { shown, host }).collect();
        }
        addresses
    }

    fn judge_by(gateway_is_loopback: bool, protocol: Protocol, remote: SocketAddr) -> Verdict {
        Policy::default().judge(&addresses(gateway_is_loopback), protocol, remote)
    }

    fn judge(remote: &str) -> Verdict {
        judge_by(false, Protocol::Tcp, remote.parse().unwrap())
    }

    #[test]
    fn a_gateway_without_a_host_behind_it_is_as_if_it_had_no_route() {
        let judge = |gateway_is_loopback| {
            let policy = Policy {
                gateway_is_no_host: true,
                ..Policy::default()
            };
            let gateway = ([10, 0, 2, 2], 80).into();
            policy.judge(&addresses(gateway_is_loopback), Protocol::Tcp, gateway)
        };
        assert_eq!(judge(false), Verdict::NoRoute);
        assert_eq!(judge(true), Verdict::Dial(([127, 0, 0, 1], 80).into()));
    }

    #[test]
    fn an_address_beyond_the_link_is_dialled_as_it_is() {
        let mut addresses = Addresses::of_the_tests();
        let dns = addresses.dns.remove(0);
        let remote = SocketAddr::new(dns, DNS_PORT);
        let judge =
            |addresses: &Addresses| Policy::default().judge(addresses, Protocol::Udp, remote);
        assert_eq!(judge(&addresses), Verdict::Unreachable);
        addresses.beyond.push(dns);
        assert_eq!(judge(&addresses), Verdict::Dial(remote));
    }

    #[test]
    fn the_host_and_its_neighbours_on_the_link_are_out_of_reach() {
        for prohibited in [
            "127.0.0.1:80",
            "127.255.0.1:80",
            "0.0.0.0:80",
            "0.1.2.3:80",
            "169.254.169.254:80",
            "224.0.0.251:5353",
            "255.255.255.255:67",
            "[::1]:80",
            "[::]:80",
            "[::ffff:127.0.0.1]:80",
            "[::ffff:198.51.100.7]:80",
            "[::7f00:1]:80",
            "[64:ff9b::7f00:1]:80",
            "[64:ff9b::a9fe:a9fe]:80",
            "[64:ff9b:1::a9fe:a9fe]:80",
            "[64:ff9b:1:a9fe:a9:fe00::]:80",
            "[64:ff9b:1:5:a9:fea9:fe00:0]:80",
            "[::ffff:0:7f00:1]:80",
            "[2002:7f00:1::]:80",
            "[2002:a9fe:a9fe::1]:80",
            "[2001:0:7f00:1::]:80",
            "[2001:0:c633:6407:0:0:80ff:fffe]:80",
            "[2001:db8::5efe:7f00:1]:80",
            "[2001:db8::200:5efe:a9fe:a9fe]:80",
            "[64:ff9b::100.100.100.200]:80",
            "[fe80::1]:80",
            "[ff02::1]:80",
        ] {
            assert_eq!(judge(prohibited), Verdict::Prohibit, "{prohibited}");
        }
    }

    #[test]
    fn metadata_services_are_out_of_reach_wherever_they_live() {
        for prohibited in [
            "169.254.169.254:80",
            "169.254.170.2:80",
            "100.100.100.200:80",
            "192.0.0.192:80",
            "[fd00:ec2::254]:80",
            "[fd00:ec2::23]:80",
            "[fd20:ce::254]:80",
            "[fe80::a9fe:a9fe]:80",
        ] {
            assert_eq!(judge(prohibited), Verdict::Prohibit, "{prohibited}");
        }
    }

    /// The host's loopback and the guest's own network have one way in, however they are spelled.
    #[test]
    fn an_address_that_stands_for_another_goes_where_that_one_goes() {
        let spellings = |v4: [u8; 4]| {
            let bits = u128::from(u32::from_be_bytes(v4));
            [
                (0x64_ff9b << 96) | bits,
                (0x64_ff9b_0001 << 80) | bits,
                (0x2002 << 112) | (bits << 80),
                (0x2001_0000 << 96) | (0xc633_6407 << 64) | (bits ^ 0xffff_ffff),
                (0x2001_0db8 << 96) | (0x5efe << 32) | bits,
                (0x2001_0db8 << 96) | (0x0200_5efe << 32) | bits,
                (0xffff << 48) | bits,
            ]
            .map(|bits| IpAddr::from(Ipv6Addr::from_bits(bits)))
        };
        for gateway_is_loopback in [false, true] {
            for (v4, port) in [
                ([127, 0, 0, 1], 80),
                ([169, 254, 169, 254], 80),
                ([10, 0, 2, 2], 80),
                ([10, 0, 2, 3], 80),
                ([10, 0, 2, 3], DNS_PORT),
                ([10, 0, 2, 77], 80),
                ([10, 0, 2, 100], 80),
                ([198, 51, 100, 7], 80),
            ] {
                for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Echo] {
                    let as_v4 = SocketAddr::from((v4, port));
                    for spelled in spellings(v4) {
                        let spelled = SocketAddr::new(spelled, port);
                        let expected = match judge_by(gateway_is_loopback, protocol, as_v4) {
                            Verdict::Dial(to) if to == as_v4 => Verdict::Dial(spelled),
                            verdict => verdict,
                        };
                        let verdict = judge_by(gateway_is_loopback, protocol, spelled);
                        assert_eq!(verdict, expected, "{protocol:?} {spelled}");
                    }
                }
            }
        }
    }

    proptest! {
        /// No spelling of what is kept from the guest is ever dialled.
        #[test]
        fn nothing_that_is_dialled_stands_for_what_is_not(bits: u128, form in 0usize..8) {
            const LAST: u128 = u32::MAX as u128;
            let bits = match form {
                0 => (0x64_ff9b << 96) | bits & LAST,
                1 => (0x64_ff9b_0001 << 80) | bits & (u128::MAX >> 48),
                2 => (0x2002 << 112) | bits & (u128::MAX >> 16),
                3 => (0x2001_0000 << 96) | bits & (u128::MAX >> 32),
                4 => bits & !(LAST << 32) | 0x5efe << 32,
                5 => bits & !(LAST << 32) | 0x0200_5efe << 32,
                6 => bits & (0xffff_ffff_ffff),
                _ => bits,
            };
            let ip = Ipv6Addr::from_bits(bits);
            let remote = SocketAddr::new(ip.into(), 80);
            if let Verdict::Dial(to) = judge_by(false, Protocol::Udp, remote) {
                prop_assert_eq!(to, remote);
                for v4 in stands_for(ip) {
                    let v4 = SocketAddr::new(v4.into(), 80);
                    prop_assert_eq!(judge_by(false, Protocol::Udp, v4), Verdict::Dial(v4));
                }
            }
        }
    }

    #[test]
    fn public_and_private_addresses_are_dialled_as_they_are() {
        for remote in [
            "198.51.100.7:443",
            "192.168.1.1:53",
            "100.100.100.201:80",
            "192.0.0.191:80",
            "[2001:db8::7]:80",
            "[fd01::1]:80",
            "[fd20:ce::253]:80",
            "[64:ff9b::198.51.100.7]:443",
            "[64:ff9b:1:fffe::198.51.100.7]:443",
            "[2002:c633:6407::1]:443",
            "[2001:0:c633:6401:0:0:39cc:9bf8]:443",
        ] {
            assert_eq!(judge(remote), Verdict::Dial(remote.parse().unwrap()));
        }
    }

    #[test]
    fn rules_hold_however_an_address_is_spelled() {
        let rules = ["allow:dns", "allow:203.0.113.0/24", "deny:198.51.100.0/24"];
        let rules = rules.map(|rule| rule.parse().unwrap()).to_vec();
        let policy = Policy {
            egress: Egress::new(rules).unwrap(),
            ..Policy::default()
        };
        let judge = |remote: &str| {
            let remote = remote.parse().unwrap();
            policy.judge(&addresses(true), Protocol::Udp, remote)
        };
        for prohibited in [
            "198.51.100.7:80",
            "[64:ff9b::198.51.100.7]:80",
            "[2002:c633:6407::1]:80",
        ] {
            assert_eq!(judge(prohibited), Verdict::Prohibit, "{prohibited}");
        }
        let allowed = "[64:ff9b::203.0.113.7]:80";
        assert_eq!(judge(allowed), Verdict::Dial(allowed.parse().unwrap()));
        assert_eq!(judge("10.0.2.3:53"), Verdict::Resolve);
        assert_eq!(
            judge("10.0.2.2:80"),
            Verdict::Dial(([127, 0, 0, 1], 80).into())
        );
    }

    /// What nobody may reach is no matter of rules.
    #[test]
    fn no_rule_opens_what_is_closed() {
        let policy = Policy {
            egress: Egress::new(vec!["allow".parse().unwrap()]).unwrap(),
            ..Policy::default()
        };
        for (remote, expected) in [
            ("127.0.0.1:80", Verdict::Prohibit),
            ("169.254.169.254:80", Verdict::Prohibit),
            ("10.0.2.2:80", Verdict::Refuse),
            ("10.0.2.77:80", Verdict::Unreachable),
        ] {
            let remote = remote.parse().unwrap();
            let verdict = policy.judge(&addresses(false), Protocol::Tcp, remote);
            assert_eq!(verdict, expected, "{remote}");
        }
    }

    #[test]
    fn the_guests_subnet_holds_gateway_and_dns_and_nothing_else() {
        assert_eq!(judge("10.0.2.2:80"), Verdict::Refuse);
        assert_eq!(judge("[fd00::2]:80"), Verdict::Refuse);
        assert_eq!(judge("10.0.2.3:53"), Verdict::Resolve);
        assert_eq!(judge("[fd00::3]:53"), Verdict::Resolve);
        assert_eq!(judge("10.0.2.3:80"), Verdict::Refuse);
        assert_eq!(judge("10.0.2.77:80"), Verdict::Unreachable);
        assert_eq!(judge("[fd00::77]:80"), Verdict::Unreachable);
    }

    #[test]
    fn the_gateway_is_host_loopback_when_allowed() {
        for (remote, host) in [
            ("10.0.2.2:80", "127.0.0.1:80"),
            ("[fd00::2]:80", "[::1]:80"),
        ] {
            assert_eq!(
                judge_by(true, Protocol::Tcp, remote.parse().unwrap()),
                Verdict::Dial(host.parse().unwrap())
            );
        }
    }
}
