//! The commands, one file each, and what they share: finding containers and cleaning up after
//! crashes.

mod exec;
mod kill;
mod logs;
mod port;
mod ps;
mod rm;
mod run;
mod stop;
mod unshare;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::cgroup;
use crate::cli::{Cli, Command};
use crate::failure::Failure;
use crate::foreground::warn;
use crate::idmap::IdMaps;
use crate::inherited::Inherited;
use crate::namespaces::in_user_namespace;
use crate::printable::complain;
use crate::ready;
use crate::state::{Container, ContainerId, Dirs, ProcessRef, StateError, Status, Store};

pub use port::parse_port;

/// Carries out what was typed. Returns the exit code.
pub fn dispatch(cli: Cli, inherited: &Inherited) -> Result<u8, Failure> {
    match cli.command {
        Command::Run(args) => run::run(*args, inherited),
        Command::Port(args) => port::port(args),
        Command::Exec(args) => exec::exec(args),
        Command::Ps(args) => ps::ps(args),
        Command::Logs(args) => logs::logs(args),
        Command::Stop(args) => stop::stop(args),
        Command::Kill(args) => kill::kill(args),
        Command::Rm(args) => rm::rm(args),
        Command::Unshare(args) => unshare::unshare_command(args, inherited),
    }
}

/// The caller's containers, after what a crash may have left has been put right: a container whose
/// monitor was killed is ended, and removed if it was to be.
fn open_store() -> Result<Store, Failure> {
    let store = Store::open(Dirs::discover()?)?;
    repair(&store)?;
    Ok(store)
}

fn repair(store: &Store) -> Result<(), Failure> {
    let mut containers = store.list()?.containers;
    let orphans: Vec<_> = containers
        .iter()
        .filter(|c| is_orphan(c))
        .filter_map(|c| c.init.as_ref()?.open())
        .collect();
    if !orphans.is_empty() {
        for init in orphans {
            // Its pdeathsig was to do this; a program that changes its IDs loses that setting.
            let _ = pidfd_send_signal(&init, Signal::KILL);
            wait_for_end(&init, Some(Duration::from_secs(5)));
        }
        containers = store.list()?.containers;
    }
    for container in containers
        .iter()
        .filter(|c| c.remove && matches!(c.status, Status::Exited { .. }))
    {
        if !container.monitor.as_ref().is_some_and(ProcessRef::is_alive)
            && let Err(failure) = remove(store, container)
        {
            // No reason for other containers to be out of reach.
            warn(&format!(
                "container {} is left over: {failure}",
                container.name
            ));
        }
    }
    Ok(())
}

/// Not at its end, with nobody to answer for it.
fn is_orphan(container: &Container) -> bool {
    !matches!(container.status, Status::Exited { .. })
        && !container.monitor.as_ref().is_some_and(ProcessRef::is_alive)
}

/// Removes a container that has ended, files of its sub-IDs among the rest.
fn remove(store: &Store, container: &Container) -> Result<(), Failure> {
    as_owner(|| store.remove(container))
}

/// Does what may take the rights of the containers' own users.
fn as_owner(removal: impl Fn() -> Result<(), StateError>) -> Result<(), Failure> {
    match removal() {
        Err(StateError::NotOurs { .. }) => {
            let (maps, _) = IdMaps::discover(false)?;
            in_user_namespace(&maps, || removal().map_err(|error| error.to_string()))
        }
        other => Ok(other?),
    }
}

/// For signalling the container's first process; `None` when it does not run.
fn init_pidfd(container: &Container) -> Option<OwnedFd> {
    (container.status == Status::Running)
        .then(|| container.init.as_ref()?.open())
        .flatten()
}

/// As [`init_pidfd`], for a command that cannot do without.
fn running_init(container: &Container) -> Result<OwnedFd, Failure> {
    init_pidfd(container)
        .ok_or_else(|| Failure::runner(format!("container {} is not running", container.name)))
}

/// Waits for a process to end, and says whether it has. Without a limit it waits for ever.
fn wait_for_end(pidfd: &OwnedFd, limit: Option<Duration>) -> bool {
    matches!(
        ready::wait([Some((pidfd.as_fd(), PollFlags::IN))], limit),
        Ok(Some([true]))
    )
}

/// Waits until the monitor has recorded the end of a container whose init has ended, or is gone
/// itself.
fn wait_for_monitor(container: &Container) {
    if let Some(monitor) = container.monitor.as_ref().and_then(ProcessRef::open) {
        wait_for_end(&monitor, Some(MONITOR_PATIENCE));
    }
}

/// Kills the first process of a container, and with it all others, frozen ones included.
fn kill_init(container: &Container, init: &OwnedFd) {
    // Fails only when it has ended.
    let _ = pidfd_send_signal(init, Signal::KILL);
    cgroup::thaw(&container.cgroups);
}

/// Kills a container through whoever answers for it: one that has not started yet, or whose record
/// tells nothing, or not the truth. False when it runs on.
fn end_by_monitor(store: &Store, id: &ContainerId) -> bool {
    let Some(monitor) = store.claimant(id) else {
        return true;
    };
    if let Ok(pidfd) = pidfd_open(monitor, PidfdFlags::empty())
        // Asked again, now that the descriptor names one process for good.
        && store.claimant(id) == Some(monitor)
    {
        // The monitor's word for "at once".
        let _ = pidfd_send_signal(&pidfd, Signal::QUIT);
        wait_for_end(&pidfd, Some(MONITOR_PATIENCE));
    }
    store.claimant(id).is_none()
}

/// How long a monitor may take to clean up after a container that has ended.
const MONITOR_PATIENCE: Duration = Duration::from_secs(10);

/// Those that were named, or with `--all` the names of all that `is_meant`.
fn select(
    store: &Store,
    names: &[String],
    all: bool,
    is_meant: impl Fn(&Container) -> bool,
) -> Result<Vec<String>, Failure> {
    if !all {
        return Ok(names.to_vec());
    }
    let containers = store.list()?.containers;
    Ok(containers
        .into_iter()
        .filter(is_meant)
        .map(|container| container.name)
        .collect())
}

/// Does `action` to each container named. All are tried; the last failure is returned, the others
/// are printed.
fn for_each(
    names: &[String],
    mut action: impl FnMut(&str) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let mut last = None;
    for name in names {
        if let Err(failure) = action(name)
            && let Some(earlier) = last.replace(failure)
        {
            complain(earlier);
        }
    }
    match last {
        Some(failure) => Err(failure),
        None => Ok(0),
    }
}

/// A line on stdout. A reader that has left, as `head` does, is no failure.
fn print_line(line: &str) -> Result<(), Failure> {
    use std::io::Write;
    let mut stdout = std::io::stdout();
    let written = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    output_result(written)
}

/// For what is written to the standard output or error.
pub fn output_result(written: std::io::Result<()>) -> Result<(), Failure> {
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(Failure::context("cannot write to standard output")),
    }
}
