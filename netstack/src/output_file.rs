//! Files that the helper writes for its caller. They are opened with the caller's rights, before
//! the sandbox takes all paths away.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::sys::signal::{SigSet, Signal};

/// Makes the file, for this user only, or empties the one that is there; opened as `options` say.
/// From here on a write beyond RLIMIT_FSIZE fails, instead of ending the process.
pub fn create(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    SigSet::from(Signal::SIGXFSZ).thread_block()?;
    options
        .create(true)
        .truncate(true)
        .mode(0o600)
        // Without a reader a FIFO is an error then, instead of a long wait.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}
