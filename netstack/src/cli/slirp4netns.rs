//! The command line of slirp4netns 1.3: the same words, the same defaults, and what its callers
//! read of the answers. docs/DROP-IN.md says where this program differs all the same.
//!
//! Callers look for option names in `--help`, read `--version` line by line, and show what is
//! printed. Texts that some of them compare are marked as such.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{ArgAction, Parser};
use nix::ifaddrs::getifaddrs;
use rustix::process::Pid;

use super::mac;
use crate::config::{
    Attachment, Config, ConfigError, DEFAULT_SUBNET_V4, IPV6_MTU_MIN, parse_subnet_v4,
};
use crate::control::HeededSignals;
use crate::core::MacAddr;
use crate::core::policy::Policy;
use crate::guest::TargetName;
use crate::host::Outbound;
use crate::network::Network;

/// Behind the program's name. Callers compare the first line's form, and read the number in the
/// fourth, which says which options libslirp has: 3 means --disable-dns.
const VERSION: &str = concat!(
    "version 1.3.1+coracle.",
    env!("CARGO_PKG_VERSION"),
    "\ncommit: coracle-net-",
    env!("CARGO_PKG_VERSION"),
    "\nlibslirp: none\nSLIRP_CONFIG_VERSION_MAX: 4\nlibseccomp: none"
);

/// User-mode networking for a network namespace, with the options of slirp4netns.
///
/// This is coracle-net under that name.
#[derive(Debug, Parser)]
#[command(
    name = "slirp4netns",
    version = VERSION,
    disable_version_flag = true,
    args_override_self = true,
    infer_long_args = true,
    override_usage = "slirp4netns [OPTION]... PID|PATH|FD [TAPNAME]",
    max_term_width = 110,
    after_help = ADDRESSES
)]
pub struct Args {
    /// Whose network namespace: a process ID, or what --netns-type says
    #[arg(value_name = "PID|PATH|FD")]
    target: OsString,

    /// Name of the tap, which is made unless it exists; not with --netns-type=tapfd
    #[arg(value_name = "TAPNAME")]
    tap: Option<String>,

    /// Bring up lo and the tap, with addresses and a default route
    #[arg(short, long)]
    configure: bool,

    /// End when the other end of this descriptor is closed
    #[arg(short, long, value_name = "FD", value_parser = descriptor)]
    exit_fd: Option<RawFd>,

    /// Write "1" to this descriptor, and close it, once the network is up
    #[arg(short, long, value_name = "FD", value_parser = descriptor)]
    ready_fd: Option<RawFd>,

    /// Largest IP packet on the tap, in bytes, up to 65521
    #[arg(short, long, value_name = "MTU", default_value_t = 1500, value_parser = mtu)]
    mtu: u16,

    /// IPv6 in the guest, too
    #[arg(short = '6', long)]
    enable_ipv6: bool,

    /// Publish ports for whoever asks at this socket
    #[arg(short, long, value_name = "PATH")]
    api_socket: Option<PathBuf>,

    /// IPv4 subnet
    #[arg(long, value_name = "CIDR", default_value = DEFAULT_SUBNET_V4)]
    cidr: String,

    /// Keep the guest from the host's 127.0.0.1, which it reaches as the gateway's address
    #[arg(long, alias = "no-host-loopback")]
    disable_host_loopback: bool,

    /// How to read the first argument
    #[arg(long, value_name = "TYPE", default_value = "pid")]
    netns_type: NetnsType,

    /// Join this user namespace first [default: the one that owns the network namespace]
    #[arg(long, value_name = "PATH")]
    userns_path: Option<PathBuf>,

    /// See no file system at all once the network is up
    #[arg(long, alias = "create-sandbox")]
    enable_sandbox: bool,

    /// Limit system calls, as is always done
    #[arg(long)]
    enable_seccomp: bool,

    /// Address, or interface, that the guest's IPv4 traffic leaves the host from
    #[arg(long, value_name = "IPv4|INTERFACE")]
    outbound_addr: Option<String>,

    /// Address, or interface, that the guest's IPv6 traffic leaves the host from
    #[arg(long, value_name = "IPv6|INTERFACE")]
    outbound_addr6: Option<String>,

    /// No DNS forwarder: its address is the one that the host's network has of that number
    #[arg(long)]
    disable_dns: bool,

    /// Ethernet address of the tap, with -c only
    #[arg(long, value_name = "MAC", requires = "configure", value_parser = mac)]
    macaddress: Option<MacAddr>,

    /// What the target is; bess, for User Mode Linux, is not supported
    #[arg(long, value_name = "TYPE", default_value = "netns", value_parser = target_type)]
    target_type: Netns,

    /// Words too many, of which slirp4netns takes no notice either.
    #[arg(hide = true)]
    more: Vec<OsString>,

    /// Print version
    #[arg(short = 'v', long, action = ArgAction::Version)]
    version: Option<bool>,
}

/// The values of `--netns-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum NetnsType {
    Pid,
    Path,
    /// A descriptor of a tap that is there already
    Tapfd,
}

/// The value of `--target-type`.
#[derive(Debug, Clone, Copy)]
struct Netns;

const ADDRESSES: &str = "\
In the guest:
  10.0.2.100   its own address, with -c; fd00::100 with --enable-ipv6
  10.0.2.2     the gateway, and the host's 127.0.0.1 unless --disable-host-loopback is given; fd00::2
  10.0.2.3     DNS; fd00::3";

/// A value that cannot work, in words that callers compare where slirp4netns has some.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    #[error("PID must be a positive integer, not {0:?}")]
    Pid(OsString),
    #[error("TAPFD must be a file descriptor, not {0:?}")]
    TapFd(OsString),
    #[error("TAPNAME is missing")]
    NoTapName,
    #[error("userns path doesn't exist: {0}")]
    NoUserNamespace(PathBuf),
    #[error("invalid CIDR: {0}")]
    Cidr(String),
    #[error("CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24")]
    HostBits,
    #[error("prefix length needs to be 1-25")]
    PrefixLength,
    #[error(
        "--{option} {value}: neither an {family} address nor an interface of this host with one"
    )]
    Outbound {
        option: &'static str,
        value: String,
        family: &'static str,
    },
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl TryFrom<Args> for Config {
    type Error = ArgsError;

    fn try_from(args: Args) -> Result<Self, ArgsError> {
        if let Some(path) = args.userns_path.as_ref().filter(|path| !path.exists()) {
            return Err(ArgsError::NoUserNamespace(path.clone()));
        }
        let attachment = args.attachment()?;
        let has_ipv6 = args.enable_ipv6 && args.mtu >= IPV6_MTU_MIN;
        let mut v4 = parse_subnet_v4(&args.cidr, true).map_err(cidr_error)?;
        let mut v6 = Network::default().v6.filter(|_| has_ipv6);
        let mut beyond = Vec::new();
        if args.disable_dns {
            beyond.extend(v4.dns.take().map(IpAddr::from));
            beyond.extend(
                v6.iter_mut()
                    .filter_map(|v6| v6.dns.take())
                    .map(IpAddr::from),
            );
        }
        let mut network = Network { v4: Some(v4), v6 };
        if !args.disable_host_loopback {
            network = network.with_gateway_as_host();
        }
        let autoconf = network.autoconf(Some(args.mtu));
        let config = Self {
            user_namespace: args.userns_path.into(),
            heeded_signals: HeededSignals::beside(args.exit_fd),
            configure: args.configure,
            mtu: Some(args.mtu),
            guest_mac: args.macaddress,
            autoconf,
            policy: Policy {
                gateway_is_no_host: true,
                ..Policy::default()
            },
            beyond,
            outbound: Outbound {
                v4: args.outbound_addr.map(outbound_v4).transpose()?,
                v6: args.outbound_addr6.map(outbound_v6).transpose()?,
                ..Outbound::default()
            },
            ready_fd: args.ready_fd,
            exit_fd: args.exit_fd,
            api_socket: args.api_socket,
            must_have_empty_root: args.enable_sandbox,
            ..Self::at(attachment, network)
        };
        Ok(config.check()?)
    }
}

impl Args {
    fn attachment(&self) -> Result<Attachment, ArgsError> {
        let target = match self.netns_type {
            NetnsType::Pid => TargetName::Process(pid(&self.target)?),
            NetnsType::Path => TargetName::Path(self.target.clone().into()),
            NetnsType::Tapfd => {
                let number = self.target.to_str().and_then(|text| descriptor(text).ok());
                let number = number.ok_or_else(|| ArgsError::TapFd(self.target.clone()))?;
                return Ok(Attachment::Tap(number));
            }
        };
        let tap = self.tap.clone().ok_or(ArgsError::NoTapName)?;
        Ok(Attachment::Namespace { target, tap })
    }
}

/// Says on standard output what the network is like, line by line as slirp4netns does.
pub fn announce(config: &Config) {
    let mut lines = Vec::new();
    lines.extend(config.mtu.map(|mtu| ("MTU", mtu.to_string())));
    let v4 = config.network.v4.as_ref();
    if let Some((v4, guest)) = v4.and_then(|v4| Some((v4, v4.first()?))) {
        let netmask = u32::MAX << (32 - u32::from(guest.prefix_len));
        let network = guest.address.to_bits() & netmask;
        lines.extend([
            ("Network", Ipv4Addr::from_bits(network).to_string()),
            ("Netmask", Ipv4Addr::from_bits(netmask).to_string()),
            ("Gateway", v4.gateway.to_string()),
            ("DNS", Ipv4Addr::from_bits(network + 3).to_string()),
        ]);
        if let Some(pool) = config.autoconf.pool {
            lines.extend([
                ("DHCP begin", pool.first.to_string()),
                ("DHCP end", pool.last().to_string()),
            ]);
        }
        lines.push(("Recommended IP", guest.address.to_string()));
    }
    if let Some(path) = &config.api_socket {
        lines.push(("API Socket", path.display().to_string()));
    }
    if let Some(address) = config.outbound.v4 {
        lines.push(("Outbound IPv4", address.to_string()));
    }
    if let Some(address) = config.outbound.v6 {
        lines.push(("Outbound IPv6", address.to_string()));
    }
    let mut text = "Starting slirp\n".to_owned();
    for (key, value) in lines {
        text += &format!("* {:<17}{value}\n", format!("{key}:"));
    }
    // Nobody has to listen.
    let _ = io::stdout().write_all(text.as_bytes());
}

fn descriptor(text: &str) -> Result<RawFd, &'static str> {
    let number = text.parse().ok().filter(|fd| *fd >= 0);
    number.ok_or("must be a non-negative integer")
}

fn mtu(text: &str) -> Result<u16, &'static str> {
    /// IPv4 needs 68 (RFC 791 3.2), and so does Linux; a tap takes no more than the other.
    const RANGE: std::ops::RangeInclusive<u16> = 68..=65521;
    let number = text.parse().ok().filter(|mtu| RANGE.contains(mtu));
    number.ok_or("MTU must be a positive integer (< 65522), and 68 at least")
}

fn target_type(text: &str) -> Result<Netns, &'static str> {
    match text {
        "netns" => Ok(Netns),
        "bess" => Err("User Mode Linux is not supported; slirp4netns itself has it"),
        _ => Err("--target-type must be \"netns\""),
    }
}

fn pid(text: &OsStr) -> Result<Pid, ArgsError> {
    let number = text.to_str().and_then(|text| text.parse().ok());
    let pid = number.filter(|pid| *pid > 0).and_then(Pid::from_raw);
    pid.ok_or_else(|| ArgsError::Pid(text.to_owned()))
}

fn cidr_error(error: ConfigError) -> ArgsError {
    match error {
        ConfigError::NotSubnet(text, _) => ArgsError::Cidr(text),
        ConfigError::HostBits(..) => ArgsError::HostBits,
        ConfigError::PrefixLength(..) => ArgsError::PrefixLength,
        error => ArgsError::Config(error),
    }
}

fn outbound_v4(value: String) -> Result<Ipv4Addr, ArgsError> {
    let of_interface = || {
        addresses_of(&value).find_map(|ip| match ip {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        })
    };
    let address = value.parse().ok().or_else(of_interface);
    address.ok_or(ArgsError::Outbound {
        option: "outbound-addr",
        value,
        family: "IPv4",
    })
}

fn outbound_v6(value: String) -> Result<Ipv6Addr, ArgsError> {
    let of_interface = || {
        addresses_of(&value).find_map(|ip| match ip {
            // A link-local address reaches nobody but neighbours.
            IpAddr::V6(ip) => Some(ip).filter(|ip| !ip.is_unicast_link_local()),
            IpAddr::V4(_) => None,
        })
    };
    let address = value.parse().ok().or_else(of_interface);
    address.ok_or(ArgsError::Outbound {
        option: "outbound-addr6",
        value,
        family: "IPv6",
    })
}

/// The addresses of an interface of the host.
fn addresses_of(interface: &str) -> impl Iterator<Item = IpAddr> {
    let all = getifaddrs().into_iter().flatten();
    all.filter(move |entry| entry.interface_name == interface)
        .filter_map(|entry| {
            let address = entry.address?;
            let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
        })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn config(line: &str) -> Result<Config, String> {
        let words = std::iter::once("slirp4netns").chain(line.split_whitespace());
        let args = Args::try_parse_from(words).map_err(|error| error.to_string())?;
        Config::try_from(args).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_help_has_the_words_that_callers_look_for() {
        for help in ["-h", "--help"] {
            let help = Args::try_parse_from(["slirp4netns", help]).unwrap_err();
            assert_eq!(help.kind(), ErrorKind::DisplayHelp);
            let text = help.to_string();
            for word in [
                "--disable-host-loopback",
                "--mtu",
                "--enable-sandbox",
                "--enable-seccomp",
                "--cidr",
                "--outbound-addr",
                "--enable-ipv6",
                "--netns-type",
                "--api-socket",
            ] {
                // As `grep -w` does.
                let is_word = |line: &str| {
                    line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
                        .any(|part| part == word)
                };
                assert!(text.lines().any(is_word), "{word}: {text}");
            }
        }
    }

    #[test]
    fn the_version_has_the_lines_that_callers_read() {
        for version in ["-v", "--version"] {
            let version = Args::try_parse_from(["slirp4netns", version]).unwrap_err();
            assert_eq!(version.kind(), ErrorKind::DisplayVersion);
            let text = version.to_string();
            let lines: Vec<&str> = text.lines().collect();
            assert!(lines[0].starts_with("slirp4netns version 1.3."), "{text}");
            let keys = [
                "commit: ",
                "libslirp: ",
                "SLIRP_CONFIG_VERSION_MAX: 4",
                "libseccomp: ",
            ];
            for (line, key) in lines[1..].iter().zip(keys) {
                assert!(line.starts_with(key), "{text}");
            }
        }
    }

    #[test]
    fn callers_command_lines_are_understood() {
        let podman = config(
            "--disable-host-loopback --mtu=65520 --enable-sandbox --enable-seccomp --enable-ipv6 -c \
             -e 3 -r 4 --netns-type=path /run/user/1000/netns/x tap0",
        )
        .unwrap();
        assert!(podman.configure && podman.must_have_empty_root && podman.network.v6.is_some());
        assert_eq!((podman.exit_fd, podman.ready_fd), (Some(3), Some(4)));
        let tap = |target| Attachment::Namespace {
            target,
            tap: "tap0".to_owned(),
        };
        let path = TargetName::Path("/run/user/1000/netns/x".into());
        assert_eq!(podman.attachment, tap(path));
        assert!(podman.network.addresses().aliases.is_empty());

        let rootlesskit = config("--mtu 65520 -r 3 --cidr 10.41.0.0/24 4711 tap0").unwrap();
        assert!(!rootlesskit.configure && !rootlesskit.network.addresses().aliases.is_empty());
        assert_eq!(
            rootlesskit.network.addresses().guest,
            [IpAddr::from([10, 41, 0, 100])]
        );
        assert_eq!(rootlesskit.network.v6, None);

        let buildah = config("--mtu 65520 -r 3 -c 4711 tap0").unwrap();
        let process = TargetName::Process(Pid::from_raw(4711).unwrap());
        assert_eq!(buildah.attachment, tap(process));
        assert_eq!(buildah.mtu, Some(65520));

        let passed = config("--netns-type=tapfd -r 4 3").unwrap();
        assert_eq!(passed.attachment, Attachment::Tap(3));
    }

    #[test]
    fn words_are_taken_as_getopt_takes_them() {
        let mixed = config("4711 -c6 --mtu=1500 tap0 -m9000 --disable-host").unwrap();
        assert!(mixed.configure && mixed.network.v6.is_some());
        assert_eq!(mixed.mtu, Some(9000), "the last one holds");
        assert!(
            mixed.network.addresses().aliases.is_empty(),
            "unambiguous beginnings do"
        );
        assert!(config("4711 tap0 superfluous").is_ok());
        assert!(config("--no-host-loopback --create-sandbox 4711 tap0").is_ok());
    }

    #[test]
    fn what_is_not_given_is_as_with_slirp4netns() {
        let config = config("4711 tap0").unwrap();
        assert_eq!(
            (config.mtu, config.configure, config.must_have_empty_root),
            (Some(1500), false, false)
        );
        let gateway_is_host = Network::default().with_gateway_as_host();
        assert_eq!(config.network.v4, gateway_is_host.v4);
        assert_eq!(
            (config.network.v6, config.outbound),
            (None, Outbound::default())
        );
    }

    #[test]
    fn values_arrive() {
        let config = config(
            "-c --macaddress=52:54:0:12:34:AB --disable-dns --outbound-addr=lo --outbound-addr6=2001:db8::1 \
             -m 576 -6 1 tap0",
        )
        .unwrap();
        assert_eq!(config.guest_mac, Some([0x52, 0x54, 0, 0x12, 0x34, 0xab]));
        assert_eq!(config.outbound.v4, Some(Ipv4Addr::LOCALHOST));
        assert_eq!(config.outbound.v6.unwrap().to_string(), "2001:db8::1");
        assert!(config.network.addresses().dns.is_empty());
        assert_eq!(config.beyond, [Ipv4Addr::new(10, 0, 2, 3)]);
        assert_eq!(config.network.v6, None, "IPv6 needs larger packets");
    }

    #[test]
    fn mistakes_are_told_as_callers_know_them() {
        for (line, part) in [
            ("", "PID|PATH|FD"),
            ("4711", "TAPNAME is missing"),
            ("x tap0", "PID must be a positive integer"),
            ("-1 tap0", "unexpected argument"),
            ("0 tap0", "PID must be a positive integer"),
            ("--netns-type=tapfd x", "TAPFD must be a file descriptor"),
            ("--netns-type=tapfd -r 3 3", "descriptor 3 is given twice"),
            ("--cidr 24 1 tap0", "invalid CIDR"),
            ("--cidr 10.0.2.0 1 tap0", "invalid CIDR"),
            (
                "--cidr 10.0.2.100/24 1 tap0",
                "CIDR needs to be a network address like 10.0.2.0/24, not like",
            ),
            (
                "--cidr 10.0.2.0/26 1 tap0",
                "prefix length needs to be 1-25",
            ),
            ("--cidr 10.0.2.0/0 1 tap0", "prefix length needs to be 1-25"),
            (
                "--mtu 65522 1 tap0",
                "MTU must be a positive integer (< 65522)",
            ),
            ("--mtu 0 1 tap0", "MTU must be a positive integer (< 65522)"),
            ("-r x 1 tap0", "must be a non-negative integer"),
            ("--macaddress=0:0:0:0:0:1 1 tap0", "--configure"),
            ("-c --macaddress=0:0:0 1 tap0", "six bytes"),
            ("--target-type=bess /x", "bess"),
            ("--target-type=x 1 tap0", "--target-type must be"),
            ("--outbound-addr=none0 1 tap0", "none0"),
            ("--outbound-addr6=10.0.0.1 1 tap0", "IPv6"),
            (
                "--userns-path=/no/such 1 tap0",
                "userns path doesn't exist: /no/such",
            ),
            ("--no-such-option 1 tap0", "--no-such-option"),
        ] {
            let error = config(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
