//! Options of pasta about the guest's network: who is who on it, which of it is the host's, and
//! where the host's side of its traffic leaves from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use clap::Args;
use portfwd::InterfaceName;

use crate::cli::mac;
use crate::config::{IPV6_MTU_MIN, parse_host};
use crate::core::MacAddr;
use crate::core::dns::DNS_PORT;
use crate::core::policy::Policy;
use crate::host::Outbound;
use crate::network::{Address, Family, Network, StandIn, Template, TemplateError, Wishes};

/// Sets up the guest's network.
#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub struct Addressing {
    /// Interface of the host to take addresses and routes from [default: that of the default route]
    #[arg(short, long, value_name = "NAME")]
    interface: Option<InterfaceName>,

    /// Name of the guest's interface [default: as on the host]
    #[arg(short = 'I', long, value_name = "NAME")]
    ns_ifname: Option<InterfaceName>,

    /// Largest IP packet in bytes; 0 leaves it as it is
    #[arg(short, long, value_name = "MTU", default_value_t = DEFAULT_MTU, value_parser = mtu)]
    mtu: u16,

    /// Ethernet address that the guest sees of us
    #[arg(short = 'M', long, value_name = "MAC", default_value = OUR_MAC, value_parser = mac)]
    mac_addr: MacAddr,

    /// Ethernet address of the guest
    #[arg(long, value_name = "MAC", value_parser = mac)]
    ns_mac_addr: Option<MacAddr>,

    /// Address of the guest, one of each family [default: the host's]
    #[arg(short, long, value_name = "ADDRESS[/PREFIX]", value_parser = assigned)]
    address: Vec<(IpAddr, Option<u8>)>,

    /// Length of the IPv4 prefix, or the mask
    #[arg(short, long, value_name = "MASK", value_parser = netmask)]
    netmask: Option<u8>,

    /// Default gateway, one of each family [default: the host's]
    #[arg(short, long, value_name = "ADDRESS", value_parser = parse_host)]
    gateway: Vec<IpAddr>,

    /// IPv4 only
    #[arg(short = '4', long, conflicts_with = "ipv6_only")]
    ipv4_only: bool,

    /// IPv6 only
    #[arg(short = '6', long)]
    ipv6_only: bool,

    /// Copy no route but the default one
    #[arg(long)]
    no_copy_routes: bool,

    /// Copy no address but the first one
    #[arg(long)]
    no_copy_addrs: bool,

    /// Address that leads to the host's loopback, one of each family [default: the gateway's]
    #[arg(long, value_name = "ADDRESS|none", value_parser = host_or_none)]
    map_host_loopback: Vec<Option<IpAddr>>,

    /// As --map-host-loopback none
    #[arg(long)]
    no_map_gw: bool,

    /// Address that leads to the host under the guest's own address, one of each family
    #[arg(long, value_name = "ADDRESS|none", value_parser = host_or_none)]
    map_guest_addr: Vec<Option<IpAddr>>,

    /// Address where the guest asks the host's resolvers, one of each family
    #[arg(long, value_name = "ADDRESS", value_parser = parse_host)]
    dns_forward: Vec<IpAddr>,

    /// The resolver, one of each family [default: those of resolv.conf, which is followed]
    #[arg(long, value_name = "ADDRESS")]
    dns_host: Vec<IpAddr>,

    /// Address that the guest's traffic leaves the host from, one of each family
    #[arg(short, long, value_name = "ADDRESS")]
    outbound: Vec<IpAddr>,

    /// Interface that the guest's IPv4 traffic leaves the host by
    #[arg(long, value_name = "NAME")]
    outbound_if4: Option<InterfaceName>,

    /// Interface that the guest's IPv6 traffic leaves the host by
    #[arg(long, value_name = "NAME")]
    outbound_if6: Option<InterfaceName>,

    /// No TCP
    #[arg(long)]
    no_tcp: bool,

    /// No UDP
    #[arg(long)]
    no_udp: bool,

    /// No ICMP echo
    #[arg(long)]
    no_icmp: bool,
}

/// What the options say, with what the host has where they say nothing.
#[derive(Debug)]
pub struct Plan {
    pub tap: String,
    pub mtu: Option<u16>,
    pub guest_mac: Option<MacAddr>,
    pub our_mac: MacAddr,
    pub network: Network,
    pub policy: Policy,
    pub outbound: Outbound,
    pub resolvers: Vec<SocketAddr>,
}

/// A network that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum AddressingError {
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error("external interface {0} is not usable: it has no address")]
    NoAddress(InterfaceName),
}

/// A likeness of nothing has no name to copy.
const DEFAULT_NAME: &str = "tap0";
/// A TCP payload that is a multiple of 8, within what a tap takes.
const DEFAULT_MTU: u16 = 65520;
const OUR_MAC: &str = "9a:55:9a:55:9a:55";

impl Addressing {
    /// Looks at the host: to be called in its network namespace.
    pub fn plan(&self) -> Result<Plan, AddressingError> {
        let template4 = match self.ipv6_only {
            true => None,
            false => self.template::<Ipv4Addr>(self.outbound_if4)?,
        };
        let has_v6 = !self.ipv4_only && (self.mtu == 0 || self.mtu >= IPV6_MTU_MIN);
        let template6 = match has_v6 {
            true => self.template::<Ipv6Addr>(self.outbound_if6)?,
            false => None,
        };
        if let (Some(interface), None, None) = (self.interface, &template4, &template6) {
            return Err(AddressingError::NoAddress(interface));
        }
        let of_host = template4.as_ref().map(|template| &template.interface);
        let of_host = of_host.or(template6.as_ref().map(|template| &template.interface));
        let tap = match (self.ns_ifname, of_host) {
            (Some(name), _) => name.to_string(),
            (None, Some(name)) => name.clone(),
            (None, None) => DEFAULT_NAME.to_owned(),
        };
        let v4 = self.family(template4, self.netmask);
        let v6 = self.family(template6, None);
        Ok(Plan {
            tap,
            mtu: Some(self.mtu).filter(|mtu| *mtu > 0),
            guest_mac: self.ns_mac_addr,
            our_mac: self.mac_addr,
            network: Network {
                v4: (!self.ipv6_only).then_some(v4),
                v6: has_v6.then_some(v6),
            },
            policy: Policy {
                encrypted_dns: true,
                no_tcp: self.no_tcp,
                no_udp: self.no_udp,
                no_echo: self.no_icmp,
                ..Policy::default()
            },
            outbound: Outbound {
                v4: last_of(&self.outbound),
                v6: last_of(&self.outbound),
                interface_v4: self.outbound_if4,
                interface_v6: self.outbound_if6,
            },
            resolvers: self.resolvers(),
        })
    }

    fn template<A: Address>(
        &self,
        outbound: Option<InterfaceName>,
    ) -> Result<Option<Template<A>>, TemplateError> {
        let name = self.interface.or(outbound);
        Template::read(name.as_ref().map(InterfaceName::as_str))
    }

    /// What the guest has of the family `A`.
    fn family<A: StandIn>(&self, template: Option<Template<A>>, mask: Option<u8>) -> Family<A> {
        let of_family = |&(ip, len): &(IpAddr, Option<u8>)| Some((A::of(ip)?, len));
        let (address, prefix_len) = match self.address.iter().rev().find_map(of_family) {
            Some((address, len)) => (Some(address), len.or(mask)),
            None => (None, mask),
        };
        let wishes = Wishes {
            address,
            prefix_len,
            gateway: last_of(&self.gateway),
            one_address: self.no_copy_addrs,
            one_route: self.no_copy_routes,
        };
        let family = Family::likeness(template.as_ref(), &wishes);
        let loopback = mapped(&self.map_host_loopback);
        let loopback = loopback.unwrap_or_else(|| (!self.no_map_gw).then_some(family.gateway));
        Family {
            dns: last_of(&self.dns_forward),
            host_loopback: loopback,
            shared_host: mapped(&self.map_guest_addr).flatten(),
            ..family
        }
    }

    fn resolvers(&self) -> Vec<SocketAddr> {
        let v4 = last_of::<Ipv4Addr>(&self.dns_host).map(IpAddr::from);
        let v6 = last_of::<Ipv6Addr>(&self.dns_host).map(IpAddr::from);
        let with_port = |ip| SocketAddr::new(ip, DNS_PORT);
        v4.into_iter().chain(v6).map(with_port).collect()
    }
}

/// The last one of the family `A`.
fn last_of<A: Address>(ips: &[IpAddr]) -> Option<A> {
    ips.iter().rev().find_map(|ip| A::of(*ip))
}

/// What a mapping option says last of the family `A`: an address, none, or nothing at all.
fn mapped<A: Address>(values: &[Option<IpAddr>]) -> Option<Option<A>> {
    values.iter().rev().find_map(|value| match value {
        Some(ip) => A::of(*ip).map(Some),
        None => Some(None),
    })
}

fn mtu(text: &str) -> Result<u16, &'static str> {
    /// IPv4 needs 68 (RFC 791 3.2), and so does Linux; a tap takes no more than the other.
    const RANGE: std::ops::RangeInclusive<u16> = 68..=65521;
    let number = text
        .parse()
        .ok()
        .filter(|mtu| *mtu == 0 || RANGE.contains(mtu));
    number.ok_or("expected 0, or from 68 to 65521")
}

fn assigned(text: &str) -> Result<(IpAddr, Option<u8>), &'static str> {
    let Some((address, len)) = text.split_once('/') else {
        return Ok((parse_host(text)?, None));
    };
    let address = parse_host(address)?;
    let max = if address.is_ipv4() { 32 } else { 128 };
    match len.parse() {
        Ok(len) if len <= max => Ok((address, Some(len))),
        _ => Err("the prefix is no length that this family has"),
    }
}

fn host_or_none(text: &str) -> Result<Option<IpAddr>, &'static str> {
    match text {
        "none" => Ok(None),
        _ => parse_host(text).map(Some),
    }
}

/// A number of bits, or a mask in dotted decimal.
fn netmask(text: &str) -> Result<u8, &'static str> {
    if let Ok(len) = text.parse()
        && len <= 32
    {
        return Ok(len);
    }
    let mask: Ipv4Addr = text
        .parse()
        .map_err(|_| "expected a number up to 32, or a mask")?;
    let bits = mask.to_bits();
    match bits.leading_ones() + bits.trailing_zeros() {
        32 => Ok(bits.leading_ones() as u8),
        _ => Err("a mask has no gaps"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::core::addresses::Alias;
    use crate::testing::in_namespaces;

    #[derive(Parser)]
    struct Words {
        #[command(flatten)]
        addressing: Addressing,
    }

    /// In a network namespace without a network.
    fn plan(line: &str) -> Plan {
        let words = std::iter::once("pasta").chain(line.split_whitespace());
        let words = Words::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
        words.addressing.plan().unwrap()
    }

    #[test]
    fn options_arrive() {
        in_namespaces(module_path!(), "options_arrive", || {
            let plan = plan(
                "-a 10.0.2.100 -a 10.0.3.100/16 -n 24 -g 10.0.2.2 -a fd00::100/96 -I eth7 -m 0 \
                 --dns-forward 10.0.2.3 --dns-host 192.0.2.53 --map-guest-addr fd00::5 \
                 -o 192.0.2.9 --outbound-if6 lo --no-icmp",
            );
            assert_eq!((plan.tap.as_str(), plan.mtu), ("eth7", None));
            let (v4, v6) = (plan.network.v4.unwrap(), plan.network.v6.unwrap());
            let first = v4.first().unwrap();
            assert_eq!(
                (first.address.to_string().as_str(), first.prefix_len),
                ("10.0.3.100", 16)
            );
            assert_eq!(v4.dns, Some([10, 0, 2, 3].into()));
            assert_eq!((v6.first().unwrap().prefix_len, v6.dns), (96, None));
            assert_eq!(v4.host_loopback, Some(v4.gateway));
            assert_eq!((v4.shared_host, v6.shared_host.is_some()), (None, true));
            assert_eq!(plan.outbound.v4, Some([192, 0, 2, 9].into()));
            assert_eq!(plan.outbound.interface_v6.unwrap().as_str(), "lo");
            assert_eq!(plan.resolvers, ["192.0.2.53:53".parse().unwrap()]);
            assert!(plan.policy.no_echo && !plan.policy.no_tcp);
        });
    }

    #[test]
    fn the_gateway_is_the_host_unless_told_otherwise() {
        in_namespaces(
            module_path!(),
            "the_gateway_is_the_host_unless_told_otherwise",
            || {
                let aliases = |line| plan(line).network.addresses().aliases;
                let alias = |shown: &str, host: &str| Alias {
                    shown: shown.parse().unwrap(),
                    host: host.parse().unwrap(),
                };
                let [v4, v6] = [alias("169.254.2.2", "127.0.0.1"), alias("fe80::1", "::1")];
                assert_eq!(aliases(""), [v4, v6]);
                assert_eq!(aliases("-4"), [v4]);
                assert_eq!(aliases("-6"), [v6]);
                // IPv6 needs larger packets.
                assert_eq!(aliases("-m 1279"), [v4]);
                assert_eq!(aliases("--no-map-gw"), []);
                assert_eq!(aliases("--map-host-loopback none"), []);
                let mapped = alias("192.0.2.5", "127.0.0.1");
                assert_eq!(aliases("--map-host-loopback 192.0.2.5"), [mapped, v6]);
                assert_eq!(
                    aliases("--no-map-gw --map-host-loopback 192.0.2.5"),
                    [mapped]
                );
                let guest = alias("192.0.2.6", "169.254.2.1");
                assert_eq!(aliases("--no-map-gw --map-guest-addr 192.0.2.6"), [guest]);
                assert_eq!(
                    aliases("--no-map-gw --map-guest-addr 192.0.2.6 --map-guest-addr none"),
                    []
                );
            },
        );
    }

    #[test]
    fn masks_are_lengths_or_addresses() {
        for (text, len) in [
            ("24", 24),
            ("0", 0),
            ("255.255.240.0", 20),
            ("255.255.255.255", 32),
        ] {
            assert_eq!(netmask(text), Ok(len), "{text}");
        }
        for text in ["33", "255.0.255.0", "0.0.0.255", "x"] {
            assert!(netmask(text).is_err(), "{text}");
        }
    }
}
