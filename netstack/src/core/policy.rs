//! Which addresses exist on the guest's network, and where a packet of the guest may go.
//!
//! The rules, first match wins:
//! - the DNS address forwards port 53 to the host's resolvers and refuses everything else;
//! - the gateway is the host's loopback if `allow_host_loopback` says so, otherwise it refuses;
//! - other addresses of the guest's own subnet do not exist;
//! - loopback, link-local (metadata services live there), multicast, unspecified and reserved addresses are prohibited,
//!   in their IPv4-mapped form too, which a host socket would take for IPv4;
//! - everything else is dialled as it is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::flow::Protocol;

/// Port of DNS (RFC 1035).
pub const DNS_PORT: u16 = 53;

/// A subnet of the guest's link with the addresses that matter in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet<A> {
    pub network: A,
    pub prefix_len: u8,
    pub guest: A,
    pub gateway: A,
    /// `None` when there is no forwarder.
    pub dns: Option<A>,
}

/// The guest's network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    pub v4: Subnet<Ipv4Addr>,
    /// `None` when the guest has no IPv6.
    pub v6: Option<Subnet<Ipv6Addr>>,
    /// The gateway's address leads to the host's 127.0.0.1 or ::1.
    pub allow_host_loopback: bool,
}

/// What becomes of a packet of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Talk to this host address.
    Dial(SocketAddr),
    /// Talk to one of the host's resolvers.
    Resolve,
    /// The address exists, nothing listens: RST, or port unreachable.
    Refuse,
    /// No such address here: host unreachable.
    Unreachable,
    /// Administratively prohibited.
    Prohibit,
}

impl Network {
    /// Where a packet of the guest to `remote` goes.
    pub fn judge(&self, protocol: Protocol, remote: SocketAddr) -> Verdict {
        let ip = remote.ip();
        if Some(ip) == self.dns(ip) {
            return match protocol {
                Protocol::Tcp | Protocol::Udp if remote.port() == DNS_PORT => Verdict::Resolve,
                _ => Verdict::Refuse,
            };
        }
        if Some(ip) == self.gateway(ip) {
            if !self.allow_host_loopback {
                return Verdict::Refuse;
            }
            let loopback = match ip {
                IpAddr::V4(_) => IpAddr::from(Ipv4Addr::LOCALHOST),
                IpAddr::V6(_) => IpAddr::from(Ipv6Addr::LOCALHOST),
            };
            return Verdict::Dial(SocketAddr::new(loopback, remote.port()));
        }
        if self.on_link(ip) {
            return Verdict::Unreachable;
        }
        if !is_public_unicast(ip) {
            return Verdict::Prohibit;
        }
        Verdict::Dial(remote)
    }

    /// Whether we answer for `ip` on the guest's Ethernet.
    pub fn is_ours(&self, ip: IpAddr) -> bool {
        Some(ip) == self.gateway(ip) || Some(ip) == self.dns(ip)
    }

    /// The address under which a client of a published port appears to the guest: its own, unless that cannot be
    /// told from something else there. `None` when the guest lacks the family.
    pub fn appearance(&self, client: IpAddr) -> Option<IpAddr> {
        let gateway = self.gateway(client)?;
        let plain = is_public_unicast(client) && !self.on_link(client);
        Some(if plain { client } else { gateway })
    }

    /// The guest's address of the family of `like`.
    pub fn guest(&self, like: IpAddr) -> Option<IpAddr> {
        match like {
            IpAddr::V4(_) => Some(self.v4.guest.into()),
            IpAddr::V6(_) => self.v6.map(|v6| v6.guest.into()),
        }
    }

    /// The gateway of the family of `like`.
    pub fn gateway(&self, like: IpAddr) -> Option<IpAddr> {
        match like {
            IpAddr::V4(_) => Some(self.v4.gateway.into()),
            IpAddr::V6(_) => self.v6.map(|v6| v6.gateway.into()),
        }
    }

    fn dns(&self, like: IpAddr) -> Option<IpAddr> {
        match like {
            IpAddr::V4(_) => self.v4.dns.map(IpAddr::from),
            IpAddr::V6(_) => self.v6.and_then(|v6| v6.dns).map(IpAddr::from),
        }
    }

    fn on_link(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(self.v4.prefix_len))
                    .unwrap_or(0);
                (ip.to_bits() ^ self.v4.network.to_bits()) & mask == 0
            }
            IpAddr::V6(ip) => self.v6.is_some_and(|v6| {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(v6.prefix_len))
                    .unwrap_or(0);
                (ip.to_bits() ^ v6.network.to_bits()) & mask == 0
            }),
        }
    }
}

/// Whether a host socket may be pointed at `ip` on the guest's behalf.
fn is_public_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [first, ..] = ip.octets();
            // 0/8 is "this host" (a connect to 0.0.0.0 reaches loopback), 240/4 is reserved and ends in broadcast.
            !(first == 0
                || first >= 240
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast())
        }
        IpAddr::V6(ip) => match ip.to_ipv4() {
            // ::ffff:a.b.c.d and the deprecated ::a.b.c.d, loopback and unspecified among them.
            Some(_) => false,
            None => !(ip.is_unicast_link_local() || ip.is_multicast()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(allow_host_loopback: bool) -> Network {
        Network {
            v4: Subnet {
                network: [10, 0, 2, 0].into(),
                prefix_len: 24,
                guest: [10, 0, 2, 100].into(),
                gateway: [10, 0, 2, 2].into(),
                dns: Some([10, 0, 2, 3].into()),
            },
            v6: Some(Subnet {
                network: "fd00::".parse().unwrap(),
                prefix_len: 64,
                guest: "fd00::100".parse().unwrap(),
                gateway: "fd00::2".parse().unwrap(),
                dns: Some("fd00::3".parse().unwrap()),
            }),
            allow_host_loopback,
        }
    }

    fn judge(remote: &str) -> Verdict {
        network(false).judge(Protocol::Tcp, remote.parse().unwrap())
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
            "[fe80::1]:80",
            "[ff02::1]:80",
        ] {
            assert_eq!(judge(prohibited), Verdict::Prohibit, "{prohibited}");
        }
    }

    #[test]
    fn public_and_private_addresses_are_dialled_as_they_are() {
        for remote in ["198.51.100.7:443", "192.168.1.1:53", "[2001:db8::7]:80"] {
            assert_eq!(judge(remote), Verdict::Dial(remote.parse().unwrap()));
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
        let network = network(true);
        for (remote, host) in [
            ("10.0.2.2:80", "127.0.0.1:80"),
            ("[fd00::2]:80", "[::1]:80"),
        ] {
            assert_eq!(
                network.judge(Protocol::Tcp, remote.parse().unwrap()),
                Verdict::Dial(host.parse().unwrap())
            );
        }
    }

    #[test]
    fn clients_appear_as_themselves_unless_that_would_mislead_the_guest() {
        let appearance = |client: &str| network(false).appearance(client.parse().unwrap()).unwrap();
        assert_eq!(appearance("198.51.100.7").to_string(), "198.51.100.7");
        assert_eq!(appearance("2001:db8::7").to_string(), "2001:db8::7");
        assert_eq!(appearance("127.0.0.1").to_string(), "10.0.2.2");
        assert_eq!(appearance("10.0.2.100").to_string(), "10.0.2.2");
        assert_eq!(appearance("::1").to_string(), "fd00::2");
        assert_eq!(appearance("fe80::5").to_string(), "fd00::2");
    }
}
