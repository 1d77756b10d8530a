//! The device layer: how whole Ethernet frames, each behind a virtio-net header, come from and go
//! to the guest.
//!
//! Devices know nothing of what is in a frame. One that cannot take a frame now says would-block,
//! and the caller keeps it. Devices stack: `capture` wraps another one. Whoever uses one is
//! generic over it, so that a frame costs no dynamic call. A tap without offloads has those of
//! `software_offload`.

mod capture;
mod guest_device;
mod software_offload;
mod tap;
mod veth;

use std::io;
use std::os::fd::AsFd;

use libc::c_long;

use crate::core::MacAddr;
pub use crate::core::vnet::VNET_HEADER_LEN;
pub(crate) use capture::{Capture, CaptureError, CaptureFile};
pub use guest_device::{DeviceChoice, DeviceError, DeviceKind, GuestDevice};
pub use tap::{Tap, TapError};
pub use veth::{Veth, VethError};

/// A non-blocking way to the guest. Its descriptor is readable when a frame has come.
pub trait Device: AsFd {
    /// Reads one frame with its virtio-net header, and returns its length in bytes. `buffer` should
    /// have [`MAX_FRAME_LEN`] bytes; what does not fit is lost.
    ///
    /// `WouldBlock` when there is none; any other error once the device is gone.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes the frame `head ++ payload`, which begins with its virtio-net header: whole or not at
    /// all.
    ///
    /// `WouldBlock`, `ENOBUFS` and `ENOMEM` pass, and the caller tries the same frame again; any
    /// other error is about this frame, or the device is down or gone.
    fn transmit(&mut self, head: &[u8], payload: &[u8]) -> io::Result<()>;

    /// What the core has to know of it.
    fn capabilities(&self) -> Capabilities;
}

/// What differs from device to device. All of them take partial checksums and super-frames of TCP,
/// at any MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// UDP super-frames (VIRTIO_NET_HDR_GSO_UDP_L4) may be written, and are to be expected.
    pub udp_segmentation: bool,
    /// The Ethernet address of the guest's end, if it is known.
    pub guest_mac: Option<MacAddr>,
}

/// A receive buffer of this many bytes holds any frame with its virtio-net header: an Ethernet
/// header with one VLAN tag and an IP datagram of 65,535 bytes, which bounds a segmentation-offload
/// super-frame too (the kernel's `gso_max_size` is 65,536 unless somebody configures BIG TCP, which
/// tun does not carry).
pub const MAX_FRAME_LEN: usize = VNET_HEADER_LEN + 18 + 65535;

/// What a device that is open calls, for the sandbox.
pub const SYSTEM_CALLS: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
];

/// The kernel's `dev_valid_name`, and no `%`: it would make TUNSETIFF number the interface itself.
fn is_interface_name(name: &str) -> bool {
    (1..libc::IFNAMSIZ).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| {
            c.is_ascii_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%')
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_have_names_that_the_kernel_takes_as_they_are() {
        for name in ["tap0", "a", "fifteen-bytes-x", "net.7"] {
            assert!(is_interface_name(name), "{name}");
        }
        for name in [
            "",
            "sixteen-bytes-xx",
            "a/b",
            "tap 0",
            "tap%d",
            ".",
            "..",
            "a:1",
            "a\n",
        ] {
            assert!(!is_interface_name(name), "{name:?}");
        }
    }
}
