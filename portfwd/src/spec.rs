//! What a user writes after `-p`: `[[IP:][HOST]:]CTR[/tcp|/udp]`, the grammar that Docker and
//! Podman share.
//!
//! HOST and CTR are a port or a range `FIRST-LAST`; two ranges pair up port by port, so they have
//! equal length. A host port that is left out (`80`, `127.0.0.1::80`) or 0 is chosen by the kernel.
//! An address left out means every address of both families, `0.0.0.0` and `[::]` mean one family;
//! IPv6 addresses go in brackets.
//!
//! Pure text to value and back: `Display` writes what `FromStr` reads to the same value. Binding is
//! [`crate::publish`]'s.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use thiserror::Error;

/// One `-p` rule: which host ports lead to which guest ports.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Publish {
    pub protocol: Protocol,
    /// The host address to bind; `None` is the wildcard of both families.
    pub host_addr: Option<IpAddr>,
    /// As many ports as `guest_ports`, or [`PortRange::KERNEL_CHOSEN`].
    pub host_ports: PortRange,
    pub guest_ports: PortRange,
}

impl Publish {
    /// The rule's ports as `(host, guest)` pairs in ascending order; a host port of 0 is the
    /// kernel's to choose.
    pub fn pairs(&self) -> impl Iterator<Item = (u16, u16)> + use<> {
        let chosen = self.host_ports == PortRange::KERNEL_CHOSEN;
        let first_host = self.host_ports.first;
        let host_ports = self.host_ports.ports();
        let count = if chosen {
            self.guest_ports.len()
        } else {
            host_ports.len().min(self.guest_ports.len())
        };
        self.guest_ports
            .ports()
            .take(count)
            .enumerate()
            .map(move |(nth, guest)| {
                // `nth` is below the host range's length, so the sum stays within that range.
                let host = if chosen { 0 } else { first_host + nth as u16 };
                (host, guest)
            })
    }
}

impl Publish {
    /// Whether a socket of this rule would be in the way of one at `addr`, of the same protocol.
    pub fn covers(&self, addr: SocketAddr) -> bool {
        let same_address = self
            .host_addrs()
            .iter()
            .filter(|own| own.is_ipv4() == addr.is_ipv4())
            .any(|own| *own == addr.ip() || own.is_unspecified() || addr.ip().is_unspecified());
        same_address && self.host_ports.ports().contains(&addr.port())
    }

    /// The addresses that are bound: the wildcards of both families when none is named.
    pub fn host_addrs(&self) -> Vec<IpAddr> {
        match self.host_addr {
            Some(addr) => vec![addr],
            None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        }
    }
}

impl FromStr for Publish {
    type Err = SpecError;

    fn from_str(rule: &str) -> Result<Self, SpecError> {
        let (ports, protocol) = match rule.split_once('/') {
            Some((ports, protocol)) => (ports, protocol.parse()?),
            None => (rule, Protocol::Tcp),
        };
        let (host_addr, ports) = split_address(ports)?;
        let (host, guest) = match (ports.rsplit_once(':'), host_addr) {
            (Some((host, guest)), _) => (host, guest),
            (None, None) => ("", ports),
            (None, Some(addr)) => return Err(SpecError::AddressWithoutHostPort(addr)),
        };
        if guest.is_empty() {
            return Err(SpecError::MissingGuestPort);
        }
        let guest_ports = parse_range(guest)?;
        let host_ports = match host {
            "" | "0" => PortRange::KERNEL_CHOSEN,
            range => parse_range(range)?,
        };
        if host_ports != PortRange::KERNEL_CHOSEN && host_ports.len() != guest_ports.len() {
            return Err(SpecError::UnequalRanges {
                host: host_ports,
                guest: guest_ports,
            });
        }
        Ok(Self {
            protocol,
            host_addr,
            host_ports,
            guest_ports,
        })
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_addr {
            Some(IpAddr::V4(addr)) => write!(f, "{addr}:")?,
            Some(IpAddr::V6(addr)) => write!(f, "[{addr}]:")?,
            None => {}
        }
        if self.host_ports != PortRange::KERNEL_CHOSEN {
            write!(f, "{}:", self.host_ports)?;
        } else if self.host_addr.is_some() {
            f.write_str(":")?;
        }
        write!(f, "{}/{}", self.guest_ports, self.protocol)
    }
}

/// The transport protocol of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl FromStr for Protocol {
    type Err = SpecError;

    /// Case does not matter, as in Docker.
    fn from_str(name: &str) -> Result<Self, SpecError> {
        match name.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(SpecError::UnknownProtocol(name.to_owned())),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Consecutive port numbers, at least one; 0 occurs only as [`PortRange::KERNEL_CHOSEN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// In place of host ports: the kernel picks free ones, in a row for a range.
    pub const KERNEL_CHOSEN: Self = Self { first: 0, last: 0 };

    /// All that a service can have.
    pub const EVERY: Self = Self {
        first: 1,
        last: u16::MAX,
    };

    /// What Linux gives to clients unless it is told otherwise.
    pub const EPHEMERAL: Self = Self {
        first: 32_768,
        last: 60_999,
    };

    /// The ports from `first` to `last`, both included.
    ///
    /// # Errors
    /// [`SpecError::InvalidPort`] when `first` is 0, [`SpecError::ReversedRange`] when `last` lies
    /// before `first`.
    pub fn new(first: u16, last: u16) -> Result<Self, SpecError> {
        match first {
            0 => Err(SpecError::InvalidPort(first.to_string())),
            _ if last < first => Err(SpecError::ReversedRange { first, last }),
            _ => Ok(Self { first, last }),
        }
    }

    pub fn first(&self) -> u16 {
        self.first
    }

    pub fn last(&self) -> u16 {
        self.last
    }

    #[expect(
        clippy::len_without_is_empty,
        reason = "a range holds at least one port"
    )]
    pub fn len(&self) -> usize {
        self.ports().len()
    }

    pub fn ports(&self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        if self.last != self.first {
            write!(f, "-{}", self.last)?;
        }
        Ok(())
    }
}

/// What is wrong with a rule. The text names the offending part; the caller knows the whole.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpecError {
    #[error("the container port is missing: expected [[IP:][HOST]:]CONTAINER[/tcp|/udp]")]
    MissingGuestPort,
    #[error("`{0}` is not a port: expected a number from 1 to 65535")]
    InvalidPort(String),
    #[error("port range {first}-{last} runs backwards: expected {last}-{first}")]
    ReversedRange { first: u16, last: u16 },
    #[error("host ports {host} ({}) and container ports {guest} ({}) differ in number", host.len(), guest.len())]
    UnequalRanges { host: PortRange, guest: PortRange },
    #[error("`{0}` is not an IP address (host names and IPv6 zones are not accepted)")]
    InvalidAddress(String),
    #[error("an IPv6 address goes in brackets, as in [::1]:8080:80")]
    UnbracketedIpv6,
    #[error("`[` without `]:` after the IPv6 address: expected [IP]:HOST:CONTAINER")]
    UnclosedBracket,
    #[error(
        "only one port after address {0}: expected IP:HOST:CONTAINER, or IP::CONTAINER for any free host port"
    )]
    AddressWithoutHostPort(IpAddr),
    #[error("protocol `{0}` cannot be published: expected tcp or udp")]
    UnknownProtocol(String),
}

/// Splits `IP:` off the front, where there is one.
fn split_address(rule: &str) -> Result<(Option<IpAddr>, &str), SpecError> {
    if let Some(inner) = rule.strip_prefix('[') {
        let (addr, ports) = inner.split_once("]:").ok_or(SpecError::UnclosedBracket)?;
        let addr: Ipv6Addr = addr
            .parse()
            .map_err(|_| SpecError::InvalidAddress(addr.to_owned()))?;
        // An IPv6-only socket cannot be bound to ::ffff:a.b.c.d; the user means the IPv4 address.
        return Ok((Some(IpAddr::V6(addr).to_canonical()), ports));
    }
    let Some((head, ports)) = rule.split_once(':') else {
        return Ok((None, rule));
    };
    match head.parse::<Ipv4Addr>() {
        Ok(addr) => Ok((Some(addr.into()), ports)),
        Err(_) if rule.matches(':').count() > 2 => Err(SpecError::UnbracketedIpv6),
        Err(_) if ports.contains(':') => Err(SpecError::InvalidAddress(head.to_owned())),
        Err(_) => Ok((None, rule)),
    }
}

fn parse_range(range: &str) -> Result<PortRange, SpecError> {
    match range.split_once('-') {
        Some((first, last)) => PortRange::new(parse_port(first)?, parse_port(last)?),
        None => parse_port(range).and_then(|port| PortRange::new(port, port)),
    }
}

fn parse_port(port: &str) -> Result<u16, SpecError> {
    // `u16::from_str` would also take a sign.
    let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse() {
        Ok(number @ 1..) if digits => Ok(number),
        _ => Err(SpecError::InvalidPort(port.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(first: u16, last: u16) -> PortRange {
        PortRange::new(first, last).unwrap()
    }

    fn tcp(host_addr: Option<IpAddr>, host_ports: PortRange, guest_ports: PortRange) -> Publish {
        Publish {
            protocol: Protocol::Tcp,
            host_addr,
            host_ports,
            guest_ports,
        }
    }

    #[test]
    fn well_formed_rules() {
        let localhost = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let localhost6 = Some(IpAddr::V6(Ipv6Addr::LOCALHOST));
        let (p80, p8080, any) = (range(80, 80), range(8080, 8080), PortRange::KERNEL_CHOSEN);
        let udp = |rule| Publish {
            protocol: Protocol::Udp,
            ..rule
        };
        for (text, rule, written) in [
            ("8080:80", tcp(None, p8080, p80), "8080:80/tcp"),
            ("8080:80/tcp", tcp(None, p8080, p80), "8080:80/tcp"),
            ("8080:80/UDP", udp(tcp(None, p8080, p80)), "8080:80/udp"),
            (
                "127.0.0.1:8080:80",
                tcp(localhost, p8080, p80),
                "127.0.0.1:8080:80/tcp",
            ),
            (
                "[::1]:8080:80/udp",
                udp(tcp(localhost6, p8080, p80)),
                "[::1]:8080:80/udp",
            ),
            (
                "[::]:8080:80",
                tcp(Some(Ipv6Addr::UNSPECIFIED.into()), p8080, p80),
                "[::]:8080:80/tcp",
            ),
            (
                "[::ffff:127.0.0.1]:8080:80",
                tcp(localhost, p8080, p80),
                "127.0.0.1:8080:80/tcp",
            ),
            ("80", tcp(None, any, p80), "80/tcp"),
            (":80", tcp(None, any, p80), "80/tcp"),
            ("0:80", tcp(None, any, p80), "80/tcp"),
            ("80-82/udp", udp(tcp(None, any, range(80, 82))), "80-82/udp"),
            (
                "127.0.0.1::80",
                tcp(localhost, any, p80),
                "127.0.0.1::80/tcp",
            ),
            ("[::1]::80", tcp(localhost6, any, p80), "[::1]::80/tcp"),
            (
                "8000-8010:80-90",
                tcp(None, range(8000, 8010), range(80, 90)),
                "8000-8010:80-90/tcp",
            ),
            (
                "65535:1-1",
                tcp(None, range(65535, 65535), range(1, 1)),
                "65535:1/tcp",
            ),
        ] {
            assert_eq!(text.parse(), Ok(rule.clone()), "{text}");
            assert_eq!(rule.to_string(), written, "{text}");
        }
    }

    #[test]
    fn malformed_rules() {
        use SpecError as E;
        let port = |text: &str| E::InvalidPort(text.to_owned());
        let addr = |text: &str| E::InvalidAddress(text.to_owned());
        for (text, error) in [
            ("", E::MissingGuestPort),
            ("8080:", E::MissingGuestPort),
            ("127.0.0.1:8080:", E::MissingGuestPort),
            ("/udp", E::MissingGuestPort),
            ("http:80", port("http")),
            ("8080:65536", port("65536")),
            ("8080:0", port("0")),
            ("0-3:80-83", port("0")),
            ("+8080:80", port("+8080")),
            ("8080:80-", port("")),
            ("8080: 80", port(" 80")),
            ("1-2-3:4-6", port("2-3")),
            (
                "8010-8000:80-90",
                E::ReversedRange {
                    first: 8010,
                    last: 8000,
                },
            ),
            (
                "8000-8001:80",
                E::UnequalRanges {
                    host: range(8000, 8001),
                    guest: range(80, 80),
                },
            ),
            (
                "8000:80-81",
                E::UnequalRanges {
                    host: range(8000, 8000),
                    guest: range(80, 81),
                },
            ),
            ("localhost:8080:80", addr("localhost")),
            (":8080:80", addr("")),
            ("1.2.3:8080:80", addr("1.2.3")),
            ("[fe80::1%eth0]:8080:80", addr("fe80::1%eth0")),
            ("[127.0.0.1]:8080:80", addr("127.0.0.1")),
            ("::1:8080:80", E::UnbracketedIpv6),
            ("1:2:3:4", E::UnbracketedIpv6),
            ("[::1:8080:80", E::UnclosedBracket),
            ("[::1]", E::UnclosedBracket),
            (
                "127.0.0.1:80",
                E::AddressWithoutHostPort(Ipv4Addr::LOCALHOST.into()),
            ),
            (
                "[::1]:80",
                E::AddressWithoutHostPort(Ipv6Addr::LOCALHOST.into()),
            ),
            ("127.0.0.1:1:2:3", port("1:2")),
            ("8080:80/sctp", E::UnknownProtocol("sctp".to_owned())),
            ("8080:80/", E::UnknownProtocol(String::new())),
            ("8080:80/tcp/udp", E::UnknownProtocol("tcp/udp".to_owned())),
        ] {
            assert_eq!(text.parse::<Publish>(), Err(error), "{text}");
        }
    }

    #[test]
    fn ranges_pair_up_port_by_port() {
        let pairs = |text: &str| text.parse::<Publish>().unwrap().pairs().collect::<Vec<_>>();
        assert_eq!(pairs("8080:80"), [(8080, 80)]);
        assert_eq!(
            pairs("65533-65535:1-3"),
            [(65533, 1), (65534, 2), (65535, 3)]
        );
        assert_eq!(pairs("65534-65535"), [(0, 65534), (0, 65535)]);
        assert_eq!(pairs("1-65535:1-65535").len(), 65535);
    }

    fn rules() -> impl Strategy<Value = Publish> {
        let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
        let addr = any::<Option<IpAddr>>().prop_map(|addr| addr.map(|addr| addr.to_canonical()));
        let ports = (1..=u16::MAX, 1..=u16::MAX, 0..100u16);
        (protocol, addr, ports, any::<bool>()).prop_map(
            |(protocol, host_addr, (host, guest, extra), chosen)| {
                let extra = extra.min(u16::MAX - host).min(u16::MAX - guest);
                let host_ports = if chosen {
                    PortRange::KERNEL_CHOSEN
                } else {
                    range(host, host + extra)
                };
                Publish {
                    protocol,
                    host_addr,
                    host_ports,
                    guest_ports: range(guest, guest + extra),
                }
            },
        )
    }

    proptest! {
        #[test]
        fn written_rules_read_back(rule in rules()) {
            prop_assert_eq!(rule.to_string().parse(), Ok(rule.clone()));
            prop_assert_eq!(rule.pairs().count(), rule.guest_ports.len());
        }

        #[test]
        fn any_text_is_refused_or_reads_back(text in r"[0-9a-z:/\[\].\-+% ]{0,40}|\PC{0,40}") {
            if let Ok(rule) = text.parse::<Publish>() {
                prop_assert_eq!(rule.to_string().parse(), Ok(rule));
            }
        }
    }
}
