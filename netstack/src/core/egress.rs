//! Where the guest may go by its user's rules. What nobody may reach in any case, and what an
//! address means, is decided in `policy`, which asks here about everything that would leave.
//!
//! A rule is `ACTION[:[PROTOCOL:]TO[:PORTS]]`:
//! - `ACTION` is `allow` or `deny`; alone it is about everything;
//! - `PROTOCOL` is `tcp`, `udp` or `icmp` (echo); without one a rule is about all of them;
//! - `TO` is an address, a subnet such as `10.0.0.0/8` or `[2001:db8::]/32` (IPv6 in brackets),
//!   `host` (addresses that lead to the host), `dns` (the forwarder) or `any`;
//! - `PORTS` is a port or a range such as `8000-8999`, of TCP and UDP.

use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::addresses::{Addresses, Prefix};
use super::flow::Protocol;

/// Rules in their order: the first one that matches decides. What none matches is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Egress(Vec<EgressRule>);

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressRule {
    action: Action,
    /// `None` is about all of them.
    protocol: Option<Protocol>,
    to: To,
    /// `None` is about all of them, and about what has no ports.
    ports: Option<RangeInclusive<u16>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Allow,
    Deny,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    Any,
    Host,
    Dns,
    Subnet(Prefix),
}

/// Why a text is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EgressError {
    #[error(
        "{0:?} is not an egress rule: expected ACTION[:[PROTOCOL:]TO[:PORTS]], such as deny, \
         allow:tcp:198.51.100.0/24:443 or deny:[2001:db8::]/32; {1}"
    )]
    NotRule(String, &'static str),
    #[error("{0:?} has bits behind its prefix: the subnet is {1}/{2}")]
    HostBits(String, IpAddr, u8),
    #[error("{0} egress rules are too many: at most {MAX_RULES}")]
    TooMany(usize),
}

/// Each packet that belongs to no connection is held against all of them.
const MAX_RULES: usize = 1024;

impl Egress {
    pub fn new(rules: Vec<EgressRule>) -> Result<Self, EgressError> {
        Self::check_count(rules.len())?;
        Ok(Self(rules))
    }

    /// Whether there may be so many rules.
    pub fn check_count(count: usize) -> Result<(), EgressError> {
        match count <= MAX_RULES {
            true => Ok(()),
            false => Err(EgressError::TooMany(count)),
        }
    }

    pub fn rules(&self) -> &[EgressRule] {
        &self.0
    }

    /// Whether a guest on the network of `addresses` may send to `remote`, as it is written.
    pub fn allows(&self, addresses: &Addresses, protocol: Protocol, remote: SocketAddr) -> bool {
        let matching = self
            .0
            .iter()
            .find(|rule| rule.matches(addresses, protocol, remote));
        matching.is_none_or(|rule| rule.action == Action::Allow)
    }
}

impl EgressRule {
    fn matches(&self, addresses: &Addresses, protocol: Protocol, remote: SocketAddr) -> bool {
        let ip = remote.ip();
        let is_there = match self.to {
            To::Any => true,
            To::Host => addresses.host_behind(ip).is_some(),
            To::Dns => addresses.is_dns(ip),
            To::Subnet(subnet) => subnet.contains(ip),
        };
        let has_port = match &self.ports {
            None => true,
            Some(ports) => protocol != Protocol::Echo && ports.contains(&remote.port()),
        };
        is_there && has_port && self.protocol.is_none_or(|own| own == protocol)
    }
}

impl FromStr for EgressRule {
    type Err = EgressError;

    fn from_str(text: &str) -> Result<Self, EgressError> {
        let not_rule = |why| EgressError::NotRule(text.to_owned(), why);
        let (action, rest) = match text.split_once(':') {
            Some((action, rest)) => (action, Some(rest)),
            None => (text, None),
        };
        let action = match action {
            "allow" => Action::Allow,
            "deny" => Action::Deny,
            _ => return Err(not_rule("the action is allow or deny")),
        };
        let Some(rest) = rest else {
            return Ok(Self {
                action,
                protocol: None,
                to: To::Any,
                ports: None,
            });
        };
        let (protocol, rest) = match rest.split_once(':') {
            Some(("tcp", rest)) => (Some(Protocol::Tcp), rest),
            Some(("udp", rest)) => (Some(Protocol::Udp), rest),
            Some(("icmp", rest)) => (Some(Protocol::Echo), rest),
            _ => (None, rest),
        };
        let (to, ports) = split_ports(rest);
        let ports = ports
            .map(|ports| parse_ports(ports).ok_or_else(|| not_rule("a port is 1 to 65535")))
            .transpose()?;
        if ports.is_some() && protocol == Some(Protocol::Echo) {
            return Err(not_rule("icmp has no ports"));
        }
        let to = match to {
            "any" => To::Any,
            "host" => To::Host,
            "dns" => To::Dns,
            subnet => {
                let prefix = parse_subnet(subnet)
                    .ok_or_else(|| not_rule("the target is any, host, dns, or an address"))?;
                let Prefix { network, len } = Prefix::around(prefix.network, prefix.len);
                if network != prefix.network {
                    return Err(EgressError::HostBits(text.to_owned(), network, len));
                }
                To::Subnet(prefix)
            }
        };
        Ok(Self {
            action,
            protocol,
            to,
            ports,
        })
    }
}

/// What is behind the last colon, if that is not one of an IPv6 address.
fn split_ports(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((to, ports)) if !ports.contains(']') => (to, Some(ports)),
        _ => (text, None),
    }
}

fn parse_ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let [first, last] = [first, last].map(|port| port.parse().ok().filter(|port| *port != 0));
    let (first, last): (u16, u16) = (first?, last?);
    (first <= last).then_some(first..=last)
}

/// `10.0.0.0/8`, `[2001:db8::]/32`, or an address alone.
fn parse_subnet(text: &str) -> Option<Prefix> {
    let (address, len) = match text.split_once('/') {
        Some((address, len)) => (address, Some(len.parse().ok()?)),
        None => (text, None),
    };
    let network = match address.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.into(),
        None => address.parse::<Ipv4Addr>().ok()?.into(),
    };
    let host = Prefix::host(network);
    let len = len.unwrap_or(host.len);
    (len <= host.len).then_some(Prefix { network, len })
}

/// As it is read, in the shortest form.
impl Display for EgressRule {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(match self.action {
            Action::Allow => "allow",
            Action::Deny => "deny",
        })?;
        match self.protocol {
            Some(Protocol::Tcp) => f.write_str(":tcp")?,
            Some(Protocol::Udp) => f.write_str(":udp")?,
            Some(Protocol::Echo) => f.write_str(":icmp")?,
            None => {}
        }
        match self.to {
            To::Any if self.protocol.is_none() && self.ports.is_none() => {}
            To::Any => f.write_str(":any")?,
            To::Host => f.write_str(":host")?,
            To::Dns => f.write_str(":dns")?,
            To::Subnet(subnet) => write_subnet(subnet, f)?,
        }
        match &self.ports {
            None => Ok(()),
            Some(ports) if ports.start() == ports.end() => write!(f, ":{}", ports.start()),
            Some(ports) => write!(f, ":{}-{}", ports.start(), ports.end()),
        }
    }
}

fn write_subnet(subnet: Prefix, f: &mut Formatter) -> fmt::Result {
    match subnet.network {
        IpAddr::V4(ip) => write!(f, ":{ip}")?,
        IpAddr::V6(ip) => write!(f, ":[{ip}]")?,
    }
    match subnet.len == Prefix::host(subnet.network).len {
        true => Ok(()),
        false => write!(f, "/{}", subnet.len),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::addresses::Alias;

    fn egress(rules: &[&str]) -> Egress {
        let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        Egress::new(rules).unwrap()
    }

    fn allows(rules: &[&str], protocol: Protocol, remote: &str) -> bool {
        let mut addresses = Addresses::of_the_tests();
        addresses.aliases = vec![Alias {
            shown: [10, 0, 2, 2].into(),
            host: Ipv4Addr::LOCALHOST.into(),
        }];
        egress(rules).allows(&addresses, protocol, remote.parse().unwrap())
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        let rules = [
            "deny:tcp:198.51.100.7:22-25",
            "allow:198.51.100.0/24",
            "allow:udp:any:53",
            "allow:tcp:[2001:db8::]/32:443",
            "allow:icmp:any",
            "deny",
        ];
        for (protocol, remote, expected) in [
            (Protocol::Tcp, "198.51.100.7:22", false),
            (Protocol::Tcp, "198.51.100.7:25", false),
            (Protocol::Tcp, "198.51.100.7:26", true),
            (Protocol::Udp, "198.51.100.7:22", true),
            (Protocol::Tcp, "198.51.101.7:80", false),
            (Protocol::Udp, "203.0.113.1:53", true),
            (Protocol::Tcp, "203.0.113.1:53", false),
            (Protocol::Tcp, "[2001:db8::1]:443", true),
            (Protocol::Tcp, "[2001:db8::1]:80", false),
            (Protocol::Tcp, "[2001:db9::1]:443", false),
            (Protocol::Echo, "203.0.113.1:0", true),
        ] {
            assert_eq!(allows(&rules, protocol, remote), expected, "{remote}");
        }
    }

    #[test]
    fn what_no_rule_matches_is_allowed() {
        assert!(allows(&[], Protocol::Tcp, "198.51.100.7:80"));
        let rules = ["deny:10.0.0.0/8", "deny:any:25"];
        assert!(allows(&rules, Protocol::Tcp, "198.51.100.7:80"));
        assert!(!allows(&rules, Protocol::Udp, "198.51.100.7:25"));
        assert!(!allows(&rules, Protocol::Echo, "10.1.2.3:0"));
    }

    #[test]
    fn host_and_forwarder_have_names() {
        let rules = ["allow:tcp:host:5432", "allow:dns", "deny"];
        assert!(allows(&rules, Protocol::Tcp, "10.0.2.2:5432"));
        assert!(!allows(&rules, Protocol::Tcp, "10.0.2.2:22"));
        assert!(allows(&rules, Protocol::Udp, "10.0.2.3:53"));
        assert!(allows(&rules, Protocol::Tcp, "[fd00::3]:53"));
        assert!(!allows(&rules, Protocol::Tcp, "[fd00::2]:5432"));
    }

    #[test]
    fn rules_are_written_as_they_are_read() {
        for text in [
            "allow",
            "deny:tcp:any",
            "deny:any:25",
            "allow:host",
            "allow:udp:dns:53",
            "deny:0.0.0.0/0",
            "deny:[::]/0",
            "allow:tcp:[2001:db8::1]:8000-8999",
            "allow:icmp:192.0.2.1",
        ] {
            assert_eq!(text.parse::<EgressRule>().unwrap().to_string(), text);
        }
        let with_all_bits: EgressRule = "deny:192.0.2.1/32".parse().unwrap();
        assert_eq!(with_all_bits.to_string(), "deny:192.0.2.1");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("", "allow or deny"),
            ("block", "allow or deny"),
            ("deny:", "any, host, dns"),
            ("deny:sctp:any", "a port"),
            ("deny:example.org", "any, host, dns"),
            ("deny:2001:db8::1", "any, host, dns"),
            ("deny:[2001:db8::1", "any, host, dns"),
            ("deny:[2001:db8::]/129", "any, host, dns"),
            ("deny:10.0.0.0/33", "any, host, dns"),
            ("deny:10.0.0.0/", "any, host, dns"),
            ("deny:any:0", "a port"),
            ("deny:any:9-8", "a port"),
            ("deny:any:65536", "a port"),
            ("deny:icmp:any:8", "icmp has no ports"),
            ("deny:10.0.0.1/8", "the subnet is 10.0.0.0/8"),
            ("deny:[2001:db8::1]/32", "the subnet is 2001:db8::/32"),
        ] {
            let error = text.parse::<EgressRule>().unwrap_err().to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
        let rule: EgressRule = "deny".parse().unwrap();
        let many = Egress::new(vec![rule; MAX_RULES + 1]).unwrap_err();
        assert_eq!(many, EgressError::TooMany(MAX_RULES + 1));
    }
}
