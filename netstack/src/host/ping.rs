//! ICMP echo without privileges: SOCK_DGRAM sockets of protocol ICMP and ICMPv6 (kernel 3.0 and
//! 3.11), which the host allows to the groups of net.ipv4.ping_group_range. The kernel owns the
//! identifier and the checksum. ICMP errors come from the error queue.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU8;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{MsgFlags, SockaddrStorage, sendmsg};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, ipproto, socket_with};

use super::{HopLimit, Outbound, error_queue};
use crate::core::icmp::DeliveryError;

const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// Type, code, checksum, identifier, sequence (RFC 792, RFC 4443 4.1).
const HEADER_LEN: usize = 8;

/// A non-blocking ping socket of either family.
#[derive(Debug)]
pub struct PingSocket {
    socket: OwnedFd,
    request: u8,
    reply: u8,
}

impl PingSocket {
    /// Fails with EACCES when net.ipv4.ping_group_range does not hold a group of ours.
    pub fn open(like: IpAddr, outbound: Outbound) -> io::Result<Self> {
        let (family, protocol, request, reply) = match like {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, ECHO_REQUEST, ECHO_REPLY),
            IpAddr::V6(_) => (
                AddressFamily::INET6,
                ipproto::ICMPV6,
                ECHO_REQUEST_V6,
                ECHO_REPLY_V6,
            ),
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(family, SocketType::DGRAM, flags, Some(protocol))?;
        outbound.bind(&socket, like)?;
        error_queue::enable(&socket, like)?;
        Ok(Self {
            socket,
            request,
            reply,
        })
    }

    /// Sends an echo request that may pass `hops` routers, or as many as the host's own.
    ///
    /// An error may be an earlier one's; see [`PingSocket::take_error`].
    pub fn send(
        &self,
        to: IpAddr,
        hops: Option<NonZeroU8>,
        sequence: u16,
        payload: &[u8],
    ) -> io::Result<()> {
        let [high, low] = sequence.to_be_bytes();
        let header = [self.request, 0, 0, 0, 0, 0, high, low];
        let slices = [IoSlice::new(&header), IoSlice::new(payload)];
        let hops = hops.map(HopLimit::new);
        let control = hops.as_ref().map(|hops| hops.message(to));
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        let socket = self.socket.as_raw_fd();
        sendmsg(
            socket,
            &slices,
            control.as_slice(),
            MsgFlags::MSG_DONTWAIT,
            Some(&to),
        )?;
        Ok(())
    }

    /// The next echo request that did not arrive: its sequence number, and why. `None` when there
    /// is no more.
    pub fn take_error(&self) -> Option<(u16, DeliveryError)> {
        loop {
            let mut quote = [0; HEADER_LEN];
            let (error, quoted) = error_queue::take(&self.socket, &mut quote)?;
            // A router quotes the first eight bytes at least (RFC 792).
            if quoted == HEADER_LEN {
                return Some((u16::from_be_bytes([quote[6], quote[7]]), error));
            }
        }
    }

    /// Reads the next message. `Ok(None)` when it is not an echo reply; otherwise its sequence
    /// number and payload.
    pub fn receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Option<(u16, &'b [u8])>> {
        let (len, _) = rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::DONTWAIT)?;
        let message = &buffer[..len];
        Ok(match message {
            [kind, 0, _, _, _, _, high, low, ..] if *kind == self.reply => {
                Some((u16::from_be_bytes([*high, *low]), &message[HEADER_LEN..]))
            }
            _ => None,
        })
    }
}

impl AsFd for PingSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
