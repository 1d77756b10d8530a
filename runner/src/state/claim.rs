//! Who answers for a container, told by the kernel: the monitor holds a lock on a file beside the
//! record for as long as it lives.
//!
//! The record says the same, but can be damaged. The file holds the container's first process, for
//! whoever finds neither record nor monitor; whether somebody answers does not depend on it. The
//! lock is a POSIX one (`fcntl_locking(2)`), since those tell their holder's PID. A process loses
//! it when it closes any descriptor of the file: open it once.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::process::{Flock, FlockType, Pid, fcntl_getlk};

use super::ProcessRef;

/// Takes the lock for this process.
///
/// # Errors
/// WouldBlock when another process has it.
pub fn take(path: &Path) -> io::Result<File> {
    let file = open(
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600),
        path,
    )?;
    fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

/// Tells, for all times, which process is the container's first.
pub fn tell(mut file: &File, init: &ProcessRef) -> io::Result<()> {
    file.write_all(&serde_json::to_vec(init)?)
}

/// The process that holds the lock.
pub fn holder(path: &Path) -> Option<Pid> {
    let file = open(OpenOptions::new().read(true), path).ok()?;
    // Of the whole file.
    let asked = Flock::from(FlockType::WriteLock);
    fcntl_getlk(&file, &asked).ok()??.pid
}

fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_known_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("monitor");
        assert_eq!(holder(&path), None, "there is no file");
        std::fs::write(&path, "anything").unwrap();
        assert_eq!(holder(&path), None, "nobody holds it");

        // A lock is never in its own holder's way: another process takes it.
        let (mut told, tell) = io::pipe().unwrap();
        let child = crate::sys::clone_process(crate::sys::NewNamespaces::NONE, None).unwrap();
        let Some(child) = child else {
            let taken = take(&path);
            let _ = Write::write_all(&mut { tell }, if taken.is_ok() { b"1" } else { b"0" });
            loop {
                std::thread::park();
            }
        };
        drop(tell);
        let mut answer = [0];
        io::Read::read_exact(&mut told, &mut answer).unwrap();
        assert_eq!(&answer, b"1");
        assert_eq!(holder(&path), Some(child.pid));
        assert!(take(&path).is_err());
        rustix::process::pidfd_send_signal(&child.pidfd, rustix::process::Signal::KILL).unwrap();
        crate::isolation::namespaces::wait_for(child.pid).unwrap();
        assert_eq!(holder(&path), None);
        take(&path).unwrap();
    }
}
