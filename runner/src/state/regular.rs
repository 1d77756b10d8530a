//! Files of our own. Somebody may have damaged them: a FIFO in a record's place must not make every
//! command wait, nor an endless file fill its memory.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Longest file in bytes: far longer than any record, and than most specifications.
pub const REGULAR_LEN_MAX: u64 = 64 << 20;

/// The whole of a regular file.
///
/// # Errors
/// InvalidData when it is something else, or longer than 64 MiB.
pub fn read_regular(path: &Path) -> io::Result<Vec<u8>> {
    let invalid = |defect| io::Error::new(io::ErrorKind::InvalidData, defect);
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(invalid("it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(REGULAR_LEN_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > REGULAR_LEN_MAX {
        return Err(invalid("it is too long"));
    }
    Ok(bytes)
}

/// Puts a file in place of the one that is there, in one step. One writer at a time; not synced to
/// disk.
pub fn replace_regular(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    fs::write(&new, bytes)?;
    fs::rename(&new, path)
}
