//! `coracle run`: from flags to a running container, and in the foreground on to its exit code.
//!
//! The order: ports, ID maps, record, files, monitor. What fails early has nothing to undo; from
//! the record on, every failure takes the record along.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, IsTerminal};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use portfwd::publish::Listener;

use super::{open_store, print_line, repair};
use crate::channel::{self, Channel, Never};
use crate::cli::{AttachStream, RunArgs, SeccompChoice, SecurityOpt, UserNamespace};
use crate::failure::Failure;
use crate::files;
use crate::foreground::{Ends, Foreground, Outcome, Signals, UNREAD_EXIT_CODE, output_pipes, warn};
use crate::idmap::IdMaps;
use crate::image;
use crate::inherited::{Inherited, SoftLimits};
use crate::messages::FromMonitor;
use crate::monitor::{self, Attached, Job, Stdin};
use crate::namespaces;
use crate::ports::Ports;
use crate::rootfs::overlay::Changes;
use crate::rootfs::{Bind, BindOptions, Tree};
use crate::seccomp::Seccomp;
use crate::security::Capabilities;
use crate::spec::{
    ContainerSpec, DEFAULT_PATH, Network, ProcessSpec, RootfsArg, SPEC_FILE, Variable, environment,
    split_variable,
};
use crate::state::{Container, ContainerDir, NewContainer, REGULAR_LEN_MAX, Store};
use crate::sys::{self, Child, NewNamespaces};
use crate::volume;

pub fn run(args: RunArgs, inherited: &Inherited) -> Result<u8, Failure> {
    // In the foreground a signal that comes while the container starts is kept for it.
    let signals = if args.detach {
        None
    } else {
        Some(Signals::block()?)
    };
    let store = open_store()?;
    if args.network == Network::None && !args.publish.is_empty() {
        return Err(Failure::runner(
            "ports cannot be published with --network none",
        ));
    }
    let ports = Ports::bind(&args.publish, &store)?;
    let (maps, single) = IdMaps::discover(args.userns == UserNamespace::Host)?;
    if let Some(reason) = &single {
        warn(&reason.warning());
    }
    let source = Source::find(&args, &store)?;
    source.warn_of_foreign_owner(&maps);
    let url = args
        .rootfs
        .is_none()
        .then(|| ports.url(image::PORT))
        .flatten();

    let container = store.create(NewContainer {
        name: args.name.clone(),
        hostname: args.hostname.clone(),
        image: source.label.clone(),
        command: shown_command(&source.args),
        publish: ports.rules.iter().map(ToString::to_string).collect(),
        remove: removes_itself(&args),
        tty: args.process.tty,
        stop_signal: Some(source.stop_signal as i32),
    })?;
    let limits = inherited.limits;
    let started = start(
        &args,
        &store,
        &container,
        source,
        ports.listeners,
        maps,
        limits,
    );
    let started = started.inspect_err(|_| drop(store.remove(&container)))?;
    match signals {
        Some(signals) => follow(&args, started, signals, &store, url),
        None => detach(started, &container),
    }
}

/// The command as listings show it: a record is to stay short, whatever somebody hands to a
/// program.
fn shown_command(args: &[OsString]) -> Vec<String> {
    const LEN_MAX: usize = 16 * 1024;
    let mut left = LEN_MAX;
    let fits = |arg: &String| {
        left = left.saturating_sub(arg.len() + 1);
        left > 0
    };
    args.iter()
        .map(|arg| arg.to_string_lossy().into_owned())
        .take_while(fits)
        .collect()
}

/// The built-in image in the foreground is a first look, which is to leave nothing behind.
fn removes_itself(args: &RunArgs) -> bool {
    args.rm || (args.rootfs.is_none() && !args.detach)
}

/// What the container is made from: a directory, or an image.
struct Source {
    label: String,
    rootfs: PathBuf,
    in_place: bool,
    args: Vec<OsString>,
    env: Vec<String>,
    workdir: PathBuf,
    stop_signal: Signal,
    /// Where the image looks for what the network helper knows.
    status_dir: Option<PathBuf>,
}

impl Source {
    fn find(args: &RunArgs, store: &Store) -> Result<Source, Failure> {
        match &args.rootfs {
            Some(rootfs) => Self::directory(rootfs, args),
            None => Self::image(args, store),
        }
    }

    fn directory(rootfs: &RootfsArg, args: &RunArgs) -> Result<Source, Failure> {
        let unusable = |error: io::Error| {
            Failure::runner(format!(
                "cannot use --rootfs {}: {error}",
                rootfs.dir.display()
            ))
        };
        let dir = fs::canonicalize(&rootfs.dir).map_err(unusable)?;
        if !dir.is_dir() {
            return Err(unusable(io::ErrorKind::NotADirectory.into()));
        }
        if args.words.is_empty() {
            return Err(Failure::runner(
                "no command given: coracle run --rootfs DIR COMMAND",
            ));
        }
        Ok(Source {
            label: format!("--rootfs {}", rootfs.dir.display()),
            rootfs: dir,
            in_place: rootfs.in_place,
            args: args.words.clone(),
            env: Vec::new(),
            workdir: "/".into(),
            stop_signal: Signal::SIGTERM,
            status_dir: None,
        })
    }

    fn image(args: &RunArgs, store: &Store) -> Result<Source, Failure> {
        let (name, rest) = match args.words.split_first() {
            Some((name, rest)) => (name.as_os_str(), rest),
            None => (OsStr::new(image::DEFAULT), &[][..]),
        };
        if name != image::DEFAULT {
            return Err(Failure::runner(format!(
                "cannot run the image {name:?}: coracle does not pull images yet; \
                 --rootfs DIR runs a directory, and {} is built in",
                image::DEFAULT
            )));
        }
        let image = image::unpack_default(&store.dirs().images())?;
        let entrypoint = image.entrypoint.iter().map(OsString::from);
        Ok(Source {
            label: image::DEFAULT.to_owned(),
            rootfs: image.rootfs,
            in_place: false,
            args: entrypoint.chain(rest.iter().cloned()).collect(),
            env: image.env,
            workdir: image.working_dir,
            stop_signal: image.stop_signal,
            status_dir: Path::new(image::STATUS_SOCKET)
                .parent()
                .map(Path::to_path_buf),
        })
    }

    /// A tree that root unpacked and a user runs works for reading; better said before than found
    /// out.
    fn warn_of_foreign_owner(&self, maps: &IdMaps) {
        if let Ok(found) = fs::metadata(&self.rootfs)
            && !maps.root_is_another()
            && !maps.maps_host_uid(found.uid())
        {
            warn(&format!(
                "{} belongs to user {}, who has no place in the container: what that user owns belongs to nobody there and \
                 cannot be changed",
                self.rootfs.display(),
                found.uid()
            ));
        }
    }
}

/// Containers of the host's root are other users than root.
fn warn_of_foreign_volumes<'a>(binds: impl Iterator<Item = &'a Bind>, maps: &IdMaps) {
    for bind in binds.filter(|bind| !bind.options.map_ids) {
        if let Ok(found) = fs::metadata(&bind.source)
            && !maps.maps_host_uid(found.uid())
        {
            warn(&format!(
                "{} belongs to user {}, who has no place in the container: it cannot be changed there, nor read where it is closed to \
                 others; the option idmap shows it as the container's (-v {}:{}:idmap)",
                bind.source.display(),
                found.uid(),
                bind.source.display(),
                bind.target.display()
            ));
        }
    }
}

/// The caller's side of a monitor that has been started.
struct Started {
    monitor: Child,
    events: Channel<Never, FromMonitor>,
    ends: Option<Ends>,
}

fn start(
    args: &RunArgs,
    store: &Store,
    container: &Container,
    source: Source,
    listeners: Vec<Listener>,
    maps: IdMaps,
    limits: SoftLimits,
) -> Result<Started, Failure> {
    let dir = store.dir(container);
    let network = match args.network {
        Network::Default => Some(monitor::Network {
            listeners,
            status_dir: make_status_dir(&dir.run)?,
        }),
        Network::None => None,
    };
    let mut spec = specify(args, container, &dir, source, network.as_ref())?;
    spec.process.limits = Some(limits);
    if maps.root_is_another() {
        give_away(&spec.tree, maps.root())?;
        let of_the_users = |bind: &&Bind| !bind.source.starts_with(&dir.run);
        warn_of_foreign_volumes(spec.tree.binds.iter().filter(of_the_users), &maps);
    }
    let text = serde_json::to_vec(&spec)?;
    if text.len() as u64 > REGULAR_LEN_MAX {
        return Err(Failure::runner(
            "the command and its environment are too long to be recorded",
        ));
    }
    fs::write(dir.data.join(SPEC_FILE), text)
        .map_err(Failure::context("cannot write the container's spec"))?;

    let (events, to_main) = channel::pair::<Never, FromMonitor>()?;
    let (mut ends, mut attached, mut stdin) = (None, None, Stdin::Empty);
    if args.reads_stdin() && !args.process.tty {
        stdin = Stdin::Silent;
    }
    if !args.detach {
        let (outputs, (stdout, stderr)) = output_pipes()?;
        attached = Some(Attached {
            stdout: shown_or_lost(args, AttachStream::Stdout, stdout)?,
            stderr: shown_or_lost(args, AttachStream::Stderr, stderr)?,
        });
        let mut our_stdin = None;
        if matches!(stdin, Stdin::Silent) {
            let (theirs, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            our_stdin = Some(ours);
            stdin = Stdin::Pipe(theirs);
        }
        ends = Some(Ends {
            stdin: our_stdin,
            outputs: Some(outputs),
        });
    }

    match sys::clone_process(NewNamespaces::NONE, None)? {
        Some(monitor) => Ok(Started {
            monitor,
            events,
            ends,
        }),
        None => {
            // Our copies of the caller's ends: with them open, nobody would ever see the other side
            // hang up.
            drop((events, ends));
            let job = Job {
                store: store.clone(),
                container: container.clone(),
                dir,
                spec,
                maps,
                network,
                main: to_main,
                attached,
                stdin,
            };
            monitor::run(job);
            std::process::exit(0)
        }
    }
}

/// Makes the container's root the owner of what coracle has made for the container.
fn give_away(tree: &Tree, (uid, gid): (u32, u32)) -> Result<(), Failure> {
    let layer = match &tree.changes {
        Changes::Overlay { upper, work, .. } => vec![upper, work],
        Changes::InPlace => Vec::new(),
    };
    for path in tree.files.iter().map(|file| &file.source).chain(layer) {
        std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(Failure::context(
            format!("cannot give {} to the container's root", path.display()),
        ))?;
    }
    Ok(())
}

/// The container's end of an output to the caller. One that the caller does not want goes to the
/// log alone, and the caller's end is closed from the beginning.
fn shown_or_lost(args: &RunArgs, stream: AttachStream, pipe: OwnedFd) -> io::Result<OwnedFd> {
    match args.attaches(stream) {
        true => Ok(pipe),
        false => Ok(fs::OpenOptions::new().write(true).open("/dev/null")?.into()),
    }
}

fn specify(
    args: &RunArgs,
    container: &Container,
    dir: &ContainerDir,
    source: Source,
    network: Option<&monitor::Network>,
) -> Result<ContainerSpec, Failure> {
    let changes = match source.in_place {
        true => Changes::InPlace,
        false => Changes::Overlay {
            upper: dir.upper(),
            work: dir.work(),
            volatile: container.remove,
        },
    };
    let mut binds = volume::binds(&args.volumes)?;
    if let (Some(target), Some(network)) = (source.status_dir, network) {
        // The directory and not the socket, which is another one after each start of a helper.
        let source = network.status_dir.clone();
        binds.push(Bind {
            source,
            target,
            read_only: true,
            options: BindOptions::default(),
        });
    }
    let mut env: Vec<Variable> = [
        ("PATH", DEFAULT_PATH),
        ("container", "coracle"),
        ("HOSTNAME", &container.hostname),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .into();
    if args.process.tty {
        env.push(("TERM".into(), "xterm".into()));
    }
    env.extend(
        source
            .env
            .iter()
            .filter_map(|entry| split_variable(entry.as_ref())),
    );
    if args.http_proxy {
        env.extend(proxies());
    }
    Ok(ContainerSpec {
        hostname: container.hostname.clone(),
        tree: Tree {
            rootfs: source.rootfs,
            changes,
            binds,
            files: files::provide(&dir.run, &container.hostname, &container.name, args.network)?,
        },
        network: args.network,
        process: ProcessSpec {
            args: source.args,
            env: environment(env, &args.process.env),
            workdir: args.process.workdir.clone().unwrap_or(source.workdir),
            user: args.process.user.clone().unwrap_or_default(),
            terminal: args.process.tty,
            capabilities: Capabilities::DEFAULT.adjusted(&args.cap_add, &args.cap_drop),
            no_new_privs: no_new_privs(&args.security_opt),
            seccomp: seccomp(&args.security_opt)?,
            limits: None,
            init: args.init,
            single_id: false,
        },
    })
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

fn make_status_dir(run: &Path) -> Result<PathBuf, Failure> {
    let dir = run.join("net");
    fs::create_dir(&dir).map_err(Failure::context(format!("cannot create {}", dir.display())))?;
    Ok(dir)
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
    store: &Store,
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
        Outcome::Exited(code) => Ok(code as u8),
        Outcome::Unread => Ok(UNREAD_EXIT_CODE),
        Outcome::Lost => {
            repair(store)?;
            Err(Failure::runner(
                "the container's monitor was killed, and the container with it",
            ))
        }
    }
}
