//! Who listens in a network namespace: TCP sockets that accept connections and UDP sockets that
//! take datagrams of anybody (sock_diag, Linux 3.3; no privilege needed, and no /proc).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portfwd::Protocol;

use super::{Netlink, NetlinkError};

/// Access to the sockets of the namespace that it was opened in. Works from any thread.
#[derive(Debug)]
pub struct ListeningSockets {
    netlink: Netlink,
}

/// A socket that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    pub addr: SocketAddr,
    /// What the socket itself tells by SO_COOKIE. No other socket ever has the same.
    pub cookie: u64,
}

impl ListeningSockets {
    /// Of the calling thread's namespace.
    pub fn open() -> io::Result<Self> {
        let netlink = Netlink::open(libc::NETLINK_SOCK_DIAG)?;
        Ok(Self { netlink })
    }

    /// Those of `protocol`, in both families.
    pub fn list(&mut self, protocol: Protocol) -> Result<Vec<Listening>, NetlinkError> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            self.netlink.dump_payloads(
                SOCK_DIAG_BY_FAMILY,
                |message| message.put(&request(family, protocol)),
                |answer| found.extend(Listening::parse(answer)),
            )?;
        }
        Ok(found)
    }
}

impl Listening {
    /// Whether who connects to `ip` gets to this socket, as far as addresses tell.
    pub fn hears(&self, ip: IpAddr) -> bool {
        match self.addr.ip() {
            // Without IPV6_V6ONLY it hears IPv4, too. With it, its port is taken for one that does:
            // a refusal later is the worst that comes of it.
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => true,
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => ip.is_ipv4(),
            own => own == ip,
        }
    }

    /// Of a `struct inet_diag_msg` (linux/inet_diag.h).
    fn parse(answer: &[u8]) -> Option<Self> {
        let port = u16::from_be_bytes(answer.get(4..6)?.try_into().ok()?);
        let addr: [u8; 16] = answer.get(8..24)?.try_into().ok()?;
        let cookie = answer.get(44..52)?.try_into().ok()?;
        let ip = match i32::from(*answer.first()?) {
            libc::AF_INET => IpAddr::from([addr[0], addr[1], addr[2], addr[3]]),
            _ => IpAddr::from(addr).to_canonical(),
        };
        Some(Self {
            addr: SocketAddr::new(ip, port),
            cookie: u64::from_ne_bytes(cookie),
        })
    }
}

/// A `struct inet_diag_req_v2` for all sockets in the one state.
fn request(family: i32, protocol: Protocol) -> [u8; 56] {
    /// include/net/tcp_states.h; a UDP socket without a peer is in the second one.
    const TCP_CLOSE: u32 = 7;
    const TCP_LISTEN: u32 = 10;
    let (protocol, state) = match protocol {
        Protocol::Tcp => (libc::IPPROTO_TCP, TCP_LISTEN),
        Protocol::Udp => (libc::IPPROTO_UDP, TCP_CLOSE),
    };
    let mut request = [0; 56];
    request[0] = family as u8;
    request[1] = protocol as u8;
    request[4..8].copy_from_slice(&(1u32 << state).to_ne_bytes());
    request
}

/// linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use rtnetlink::LinkUnspec;
    use rtnetlink::packet_route::RouteNetlinkMessage;
    use rustix::net::sockopt::socket_cookie;

    use super::*;
    use crate::testing::in_namespaces;

    fn lo_up() {
        let up = LinkUnspec::new_with_name("lo").up().build();
        let mut netlink = Netlink::open(libc::NETLINK_ROUTE).unwrap();
        netlink
            .request(RouteNetlinkMessage::SetLink(up), 0)
            .unwrap();
    }

    #[test]
    fn only_what_listens_is_listed() {
        in_namespaces(module_path!(), "only_what_listens_is_listed", || {
            lo_up();
            let mut sockets = ListeningSockets::open().unwrap();
            assert_eq!(sockets.list(Protocol::Tcp).unwrap(), []);
            let tcp = TcpListener::bind("127.0.0.1:80").unwrap();
            let six = TcpListener::bind("[::]:443").unwrap();
            let _client = TcpStream::connect("127.0.0.1:80").unwrap();
            let udp = UdpSocket::bind("0.0.0.0:53").unwrap();
            let connected = UdpSocket::bind("127.0.0.1:54").unwrap();
            connected.connect("127.0.0.1:53").unwrap();

            let listening = |addr: &str, cookie| Listening {
                addr: addr.parse().unwrap(),
                cookie,
            };
            let found = sockets.list(Protocol::Tcp).unwrap();
            let expected = [
                listening("127.0.0.1:80", socket_cookie(&tcp).unwrap()),
                listening("[::]:443", socket_cookie(&six).unwrap()),
            ];
            assert_eq!(found, expected);
            let found = sockets.list(Protocol::Udp).unwrap();
            let expected = [listening("0.0.0.0:53", socket_cookie(&udp).unwrap())];
            assert_eq!(found, expected);
            drop((tcp, six));
            assert_eq!(sockets.list(Protocol::Tcp).unwrap(), []);
        });
    }

    /// More than one datagram of answers.
    #[test]
    fn many_are_listed() {
        in_namespaces(module_path!(), "many_are_listed", || {
            lo_up();
            let all: Vec<_> = (1..=900)
                .map(|port| UdpSocket::bind(("127.0.0.1", port)).unwrap())
                .collect();
            let mut sockets = ListeningSockets::open().unwrap();
            assert_eq!(sockets.list(Protocol::Udp).unwrap().len(), all.len());
        });
    }

    #[test]
    fn a_socket_hears_its_own_addresses() {
        let hears = |own: &str, ip: &str| {
            let addr = SocketAddr::new(own.parse().unwrap(), 80);
            Listening { addr, cookie: 1 }.hears(ip.parse().unwrap())
        };
        assert!(hears("0.0.0.0", "127.0.0.1") && hears("::", "127.0.0.1") && hears("::", "::1"));
        assert!(hears("127.0.0.1", "127.0.0.1") && !hears("127.0.0.1", "10.0.2.100"));
        assert!(!hears("0.0.0.0", "::1") && !hears("192.0.2.1", "127.0.0.1"));
    }
}
