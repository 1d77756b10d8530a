//! The rights of a container's command, and the order in which a process gives up all others:
//! keyring, capabilities, user, `no_new_privs`, system calls.
//!
//! The inheritable and ambient sets of capabilities are always empty: a non-empty one let files
//! with inheritable capabilities raise them (CVE-2022-24769, CVE-2022-27649).

use std::io;

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::failure::Explained;
use crate::isolation::capabilities::Capabilities;
use crate::isolation::seccomp::{Filter, SeccompError};
use crate::process::user::Identity;
use crate::sys;

/// Why a process could not become what it was to be.
#[derive(Debug, thiserror::Error)]
pub enum RightsError {
    #[error("cannot give up capabilities: {source}")]
    Capabilities { source: io::Error },
    #[error("cannot become user {uid} and group {gid}: {source}{hint}")]
    Identity {
        uid: u32,
        gid: u32,
        source: io::Error,
        hint: &'static str,
    },
    #[error("cannot set no_new_privs: {source}")]
    NoNewPrivs { source: io::Error },
    #[error("cannot leave the caller's session keyring: {source}")]
    Keyring { source: io::Error },
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
}

impl Explained for RightsError {}

/// What a container's command may do and who it is.
#[derive(Debug)]
pub struct Rights {
    pub identity: Identity,
    pub capabilities: Capabilities,
    pub no_new_privs: bool,
    /// Whether the groups that this process has stay, in place of the user's.
    pub keep_groups: bool,
    /// Whether the user namespace has one user and one group, and so no groups to set.
    pub single_id: bool,
    pub filter: Option<Filter>,
}

impl Rights {
    /// The first of two steps that turn this process, root of the user namespace with every
    /// capability, into what the container's command is to be: nothing can be got back by executing
    /// a program, and the process is the command's user. It still has every capability.
    pub fn become_user(&self) -> Result<(), RightsError> {
        match sys::join_fresh_session_keyring() {
            // A kernel without keyrings, or an outer container whose filter forbids them, leaves
            // nothing to protect.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {}
            other => other.map_err(|source| RightsError::Keyring { source })?,
        }
        // The bounding set goes first: lowering it takes CAP_SETPCAP, which the container may not
        // be meant to have.
        rustix::thread::clear_ambient_capability_set().map_err(capability_error)?;
        for number in 0..u64::BITS {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            if !self.capabilities.set().contains(capability) {
                match rustix::thread::remove_capability_from_bounding_set(capability) {
                    // Beyond the last capability that this kernel knows.
                    Err(Errno::INVAL) => break,
                    other => other.map_err(capability_error)?,
                }
            }
        }
        // For `seal`, which may have to install a filter.
        rustix::thread::set_keep_capabilities(true).map_err(capability_error)?;
        self.become_identity()?;
        rustix::thread::set_keep_capabilities(false).map_err(capability_error)
    }

    /// The second step, right before exec: what comes after has no rights left to do anything else,
    /// and makes no system call that the filter forbids.
    pub fn seal(&self) -> Result<(), RightsError> {
        let permitted = rustix::thread::capabilities(None)
            .map_err(capability_error)?
            .permitted;
        // Only root keeps capabilities, as after exec of an ordinary program.
        let kept = match self.identity.uid {
            0 => permitted & self.capabilities.set(),
            _ => CapabilitySet::empty(),
        };
        if self.no_new_privs {
            limit_capabilities(kept)?;
            let error = |errno: Errno| RightsError::NoNewPrivs {
                source: errno.into(),
            };
            rustix::thread::set_no_new_privs(true).map_err(error)?;
            self.install_filter()
        } else {
            // Without no_new_privs a filter takes this capability (seccomp(2)).
            limit_capabilities(kept | (permitted & CapabilitySet::SYS_ADMIN))?;
            self.install_filter()?;
            limit_capabilities(kept)
        }
    }

    /// Groups, then group, then user: each step still has the right to take the next.
    fn become_identity(&self) -> Result<(), RightsError> {
        let identity = &self.identity;
        let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
        let failed = |errno: Errno| {
            let hint = match errno {
                Errno::INVAL => {
                    "; the container has no such ID, see its /proc/self/uid_map and gid_map"
                }
                _ => "",
            };
            RightsError::Identity {
                uid: identity.uid,
                gid: identity.gid,
                source: errno.into(),
                hint,
            }
        };
        let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
        let set = match self.keep_groups {
            true => Ok(()),
            false => set_thread_groups(&groups),
        };
        match set {
            // Denied with a single-ID map (user_namespaces(7)): the caller's groups stay, as
            // unmapped ones. Asked of the kernel's map, not of a file that the container may have
            // put in the place of /proc.
            Err(Errno::PERM) if self.single_id => {}
            other => other.map_err(failed)?,
        }
        set_thread_res_gid(gid, gid, gid).map_err(failed)?;
        set_thread_res_uid(uid, uid, uid).map_err(failed)
    }

    fn install_filter(&self) -> Result<(), RightsError> {
        match &self.filter {
            Some(filter) => Ok(filter.install()?),
            None => Ok(()),
        }
    }
}

fn limit_capabilities(kept: CapabilitySet) -> Result<(), RightsError> {
    let sets = rustix::thread::CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).map_err(capability_error)
}

fn capability_error(errno: Errno) -> RightsError {
    RightsError::Capabilities {
        source: errno.into(),
    }
}
