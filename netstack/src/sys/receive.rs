//! Many datagrams in one call (recvmmsg(2)).

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::num::NonZeroU16;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Datagrams in one call.
const MOST: usize = 32;
/// As long as a datagram can be, or several that the kernel has glued together.
const SLOT_LEN: usize = 1 << 16;
/// Control messages with an int and with a `struct in6_pktinfo`, rounded up.
const CONTROL_LEN: usize = 64;
/// `struct sockaddr_in6`, the longer one.
const NAME_LEN: usize = 28;

/// Where datagrams are read to. It takes its memory at the first read, and pages of that as far as
/// datagrams fill them.
#[derive(Default)]
pub struct ReceiveBuffer {
    slots: Vec<u8>,
    names: Vec<[u8; NAME_LEN]>,
    controls: Vec<Control>,
}

/// As the kernel aligns control messages.
#[derive(Clone, Copy)]
#[repr(align(8))]
struct Control([u8; CONTROL_LEN]);

/// One of the datagrams that a read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received<'b> {
    pub payload: &'b [u8],
    pub from: SocketAddr,
    /// Which of the socket's addresses it was sent to, or where that is not one of a host's, which
    /// one an answer is to have. Without a port, and `None` unless the socket is told to say
    /// (IP_PKTINFO, IPV6_RECVPKTINFO).
    pub to: Option<SocketAddr>,
    /// Several datagrams of this many bytes, the last one maybe shorter (UDP_GRO).
    pub segment: Option<NonZeroU16>,
}

impl ReceiveBuffer {
    /// Reads the datagrams that wait at the UDP `socket`, 32 at most, without waiting for one.
    /// `WouldBlock` if there is none.
    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
    ) -> io::Result<impl Iterator<Item = Received<'_>>> {
        if self.slots.is_empty() {
            self.slots = vec![0; MOST * SLOT_LEN];
            self.names = vec![[0; NAME_LEN]; MOST];
            self.controls = vec![Control([0; CONTROL_LEN]); MOST];
        }
        // SAFETY: both are C structs of integers and pointers; all zeroes is a valid value.
        let (mut vectors, mut headers): ([libc::iovec; MOST], [libc::mmsghdr; MOST]) =
            unsafe { (mem::zeroed(), mem::zeroed()) };
        for (index, slot) in self.slots.chunks_exact_mut(SLOT_LEN).enumerate() {
            vectors[index] = libc::iovec {
                iov_base: slot.as_mut_ptr().cast(),
                iov_len: slot.len(),
            };
            let header = &mut headers[index].msg_hdr;
            header.msg_iov = &raw mut vectors[index];
            header.msg_iovlen = 1;
            header.msg_name = self.names[index].as_mut_ptr().cast();
            header.msg_namelen = NAME_LEN as libc::socklen_t;
            header.msg_control = self.controls[index].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_LEN;
        }
        let count = loop {
            // SAFETY: every header points to memory of the lengths it tells, which is borrowed for
            // this function and overlaps with no other.
            let count = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    headers.as_mut_ptr(),
                    MOST as libc::c_uint,
                    libc::MSG_DONTWAIT,
                    ptr::null_mut(),
                )
            };
            match usize::try_from(count) {
                Ok(count) => break count,
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        };
        let slots = self.slots.chunks_exact(SLOT_LEN);
        let places = slots.zip(&self.names).zip(&self.controls);
        let read = headers.into_iter().zip(places).take(count);
        Ok(read.filter_map(|(header, ((slot, name), control))| {
            let payload = &slot[..(header.msg_len as usize).min(SLOT_LEN)];
            let header = header.msg_hdr;
            let told = Told::read(&control.0[..header.msg_controllen.min(CONTROL_LEN)]);
            Some(Received {
                payload,
                from: socket_addr(name)?,
                to: told.to,
                segment: told
                    .segment
                    .filter(|size| usize::from(size.get()) < payload.len()),
            })
        }))
    }
}

/// Reads a `struct sockaddr_in` or `sockaddr_in6`.
fn socket_addr(name: &[u8; NAME_LEN]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes([name[0], name[1]]);
    let port = u16::from_be_bytes([name[2], name[3]]);
    match i32::from(family) {
        libc::AF_INET => {
            let ip = Ipv4Addr::from(name[4..].first_chunk::<4>().copied()?);
            Some(SocketAddr::new(ip.into(), port))
        }
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(name[8..].first_chunk::<16>().copied()?);
            let scope = u32::from_ne_bytes(name[24..].first_chunk().copied()?);
            Some(SocketAddrV6::new(ip, port, 0, scope).into())
        }
        _ => None,
    }
}

/// What control messages tell of a datagram.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    segment: Option<NonZeroU16>,
    to: Option<SocketAddr>,
}

impl Told {
    /// Reads each `struct cmsghdr` (cmsg(3)) and what follows it: an int (udp(7), UDP_GRO), a
    /// `struct in_pktinfo` (ip(7)), or a `struct in6_pktinfo` (ipv6(7)).
    fn read(mut control: &[u8]) -> Self {
        let mut told = Self::default();
        while let Some(message) = Message::split(&mut control) {
            match (message.level, message.kind) {
                (libc::SOL_UDP, libc::UDP_GRO) => told.segment = segment(message.data),
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => told.to = to_v4(message.data),
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => told.to = to_v6(message.data),
                _ => {}
            }
        }
        told
    }
}

struct Message<'c> {
    level: i32,
    kind: i32,
    data: &'c [u8],
}

impl<'c> Message<'c> {
    /// Takes the first message off `control`; `None` if there is no whole one.
    fn split(control: &mut &'c [u8]) -> Option<Self> {
        const HEADER_LEN: usize = size_of::<libc::cmsghdr>();
        let (len, rest) = control.split_first_chunk()?;
        let (level, rest) = rest.split_first_chunk()?;
        let kind = rest.first_chunk()?;
        let len = usize::from_ne_bytes(*len);
        let data = control.get(HEADER_LEN..len)?;
        *control = control
            .get(len.next_multiple_of(size_of::<usize>())..)
            .unwrap_or_default();
        Some(Self {
            level: i32::from_ne_bytes(*level),
            kind: i32::from_ne_bytes(*kind),
            data,
        })
    }
}

fn segment(data: &[u8]) -> Option<NonZeroU16> {
    let size = i32::from_ne_bytes(*data.first_chunk()?);
    NonZeroU16::new(u16::try_from(size).ok()?)
}

/// The interface's index is first, then the address to answer from. It is another one than that of
/// the header, the last, if that is a broadcast address.
fn to_v4(data: &[u8]) -> Option<SocketAddr> {
    let answer_from = data.get(4..)?.first_chunk::<4>()?;
    Some(SocketAddr::new(IpAddr::from(*answer_from), 0))
}

/// The address, and the interface's index, by which one of a link is known.
fn to_v6(data: &[u8]) -> Option<SocketAddr> {
    let (ip, interface) = data.split_first_chunk::<16>()?;
    let ip = Ipv6Addr::from(*ip);
    let interface = u32::from_ne_bytes(*interface.first_chunk()?);
    let scope = match ip.is_unicast_link_local() {
        true => interface,
        false => 0,
    };
    (!ip.is_multicast()).then(|| SocketAddrV6::new(ip, 0, 0, scope).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut bytes = (size_of::<libc::cmsghdr>() + data.len())
            .to_ne_bytes()
            .to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn messages_are_read_in_any_order_and_foreign_ones_passed_over() {
        let size = message(libc::SOL_UDP, libc::UDP_GRO, &1400i32.to_ne_bytes());
        let info = [2, 0, 0, 0, 198, 51, 100, 1, 198, 51, 100, 255];
        let to = message(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        let other = message(libc::SOL_SOCKET, 99, b"?");
        let expected = Told {
            segment: NonZeroU16::new(1400),
            to: Some("198.51.100.1:0".parse().unwrap()),
        };
        for order in [[&size, &other, &to], [&to, &size, &other]] {
            assert_eq!(Told::read(&order.map(Vec::as_slice).concat()), expected);
        }
        for len in 0..size.len() - 4 {
            assert_eq!(Told::read(&size[..len]), Told::default(), "{len}");
        }
        assert_eq!(Told::read(&[0; 64]), Told::default());
        assert_eq!(Told::read(&[0xff; 64]), Told::default());
    }

    #[test]
    fn an_ipv6_address_has_a_scope_if_it_is_of_a_link() {
        let to = |ip: &str| {
            let mut info = ip.parse::<Ipv6Addr>().unwrap().octets().to_vec();
            info.extend(7u32.to_ne_bytes());
            let control = message(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            Told::read(&control).to.map(|to| to.to_string())
        };
        assert_eq!(to("2001:db8::1").as_deref(), Some("[2001:db8::1]:0"));
        assert_eq!(to("fe80::1").as_deref(), Some("[fe80::1%7]:0"));
        assert_eq!(to("ff02::1"), None);
    }
}
