//! `coracle unshare`: a command in a user namespace like a container's, and in nothing else of one.
//!
//! The way to look after files that belong to sub-IDs: inside, the caller is root and owns them. The command keeps the caller's
//! terminal, working directory, environment and groups; mounts that it makes are its own.

use std::convert::Infallible;
use std::ffi::OsString;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::waitpid;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::pidfd_send_signal;

use super::run::warn_of_single_id;
use crate::cli::UnshareArgs;
use crate::failure::Failure;
use crate::foreground::FORWARDED;
use crate::idmap::IdMaps;
use crate::namespaces::{Fork, exit_code, fork_with_fallback};
use crate::process::execute_program;
use crate::sys::{self, Child};

pub fn unshare_command(args: UnshareArgs) -> Result<u8, Failure> {
    let mut signals: SigSet = FORWARDED.into_iter().collect();
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    let (mut maps, single) = IdMaps::discover()?;
    let (fork, fallback) = fork_with_fallback(&mut maps)?;
    match fork {
        Fork::Parent(child) => {
            if let Some(reason) = single.or(fallback) {
                warn_of_single_id(&reason);
            }
            accompany(&child, &signals)
        }
        Fork::Child => {
            let Err(failure) = become_command(args.command);
            eprintln!("coracle: {failure}");
            std::process::exit(failure.kind.exit_code().into())
        }
    }
}

fn become_command(command: Vec<OsString>) -> Result<Infallible, Failure> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // What the host mounts later is seen, what is mounted here is not seen outside.
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    let mut args = command;
    if args.is_empty() {
        args.push(std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into()));
    }
    let variable = |(mut name, value): (OsString, OsString)| {
        name.push("=");
        name.push(value);
        name
    };
    sys::reset_signals();
    Err(execute_program(
        args,
        std::env::vars_os().map(variable).collect(),
    ))
}

/// Passes signals on until the command has ended.
fn accompany(child: &Child, signals: &SigSet) -> Result<u8, Failure> {
    loop {
        let status = waitpid(child.pid, Some(nix::sys::wait::WaitPidFlag::WNOHANG))?;
        if let Some(code) = exit_code(status) {
            return Ok(code as u8);
        }
        let signal = signals.wait()?;
        // The terminal's own signals go to its whole foreground group, the command included; twice does not hurt.
        if let Some(signal) = rustix::process::Signal::from_named_raw(signal as i32)
            .filter(|_| signal != Signal::SIGCHLD)
        {
            let _ = pidfd_send_signal(&child.pidfd, signal);
        }
    }
}
