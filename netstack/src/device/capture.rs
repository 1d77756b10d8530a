//! A device that writes the frames of another one to a file, both ways, as `tcpdump` would: the
//! classic format of libpcap with nanoseconds (draft-ietf-opsawg-pcap).
//!
//! A record is a frame as the device carries it, without its virtio-net header. So a super-frame is
//! one packet of up to 64 KiB, and a checksum that is left to the other side shows as wrong. Frames
//! to the guest are written when the device has taken them.
//!
//! Each record is one write, so nothing is lost when the helper is killed. The file grows without a
//! bound. An error, such as a full disk, ends the capture and nothing else; it is logged.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::io::retry_on_intr;
use tracing::warn;

use super::{Capabilities, Device, VNET_HEADER_LEN};
use crate::output_file;

/// A device with or without a capture.
#[derive(Debug)]
pub struct Capture<D> {
    device: D,
    file: Option<CaptureFile>,
}

/// A file that begins as a capture does, and to which records can be added.
#[derive(Debug)]
pub struct CaptureFile {
    file: File,
    path: PathBuf,
    /// Bytes that it may still take.
    left: u64,
}

/// Why there is no capture; the text says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("cannot write a capture to {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{0} is as large as it may be")]
    Full(PathBuf),
    #[error(
        "cannot write a capture to {0}, which is not a regular file: the network would have to \
         wait for its reader; write to a file and follow that (tail -c +1 -f FILE | tcpdump -nr -)"
    )]
    NotRegular(PathBuf),
}

impl<D> Capture<D> {
    /// Without a file this is `device` and nothing else.
    pub fn new(device: D, file: Option<CaptureFile>) -> Self {
        Self { device, file }
    }

    fn record(&mut self, head: &[u8], payload: &[u8]) {
        if let Some(file) = &mut self.file
            && let Err(error) = file.record(SystemTime::now(), head, payload)
        {
            warn!("the capture ends here: {error}");
            self.file = None;
        }
    }
}

impl<D: Device> Device for Capture<D> {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.device.receive(buffer)?;
        self.record(&buffer[..len], &[]);
        Ok(len)
    }

    fn transmit(&mut self, head: &[u8], payload: &[u8]) -> io::Result<()> {
        self.device.transmit(head, payload)?;
        self.record(head, payload);
        Ok(())
    }

    fn capabilities(&self) -> Capabilities {
        self.device.capabilities()
    }
}

impl<D: AsFd> AsFd for Capture<D> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl CaptureFile {
    /// Makes the file, for this user only, or empties the one that is there. It gets `limit` bytes
    /// at most, if there is a limit.
    pub fn create(path: &Path, limit: Option<u64>) -> Result<Self, CaptureError> {
        let error = |source| CaptureError::Write {
            path: path.to_owned(),
            source,
        };
        let file = output_file::create(path, OpenOptions::new().write(true)).map_err(error)?;
        if !file.metadata().map_err(error)?.is_file() {
            return Err(CaptureError::NotRegular(path.to_owned()));
        }
        let mut capture = Self {
            file,
            path: path.to_owned(),
            left: limit.unwrap_or(u64::MAX),
        };
        capture.write(&[IoSlice::new(&file_header())])?;
        Ok(capture)
    }

    /// Adds the frame `head ++ payload`, which begins with its virtio-net header.
    fn record(&mut self, at: SystemTime, head: &[u8], payload: &[u8]) -> Result<(), CaptureError> {
        let head = head.get(VNET_HEADER_LEN..).unwrap_or_default();
        let header = record_header(at, head.len() + payload.len());
        self.write(&[
            IoSlice::new(&header),
            IoSlice::new(head),
            IoSlice::new(payload),
        ])
    }

    fn write(&mut self, pieces: &[IoSlice<'_>]) -> Result<(), CaptureError> {
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        self.left = self
            .left
            .checked_sub(len as u64)
            .ok_or_else(|| CaptureError::Full(self.path.clone()))?;
        let source = match retry_on_intr(|| rustix::io::writev(&self.file, pieces)) {
            Ok(written) if written == len => return Ok(()),
            Ok(_) => io::ErrorKind::StorageFull.into(),
            Err(errno) => errno.into(),
        };
        Err(CaptureError::Write {
            path: self.path.clone(),
            source,
        })
    }
}

/// Says by its byte order which one all numbers have, and that fractions of a second are
/// nanoseconds.
const MAGIC: u32 = 0xa1b2_3c4d;
const VERSION: [u16; 2] = [2, 4];
/// No record is longer; libpcap's own limit.
const SNAP_LEN: u32 = 262_144;
const LINKTYPE_ETHERNET: u32 = 1;

fn file_header() -> [u8; 24] {
    let [major, minor] = VERSION.map(u16::to_ne_bytes);
    let mut header = [0; 24];
    header[0..4].copy_from_slice(&MAGIC.to_ne_bytes());
    header[4..6].copy_from_slice(&major);
    header[6..8].copy_from_slice(&minor);
    // Two reserved words.
    header[16..20].copy_from_slice(&SNAP_LEN.to_ne_bytes());
    header[20..24].copy_from_slice(&LINKTYPE_ETHERNET.to_ne_bytes());
    header
}

/// Time, and the length twice: captured, and on the wire.
fn record_header(at: SystemTime, len: usize) -> [u8; 16] {
    let at = at.duration_since(SystemTime::UNIX_EPOCH);
    let at = at.unwrap_or_default();
    let mut header = [0; 16];
    // Unsigned, which lasts until 2106.
    header[0..4].copy_from_slice(&(at.as_secs() as u32).to_ne_bytes());
    header[4..8].copy_from_slice(&at.subsec_nanos().to_ne_bytes());
    header[8..12].copy_from_slice(&(len as u32).to_ne_bytes());
    header[12..16].copy_from_slice(&(len as u32).to_ne_bytes());
    header
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::device::MAX_FRAME_LEN;
    use crate::testing::{FaultInjector, Faults, MemoryDevice};

    const HEADER: [u8; VNET_HEADER_LEN] = [7; VNET_HEADER_LEN];

    fn temporary() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net.pcap");
        (dir, path)
    }

    /// The frames in a capture.
    fn frames(path: &Path) -> Vec<Vec<u8>> {
        let bytes = fs::read(path).unwrap();
        let (header, mut rest) = bytes.split_first_chunk().unwrap();
        assert_eq!(*header, file_header());
        let mut frames = Vec::new();
        while let Some((header, after)) = rest.split_first_chunk::<16>() {
            let [_, nanos, len, original] =
                [0, 4, 8, 12].map(|at| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap()));
            assert_eq!(len, original);
            assert!(nanos < 1_000_000_000);
            let (frame, after) = after.split_at(len as usize);
            frames.push(frame.to_vec());
            rest = after;
        }
        assert!(rest.is_empty());
        frames
    }

    #[test]
    fn both_directions_are_written_without_the_virtio_header() {
        let (_dir, path) = temporary();
        let (device, guest) = MemoryDevice::pair();
        let mut device = Capture::new(device, Some(CaptureFile::create(&path, None).unwrap()));
        guest.send(&[&HEADER[..], b"from the guest"].concat());
        let mut buffer = vec![0; MAX_FRAME_LEN];
        let len = device.receive(&mut buffer).unwrap();
        assert_eq!(&buffer[VNET_HEADER_LEN..len], b"from the guest");
        // In pieces, the second of which may be long.
        let head = [&HEADER[..], b"to "].concat();
        device.transmit(&head, &[b'x'; 65_000]).unwrap();
        device
            .transmit(&[&HEADER[..], b"whole"].concat(), &[])
            .unwrap();
        assert_eq!(guest.receive().unwrap().len(), VNET_HEADER_LEN + 65_003);
        let frames = frames(&path);
        assert_eq!(frames[0], b"from the guest");
        assert_eq!(frames[1], [&b"to "[..], &[b'x'; 65_000]].concat());
        assert_eq!(frames[2], b"whole");
        assert_eq!(frames.len(), 3);
    }

    #[test]
    fn a_frame_is_written_once_the_device_has_taken_it() {
        let (_dir, path) = temporary();
        let (device, _guest) = MemoryDevice::pair();
        let blocked = Faults {
            blocked: 100,
            ..Faults::default()
        };
        let device = FaultInjector::new(device, blocked, 1);
        let mut device = Capture::new(device, Some(CaptureFile::create(&path, None).unwrap()));
        let mut buffer = [0; 100];
        assert!(device.receive(&mut buffer).is_err());
        assert!(device.transmit(&HEADER, b"!").is_err());
        assert!(frames(&path).is_empty());
        device.device.faults = Faults::default();
        device.transmit(&HEADER, b"!").unwrap();
        assert_eq!(frames(&path), [b"!"]);
    }

    #[test]
    fn the_numbers_are_libpcaps() {
        let header = file_header();
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!(
            [0, 8, 12, 16, 20].map(word),
            [0xa1b2_3c4d, 0, 0, 262_144, 1]
        );
        assert_eq!(
            header[4..8],
            [2u16.to_ne_bytes(), 4u16.to_ne_bytes()].concat()
        );
        let at = UNIX_EPOCH + Duration::new(0xf000_0001, 999_999_999);
        let header = record_header(at, 60);
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!([0, 4, 8, 12].map(word), [0xf000_0001, 999_999_999, 60, 60]);
    }

    #[test]
    fn an_error_ends_the_capture_and_nothing_else() {
        let (device, guest) = MemoryDevice::pair();
        let full = CaptureFile {
            file: OpenOptions::new().write(true).open("/dev/full").unwrap(),
            path: "/dev/full".into(),
            left: u64::MAX,
        };
        let mut device = Capture::new(device, Some(full));
        device.transmit(&HEADER, b"first").unwrap();
        assert!(device.file.is_none());
        device.transmit(&HEADER, b"second").unwrap();
        assert!(guest.receive().is_some() && guest.receive().is_some());
    }

    #[test]
    fn a_limit_ends_the_capture_after_a_whole_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net.pcap");
        let record = 16 + 60;
        let limit = 24 + 2 * record + record - 1;
        let mut file = CaptureFile::create(&path, Some(limit)).unwrap();
        let mut add = || file.record(UNIX_EPOCH, &[0; VNET_HEADER_LEN], &[0; 60]);
        add().unwrap();
        add().unwrap();
        assert!(matches!(add(), Err(CaptureError::Full(_))));
        assert_eq!(fs::metadata(&path).unwrap().len(), 24 + 2 * record);
    }

    #[test]
    fn only_a_regular_file_will_do() {
        let (dir, path) = temporary();
        fs::write(&path, "older").unwrap();
        CaptureFile::create(&path, None).unwrap();
        assert!(frames(&path).is_empty());
        let other = dir.path().join("new");
        CaptureFile::create(&other, None).unwrap();
        let mode = fs::metadata(&other).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0);

        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .unwrap();
        // With a reader and without.
        let error = CaptureFile::create(&fifo, None).unwrap_err().to_string();
        assert!(error.contains("fifo"), "{error}");
        let _reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&fifo)
            .unwrap();
        let error = CaptureFile::create(&fifo, None).unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
        let error = CaptureFile::create(dir.path(), None)
            .unwrap_err()
            .to_string();
        assert!(error.contains(dir.path().to_str().unwrap()), "{error}");
    }
}
