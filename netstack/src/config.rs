//! What the helper is to do, after every argument was checked: no later step meets a value that
//! cannot work.
//!
//! The addresses that matter in a subnet are fixed numbers of it, as everywhere in this family of
//! programs: gateway .2, DNS forwarder .3, guest .100 (RFC 1918 or RFC 4193 addresses by default).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::RawFd;
use std::path::PathBuf;

use portfwd::SpecError;
use rustix::process::Pid;

use crate::control::HeededSignals;
use crate::core::MacAddr;
use crate::core::addresses::Prefix;
use crate::core::autoconf::Autoconf;
use crate::core::dns::{HostNameError, HostNames};
use crate::core::egress::EgressError;
use crate::core::policy::Policy;
use crate::core::special_purpose::{is_another_host, stands_for};
use crate::core::tcp::Promote;
use crate::device::DeviceChoice;
use crate::forwards::Forwards;
use crate::guest::{TargetName, UserNamespace};
use crate::host::Outbound;
use crate::network::{Family, Network, NoHostAddress};
use crate::publish::PublishTo;
use crate::sandbox::root::Ids;

/// A complete and consistent set of instructions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub attachment: Attachment,
    /// Joined first.
    pub user_namespace: UserNamespace,
    /// A network namespace that was named by its path may be unmounted there: that is no reason to
    /// end.
    pub outlives_path: bool,
    pub heeded_signals: HeededSignals,
    /// Who the host's root becomes.
    pub instead_of_root: Ids,
    /// What is opened for an attachment by name.
    pub device: DeviceChoice,
    /// Whether links, addresses and routes in the guest are ours to set.
    pub configure: bool,
    /// Loopback comes up in any case.
    pub loopback_up: bool,
    /// Bytes of an IP packet on the guest's link, from 68 to 65,521; from [`IPV6_MTU_MIN`] where
    /// there is IPv6. `None` leaves the link as it is, and the guest's own idea of it.
    pub mtu: Option<u16>,
    /// The tap's Ethernet address, if it is to be this one.
    pub guest_mac: Option<MacAddr>,
    /// Ours on the guest's link; otherwise it is made of the gateway's address.
    pub our_mac: Option<MacAddr>,
    pub network: Network,
    /// What a guest is told that configures itself.
    pub autoconf: Autoconf,
    pub policy: Policy,
    /// Addresses in the guest's subnets that are somebody's on the host's network all the same.
    pub beyond: Vec<IpAddr>,
    /// Networks of containers that the guest routes, which keep their own addresses.
    pub behind: Vec<Prefix>,
    pub outbound: Outbound,
    /// What the forwarder answers itself.
    pub names: HostNames,
    /// Those that answer the guest's queries; none for those of resolv.conf, which is followed.
    pub resolvers: Vec<SocketAddr>,
    pub publish: Vec<PublishTo>,
    /// Inherited sockets, each with its single-port rule.
    pub publish_fds: Vec<(RawFd, PublishTo)>,
    /// Ports in pasta's words.
    pub forwards: Forwards,
    pub ready_fd: Option<RawFd>,
    pub exit_fd: Option<RawFd>,
    pub status_socket: Option<PathBuf>,
    pub metrics_socket: Option<PathBuf>,
    /// Where slirp4netns's API is served.
    pub api_socket: Option<PathBuf>,
    /// Where a capture of all frames goes.
    pub pcap: Option<PathBuf>,
    /// In bytes.
    pub pcap_limit: Option<u64>,
    pub promote: Promote,
    /// Capabilities over the host's own network stay, where the guest's belongs to the same user
    /// namespace.
    pub keep_host_net_admin: bool,
    /// Without an empty root directory, which takes CAP_SYS_ADMIN in the guest's user namespace,
    /// the helper does not start. It gets one wherever it can.
    pub must_have_empty_root: bool,
}

/// Where the guest is, and the tap in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attachment {
    /// A tap of this name is made there, or found.
    Namespace { target: TargetName, tap: String },
    /// An inherited descriptor of a tap, which is in the guest already.
    Tap(RawFd),
}

/// An argument that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{0:?} is not a process ID (with --netns-type pid)")]
    NotProcess(String),
    #[error("{0:?} is not a subnet: expected ADDRESS/PREFIX, as in {1}")]
    NotSubnet(String, &'static str),
    #[error("subnet {0}: {1} has bits beyond the prefix; the network is {2}")]
    HostBits(String, IpAddr, IpAddr),
    #[error("subnet {0}: the prefix must be from {1} to {2}, to hold the guest's address .100")]
    PrefixLength(String, u8, u8),
    #[error(
        "subnet {0}: a guest cannot use loopback, link-local, multicast or reserved addresses, nor those that stand for \
         others"
    )]
    SpecialSubnet(String),
    #[error("guest network {0}: the prefix must be at least {1} bits long")]
    LargeNetwork(Prefix, u8),
    #[error("guest network {0}: the guest has no address of this family")]
    NetworkFamily(Prefix),
    #[error("guest network {0} overlaps with {1}")]
    NetworkOverlap(Prefix, Prefix),
    #[error("at most {MAX_GUEST_NETWORKS} guest networks, not {0}")]
    ManyNetworks(usize),
    #[error("port published at {0}: that is neither the guest's nor in a --guest-network")]
    PublishAddress(IpAddr),
    #[error(transparent)]
    HostName(#[from] HostNameError),
    #[error(transparent)]
    Egress(#[from] EgressError),
    #[error("{0} cannot stand for the host: {1}")]
    HostAddress(IpAddr, NoHostAddress),
    #[error("{0:?} is not a publishing rule: {1}")]
    Publish(String, SpecError),
    #[error("{0:?}: expected FD=RULE, as in 5=127.0.0.1:8080:80/tcp")]
    PublishFd(String),
    #[error("--publish-fd {0}: a descriptor serves one port, the rule has a range")]
    PublishFdRange(String),
    #[error("descriptor {0} is one of the standard three; pass 3 or higher")]
    StandardFd(RawFd),
    #[error("descriptor {0} is given twice")]
    RepeatedFd(RawFd),
    #[error(
        "status socket path {0:?} has {1} bytes; a unix socket's has at most {SOCKET_PATH_MAX}"
    )]
    StatusPath(PathBuf, usize),
    #[error("the specified API socket path is too long (>= {})", SOCKET_PATH_MAX + 1)]
    ApiPath,
}

/// Least bytes of an IP packet that IPv6 needs on a link (RFC 8200 5).
pub const IPV6_MTU_MIN: u16 = 1280;

/// What the link takes that nobody has given another (RFC 894).
pub const ETHERNET_MTU: u16 = 1500;

/// A tap takes 65,521 at most, and 65,520 leaves a TCP payload that is a multiple of 8.
pub const MTU_RANGE: std::ops::RangeInclusive<u16> = IPV6_MTU_MIN..=65520;

/// Customary in this family of programs since slirp.
pub const DEFAULT_SUBNET_V4: &str = "10.0.2.0/24";

/// RFC 4193 asks for a random one; nobody but the guest and us ever sees this.
pub const DEFAULT_SUBNET_V6: &str = "fd00::/64";

/// `sun_path` without its terminating zero (unix(7)).
pub const SOCKET_PATH_MAX: usize = 107;

/// How a target is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    Pid,
    Path,
}

/// Reads the target; without a `kind` a number is a process and anything else a path.
pub fn parse_target(text: &str, kind: Option<TargetKind>) -> Result<TargetName, ConfigError> {
    let process = || {
        text.parse()
            .ok()
            .filter(|pid| *pid > 0)
            .and_then(Pid::from_raw)
            .map(TargetName::Process)
    };
    let path = || TargetName::Path(text.into());
    match kind {
        Some(TargetKind::Path) => Ok(path()),
        Some(TargetKind::Pid) => process().ok_or_else(|| ConfigError::NotProcess(text.to_owned())),
        None => Ok(process().unwrap_or_else(path)),
    }
}

/// Reads `10.0.2.0/24`; `dns` says whether there is a forwarder.
pub fn parse_subnet_v4(text: &str, dns: bool) -> Result<Family<Ipv4Addr>, ConfigError> {
    let (network, prefix_len) = split_subnet::<Ipv4Addr>(text, DEFAULT_SUBNET_V4)?;
    check_prefix(text, prefix_len, 1, 25)?;
    check_host_bits(text, network.into(), prefix_len)?;
    if !is_another_host(network.into()) {
        return Err(ConfigError::SpecialSubnet(text.to_owned()));
    }
    let host = |number| Ipv4Addr::from_bits(network.to_bits() | number);
    let dns = dns.then(|| host(3));
    Ok(Family::<Ipv4Addr>::isolated(
        host(100),
        prefix_len,
        host(2),
        dns,
    ))
}

/// Reads an address that one host can have.
pub fn parse_host(text: &str) -> Result<IpAddr, &'static str> {
    let ip: IpAddr = text.parse().map_err(|_| "expected an IP address")?;
    let is_usable = match ip {
        _ if is_another_host(ip) => true,
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    is_usable
        .then_some(ip)
        .ok_or("no host can have this address")
}

/// Reads `fd00::/64`.
pub fn parse_subnet_v6(text: &str, dns: bool) -> Result<Family<Ipv6Addr>, ConfigError> {
    let (network, prefix_len) = split_subnet::<Ipv6Addr>(text, DEFAULT_SUBNET_V6)?;
    check_host_bits(text, network.into(), prefix_len)?;
    check_prefix(text, prefix_len, 3, 119)?;
    if is_translated(network) || !is_another_host(network.into()) {
        return Err(ConfigError::SpecialSubnet(text.to_owned()));
    }
    let host = |number| Ipv6Addr::from_bits(network.to_bits() | number);
    // Written like the IPv4 number, so that one rule serves both: fd00::100.
    let (guest, dns) = (host(0x100), dns.then(|| host(3)));
    Ok(Family::<Ipv6Addr>::isolated(
        guest,
        prefix_len,
        host(2),
        dns,
    ))
}

/// Reads `10.89.0.0/24` or `fd89::/64`, the network of a bridge in the guest.
pub fn parse_guest_network(text: &str) -> Result<Prefix, ConfigError> {
    let (network, len) = split_subnet::<IpAddr>(text, "10.89.0.0/24")?;
    let (least, most) = match network {
        IpAddr::V4(_) => (8, 32),
        IpAddr::V6(_) => (16, 128),
    };
    check_prefix(text, len, 0, most)?;
    check_host_bits(text, network, len)?;
    let prefix = Prefix { network, len };
    if len < least {
        return Err(ConfigError::LargeNetwork(prefix, least));
    }
    let is_special = match network {
        IpAddr::V4(_) => prefix.overlaps(&LINK_LOCAL_V4),
        IpAddr::V6(ip) => is_translated(ip),
    };
    match is_special || !is_another_host(network) {
        true => Err(ConfigError::SpecialSubnet(text.to_owned())),
        false => Ok(prefix),
    }
}

/// Each packet of the guest's is held against all of them.
pub const MAX_GUEST_NETWORKS: usize = 64;

/// RFC 3927 2.1.
const LINK_LOCAL_V4: Prefix = Prefix {
    network: IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)),
    len: 16,
};

/// Loopback, NAT64 and their like are in ::/8. What stands for an IPv4 address has its meaning
/// already.
fn is_translated(network: Ipv6Addr) -> bool {
    network.octets()[0] == 0 || stands_for(network).next().is_some()
}

/// Reads one `-p` rule.
pub fn parse_publish(text: &str) -> Result<PublishTo, ConfigError> {
    text.parse()
        .map_err(|error| ConfigError::Publish(text.to_owned(), error))
}

/// Reads one `FD=RULE`.
pub fn parse_publish_fd(text: &str) -> Result<(RawFd, PublishTo), ConfigError> {
    let (fd, rule) = text
        .split_once('=')
        .ok_or_else(|| ConfigError::PublishFd(text.to_owned()))?;
    let fd = fd
        .parse()
        .map_err(|_| ConfigError::PublishFd(text.to_owned()))?;
    let rule = parse_publish(rule)?;
    if rule.rule.guest_ports.len() != 1 {
        return Err(ConfigError::PublishFdRange(text.to_owned()));
    }
    Ok((fd, rule))
}

impl Config {
    /// A network for the interface `tap` of `target`.
    pub fn new(target: TargetName, tap: String, network: Network) -> Self {
        Self::at(Attachment::Namespace { target, tap }, network)
    }

    /// A network whose links are ours to set: nothing is published, nobody is served, and the rest
    /// is left to the kernel and the host.
    pub fn at(attachment: Attachment, network: Network) -> Self {
        Self {
            attachment,
            user_namespace: UserNamespace::Owner,
            outlives_path: false,
            heeded_signals: HeededSignals::All,
            instead_of_root: Ids::default(),
            device: DeviceChoice::Auto,
            configure: true,
            loopback_up: false,
            mtu: None,
            guest_mac: None,
            our_mac: None,
            network,
            autoconf: Autoconf::default(),
            policy: Policy::default(),
            beyond: Vec::new(),
            behind: Vec::new(),
            outbound: Outbound::default(),
            names: HostNames::default(),
            resolvers: Vec::new(),
            publish: Vec::new(),
            publish_fds: Vec::new(),
            forwards: Forwards::default(),
            ready_fd: None,
            exit_fd: None,
            status_socket: None,
            metrics_socket: None,
            api_socket: None,
            pcap: None,
            pcap_limit: None,
            promote: Promote::Auto,
            keep_host_net_admin: false,
            must_have_empty_root: false,
        }
    }

    /// What no single argument shows: descriptors or networks that clash, a path that is too long.
    pub fn check(self) -> Result<Self, ConfigError> {
        self.check_networks()?;
        let published = self.publish_fds.iter().map(|(fd, _)| *fd);
        let passed = match self.attachment {
            Attachment::Tap(fd) => Some(fd),
            Attachment::Namespace { .. } => None,
        };
        let mut seen = BTreeSet::new();
        for fd in published
            .chain(self.ready_fd)
            .chain(self.exit_fd)
            .chain(passed)
        {
            if fd < 3 {
                return Err(ConfigError::StandardFd(fd));
            }
            if !seen.insert(fd) {
                return Err(ConfigError::RepeatedFd(fd));
            }
        }
        if let Some(path) = &self.status_socket {
            let len = path.as_os_str().len();
            if !(1..=SOCKET_PATH_MAX).contains(&len) {
                return Err(ConfigError::StatusPath(path.clone(), len));
            }
        }
        if let Some(path) = &self.api_socket
            && path.as_os_str().len() > SOCKET_PATH_MAX
        {
            return Err(ConfigError::ApiPath);
        }
        Ok(self)
    }

    fn check_networks(&self) -> Result<(), ConfigError> {
        if self.behind.len() > MAX_GUEST_NETWORKS {
            return Err(ConfigError::ManyNetworks(self.behind.len()));
        }
        let addresses = self.network.addresses();
        let aliases = addresses.aliases.iter().map(|alias| alias.shown);
        let own = aliases.chain(addresses.guest.iter().chain(&addresses.dns).copied());
        let own = own.chain(addresses.gateways.iter().copied());
        let own: Vec<Prefix> = own.map(Prefix::host).collect();
        for (number, network) in self.behind.iter().enumerate() {
            if addresses.gateway(network.network).is_none() {
                return Err(ConfigError::NetworkFamily(*network));
            }
            let others = addresses.on_link.iter().chain(&own);
            let mut others = others.chain(&self.behind[..number]);
            if let Some(other) = others.find(|other| other.overlaps(network)) {
                return Err(ConfigError::NetworkOverlap(*network, *other));
            }
        }
        let published = self.publish_fds.iter().map(|(_, published)| published);
        let mut published = published.chain(&self.publish).filter_map(|one| one.guest);
        let is_behind = |ip: IpAddr| self.behind.iter().any(|network| network.contains(ip));
        let is_there = |ip: &IpAddr| is_behind(*ip) || addresses.is_guest(*ip);
        match published.find(|ip| !is_there(ip)) {
            Some(ip) => Err(ConfigError::PublishAddress(ip)),
            None => Ok(()),
        }
    }
}

fn split_subnet<A: std::str::FromStr>(
    text: &str,
    example: &'static str,
) -> Result<(A, u8), ConfigError> {
    let parse = || {
        let (address, prefix) = text.split_once('/')?;
        Some((address.parse().ok()?, prefix.parse().ok()?))
    };
    parse().ok_or_else(|| ConfigError::NotSubnet(text.to_owned(), example))
}

fn check_prefix(text: &str, prefix_len: u8, least: u8, most: u8) -> Result<(), ConfigError> {
    match prefix_len {
        len if (least..=most).contains(&len) => Ok(()),
        _ => Err(ConfigError::PrefixLength(text.to_owned(), least, most)),
    }
}

fn check_host_bits(text: &str, network: IpAddr, prefix_len: u8) -> Result<(), ConfigError> {
    let masked = Prefix::around(network, prefix_len).network;
    match masked == network {
        true => Ok(()),
        false => Err(ConfigError::HostBits(text.to_owned(), network, masked)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_default_subnets_are_those_of_the_default_network() {
        let Network { v4, v6 } = Network::default();
        assert_eq!(parse_subnet_v4(DEFAULT_SUBNET_V4, true).ok(), v4);
        assert_eq!(parse_subnet_v6(DEFAULT_SUBNET_V6, true).ok(), v6);
        assert_eq!(parse_subnet_v6("fd00::/64", false).unwrap().dns, None);
    }

    #[test]
    fn impossible_subnets_are_refused_with_the_reason() {
        let v4 = |text| parse_subnet_v4(text, true).unwrap_err().to_string();
        assert!(v4("10.0.2.0").contains("ADDRESS/PREFIX"));
        assert!(v4("10.0.2.0/x").contains("ADDRESS/PREFIX"));
        assert!(v4("fd00::/64").contains("ADDRESS/PREFIX"));
        assert!(v4("10.0.2.100/24").ends_with("the network is 10.0.2.0"));
        assert!(v4("10.0.2.0/26").contains("from 1 to 25"));
        assert!(v4("0.0.0.0/0").contains("from 1 to 25"));
        assert!(v4("10.0.2.0/33").contains("from 1 to 25"));
        for special in [
            "127.0.0.0/8",
            "169.254.0.0/16",
            "224.0.0.0/4",
            "240.0.0.0/4",
            "0.0.0.0/8",
        ] {
            assert!(v4(special).contains("cannot use"), "{special}");
        }
        let v6 = |text| parse_subnet_v6(text, true).unwrap_err().to_string();
        assert!(v6("fd00::1/64").ends_with("the network is fd00::"));
        assert!(v6("fd00::/120").contains("from 3 to 119"));
        for special in [
            "fe80::/64",
            "ff00::/8",
            "::/64",
            "::ffff:0:0/96",
            "64:ff9b::/96",
            "2002:7f00:1::/48",
            "fd00:ec2::/64",
        ] {
            assert!(v6(special).contains("cannot use"), "{special}");
        }
    }

    #[test]
    fn targets_are_numbers_or_paths() {
        let pid = |number| TargetName::Process(Pid::from_raw(number).unwrap());
        assert_eq!(parse_target("42", None), Ok(pid(42)));
        assert_eq!(parse_target("42", Some(TargetKind::Pid)), Ok(pid(42)));
        assert_eq!(
            parse_target("42", Some(TargetKind::Path)),
            Ok(TargetName::Path("42".into()))
        );
        assert_eq!(
            parse_target("/run/netns/a", None),
            Ok(TargetName::Path("/run/netns/a".into()))
        );
        for text in ["0", "-1", "4294967297", "tap0"] {
            assert!(parse_target(text, Some(TargetKind::Pid)).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_are_those_of_hosts() {
        for good in ["10.0.0.1", "169.254.1.1", "2001:db8::1", "fe80::1"] {
            assert!(parse_host(good).is_ok(), "{good}");
        }
        for bad in [
            "0.0.0.0",
            "127.0.0.1",
            "224.0.0.1",
            "::",
            "::1",
            "ff02::1",
            "::ffff:10.0.0.1",
        ] {
            assert!(parse_host(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn inherited_descriptors_must_differ() {
        let config = |publish_fds, ready_fd, exit_fd| {
            let target = TargetName::Path("/x".into());
            Config {
                publish_fds,
                ready_fd,
                exit_fd,
                ..Config::new(target, "tap0".to_owned(), Network::default())
            }
        };
        let five = parse_publish_fd("5=127.0.0.1:8080:80/tcp").unwrap();
        assert_eq!(five.0, 5);
        assert!(config(vec![five.clone()], Some(3), Some(4)).check().is_ok());
        assert_eq!(
            config(vec![five], Some(5), None).check(),
            Err(ConfigError::RepeatedFd(5))
        );
        assert_eq!(
            config(vec![], Some(2), None).check(),
            Err(ConfigError::StandardFd(2))
        );
        assert_eq!(
            config(vec![], Some(4), Some(4)).check(),
            Err(ConfigError::RepeatedFd(4))
        );
        let long = Config {
            status_socket: Some("x".repeat(108).into()),
            ..config(vec![], None, None)
        };
        assert!(matches!(long.check(), Err(ConfigError::StatusPath(_, 108))));
    }

    #[test]
    fn publish_fd_wants_a_number_and_a_single_port() {
        assert!(matches!(
            parse_publish_fd("127.0.0.1:80:80"),
            Err(ConfigError::PublishFd(_))
        ));
        assert!(matches!(
            parse_publish_fd("x=80:80"),
            Err(ConfigError::PublishFd(_))
        ));
        assert!(matches!(
            parse_publish_fd("5=80-81:80-81"),
            Err(ConfigError::PublishFdRange(_))
        ));
        assert!(matches!(
            parse_publish_fd("5=80:"),
            Err(ConfigError::Publish(..))
        ));
    }

    proptest! {
        #[test]
        fn subnet_text_never_panics(text in "[0-9a-f:./]{0,24}") {
            let _ = parse_subnet_v4(&text, true);
            let _ = parse_subnet_v6(&text, true);
        }

        #[test]
        fn accepted_subnets_contain_their_addresses(bits: u32, prefix_len in 1u8..=25) {
            let network = Ipv4Addr::from_bits(bits & (u32::MAX << (32 - prefix_len)));
            if let Ok(subnet) = parse_subnet_v4(&format!("{network}/{prefix_len}"), true) {
                let guest = subnet.first().unwrap().address;
                for address in [guest, subnet.gateway, subnet.dns.unwrap()] {
                    prop_assert_eq!(address.to_bits() >> (32 - prefix_len), network.to_bits() >> (32 - prefix_len));
                    prop_assert_ne!(address, network);
                }
            }
        }
    }
}
