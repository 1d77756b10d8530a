//! What a container is told of names, other than by default: `--dns`, `--dns-search`,
//! `--dns-option`, `--add-host` and `--no-hosts`.

use std::fmt;
use std::net::IpAddr;

use netstack::core::autoconf::DomainName;
use serde::{Deserialize, Serialize};

use crate::failure::Explained;
use crate::spec::Network;

/// What goes into resolv.conf and hosts in place of what would be there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    pub resolv_conf: ResolvConf,
    /// Lines of /etc/hosts, before those that coracle knows.
    pub hosts: Vec<ExtraHost>,
    /// Whether /etc/hosts is the image's.
    pub no_hosts: bool,
}

/// Who fills /etc/resolv.conf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResolvConf {
    /// The image; coracle leaves it alone.
    Image,
    /// coracle, with these lists in place of its own where they are not empty.
    Lists {
        servers: Vec<IpAddr>,
        /// `.` alone for none.
        search: Vec<String>,
        options: Vec<String>,
    },
}

impl Default for ResolvConf {
    fn default() -> Self {
        Self::Lists {
            servers: Vec::new(),
            search: Vec::new(),
            options: Vec::new(),
        }
    }
}

/// One `--add-host`: names, with a semicolon between them, and an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraHost {
    pub names: Vec<String>,
    pub address: HostAddress,
}

/// As `--add-host` has it.
impl fmt::Display for ExtraHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.names.join(";");
        match self.address {
            HostAddress::Ip(address) => write!(f, "{names}:{address}"),
            HostAddress::Gateway => write!(f, "{names}:{GATEWAY}"),
        }
    }
}

/// Stands for whichever address leads to the host.
const GATEWAY: &str = "host-gateway";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostAddress {
    Ip(IpAddr),
    /// `host-gateway`: whichever leads to the host from the container's network.
    Gateway,
}

/// One `--dns`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsServer {
    Address(IpAddr),
    /// `none`: the image's resolv.conf stays.
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NamesError {
    #[error(
        "--add-host NAME:host-gateway needs an address that leads to the host: --network coracle:map-host=ADDRESS gives one"
    )]
    NoGateway,
    #[error(
        "--dns, --dns-search and --dns-option do not go with --network none, which nobody can be asked through"
    )]
    NoNetwork,
    #[error(
        "--dns does not go with networks of `coracle network create`: their own server knows the containers there, and asks the host's"
    )]
    OfNetworks,
}

impl Explained for NamesError {}

impl Names {
    /// Whether they go with the network.
    pub fn check(&self, network: &Network) -> Result<(), NamesError> {
        let asks_for_gateway = |host: &ExtraHost| host.address == HostAddress::Gateway;
        if self.hosts.iter().any(asks_for_gateway) && gateway(network).is_none() {
            return Err(NamesError::NoGateway);
        }
        match (&self.resolv_conf, network) {
            (ResolvConf::Image, _) => Ok(()),
            (lists, Network::None) if *lists != ResolvConf::default() => Err(NamesError::NoNetwork),
            (ResolvConf::Lists { servers, .. }, Network::Bridge) if !servers.is_empty() => {
                Err(NamesError::OfNetworks)
            }
            _ => Ok(()),
        }
    }

    /// The lines for /etc/hosts.
    pub fn host_lines(&self, network: &Network) -> String {
        let line = |host: &ExtraHost| {
            let address = match host.address {
                HostAddress::Ip(address) => address,
                HostAddress::Gateway => gateway(network)?,
            };
            Some(format!("{address}\t{}\n", host.names.join(" ")))
        };
        self.hosts.iter().filter_map(line).collect()
    }
}

/// The address that leads to the host.
fn gateway(network: &Network) -> Option<IpAddr> {
    match network {
        Network::Coracle(options) => options.host().first().copied(),
        Network::Host => Some(IpAddr::from([127, 0, 0, 1])),
        Network::None | Network::Bridge => None,
    }
}

/// For clap.
pub fn parse_server(text: &str) -> Result<DnsServer, String> {
    match text {
        "none" => Ok(DnsServer::None),
        address => address
            .parse()
            .map(DnsServer::Address)
            .map_err(|_| "expected the address of a name server, or none".to_owned()),
    }
}

/// For clap: a domain, or `.` for none.
pub fn parse_domain(text: &str) -> Result<String, String> {
    match text {
        "." => Ok(text.to_owned()),
        domain => match domain.parse::<DomainName>() {
            Ok(_) => Ok(domain.to_owned()),
            Err(error) => Err(error.to_string()),
        },
    }
}

/// For clap: an option of `resolv.conf(5)`.
pub fn parse_option(text: &str) -> Result<String, String> {
    let is_word = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    is_word
        .then(|| text.to_owned())
        .ok_or_else(|| "expected a word, as ndots:2".to_owned())
}

/// For clap.
pub fn parse_host(text: &str) -> Result<ExtraHost, String> {
    const EXPECTED: &str = "expected NAME:ADDRESS or NAME;NAME:ADDRESS";
    // An address of IPv6 has colons of its own, and maybe brackets around it.
    let (names, address) = text.split_once([':', '=']).ok_or(EXPECTED)?;
    let names: Vec<_> = names.split(';').map(str::to_owned).collect();
    for name in &names {
        let is_name = !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        if !is_name {
            return Err(format!("{name:?} cannot be the name of a host"));
        }
    }
    let plain = address
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let address = match plain.unwrap_or(address) {
        GATEWAY => HostAddress::Gateway,
        text => HostAddress::Ip(
            text.parse()
                .map_err(|_| format!("{text:?} is no address, nor host-gateway"))?,
        ),
    };
    Ok(ExtraHost { names, address })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(hosts: &[&str], servers: &[&str]) -> Names {
        Names {
            resolv_conf: ResolvConf::Lists {
                servers: servers.iter().map(|ip| ip.parse().unwrap()).collect(),
                search: Vec::new(),
                options: Vec::new(),
            },
            hosts: hosts.iter().map(|host| parse_host(host).unwrap()).collect(),
            no_hosts: false,
        }
    }

    #[test]
    fn hosts_have_names_and_an_address() {
        let names = names(&["a:192.0.2.1", "b;c.example:2001:db8::1", "d:[::1]"], &[]);
        assert_eq!(
            names.host_lines(&Network::None),
            "192.0.2.1\ta\n2001:db8::1\tb c.example\n::1\td\n"
        );
        for (text, named) in [
            ("a", "expected NAME"),
            ("a:", "no address"),
            (":192.0.2.1", "cannot be the name"),
            ("a b:192.0.2.1", "cannot be the name"),
            ("a\nb:192.0.2.1", "cannot be the name"),
            ("a:192.0.2", "no address"),
            ("a:[::1", "no address"),
        ] {
            let error = parse_host(text).expect_err(text);
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn the_gateway_is_whoever_leads_to_the_host() {
        let names = names(&["host:host-gateway"], &[]);
        let mapped = Network::Coracle("map-host=192.0.2.9".parse().unwrap());
        assert_eq!(names.check(&mapped), Ok(()));
        assert_eq!(names.host_lines(&mapped), "192.0.2.9\thost\n");
        assert_eq!(names.hosts[0].to_string(), "host:host-gateway");
        for network in [Network::default(), Network::None, Network::Bridge] {
            assert_eq!(names.check(&network), Err(NamesError::NoGateway));
        }
    }

    #[test]
    fn servers_need_a_network_that_reaches_them() {
        let names = names(&[], &["192.0.2.1"]);
        assert_eq!(names.check(&Network::default()), Ok(()));
        assert_eq!(names.check(&Network::None), Err(NamesError::NoNetwork));
        assert_eq!(names.check(&Network::Bridge), Err(NamesError::OfNetworks));
        assert_eq!(Names::default().check(&Network::None), Ok(()));
    }

    #[test]
    fn lists_have_no_lines_of_their_own() {
        for text in ["", "a b", "a\n"] {
            assert!(parse_option(text).is_err(), "{text:?}");
            assert!(parse_domain(text).is_err(), "{text:?}");
        }
        assert_eq!(parse_domain("."), Ok(".".to_owned()));
        assert_eq!(parse_server("none"), Ok(DnsServer::None));
        assert!(parse_server("dns.example").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*") {
            let _ = (parse_host(&text), parse_domain(&text), parse_option(&text), parse_server(&text));
        }
    }
}
