//! The process that answers for one container: it starts init and the network helper, carries
//! output to the log and to main, and when the container ends it records the exit code and cleans
//! up, or starts it again ([`restart`]).
//!
//! It has the caller's user ID and namespaces, and a session of its own. What it may do to the
//! container it may as the maker of the container's user namespace; the container may do nothing to
//! it. Nothing outlives it: init dies with it (PR_SET_PDEATHSIG), and with init its PID namespace;
//! the helper's lifeline is a pipe held here.
//!
//! Signals: SIGTERM, SIGINT and SIGHUP, and in the foreground the end of main, end the container as
//! `coracle stop` does: its stop signal, a grace time, SIGKILL. So does a shutdown, which signals
//! every process at once. SIGQUIT ends it at once.

mod door;
mod health;
mod restart;
mod role;
mod start;

pub use door::DOOR;
pub use role::main;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use portfwd::publish::Listener;
use rustix::event::PollFlags;
use tracing::{debug, error_span, info, warn};

use crate::events::Event;
use crate::failure::Failure;
use crate::isolation::idmap::IdMaps;
use crate::isolation::namespaces;
use crate::isolation::{cgroup, freezer};
use crate::logging::ProcessLog;
use crate::logs::{LogWriter, Stream};
use crate::network::bridge::membership::Membership;
use crate::network::helper::Supervisor;
use crate::poll;
use crate::process::channel::{Channel, ChannelError};
use crate::process::messages::{FromForeground, FromMonitor, ToMonitor, Unstarted};
use crate::spec::ContainerSpec;
use crate::state::{
    Container, ContainerDir, LOST_EXIT_CODE, ProcessRef, RestartPolicy, StateError, Status, Store,
};
use crate::stdio::copier::Copier;
use crate::stdio::{self, ProgramEnds};
use crate::sys::{self, Child};
use crate::volumes::Volumes;
use door::{Door, Host};
use health::Checks;

/// Whoever has started the container. In the foreground it serves the caller's streams.
type Main = Channel<FromMonitor, ToMonitor>;

/// What the monitor knows of its container.
struct Monitor<'a> {
    store: Store,
    container: Container,
    dir: ContainerDir,
    spec: ContainerSpec,
    maps: IdMaps,
    listeners: Vec<Listener>,
    /// What main takes for the container's streams: its input comes from there, and its output goes
    /// there besides the log. With a terminal input and errors stay silent. `None` when the
    /// container runs on without main.
    attached: Option<ProgramEnds>,
    /// Whether the input comes from there, too. Else it is as if main were not attached.
    input_is_mains: bool,
    unstarted: Unstarted,
    /// Who asked for the container to be started.
    starter: Option<ProcessRef>,
    /// What this process, init and the network helper log.
    log: ProcessLog,
    /// `None` once it has been told of the container's first end.
    main: Option<&'a Main>,
    /// Whether somebody has asked this process to leave: no other life follows.
    is_ending: bool,
}

/// A life of the container that has come to its end.
struct Life {
    code: i32,
    lasted: Duration,
    /// Whether another one follows.
    goes_on: Result<bool, Failure>,
}

/// How long output is waited for when everyone who could write it is dead. Only a descriptor that
/// was passed out of the container can make it matter.
const DRAIN_MAX: Duration = Duration::from_millis(500);

/// The exit code of a container that has run for as long as it may, as with Podman.
const OVERDUE_EXIT_CODE: i32 = 255;

impl Monitor<'_> {
    /// Runs the container to its end, as often as it is started again.
    fn run(mut self, signals: &SignalFd) {
        // Where it cannot be opened the container is not started, which tells why.
        let log = self.log.open().map(|file| self.log.dispatch(file));
        let _log = log.ok().map(|log| tracing::dispatcher::set_default(&log));
        let _span = error_span!("monitor", container = self.container.id.short()).entered();
        let claim = self.store.claim(&self.container).map_err(Failure::from);
        let started = claim.and_then(|claim| Ok((self.live(signals, &claim)?, claim)));
        match started {
            Ok((life, claim)) => {
                let message = match &life.goes_on {
                    Ok(true) => FromMonitor::Restarting(life.code),
                    Ok(false) => FromMonitor::Exited(life.code),
                    Err(failure) => FromMonitor::Failed(failure.clone()),
                };
                // Detached, nobody listens any more.
                let _ = self.tell(&message, &[]);
                self.main = None;
                self.go_on(life, signals, &claim);
            }
            Err(failure) => {
                info!(%failure, "the container was not started");
                self.undo();
                let _ = self.tell(&FromMonitor::Failed(failure), &[]);
            }
        }
    }

    /// One life of the container, from its start to its end. Fails when it could not be started.
    fn live(&mut self, signals: &SignalFd, claim: &File) -> Result<Life, Failure> {
        let mut running = start::start(self, signals, claim)?;
        let began = Instant::now();
        let code = running.supervise(self);
        self.note(&Event::death(&self.container, code));
        let lost = running.log.take().map_or(0, LogWriter::finish);
        if lost > 0 {
            warn!(
                bytes = lost,
                "output is missing at the end of the container's log"
            );
        }
        self.is_ending |= running.is_ending;
        let goes_on = settle(self, &running.user_namespace, code);
        self.listeners = match goes_on {
            Ok(true) => running.listeners,
            // Free before main reports the end.
            _ => Vec::new(),
        };
        if let Some(door) = running.door.take() {
            door.close(code);
        }
        Ok(Life {
            code,
            lasted: began.elapsed(),
            goes_on,
        })
    }

    fn note(&self, event: &Event) {
        self.store.journal().write(event);
    }

    /// Tells main, if there is one to be told.
    fn tell(&self, message: &FromMonitor, descriptors: &[BorrowedFd]) -> Result<(), ChannelError> {
        match self.main {
            Some(main) => main.send(message, descriptors),
            None => Ok(()),
        }
    }

    /// Records the end of a life, and says whether another one follows.
    fn record_end(&self, code: i32) -> Result<bool, Failure> {
        let may_restart = !self.is_ending;
        let ended = match self.store.end(&self.container.id, code, may_restart) {
            // What this process knows of the container is as good.
            Err(StateError::Damaged { .. }) => {
                let mut container = self.container.clone();
                container.end(code, may_restart)?;
                self.store.restore(&container)?;
                container
            }
            other => other?,
        };
        Ok(matches!(ended.status, Status::Restarting { .. }))
    }

    /// Takes back what came of a failed start. Where that fails too, the next one who looks finds
    /// the container lost.
    fn undo(&self) {
        cgroup::remove(&self.container.cgroups);
        let (id, me) = (&self.container.id, ProcessRef::current().ok());
        let starters: Vec<_> = self.starter.clone().into_iter().chain(me).collect();
        let _ = match self.unstarted {
            // The next attempt may use its name.
            Unstarted::Forget => {
                if let Ok(record) = self.store.read(id)
                    && record
                        .monitor
                        .is_some_and(|other| !starters.contains(&other))
                {
                    // Somebody took it for lost, and started it again.
                    return;
                }
                let removed = self.store.remove(&self.container);
                let _ = remove_volumes(self);
                removed
            }
            Unstarted::Keep(before) => self.store.call_off(id, before, &starters),
        };
    }
}

/// A container whose command has been executed.
struct Running<'a> {
    init: Child,
    network: Option<Supervisor>,
    /// Of a container in networks.
    membership: Option<Membership>,
    /// Of a container whose health is looked after.
    checks: Option<Checks>,
    /// Where what it writes is kept, if it is.
    log: Option<LogWriter>,
    stdout: Copier,
    stderr: Copier,
    signals: &'a SignalFd,
    init_code: Option<i32>,
    /// When a container that was asked to end is killed.
    kill_at: Option<Instant>,
    /// When one that may not run for ever is killed.
    end_at: Option<Instant>,
    is_overdue: bool,
    /// Whether somebody has asked the monitor to end it.
    is_ending: bool,
    /// Those that stay bound for its next life.
    listeners: Vec<Listener>,
    stop_signal: i32,
    /// For the removal of files that belong to the container's own users.
    user_namespace: OwnedFd,
    /// Whether the container ends with main.
    attached: bool,
    /// Where others attach; `None` where there can be no such place.
    door: Option<Door>,
    /// Keeps a silent standard input open, for whoever attaches.
    stdin: Option<OwnedFd>,
    /// The master of the container's terminal, for them.
    terminal: Option<OwnedFd>,
}

impl Running<'_> {
    /// Serves the container until init has ended and its output is dealt with. Returns the exit
    /// code.
    fn supervise(&mut self, monitor: &Monitor) -> i32 {
        let mut code = None;
        let mut drained_by = None;
        loop {
            let now = Instant::now();
            if code.is_some() {
                // Nobody is left to use the network. The ports are free before main reports the
                // end.
                self.leave_network(monitor);
                self.checks = None;
                let drained_by = *drained_by.get_or_insert(now + DRAIN_MAX);
                if (self.stdout.is_closed() && self.stderr.is_closed()) || now >= drained_by {
                    break;
                }
            }
            let wake_at = [
                drained_by,
                self.kill_at,
                self.end_at,
                self.checks.as_ref().and_then(Checks::deadline),
                self.network.as_ref().and_then(Supervisor::deadline),
                self.membership.as_ref().and_then(Membership::deadline),
            ]
            .into_iter()
            .flatten()
            .min();
            let timeout = wake_at.map(|at| at.saturating_duration_since(now));
            let ready = self.wait(monitor, code.is_some(), timeout);

            if ready.signal {
                self.take_signals(monitor);
            }
            if ready.init && code.is_none() {
                code = Some(self.take_init_code());
                info!(code, "the container's init has ended");
            }
            if ready.main {
                self.listen_to_main(monitor);
            }
            if ready.door
                && let Some(door) = &mut self.door
            {
                door.serve(&mut Host {
                    init: self.init.pidfd.as_fd(),
                    terminal: self.terminal.as_ref().map(AsFd::as_fd),
                    stdin: &mut self.stdin,
                });
            }
            if self.kill_at.is_some_and(|at| at <= Instant::now()) {
                self.kill_at = None;
                self.kill(monitor);
            }
            if self.end_at.is_some_and(|at| at <= Instant::now()) && code.is_none() {
                self.end_at = None;
                self.is_overdue = true;
                self.kill(monitor);
            }
            if ready.stdout {
                self.stdout
                    .advance(|bytes| show(&mut self.log, &mut self.door, Stream::Stdout, bytes));
            }
            if ready.stderr {
                self.stderr
                    .advance(|bytes| show(&mut self.log, &mut self.door, Stream::Stderr, bytes));
            }
            self.tell_of_lost_readers(monitor);
            if let Some(network) = &mut self.network {
                let now = Instant::now();
                if ready.helper_ready {
                    network.handle_ready();
                }
                if ready.helper {
                    network.handle_end(now);
                }
                network.handle_deadline(now);
            }
            if let Some(membership) = &mut self.membership {
                let now = Instant::now();
                if ready.membership {
                    membership.handle(now);
                }
                membership.handle_deadline(now);
            }
            if let Some(checks) = &mut self.checks {
                if ready.check {
                    checks.handle_end();
                }
                checks.handle_deadline(Instant::now());
            }
            if ready.stdout || ready.stderr {
                // Output goes on: the limit is on silence.
                drained_by = None;
            }
        }
        match self.is_overdue {
            true => OVERDUE_EXIT_CODE,
            false => code.expect("the loop ends after init only"),
        }
    }

    /// The ports are free when this returns, unless the container may need them again.
    fn leave_network(&mut self, monitor: &Monitor) {
        let keeps = monitor.container.restart != RestartPolicy::No && !self.is_ending;
        match (self.network.take(), self.membership.take(), keeps) {
            (Some(network), _, true) => self.listeners = network.pause(),
            (_, Some(membership), true) => self.listeners = membership.pause(),
            (Some(network), _, false) => network.end(),
            (_, Some(membership), false) => membership.end(),
            (None, None, _) => {}
        }
    }

    /// Main has said something, or has gone.
    fn listen_to_main(&mut self, monitor: &Monitor) {
        let Some(main) = monitor.main else { return };
        match main.receive() {
            Ok(Some((ToMonitor::Foreground(FromForeground::Detached), descriptors))) => {
                info!("the command in the foreground leaves the container to itself");
                self.attached = false;
                self.stdout.let_go();
                self.stderr.let_go();
                // Of what it had, its outputs are ours.
                self.stdin = descriptors.into_iter().find(stdio::is_input);
            }
            Ok(Some((ToMonitor::Foreground(FromForeground::InputEnded), _))) => {}
            _ => {
                debug!("the command in the foreground has ended");
                self.attached = false;
                self.stop(monitor);
            }
        }
    }

    /// When main's reader has left, the container's writer gets EPIPE, as in a pipeline. When main
    /// itself has gone, the container writes on to the log: it may have much to say while it ends.
    fn tell_of_lost_readers(&mut self, monitor: &Monitor) {
        /// Descriptors of a process that dies are closed one after the other.
        const DEATH_MAX: Duration = Duration::from_millis(100);
        let Self {
            stdout,
            stderr,
            terminal,
            ..
        } = self;
        for copier in [stdout, stderr] {
            if copier.has_lost_reader() && !copier.is_closed() && self.attached {
                let main = [monitor.main.map(|main| (main.as_fd(), PollFlags::IN))];
                match poll::wait(main, Some(DEATH_MAX)) {
                    Ok(Some(_)) => {}
                    _ => {
                        copier.close();
                        // Or it would not hang up.
                        *terminal = None;
                    }
                }
            }
        }
    }

    /// Reaps orphans, and ends the container when asked to leave.
    fn take_signals(&mut self, monitor: &Monitor) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            match Signal::try_from(signal.ssi_signo.cast_signed()) {
                Ok(Signal::SIGCHLD) => self.reap(),
                Ok(Signal::SIGQUIT) => {
                    self.is_ending = true;
                    self.kill(monitor);
                }
                _ => self.stop(monitor),
            }
        }
    }

    /// Asks the container to end, and plans its death. Asking again changes nothing.
    fn stop(&mut self, monitor: &Monitor) {
        self.is_ending = true;
        if self.kill_at.is_none() {
            info!(signal = self.stop_signal, "the container is asked to end");
            // Fails only when it has ended.
            let _ = sys::send_signal(self.init.pidfd.as_fd(), self.stop_signal);
            // One that is paused could not heed it.
            freezer::thaw(&monitor.container.cgroups);
            let grace = Duration::from_secs(monitor.container.stop_timeout.into());
            self.kill_at = Some(Instant::now() + grace);
        }
    }

    /// Ends the container at once, a frozen one as well.
    fn kill(&self, monitor: &Monitor) {
        info!("the container is killed");
        kill(self.init.pidfd.as_fd());
        freezer::thaw(&monitor.container.cgroups);
    }

    /// Reaps whatever has ended. Orphans of the container's do not come here, those of its helpers
    /// do.
    fn reap(&mut self) {
        let init = |(pid, code)| (pid == self.init.pid).then_some(code);
        let init_code = namespaces::reap().into_iter().find_map(init);
        self.init_code = self.init_code.or(init_code);
    }

    /// Init has ended: its exit code.
    fn take_init_code(&mut self) -> i32 {
        self.reap();
        // Nobody but this process can have reaped it.
        self.init_code.unwrap_or(LOST_EXIT_CODE)
    }

    fn wait(&self, monitor: &Monitor, init_has_ended: bool, timeout: Option<Duration>) -> Ready {
        let helper = self.network.as_ref().and_then(Supervisor::pidfd);
        let helper_ready = self.network.as_ref().and_then(Supervisor::ready_fd);
        let membership = self.membership.as_ref().map(Membership::fd);
        let check = self.checks.as_ref().and_then(Checks::pidfd);
        let main = monitor.main.filter(|_| self.attached);
        let main = main.map(|main| (main.as_fd(), PollFlags::IN));
        // What a container has written before its end is logged in any case.
        let waits_for_visitors = !init_has_ended && self.door.as_ref().is_some_and(Door::is_full);
        let interests = [
            Some((self.signals.as_fd(), PollFlags::IN)),
            // Not SIGCHLD: a caller may have left it ignored, and the news of one end hides
            // another's.
            (!init_has_ended).then(|| (self.init.pidfd.as_fd(), PollFlags::IN)),
            main,
            helper.map(|fd| (fd, PollFlags::IN)),
            helper_ready.map(|fd| (fd, PollFlags::IN)),
            membership.map(|fd| (fd, PollFlags::IN)),
            self.stdout.interest().filter(|_| !waits_for_visitors),
            self.stderr.interest().filter(|_| !waits_for_visitors),
            self.door.as_ref().map(|door| (door.as_fd(), PollFlags::IN)),
            check.map(|fd| (fd, PollFlags::IN)),
        ];
        let [
            signal,
            init,
            main,
            helper,
            helper_ready,
            membership,
            stdout,
            stderr,
            door,
            check,
        ] = poll::wait(interests, timeout)
            .unwrap_or_default()
            .unwrap_or_default();
        Ready {
            signal,
            init,
            main,
            helper,
            helper_ready,
            membership,
            stdout,
            stderr,
            door,
            check,
        }
    }
}

#[derive(Debug, Default)]
struct Ready {
    signal: bool,
    init: bool,
    main: bool,
    helper: bool,
    helper_ready: bool,
    membership: bool,
    stdout: bool,
    stderr: bool,
    door: bool,
    check: bool,
}

/// What the container has written goes to its log, and to whoever is attached.
fn show(log: &mut Option<LogWriter>, door: &mut Option<Door>, stream: Stream, bytes: &[u8]) {
    if let Some(log) = log {
        log.write(stream, bytes);
    }
    if let Some(door) = door {
        door.show(stream, bytes);
    }
}

/// Records the end, or removes the container. Says whether it is started again.
fn settle(monitor: &Monitor, user_namespace: &OwnedFd, code: i32) -> Result<bool, Failure> {
    cgroup::remove(&monitor.container.cgroups);
    if !monitor.container.remove {
        monitor.note(&Event::of(&monitor.container, "cleanup"));
        return monitor.record_end(code);
    }
    match monitor.store.remove(&monitor.container) {
        Err(StateError::NotOurs { .. }) => {
            namespaces::in_that_user_namespace(user_namespace, || {
                let removed = monitor.store.remove(&monitor.container);
                removed.map_err(|error| error.to_string())
            })?;
        }
        other => other?,
    }
    monitor.note(&Event::of(&monitor.container, "remove"));
    remove_volumes(monitor)?;
    Ok(false)
}

/// Those that were made for the container go with it.
fn remove_volumes(monitor: &Monitor) -> Result<(), Failure> {
    let volumes = Volumes::of(&monitor.store);
    let anonymous = volumes.anonymous_of(&monitor.spec);
    // Another container may have been told to use one by its name.
    Ok(volumes.remove_unused(&anonymous, &monitor.store)?)
}

fn kill(pidfd: BorrowedFd) {
    // Fails only when the process has ended, which is what is wanted.
    let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
}
