//! `coracle unshare`: a command in a user namespace like a container's, and in nothing else of one.
//!
//! The way to look after files that belong to sub-IDs: inside, the caller is root and owns them.
//! The command keeps the caller's terminal, working directory, environment and groups; mounts that
//! it makes are seen by all such commands of the user, and by nobody else ([`holder`]). Tools that
//! make user namespaces themselves are told that they are in one.

use std::ffi::OsString;

use rustix::process::{getegid, geteuid};
use rustix::thread::CapabilitySet;

use crate::cli::UnshareArgs;
use crate::failure::Failure;
use crate::isolation::idmap;
use crate::process::foreground::warn;
use crate::process::holder;
use crate::process::inherited::Inherited;
use crate::process::program::execute_program;
use crate::spec::{Variable, environment};
use crate::state::Dirs;

pub fn unshare_command(args: UnshareArgs, inherited: &Inherited) -> Result<u8, Failure> {
    let mut words = args.command;
    if words.is_empty() {
        words.push(std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into()));
    }
    Err(become_inside(words, inherited)?)
}

/// Executes this command line anew as root of the namespaces, unless this process is the root of a
/// user namespace already, or the host's, and may mount where it is.
pub fn go_on_as_root(inherited: &Inherited) -> Result<(), Failure> {
    if is_mount_root() {
        return Ok(());
    }
    // By its name, which process listings show.
    let program = std::env::current_exe();
    let program = program.map_err(Failure::context("cannot find the running program"))?;
    let words = std::env::args_os().skip(1);
    let words = std::iter::once(program.into_os_string()).chain(words);
    let words = words.collect();
    Err(become_inside(words, inherited)?)
}

/// Returns only on failure.
fn become_inside(words: Vec<OsString>, inherited: &Inherited) -> Result<Failure, Failure> {
    let variables = enter()?;
    let env = environment(std::env::vars_os().chain(variables));
    inherited.restore();
    Ok(execute_program(words, env))
}

/// Makes this process root of the namespaces, unless it is so already. Returns what else there is
/// to be in the environment.
fn enter() -> Result<Vec<Variable>, Failure> {
    let variables = for_container_tools();
    let dirs = Dirs::discover()?;
    let is_inside = variables.is_empty() && is_mount_root() && !idmap::is_initial();
    if is_inside || holder::find(&dirs.run).is_some_and(|holder| holder.is_joined()) {
        return Ok(variables);
    }
    dirs.ensure_run()?;
    let holder = holder::provide(&dirs.run, &mut warn)?;
    let doing = "cannot enter the namespaces of `coracle unshare`";
    holder.join().map_err(Failure::context(doing))?;
    Ok(variables)
}

/// Whether this process may mount what it likes where it is.
pub fn is_mount_root() -> bool {
    let capabilities = rustix::thread::capabilities(None);
    geteuid().is_root()
        && capabilities.is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// What tells Podman, Buildah and Skopeo that they are in a user namespace already, and whose:
/// without they make another, in which the caller's sub-IDs are not to be had. Where they are told
/// so now, by an outer one, it stays as it is.
fn for_container_tools() -> Vec<Variable> {
    const CONFIGURED: &str = "_CONTAINERS_USERNS_CONFIGURED";
    if std::env::var_os(CONFIGURED).is_some() {
        return Vec::new();
    }
    [
        (CONFIGURED, "done".to_owned()),
        ("_CONTAINERS_ROOTLESS_UID", geteuid().to_string()),
        ("_CONTAINERS_ROOTLESS_GID", getegid().to_string()),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .into()
}
