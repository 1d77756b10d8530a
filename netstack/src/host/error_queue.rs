//! The error queue of a socket (IP_RECVERR, ip(7)): what ICMP said of datagrams that it has sent.

use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt,
};

use super::errno::unreachable_by;
use crate::core::icmp::{DeliveryError, Unreachable};

/// Origins in `sock_extended_err` (linux/errqueue.h).
const ORIGIN_LOCAL: u8 = 1;
const ORIGIN_ICMP: u8 = 2;
const ORIGIN_ICMP6: u8 = 3;

/// Types of ICMP (RFC 792) and ICMPv6 (RFC 4443 3.3).
const TIME_EXCEEDED: u8 = 11;
const TIME_EXCEEDED_V6: u8 = 3;

/// Has the kernel keep errors of datagrams that `socket` sends to addresses like `like`.
pub fn enable(socket: &impl AsFd, like: IpAddr) -> nix::Result<()> {
    match like {
        IpAddr::V4(_) => setsockopt(socket, sockopt::Ipv4RecvErr, &true),
        IpAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvErr, &true),
    }
}

/// The next datagram that did not arrive, and how many bytes of what the reporter has quoted behind
/// the IP and UDP headers are in `quote`. `None` when there is no more.
pub fn take(socket: &impl AsFd, quote: &mut [u8]) -> Option<(DeliveryError, usize)> {
    loop {
        let mut space = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
        let mut slices = [IoSliceMut::new(quote)];
        // The name is where it was sent.
        let message = recvmsg::<SockaddrStorage>(
            socket.as_fd().as_raw_fd(),
            &mut slices,
            Some(&mut space),
            MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT,
        )
        .ok()?;
        let to = message.address.as_ref().and_then(socket_addr);
        let reported = message.cmsgs().ok().and_then(|mut messages| {
            messages.find_map(|message| match message {
                ControlMessageOwned::Ipv4RecvErr(error, reporter) => {
                    Some((why(&error)?, reporter.map(ip_v4)))
                }
                ControlMessageOwned::Ipv6RecvErr(error, reporter) => {
                    Some((why(&error)?, reporter.map(ip_v6)))
                }
                _ => None,
            })
        });
        let quoted = message.bytes;
        if let (Some(to), Some((why, reporter))) = (to, reported) {
            let reporter = reporter.filter(|ip| !ip.is_unspecified());
            return Some((DeliveryError { to, why, reporter }, quoted));
        }
    }
}

/// Quench and the like say nothing that the guest could use.
fn why(error: &libc::sock_extended_err) -> Option<Unreachable> {
    let errno = error.ee_errno.cast_signed();
    match (error.ee_origin, error.ee_type) {
        (ORIGIN_ICMP, TIME_EXCEEDED) | (ORIGIN_ICMP6, TIME_EXCEEDED_V6) => {
            Some(Unreachable::TimeExceeded)
        }
        (ORIGIN_LOCAL | ORIGIN_ICMP | ORIGIN_ICMP6, _) if errno == libc::EMSGSIZE => {
            Some(Unreachable::TooBig {
                mtu: u16::try_from(error.ee_info).unwrap_or(u16::MAX),
            })
        }
        (ORIGIN_ICMP | ORIGIN_ICMP6, _) => unreachable_by(errno),
        _ => None,
    }
}

fn socket_addr(address: &SockaddrStorage) -> Option<SocketAddr> {
    match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => Some(SocketAddr::new(v4.ip().into(), v4.port())),
        (_, Some(v6)) => Some(SocketAddr::new(v6.ip().into(), v6.port())),
        _ => None,
    }
}

fn ip_v4(address: libc::sockaddr_in) -> IpAddr {
    IpAddr::from(address.sin_addr.s_addr.to_ne_bytes())
}

fn ip_v6(address: libc::sockaddr_in6) -> IpAddr {
    IpAddr::from(address.sin6_addr.s6_addr)
}
