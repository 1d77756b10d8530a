//! Another command in a running container.
//!
//! The process between this one and the command, the launcher, is `process::exec`'s.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tracing::{debug, error_span};

use super::processes::running_init;
use super::talk::{Orphan, Role, Talk};
use super::{Engine, EngineError};
use crate::isolation::capabilities::Capabilities;
use crate::isolation::idmap;
use crate::isolation::seccomp::Seccomp;
use crate::logging::ProcessLog;
use crate::process::channel::{self, Channel, ChannelError};
use crate::process::messages::{FromMonitor, ToLauncher};
use crate::process::task;
use crate::spec::{ContainerSpec, ProcessSpec, Variable, environment, split_variable};
use crate::state::{Container, ProcessRef, Status};
use crate::stdio::{self, CallerEnds, Input, ProgramEnds};

/// A command to run in a container that runs already. What is not said here it has from the
/// container's own command: its rights, its limits, its system calls.
#[derive(Debug, Clone)]
pub struct ExecRequest {
    /// The command with its arguments.
    pub command: Vec<OsString>,
    /// Variables over those of the container.
    pub env: Vec<Variable>,
    /// The container's when not given.
    pub workdir: Option<PathBuf>,
    /// As `user::resolve` takes it; the container's when not given.
    pub user: Option<String>,
    /// Whether it gets all capabilities and system calls, as the commands of a privileged container
    /// do.
    pub privileged: bool,
    /// Whether it gets a terminal of its own, in the place of all three streams.
    pub terminal: bool,
    /// Whether there is something for it to read. A terminal can always be typed into.
    pub stdin: bool,
}

/// How long a command may take to start: a process of its container may hold it up.
pub(crate) const START_MAX: Duration = Duration::from_secs(20);

/// How long a launcher may take to end.
const LAUNCHER_PATIENCE: Duration = Duration::from_secs(2);

/// A command that is being started in a container, or has been. Dropped, it is killed.
#[derive(Debug)]
#[must_use = "dropping it kills the command"]
pub struct Exec {
    /// Ours of its streams.
    pub streams: CallerEnds,
    /// The master of its terminal, once it runs: what it reads and writes.
    pub terminal: Option<OwnedFd>,
    talk: Talk<ToLauncher>,
    start_by: Instant,
}

impl Engine {
    /// Starts a command in a running container.
    ///
    /// # Errors
    /// [`ErrorKind::NotRunning`](super::ErrorKind::NotRunning), and those of [`Engine::find`]. That
    /// there is no such command is told by [`Exec::started`].
    pub fn exec(&self, wanted: &str, request: ExecRequest) -> Result<Exec, EngineError> {
        let container = self.find(wanted)?;
        let exec = self.begin(&container, request)?;
        self.note(&container, "exec");
        Ok(exec)
    }

    /// For whoever serves a command to its end.
    pub(crate) fn note_exec_end(&self, container: &Container) {
        self.note(container, "exec_died");
    }

    /// As [`Engine::exec`], without a word in the journal.
    pub(super) fn begin(
        &self,
        container: &Container,
        request: ExecRequest,
    ) -> Result<Exec, EngineError> {
        let _span = error_span!("exec", container = container.id.short()).entered();
        if container.status == Status::Paused {
            return Err(EngineError::Paused {
                name: container.name.clone(),
            });
        }
        let init = running_init(container)?;
        let start_by = Instant::now() + START_MAX;
        let (channel, launchers) = channel::pair::<ToLauncher, FromMonitor>()?;
        // It comes up while the rest is read and made.
        let mut executed = Role::Launcher.execute(&container.name, launchers.into())?;
        let instructed = self.instruct(channel, container, &init, request);
        // One that was not told what to do has been hung up on. Fails only where the caller ignores
        // its children, which need no reaping then.
        let _ = executed.wait();
        let (events, streams) = instructed?;
        Ok(Exec {
            streams,
            terminal: None,
            talk: Talk::begin(Role::Launcher, events)?,
            start_by,
        })
    }

    /// Tells the launcher what it needs, and makes the command's streams.
    fn instruct(
        &self,
        channel: Channel<ToLauncher, FromMonitor>,
        container: &Container,
        init: &OwnedFd,
        request: ExecRequest,
    ) -> Result<(Channel<ToLauncher, FromMonitor>, CallerEnds), EngineError> {
        let root = container_root(container.init.as_ref())?;
        let streams = standard_streams(request.terminal, request.stdin, root);
        let (ours, theirs) = streams.map_err(EngineError::streams)?;
        let launch = ToLauncher::Launch {
            cgroups: container.cgroups.clone(),
        };
        let [stdin, stdout, stderr] = theirs.as_fds();
        unless_gone(channel.send(&launch, &[init.as_fd(), stdin, stdout, stderr]))?;

        let dir = self.store.dir(container);
        let ContainerSpec {
            namespaces,
            process,
            ..
        } = ContainerSpec::load(&dir.data)?;
        let mut spec = added(request, process);
        if let Some(init) = &container.init {
            spec.single_id = idmap::is_single(&idmap::groups_of(init.pid)?);
        }
        let task = task::write("coracle-exec", &spec)?;
        let log = ProcessLog::new(&dir.run, self.filter.clone());
        // Something that cleans up may have taken the run directory away meanwhile.
        let log_file = log.open().inspect_err(|error| debug!(%error)).ok();
        let mut files = vec![init.as_fd(), task.as_fd()];
        files.extend(log_file.as_ref().map(AsFd::as_fd));
        unless_gone(channel.send(&ToLauncher::Run { namespaces, log }, &files))?;
        Ok((channel, ours))
    }
}

impl Exec {
    /// Waits until the command runs. One that ran for a moment only has run.
    ///
    /// # Errors
    /// [`ErrorKind::CommandNotFound`](super::ErrorKind::CommandNotFound) and
    /// [`ErrorKind::CommandNotExecutable`](super::ErrorKind::CommandNotExecutable);
    /// [`EngineError::StartOverdue`] after 20 seconds.
    pub fn started(&mut self) -> Result<(), EngineError> {
        let Self { talk, terminal, .. } = self;
        talk.started(Some(self.start_by), terminal, &mut |_| {})
    }

    /// Waits until a command that has started ends, and returns its exit code as a shell would show
    /// it. Somebody has to read its output meanwhile.
    pub fn ended(self) -> Result<i32, EngineError> {
        self.talk.ended()
    }

    /// For whoever serves the caller's terminal and signals meanwhile.
    pub(crate) fn into_parts(self) -> (Channel<ToLauncher, FromMonitor>, CallerEnds, Launcher) {
        let (events, process) = self.talk.into_parts();
        (events, self.streams, Launcher(process))
    }
}

/// The process between the caller and a command.
#[derive(Debug)]
pub(crate) struct Launcher(Orphan);

impl Launcher {
    /// Waits for one that has told of the command's end, or that has been hung up on: then it ends
    /// the command. One that a process of the container has stopped is killed.
    pub fn end(self) {
        self.0.end_within(LAUNCHER_PATIENCE);
    }
}

/// One that has gone has said why, which comes next.
fn unless_gone(sent: Result<(), ChannelError>) -> Result<(), ChannelError> {
    match sent {
        Err(error) if error.is_hang_up() => Ok(()),
        other => other,
    }
}

/// Our ends of the command's streams, and its own. With a terminal they are one, which is to come.
/// `root` is to own them.
fn standard_streams(
    terminal: bool,
    stdin: bool,
    root: Option<(u32, u32)>,
) -> io::Result<(CallerEnds, ProgramEnds)> {
    if terminal {
        return Ok((CallerEnds::of_terminal(), ProgramEnds::null()?));
    }
    let input = match stdin {
        true => Input::Pipe,
        false => Input::Empty,
    };
    let (ours, theirs) = stdio::pipes(input)?;
    if let Some(root) = root {
        theirs.give_pipes_to(root)?;
    }
    Ok((ours, theirs))
}

/// The IDs of the container's root, if they are not the caller's.
fn container_root(init: Option<&ProcessRef>) -> Result<Option<(u32, u32)>, EngineError> {
    match init {
        Some(init) if idmap::is_host_root() => Ok(Some(idmap::root_of(init.pid)?)),
        _ => Ok(None),
    }
}

/// The container's own process with what was asked for in its place.
fn added(request: ExecRequest, container: ProcessSpec) -> ProcessSpec {
    let inherited: Vec<_> = container
        .env
        .iter()
        .filter_map(|entry| split_variable(entry))
        .collect();
    let (capabilities, seccomp) = match request.privileged {
        true => (Capabilities::ALL, Seccomp::Unconfined),
        false => (container.capabilities, container.seccomp),
    };
    let terminal = request.terminal.then(|| ("TERM".into(), "xterm".into()));
    ProcessSpec {
        args: request.command,
        env: environment(inherited.into_iter().chain(terminal).chain(request.env)),
        workdir: request.workdir.unwrap_or(container.workdir),
        user: request.user.unwrap_or(container.user),
        terminal: request.terminal,
        capabilities,
        seccomp,
        init: false,
        make_workdir: false,
        ..container
    }
}
