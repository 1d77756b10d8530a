//! What the helper gives up once everything is set up: every capability that it no longer uses, the
//! way to get any back, being the host's root, and its openness to other processes of the user.
//!
//! What stays is CAP_NET_ADMIN and CAP_NET_BIND_SERVICE in the guest's user namespace, which taking
//! over a connection in the guest needs; not even these where that is the host's own user
//! namespace, unless they were asked for. Capabilities and IDs belong to threads, so each thread
//! calls this for itself.
//!
//! `filter` says which system calls are left; `filesystem` and `landlock` take the files away, each
//! in its own way.

mod filesystem;
mod filter;
mod landlock;
pub mod root;

use std::io;
use std::path::Path;

pub use filter::{Threads, confine_helper_calls};
use libc::c_long;
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use tracing::debug;

use filesystem::EmptyRoot;
use filter::{confine_broker_calls, confine_companion_calls};
use root::Ids;

/// A privilege that could not be given up.
#[derive(Debug, thiserror::Error)]
#[error("cannot give up {privilege}: {source}")]
pub struct SandboxError {
    privilege: &'static str,
    source: io::Error,
}

/// The capabilities that stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Needed for nothing but the guest's network: its links, its firewall's set, sockets with a
    /// remote's address and port.
    Network,
    /// Ports below 1024 may be bound.
    LowPorts,
    Nothing,
}

impl Kept {
    /// What a helper keeps in the user namespace that it is in by now. `of_host` says that it may
    /// keep what it has over the host's own network.
    pub fn here(of_host: bool) -> Self {
        if of_host || !root::is_in_initial_namespace() {
            Self::Network
        } else {
            Self::Nothing
        }
    }

    fn set(self) -> CapabilitySet {
        match self {
            Self::Network => CapabilitySet::NET_ADMIN | CapabilitySet::NET_BIND_SERVICE,
            Self::LowPorts => CapabilitySet::NET_BIND_SERVICE,
            Self::Nothing => CapabilitySet::empty(),
        }
    }
}

/// For the process as a whole: nobody may trace it, read its memory or open its descriptors, except
/// who has CAP_SYS_PTRACE over the user namespace it was started in.
pub fn close_process() -> Result<(), SandboxError> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(error("being dumpable"))
}

/// What a confined thread still is.
#[derive(Debug)]
pub struct Confined {
    /// It could not help staying the host's root.
    pub is_root: bool,
    /// Its root directory, for the next thread.
    pub root: RootDirectory,
}

/// The root directory that a thread is to have.
#[derive(Debug)]
pub enum RootDirectory {
    /// A new one without anything in it, which takes CAP_SYS_ADMIN.
    Empty,
    /// The same; without the capability it stays as it is, and Landlock denies it.
    EmptyIfPossible,
    /// Another thread's.
    Of(EmptyRoot),
    /// It stays as it is.
    Present,
}

/// For the calling thread and those it starts afterwards: no more capabilities than `kept`, none by
/// executing a program, `instead_of_root` if it is the host's root, and no file.
pub fn confine_thread(
    kept: Kept,
    instead_of_root: Ids,
    root: RootDirectory,
) -> Result<Confined, SandboxError> {
    bound(kept)?;
    root::leave(instead_of_root).map_err(|source| SandboxError {
        privilege: "being root",
        source,
    })?;
    // Looks at /proc.
    let is_root = root::is_system_root();
    let root = root.enter().map_err(file_error)?;
    landlock::deny_files().map_err(|error| file_error(io::Error::other(error)))?;
    keep(kept)?;
    Ok(Confined { is_root, root })
}

impl RootDirectory {
    /// Returns what another thread is to enter.
    fn enter(self) -> io::Result<Self> {
        match self {
            Self::Empty => filesystem::leave().map(Self::Of),
            Self::EmptyIfPossible => Ok(match filesystem::leave() {
                Ok(root) => Self::Of(root),
                Err(error) => {
                    debug!(%error, "the root directory stays as it is, out of reach");
                    Self::Present
                }
            }),
            Self::Of(root) => {
                filesystem::join(&root)?;
                Ok(Self::Of(root))
            }
            Self::Present => Ok(Self::Present),
        }
    }
}

/// For the companion: no capability, no system calls but `calls` and what `confine_companion_calls`
/// adds, and no file but to read it, or to remove it from one of `directories`. It stays the
/// caller, whose files these are.
pub fn confine_companion<'d>(
    calls: &[c_long],
    directories: impl IntoIterator<Item = &'d Path>,
) -> Result<(), SandboxError> {
    keep_only(Kept::Nothing)?;
    landlock::deny_writing(directories).map_err(|error| file_error(io::Error::other(error)))?;
    close_process()?;
    confine_companion_calls(calls)
}

/// For the broker: no capability but that to bind low ports, no file, and no system calls but
/// `calls` and what `confine_broker_calls` adds. It is not the host's root.
pub fn confine_broker(calls: &[c_long]) -> Result<(), SandboxError> {
    confine_thread(
        Kept::LowPorts,
        Ids::default(),
        RootDirectory::EmptyIfPossible,
    )?;
    close_process()?;
    confine_broker_calls(calls)
}

/// For the calling thread: no more capabilities than `kept`, and none by executing a program.
pub fn keep_only(kept: Kept) -> Result<(), SandboxError> {
    bound(kept)?;
    keep(kept)
}

fn bound(kept: Kept) -> Result<(), SandboxError> {
    set_no_new_privs(true).map_err(error("new privileges"))?;
    clear_ambient_capability_set().map_err(error("ambient capabilities"))?;
    bound_capabilities(kept.set()).map_err(error("the bounding set"))
}

fn keep(kept: Kept) -> Result<(), SandboxError> {
    let capabilities_error = error("capabilities");
    let left = capabilities(None).map_err(&capabilities_error)?.permitted & kept.set();
    let sets = CapabilitySets {
        effective: left,
        permitted: left,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).map_err(&capabilities_error)
}

/// Takes all but `kept` out of the bounding set. Who lacks CAP_SETPCAP may not, and needs it least.
fn bound_capabilities(kept: CapabilitySet) -> rustix::io::Result<()> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if kept.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            // Beyond the last one that this kernel knows.
            Err(Errno::INVAL | Errno::PERM) => break,
            removed => removed?,
        }
    }
    Ok(())
}

fn file_error(source: io::Error) -> SandboxError {
    SandboxError {
        privilege: "the file system",
        source,
    }
}

fn error(privilege: &'static str) -> impl Fn(Errno) -> SandboxError {
    move |errno| SandboxError {
        privilege,
        source: errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use rustix::thread::{
        capability_is_in_ambient_set, capability_is_in_bounding_set, no_new_privs,
    };

    use super::*;
    use crate::sys;
    use crate::testing::in_namespaces;

    /// Of the calling thread: effective, permitted, inheritable, and the bounding set.
    fn sets() -> [CapabilitySet; 4] {
        let own = capabilities(None).unwrap();
        let all = CapabilitySet::all().iter();
        let bounding = all.filter(|one| capability_is_in_bounding_set(*one) == Ok(true));
        [
            own.effective,
            own.permitted,
            own.inheritable,
            bounding.collect(),
        ]
    }

    #[test]
    fn only_the_network_capabilities_stay() {
        in_namespaces(module_path!(), "only_the_network_capabilities_stay", || {
            let network = Kept::Network.set();
            let none = CapabilitySet::empty();
            let tun = File::options().read(true).write(true).open("/dev/net/tun");
            let tun = tun.unwrap();
            assert!(sets()[0].contains(network | CapabilitySet::SYS_ADMIN));
            confine_thread(
                Kept::Network,
                Ids::default(),
                RootDirectory::EmptyIfPossible,
            )
            .unwrap();
            close_process().unwrap();
            assert_eq!(sets(), [network, network, none, network]);
            let is_ambient = |one| capability_is_in_ambient_set(one).unwrap();
            assert!(!network.iter().any(is_ambient));
            assert!(no_new_privs().unwrap());
            // Enough for a tap, too little for another namespace.
            sys::tun_attach(tun.as_fd(), "tap0", libc::IFF_TAP).unwrap();
            let unshared = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET);
            assert_eq!(unshared, Err(nix::errno::Errno::EPERM));
            // No file, and so neither a tap of another name.
            assert!(File::open("/").is_err());
            confine_thread(
                Kept::Nothing,
                Ids::default(),
                RootDirectory::EmptyIfPossible,
            )
            .unwrap();
            assert_eq!(sets()[..2], [none, none]);
        });
    }
}
