//! The process that answers for one container: it starts init and the network helper, carries output to the log and to main, and
//! when the container ends it records the exit code and cleans up.
//!
//! It is root in the container's user namespace and otherwise lives in the host's namespaces, in a session of its own. Nothing outlives
//! it: init dies with it (PR_SET_PDEATHSIG), and with init its PID namespace; the helper's lifeline is a pipe held here.
//! In the foreground it ends the container when main is gone; detached, main's leaving means nothing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use portfwd::publish::Listener;
use rustix::event::{PollFlags, Timespec};

use crate::channel::{self, Channel, Never};
use crate::copier::Copier;
use crate::failure::Failure;
use crate::init::{self, Streams};
use crate::logs::{LogWriter, Stream};
use crate::messages::{FromInit, FromMonitor, ToInit};
use crate::namespaces::{self, NamespaceError};
use crate::network::{Helper, HelperConfig, Supervisor};
use crate::ready;
use crate::state::{Container, ContainerDir, ProcessRef, Status, Store};
use crate::sys::{self, Child, NewNamespaces};

/// What main leaves to the monitor.
pub struct Job {
    pub store: Store,
    pub container: Container,
    pub dir: ContainerDir,
    pub terminal: bool,
    /// `None` for a container with no way out.
    pub network: Option<Network>,
    pub main: Channel<FromMonitor, Never>,
    /// `None` when the container runs on without main.
    pub attached: Option<Attached>,
    pub stdin: Stdin,
}

pub struct Network {
    pub listeners: Vec<Listener>,
    pub status_dir: PathBuf,
}

/// Where output goes besides the log, in the foreground. With a terminal the second pipe stays silent.
pub struct Attached {
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// The container's standard input without a terminal.
pub enum Stdin {
    /// At its end from the beginning.
    Empty,
    /// Main holds the other end.
    Pipe(OwnedFd),
    /// Open, and silent: `-i` with nobody attached.
    Silent,
}

/// How long output is waited for when everyone who could write it is dead. Only a descriptor that was passed out of the
/// container can make it matter.
const DRAIN_MAX: Duration = Duration::from_millis(500);

/// Runs the container to its end.
pub fn run(mut job: Job) {
    let result = start(&mut job).map(|running| running.supervise(&job));
    let message = match result {
        Ok(code) => match settle(&job, code) {
            Ok(()) => FromMonitor::Exited(code),
            Err(failure) => FromMonitor::Failed(failure),
        },
        Err(failure) => {
            // A container that never ran leaves no record: the next attempt may use its name.
            let _ = job.store.remove(&job.container);
            FromMonitor::Failed(failure)
        }
    };
    // Detached, nobody listens any more.
    let _ = job.main.send(&message, &[]);
}

/// A container whose command has been executed.
struct Running {
    init: Child,
    network: Option<Supervisor>,
    log: LogWriter,
    stdout: Copier,
    stderr: Copier,
    signals: SignalFd,
    /// Whether the container ends with main.
    attached: bool,
    /// Keeps a silent standard input open.
    _stdin: Option<OwnedFd>,
}

fn start(job: &mut Job) -> Result<Running, Failure> {
    let signals = become_daemon()?;
    let (ours, theirs) = standard_streams(job)?;
    let (init_channel, init) = clone_init(job, &theirs)?;
    let init = Killer(Some(init));
    drop(theirs);
    let network = job.network.take().map(|network| HelperConfig {
        listeners: network.listeners,
        status_dir: network.status_dir,
        log: job.dir.run.join("net.log"),
        init: init.child().pid,
    });
    let mut network = match network {
        Some(config) => Some((config.spawn()?, config)),
        None => None,
    };
    // While both are at work.
    job.container.monitor = Some(ProcessRef::current()?);
    job.container.init = Some(ProcessRef::of(init.child().pid.as_raw())?);
    job.store.update(&job.container)?;
    let log = LogWriter::open(job.dir.log())
        .map_err(Failure::context("cannot open the container's log"))?;

    let mut master = None;
    wait_until_prepared(
        job,
        &init_channel,
        network.as_mut().map(|(helper, _)| helper),
        &mut master,
    )
    .map_err(|waiting| match (waiting, network.take()) {
        (Waiting::HelperFailed, Some((helper, config))) => helper.failure(&config),
        (Waiting::HelperFailed, None) => unreachable!("only a helper can fail as one"),
        (Waiting::Failed(failure), _) => failure,
    })?;
    init_channel.send(&ToInit::Go, &[])?;
    match init_channel.receive()? {
        // Closed by the exec, or by a death that the exit code will tell of.
        None => {}
        Some((FromInit::Failed(failure), _)) => return Err(failure),
        Some((message, _)) => return Err(unexpected(&message)),
    }

    job.container.status = Status::Running;
    job.store.update(&job.container)?;
    let init = init.release();
    // Main may be gone already; the loop finds out.
    let _ = job.main.send(&FromMonitor::Started, &[init.pidfd.as_fd()]);
    let attached = job.attached.is_some();
    let (to_stdout, to_stderr) = job.attached.take().map(|a| (a.stdout, a.stderr)).unzip();
    let (stdout, stderr) = match (master, ours.outputs) {
        (Some(master), _) => (Copier::new(master, to_stdout), Copier::closed()),
        (None, Some((stdout, stderr))) => (
            Copier::new(stdout, to_stdout),
            Copier::new(stderr, to_stderr),
        ),
        (None, None) => return Err(Failure::runner("init opened no terminal")),
    };
    let network = network.map(|(helper, config)| Supervisor::new(config, helper));
    Ok(Running {
        init,
        network,
        log,
        stdout,
        stderr,
        signals,
        attached,
        _stdin: ours.stdin,
    })
}

/// Leaves main's session and terminal, and takes signals by descriptor from here on.
fn become_daemon() -> Result<SignalFd, Failure> {
    // In the foreground main is the session's; a Ctrl-C for both would end the container behind main's back.
    rustix::process::setsid()?;
    rustix::thread::set_name(c"coracle-monitor")?;
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))?;
    let mut mask = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        mask.add(signal);
    }
    // Everything that main blocked stays blocked but means nothing here.
    mask.thread_set_mask()?;
    let null = null_device()?;
    init::install_streams(&Streams {
        stdin: null.try_clone()?,
        stdout: null.try_clone()?,
        stderr: null,
    })?;
    Ok(SignalFd::with_flags(
        &mask,
        SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
    )?)
}

struct OurEnds {
    stdin: Option<OwnedFd>,
    outputs: Option<(OwnedFd, OwnedFd)>,
}

fn standard_streams(job: &mut Job) -> Result<(OurEnds, Streams), Failure> {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let null = null_device()?;
    if job.terminal {
        let streams = Streams {
            stdin: null.try_clone()?,
            stdout: null.try_clone()?,
            stderr: null,
        };
        return Ok((
            OurEnds {
                stdin: None,
                outputs: None,
            },
            streams,
        ));
    }
    let (our_stdin, stdin) = match std::mem::replace(&mut job.stdin, Stdin::Empty) {
        Stdin::Empty => (None, null),
        Stdin::Pipe(stdin) => (None, stdin),
        Stdin::Silent => pipe().map(|(stdin, ours)| (Some(ours), stdin))?,
    };
    let ((our_stdout, stdout), (our_stderr, stderr)) = (pipe()?, pipe()?);
    let ours = OurEnds {
        stdin: our_stdin,
        outputs: Some((our_stdout, our_stderr)),
    };
    Ok((
        ours,
        Streams {
            stdin,
            stdout,
            stderr,
        },
    ))
}

fn clone_init(job: &Job, streams: &Streams) -> Result<(Channel<ToInit, FromInit>, Child), Failure> {
    let (ours, theirs) = channel::pair::<ToInit, FromInit>()?;
    let clone = sys::clone_process(NewNamespaces::CONTAINER)
        .map_err(|source| NamespaceError::Container { source })?;
    if let Some(child) = clone {
        return Ok((ours, child));
    }
    // Init. Dropping our copy of the monitor's end is what lets init notice the monitor's death.
    drop(ours);
    let failure = init::launch(
        streams,
        &theirs.as_fd().try_clone_to_owned()?,
        &job.dir.data,
    );
    let _ = theirs.send(&FromInit::Failed(failure), &[]);
    std::process::exit(125)
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
            let _ = nix::sys::wait::waitpid(child.pid, None);
        }
    }
}

enum Waiting {
    HelperFailed,
    Failed(Failure),
}

impl<E: Into<Failure>> From<E> for Waiting {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Returns when init has nothing left to do but exec and the helper is ready, or when one of them or main is gone.
fn wait_until_prepared(
    job: &Job,
    init: &Channel<ToInit, FromInit>,
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
            Some((job.main.as_fd(), PollFlags::IN)),
            ready_fd.as_ref().map(|fd| (fd.as_fd(), PollFlags::IN)),
        ];
        let [from_init, main_left, from_helper] = ready::wait(interests, None)
            .map_err(Failure::from)?
            .unwrap_or_default();

        if main_left {
            return Err(Failure::runner("the command that started the container has gone").into());
        }
        if from_init {
            match init.receive()? {
                Some((FromInit::Terminal, mut descriptors)) => {
                    *master = descriptors.pop();
                    let master = master
                        .as_ref()
                        .ok_or_else(|| Failure::runner("init sent no terminal"))?;
                    job.main.send(&FromMonitor::Terminal, &[master.as_fd()])?;
                }
                Some((FromInit::Prepared { warnings }, _)) => {
                    prepared = true;
                    for warning in warnings {
                        job.main.send(&FromMonitor::Warning(warning), &[])?;
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

fn unexpected(message: &FromInit) -> Failure {
    Failure::runner(format!("init said {message:?} out of turn"))
}

impl Running {
    /// Serves the container until init has ended and its output is dealt with. Returns the exit code.
    fn supervise(mut self, job: &Job) -> i32 {
        let mut code = None;
        let mut drained_by = None;
        loop {
            let now = Instant::now();
            if code.is_some() {
                // Nobody is left to use the network. The ports are free before main reports the end.
                if let Some(network) = self.network.take() {
                    network.end();
                }
                let drained_by = *drained_by.get_or_insert(now + DRAIN_MAX);
                if (self.stdout.is_closed() && self.stderr.is_closed()) || now >= drained_by {
                    break;
                }
            }
            let wake_at = [
                drained_by,
                self.network.as_ref().and_then(Supervisor::deadline),
            ]
            .into_iter()
            .flatten()
            .min();
            let ready = self.wait(job, wake_at.map(|at| at.saturating_duration_since(now)));

            if ready.signal {
                code = code.or(self.take_signals());
            }
            if ready.main {
                self.attached = false;
                kill(self.init.pidfd.as_fd());
            }
            if ready.stdout {
                self.stdout
                    .advance(|bytes| self.log.write(Stream::Stdout, bytes));
            }
            if ready.stderr {
                self.stderr
                    .advance(|bytes| self.log.write(Stream::Stderr, bytes));
            }
            if let Some(network) = &mut self.network {
                let now = Instant::now();
                if ready.helper {
                    network.handle_end(now);
                }
                network.handle_deadline(now);
            }
            if ready.stdout || ready.stderr {
                // Output goes on: the limit is on silence.
                drained_by = None;
            }
        }
        code.expect("the loop ends after init only")
    }

    /// Reaps, and ends the container when asked to leave. Returns init's exit code once it has one.
    fn take_signals(&mut self) -> Option<i32> {
        let mut asked_to_leave = false;
        while let Ok(Some(signal)) = self.signals.read_signal() {
            asked_to_leave |= signal.ssi_signo != Signal::SIGCHLD as u32;
        }
        if asked_to_leave {
            kill(self.init.pidfd.as_fd());
        }
        namespaces::reap()
            .into_iter()
            .find(|(pid, _)| *pid == self.init.pid)
            .map(|(_, code)| code)
    }

    fn wait(&self, job: &Job, timeout: Option<Duration>) -> Ready {
        let helper = self.network.as_ref().and_then(Supervisor::pidfd);
        let main = self.attached.then(|| (job.main.as_fd(), PollFlags::IN));
        let interests = [
            Some((self.signals.as_fd(), PollFlags::IN)),
            main,
            helper.map(|fd| (fd, PollFlags::IN)),
            self.stdout.interest(),
            self.stderr.interest(),
        ];
        let timeout = timeout.map(|t| Timespec {
            tv_sec: t.as_secs() as i64,
            tv_nsec: i64::from(t.subsec_nanos()),
        });
        let [signal, main, helper, stdout, stderr] = ready::wait(interests, timeout.as_ref())
            .unwrap_or_default()
            .unwrap_or_default();
        Ready {
            signal,
            main,
            helper,
            stdout,
            stderr,
        }
    }
}

#[derive(Debug, Default)]
struct Ready {
    signal: bool,
    main: bool,
    helper: bool,
    stdout: bool,
    stderr: bool,
}

/// Records the end, or removes the container.
fn settle(job: &Job, code: i32) -> Result<(), Failure> {
    if job.container.remove {
        job.store.remove(&job.container)?;
    } else {
        job.store.modify(&job.container.id, |container| {
            container.status = Status::exited_now(code)
        })?;
    }
    Ok(())
}

fn kill(pidfd: BorrowedFd) {
    // Fails only when the process has ended, which is what is wanted.
    let _ = rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL);
}

fn null_device() -> rustix::io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}
