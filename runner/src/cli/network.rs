//! `coracle network`, and the flags by which `run` says which networks a container is in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use clap::{Args, Subcommand};
use netstack::core::addresses::Prefix;
use netstack::core::autoconf::DomainName;

use super::ExistsArgs;
use super::container::parse_label;
use super::filter::Filter;
use super::values::text;
use crate::engine::{Attachment, Mac, Network};
use crate::network::names::{self, DnsServer, ExtraHost, Names, ResolvConf};
use crate::network::options::NetworkOptions;
use crate::network::subnet;
use crate::template::Format;

#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Put a container into a network, at once if it runs
    Connect(NetworkConnectArgs),
    /// Make a network
    Create(NetworkCreateArgs),
    /// Take a container out of a network, at once if it runs
    Disconnect(NetworkDisconnectArgs),
    /// Say by the exit code whether a network is there: 0 or 1
    Exists(ExistsArgs),
    /// Tell all that is known of networks
    Inspect(NetworkInspectArgs),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(NetworkLsArgs),
    /// Remove networks that no container is in
    Prune(NetworkPruneArgs),
    /// Remove networks
    #[command(visible_alias = "remove")]
    Rm(NetworkRmArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Containers of a network reach each other by address and by name. They have a way out, but nobody outside has one in, other than \
by published ports; containers of other networks are outside. The network takes part of nothing of the host's: while containers are in \
it, it is a bridge in namespaces of its own.
  coracle network create backend
  coracle run -d --network backend --name db IMAGE
  coracle run --rm --network backend IMAGE nc db 5432")]
pub struct NetworkCreateArgs {
    /// What the network is: bridge
    #[arg(short, long, value_parser = text(parse_driver), default_value = "bridge", value_name = "DRIVER")]
    pub driver: String,

    /// A subnet: of IPv4, of IPv6, or one of each. Without, a free one of 10.89.0.0/24 and up
    #[arg(long = "subnet", value_parser = text(subnet::parse), value_name = "ADDRESS/PREFIX")]
    pub subnets: Vec<Prefix>,

    /// The network's own address in a subnet, which is the containers' gateway [default: the first]
    #[arg(long = "gateway", value_parser = text(str::parse::<IpAddr>), value_delimiter = ',', value_name = "ADDRESS")]
    pub gateways: Vec<IpAddr>,

    /// IPv6 as well, with a subnet made up if none is given
    #[arg(long)]
    pub ipv6: bool,

    /// No way out of the network, nor into it
    #[arg(long)]
    pub internal: bool,

    /// Containers do not find each other by name
    #[arg(long)]
    pub disable_dns: bool,

    /// Keep this with the network: KEY[=VALUE]; may be repeated
    #[arg(long = "label", value_parser = text(parse_label), value_name = "KEY[=VALUE]")]
    pub labels: Vec<(String, String)>,

    /// mtu=N, the largest IP packet in bytes, of 1280 to 65520; isolate=true, which it is anyway
    #[arg(short, long = "opt", value_parser = text(str::parse::<NetworkOption>), value_name = "KEY=VALUE")]
    pub options: Vec<NetworkOption>,

    /// Be content with a network of that name that is there already
    #[arg(long)]
    pub ignore: bool,

    /// Made up when not given
    #[arg(value_parser = text(str::parse::<String>))]
    pub name: Option<String>,
}

/// One `--opt` of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkOption {
    Mtu(u16),
    /// From other networks, as each of them is.
    Isolate,
}

impl FromStr for NetworkOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some(("mtu" | "com.docker.network.driver.mtu", mtu)) => mtu
                .parse()
                .map(Self::Mtu)
                .map_err(|_| format!("mtu={mtu}: expected a number of bytes")),
            Some(("isolate", "true" | "1")) => Ok(Self::Isolate),
            Some(("isolate", _)) => Err("networks are always isolated from each other".to_owned()),
            _ => Err("a network has the options mtu=N and isolate=true".to_owned()),
        }
    }
}

#[derive(Debug, Args)]
pub struct NetworkInspectArgs {
    /// How to print: json, or a template of Go's
    #[arg(short, long, value_parser = text(str::parse::<Format>))]
    pub format: Option<Format>,

    /// Names, or ids
    #[arg(value_parser = text(str::parse::<String>), required = true, value_name = "NETWORK")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct NetworkLsArgs {
    /// Names only
    #[arg(short, long)]
    pub quiet: bool,

    /// Whole ids
    #[arg(long)]
    pub no_trunc: bool,

    /// Leave out the names of the columns
    #[arg(long)]
    pub noheading: bool,

    /// How to print: json, table, or a template of Go's with .Name, .ID, .Driver, .Subnets,
    /// .Labels, .Options, .Created, .Internal, .IPv6Enabled and .DNSEnabled; `table TEMPLATE`
    /// makes columns
    #[arg(long, value_parser = text(str::parse::<Format>))]
    pub format: Option<Format>,

    /// Only what has this: dangling=BOOL, driver=DRIVER, id=ID, label=KEY[=VALUE], name=PATTERN,
    /// until=TIME; may be repeated
    #[arg(short, long = "filter", value_parser = text(str::parse::<Filter>), value_name = "KEY=VALUE")]
    pub filters: Vec<Filter>,
}

#[derive(Debug, Args)]
pub struct NetworkPruneArgs {
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,

    /// Only what has this: label=KEY[=VALUE], until=TIME; may be repeated
    #[arg(long = "filter", value_parser = text(str::parse::<Filter>), value_name = "KEY=VALUE")]
    pub filters: Vec<Filter>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 1 when there is no such network, 2 when a container is in it, 125 for all else."
)]
pub struct NetworkRmArgs {
    /// Remove containers that are in the networks as well; do not mind networks that are gone
    #[arg(short, long)]
    pub force: bool,

    #[arg(value_parser = text(str::parse::<String>), required = true, value_name = "NETWORK")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct NetworkConnectArgs {
    /// A name of the container in the network, besides its own; may be repeated
    #[arg(long = "alias", value_parser = text(parse_alias), value_name = "NAME")]
    pub aliases: Vec<String>,

    #[command(flatten)]
    pub addresses: AddressArgs,

    #[arg(value_parser = text(str::parse::<String>))]
    pub network: String,

    /// Name or id of a container that is in networks already
    #[arg(value_parser = text(str::parse::<String>))]
    pub container: String,
}

#[derive(Debug, Args)]
pub struct NetworkDisconnectArgs {
    /// Does nothing more: a container is taken out in any case
    #[arg(short, long)]
    pub force: bool,

    #[arg(value_parser = text(str::parse::<String>))]
    pub network: String,

    #[arg(value_parser = text(str::parse::<String>))]
    pub container: String,
}

/// Which networks a container is in.
#[derive(Debug, PartialEq, Args)]
pub struct RunNetworkArgs {
    /// Network of the container: default, none, host, coracle:KEY=VALUE,... or networks that
    /// `coracle network create` has made
    ///
    /// Networks are `NAME[,NAME]...`, or NAME:KEY=VALUE,... with ip=, ip6=, mac= and alias=; may be
    /// repeated. The first one that is not internal is the way out, and has the published ports.
    ///
    /// The options of coracle are cidr=, cidr6=, mtu=, map-host= (an address for this host) and
    /// egress= (a rule, may be repeated), all as coracle-net takes them.
    #[arg(long, alias = "net", value_parser = text(str::parse::<NetworkArg>), value_name = "NETWORK")]
    pub network: Vec<NetworkArg>,

    /// A name of the container in its networks, besides its own; may be repeated
    #[arg(long = "network-alias", alias = "net-alias", value_parser = text(parse_alias), value_name = "NAME")]
    pub aliases: Vec<String>,

    #[command(flatten)]
    pub addresses: AddressArgs,
}

/// What a container is told of names.
#[derive(Debug, PartialEq, Args)]
pub struct NameArgs {
    /// A name server to ask in place of coracle's, or none to leave the image's resolv.conf alone
    #[arg(long = "dns", value_parser = text(names::parse_server), value_delimiter = ',', value_name = "ADDRESS")]
    pub servers: Vec<DnsServer>,

    /// A domain to look names up in, in place of the host's; . for none
    #[arg(long = "dns-search", value_parser = text(names::parse_domain), value_delimiter = ',', value_name = "DOMAIN")]
    pub search: Vec<String>,

    /// An option of resolv.conf, in place of the host's
    #[arg(
        long = "dns-option",
        alias = "dns-opt",
        value_parser = text(names::parse_option),
        value_delimiter = ',',
        value_name = "OPTION"
    )]
    pub options: Vec<String>,

    /// Add a line to /etc/hosts. The address host-gateway stands for the one that leads to this
    /// host, if the network has one (map-host=)
    #[arg(long = "add-host", value_parser = text(names::parse_host), value_name = "NAME[;NAME]:ADDRESS")]
    pub hosts: Vec<ExtraHost>,

    /// Leave the image's /etc/hosts alone
    #[arg(long)]
    pub no_hosts: bool,
}

impl NameArgs {
    pub fn names(&self) -> Names {
        let address = |server: &DnsServer| match server {
            DnsServer::Address(address) => Some(*address),
            DnsServer::None => None,
        };
        let resolv_conf = match self.servers.contains(&DnsServer::None) {
            true => ResolvConf::Image,
            false => ResolvConf::Lists {
                servers: self.servers.iter().filter_map(address).collect(),
                search: self.search.clone(),
                options: self.options.clone(),
            },
        };
        Names {
            resolv_conf,
            hosts: self.hosts.clone(),
            no_hosts: self.no_hosts,
        }
    }

    /// Refuses what contradicts itself.
    pub fn check(&self) -> Result<(), String> {
        let is_image = self.servers.contains(&DnsServer::None);
        if is_image
            && (self.servers.len() > 1 || !self.search.is_empty() || !self.options.is_empty())
        {
            return Err(
                "--dns none leaves the image's resolv.conf alone: it goes with no other --dns, nor with --dns-search and \
                 --dns-option"
                    .to_owned(),
            );
        }
        match self.no_hosts && !self.hosts.is_empty() {
            true => Err("--add-host and --no-hosts cannot be given together".to_owned()),
            false => Ok(()),
        }
    }
}

/// Which addresses a container has in a network, where that is not left to coracle.
#[derive(Debug, PartialEq, Args)]
pub struct AddressArgs {
    /// Its address of IPv4 in its network
    #[arg(long, value_parser = text(str::parse::<Ipv4Addr>), value_name = "ADDRESS")]
    pub ip: Option<Ipv4Addr>,

    /// Its address of IPv6 in its network
    #[arg(long, value_parser = text(str::parse::<Ipv6Addr>), value_name = "ADDRESS")]
    pub ip6: Option<Ipv6Addr>,

    /// Its Ethernet address in its network
    #[arg(long, value_parser = text(str::parse::<Mac>), value_name = "ADDRESS")]
    pub mac_address: Option<Mac>,
}

impl AddressArgs {
    /// Those of IP, IPv4 first.
    pub fn ips(&self) -> Vec<IpAddr> {
        let v4 = self.ip.map(IpAddr::V4);
        v4.into_iter().chain(self.ip6.map(IpAddr::V6)).collect()
    }
}

/// One `--network`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkArg {
    /// Its own, with a way out of its own.
    Own(NetworkOptions),
    None,
    Host,
    /// Networks by their names.
    Named(Vec<Attachment>),
}

impl FromStr for NetworkArg {
    type Err = String;

    /// Kinds that other engines have are told apart from names: people will try them.
    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, options) = match text.split_once(':') {
            Some((kind, options)) => (kind, Some(options)),
            None => (text, None),
        };
        match (kind, options) {
            ("default" | "coracle", None) => Ok(Self::Own(NetworkOptions::default())),
            ("default" | "coracle", Some(options)) => match options.parse() {
                Ok(options) => Ok(Self::Own(options)),
                Err(error) => Err(format!("{error}")),
            },
            ("none", None) => Ok(Self::None),
            ("host", None) => Ok(Self::Host),
            (
                "bridge" | "container" | "ns" | "pasta" | "private" | "slirp4netns" | "none"
                | "host",
                _,
            ) => Err(format!(
                "coracle does not have the network {text:?} yet; there are default, coracle:OPTIONS, none, host, and those of \
                     `coracle network ls`"
            )),
            (name, Some(options)) => Ok(Self::Named(vec![parse_attachment(name, options)?])),
            (names, None) => {
                let names = names.split(',');
                let attachments = names.map(|name| match name {
                    "" => Err("a network has a name".to_owned()),
                    name => Ok(Attachment::to(name)),
                });
                Ok(Self::Named(attachments.collect::<Result<_, _>>()?))
            }
        }
    }
}

/// For clap, where networks by their names are of no use.
pub fn parse_unnamed(text: &str) -> Result<Network, String> {
    match text.parse()? {
        NetworkArg::Own(options) => Ok(Network::Coracle(options)),
        NetworkArg::None => Ok(Network::None),
        NetworkArg::Host => Ok(Network::Host),
        NetworkArg::Named(_) => Err(format!(
            "there is no network {text:?} here; there are default, coracle:OPTIONS, none and host"
        )),
    }
}

/// What `NAME:KEY=VALUE,…` says of a container in a network.
fn parse_attachment(name: &str, options: &str) -> Result<Attachment, String> {
    if name.is_empty() || name.contains(',') {
        return Err("options are those of one network: expected NAME:KEY=VALUE,...".to_owned());
    }
    let mut attachment = Attachment::to(name);
    for option in options.split(',') {
        let wrong = |error: &dyn std::fmt::Display| format!("{option}: {error}");
        match option.split_once('=') {
            Some(("ip" | "ip6", ip)) => {
                let ip: IpAddr = ip.parse().map_err(|error| wrong(&error))?;
                let mut others = attachment.ips.iter();
                if others.any(|own| own.is_ipv4() == ip.is_ipv4()) {
                    return Err(format!(
                        "{option}: there is an address of this family already"
                    ));
                }
                attachment.ips.push(ip);
            }
            Some(("mac", mac)) => {
                attachment.mac = Some(mac.parse().map_err(|error| wrong(&error))?);
            }
            Some(("alias", alias)) => {
                let alias = parse_alias(alias).map_err(|error| wrong(&error))?;
                attachment.aliases.push(alias);
            }
            _ => {
                return Err(format!(
                    "{option:?} is no option of a network: there are ip=, ip6=, mac= and alias="
                ));
            }
        }
    }
    Ok(attachment)
}

fn parse_alias(text: &str) -> Result<String, String> {
    match text.parse::<DomainName>() {
        Ok(name) => Ok(name.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_driver(text: &str) -> Result<String, String> {
    match text {
        "bridge" => Ok(text.to_owned()),
        _ => Err(format!(
            "coracle has no networks of the driver {text:?}: there is bridge"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<NetworkArg, String> {
        text.parse()
    }

    #[test]
    fn networks_have_names_and_options() {
        assert_eq!(read("none"), Ok(NetworkArg::None));
        assert_eq!(read("host"), Ok(NetworkArg::Host));
        assert_eq!(read("default"), read("coracle"));
        let two = vec![Attachment::to("a"), Attachment::to("b")];
        assert_eq!(read("a,b"), Ok(NetworkArg::Named(two)));
        let attachment = Attachment {
            aliases: vec!["db".to_owned(), "store".to_owned()],
            ips: vec!["10.89.0.9".parse().unwrap(), "fd89::9".parse().unwrap()],
            mac: "02:00:00:00:00:09".parse().ok(),
            ..Attachment::to("a")
        };
        let text = "a:ip=10.89.0.9,alias=db,ip6=fd89::9,mac=02:00:00:00:00:09,alias=store";
        assert_eq!(read(text), Ok(NetworkArg::Named(vec![attachment])));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, why) in [
            ("", "has a name"),
            ("a,,b", "has a name"),
            ("a,b:ip=10.0.0.1", "one network"),
            ("a:", "there are ip="),
            ("a:ip=x", "ip=x: "),
            ("a:ip=10.0.0.1,ip=10.0.0.2", "already"),
            ("a:mac=01:00:00:00:00:00", "not an Ethernet address"),
            ("a:alias=a b", "not a domain name"),
            ("a:interface_name=eth7", "no option of a network"),
            ("bridge", "does not have"),
            ("container:web", "does not have"),
            ("slirp4netns:mtu=1500", "does not have"),
            ("none:x=y", "does not have"),
            ("coracle:x=y", "there are cidr="),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn options_of_networks() {
        assert_eq!("mtu=9000".parse(), Ok(NetworkOption::Mtu(9000)));
        assert_eq!("isolate=true".parse(), Ok(NetworkOption::Isolate));
        for wrong in ["mtu", "mtu=x", "isolate=false", "vlan=7", ""] {
            assert!(wrong.parse::<NetworkOption>().is_err(), "{wrong}");
        }
    }
}
