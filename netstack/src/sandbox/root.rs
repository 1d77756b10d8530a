//! The system's root: user 0 of the initial user namespace, who owns the host's files whatever his
//! capabilities are. In a namespace he may have another number, or none, and who is 0 there may be
//! anybody.
//!
//! IDs belong to threads as far as the kernel is concerned, and here as well.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use rustix::io::Errno;
use rustix::process::{Gid, Uid, geteuid};
use rustix::thread::{
    CapabilitySets, capabilities, set_capabilities, set_keep_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

/// Who the system's root is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    pub user: u32,
    pub group: u32,
}

/// Nobody.
impl Default for Ids {
    fn default() -> Self {
        Self {
            user: NOBODY,
            group: NOBODY,
        }
    }
}

/// The user who owns nothing; also what an ID is shown as that has no number here
/// (kernel.overflowuid).
const NOBODY: u32 = 65534;
/// A file of the system's root in every user namespace.
const ROOTS_OWN: &str = "/proc";
/// USER_NS_INIT_INO of linux/nsfs.h.
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// Whether user 0 of our user namespace is the system's root, and whether group 0 is his.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZeroIs {
    pub root: bool,
    pub roots_group: bool,
}

impl ZeroIs {
    pub fn here() -> Self {
        let owner = fs::metadata(ROOTS_OWN).ok();
        Self {
            root: owner.as_ref().is_some_and(|owner| owner.uid() == 0),
            roots_group: owner.is_some_and(|owner| owner.gid() == 0),
        }
    }
}

/// Whether the process is in the user namespace that the host itself is in, so that its
/// capabilities are the host's.
pub fn is_in_initial_namespace() -> bool {
    fs::metadata("/proc/self/ns/user")
        .is_ok_and(|namespace| namespace.ino() == INITIAL_USER_NAMESPACE)
}

/// Makes the calling thread `instead` if it is the system's root, in all its IDs. It keeps its
/// capabilities. Where these IDs have no number it has to stay.
pub fn leave(instead: Ids) -> io::Result<()> {
    if !is_system_root() {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(instead.user), Gid::from_raw(instead.group));
    set_keep_capabilities(true)?;
    optional(set_thread_groups(&[]))?;
    optional(set_thread_res_gid(gid, gid, gid))?;
    optional(set_thread_res_uid(uid, uid, uid))?;
    set_keep_capabilities(false)?;
    // Those that have an effect went with the user.
    let kept = capabilities(None)?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept.permitted,
            ..kept
        },
    )?;
    Ok(())
}

/// Whether the calling thread is the system's root, whatever number he has here.
pub fn is_system_root() -> bool {
    let owner = fs::metadata(ROOTS_OWN).map(|owner| owner.uid());
    owner.is_ok_and(|owner| owner != NOBODY && owner == geteuid().as_raw())
}

fn optional(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        // Not mapped; or setgroups is denied in this namespace (user_namespaces(7)).
        Err(Errno::INVAL | Errno::PERM) => Ok(()),
        other => other,
    }
}
