//! The place of one listening socket: address, port, and an interface if it is bound to one.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use thiserror::Error;

use crate::interface_name::InterfaceName;
use crate::spec::Protocol;

/// Where one socket listens, or a UDP socket is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    pub protocol: Protocol,
    /// The wildcard of IPv6 does not stand for that of IPv4.
    pub addr: SocketAddr,
    /// Only what comes in by this interface.
    pub interface: Option<InterfaceName>,
}

/// As [`FromStr`] reads it: `tcp 0.0.0.0:80 eth0`.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, self.addr)?;
        match self.interface {
            Some(interface) => write!(f, " {interface}"),
            None => Ok(()),
        }
    }
}

/// The text is none of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("expected PROTOCOL ADDRESS:PORT [INTERFACE]")]
pub struct NotAnEndpoint;

impl FromStr for Endpoint {
    type Err = NotAnEndpoint;

    fn from_str(text: &str) -> Result<Self, NotAnEndpoint> {
        let mut words = text.splitn(3, ' ');
        let mut read = || {
            let protocol = words.next()?.parse().ok()?;
            let addr = words.next()?.parse().ok()?;
            let interface = words.next().map(str::parse).transpose().ok()?;
            Some(Self {
                protocol,
                addr,
                interface,
            })
        };
        read().ok_or(NotAnEndpoint)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::publish::BindError;

    #[test]
    fn endpoints_are_opened_as_they_are_written() {
        for text in [
            "tcp 127.0.0.1:0",
            "udp 127.0.0.1:0",
            "tcp 0.0.0.0:0 lo",
            "udp [::]:0 lo",
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), text);
            match endpoint.listen() {
                Ok(_) => {}
                Err(BindError::NoIpv6(_)) => assert!(endpoint.addr.is_ipv6()),
                Err(error) => panic!("{text}: {error}"),
            }
        }
        let nowhere: Endpoint = "tcp 0.0.0.0:0 no-such-one".parse().unwrap();
        let error = nowhere.listen().unwrap_err();
        assert!(matches!(error, BindError::NoInterface(_)), "{error}");
        assert_eq!(error.system_text(), "No such device");
        for text in [
            "",
            "tcp",
            "tcp 80",
            "sctp 0.0.0.0:80",
            "tcp 0.0.0.0:80 ",
            "tcp 0.0.0.0:80 a b",
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(NotAnEndpoint), "{text}");
        }
    }

    #[test]
    fn what_listens_at_one_interface_is_not_heard_at_another() {
        let taken = TcpListener::bind("127.93.0.1:0").unwrap();
        let endpoint = |interface: Option<&str>| Endpoint {
            protocol: Protocol::Tcp,
            addr: taken.local_addr().unwrap(),
            interface: interface.map(|name| name.parse().unwrap()),
        };
        for interface in [None, Some("lo")] {
            let error = endpoint(interface).listen().unwrap_err();
            assert!(matches!(error, BindError::InUse(_)), "{error}");
            assert_eq!(error.system_text(), "Address already in use");
        }
    }
}
