//! A device without a kernel's interface behind it: frames go through a pair of sockets, so that it
//! can be polled, and is full when nobody takes them, as a real one. The test is the guest.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::device::{Capabilities, Device, MAX_FRAME_LEN};

/// The helper's end.
#[derive(Debug)]
pub struct MemoryDevice(OwnedFd);

/// The guest's end. Dropping it is the end of the device.
#[derive(Debug)]
pub struct MemoryGuest(OwnedFd);

impl MemoryDevice {
    pub fn pair() -> (Self, MemoryGuest) {
        let (ours, guests) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .expect("a pair of sockets");
        (Self(ours), MemoryGuest(guests))
    }
}

impl Device for MemoryDevice {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match rustix::net::recv(&self.0, buffer, RecvFlags::empty())? {
            (0, _) => Err(io::ErrorKind::UnexpectedEof.into()),
            (len, _) => Ok(len),
        }
    }

    fn transmit(&mut self, head: &[u8], payload: &[u8]) -> io::Result<()> {
        send(&self.0, &[head, payload].concat())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            udp_segmentation: true,
            guest_mac: None,
        }
    }
}

impl AsFd for MemoryDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl MemoryGuest {
    /// Sends a frame, virtio header first.
    pub fn send(&self, frame: &[u8]) {
        send(&self.0, frame).expect("the helper takes frames in time");
    }

    /// The next frame, virtio header first.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; MAX_FRAME_LEN];
        let (len, _) = rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty()).ok()?;
        buffer.truncate(len);
        Some(buffer)
    }
}

fn send(socket: &OwnedFd, frame: &[u8]) -> io::Result<()> {
    rustix::net::send(socket, frame, SendFlags::NOSIGNAL)?;
    Ok(())
}
