//! The tap: an Ethernet interface in the guest whose other end is a file descriptor that the driver
//! polls.
//!
//! Opened with IFF_VNET_HDR and every segmentation offload, so one read or write moves up to 64 KiB
//! whatever the MTU, and checksums are left to whoever needs them: frames from the guest may carry
//! partial checksums and super-frames, frames to the guest may too. ECN with segmentation
//! (TUN_F_TSO_ECN) is not offered: the engine never negotiates ECN, and the kernel segments the few
//! such frames itself.
//!
//! A tap that a caller has attached and passed on may lack IFF_VNET_HDR, which cannot be changed
//! any more. It carries plain frames, and what its kernel does not do is done here.
//!
//! Reading: drivers/net/tun.c up to Linux 6.18 *drops* a frame that finds the ring (tx_queue_len
//! frames) full and never stops its queue. What `guest::interface` does about that is said there.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::io::retry_on_intr;
use tracing::debug;

use super::software_offload::SoftwareOffload;
use super::{Capabilities, Device, VNET_HEADER_LEN, is_interface_name};
use crate::core::MacAddr;
use crate::sys;

const TUN_PATH: &str = "/dev/net/tun";

const OFFLOAD: u32 = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
/// UDP segmentation; the kernel takes both or neither. Linux 6.2.
const UDP_OFFLOAD: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// A non-blocking tap descriptor. It works from any thread and outlives its opener's stay in the
/// namespace.
#[derive(Debug)]
pub struct Tap {
    device: File,
    name: String,
    framing: Framing,
}

/// What is in front of a frame.
#[derive(Debug)]
enum Framing {
    /// A virtio-net header.
    Header { udp_segmentation: bool },
    /// Nothing.
    Plain(SoftwareOffload),
}

/// Why there is no tap; the text says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    #[error(
        "cannot open /dev/net/tun: {0}; load the kernel's tun module (modprobe tun), or, inside a container, pass the device \
         in (--device /dev/net/tun)"
    )]
    Missing(#[source] io::Error),
    #[error(
        "cannot open /dev/net/tun: {0}; this user needs read and write access (chmod 666 /dev/net/tun is the common setting)"
    )]
    Forbidden(#[source] io::Error),
    #[error("cannot open /dev/net/tun: {0}")]
    Open(#[source] io::Error),
    #[error("{0:?} is not a name for a tap: 1 to 15 bytes, no '/', no white space")]
    Name(String),
    #[error(
        "cannot attach tap {0}: no CAP_NET_ADMIN in the user namespace that owns the network namespace (see --userns-path)"
    )]
    Capability(String),
    #[error("cannot attach tap {0}: another process has it open")]
    Busy(String),
    #[error(
        "cannot attach tap {0}: an interface of that name exists and is not a single-queue tap"
    )]
    NotTap(String),
    #[error("cannot attach tap {name}: {source}")]
    Attach { name: String, source: io::Error },
    #[error(
        "descriptor {fd} cannot be read as a tap: {source}; pass one of /dev/net/tun on which TUNSETIFF was called"
    )]
    Passed { fd: RawFd, source: io::Error },
    #[error(
        "descriptor {fd} is {name}, which is not a tap of whole frames; attach it with IFF_TAP and IFF_NO_PI"
    )]
    Frames { fd: RawFd, name: String },
    #[error("cannot set the offloads of tap {name}: {source}")]
    Offload { name: String, source: io::Error },
}

impl Tap {
    /// Creates tap `name` in the calling thread's network namespace, or attaches to it when it
    /// exists and nobody else has. A tap created here disappears with the last copy of the
    /// descriptor.
    pub fn open(name: &str) -> Result<Self, TapError> {
        if !is_interface_name(name) {
            return Err(TapError::Name(name.to_owned()));
        }
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(TUN_PATH)
            .map_err(open_error)?;
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        sys::tun_attach(device.as_fd(), name, flags).map_err(|error| attach_error(name, error))?;

        Self::with_header(device, name.to_owned())
    }

    /// Takes a tap that a caller has attached, in whatever network namespace it is.
    pub fn passed(descriptor: OwnedFd) -> Result<Self, TapError> {
        let device = File::from(descriptor);
        let passed_error = |source| TapError::Passed {
            fd: device.as_raw_fd(),
            source,
        };
        let (name, flags) = sys::tun_interface(device.as_fd()).map_err(passed_error)?;
        rustix::io::ioctl_fionbio(&device, true).map_err(|errno| passed_error(errno.into()))?;
        // The kernel reports IFF_NO_PI of every one: that its frames are without packet
        // information has to be believed.
        if flags & libc::IFF_TAP == 0 {
            return Err(TapError::Frames {
                fd: device.as_raw_fd(),
                name,
            });
        }
        if flags & libc::IFF_VNET_HDR != 0 {
            return Self::with_header(device, name);
        }
        debug!(
            tap = name,
            "plain frames: checksums and segments are made here"
        );
        match sys::tun_set_offload(device.as_fd(), 0) {
            Err(source) => Err(TapError::Offload { name, source }),
            Ok(()) => Ok(Self {
                device,
                name,
                framing: Framing::Plain(SoftwareOffload::default()),
            }),
        }
    }

    fn with_header(device: File, name: String) -> Result<Self, TapError> {
        let offload_error = |source| TapError::Offload {
            name: name.clone(),
            source,
        };
        // An existing tap may have been left with another length.
        sys::tun_set_vnet_header_len(device.as_fd(), VNET_HEADER_LEN as i32)
            .map_err(offload_error)?;
        let udp_segmentation = sys::tun_set_offload(device.as_fd(), OFFLOAD | UDP_OFFLOAD).is_ok();
        if !udp_segmentation {
            debug!(tap = name, "no UDP segmentation offload (Linux < 6.2)");
            sys::tun_set_offload(device.as_fd(), OFFLOAD).map_err(offload_error)?;
        }
        Ok(Self {
            device,
            name,
            framing: Framing::Header { udp_segmentation },
        })
    }

    /// The interface's name in the guest.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The Ethernet address of the guest's end.
    pub fn mac(&self) -> io::Result<MacAddr> {
        sys::tun_mac(self.device.as_fd())
    }
}

impl Device for Tap {
    /// `EBADFD` or `EIO` once the interface was deleted or its namespace is gone.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let header_len = match self.framing {
            Framing::Header { .. } => 0,
            Framing::Plain(_) => VNET_HEADER_LEN,
        };
        let (header, frame) = buffer.split_at_mut(header_len);
        let len = retry_on_intr(|| rustix::io::read(&self.device, &mut *frame))?;
        // Complete checksums, and nothing to be cut.
        header.fill(0);
        Ok(header_len + len)
    }

    /// Errors are about the frame (`EINVAL`: malformed), the memory (`ENOBUFS`, `ENOMEM`) or the
    /// interface (`EIO`: it is down, `EBADFD`: it is gone). `WouldBlock` needs a full socket send
    /// buffer (INT_MAX by default), so it is not expected.
    fn transmit(&mut self, head: &[u8], payload: &[u8]) -> io::Result<()> {
        match &mut self.framing {
            Framing::Header { .. } => {
                let pieces = [IoSlice::new(head), IoSlice::new(payload)];
                retry_on_intr(|| rustix::io::writev(&self.device, &pieces))?;
                Ok(())
            }
            Framing::Plain(offload) => offload.frames(head, payload, |frame| {
                retry_on_intr(|| rustix::io::write(&self.device, frame))?;
                Ok(())
            }),
        }
    }

    fn capabilities(&self) -> Capabilities {
        let mac = self.mac();
        Capabilities {
            udp_segmentation: match self.framing {
                Framing::Header { udp_segmentation } => udp_segmentation,
                Framing::Plain(_) => false,
            },
            guest_mac: mac
                .inspect_err(|error| debug!("cannot read the tap's address: {error}"))
                .ok(),
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

fn open_error(error: io::Error) -> TapError {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::ENOTDIR) => TapError::Missing(error),
        Some(libc::EACCES | libc::EPERM) => TapError::Forbidden(error),
        _ => TapError::Open(error),
    }
}

fn attach_error(name: &str, source: io::Error) -> TapError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM) => TapError::Capability(name),
        Some(libc::EBUSY) => TapError::Busy(name),
        // TUNSETIFF on an interface that is no tap, or on a multi-queue one.
        Some(libc::EINVAL) => TapError::NotTap(name),
        _ => TapError::Attach { name, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_namespaces;

    #[test]
    fn names_are_checked() {
        let error = Tap::open("tap%d").unwrap_err();
        assert!(matches!(error, TapError::Name(_)), "{error}");
    }

    #[test]
    fn errors_name_the_device_and_the_remedy() {
        let text = open_error(io::Error::from_raw_os_error(libc::ENOENT)).to_string();
        assert!(
            text.contains("/dev/net/tun") && text.contains("modprobe tun"),
            "{text}"
        );
        let text = open_error(io::Error::from_raw_os_error(libc::EACCES)).to_string();
        assert!(
            text.contains("/dev/net/tun") && text.contains("chmod"),
            "{text}"
        );
    }

    #[test]
    fn opens_once_and_is_empty() {
        in_namespaces(module_path!(), "opens_once_and_is_empty", || {
            let mut tap = Tap::open("tap0").unwrap();
            assert_eq!(tap.name(), "tap0");
            // A random address has the local bit set and the multicast bit clear.
            assert_eq!(tap.mac().unwrap()[0] & 3, 2);
            let mut buffer = vec![0; super::super::MAX_FRAME_LEN];
            assert_eq!(
                tap.receive(&mut buffer).unwrap_err().kind(),
                io::ErrorKind::WouldBlock
            );
            // Down: the frame is refused, not lost in silence.
            let error = tap.transmit(&[0; VNET_HEADER_LEN], &[0; 60]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO));
            assert!(matches!(Tap::open("tap0"), Err(TapError::Busy(_))));
            assert!(matches!(Tap::open("lo"), Err(TapError::NotTap(_))));
            // Gone with its descriptor.
            drop(tap);
            Tap::open("tap0").unwrap();
        });
    }

    #[test]
    fn attaches_to_a_persistent_tap_left_with_another_header() {
        in_namespaces(
            module_path!(),
            "attaches_to_a_persistent_tap_left_with_another_header",
            || {
                let device = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(TUN_PATH)
                    .unwrap();
                sys::tun_attach(device.as_fd(), "tap7", libc::IFF_TAP | libc::IFF_NO_PI).unwrap();
                sys::tun_set_vnet_header_len(device.as_fd(), 12).unwrap();
                sys::tun_set_persistent(device.as_fd(), true).unwrap();
                drop(device);
                assert_eq!(Tap::open("tap7").unwrap().name(), "tap7");
            },
        );
    }
}
