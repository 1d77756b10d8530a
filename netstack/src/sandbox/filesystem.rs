//! An empty root directory: what the filter of system calls might let through finds nothing.
//!
//! One thread makes it, and others join: to take the host's files away for good the kernel waits
//! for whoever is looking at them (`umount2`), up to some milliseconds.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, pivot_root};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A mount namespace with nothing in it but an empty, read-only root directory.
#[derive(Debug)]
pub struct EmptyRoot(OwnedFd);

/// Gives the calling thread an empty root directory, and returns it. Takes CAP_SYS_ADMIN in the
/// user namespace that the thread is in.
pub fn leave() -> io::Result<EmptyRoot> {
    /// Any directory that is sure to be there.
    const PLACE: &str = "/proc";
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let namespace = File::open("/proc/thread-self/ns/mnt")?;
    // What is unmounted below stays mounted elsewhere.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), PLACE, Some("tmpfs"), flags, Some("mode=555"))?;
    chdir(PLACE)?;
    // The old root directory lands on top of the new one (pivot_root(2)).
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
    Ok(EmptyRoot(namespace.into()))
}

/// Gives the calling thread the root directory that another one has made. Takes CAP_SYS_CHROOT
/// besides.
pub fn join(root: &EmptyRoot) -> io::Result<()> {
    // Only a thread with a root directory of its own may leave it.
    unshare(CloneFlags::CLONE_FS)?;
    move_into_link_name_space(root.0.as_fd(), Some(LinkNameSpaceType::Mount))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::in_namespaces;

    #[test]
    fn nothing_is_left() {
        in_namespaces(module_path!(), "nothing_is_left", || {
            let is_empty = || {
                assert_eq!(fs::read_dir("/").unwrap().count(), 0);
                assert_eq!(fs::read_dir("..").unwrap().count(), 0);
                let error = fs::write("/file", "").unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EROFS));
            };
            let first = std::thread::spawn(move || {
                let root = leave().unwrap();
                is_empty();
                root
            });
            let root = first.join().unwrap();
            let second = std::thread::spawn(move || {
                join(&root).unwrap();
                is_empty();
            });
            second.join().unwrap();
            // Another thread keeps what it has.
            assert!(fs::exists("/proc/self/mountinfo").unwrap());
        });
    }
}
