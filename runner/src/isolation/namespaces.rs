//! Making and joining namespaces.
//!
//! [`Namespaces`] says which a container has. Owns the hand-shake between a process that makes a
//! user namespace and the child that is born into it, and the order in which the namespaces of a
//! running container are joined. Which IDs are mapped is `idmap`'s business; what happens inside is
//! the caller's. Every process here is single-threaded, as `setns(2)` and `unshare(2)` demand of a
//! change of user namespace.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::process::{
    DumpableBehavior, Gid, Pid, Uid, WaitOptions, WaitStatus, geteuid, pidfd_send_signal,
    set_dumpable_behavior, wait, waitpid,
};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space,
    move_into_thread_name_spaces, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use serde::{Deserialize, Serialize};

use crate::failure::Explained;
use crate::isolation::idmap::{IdMapError, IdMaps, SingleReason};
use crate::sys::{self, Child, NewNamespaces};

#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    #[error("cannot make a user namespace: {source}{hint}")]
    User { source: io::Error, hint: String },
    #[error("cannot join the container's namespaces: {source}")]
    Join { source: io::Error },
    #[error(transparent)]
    IdMap(#[from] IdMapError),
    #[error("cannot talk to the process in the user namespace: {source}")]
    Handshake { source: io::Error },
    #[error("cannot start a process for the user namespace: {source}")]
    Start { source: io::Error },
    #[error("cannot learn the exit code of a process: {source}")]
    Wait { source: io::Error },
    #[error("the process in the user namespace was killed")]
    Killed,
    /// What the process in the user namespace has said.
    #[error("{message}")]
    Told { message: String },
}

impl Explained for NamespaceError {}

impl NamespaceError {
    /// No user namespace could be made.
    pub fn user(source: io::Error) -> Self {
        Self::User {
            hint: user_namespace_hint(&source),
            source,
        }
    }
}

/// Where a container has its namespace of each kind from, but for the time namespace, which is the
/// host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    user: Origin,
    mount: Origin,
    pid: Origin,
    network: Origin,
    ipc: Origin,
    uts: Origin,
    cgroup: Origin,
}

/// Where a namespace comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Origin {
    /// It is made for the container, and ends with it.
    New,
    /// It is the host's, or that of whoever has started the container.
    Host,
}

impl Namespaces {
    /// All are the container's own.
    pub const OWN: Self = Self {
        user: Origin::New,
        mount: Origin::New,
        pid: Origin::New,
        network: Origin::New,
        ipc: Origin::New,
        uts: Origin::New,
        cgroup: Origin::New,
    };

    /// The same, but for the network, which is the host's.
    pub const WITH_NETWORK_OF_HOST: Self = Self {
        network: Origin::Host,
        ..Self::OWN
    };

    /// Whether the network namespace was made for the container.
    pub fn has_own_network(self) -> bool {
        self.network == Origin::New
    }

    /// Those that the container's first process is born into.
    pub fn at_birth(self) -> NewNamespaces {
        NewNamespaces::of(self.own() - ThreadNameSpaceType::CONTROL_GROUP)
    }

    /// Makes what it cannot be born into: a cgroup namespace begins at the group that its maker is
    /// in, which has to be the container's by then.
    pub fn make_rest(self) -> io::Result<()> {
        let rest = self.own() & ThreadNameSpaceType::CONTROL_GROUP;
        sys::unshare(NewNamespaces::of(rest))
    }

    /// Joins those of the container whose first process `pidfd` refers to. The PID namespace is
    /// joined for children only, as always with `setns(2)`.
    ///
    /// The user namespace comes with the others in one call, in which the kernel joins it first:
    /// that gives the rights that the rest needs.
    pub fn join(self, pidfd: &OwnedFd) -> Result<(), NamespaceError> {
        move_into_thread_name_spaces(pidfd.as_fd(), self.own()).map_err(|errno| {
            NamespaceError::Join {
                source: errno.into(),
            }
        })
    }

    /// Those that the container has to itself.
    fn own(self) -> ThreadNameSpaceType {
        let kinds = [
            (self.user, ThreadNameSpaceType::USER),
            (self.mount, ThreadNameSpaceType::MOUNT),
            (self.pid, ThreadNameSpaceType::PROCESS_ID),
            (self.network, ThreadNameSpaceType::NETWORK),
            (self.ipc, ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION),
            (self.uts, ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME),
            (self.cgroup, ThreadNameSpaceType::CONTROL_GROUP),
        ];
        let own = kinds.map(|(origin, flag)| match origin {
            Origin::New => flag,
            Origin::Host => ThreadNameSpaceType::empty(),
        });
        own.into_iter().collect()
    }
}

/// Which side of [`fork_into_user_namespace`] this process is.
pub enum Fork {
    /// The IDs of the child's namespace are mapped.
    Parent(Held),
    /// This process has every capability in a new user namespace whose IDs are mapped;
    /// [`become_root`] comes next.
    Child,
}

/// A child that waits to be let go. Dropped, it ends.
#[derive(Debug)]
pub struct Held {
    child: Option<Child>,
    go: OwnedFd,
}

impl Held {
    pub fn child(&self) -> &Child {
        self.child
            .as_ref()
            .expect("taken by release only, which consumes the guard")
    }

    /// Lets the child go on.
    pub fn release(mut self) -> Result<Child, NamespaceError> {
        rustix::io::write(&self.go, &[1]).map_err(|errno| NamespaceError::Handshake {
            source: errno.into(),
        })?;
        Ok(self.child.take().expect("taken here only"))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(child) = &self.child {
            // It has run nothing yet. Fails only when it has ended already.
            let _ = pidfd_send_signal(&child.pidfd, rustix::process::Signal::KILL);
            let _ = wait_for(child.pid);
        }
    }
}

/// Forks a child into a user namespace of its own, and into `others` and the control group that
/// `cgroup` leads to. In the parent this returns once the IDs are mapped, in the child once it is
/// released; when IDs cannot be mapped there is no child.
pub fn fork_into_user_namespace(
    maps: &IdMaps,
    others: NewNamespaces,
    cgroup: Option<BorrowedFd>,
) -> Result<Fork, NamespaceError> {
    let (released, go) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|errno| {
            NamespaceError::Handshake {
                source: errno.into(),
            }
        })?;
    let clone = sys::clone_process(others.and(NewNamespaces::USER), cgroup);
    let Some(child) = clone.map_err(|source| NamespaceError::User {
        hint: user_namespace_hint(&source),
        source,
    })?
    else {
        drop(go);
        if !wait_for_byte(released) {
            // The parent could not go on, and says why, or it was killed.
            std::process::exit(1);
        }
        return Ok(Fork::Child);
    };
    let pid = child.pid;
    let held = Held {
        child: Some(child),
        go,
    };
    maps.write(pid)?;
    Ok(Fork::Parent(held))
}

/// As [`fork_into_user_namespace`], but when newuidmap or newgidmap fails the single map is used
/// and the reason reported. The reason is of use in the parent only.
pub fn fork_with_fallback(
    maps: &mut IdMaps,
    others: NewNamespaces,
    cgroup: Option<BorrowedFd>,
) -> Result<(Fork, Option<SingleReason>), NamespaceError> {
    match fork_into_user_namespace(maps, others, cgroup) {
        // A tool that is not there, or may not map; not one that could not run for a moment's want
        // of something.
        Err(NamespaceError::IdMap(error)) if error.is_lasting() => {
            *maps = IdMaps::single();
            Ok((
                fork_into_user_namespace(maps, others, cgroup)?,
                Some(SingleReason::ToolFailed(error.to_string())),
            ))
        }
        other => Ok((other?, None)),
    }
}

/// Joins the user and mount namespaces of the process that `pidfd` refers to, as their root, and
/// stays in the working directory as far as paths lead there.
pub fn join_as_root(pidfd: BorrowedFd) -> io::Result<()> {
    let here = std::env::current_dir()?;
    // The user namespace comes first, as always, and gives the rights that the other takes.
    let kinds = ThreadNameSpaceType::USER | ThreadNameSpaceType::MOUNT;
    move_into_thread_name_spaces(pidfd, kinds)?;
    become_root()?;
    // Another mount namespace has another root, which is the working directory now.
    std::env::set_current_dir(here)
}

/// Makes this process root of the user namespace that it is in. Whoever comes from outside keeps an
/// ID that the namespace may have no name for: the host's root, whose containers have other IDs.
pub fn become_root() -> rustix::io::Result<()> {
    if geteuid().is_root() {
        return Ok(());
    }
    set_thread_groups(&[])?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
}

/// Runs `job` as root of a user namespace, in a child. For work on files of sub-IDs, which nobody
/// may touch outside.
pub fn in_that_user_namespace(
    user_namespace: &OwnedFd,
    job: impl FnOnce() -> Result<(), String>,
) -> Result<(), NamespaceError> {
    let (told, tell) = io::pipe().map_err(handshake)?;
    let clone = sys::clone_process(NewNamespaces::NONE, None);
    match clone.map_err(|source| NamespaceError::Start { source })? {
        Some(child) => {
            drop(tell);
            hear(told, &child)
        }
        None => {
            // The container, whose root has power over the namespace, is not to look into this
            // process.
            let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
            let kind = Some(LinkNameSpaceType::User);
            let joined = move_into_link_name_space(user_namespace.as_fd(), kind);
            let ready = joined.and_then(|()| become_root());
            report(tell, ready.map_err(|e| e.to_string()).and_then(|()| job()))
        }
    }
}

/// What the child has to say. It says something in either case, so that its death cannot pass for
/// success.
fn hear(mut told: io::PipeReader, child: &Child) -> Result<(), NamespaceError> {
    let mut message = String::new();
    io::Read::read_to_string(&mut told, &mut message).map_err(handshake)?;
    wait_for(child.pid)?;
    match message.strip_prefix("ok") {
        Some("") => Ok(()),
        _ if message.is_empty() => Err(NamespaceError::Killed),
        _ => Err(NamespaceError::Told { message }),
    }
}

fn handshake(source: io::Error) -> NamespaceError {
    NamespaceError::Handshake { source }
}

fn report(mut tell: io::PipeWriter, result: Result<(), String>) -> ! {
    let message = result.err().unwrap_or_else(|| "ok".to_owned());
    let _ = io::Write::write_all(&mut tell, message.as_bytes());
    std::process::exit(0)
}

/// Reaps what can be reaped without waiting and returns the PIDs with their exit codes.
pub fn reap() -> Vec<(Pid, i32)> {
    let next = || wait(WaitOptions::NOHANG).ok().flatten();
    std::iter::from_fn(next)
        .filter_map(|(pid, status)| Some((pid, exit_code(status)?)))
        .collect()
}

/// Waits for a child to end and returns its exit code.
pub fn wait_for(pid: Pid) -> Result<i32, NamespaceError> {
    loop {
        let waited = rustix::io::retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()))
            .map_err(|errno| NamespaceError::Wait {
                source: errno.into(),
            })?;
        if let Some(code) = waited.and_then(|(_, status)| exit_code(status)) {
            return Ok(code);
        }
    }
}

/// The code that a shell would show: the exit code, or 128 plus the signal's number, real-time
/// signals included. `None` while the process lives.
fn exit_code(status: WaitStatus) -> Option<i32> {
    status
        .exit_status()
        .or_else(|| Some(128 + status.terminating_signal()?))
}

/// False when the writer hung up without writing.
fn wait_for_byte(reader: OwnedFd) -> bool {
    let mut byte = [0];
    matches!(
        rustix::io::retry_on_intr(|| rustix::io::read(&reader, &mut byte)),
        Ok(1)
    )
}

/// The setting that forbids user namespaces on this machine, where one is known to. Begins with a
/// separator.
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
