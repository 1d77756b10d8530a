//! Who answers for a container, told by the kernel: the monitor holds a lock on a file beside the
//! record for as long as it lives.
//!
//! The record says the same, but can be damaged. The file holds the container's first process, for
//! whoever finds neither record nor monitor; whether somebody answers does not depend on it. The
//! lock is a POSIX one (`fcntl_locking(2)`), since those tell their holder's PID. A process loses
//! it when it closes any descriptor of the file: open it once.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
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

/// Tells, for all times, which process is the container's first; that of an earlier life no more.
pub fn tell(file: &File, init: &ProcessRef) -> io::Result<()> {
    let text = serde_json::to_vec(init)?;
    // What is there already has its block, however full the disk is.
    file.write_all_at(&text, 0)?;
    file.set_len(text.len() as u64)
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
    use std::io::Write;

    use super::*;

    #[test]
    fn the_first_process_of_each_life_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("monitor");
        let file = take(&path).unwrap();
        let mut long = ProcessRef::current().unwrap();
        long.pid = i32::MAX;
        for life in [long, ProcessRef::current().unwrap()] {
            tell(&file, &life).unwrap();
            let told: ProcessRef = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            assert_eq!(told, life);
        }
    }

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
