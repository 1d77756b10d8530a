//! `coracle exec`: another command in a running container.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use super::open_engine;
use crate::cli::{ExecArgs, ProcessArgs};
use crate::engine::{running_init, wait_for_end};
use crate::failure::Failure;
use crate::isolation::cgroup::{self, Entrance};
use crate::isolation::idmap;
use crate::isolation::namespaces::wait_for;
use crate::process::channel::{self};
use crate::process::exec;
use crate::process::foreground::{Foreground, Outcome, Signals, UNREAD_EXIT_CODE};
use crate::process::messages::{FromMonitor, ToLauncher};
use crate::process::task;
use crate::spec::{ContainerSpec, ProcessSpec, environment, split_variable};
use crate::state::ProcessRef;
use crate::stdio::{self, CallerEnds, Input, ProgramEnds};
use crate::sys::{self, NewNamespaces};

pub fn exec(args: ExecArgs) -> Result<u8, Failure> {
    let signals = Signals::block()?;
    let engine = open_engine()?;
    let container = engine.find(&args.container())?;
    let init = running_init(&container)?;
    let ContainerSpec {
        namespaces,
        process,
        ..
    } = ContainerSpec::load(&engine.store().dir(&container).data)?;
    let mut spec = added(&args, process);
    if let Some(init) = &container.init {
        spec.single_id = idmap::is_single(&idmap::groups_of(init.pid)?);
    }
    let root = container_root(container.init.as_ref())?;

    let (ends, streams) = standard_streams(&args.process, root).map_err(Failure::context(
        "cannot make the command's standard streams",
    ))?;
    let (main, theirs) = channel::pair::<ToLauncher, FromMonitor>()?;
    let mut groups = Entrance::open(&container.cgroups).unwrap_or_default();
    let clone = sys::clone_process(NewNamespaces::NONE, groups.unified())
        // Not every caller may go from its own control group to the container's. The command runs
        // outside then, if there it can do no harm.
        .or_else(|error| match cgroup::may_be_harmed() {
            true => Err(error),
            false => sys::clone_process(NewNamespaces::NONE, None),
        })
        .map_err(Failure::context(
            "cannot start the command in the container's control group, and the caller's own it could freeze or kill; run it from \
             where the container was started",
        ))?;
    let Some(launcher) = clone else {
        drop((main, ends));
        let failure = match theirs.as_fd().try_clone_to_owned() {
            Ok(channel) => exec::launch(&streams, &channel, &init),
            Err(error) => Failure::context("cannot duplicate a channel")(error),
        };
        let _ = theirs.send(&FromMonitor::Failed(failure), &[]);
        std::process::exit(125)
    };
    drop((theirs, streams));
    let _ = groups.admit(launcher.pid);

    let task = task::write("coracle-exec", &spec)?;
    // A launcher that failed at once has said so; what it said comes next.
    let _ = main.send(
        &ToLauncher::Run { namespaces },
        &[init.as_fd(), task.as_fd()],
    );
    let outcome = Foreground::new(
        signals,
        main.into_receiver(),
        ends,
        args.process.interactive,
    )?
    .starting_within(START_MAX)
    .serve();
    // It has been hung up on, and ends its command if that has not started.
    if !wait_for_end(&launcher.pidfd, Some(LAUNCHER_PATIENCE)) {
        let _ = sys::send_signal(launcher.pidfd.as_fd(), libc::SIGKILL);
    }
    wait_for(launcher.pid)?;
    match outcome? {
        Outcome::Exited(code) => Ok(code as u8),
        Outcome::Unread => Ok(UNREAD_EXIT_CODE),
        // The launcher dies with the container's other processes only when somebody kills it.
        Outcome::Lost => Err(Failure::runner(
            "the command's launcher was killed, and the command with it",
        )),
    }
}

/// Our ends of the command's streams, and its own. With a terminal they are one, which is to come.
/// `root` is to own them.
fn standard_streams(
    args: &ProcessArgs,
    root: Option<(u32, u32)>,
) -> io::Result<(CallerEnds, ProgramEnds)> {
    if args.tty {
        return Ok((CallerEnds::of_terminal(), ProgramEnds::null()?));
    }
    let input = match args.interactive {
        true => Input::Pipe,
        false => Input::Empty,
    };
    let (ours, theirs) = stdio::pipes(input)?;
    if let Some(root) = root {
        theirs.give_pipes_to(root)?;
    }
    Ok((ours, theirs))
}

/// How long a command may take to start.
const START_MAX: Duration = Duration::from_secs(20);

/// How long a launcher may take to end.
const LAUNCHER_PATIENCE: Duration = Duration::from_secs(2);

/// The IDs of the container's root, if they are not the caller's.
fn container_root(init: Option<&ProcessRef>) -> Result<Option<(u32, u32)>, Failure> {
    match init {
        Some(init) if idmap::is_host_root() => Ok(Some(idmap::root_of(init.pid)?)),
        _ => Ok(None),
    }
}

/// The container's own process with what was typed in its place.
fn added(args: &ExecArgs, container: ProcessSpec) -> ProcessSpec {
    let inherited: Vec<_> = container
        .env
        .iter()
        .filter_map(|entry| split_variable(entry))
        .collect();
    let terminal = args.process.tty.then(|| ("TERM".into(), "xterm".into()));
    ProcessSpec {
        args: args.command().to_vec(),
        env: environment(
            inherited
                .into_iter()
                .chain(terminal)
                .chain(args.process.variables()),
        ),
        workdir: args.process.workdir.clone().unwrap_or(container.workdir),
        user: args.process.user.clone().unwrap_or(container.user),
        terminal: args.process.tty,
        init: false,
        ..container
    }
}
