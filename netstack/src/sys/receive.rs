//! Many datagrams in one call (recvmmsg(2)).

use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

/// Datagrams in one call.
const MOST: usize = 32;
/// As long as a datagram can be, or several that the kernel has glued together.
const SLOT_LEN: usize = 1 << 16;
/// A control message with one int, rounded up.
const CONTROL_LEN: usize = 32;
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
            let segment = segment(&control.0[..header.msg_controllen.min(CONTROL_LEN)]);
            Some(Received {
                payload,
                from: socket_addr(name)?,
                segment: segment.filter(|size| usize::from(size.get()) < payload.len()),
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
            Some(SocketAddr::new(ip.into(), port))
        }
        _ => None,
    }
}

/// Reads the one control message there may be: a `struct cmsghdr` and an int (udp(7), UDP_GRO).
fn segment(control: &[u8]) -> Option<NonZeroU16> {
    let kind = control.get(size_of::<usize>()..)?;
    let (level, kind) = kind.split_first_chunk()?;
    let (kind, data) = kind.split_first_chunk()?;
    let is_gro =
        i32::from_ne_bytes(*level) == libc::SOL_UDP && i32::from_ne_bytes(*kind) == libc::UDP_GRO;
    let size = i32::from_ne_bytes(*data.first_chunk()?);
    NonZeroU16::new(u16::try_from(size).ok().filter(|_| is_gro)?)
}
