//! Subnets of networks of containers: which address is whose, and which subnets are free.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netstack::config::{ConfigError, parse_guest_network};
use netstack::core::addresses::Prefix;
use serde::{Deserialize, Serialize};

/// A subnet of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    #[serde(with = "prefix_text")]
    pub subnet: Prefix,
    /// The way out; none of an internal network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// Why a subnet is of no use.
#[derive(Debug, thiserror::Error)]
pub enum SubnetError {
    #[error("{0:?} is not a subnet: expected ADDRESS/PREFIX, as in 10.89.0.0/24 or fd89::/64")]
    NotSubnet(String),
    #[error("subnet {0} is too small: it has no room for a gateway and two containers")]
    Small(Prefix),
    #[error("{0}")]
    Unusable(ConfigError),
    #[error("gateway {gateway} not in subnet {subnet}")]
    Gateway { gateway: IpAddr, subnet: Prefix },
}

/// Reads `--subnet`. Bits behind the prefix are cleared, as Podman does.
pub fn parse(text: &str) -> Result<Prefix, SubnetError> {
    let not_subnet = || SubnetError::NotSubnet(text.to_owned());
    let (ip, len) = text.split_once('/').ok_or_else(not_subnet)?;
    let ip: IpAddr = ip.parse().map_err(|_| not_subnet())?;
    let len: u8 = len.parse().map_err(|_| not_subnet())?;
    let most = Prefix::host(ip).len;
    if len > most {
        return Err(not_subnet());
    }
    let prefix = Prefix::around(ip, len);
    if len > most - 2 {
        return Err(SubnetError::Small(prefix));
    }
    parse_guest_network(&prefix.to_string()).map_err(SubnetError::Unusable)
}

impl Subnet {
    /// One with the usual gateway.
    pub fn with_gateway(subnet: Prefix) -> Self {
        Self {
            subnet,
            gateway: address(subnet, 1),
        }
    }

    pub fn has(&self, ip: IpAddr) -> bool {
        self.subnet.contains(ip)
    }

    /// What the bridge has, which answers for the network: the gateway, or, where there is no way
    /// out, the first address.
    pub fn own(&self) -> Option<IpAddr> {
        self.gateway.or_else(|| address(self.subnet, 1))
    }

    /// Whether a container may have this address.
    pub fn is_for_containers(&self, ip: IpAddr) -> bool {
        let ends = [Some(self.subnet.network), last(self.subnet), self.own()];
        self.has(ip) && !ends.contains(&Some(ip))
    }

    /// The lowest address for a container that `is_taken` does not know.
    pub fn lowest_free(&self, is_taken: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        /// More containers than one user can have.
        const TRIED: u32 = 1 << 17;
        (1..TRIED)
            .map_while(|number| address(self.subnet, number))
            .find(|ip| self.is_for_containers(*ip) && !is_taken(*ip))
    }
}

/// The address with this number in a subnet.
fn address(subnet: Prefix, number: u32) -> Option<IpAddr> {
    let ip = match subnet.network {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits().checked_add(number)?).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits().checked_add(number.into())?).into(),
    };
    subnet.contains(ip).then_some(ip)
}

/// The broadcast address of one of IPv4.
fn last(subnet: Prefix) -> Option<IpAddr> {
    match subnet.network {
        IpAddr::V4(ip) => {
            let hosts = u32::MAX.checked_shr(subnet.len.into()).unwrap_or(0);
            Some(Ipv4Addr::from_bits(ip.to_bits() | hosts).into())
        }
        IpAddr::V6(_) => None,
    }
}

/// The first of the usual subnets of IPv4, 10.89.0.0/24 and up, that overlaps with none of `taken`.
pub fn free_v4(taken: &[Prefix]) -> Option<Prefix> {
    let mut all = (89..=255u8).flat_map(|second| (0..=255u8).map(move |third| (second, third)));
    all.find_map(|(second, third)| {
        let prefix = Prefix::around([10, second, third, 0].into(), 24);
        (!taken.iter().any(|other| other.overlaps(&prefix))).then_some(prefix)
    })
}

/// One of IPv6 that is for everybody to choose, RFC 4193, of these random bytes.
pub fn random_v6(random: [u8; 7]) -> Prefix {
    let mut bytes = [0; 16];
    bytes[0] = 0xfd;
    bytes[1..8].copy_from_slice(&random);
    Prefix::around(Ipv6Addr::from(bytes).into(), 64)
}

/// Where the host's own routes lead, default routes aside: containers in such a subnet would have
/// other neighbours than the host has.
pub fn routed_by_host() -> Vec<Prefix> {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let v4 = read("/proc/net/route");
    let v6 = read("/proc/net/ipv6_route");
    let v4 = v4.lines().skip(1).filter_map(route_v4);
    v4.chain(v6.lines().filter_map(route_v6)).collect()
}

/// `Iface Destination Gateway Flags RefCnt Use Metric Mask …`, numbers in the machine's order.
fn route_v4(line: &str) -> Option<Prefix> {
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    let number = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
    let (network, mask) = (number(1)?.to_ne_bytes(), number(7)?.to_ne_bytes());
    let len = u32::from_be_bytes(mask).count_ones() as u8;
    (len > 0).then(|| Prefix::around(network.into(), len))
}

/// `destination length source length next-hop …`; link-local, multicast and the host itself are
/// everybody's.
fn route_v6(line: &str) -> Option<Prefix> {
    let mut fields = line.split_ascii_whitespace();
    let ip = Ipv6Addr::from_bits(u128::from_str_radix(fields.next()?, 16).ok()?);
    let len = u8::from_str_radix(fields.next()?, 16).ok()?;
    let is_everybodys = ip.is_multicast() || ip.is_unicast_link_local() || ip.is_loopback();
    (len > 0 && !is_everybodys).then(|| Prefix::around(ip.into(), len))
}

/// For serde's `with`.
pub mod prefix_text {
    use netstack::core::addresses::Prefix;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(prefix: &Prefix, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(prefix)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Prefix, D::Error> {
        let text = String::deserialize(deserializer)?;
        Prefix::read(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is not a subnet")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        Prefix::read(text).expect(text)
    }

    #[test]
    fn the_lowest_free_address_is_given() {
        let subnet = Subnet::with_gateway(prefix("10.89.0.0/30"));
        assert_eq!(subnet.gateway, Some([10, 89, 0, 1].into()));
        let second = IpAddr::from([10, 89, 0, 2]);
        assert_eq!(subnet.lowest_free(|_| false), Some(second));
        // The last is the broadcast address.
        assert_eq!(subnet.lowest_free(|ip| ip == second), None);
        let v6 = Subnet::with_gateway(prefix("fd89::/64"));
        assert_eq!(v6.lowest_free(|_| false), "fd89::2".parse().ok());
        let internal = Subnet {
            gateway: None,
            ..subnet
        };
        assert_eq!(internal.lowest_free(|_| false), Some(second));
    }

    #[test]
    fn subnets_are_read_as_podman_reads_them() {
        assert_eq!(parse("10.89.0.5/24").unwrap(), prefix("10.89.0.0/24"));
        for (text, why) in [
            ("10.89.0.0", "ADDRESS/PREFIX"),
            ("10.89.0.0/33", "ADDRESS/PREFIX"),
            ("10.89.0.0/31", "too small"),
            ("0.0.0.0/1", "at least 8 bits"),
            ("127.0.0.0/24", "cannot use"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn free_subnets_pass_over_what_is_taken() {
        let taken = [prefix("10.89.0.0/24"), prefix("10.89.1.128/25")];
        assert_eq!(free_v4(&taken), Some(prefix("10.89.2.0/24")));
        assert_eq!(free_v4(&[prefix("10.0.0.0/8")]), None);
        assert!(prefix("fd00::/8").overlaps(&random_v6([7; 7])));
    }

    #[test]
    fn the_hosts_routes_are_read() {
        let line = "eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0";
        assert_eq!(route_v4(line), Some(prefix("192.168.1.0/24")));
        let default = "eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0";
        assert_eq!(route_v4(default), None);
        let v6 = "fd000000000000000000000000000000 40 00000000000000000000000000000000 00 0 1 2 3 4 eth0";
        assert_eq!(route_v6(v6), Some(prefix("fd00::/64")));
        let own = "fe800000000000000000000000000000 40 00000000000000000000000000000000 00 0 1 2 3 4 eth0";
        assert_eq!(route_v6(own), None);
    }
}
