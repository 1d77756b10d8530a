//! An empty root directory: what the filter of system calls might let through finds nothing.

use std::io;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, pivot_root};

/// Gives the calling thread a mount namespace with nothing in it but an empty, read-only root
/// directory. Takes CAP_SYS_ADMIN in the user namespace that the thread is in.
pub fn leave() -> io::Result<()> {
    /// Any directory that is sure to be there.
    const PLACE: &str = "/proc";
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // What is unmounted below stays mounted elsewhere.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), PLACE, Some("tmpfs"), flags, Some("mode=555"))?;
    chdir(PLACE)?;
    // The old root directory lands on top of the new one (pivot_root(2)).
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")?;
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
            let other = std::thread::spawn(|| {
                leave().unwrap();
                assert_eq!(fs::read_dir("/").unwrap().count(), 0);
                let error = fs::write("/file", "").unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EROFS));
            });
            other.join().unwrap();
            // Another thread keeps what it has.
            assert!(fs::exists("/proc/self/mountinfo").unwrap());
        });
    }
}
