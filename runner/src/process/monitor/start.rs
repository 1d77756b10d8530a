//! From what main leaves to a container whose command runs.
//!
//! The order: streams, control groups, init in its namespaces, its task, the network helper beside
//! it, and, once both are ready, the word that lets the command start. What fails undoes what came
//! before.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use rustix::event::PollFlags;
use tracing::{debug, info, warn};

use super::door::Door;
use super::health::{self, Checks};
use super::{Monitor, Running, kill};
use crate::events::Event;
use crate::failure::Failure;
use crate::isolation::cgroup::{self, Entrance, Reach};
use crate::isolation::namespaces::{self, Fork};
use crate::isolation::resources;
use crate::network::bridge::Place;
use crate::network::bridge::membership::{Host, Membership};
use crate::network::helper::{Helper, HelperConfig, Supervisor};
use crate::poll;
use crate::process::channel::{self, Channel, DESCRIPTORS_MAX};
use crate::process::init;
use crate::process::messages::{FromInit, FromMonitor, ToInit};
use crate::process::task;
use crate::rootfs::Sources;
use crate::secrets;
use crate::spec::Network;
use crate::state::{ProcessRef, Status, claim, lock_directory, now};
use crate::stdio::copier::Copier;
use crate::stdio::{self, CallerEnds, Input, Outputs, ProgramEnds};
use crate::sys::Child;

/// `claim` tells whoever finds the record damaged that the container runs, and who answers for it.
pub(super) fn start<'a>(
    monitor: &mut Monitor,
    signals: &'a SignalFd,
    claim: &File,
) -> Result<Running<'a>, Failure> {
    // Whoever copies files has its tree put together, and whoever comes from now on sees it run.
    let _tree = lock_directory(&monitor.dir.data)
        .map_err(Failure::context("cannot lock the container's directory"))?;
    let (stdin, relay) = match monitor.attached.take() {
        Some(ends) => {
            let stdin = monitor.input_is_mains.then_some(ends.stdin);
            (stdin, Some((ends.stdout, ends.stderr)))
        }
        None => (None, None),
    };
    let (ours, theirs) = standard_streams(monitor, stdin).map_err(Failure::context(
        "cannot make the container's standard streams",
    ))?;
    let (init_channel, init) = clone_init(monitor, &theirs)?;
    let init = Killer(Some(init));
    drop(theirs);
    debug!(
        pid = init.child().pid.as_raw_pid(),
        maps = ?monitor.maps,
        cgroups = ?monitor.container.cgroups,
        "init is in its namespaces"
    );
    let user_namespace = give_task(monitor, &init_channel, init.child())?;
    let mut network = start_helper(monitor, init.child())?;
    let membership = join_networks(monitor, init.child(), &user_namespace)?;
    // While both are at work.
    let first = ProcessRef::of(init.child().pid.as_raw_pid())?;
    claim::tell(claim, &first).map_err(Failure::context("cannot record the container"))?;
    let known = &monitor.container;
    let starter = known.monitor.as_ref();
    monitor.container = monitor.store.take_over(&known.id, starter, |record| {
        record.init = Some(first);
        record.cgroups.clone_from(&known.cgroups);
        record.id_maps.clone_from(&known.id_maps);
    })?;
    let log = monitor.container.log.open(&monitor.dir.log());
    let log = log.map_err(Failure::context("cannot open the container's log"))?;

    let mut master = None;
    let prepared = wait_until_prepared(
        monitor,
        &init_channel,
        signals,
        network.as_mut().map(|(helper, _)| helper),
        &mut master,
    );
    prepared.map_err(|waiting| match (waiting, network.take()) {
        (Waiting::HelperFailed, Some((helper, config))) => helper.failure(&config),
        (Waiting::HelperFailed, None) => unreachable!("only a helper can fail as one"),
        (Waiting::AskedToEnd, _) => {
            monitor.is_ending = true;
            Failure::runner("asked to end while the container started")
        }
        (Waiting::Failed(failure), _) => failure,
    })?;
    let terminal = master.as_ref().map(OwnedFd::try_clone).transpose();
    let terminal = terminal.map_err(Failure::context("cannot duplicate the terminal"))?;
    let outputs = match (master, ours.outputs) {
        (Some(master), _) => (master, None),
        (None, Some(Outputs { stdout, stderr })) => (stdout, Some(stderr)),
        (None, None) => return Err(Failure::runner("init opened no terminal")),
    };
    let network = match network {
        Some((helper, config)) => Some(Supervisor::new(config, helper)?),
        None => None,
    };
    debug!("init is prepared and the network is ready");
    // Before anybody hears that the container runs, and may come.
    let door = Door::open(&monitor.dir.run)
        .inspect_err(|error| warn!(%error, "nobody can attach to the container"))
        .ok();
    let_go(&init_channel)?;
    info!(pid = init.child().pid.as_raw_pid(), "the container runs");

    let health = health::begin(monitor);
    let id = &monitor.container.id;
    monitor.container = monitor.store.enter(id, Status::Running, |record| {
        record.started = Some(now());
        record.health = health;
        if let Some(membership) = &membership {
            record.networks = membership.attachments();
        }
    })?;
    let attached = relay.is_some();
    let happened: &[_] = match attached {
        true => &["init", "start", "attach"],
        false => &["init", "start"],
    };
    let events: Vec<_> = happened
        .iter()
        .map(|status| Event::of(&monitor.container, status))
        .collect();
    monitor.store.journal().write_all(&events);
    let init = init.release();
    // Main may be gone already; the loop finds out.
    let _ = monitor.tell(&FromMonitor::Started, &[init.pidfd.as_fd()]);
    let (stdout, stderr) = copiers(outputs, relay)?;
    Ok(Running {
        init,
        network,
        membership,
        checks: Checks::of(monitor),
        log,
        stdout,
        stderr,
        signals,
        init_code: None,
        kill_at: None,
        end_at: monitor.container.time_limit.map(end_after),
        is_overdue: false,
        is_ending: false,
        listeners: Vec::new(),
        stop_signal: monitor.container.stop_signal,
        user_namespace,
        attached,
        door,
        stdin: ours.stdin,
        terminal,
    })
}

fn end_after(seconds: u32) -> Instant {
    Instant::now() + Duration::from_secs(seconds.into())
}

/// The network helper, unless the container is to have no network.
fn start_helper(
    monitor: &mut Monitor,
    init: &Child,
) -> Result<Option<(Helper, HelperConfig)>, Failure> {
    let Network::Coracle(options) = &monitor.spec.network else {
        return Ok(None);
    };
    let config = HelperConfig {
        listeners: std::mem::take(&mut monitor.listeners),
        options: options.clone(),
        more: Vec::new(),
        status_dir: monitor.dir.net(),
        log: monitor.log.clone(),
        init: init.pid,
        owner: monitor.maps.root_is_another().then(|| monitor.maps.root()),
    };
    Ok(Some((config.spawn()?, config)))
}

/// Puts the container into its networks, if it is to be in some.
fn join_networks(
    monitor: &mut Monitor,
    init: &Child,
    user_namespace: &OwnedFd,
) -> Result<Option<Membership>, Failure> {
    if monitor.spec.network != Network::Bridge {
        return Ok(None);
    }
    let path = format!("/proc/{}/ns/net", init.pid);
    let failed = || Failure::context(format!("cannot open {path}"));
    let network: OwnedFd = File::open(&path).map_err(failed())?.into();
    let place = Place {
        user: user_namespace.try_clone().map_err(failed())?,
        network,
    };
    let container = &monitor.container;
    let host = Host {
        store: monitor.store.clone(),
        container: container.id.clone(),
        name: container.name.clone(),
        hostname: container.hostname.clone(),
        names: monitor.spec.names.clone(),
        run: monitor.dir.run.clone(),
        filter: monitor.log.filter.clone(),
    };
    let listeners = std::mem::take(&mut monitor.listeners);
    Membership::join(host, place, listeners, &container.networks).map(Some)
}

/// What takes the container's outputs (its terminal's is one) to the log, and to main through
/// `relay` if that is attached.
fn copiers(
    (stdout, stderr): (OwnedFd, Option<OwnedFd>),
    relay: Option<(OwnedFd, OwnedFd)>,
) -> Result<(Copier, Copier), Failure> {
    let (to_stdout, to_stderr) = relay.unzip();
    // A main that does not read, stopped as a job or waiting for a reader of its own, must not hold
    // the monitor up.
    for pipe in to_stdout.iter().chain(&to_stderr) {
        rustix::io::ioctl_fionbio(pipe, true)
            .map_err(Failure::context("cannot set up the output to the caller"))?;
    }
    let stdout = Copier::new(stdout, to_stdout).outliving_reader();
    let stderr = stderr.map_or_else(Copier::closed, |stderr| {
        Copier::new(stderr, to_stderr).outliving_reader()
    });
    Ok((stdout, stderr))
}

/// Lets init execute the container's command.
fn let_go(init: &Channel<ToInit, FromInit>) -> Result<(), Failure> {
    init.send(&ToInit::Go, &[])?;
    match init.receive()? {
        // Closed by the exec, or by a death that the exit code will tell of.
        None => Ok(()),
        Some((FromInit::Failed(failure), _)) => Err(failure),
        Some((message, _)) => {
            let what = format!("init said {message:?} where only the command's start was due");
            Err(Failure::runner(what))
        }
    }
}

/// Our ends of the container's streams, and its own. With a terminal they are one, which init
/// opens.
fn standard_streams(
    monitor: &Monitor,
    stdin: Option<OwnedFd>,
) -> io::Result<(CallerEnds, ProgramEnds)> {
    if monitor.spec.process.terminal {
        return Ok((CallerEnds::of_terminal(), ProgramEnds::null()?));
    }
    let input = match monitor.spec.open_stdin && stdin.is_none() {
        true => Input::Pipe,
        false => Input::Empty,
    };
    let (ours, mut theirs) = stdio::pipes(input)?;
    if let Some(stdin) = stdin {
        theirs.stdin = stdin;
    }
    if monitor.maps.root_is_another() {
        theirs.give_pipes_to(monitor.maps.root())?;
    }
    Ok((ours, theirs))
}

/// Makes init in the container's namespaces and control groups. The child goes on as init.
fn clone_init(
    monitor: &mut Monitor,
    streams: &ProgramEnds,
) -> Result<(Channel<ToInit, FromInit>, Child), Failure> {
    let reach = match monitor.maps.root_is_another() {
        true => Reach::Own,
        false => Reach::Callers,
    };
    let group = cgroup::name(monitor.container.id.short());
    let resources = &monitor.spec.resources;
    if monitor.spec.own_cgroups {
        monitor.container.cgroups = cgroup::create(&group, reach, &resources.controllers())?;
    } else if reach == Reach::Callers && cgroup::may_be_harmed() {
        return Err(Failure::runner(
            "--cgroups=disabled would leave the container in the caller's control group, whose processes it could freeze or kill",
        ));
    }
    let unmet = resources.apply(&monitor.container.cgroups);
    let unmet = unmet.inspect_err(|_| cgroup::remove(&monitor.container.cgroups))?;
    if !unmet.is_empty() {
        let warning = FromMonitor::Warning(resources::warning(&unmet));
        monitor.tell(&warning, &[])?;
    }
    let mut groups = Entrance::open(&monitor.container.cgroups)?;
    let (ours, theirs) = channel::pair::<ToInit, FromInit>()?;
    let namespaces = monitor.spec.namespaces;
    let clone =
        namespaces::fork_with_fallback(&mut monitor.maps, namespaces.at_birth(), groups.unified())?;
    match clone {
        (Fork::Parent(held), fallback) => {
            if let Some(reason) = fallback {
                monitor.container.id_maps = Some(monitor.maps.clone());
                let warning = FromMonitor::Warning(reason.warning());
                monitor.tell(&warning, &[])?;
            }
            groups.admit(held.child().pid).map_err(Failure::context(
                "cannot move the container to its control group",
            ))?;
            Ok((ours, held.release()?))
        }
        (Fork::Child, _) => {
            // Dropping our copy of the monitor's end is what lets init notice the monitor's death.
            drop(ours);
            let Ok(socket) = theirs.as_fd().try_clone_to_owned() else {
                std::process::exit(125)
            };
            let failure = init::launch(namespaces, streams, &socket);
            let _ = theirs.send(&FromInit::Failed(failure), &[]);
            std::process::exit(125)
        }
    }
}

/// Tells init what to make, and opens what it may not reach itself. Returns its user namespace.
fn give_task(
    monitor: &Monitor,
    init: &Channel<ToInit, FromInit>,
    child: &Child,
) -> Result<OwnedFd, Failure> {
    let path = format!("/proc/{}/ns/user", child.pid);
    let user_namespace: OwnedFd = File::open(&path)
        .map_err(Failure::context(format!("cannot open {path}")))?
        .into();
    let mut mounts = Vec::new();
    if monitor.maps.root_is_another() {
        let (sources, warning) = Sources::open_for(&monitor.spec.tree, user_namespace.as_fd())?;
        if let Some(warning) = warning {
            monitor.tell(&FromMonitor::Warning(warning), &[])?;
        }
        mounts = sources.into_descriptors();
    }
    let task = task::write("coracle-init", &monitor.spec)?;
    let start = ToInit::Start {
        mounts: mounts.len(),
        log: monitor.log.clone(),
    };
    let secrets = secrets::kept(&monitor.dir.data, monitor.spec.secrets.len())?;
    let secrets = task::write("coracle-secrets", &secrets)?;
    let log = monitor.log.open()?;
    init.send(&start, &[task.as_fd(), secrets.as_fd(), log.as_fd()])?;
    for some in mounts.chunks(DESCRIPTORS_MAX) {
        let some: Vec<_> = some.iter().map(OwnedFd::as_fd).collect();
        init.send(&ToInit::Mounts, &some)?;
    }
    Ok(user_namespace)
}

/// Kills init unless it is released: nothing of a container that failed to start may stay.
struct Killer(Option<Child>);

impl Killer {
    fn child(&self) -> &Child {
        self.0
            .as_ref()
            .expect("taken by release only, which consumes the guard")
    }

    fn release(mut self) -> Child {
        self.0.take().expect("taken here only")
    }
}

impl Drop for Killer {
    fn drop(&mut self) {
        if let Some(child) = &self.0 {
            kill(child.pidfd.as_fd());
            let _ = namespaces::wait_for(child.pid);
        }
    }
}

enum Waiting {
    HelperFailed,
    AskedToEnd,
    Failed(Failure),
}

impl<E: Into<Failure>> From<E> for Waiting {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Returns when init has nothing left to do but exec and the helper is ready, or when one of them
/// or main is gone.
fn wait_until_prepared(
    monitor: &Monitor,
    init: &Channel<ToInit, FromInit>,
    signals: &SignalFd,
    mut helper: Option<&mut Helper>,
    master: &mut Option<OwnedFd>,
) -> Result<(), Waiting> {
    let mut prepared = false;
    loop {
        let ready_fd = helper.as_ref().and_then(|helper| helper.ready_fd());
        if prepared && ready_fd.is_none() {
            return Ok(());
        }
        let interests = [
            Some((init.as_fd(), PollFlags::IN)),
            monitor.main.map(|main| (main.as_fd(), PollFlags::IN)),
            ready_fd.as_ref().map(|fd| (fd.as_fd(), PollFlags::IN)),
            Some((signals.as_fd(), PollFlags::IN)),
        ];
        let [from_init, main_left, from_helper, signal] = poll::wait(interests, None)
            .map_err(Failure::context("cannot wait for the container's init"))?
            .unwrap_or_default();

        if main_left {
            return Err(Failure::runner("the command that started the container has gone").into());
        }
        if signal && is_asked_to_leave(signals) {
            return Err(Waiting::AskedToEnd);
        }
        if from_init {
            match init.receive()? {
                Some((FromInit::Terminal, mut descriptors)) => {
                    *master = descriptors.pop();
                    let master = master
                        .as_ref()
                        .ok_or_else(|| Failure::runner("init sent no terminal"))?;
                    monitor.tell(&FromMonitor::Terminal, &[master.as_fd()])?;
                }
                Some((FromInit::Prepared { warnings }, _)) => {
                    prepared = true;
                    for warning in warnings {
                        monitor.tell(&FromMonitor::Warning(warning), &[])?;
                    }
                }
                Some((FromInit::Failed(failure), _)) => return Err(failure.into()),
                None => {
                    return Err(Failure::runner(
                        "the container's init was killed while it started",
                    )
                    .into());
                }
            }
        }
        if from_helper
            && helper
                .as_mut()
                .is_some_and(|helper| !helper.take_readiness())
        {
            return Err(Waiting::HelperFailed);
        }
    }
}

/// Whether one of the signals that have come means the end. Children that have ended are found out
/// otherwise.
pub(super) fn is_asked_to_leave(signals: &SignalFd) -> bool {
    let mut asked = false;
    while let Ok(Some(signal)) = signals.read_signal() {
        asked |= signal.ssi_signo.cast_signed() != Signal::SIGCHLD as i32;
    }
    asked
}
