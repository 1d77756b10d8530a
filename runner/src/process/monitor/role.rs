//! The role `coracle-monitor NAME`: from its execution to a process that belongs to nobody and
//! knows what it answers for.
//!
//! Whoever starts a container executes it, with a channel for standard input, and may be any
//! program: one with threads, with limits and signals of its own. Nothing that such a program hands
//! down is relied on. The name is for `ps` only.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use portfwd::publish::Listener;
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};

use super::{Main, Monitor};
use crate::failure::Failure;
use crate::isolation::idmap::IdMaps;
use crate::logging::ProcessLog;
use crate::printable::complain;
use crate::process::channel::Channel;
use crate::process::inherited;
use crate::process::messages::{FromMonitor, Job, ToMonitor};
use crate::process::selfexec::{self, MONITOR_ROLE};
use crate::spec::ContainerSpec;
use crate::state::Store;
use crate::stdio::ProgramEnds;
use crate::sys::{self, NewNamespaces};

/// The process itself.
pub fn main(_args: &[OsString]) -> ExitCode {
    inherited::put_behind();
    let Some(channel) = selfexec::stdin_channel() else {
        complain(format_args!(
            "{MONITOR_ROLE} is started by coracle itself, for a container"
        ));
        return ExitCode::from(125);
    };
    let main = Channel::from_socket(channel);
    match sys::clone_process(NewNamespaces::NONE, None) {
        // The child goes on, and is an orphan as soon as this process has ended.
        Ok(Some(_)) => {}
        Ok(None) => answer_for_container(&main),
        Err(error) => fail(&main, Failure::context(NOT_ITS_OWN)(error)),
    }
    ExitCode::SUCCESS
}

/// What could not be done when a monitor cannot come to be.
const NOT_ITS_OWN: &str = "cannot make the monitor a process of its own";

fn answer_for_container(main: &Main) {
    let begin = || -> Result<Option<(Monitor, SignalFd)>, Failure> {
        let signals = become_daemon().map_err(Failure::context(NOT_ITS_OWN))?;
        let me = pidfd_open(getpid(), PidfdFlags::empty());
        let me = me.map_err(Failure::context(NOT_ITS_OWN))?;
        let pid = getpid().as_raw_pid();
        main.send(&FromMonitor::Born(pid), &[me.as_fd()])?;
        Ok(receive(main)?.map(|monitor| (monitor, signals)))
    };
    match begin() {
        Ok(Some((monitor, signals))) => monitor.run(&signals),
        // Whoever asked for it has thought better of it.
        Ok(None) => {}
        Err(failure) => fail(main, failure),
    }
}

/// Main may be gone, and then nobody asks.
fn fail(main: &Main, failure: Failure) {
    let _ = main.send(&FromMonitor::Failed(failure), &[]);
}

/// Begins a session, and takes signals by descriptor from here on.
fn become_daemon() -> io::Result<SignalFd> {
    // In the foreground main is the session's; a Ctrl-C for both would end the container behind
    // main's back.
    rustix::process::setsid()?;
    // A directory that somebody works in cannot be unmounted.
    rustix::process::chdir("/")?;
    rustix::thread::set_name(c"coracle-monitor")?;
    rustix::process::set_child_subreaper(Pid::from_raw(1))?;
    // All are blocked; those that mean something here are heeded, the others wait for ever.
    let heeded: SigSet = [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ]
    .into_iter()
    .collect();
    ProgramEnds::null()?.install()?;
    Ok(SignalFd::with_flags(
        &heeded,
        SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
    )?)
}

/// What main wants. `None` when it has gone.
fn receive(main: &Main) -> Result<Option<Monitor<'_>>, Failure> {
    let out_of_order = || Failure::runner("the monitor's first message is no job");
    let Some((ToMonitor::Start(job), streams)) = main.receive()? else {
        return Ok(None);
    };
    let attached = match job.attached {
        true => Some(ProgramEnds::from_fds(streams).ok_or_else(out_of_order)?),
        false => None,
    };
    let mut listeners = Vec::new();
    while listeners.len() < job.listeners {
        let Some((message, sockets)) = main.receive()? else {
            return Ok(None);
        };
        let ToMonitor::Listeners(rules) = message else {
            return Err(out_of_order());
        };
        for (rule, socket) in rules.iter().zip(sockets) {
            let rule = rule
                .parse()
                .map_err(Failure::context("cannot read a published port"))?;
            let listener = Listener::adopt(&rule, socket);
            listeners
                .push(listener.map_err(Failure::context("cannot take a published port over"))?);
        }
    }
    load(main, job, attached, listeners).map(Some)
}

fn load(
    main: &Main,
    job: Job,
    attached: Option<ProgramEnds>,
    listeners: Vec<Listener>,
) -> Result<Monitor<'_>, Failure> {
    let store = Store::open(job.dirs)?;
    let container = store.read(&job.id)?;
    let dir = store.dir(&container);
    let spec = ContainerSpec::load(&dir.data)?;
    let maps = match &container.id_maps {
        Some(maps) => maps.clone(),
        None => IdMaps::discover(false)?.0,
    };
    let log = ProcessLog::new(&dir.run, job.filter);
    let starter = container.monitor.clone();
    Ok(Monitor {
        store,
        container,
        dir,
        spec,
        maps,
        listeners,
        attached,
        input_is_mains: job.input,
        unstarted: job.unstarted,
        starter,
        log,
        main: Some(main),
        is_ending: false,
    })
}
