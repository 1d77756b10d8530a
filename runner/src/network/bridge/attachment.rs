//! What a container has of a network: what it was asked to be there, and, while it runs, what it
//! has been given.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A network of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network's name.
    pub network: String,
    /// Names of the container there, besides its own.
    pub aliases: Vec<String>,
    /// Addresses that it is to have, one of a family; the others are chosen at each start.
    pub ips: Vec<IpAddr>,
    pub mac: Option<Mac>,
    /// Of the last start. Nobody else has it while the container runs.
    pub lease: Option<Lease>,
}

/// What a container has on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The network's id.
    pub network_id: String,
    /// The interface in the container.
    pub interface: String,
    pub mac: Mac,
    pub addresses: Vec<Address>,
    /// Its ways out, where it has one.
    pub gateways: Vec<IpAddr>,
    /// The network's name servers.
    pub resolvers: Vec<IpAddr>,
}

/// An address with the length of its prefix in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    pub ip: IpAddr,
    pub len: u8,
}

impl Attachment {
    /// Of a network that may give what it likes.
    pub fn to(network: impl Into<String>) -> Self {
        Self {
            network: network.into(),
            aliases: Vec::new(),
            ips: Vec::new(),
            mac: None,
            lease: None,
        }
    }
}

/// An Ethernet address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an Ethernet address of an interface: expected one as 02:00:00:00:00:05")]
pub struct MacError(String);

impl Mac {
    /// The one that goes with an address. It is the same for whoever has the address next, so that
    /// neighbours need not forget anything.
    pub fn of(ip: IpAddr) -> Self {
        let [.., a, b, c, d] = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        // The local bit.
        Self([2, 0xc0, a, b, c, d])
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let error = || MacError(text.to_owned());
        let separator = if text.contains('-') { '-' } else { ':' };
        let octets = text.split(separator).map(|octet| {
            let is_octet = octet.len() == 2 && octet.bytes().all(|byte| byte.is_ascii_hexdigit());
            u8::from_str_radix(octet, 16).ok().filter(|_| is_octet)
        });
        let octets: Vec<u8> = octets.collect::<Option<_>>().ok_or_else(error)?;
        let octets: [u8; 6] = octets.try_into().map_err(|_| error())?;
        let is_an_interfaces = octets[0] & 1 == 0 && octets != [0; 6];
        is_an_interfaces.then_some(Self(octets)).ok_or_else(error)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ethernet_addresses() {
        let mac: Mac = "02:C0:0a:59:00:05".parse().unwrap();
        assert_eq!(mac, Mac::of([10, 89, 0, 5].into()));
        assert_eq!(mac.to_string(), "02:c0:0a:59:00:05");
        assert_eq!("02-c0-0a-59-00-05".parse(), Ok(mac));
        for wrong in [
            "",
            "02:c0:0a:59:00",
            "01:c0:0a:59:00:05",
            "00:00:00:00:00:00",
            "2:c0:0a:59:00:05",
            "02:c0:0a:59:00:05:06",
            "+2:c0:0a:59:00:05",
        ] {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
    }
}
