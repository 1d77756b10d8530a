//! `coracle unshare`: a command in a user namespace like a container's, and in nothing else of one.
//!
//! The way to look after files that belong to sub-IDs: inside, the caller is root and owns them.
//! The command keeps the caller's terminal, working directory, environment and groups; mounts that
//! it makes are its own. Tools that make user namespaces themselves are told that they are in one.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::fd::AsFd;

use rustix::event::PollFlags;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Gid, Uid, getegid, geteuid};

use crate::cli::UnshareArgs;
use crate::failure::Failure;
use crate::isolation::idmap::IdMaps;
use crate::isolation::namespaces::{self, Fork, become_root, fork_with_fallback};
use crate::poll;
use crate::printable::complain;
use crate::process::foreground::{Signals, warn};
use crate::process::inherited::Inherited;
use crate::process::program::execute_program;
use crate::spec::{Variable, environment};
use crate::sys::{self, Child, NewNamespaces};

pub fn unshare_command(args: UnshareArgs, inherited: &Inherited) -> Result<u8, Failure> {
    let signals = Signals::block()?;
    let caller = (geteuid(), getegid());
    // The command is the caller's own: the host's root keeps its IDs, and finds all files there.
    let (mut maps, single) = IdMaps::discover(true)?;
    let (fork, fallback) = fork_with_fallback(&mut maps, NewNamespaces::NONE, None)?;
    match fork {
        Fork::Parent(held) => {
            if let Some(reason) = single.or(fallback) {
                warn(&reason.warning());
            }
            accompany(&held.release()?, &signals)
        }
        Fork::Child => {
            let Err(failure) = become_command(args.command, caller, inherited);
            complain(&failure);
            std::process::exit(failure.kind.exit_code().into())
        }
    }
}

fn become_command(
    command: Vec<OsString>,
    caller: (Uid, Gid),
    inherited: &Inherited,
) -> Result<Infallible, Failure> {
    become_root().map_err(Failure::context("cannot become root of the user namespace"))?;
    // The kernel forgets it when IDs change.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(Failure::context("cannot tie the command to coracle"))?;
    sys::unshare(NewNamespaces::MOUNT)
        .map_err(Failure::context("cannot make a mount namespace"))?;
    // What the host mounts later is seen, what is mounted here is not seen outside.
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(Failure::context(
        "cannot keep mounts from spreading to the host",
    ))?;
    let mut args = command;
    if args.is_empty() {
        args.push(std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into()));
    }
    let env = environment(std::env::vars_os().chain(for_container_tools(caller)));
    inherited.restore();
    Err(execute_program(args, env))
}

/// What tells Podman, Buildah and Skopeo that they are in a user namespace already, and whose:
/// without they make another, in which the caller's sub-IDs are not to be had. Where they are told
/// so now, by an outer one, it stays as it is.
fn for_container_tools((uid, gid): (Uid, Gid)) -> Vec<Variable> {
    const CONFIGURED: &str = "_CONTAINERS_USERNS_CONFIGURED";
    if std::env::var_os(CONFIGURED).is_some() {
        return Vec::new();
    }
    [
        (CONFIGURED, "done".to_owned()),
        ("_CONTAINERS_ROOTLESS_UID", uid.to_string()),
        ("_CONTAINERS_ROOTLESS_GID", gid.to_string()),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .into()
}

/// Passes signals on until the command has ended.
fn accompany(child: &Child, signals: &Signals) -> Result<u8, Failure> {
    loop {
        let interests = [signals.as_fd(), child.pidfd.as_fd()].map(|fd| Some((fd, PollFlags::IN)));
        let [_, has_ended] = poll::wait(interests, None)
            .map_err(Failure::context("cannot wait for the command"))?
            .unwrap_or_default();
        if has_ended {
            return Ok(namespaces::wait_for(child.pid)? as u8);
        }
        // The terminal's own signals go to its whole foreground group, the command included; twice
        // does not hurt.
        for signal in signals.take() {
            let _ = sys::send_signal(child.pidfd.as_fd(), signal);
        }
    }
}
