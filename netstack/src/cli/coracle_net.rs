//! The command line of `coracle-net` itself.

use std::net::IpAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::Parser;
use tracing::{debug, warn};

use super::network_args::NetworkArgs;
use crate::config::{Config, ConfigError, TargetKind, parse_publish_fd, parse_target};
use crate::control::HeededSignals;
use crate::core::autoconf::{Autoconf, SearchList};
use crate::host::search_domains;
use crate::network::hidden_by;

/// Gives the network of a rootless container, or of any network namespace, a way out.
///
/// A tap interface appears in the namespace; its other end is this program, which answers with its
/// own TCP/IP stack and talks to the outside with ordinary sockets. No root, no setuid program:
/// CAP_NET_ADMIN in the user namespace that owns the network namespace is enough, and whoever made
/// that namespace has it.
#[derive(Debug, Parser)]
#[command(name = "coracle-net", version, max_term_width = 110, after_long_help = EXAMPLES)]
pub struct Args {
    /// Whose network namespace: a process ID, or a path such as /run/netns/NAME
    #[arg(value_name = "PID|PATH")]
    target: String,

    /// Name of the interface in the namespace
    #[arg(value_name = "TAPNAME", default_value = "tap0")]
    tap: String,

    /// Bring up lo and the tap, with addresses and default routes
    ///
    /// Without it the tap is only opened, and attached to if it exists already. A guest may then
    /// configure itself, by DHCP (10.0.2.15), router advertisements and DHCPv6, which tell the
    /// host's search domains as well, or be told its addresses by somebody else; ports are
    /// published at the address that it shows to have.
    #[arg(short, long)]
    configure: bool,

    #[command(flatten)]
    network: NetworkArgs,

    /// Publish by a socket that the caller has bound: FD=SPEC, one port (repeatable)
    #[arg(long, value_name = "FD=SPEC")]
    publish_fd: Vec<String>,

    /// Write "1" to this descriptor, and close it, once the network is up and ports are bound
    #[arg(short, long, value_name = "FD")]
    ready_fd: Option<RawFd>,

    /// End when the other end of this descriptor is closed; signals that the caller ignores do not
    /// end it then
    #[arg(short, long, value_name = "FD")]
    exit_fd: Option<RawFd>,

    /// How to read the first argument [default: a number is a PID, anything else a path]
    #[arg(long, value_name = "KIND")]
    netns_type: Option<NetnsType>,

    /// Join this user namespace first [default: the one that owns the network namespace]
    #[arg(long, value_name = "PATH")]
    userns_path: Option<PathBuf>,
}

/// The values of `--netns-type`.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum NetnsType {
    Pid,
    Path,
}

impl From<NetnsType> for TargetKind {
    fn from(kind: NetnsType) -> Self {
        match kind {
            NetnsType::Pid => Self::Pid,
            NetnsType::Path => Self::Path,
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  Give a shell in fresh namespaces a network. In one terminal:
      $ unshare --user --map-root-user --net --mount
      # echo $$
      4711
      # echo nameserver 10.0.2.3 > /tmp/resolv.conf
      # mount --bind /tmp/resolv.conf /etc/resolv.conf
  and in another, as the same user:
      $ coracle-net --configure 4711

  Publish its port 80 on the host's port 8080, UDP 5353 on the host's loopback only:
      $ coracle-net -c -p 8080:80 -p 127.0.0.1:5353:5353/udp 4711

  From a program: wait for readiness, end when the program does:
      coracle-net -c --ready-fd 3 --exit-fd 4 --netns-type path /run/netns/web tap0

  Let it reach the names and one web server of the outside, and nothing else:
      $ coracle-net -c --egress allow:dns --egress allow:tcp:198.51.100.7:443 --egress deny 4711

  Watch it:
      $ coracle-net -c --status-socket /tmp/net.sock 4711 &
      $ coracle-net status /tmp/net.sock
      $ coracle-net -c --pcap /tmp/net.pcap 4711 &
      $ tail -c +1 -f /tmp/net.pcap | tcpdump -nr -

In the guest:
  10.0.2.100, fd00::100   its own addresses
  10.0.2.2,   fd00::2     the gateway; the host's loopback with --allow-host-loopback
  10.0.2.3,   fd00::3     DNS, forwarded to the resolvers in the host's resolv.conf, which is followed live
  Link-local addresses and metadata services of clouds cannot be reached, however they are spelled.

Exit codes: 0 told to end, or the process PID ended, or PATH was unmounted; 126 a port could not be bound; 1 anything else.
CORACLE_LOG sets what is logged, as in CORACLE_LOG=debug.";

impl TryFrom<Args> for Config {
    type Error = ConfigError;

    fn try_from(args: Args) -> Result<Self, ConfigError> {
        let target = parse_target(&args.target, args.netns_type.map(TargetKind::from))?;
        let config = args.network.config(target, args.tap)?;
        Self {
            user_namespace: args.userns_path.into(),
            heeded_signals: HeededSignals::beside(args.exit_fd),
            configure: args.configure,
            autoconf: match args.configure {
                true => Autoconf::default(),
                false => own_configuration(&config),
            },
            publish_fds: args
                .publish_fd
                .iter()
                .map(|rule| parse_publish_fd(rule))
                .collect::<Result<_, _>>()?,
            ready_fd: args.ready_fd,
            exit_fd: args.exit_fd,
            ..config
        }
        .check()
    }
}

/// What a guest is told that configures itself. What completes names on the host, completes them
/// there, too; a file that cannot be read names no domain.
fn own_configuration(config: &Config) -> Autoconf {
    let mut autoconf = config.network.autoconf(config.mtu);
    if !autoconf.names.resolvers.is_empty() {
        let domains = search_domains().unwrap_or_default();
        autoconf.names.search = SearchList::first_of(&domains);
    }
    autoconf
}

/// Tells which networks of the host's are out of the guest's reach, as a caller may not expect.
pub fn warn_of_hidden(config: &Config) {
    match hidden_by(&config.network) {
        Ok(hidden) => hidden.iter().for_each(|hidden| {
            let option = match hidden.subnet.network {
                IpAddr::V4(_) => "--cidr",
                IpAddr::V6(_) => "--cidr6",
            };
            warn!("{hidden}; {option} chooses another");
        }),
        Err(error) => debug!("cannot see whether networks are hidden from the guest: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use clap::CommandFactory;
    use rustix::process::Pid;

    use super::*;
    use crate::config::{Attachment, DEFAULT_SUBNET_V4, DEFAULT_SUBNET_V6};
    use crate::core::addresses::{Addresses, Alias, Prefix};
    use crate::guest::{TargetName, UserNamespace};
    use crate::network::Network;

    fn config(line: &str) -> Result<Config, String> {
        let words = std::iter::once("coracle-net").chain(line.split_whitespace());
        let args = Args::try_parse_from(words).map_err(|error| error.to_string())?;
        Config::try_from(args).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_help_tells_who_is_who_on_the_default_network() {
        let help = Args::command().render_long_help().to_string();
        let addresses = Network::default().addresses();
        for ips in [addresses.guest, addresses.gateways, addresses.dns] {
            let line = |line: &str| ips.iter().all(|ip| line.contains(&ip.to_string()));
            assert!(help.lines().any(line), "{ips:?}");
        }
        assert!(help.contains(DEFAULT_SUBNET_V4) && help.contains(DEFAULT_SUBNET_V6));
    }

    #[test]
    fn a_target_is_enough() {
        let config = config("4711").unwrap();
        let target = TargetName::Process(Pid::from_raw(4711).unwrap());
        let tap = "tap0".to_owned();
        assert_eq!(config.attachment, Attachment::Namespace { target, tap });
        assert_eq!((config.mtu, config.configure), (Some(65520), false));
        assert_eq!(config.network, Network::default());
    }

    #[test]
    fn every_option_arrives() {
        let config = config(
            "-c -m 1500 -p 8080:80 -p 127.0.0.1:53:53/udp --publish-fd 5=9090:90 -r 3 -e 4 --netns-type path \
             --userns-path /u --cidr 10.55.0.0/16 --ipv4-only --allow-host-loopback --disable-dns --status-socket /s \
             --pcap /p --pcap-limit 3 --api-socket /a --metrics-socket /m --egress allow:dns --egress deny \
             --guest-network 10.89.0.0/24 /n eth7",
        )
        .unwrap();
        let target = TargetName::Path("/n".into());
        let tap = "eth7".to_owned();
        assert_eq!(config.attachment, Attachment::Namespace { target, tap });
        assert_eq!((config.mtu, config.configure), (Some(1500), true));
        assert_eq!((config.publish.len(), config.publish_fds.len()), (2, 1));
        assert_eq!((config.ready_fd, config.exit_fd), (Some(3), Some(4)));
        assert_eq!(config.user_namespace, UserNamespace::At("/u".into()));
        let Addresses {
            guest,
            dns,
            aliases,
            ..
        } = config.network.addresses();
        assert_eq!(guest, [IpAddr::from([10, 55, 0, 100])]);
        assert!(dns.is_empty());
        let gateway = Alias {
            shown: [10, 55, 0, 2].into(),
            host: Ipv4Addr::LOCALHOST.into(),
        };
        assert_eq!(aliases, [gateway]);
        assert_eq!(config.status_socket, Some("/s".into()));
        assert_eq!(config.pcap, Some("/p".into()));
        assert_eq!(config.pcap_limit, Some(3 << 20));
        assert_eq!(config.api_socket, Some("/a".into()));
        assert_eq!(config.metrics_socket, Some("/m".into()));
        assert_eq!(config.policy.egress.rules().len(), 2);
        let network = Prefix::around([10, 89, 0, 5].into(), 24);
        assert_eq!(config.behind, [network]);
    }

    #[test]
    fn ports_are_published_at_addresses_of_guest_networks() {
        let line = "-p 8080:10.89.0.5:80 -p 80:[fd89::5]:80/udp --publish-fd 5=81:10.0.2.100:81 \
                    --guest-network 10.89.0.0/24 --guest-network fd89::/64 1";
        let config = config(line).unwrap();
        let mut guests = config.publish.iter().map(|published| published.guest);
        let [v4, v6] = ["10.89.0.5", "fd89::5"].map(|ip| ip.parse::<IpAddr>().ok());
        assert_eq!((guests.next(), guests.next()), (Some(v4), Some(v6)));
    }

    #[test]
    fn the_host_has_an_address_on_request() {
        let aliases = |line| config(line).unwrap().network.addresses().aliases;
        let alias = |shown: &str, host: &str| Alias {
            shown: shown.parse().unwrap(),
            host: host.parse().unwrap(),
        };
        assert_eq!(aliases("1"), []);
        assert_eq!(
            aliases("--map-host 192.0.2.1 --map-host 2001:db8::1 1"),
            [alias("192.0.2.1", "127.0.0.1"), alias("2001:db8::1", "::1")]
        );
        assert_eq!(
            aliases("--map-host 10.0.2.2 1"),
            [alias("10.0.2.2", "127.0.0.1")]
        );
    }

    #[test]
    fn names_are_those_that_are_given_and_the_hosts() {
        let names = |line| {
            let config = config(line).unwrap();
            let names = config.names.iter().map(|(_, name)| name.to_string());
            names.collect::<Vec<_>>()
        };
        assert_eq!(names("1"), [] as [&str; 0]);
        assert_eq!(
            names("--map-host 192.0.2.1 --host-name db=10.89.0.5@10.89.0.0/24 1"),
            [
                "host.containers.internal=192.0.2.1",
                "host.docker.internal=192.0.2.1",
                "db=10.89.0.5@10.89.0.0/24"
            ]
        );
        assert_eq!(
            names("--allow-host-loopback 1")[0],
            "host.containers.internal=10.0.2.2,fd00::2"
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (line, part) in [
            ("", "PID|PATH"),
            ("--map-host 127.0.0.1 1", "no host can have this address"),
            ("--map-host 10.0.2.100 1", "it is the guest's own"),
            ("--map-host 10.0.2.3 1", "the DNS forwarder's"),
            (
                "--ipv4-only --map-host 2001:db8::1 1",
                "no address of this family",
            ),
            (
                "--allow-host-loopback --map-host 192.0.2.1 1",
                "cannot be used with",
            ),
            ("-m 1000 1", "1000 is not in 1280..=65520"),
            ("-m 65521 1", "65521 is not in"),
            ("-p x 1", "\"x\" is not a publishing rule"),
            ("--cidr 10.0.2.1/24 1", "10.0.2.0"),
            ("-r 1 1", "descriptor 1"),
            ("-r 3 -e 3 1", "descriptor 3 is given twice"),
            ("--netns-type pid tap0", "not a process ID"),
            ("-p 8080:10.89.0.5:80 1", "10.89.0.5: that is neither"),
            ("--guest-network 10.89.0.1/24 1", "10.89.0.0"),
            ("--guest-network 10.89.0.0 1", "ADDRESS/PREFIX"),
            ("--guest-network 0.0.0.0/1 1", "at least 8 bits"),
            ("--guest-network fd00::/8 1", "at least 16 bits"),
            ("--guest-network 169.0.0.0/8 1", "cannot use"),
            ("--guest-network 127.0.0.0/8 1", "cannot use"),
            ("--guest-network fe80::/64 1", "cannot use"),
            ("--guest-network 64:ff9b::/96 1", "cannot use"),
            (
                "--guest-network 10.0.0.0/8 1",
                "10.0.0.0/8 overlaps with 10.0.2.0/24",
            ),
            (
                "--map-host 10.89.0.2 --guest-network 10.89.0.0/24 1",
                "overlaps with 10.89.0.2/32",
            ),
            (
                "--guest-network fd89::/64 --guest-network fd89::/80 1",
                "fd89::/80 overlaps with fd89::/64",
            ),
            (
                "--ipv4-only --guest-network fd89::/64 1",
                "no address of this family",
            ),
            ("--host-name db 1", "is not a name with addresses"),
            (
                "--disable-dns --host-name db=10.0.0.1 1",
                "cannot be used with",
            ),
            ("--egress block 1", "\"block\" is not an egress rule"),
            ("--no-such-option 1", "--no-such-option"),
        ] {
            let error = config(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
