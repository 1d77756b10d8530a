//! The addresses of the parties of a test: the guest, its helper, the host, and whoever is
//! elsewhere. They are those of documentation, RFC 5737 and RFC 3849, and slirp4netns' own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IPv4 or IPv6, with the address that each party has in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub fn guest(self) -> IpAddr {
        self.pick(Ipv4Addr::new(10, 0, 2, 100), "fd00::100")
    }

    /// The helper's own address, which also stands for clients on the host's loopback.
    pub fn gateway(self) -> IpAddr {
        self.pick(Ipv4Addr::new(10, 0, 2, 2), "fd00::2")
    }

    pub fn dns(self) -> IpAddr {
        self.pick(Ipv4Addr::new(10, 0, 2, 3), "fd00::3")
    }

    pub fn host(self) -> IpAddr {
        self.pick(Ipv4Addr::new(198, 51, 100, 1), "2001:db8::1")
    }

    pub fn loopback(self) -> IpAddr {
        self.pick(Ipv4Addr::LOCALHOST, "::1")
    }

    pub fn elsewhere(self) -> IpAddr {
        self.pick(Ipv4Addr::new(198, 51, 100, 7), "2001:db8::7")
    }

    /// Swallows everything that is sent to it.
    pub fn silent(self) -> IpAddr {
        self.pick(Ipv4Addr::new(203, 0, 113, 9), "2001:db8:dead::9")
    }

    /// EHOSTUNREACH at once.
    pub fn unreachable(self) -> IpAddr {
        self.pick(Ipv4Addr::new(192, 0, 2, 9), "2001:db8:beef::9")
    }

    /// No route at all: ENETUNREACH at once.
    pub fn no_route(self) -> IpAddr {
        self.pick(Ipv4Addr::new(100, 64, 0, 9), "2400::9")
    }

    pub fn unspecified(self) -> IpAddr {
        self.pick(Ipv4Addr::UNSPECIFIED, "::")
    }

    fn pick(self, v4: Ipv4Addr, v6: &str) -> IpAddr {
        match self {
            Self::V4 => v4.into(),
            Self::V6 => v6.parse::<Ipv6Addr>().expect("an IPv6 address").into(),
        }
    }
}
