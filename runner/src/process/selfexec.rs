//! Running this program again inside a container, without giving the container a way to change it.
//!
//! An image can make its own entry point `/proc/self/exe`, and any process of a container can open
//! `/proc/PID/exe` of whoever runs in it. If that led to the coracle binary of a user who may write
//! it, the container could replace it (CVE-2019-5736). What is executed here is therefore reached
//! through a read-only mount that is attached nowhere and that nobody can remount.

use std::ffi::{CStr, CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{CWD, MemfdFlags, SealFlags, fstat, stat};
use rustix::mount::{
    MountAttrFlags, MountPropagationFlags, OpenTreeFlags, mount_change, open_tree,
};
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;
use rustix::process::DumpableBehavior;
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::failure::Failure;
use crate::sys::{self, NewNamespaces};

/// The running program.
const SELF: &str = "/proc/self/exe";
/// `argv[0]` of the roles that run inside a container.
pub const INIT_ROLE: &str = "coracle-init";
pub const EXEC_ROLE: &str = "coracle-exec";
/// Of those that run beside one.
pub const MONITOR_ROLE: &str = "coracle-monitor";
pub const LAUNCHER_ROLE: &str = "coracle-launcher";
pub const HOLDER_ROLE: &str = "coracle-holder";
pub const NETWORKS_ROLE: &str = "coracle-networks";

/// For executing this program in a role outside of containers, with the same file behind it even
/// when that has been replaced or removed.
pub fn command(role: &str) -> Command {
    let mut command = Command::new(SELF);
    command.arg0(role);
    command
}

/// The channel that a role has for its standard input. `None` when it has none.
pub fn stdin_channel() -> Option<OwnedFd> {
    let stdin = rustix::stdio::stdin();
    let is_channel = socket_type(stdin) == Ok(SocketType::SEQPACKET);
    is_channel
        .then(|| stdin.try_clone_to_owned().ok())
        .flatten()
}

/// The running program behind a read-only mount. Needs a mount namespace of its own, whose mounts
/// it keeps from spreading.
pub fn protected_program() -> io::Result<OwnedFd> {
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    let path = std::fs::read_link(SELF)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    match open_tree(CWD, &path, flags) {
        Ok(mount) if is_this_program(&mount)? => {
            sys::mount_setattr(
                mount.as_fd(),
                MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into(),
                false,
            )?;
            Ok(mount)
        }
        // The file was replaced or removed since we started, or is out of this user's reach: a copy
        // does as well.
        _ => sealed_copy(),
    }
}

/// As [`protected_program`], for a process that is to stay out of the container's user namespace:
/// what the container may do to a process depends on where that process last executed a program. So
/// another goes in for it. The calling one, which must have one thread, is of no use for anything
/// else afterwards.
pub fn protected_program_inside(init: &OwnedFd) -> io::Result<OwnedFd> {
    // To the container, whose root has power over the namespace, this is a process of a namespace
    // outside.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    move_into_thread_name_spaces(init.as_fd(), ThreadNameSpaceType::USER)?;
    sys::unshare(NewNamespaces::MOUNT)?;
    protected_program()
}

/// Executes `program` in the role `role`, with the socket of its channel still open and no
/// environment. Returns only on failure.
pub fn run_role(program: &OwnedFd, role: &str, channel: BorrowedFd) -> Failure {
    let attempt = || -> io::Result<std::convert::Infallible> {
        let argv = [
            CString::new(role)?,
            CString::new(channel.as_raw_fd().to_string())?,
        ];
        rustix::io::fcntl_setfd(channel, rustix::io::FdFlags::empty())?;
        let no_env: [&CStr; 0] = [];
        let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
        Ok(nix::unistd::execveat(program, c"", &argv, &no_env, flags)?)
    };
    let Err(error) = attempt();
    Failure::context("cannot start coracle inside the container")(error)
}

/// The socket of the channel that a role was started with.
pub fn role_channel(args: &[OsString]) -> Option<OwnedFd> {
    let [_, fd] = args else { return None };
    let fd = fd.to_str()?.parse().ok().filter(|fd| *fd > 2)?;
    sys::adopt_descriptor(fd).ok()
}

fn is_this_program(candidate: &OwnedFd) -> io::Result<bool> {
    let (found, running) = (fstat(candidate)?, stat(SELF)?);
    Ok((found.st_dev, found.st_ino) == (running.st_dev, running.st_ino))
}

fn sealed_copy() -> io::Result<OwnedFd> {
    let memory =
        rustix::fs::memfd_create("coracle", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    io::copy(
        &mut std::fs::File::open(SELF)?,
        &mut std::fs::File::from(memory.try_clone()?),
    )?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&memory, seals)?;
    Ok(memory)
}
