//! The options that say what network a guest gets, whoever it is and however the helper was called.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Args;

use crate::config::{
    Config, ConfigError, DEFAULT_SUBNET_V4, DEFAULT_SUBNET_V6, MTU_RANGE, parse_guest_network,
    parse_host, parse_publish, parse_subnet_v4, parse_subnet_v6,
};
use crate::core::dns::{HostName, HostNames};
use crate::core::egress::{Egress, EgressRule};
use crate::core::policy::Policy;
use crate::core::tcp::Promote;
use crate::device::DeviceChoice;
use crate::guest::TargetName;
use crate::network::Network;

#[derive(Debug, Args)]
pub struct NetworkArgs {
    /// What the interface is: a tap, or one of a pair of virtual Ethernet interfaces
    ///
    /// The pair needs no /dev/net/tun, but Linux 6.2, and CAP_SYS_ADMIN in the user namespace that
    /// owns the network namespace.
    #[arg(long, value_name = "KIND", value_enum, default_value_t)]
    device: DeviceKind,

    /// Largest IP packet on the tap, in bytes
    ///
    /// Speed does not depend on it: the kernel hands over segments of up to 64 KiB at any MTU.
    #[arg(short, long, value_name = "N", default_value_t = *MTU_RANGE.end(),
          value_parser = clap::value_parser!(u16).range(i64::from(*MTU_RANGE.start())..=i64::from(*MTU_RANGE.end())))]
    mtu: u16,

    /// Publish a port: [IP:]HOST:[GUEST_IP:]GUEST[/tcp|/udp], also as ranges (repeatable)
    ///
    /// Services see the client's own address, except for clients on the host's loopback, which
    /// appear as the gateway; so does who comes over IPv6 to a service that listens on IPv4 only,
    /// or the other way round. Delivery is to the guest's address on the tap, so what listens on
    /// its 127.0.0.1 only is not published; or to GUEST_IP of a --guest-network (IPv6 in brackets).
    #[arg(short, long, value_name = "SPEC")]
    publish: Vec<String>,

    /// IPv4 subnet: gateway .2, DNS .3, guest .100
    #[arg(long, value_name = "A/P", default_value = DEFAULT_SUBNET_V4)]
    cidr: String,

    /// IPv6 subnet: gateway ::2, DNS ::3, guest ::100
    #[arg(long, value_name = "A/P", default_value = DEFAULT_SUBNET_V6)]
    cidr6: String,

    /// A network of containers that the guest routes, such as a bridge's (repeatable)
    ///
    /// Containers in it talk to the outside under their own addresses, without masquerading, and
    /// ports are published to each of them. With --configure the guest forwards packets; the
    /// bridge and its addresses are the caller's. What comes from any other address but the guest's
    /// own is dropped. The limits of connections are shared out by address.
    #[arg(long, value_name = "A/P")]
    guest_network: Vec<String>,

    /// No IPv6 in the guest
    #[arg(long)]
    ipv4_only: bool,

    /// Let the guest reach the host's 127.0.0.1 and ::1, as the gateway's addresses
    #[arg(long)]
    allow_host_loopback: bool,

    /// Let the guest reach the host's 127.0.0.1 or ::1 as this address (one of each family)
    ///
    /// With --egress allow:tcp:host:5432 --egress deny:host that is one port alone.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_host, conflicts_with = "allow_host_loopback")]
    map_host: Vec<IpAddr>,

    /// Say where the guest may go: ACTION[:[PROTOCOL:]TO[:PORTS]] (repeatable, first match wins)
    ///
    /// ACTION is allow or deny; alone it is about everything. PROTOCOL is tcp, udp or icmp. TO is
    /// an address, a subnet (IPv6 in brackets), any, host (what leads to this host) or dns (the
    /// forwarder). PORTS is a port or a range. What no rule matches is allowed, so that a last rule
    /// of deny makes the others a list of what may be reached. The guest is told that it is
    /// prohibited. Replies to clients of published ports are no matter of these rules. The API
    /// socket changes them while the program runs.
    #[arg(long, value_name = "RULE")]
    egress: Vec<EgressRule>,

    /// Answer for a name: NAME=ADDRESS[,ADDRESS][@NETWORK[,NETWORK]] (repeatable)
    ///
    /// The DNS forwarder tells the addresses of NAME, and the name of each ADDRESS, itself; nobody
    /// outside is asked, also not for what a NAME has not. With NETWORKs only who asks from one of
    /// them sees it. Where the host has an address in the guest, host.containers.internal and
    /// host.docker.internal are names of it. The API socket adds names and removes them while the
    /// program runs.
    #[arg(long, value_name = "NAME=A", conflicts_with = "disable_dns")]
    host_name: Vec<HostName>,

    /// Publish ports, set egress rules and names while the program runs: slirp4netns's API
    ///
    /// Its requests are {"execute": "add_hostfwd"}, list_hostfwd and remove_hostfwd, as
    /// slirp4netns(1) has them; besides, list_egress, and set_egress with the argument "rules", a
    /// list: flows that new rules prohibit are reset; and list_names, remove_name with the argument
    /// "id", and add_name with "name", the list "addresses" and, if need be, the list "networks".
    /// With add_hostfwd the port's socket may come along, bound already (SCM_RIGHTS).
    #[arg(long, value_name = "PATH")]
    api_socket: Option<PathBuf>,

    /// No DNS forwarder in the guest
    #[arg(long)]
    disable_dns: bool,

    /// When connections that move much data leave this program for the kernel
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    promote: PromoteWhen,

    /// Promote as root, too, at the price of CAP_NET_ADMIN over the host
    ///
    /// Concerns root and namespaces of the host's own user namespace, as `ip netns add` makes them.
    /// There promotion needs CAP_NET_ADMIN and CAP_NET_BIND_SERVICE over the host itself: whoever
    /// took this program over by its guest could reconfigure the host's network. Without this
    /// option they go, and connections are not promoted.
    #[arg(long)]
    keep_host_net_admin: bool,

    /// Serve flows (which path carries each, and why) and counters here: connect and read one JSON
    /// document
    ///
    /// Its counters show what was dropped, lost, prohibited and kept out by a limit; docs/STATUS.md
    /// describes each field.
    ///
    /// The socket is removed at the end, also after a kill.
    #[arg(long, value_name = "PATH")]
    status_socket: Option<PathBuf>,

    /// Serve counters here for Prometheus and its like: HTTP on a Unix socket
    ///
    /// As in curl --unix-socket PATH http://localhost/metrics.
    #[arg(long, value_name = "PATH")]
    metrics_socket: Option<PathBuf>,

    /// Write every frame, both ways, to a file that tcpdump and Wireshark read
    ///
    /// The file is made, or emptied, with the caller's privileges; it grows without a bound unless
    /// --pcap-limit gives one. That, or an error such as a full disk, ends the capture only.
    /// Segments of up to 64 KiB are one packet each, and their checksums may be incomplete, as on
    /// any interface that offloads both. A connection that the kernel has taken over is not seen
    /// any more; --promote off keeps all of them in the capture.
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,

    /// Size of the capture at most
    #[arg(long, value_name = "MIB", requires = "pcap")]
    pcap_limit: Option<NonZeroU32>,
}

/// The values of `--device`.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum DeviceKind {
    /// A tap where /dev/net/tun can be opened, the pair where not
    #[default]
    Auto,
    Tap,
    Veth,
}

impl From<DeviceKind> for DeviceChoice {
    fn from(kind: DeviceKind) -> Self {
        match kind {
            DeviceKind::Auto => Self::Auto,
            DeviceKind::Tap => Self::Tap,
            DeviceKind::Veth => Self::Veth,
        }
    }
}

/// The values of `--promote`.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum PromoteWhen {
    /// Once they haul: 256 KiB in total, 64 KiB of them within 10 ms. Where the kernel cannot, they
    /// stay
    #[default]
    Auto,
    /// Never
    Off,
    /// At once. Fails where the kernel cannot
    Always,
}

impl From<PromoteWhen> for Promote {
    fn from(when: PromoteWhen) -> Self {
        match when {
            PromoteWhen::Auto => Self::Auto,
            PromoteWhen::Off => Self::Off,
            PromoteWhen::Always => Self::Always,
        }
    }
}

impl NetworkArgs {
    /// A network for `target`, whose links are ours to set. To be checked once it is complete.
    pub fn config(self, target: TargetName, tap: String) -> Result<Config, ConfigError> {
        let dns = !self.disable_dns;
        let v6 = parse_subnet_v6(&self.cidr6, dns)?;
        let mut network = Network {
            v4: Some(parse_subnet_v4(&self.cidr, dns)?),
            v6: (!self.ipv4_only).then_some(v6),
        };
        if self.allow_host_loopback {
            network = network.with_gateway_as_host();
        }
        for ip in self.map_host {
            network = network
                .with_host_at(ip)
                .map_err(|why| ConfigError::HostAddress(ip, why))?;
        }
        let names = names_of_host(&network).into_iter().chain(self.host_name);
        let behind = self.guest_network.iter();
        let behind = behind.map(|network| parse_guest_network(network));
        let publish = self.publish.iter().map(|rule| parse_publish(rule));
        Ok(Config {
            device: self.device.into(),
            mtu: Some(self.mtu),
            policy: Policy {
                egress: Egress::new(self.egress)?,
                ..Policy::default()
            },
            names: HostNames::new(names)?,
            behind: behind.collect::<Result<_, _>>()?,
            publish: publish.collect::<Result<_, _>>()?,
            status_socket: self.status_socket,
            metrics_socket: self.metrics_socket,
            api_socket: self.api_socket,
            pcap: self.pcap,
            pcap_limit: self.pcap_limit.map(|mib| u64::from(mib.get()) << 20),
            promote: self.promote.into(),
            keep_host_net_admin: self.keep_host_net_admin,
            ..Config::new(target, tap, network)
        })
    }
}

/// What engines call the host, where it has an address on `network`.
fn names_of_host(network: &Network) -> Vec<HostName> {
    let aliases = network.addresses().aliases;
    let loopback = aliases.iter().filter(|alias| alias.host.is_loopback());
    let addresses: Vec<IpAddr> = loopback.map(|alias| alias.shown).collect();
    let names = ["host.containers.internal", "host.docker.internal"];
    let name = |name: &str| HostName::new(name.parse().ok()?, addresses.clone(), Vec::new()).ok();
    names.into_iter().filter_map(name).collect()
}
