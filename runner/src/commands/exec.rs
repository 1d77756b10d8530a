//! `coracle exec`: another command in a running container.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use super::open_engine;
use crate::cli::ExecArgs;
use crate::engine::{running_init, wait_for_end};
use crate::failure::Failure;
use crate::isolation::cgroup::{self, Entrance};
use crate::isolation::idmap;
use crate::isolation::namespaces;
use crate::process::channel::{self};
use crate::process::exec;
use crate::process::foreground::{
    Ends, Foreground, Outcome, Signals, UNREAD_EXIT_CODE, output_pipes,
};
use crate::process::init::{Streams, task_file};
use crate::process::messages::{FromMonitor, ToLauncher};
use crate::process::monitor::give_pipe_to;
use crate::spec::{ContainerSpec, ProcessSpec, environment, split_variable};
use crate::state::ProcessRef;
use crate::sys::{self, NewNamespaces};

pub fn exec(args: ExecArgs) -> Result<u8, Failure> {
    let signals = Signals::block()?;
    let engine = open_engine()?;
    let container = engine.find(&args.container())?;
    let init = running_init(&container)?;
    let spec = ContainerSpec::load(&engine.store().dir(&container).data)?;
    let mut spec = added(&args, spec.process);
    if let Some(init) = &container.init {
        spec.single_id = idmap::is_single(&idmap::groups_of(init.pid)?);
    }
    let root = container_root(container.init.as_ref())?;

    let feeds = args.process.interactive && !args.process.tty;
    let (ends, streams) = standard_streams(feeds, root).map_err(Failure::context(
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

    let task = task_file("coracle-exec", &spec)?;
    // A launcher that failed at once has said so; what it said comes next.
    let _ = main.send(&ToLauncher::Run, &[init.as_fd(), task.as_fd()]);
    let ends = Ends {
        outputs: ends.outputs.filter(|_| !args.process.tty),
        ..ends
    };
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
    namespaces::wait_for(launcher.pid)?;
    match outcome? {
        Outcome::Exited(code) => Ok(code as u8),
        Outcome::Unread => Ok(UNREAD_EXIT_CODE),
        // The launcher dies with the container's other processes only when somebody kills it.
        Outcome::Lost => Err(Failure::runner(
            "the command's launcher was killed, and the command with it",
        )),
    }
}

/// Our ends of the command's streams, and its own. `feeds` says whether we write to its input; else
/// it is at its end from the beginning. `root` is to own them.
fn standard_streams(feeds: bool, root: Option<(u32, u32)>) -> io::Result<(Ends, Streams)> {
    let (outputs, (stdout, stderr)) = output_pipes()?;
    let (our_stdin, stdin) = match feeds {
        true => {
            let (stdin, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            (Some(ours), stdin)
        }
        false => (None, fs::File::open("/dev/null")?.into()),
    };
    let streams = Streams {
        stdin,
        stdout,
        stderr,
    };
    if let Some(root) = root {
        for stream in [&streams.stdin, &streams.stdout, &streams.stderr] {
            give_pipe_to(stream, root)?;
        }
    }
    let ends = Ends {
        stdin: our_stdin,
        outputs: Some(outputs),
    };
    Ok((ends, streams))
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
