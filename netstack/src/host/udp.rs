//! One UDP socket per mapping: unconnected, with segmentation in both directions (UDP_SEGMENT since
//! kernel 4.18, UDP_GRO since 5.0) and ICMP errors from the error queue (IP_RECVERR). And the
//! socket of a published port, which all its clients share: a host may have many addresses, and the
//! client of one would not know an answer that comes from another (IP_PKTINFO).

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroU16};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, SockaddrStorage, sendmsg,
    setsockopt, socket, sockopt,
};

use super::errno::unreachable_by;
use super::{HopLimit, Outbound, error_queue};
use crate::core::icmp::{DeliveryError, Unreachable};
use crate::sys::{ReceiveBuffer, Received};

/// Most segments of one send (UDP_MAX_SEGMENTS before kernel 6.9).
const MAX_SEGMENTS: usize = 64;
/// Bytes that may wait to be read, as the kernel counts them: bursts that come while others are
/// served. The kernel grants `net.core.rmem_max` at most, and memory is used only while something
/// waits.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Where a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    pub address: SocketAddr,
    /// Routers that it may pass; the host's default if there is none.
    pub hops: Option<NonZeroU8>,
}

impl From<SocketAddr> for Destination {
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            hops: None,
        }
    }
}

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
        Self::prepare(&socket, like)?;
        Ok(Self {
            socket,
            published: None,
        })
    }

    /// Takes over the socket of a published port, which is bound to `local`. If that means every
    /// address of the host's, each datagram tells which one its sender has asked.
    pub fn adopt(socket: OwnedFd, local: SocketAddr) -> io::Result<Self> {
        Self::prepare(&socket, local)?;
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

    fn prepare(socket: &OwnedFd, local: SocketAddr) -> io::Result<()> {
        // Without GRO datagrams come one by one.
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        // With the default size a few super-datagrams fill it.
        let _ = setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER);
        error_queue::enable(socket, local.ip())?;
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
        to: impl Into<Destination>,
    ) -> io::Result<()> {
        let (from, to) = (from.map(Source::of), to.into());
        let send = |payload, segment| self.send_message(payload, segment, from.as_ref(), to);
        let Some(segment) = segment.map(|size| size.get()) else {
            return send(payload, None);
        };
        for batch in payload.chunks(usize::from(segment) * MAX_SEGMENTS) {
            match send(batch, Some(segment)) {
                // No such offload here, or a segment that needs fragmentation (EMSGSIZE from Linux
                // 6.14 on).
                Err(error) if is_of_segmentation(&error) => {
                    for datagram in batch.chunks(usize::from(segment)) {
                        send(datagram, None)?;
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

    /// The next datagram that did not arrive. `None` when there is no more.
    pub fn take_error(&self) -> Option<DeliveryError> {
        // Data of the datagram is of no use.
        let mut data = [0; 64];
        error_queue::take(&self.socket, &mut data).map(|(error, _)| error)
    }

    fn send_message(
        &self,
        payload: &[u8],
        segment: Option<u16>,
        from: Option<&Source>,
        to: Destination,
    ) -> io::Result<()> {
        let hops = to.hops.map(HopLimit::new);
        let hops = hops.as_ref().map(|hops| hops.message(to.address.ip()));
        let segment = segment.as_ref().map(ControlMessage::UdpGsoSegments);
        let from = from.map(Source::message);
        // Empty, and so without memory, for most.
        let control: Vec<_> = [hops, segment, from].into_iter().flatten().collect();
        let to = SockaddrStorage::from(to.address);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let slices = [IoSlice::new(payload)];
        retry(|| sendmsg(self.socket.as_raw_fd(), &slices, &control, flags, Some(&to)))?;
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
