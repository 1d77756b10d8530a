//! The device layer: how whole Ethernet frames, each behind a virtio-net header, come from and go
//! to the guest.
//!
//! Devices know nothing of what is in a frame. A device that cannot take a frame says would-block
//! and the caller keeps it.

mod tap;

use libc::c_long;

pub use crate::core::vnet::VNET_HEADER_LEN;
pub use tap::{Tap, TapError};

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
