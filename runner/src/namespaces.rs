//! Making and joining namespaces.
//!
//! Owns the hand-shake between a process that makes a user namespace and the child that is born into it, and the order in which
//! the namespaces of a running container are joined. Which IDs are mapped is `idmap`'s business; what happens inside is the
//! caller's. Every process here is single-threaded, as `setns(2)` and `unshare(2)` demand of a change of user namespace.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sched::CloneFlags;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::failure::Failure;
use crate::idmap::{IdMapError, IdMaps, SingleReason};
use crate::sys::{self, Child, NewNamespaces};

#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    #[error("cannot make a user namespace: {source}{hint}")]
    User { source: io::Error, hint: String },
    #[error("cannot make the container's namespaces: {source}")]
    Container { source: io::Error },
    #[error("cannot join the container's namespaces: {source}")]
    Join { source: io::Error },
    #[error(transparent)]
    IdMap(#[from] IdMapError),
    #[error("cannot talk to the process in the user namespace: {source}")]
    Handshake { source: io::Error },
}

/// Which side of [`fork_into_user_namespace`] this process is.
pub enum Fork {
    /// The IDs of the child's namespace are mapped.
    Parent(Child),
    /// This process is root in a new user namespace whose IDs are mapped.
    Child,
}

/// Forks a child into a user namespace of its own. In both processes this returns once the IDs are mapped; when they cannot be
/// mapped there is no child.
pub fn fork_into_user_namespace(maps: &IdMaps) -> Result<Fork, NamespaceError> {
    let handshake = |source| NamespaceError::Handshake { source };
    let (mapped, mapping_done) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| handshake(e.into()))?;
    let clone = sys::clone_process(NewNamespaces::USER);
    let Some(child) = clone.map_err(|source| NamespaceError::User {
        hint: user_namespace_hint(&source),
        source,
    })?
    else {
        drop(mapping_done);
        if !wait_for_byte(mapped) {
            // The parent could not map IDs, and says so, or it was killed.
            std::process::exit(1);
        }
        return Ok(Fork::Child);
    };
    drop(mapped);
    if let Err(error) = maps.write(child.pid) {
        // The child reads end of file and leaves; its exit code says nothing new.
        drop(mapping_done);
        let _ = waitpid(child.pid, None);
        return Err(error.into());
    }
    rustix::io::write(&mapping_done, &[1]).map_err(|e| handshake(e.into()))?;
    Ok(Fork::Parent(child))
}

/// As [`fork_into_user_namespace`], but when newuidmap or newgidmap fails the single map is used and the reason reported.
/// The reason is of use in the parent only.
pub fn fork_with_fallback(
    maps: &mut IdMaps,
) -> Result<(Fork, Option<SingleReason>), NamespaceError> {
    match fork_into_user_namespace(maps) {
        Err(NamespaceError::IdMap(
            error @ (IdMapError::Tool { .. } | IdMapError::Spawn { .. }),
        )) => {
            *maps = IdMaps::single();
            Ok((
                fork_into_user_namespace(maps)?,
                Some(SingleReason::ToolFailed(error.to_string())),
            ))
        }
        other => Ok((other?, None)),
    }
}

/// Runs `job` as root of a user namespace with the caller's IDs, in a child, and returns what it returned. For work on files
/// of sub-IDs, which nobody may touch outside.
pub fn in_user_namespace(
    maps: &IdMaps,
    job: impl FnOnce() -> Result<(), String>,
) -> Result<(), Failure> {
    let (mut told, tell) = std::io::pipe()?;
    match fork_into_user_namespace(maps) {
        Ok(Fork::Parent(child)) => {
            drop(tell);
            let mut message = String::new();
            io::Read::read_to_string(&mut told, &mut message)?;
            waitpid(child.pid, None)?;
            // The child says something in either case, so that its death cannot pass for success.
            match message.strip_prefix("ok") {
                Some("") => Ok(()),
                _ if message.is_empty() => Err(Failure::runner(
                    "the process in the user namespace was killed",
                )),
                _ => Err(Failure::runner(message)),
            }
        }
        Ok(Fork::Child) => {
            let message = job().err().unwrap_or_else(|| "ok".to_owned());
            let _ = io::Write::write_all(&mut { tell }, message.as_bytes());
            std::process::exit(0)
        }
        Err(error) => Err(error.into()),
    }
}

/// Joins every namespace of the process that `pidfd` refers to but the time namespace. The PID namespace is joined for children
/// only, as always with `setns(2)`.
///
/// The user namespace comes with the others in one call, in which the kernel joins it first: that gives the rights that the rest
/// needs.
pub fn join_container(pidfd: &OwnedFd) -> Result<(), NamespaceError> {
    let container = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP
        | CloneFlags::CLONE_NEWUSER;
    nix::sched::setns(pidfd.as_fd(), container).map_err(|errno| NamespaceError::Join {
        source: errno.into(),
    })
}

/// Reaps what can be reaped without waiting and returns the PIDs with their exit codes.
pub fn reap() -> Vec<(Pid, i32)> {
    let next = || waitpid(None, Some(WaitPidFlag::WNOHANG)).ok();
    std::iter::from_fn(next)
        .map_while(|status| Some((status.pid()?, exit_code(status)?)))
        .collect()
}

/// The code that a shell would show: the exit code, or 128 plus the signal's number. `None` while the process lives.
pub fn exit_code(status: nix::sys::wait::WaitStatus) -> Option<i32> {
    use nix::sys::wait::WaitStatus::{Exited, Signaled};
    match status {
        Exited(_, code) => Some(code),
        Signaled(_, signal, _) => Some(128 + signal as i32),
        _ => None,
    }
}

/// False when the writer hung up without writing.
fn wait_for_byte(reader: OwnedFd) -> bool {
    let mut byte = [0];
    matches!(
        rustix::io::retry_on_intr(|| rustix::io::read(&reader, &mut byte)),
        Ok(1)
    )
}

/// The setting that forbids user namespaces on this machine, where one is known to. Begins with a separator.
fn user_namespace_hint(error: &io::Error) -> String {
    let read = |name: &str| {
        std::fs::read_to_string(Path::new("/proc/sys").join(name))
            .map(|text| text.trim().to_owned())
    };
    let is = |name, value: &str| read(name).is_ok_and(|found| found == value);
    let hint = match error.raw_os_error() {
        _ if is("user/max_user_namespaces", "0") => "the sysctl user.max_user_namespaces is 0",
        _ if is("kernel/unprivileged_userns_clone", "0") => {
            "the sysctl kernel.unprivileged_userns_clone is 0"
        }
        _ if is("kernel/apparmor_restrict_unprivileged_userns", "1") => {
            "the sysctl kernel.apparmor_restrict_unprivileged_userns is 1"
        }
        Some(libc::ENOSPC | libc::EUSERS) => {
            "user namespaces are nested too deep, or user.max_user_namespaces is reached"
        }
        Some(libc::EPERM) => {
            "an outer container or a seccomp filter may forbid it, or this process is in a chroot"
        }
        _ => return String::new(),
    };
    format!(" ({hint})")
}
