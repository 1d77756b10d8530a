//! The mount at a path such as /run/netns/NAME, which holds a network namespace without any
//! process, and by which its owner ends it: `ip netns del`, a container engine's clean-up, the end
//! of whoever has the mount namespace.
//!
//! inotify does not tell of it: unmounting changes no directory. The list of mounts
//! (proc_pid_mountinfo(5)) does. It belongs to the mount namespace it was opened in for good,
//! whatever this process may see or may do later, and names mounts by numbers that do not depend on
//! paths.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::process::Pid;

/// Reads in which the mount is missing before it is held for gone: before Linux 5.8 an entry may
/// slip through one that takes place while other mounts go.
const READS: usize = 3;

/// A network namespace's mount. The descriptor has POLLPRI once mounts have changed, whichever.
#[derive(Debug)]
pub struct NamespaceMount {
    mounts: File,
    /// Its number, and what is mounted (`net:[4026532180]`): numbers are used again.
    id: String,
    root: String,
}

impl NamespaceMount {
    /// Opens the list of mounts that `path` is looked up in, before the namespace there is opened.
    pub fn list(path: &Path) -> io::Result<File> {
        // /proc/PID/root/... leads into the mount namespace of that process.
        let of_process = process_in_path(path);
        let list = match of_process {
            Some(pid) => format!("/proc/{}/mountinfo", pid.as_raw_nonzero()),
            None => "/proc/self/mountinfo".to_owned(),
        };
        File::open(list)
    }

    /// The mount that `network`, an open namespace, was opened at; `None` if it is not in the list
    /// `mounts`, as with /proc/PID/ns/net.
    pub fn find(mounts: File, network: BorrowedFd<'_>) -> io::Result<Option<Self>> {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", network.as_raw_fd()))?;
        let Some(id) = info.lines().find_map(|line| line.strip_prefix("mnt_id:")) else {
            return Ok(None);
        };
        let number = rustix::fs::fstat(network)?.st_ino;
        let mut mount = Self {
            mounts,
            id: id.trim().to_owned(),
            root: format!("net:[{number}]"),
        };
        Ok(mount.is_there().then_some(mount))
    }

    /// Whether the namespace is still to be found where it was: not unmounted, and nothing mounted
    /// over it. If that cannot be told, it is.
    pub fn is_there(&mut self) -> bool {
        (0..READS).any(|_| self.is_listed().unwrap_or(true))
    }

    fn is_listed(&mut self) -> io::Result<bool> {
        let mut list = String::new();
        self.mounts.rewind()?;
        self.mounts.read_to_string(&mut list)?;
        Ok(is_listed(&list, &self.id, &self.root))
    }
}

/// `PID` of `/proc/PID/ns/net`. (Not of /proc/self or /proc/thread-self.)
pub(super) fn process_in_path(path: &Path) -> Option<Pid> {
    let pid = path.strip_prefix("/proc").ok()?.components().next()?;
    Pid::from_raw(pid.as_os_str().to_str()?.parse().ok()?)
}

/// Each line begins with the mount's number, its parent's, a device and what is mounted. A parent
/// that is a file can only be covered.
fn is_listed(list: &str, id: &str, root: &str) -> bool {
    let mut found = false;
    for line in list.lines() {
        let mut fields = line.split(' ');
        let (own, parent, mounted) = (fields.next(), fields.next(), fields.nth(1));
        if parent == Some(id) {
            return false;
        }
        found |= own == Some(id) && mounted == Some(root);
    }
    found
}

impl AsFd for NamespaceMount {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.mounts.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_known_by_its_number_and_what_it_holds() {
        const LIST: &str = "\
65 42 0:24 /netns /run/netns rw shared:2 - tmpfs tmpfs rw
66 65 0:4 net:[4026532180] /run/netns/a rw shared:2 - nsfs nsfs rw
67 65 0:4 net:[4026532181] /run/netns/b rw shared:2 - nsfs nsfs rw
68 67 0:4 net:[4026532182] /run/netns/b rw shared:2 - nsfs nsfs rw
";
        assert!(is_listed(LIST, "66", "net:[4026532180]"));
        assert!(!is_listed(LIST, "6", "net:[4026532180]"), "no such number");
        assert!(!is_listed(LIST, "66", "net:[4026532181]"), "used again");
        assert!(!is_listed(LIST, "67", "net:[4026532181]"), "covered");
        assert!(is_listed(LIST, "68", "net:[4026532182]"));
    }

    #[test]
    fn what_is_not_mounted_has_no_mount() {
        let path = Path::new("/proc/self/ns/net");
        let network = File::open(path).unwrap();
        let mounts = NamespaceMount::list(path).unwrap();
        assert!(
            NamespaceMount::find(mounts, network.as_fd())
                .unwrap()
                .is_none()
        );
    }
}
