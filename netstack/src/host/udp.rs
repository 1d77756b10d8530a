//! One UDP socket per mapping: unconnected, with segmentation in both directions (UDP_SEGMENT since
//! kernel 4.18, UDP_GRO since 5.0) and ICMP errors from the error queue (IP_RECVERR). And the
//! socket of a published port, which all its clients share: a host may have many addresses, and the
//! client of one would not know an answer that comes from another (IP_PKTINFO).

use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType,
    SockaddrStorage, recvmsg, sendmsg, setsockopt, socket, sockopt,
};

use super::Outbound;
use super::errno::unreachable_by;
use crate::core::icmp::Unreachable;
use crate::sys::{ReceiveBuffer, Received};

/// Most segments of one send (UDP_MAX_SEGMENTS before kernel 6.9).
const MAX_SEGMENTS: usize = 64;
/// Bytes that may wait to be read, as the kernel counts them: bursts that come while others are
/// served. The kernel grants `net.core.rmem_max` at most, and memory is used only while something
/// waits.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Origins in `sock_extended_err` (linux/errqueue.h).
const ORIGIN_LOCAL: u8 = 1;
const ORIGIN_ICMP: u8 = 2;
const ORIGIN_ICMP6: u8 = 3;

/// A non-blocking UDP socket of either family.
#[derive(Debug)]
pub struct UdpSocket {
    socket: OwnedFd,
    /// Of a published port: where it is bound.
    published: Option<SocketAddr>,
}

impl UdpSocket {
    /// A socket that can talk to addresses of the family of `like`, from an address of `outbound`
    /// and a port that the kernel chooses.
    pub fn open(like: SocketAddr, outbound: Outbound) -> io::Result<Self> {
        let family = match like {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(family, SockType::Datagram, flags, None)?;
        outbound.bind(&socket, like.ip())?;
        Self::prepare(&socket, like.is_ipv4())?;
        Ok(Self {
            socket,
            published: None,
        })
    }

    /// Takes over the socket of a published port, which is bound to `local`. If that means every
    /// address of the host's, each datagram tells which one its sender has asked.
    pub fn adopt(socket: OwnedFd, local: SocketAddr) -> io::Result<Self> {
        Self::prepare(&socket, local.is_ipv4())?;
        match local {
            _ if !local.ip().is_unspecified() => {}
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
        }
        Ok(Self {
            socket,
            published: Some(local),
        })
    }

    fn prepare(socket: &OwnedFd, is_ipv4: bool) -> io::Result<()> {
        // Without GRO datagrams come one by one.
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        // With the default size a few super-datagrams fill it.
        let _ = setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER);
        match is_ipv4 {
            true => setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?,
            false => setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?,
        }
        Ok(())
    }

    /// The end that the sender of `received` has asked, where this is the socket of a published
    /// port.
    pub fn asked(&self, received: &Received) -> Option<SocketAddr> {
        let mut asked = received.to.or(self.published)?;
        asked.set_port(self.published?.port());
        Some(asked)
    }

    /// Sends `payload` as datagrams of `segment` bytes, or as one; from the host's address `from`,
    /// or from the one that the kernel chooses.
    ///
    /// An error may be an earlier datagram's; see [`UdpSocket::take_error`].
    pub fn send(
        &self,
        payload: &[u8],
        segment: Option<NonZeroU16>,
        from: Option<SocketAddr>,
        to: SocketAddr,
    ) -> io::Result<()> {
        let source = from.map(Source::of);
        let source = source.as_ref().map(Source::message);
        let Some(segment) = segment.map(|size| size.get()) else {
            return self.send_message(payload, source.as_slice(), to);
        };
        for batch in payload.chunks(usize::from(segment) * MAX_SEGMENTS) {
            let cut = Some(ControlMessage::UdpGsoSegments(&segment));
            let cut: Vec<_> = cut.into_iter().chain(source).collect();
            match self.send_message(batch, &cut, to) {
                // No such offload here, or a segment that needs fragmentation (EMSGSIZE from Linux
                // 6.14 on).
                Err(error) if is_of_segmentation(&error) => {
                    for datagram in batch.chunks(usize::from(segment)) {
                        self.send_message(datagram, source.as_slice(), to)?;
                    }
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// Reads the datagrams that have come, as many as `buffer` has room for.
    pub fn receive<'b>(
        &self,
        buffer: &'b mut ReceiveBuffer,
    ) -> io::Result<impl Iterator<Item = Received<'b>>> {
        buffer.receive(self.as_fd())
    }

    /// The next datagram that did not arrive: where it was sent to, and why it did not. `None` when
    /// there is no more.
    pub fn take_error(&self) -> Option<(SocketAddr, Unreachable)> {
        loop {
            // Data of the datagram is of no use; the name is where it was sent to.
            let mut data = [0; 64];
            let mut space = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
            let mut slices = [IoSliceMut::new(&mut data)];
            let message = recvmsg::<SockaddrStorage>(
                self.socket.as_raw_fd(),
                &mut slices,
                Some(&mut space),
                MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT,
            )
            .ok()?;
            let to = message.address.and_then(|address| socket_addr(&address));
            let why = message.cmsgs().ok().and_then(|mut messages| {
                messages.find_map(|message| match message {
                    ControlMessageOwned::Ipv4RecvErr(error, _)
                    | ControlMessageOwned::Ipv6RecvErr(error, _) => read_error(&error),
                    _ => None,
                })
            });
            if let (Some(to), Some(why)) = (to, why) {
                return Some((to, why));
            }
        }
    }

    fn send_message(
        &self,
        payload: &[u8],
        control: &[ControlMessage],
        to: SocketAddr,
    ) -> io::Result<()> {
        let to = SockaddrStorage::from(to);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let slices = [IoSlice::new(payload)];
        retry(|| sendmsg(self.socket.as_raw_fd(), &slices, control, flags, Some(&to)))?;
        Ok(())
    }
}

/// The address that a datagram is to come from, as sendmsg(2) wants it.
enum Source {
    V4(libc::in_pktinfo),
    V6(libc::in6_pktinfo),
}

impl Source {
    fn of(from: SocketAddr) -> Self {
        match from {
            SocketAddr::V4(from) => Self::V4(libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr {
                    s_addr: from.ip().to_bits().to_be(),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            }),
            SocketAddr::V6(from) => Self::V6(libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: from.ip().octets(),
                },
                ipi6_ifindex: from.scope_id(),
            }),
        }
    }

    fn message(&self) -> ControlMessage<'_> {
        match self {
            Self::V4(info) => ControlMessage::Ipv4PacketInfo(info),
            Self::V6(info) => ControlMessage::Ipv6PacketInfo(info),
        }
    }
}

/// Whether each datagram alone may go, though not all in one call.
fn is_of_segmentation(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EIO | libc::EMSGSIZE)
    )
}

/// What the guest is told of a datagram that could not be sent. `None` for one that is merely lost,
/// in a full send buffer or for want of memory, and for the refusal of an earlier one.
pub fn send_error(error: io::Error) -> Option<Unreachable> {
    unreachable_by(error.raw_os_error()?).filter(|why| *why != Unreachable::Port)
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(nix::errno::Errno::EINTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

fn socket_addr(address: &SockaddrStorage) -> Option<SocketAddr> {
    match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => Some(SocketAddr::new(v4.ip().into(), v4.port())),
        (_, Some(v6)) => Some(SocketAddr::new(v6.ip().into(), v6.port())),
        _ => None,
    }
}

/// Reads an entry of the error queue. Quench and the like say nothing that the guest could use.
fn read_error(error: &libc::sock_extended_err) -> Option<Unreachable> {
    let errno = error.ee_errno.cast_signed();
    match error.ee_origin {
        ORIGIN_LOCAL | ORIGIN_ICMP | ORIGIN_ICMP6 if errno == libc::EMSGSIZE => {
            Some(Unreachable::TooBig {
                mtu: u16::try_from(error.ee_info).unwrap_or(u16::MAX),
            })
        }
        ORIGIN_ICMP | ORIGIN_ICMP6 => unreachable_by(errno),
        _ => None,
    }
}
