//! From a container that is recorded to one whose command runs: the process that answers for it is
//! started, and told what to do.
//!
//! That process, the monitor, lives as long as the container does. [`Launch`] is the caller's end
//! of the talk with it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use portfwd::publish::Listener;
use tracing::{debug, error_span};

use super::processes::wait_for_monitor;
use super::talk::{Orphan, Role, Talk};
use super::{ContainerRequest, Engine, EngineError};
use crate::network::ports::Ports;
use crate::process::channel::{self, Channel, ChannelError, DESCRIPTORS_MAX};
use crate::process::messages::{FromMonitor, Job, ToMonitor, Unstarted};
use crate::state::{Container, ProcessRef, Status, Store};
use crate::stdio::{self, CallerEnds, Input, ProgramEnds};

/// Which of a container's standard streams an attached caller takes. Whichever they are, the
/// container ends with the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attach {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

impl Attach {
    /// An output that the caller does not take goes to the log alone; its own end is closed from
    /// the beginning. What is typed into a terminal goes to that, see [`Launch::terminal`].
    fn streams(self, terminal: bool) -> io::Result<(CallerEnds, ProgramEnds)> {
        let input = match self.stdin && !terminal {
            true => Input::Pipe,
            false => Input::Empty,
        };
        let (ours, mut theirs) = stdio::pipes(input)?;
        if !self.stdout {
            theirs.stdout = stdio::null()?;
        }
        if !self.stderr {
            theirs.stderr = stdio::null()?;
        }
        Ok((ours, theirs))
    }
}

/// A container that is being started, or has been, seen by the process that has asked for it.
///
/// Dropped before the command runs, it calls the start off; later it ends the container if this
/// process is attached to it, in the way of [`Engine::stop`].
#[derive(Debug)]
#[must_use = "dropping it calls the start off"]
pub struct Launch {
    pub container: Container,
    /// Ours of the container's streams, if this process is attached.
    pub streams: Option<CallerEnds>,
    /// The master of the container's terminal, once the command runs. For typing into it; what it
    /// shows comes through `streams`.
    pub terminal: Option<OwnedFd>,
    talk: Talk<ToMonitor>,
    store: Store,
}

impl Engine {
    /// Makes a container and starts it, with `attach` attached to this process. Where it cannot be
    /// made or started, nothing of it stays. `warn` is told of what will not work as somebody may
    /// expect.
    pub fn run(
        &self,
        request: ContainerRequest,
        attach: Option<Attach>,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Launch, EngineError> {
        request.check()?;
        let base = self.find_base(&request, warn)?;
        // Before anything is made, so that a clash has nothing to undo.
        let Ports { listeners, rules } = Ports::bind(&base.published(&request)?, &self.store)?;
        let container = self.make(
            ContainerRequest {
                publish: rules,
                ..request
            },
            base,
            warn,
        )?;
        self.launch(container.clone(), listeners, attach, Unstarted::Forget)
            .inspect_err(|_| {
                // Where there was no monitor to do it.
                let anonymous = self.anonymous_volumes(&container);
                drop(self.store.remove(&container));
                drop(self.volumes().remove_unused(&anonymous, &self.store));
            })
    }

    /// Starts a container that has been created, or has ended, with `attach` attached to this
    /// process. What it has written to its root file system and its log is still there. Where it
    /// cannot be started, it stays as it was; ports that the kernel chose are kept.
    ///
    /// # Errors
    /// [`ErrorKind::WrongState`](super::ErrorKind::WrongState) for one that runs or is starting,
    /// [`ErrorKind::PortUnavailable`](super::ErrorKind::PortUnavailable), and those of
    /// [`Engine::find`].
    pub fn start(&self, wanted: &str, attach: Option<Attach>) -> Result<Launch, EngineError> {
        let mut found = self.find(wanted)?;
        let mut before = found.status;
        found.enter(Status::Starting)?;
        // The one that answered for it until it ended may be about to end itself.
        wait_for_monitor(&found);
        let me = ProcessRef::current()?;
        let starting = |container: &mut Container| {
            container.monitor = Some(me.clone());
            container.init = None;
            container.cgroups.clear();
            container.restart_count = 0;
            container.stopped = false;
        };
        let noting = |container: &mut Container, status| {
            before = status;
            starting(container);
        };
        let container = self.store.enter_from(&found.id, Status::Starting, noting)?;
        self.start_claimed(container, attach, before)
            .inspect_err(|_| drop(self.store.call_off(&found.id, before, &[me])))
    }

    /// Goes on with a start that this process answers for.
    fn start_claimed(
        &self,
        container: Container,
        attach: Option<Attach>,
        before: Status,
    ) -> Result<Launch, EngineError> {
        let rules = container.publish.iter();
        let rules: Vec<_> = rules.filter_map(|rule| rule.parse().ok()).collect();
        let Ports { listeners, rules } = Ports::bind(&rules, &self.store)?;
        let container = self.store.modify(&container.id, |container| {
            container.publish = rules.iter().map(ToString::to_string).collect();
        })?;
        self.launch(container, listeners, attach, Unstarted::Keep(before))
    }

    /// Ends containers that run, as [`Engine::stop`] does, and starts each of those that were
    /// named, in their order.
    ///
    /// # Errors
    /// For each container [`EngineError::GoneAtItsEnd`], and those of [`Engine::start`].
    pub fn restart(
        &self,
        wanted: &[String],
        patience: Option<Duration>,
    ) -> impl Iterator<Item = Result<Launch, EngineError>> {
        let named = |wanted: &String| {
            let Container {
                id, name, remove, ..
            } = self.find(wanted)?;
            match remove {
                true => Err(EngineError::GoneAtItsEnd { name }),
                false => Ok(id.to_string()),
            }
        };
        let ids: Vec<Result<String, EngineError>> = wanted.iter().map(named).collect();
        let to_stop: Vec<String> = ids.iter().flatten().cloned().collect();
        let mut stopped = self.stop(&to_stop, patience).finish();
        ids.into_iter().map(move |id| {
            let id = id?;
            stopped.next().expect("one for each that is stopped")?;
            let launch = self.start(&id, None)?;
            self.note(&launch.container, "restart");
            Ok(launch)
        })
    }

    fn launch(
        &self,
        container: Container,
        listeners: Vec<Listener>,
        attach: Option<Attach>,
        unstarted: Unstarted,
    ) -> Result<Launch, EngineError> {
        let _span = error_span!("launch", container = container.id.short()).entered();
        debug!(name = container.name, "the container is recorded");
        self.provide_run_dir(&container)?;
        let streams = attach.map(|attach| attach.streams(container.tty));
        let streams = streams.transpose().map_err(EngineError::streams)?;
        let (streams, theirs) = streams.unzip();
        let (channel, monitors) = channel::pair::<ToMonitor, FromMonitor>()?;
        let mut executed = Role::Monitor.execute(&container.name, monitors.into())?;
        let job = Job {
            dirs: self.store.dirs().clone(),
            id: container.id.clone(),
            listeners: listeners.len(),
            attached: theirs.is_some(),
            input: attach.is_some_and(|attach| attach.stdin),
            unstarted,
            filter: self.filter.clone(),
        };
        let sent = send_job(&channel, job, theirs.as_ref(), &listeners);
        // Fails only where the caller ignores its children, which need no reaping then.
        let _ = executed.wait();
        let talk = Talk::begin(Role::Monitor, channel)?;
        sent?;
        Ok(Launch {
            container,
            streams,
            terminal: None,
            talk,
            store: self.store.clone(),
        })
    }
}

impl Launch {
    /// Waits until the command runs. One that ran for a moment only has run. `warn` is told of what
    /// will not work as somebody may expect.
    pub fn started(&mut self, warn: &mut dyn FnMut(&str)) -> Result<(), EngineError> {
        let started = self.talk.started(None, &mut self.terminal, warn);
        if let Err(EngineError::MonitorKilled) = started {
            self.disown();
        }
        started
    }

    /// Waits until a container that has started ends, and returns its exit code as a shell would
    /// show it. Of one that this process is attached to, somebody has to read the output meanwhile.
    pub fn ended(self) -> Result<i32, EngineError> {
        self.talk.ended()
    }

    /// This process answers for the container no more, if it still did: its monitor was killed
    /// before it could take over.
    fn disown(&self) {
        let me = ProcessRef::current().ok();
        // Where it fails, the container is lost as soon as this process is.
        let _ = self.store.modify(&self.container.id, |container| {
            if container.monitor == me {
                container.monitor = None;
            }
        });
    }

    /// For whoever serves the caller's terminal and signals meanwhile.
    pub(crate) fn into_parts(
        self,
    ) -> (Channel<ToMonitor, FromMonitor>, Option<CallerEnds>, Orphan) {
        let (events, monitor) = self.talk.into_parts();
        (events, self.streams, monitor)
    }
}

fn send_job(
    channel: &Channel<ToMonitor, FromMonitor>,
    job: Job,
    streams: Option<&ProgramEnds>,
    listeners: &[Listener],
) -> Result<(), ChannelError> {
    let streams = streams.map(ProgramEnds::as_fds);
    channel.send(
        &ToMonitor::Start(job),
        streams.as_ref().map_or(&[], |s| &s[..]),
    )?;
    for some in listeners.chunks(DESCRIPTORS_MAX) {
        let rules = some.iter().map(|listener| listener.rule().to_string());
        let sockets: Vec<BorrowedFd> = some.iter().map(|l| l.socket.as_fd()).collect();
        channel.send(&ToMonitor::Listeners(rules.collect()), &sockets)?;
    }
    Ok(())
}
