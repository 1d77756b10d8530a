//! `coracle run`: from flags to a running container, and in the foreground on to its exit code.
//!
//! The engine makes the container; the monitor, which is started here, brings it to life.

use std::io::{self, IsTerminal};

use netstack::logging::Filter;
use tracing::{debug, error_span};

use super::{open_engine, print_line, repair};
use crate::cli::{AttachStream, RunArgs, SeccompChoice, SecurityOpt, UserNamespace};
use crate::engine::{ContainerRequest, Created, Engine, Source};
use crate::failure::Failure;
use crate::images::builtin;
use crate::isolation::namespaces;
use crate::isolation::seccomp::Seccomp;
use crate::isolation::security::Capabilities;
use crate::logging::ProcessLog;
use crate::process::channel::{self, Channel, Never};
use crate::process::foreground::{Foreground, Outcome, Signals, UNREAD_EXIT_CODE, warn};
use crate::process::inherited::{Inherited, SoftLimits};
use crate::process::messages::FromMonitor;
use crate::process::monitor::{self, Job};
use crate::spec::Variable;
use crate::state::{Container, Store};
use crate::stdio::{self, CallerEnds, Input, ProgramEnds};
use crate::sys::{self, Child, NewNamespaces};

pub fn run(args: RunArgs, inherited: &Inherited, filter: Filter) -> Result<u8, Failure> {
    // In the foreground a signal that comes while the container starts is kept for it.
    let signals = if args.detach {
        None
    } else {
        Some(Signals::block()?)
    };
    let engine = open_engine()?;
    let request = request(&args, inherited.limits)?;
    let created = engine.create(request, &mut warn)?;
    let url = args
        .rootfs
        .is_none()
        .then(|| created.ports.url(builtin::PORT))
        .flatten();
    let container = created.container.clone();
    let log = ProcessLog::new(&created.dir.run, filter);
    let _span = error_span!("run", container = container.id.short()).entered();
    debug!(name = container.name, log = %log.path().display(), "the container is recorded");
    let started = start(&args, engine.store(), created, log);
    let started = started.inspect_err(|_| drop(engine.store().remove(&container)))?;
    match signals {
        Some(signals) => follow(&args, started, signals, &engine, url),
        None => detach(started, &container),
    }
}

/// What the flags ask for.
fn request(args: &RunArgs, limits: SoftLimits) -> Result<ContainerRequest, Failure> {
    let words = args.words.clone();
    let source = match &args.rootfs {
        Some(rootfs) => Source::Directory {
            dir: rootfs.dir.clone(),
            in_place: rootfs.in_place,
            command: words,
        },
        None => {
            let mut words = words.into_iter();
            let name = words.next().unwrap_or_else(|| builtin::DEFAULT.into());
            Source::Image {
                name,
                args: words.collect(),
            }
        }
    };
    let proxies = args.http_proxy.then(proxies).into_iter().flatten();
    Ok(ContainerRequest {
        source,
        name: args.name.clone(),
        hostname: args.hostname.clone(),
        network: args.network,
        publish: args.publish.clone(),
        volumes: args.volumes.clone(),
        host_root: args.userns == UserNamespace::Host,
        remove: removes_itself(args),
        env: proxies.chain(args.process.variables()).collect(),
        workdir: args.process.workdir.clone(),
        user: args.process.user.clone(),
        terminal: args.process.tty,
        init: args.init,
        capabilities: Capabilities::DEFAULT.adjusted(&args.cap_add, &args.cap_drop),
        no_new_privs: no_new_privs(&args.security_opt),
        seccomp: seccomp(&args.security_opt)?,
        limits,
    })
}

/// The built-in image in the foreground is a first look, which is to leave nothing behind.
fn removes_itself(args: &RunArgs) -> bool {
    args.rm || (args.rootfs.is_none() && !args.detach)
}

/// What is said last counts, here and below.
fn no_new_privs(options: &[SecurityOpt]) -> bool {
    let said = options.iter().rev().find_map(|option| match option {
        SecurityOpt::NoNewPrivileges(on) => Some(*on),
        _ => None,
    });
    said.unwrap_or(false)
}

fn seccomp(options: &[SecurityOpt]) -> Result<Seccomp, Failure> {
    let said = options.iter().rev().find_map(|option| match option {
        SecurityOpt::Seccomp(choice) => Some(choice),
        _ => None,
    });
    Ok(match said {
        None | Some(SeccompChoice::Default) => Seccomp::Default,
        Some(SeccompChoice::Unconfined) => Seccomp::Unconfined,
        Some(SeccompChoice::File(path)) => Seccomp::from_file(path)?,
    })
}

/// The caller's proxies, which programs in the container need as much.
fn proxies() -> impl Iterator<Item = Variable> {
    const NAMES: [&str; 8] = [
        "http_proxy",
        "https_proxy",
        "ftp_proxy",
        "no_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "FTP_PROXY",
        "NO_PROXY",
    ];
    NAMES
        .into_iter()
        .filter_map(|name| Some((name.into(), std::env::var_os(name)?)))
}

/// The caller's side of a monitor that has been started.
struct Started {
    monitor: Child,
    events: Channel<Never, FromMonitor>,
    ends: Option<CallerEnds>,
}

fn start(
    args: &RunArgs,
    store: &Store,
    created: Created,
    log: ProcessLog,
) -> Result<Started, Failure> {
    let (events, to_main) = channel::pair::<Never, FromMonitor>()?;
    let (mut ends, mut attached) = (None, None);
    if !args.detach {
        let (ours, theirs) = attach(args).map_err(Failure::context(
            "cannot make the container's standard streams",
        ))?;
        (ends, attached) = (Some(ours), Some(theirs));
    }

    let clone = sys::clone_process(NewNamespaces::NONE, None);
    match clone.map_err(Failure::context("cannot start the container's monitor"))? {
        Some(monitor) => {
            debug!(pid = monitor.pid.as_raw(), "the monitor was started");
            Ok(Started {
                monitor,
                events,
                ends,
            })
        }
        None => {
            // Our copies of the caller's ends: with them open, nobody would ever see the other side
            // hang up.
            drop((events, ends));
            let listeners = created.ports.listeners;
            let network = created.status_dir.map(|status_dir| monitor::Network {
                listeners,
                status_dir,
            });
            let job = Job {
                store: store.clone(),
                container: created.container,
                dir: created.dir,
                spec: created.spec,
                maps: created.maps,
                network,
                main: to_main,
                attached,
                open_stdin: args.reads_stdin(),
                log,
            };
            monitor::run(job);
            std::process::exit(0)
        }
    }
}

/// The foreground's ends of the container's streams, and the monitor's. An output that the caller
/// does not want goes to the log alone, and the caller's end is closed from the beginning.
fn attach(args: &RunArgs) -> io::Result<(CallerEnds, ProgramEnds)> {
    let input = match args.reads_stdin() && !args.process.tty {
        true => Input::Pipe,
        false => Input::Empty,
    };
    let (ours, mut theirs) = stdio::pipes(input)?;
    if !args.attaches(AttachStream::Stdout) {
        theirs.stdout = stdio::null()?;
    }
    if !args.attaches(AttachStream::Stderr) {
        theirs.stderr = stdio::null()?;
    }
    Ok((ours, theirs))
}

/// Waits until the container runs, and prints its id.
fn detach(started: Started, container: &Container) -> Result<u8, Failure> {
    loop {
        match started.events.receive()? {
            Some((FromMonitor::Warning(text), _)) => warn(&text),
            Some((FromMonitor::Terminal, _)) => {}
            // A container that ran for a moment only has run.
            Some((FromMonitor::Started | FromMonitor::Exited(_), _)) => {
                print_line(container.id.as_str())?;
                return Ok(0);
            }
            Some((FromMonitor::Failed(failure), _)) => return Err(failure),
            None => {
                return Err(Failure::runner(
                    "the container's monitor was killed while it started",
                ));
            }
        }
    }
}

fn follow(
    args: &RunArgs,
    started: Started,
    signals: Signals,
    engine: &Engine,
    url: Option<String>,
) -> Result<u8, Failure> {
    let ends = started
        .ends
        .ok_or_else(|| Failure::runner("no pipes were made for the foreground"))?;
    if args.process.tty && args.reads_stdin() && !io::stdin().is_terminal() {
        warn("the standard input is not a terminal; the container gets one all the same");
    }
    let mut foreground = Foreground::new(signals, started.events, ends, args.reads_stdin())?;
    if let Some(url) = url {
        foreground = foreground.greeting(format!("open {url}"));
    }
    let outcome = foreground.serve();
    if !matches!(outcome, Ok(Outcome::Unread)) {
        // Else it stops the container, which may take its time.
        namespaces::wait_for(started.monitor.pid)?;
    }
    match outcome? {
        Outcome::Exited(code) => {
            debug!(code, "the container has ended");
            Ok(code as u8)
        }
        Outcome::Unread => Ok(UNREAD_EXIT_CODE),
        Outcome::Lost => {
            repair(engine)?;
            Err(Failure::runner(
                "the container's monitor was killed, and the container with it",
            ))
        }
    }
}
