//! The kernel's table of TCP sockets in the guest's network namespace (sock_diag, SOCK_DESTROY:
//! Linux 4.5).

use std::net::{IpAddr, SocketAddr};

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST};

use super::socket_pool::SocketError;
use crate::core::flow::Endpoints;
use crate::netlink::{Encoder, Netlink, NetlinkError};

/// Access to the table. Works from any thread.
#[derive(Debug)]
pub struct SocketTable {
    netlink: Netlink,
}

impl SocketTable {
    /// That of the calling thread's network namespace.
    pub fn open() -> Result<Self, SocketError> {
        let netlink = Netlink::open(libc::NETLINK_SOCK_DIAG).map_err(SocketError::Open)?;
        Ok(Self { netlink })
    }

    /// Makes the kernel forget that a repair socket with these ends has been there, so that the
    /// guest can use its port for the same remote again. To be called after such a socket was
    /// closed: if it went to TIME-WAIT, that ends at once, without a word to the guest. Returns
    /// whether it did.
    pub fn forget(&mut self, endpoints: &Endpoints) -> Result<bool, NetlinkError> {
        let mut found = None;
        let query = self.netlink.query(
            |encoder| request(encoder, SOCK_DIAG_BY_FAMILY, endpoints, NO_COOKIE),
            |answer| found = Entry::parse(answer),
        );
        match query {
            Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(false),
            query => query?,
        }
        let Some(entry) = found.filter(Entry::is_time_wait) else {
            return Ok(false);
        };
        let destroyed = self.netlink.query(
            |encoder| request(encoder, SOCK_DESTROY, endpoints, entry.cookie),
            |_| {},
        );
        match destroyed {
            // It ended by itself meanwhile.
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
            destroyed => destroyed.map(|()| true),
        }
    }
}

/// A socket found. Where there is none with both ends the kernel answers with a *listening* socket
/// that a segment for the remote's address would reach, such as a server of the guest on the same
/// port number: hence state and cookie.
struct Entry {
    state: u8,
    inode: u32,
    cookie: [u8; 8],
}

impl Entry {
    /// Of a `struct inet_diag_msg` (linux/inet_diag.h).
    fn parse(answer: &[u8]) -> Option<Self> {
        Some(Self {
            state: *answer.get(1)?,
            cookie: answer.get(44..52)?.try_into().ok()?,
            inode: u32::from_ne_bytes(answer.get(68..72)?.try_into().ok()?),
        })
    }

    /// The kernel replaces a socket by something smaller in TIME-WAIT, and in FIN-WAIT-2 once its
    /// file is closed.
    fn is_time_wait(&self) -> bool {
        /// include/net/tcp_states.h.
        const TCP_FIN_WAIT2: u8 = 5;
        const TCP_TIME_WAIT: u8 = 6;
        matches!(self.state, TCP_FIN_WAIT2 | TCP_TIME_WAIT) && self.inode == 0
    }
}

/// A `struct inet_diag_req_v2` for the socket whose own address is the remote's.
fn request(encoder: &mut Encoder, kind: u16, endpoints: &Endpoints, cookie: [u8; 8]) {
    encoder.message(kind, NLM_F_REQUEST | NLM_F_ACK, |message| {
        let (own, peer) = (endpoints.remote(), endpoints.guest());
        let family = if own.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        message.put(&[family as u8, libc::IPPROTO_TCP as u8, 0, 0]);
        // All states.
        message.put(&u32::MAX.to_ne_bytes());
        message.put(&own.port().to_be_bytes());
        message.put(&peer.port().to_be_bytes());
        message.put(&address(own));
        message.put(&address(peer));
        // Any interface.
        message.put(&[0; 4]);
        message.put(&cookie);
    });
}

fn address(end: SocketAddr) -> [u8; 16] {
    match end.ip() {
        IpAddr::V4(ip) => {
            let mut padded = [0; 16];
            padded[..4].copy_from_slice(&ip.octets());
            padded
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

const NO_COOKIE: [u8; 8] = [0xff; 8];
/// linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
