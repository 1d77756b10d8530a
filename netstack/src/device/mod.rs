//! The device layer: how whole Ethernet frames, each behind a virtio-net header, come from and go to the guest.
//!
//! Devices know nothing of what is in a frame. A device that cannot take a frame says would-block and the caller keeps it.

mod tap;

pub use tap::{Tap, TapError};

/// Length in bytes of `struct virtio_net_hdr` (linux/virtio_net.h, without `num_buffers`), which precedes each frame in
/// both directions. Its fields are in the byte order of the machine.
pub const VNET_HEADER_LEN: usize = 10;

/// A receive buffer of this many bytes holds any frame with its virtio-net header: an Ethernet header with one VLAN tag and
/// an IP datagram of 65,535 bytes, which bounds a segmentation-offload super-frame too (the kernel's `gso_max_size`
/// is 65,536 unless somebody configures BIG TCP, which tun does not carry).
pub const MAX_FRAME_LEN: usize = VNET_HEADER_LEN + 18 + 65535;
