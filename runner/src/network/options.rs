//! What a container's network may be told to be, other than by default: `--network coracle:…`.
//! The keys are options of coracle-net, which gets them as they are.

use std::net::IpAddr;
use std::str::FromStr;

use netstack::config::{
    ConfigError, DEFAULT_SUBNET_V4, DEFAULT_SUBNET_V6, MTU_RANGE, parse_host, parse_subnet_v4,
    parse_subnet_v6,
};
use netstack::core::egress::{Egress, EgressError, EgressRule};
use netstack::network::{Network, NoHostAddress, hidden_by};
use serde::{Deserialize, Serialize};
use tracing::debug;

/// Checked: a helper starts with them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkOptions {
    /// The IPv4 subnet, if not the usual one.
    cidr: Option<String>,
    /// The IPv6 subnet.
    cidr6: Option<String>,
    mtu: Option<u16>,
    /// Lead to the host's loopback: one of each family at most.
    map_host: Vec<IpAddr>,
    /// Each in the form that coracle-net takes.
    egress: Vec<String>,
}

/// Why a text says nothing about a network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkOptionsError {
    #[error(
        "{0:?} is no option of a network: there are cidr=, cidr6=, mtu=, map-host= and egress="
    )]
    Unknown(String),
    #[error("{0}= is given twice")]
    Twice(&'static str),
    #[error("mtu={0}: expected {first} to {last}", first = MTU_RANGE.start(), last = MTU_RANGE.end())]
    Mtu(String),
    #[error("map-host={0}: {1}")]
    Host(String, &'static str),
    #[error("map-host={0}: {1}")]
    NoHost(IpAddr, NoHostAddress),
    #[error("{0}=: {1}")]
    Subnet(&'static str, ConfigError),
    #[error("egress=: {0}")]
    Egress(#[from] EgressError),
}

impl crate::failure::Explained for NetworkOptionsError {}

/// `KEY=VALUE`, any number of them with commas between.
impl FromStr for NetworkOptions {
    type Err = NetworkOptionsError;

    fn from_str(text: &str) -> Result<Self, NetworkOptionsError> {
        let mut options = Self::default();
        for option in text.split(',') {
            let unknown = || NetworkOptionsError::Unknown(option.to_owned());
            let (key, value) = option.split_once('=').ok_or_else(unknown)?;
            match key {
                "cidr" => set(&mut options.cidr, "cidr", value.to_owned())?,
                "cidr6" => set(&mut options.cidr6, "cidr6", value.to_owned())?,
                "mtu" => {
                    let mtu = value.parse().ok().filter(|mtu| MTU_RANGE.contains(mtu));
                    let mtu = mtu.ok_or_else(|| NetworkOptionsError::Mtu(value.to_owned()))?;
                    set(&mut options.mtu, "mtu", mtu)?;
                }
                "map-host" => {
                    let ip = parse_host(value)
                        .map_err(|why| NetworkOptionsError::Host(value.to_owned(), why))?;
                    let is_there = |own: &IpAddr| own.is_ipv4() == ip.is_ipv4();
                    if options.map_host.iter().any(is_there) {
                        return Err(NetworkOptionsError::Twice("map-host"));
                    }
                    options.map_host.push(ip);
                }
                "egress" => {
                    let rule: EgressRule = value.parse()?;
                    options.egress.push(rule.to_string());
                }
                _ => return Err(unknown()),
            }
        }
        Egress::check_count(options.egress.len())?;
        options.network()?;
        Ok(options)
    }
}

fn set<T>(place: &mut Option<T>, key: &'static str, value: T) -> Result<(), NetworkOptionsError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(NetworkOptionsError::Twice(key)),
    }
}

impl NetworkOptions {
    /// As coracle-net takes them.
    pub fn arguments(&self) -> Vec<String> {
        let option = |name: &str, value: &dyn ToString| [format!("--{name}"), value.to_string()];
        let cidr = self.cidr.iter().map(|cidr| option("cidr", cidr));
        let cidr6 = self.cidr6.iter().map(|cidr6| option("cidr6", cidr6));
        let mtu = self.mtu.iter().map(|mtu| option("mtu", mtu));
        let map_host = self.map_host.iter().map(|ip| option("map-host", ip));
        let egress = self.egress.iter().map(|rule| option("egress", rule));
        let options = cidr.chain(cidr6).chain(mtu).chain(map_host).chain(egress);
        options.flatten().collect()
    }

    /// Addresses that lead to the host.
    pub fn host(&self) -> &[IpAddr] {
        &self.map_host
    }

    /// Tells of networks of the host's that the container's own one hides from it.
    pub fn warn_of_hidden(&self, warn: &mut dyn FnMut(&str)) {
        let Ok(network) = self.network() else {
            return;
        };
        match hidden_by(&network) {
            Ok(hidden) => hidden.iter().for_each(|hidden| {
                let (key, other) = match hidden.subnet.network {
                    IpAddr::V4(_) => ("cidr", "10.0.3.0/24"),
                    IpAddr::V6(_) => ("cidr6", "fd01::/64"),
                };
                warn(&format!(
                    "{hidden}; --network coracle:{key}={other}, say, gives the container another"
                ));
            }),
            Err(error) => debug!("cannot see whether networks are hidden: {error}"),
        }
    }

    /// What coracle-net makes of them. Fails only before they are checked.
    pub fn network(&self) -> Result<Network, NetworkOptionsError> {
        let cidr = self.cidr.as_deref().unwrap_or(DEFAULT_SUBNET_V4);
        let cidr6 = self.cidr6.as_deref().unwrap_or(DEFAULT_SUBNET_V6);
        let wrong = |key| move |why| NetworkOptionsError::Subnet(key, why);
        let network = Network {
            v4: Some(parse_subnet_v4(cidr, true).map_err(wrong("cidr"))?),
            v6: Some(parse_subnet_v6(cidr6, true).map_err(wrong("cidr6"))?),
        };
        self.map_host.iter().try_fold(network, |network, ip| {
            network
                .with_host_at(*ip)
                .map_err(|why| NetworkOptionsError::NoHost(*ip, why))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_reach_the_helper_as_they_are() {
        let options: NetworkOptions =
            "mtu=1500,cidr=10.9.0.0/24,map-host=192.0.2.1,egress=allow:dns,egress=deny,cidr6=fd09::/64"
                .parse()
                .unwrap();
        let line = options.arguments().join(" ");
        assert_eq!(
            line,
            "--cidr 10.9.0.0/24 --cidr6 fd09::/64 --mtu 1500 --map-host 192.0.2.1 \
             --egress allow:dns --egress deny"
        );
        let addresses = options.network().unwrap().addresses();
        assert_eq!(addresses.guest[0], IpAddr::from([10, 9, 0, 100]));
        assert_eq!(options.host(), [IpAddr::from([192, 0, 2, 1])]);
        assert!(NetworkOptions::default().arguments().is_empty());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("", "there are cidr="),
            ("mtu", "there are cidr="),
            ("outbound_addr=10.0.0.1", "there are cidr="),
            ("mtu=9", "expected 1280 to 65520"),
            ("mtu=1500,mtu=1500", "mtu= is given twice"),
            ("cidr=10.0.0.1/24", "cidr=: subnet 10.0.0.1/24"),
            ("cidr6=::/64", "cidr6=: subnet ::/64"),
            ("map-host=127.0.0.1", "no host can have"),
            ("map-host=10.0.2.3", "the DNS forwarder's"),
            ("map-host=192.0.2.1,map-host=192.0.2.2", "given twice"),
            ("egress=block", "not an egress rule"),
        ] {
            let error = text.parse::<NetworkOptions>().unwrap_err().to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}
