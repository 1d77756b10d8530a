//! The first process in a container, from its birth in the new namespaces to the exec of the container's command.
//!
//! Two lives: [`launch`] runs in the process that the monitor cloned and executes coracle again in the role `coracle-init`;
//! [`main`] is that role. The order of the steps in `start` is the design: each comment says why not earlier or later.

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::channel::Channel;
use crate::failure::Failure;
use crate::idmap::{self, Kind};
use crate::messages::{FromInit, ToInit};
use crate::process::Prepared;
use crate::rootfs::{self, Entered};
use crate::selfexec::{self, INIT_ROLE};
use crate::spec::{ContainerSpec, Network};
use crate::sys;
use crate::terminal::Pty;

/// Where init's descriptors 0, 1 and 2 lead. With a terminal they are the null device until there is one.
#[derive(Debug)]
pub struct Streams {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Goes on as init. Runs in the cloned process; `data` holds the container's spec, `monitor` is the socket of a channel of [`FromInit`] and [`ToInit`].
pub fn launch(streams: &Streams, monitor: &OwnedFd, data: &Path) -> Failure {
    let attempt = || -> Result<Infallible, Failure> {
        install_streams(streams).map_err(Failure::context(
            "cannot set the container's standard streams",
        ))?;
        let program = selfexec::protected_program()
            .map_err(Failure::context("cannot protect the coracle program"))?;
        Err(selfexec::run_role(&program, INIT_ROLE, &[data], monitor))
    };
    let Err(failure) = attempt();
    failure
}

pub fn install_streams(streams: &Streams) -> rustix::io::Result<()> {
    rustix::stdio::dup2_stdin(&streams.stdin)?;
    rustix::stdio::dup2_stdout(&streams.stdout)?;
    rustix::stdio::dup2_stderr(&streams.stderr)
}

/// The role `coracle-init CHANNEL-FD DATA-DIR`.
pub fn main(args: &[std::ffi::OsString]) -> ExitCode {
    let Some((channel, data)) = role_arguments(args) else {
        eprintln!("coracle: {INIT_ROLE} is started by coracle itself, inside a container");
        return ExitCode::from(125);
    };
    let channel = Channel::from_socket(channel);
    let Err(failure) = start(&data, &channel);
    // The monitor may be gone, and then nobody asks.
    let _ = channel.send(&FromInit::Failed(failure.clone()), &[]);
    ExitCode::from(failure.kind.exit_code())
}

/// The arguments that both roles have: the descriptor of a channel, and a path.
pub fn role_arguments(args: &[std::ffi::OsString]) -> Option<(OwnedFd, PathBuf)> {
    let [_, fd, path] = args else { return None };
    let fd = fd.to_str()?.parse().ok().filter(|fd| *fd > 2)?;
    Some((sys::adopt_descriptor(fd).ok()?, PathBuf::from(path)))
}

fn start(data: &Path, monitor: &Channel<FromInit, ToInit>) -> Result<Infallible, Failure> {
    // First, so that a monitor that is killed takes us along. One that is dead already has hung up on the channel.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    // Away from the caller's terminal and process group: signals reach the container through its monitor only.
    rustix::process::setsid()?;
    let spec = ContainerSpec::load(data)?;
    // While the host's /proc is still in sight.
    let gids = idmap::read_own(Kind::Group)?;

    let Entered {
        root,
        dev,
        warnings,
    } = rootfs::enter(&spec.tree, &gids)?;
    nix::unistd::sethostname(&spec.hostname)
        .map_err(Failure::context("cannot set the host name"))?;
    if spec.network == Network::None {
        sys::bring_loopback_up()
            .map_err(Failure::context("cannot bring up the loopback interface"))?;
    }
    if spec.process.terminal {
        let master = open_terminal(Some(&dev))?;
        monitor.send(&FromInit::Terminal, &[master.as_fd()])?;
    }
    let prepared = Prepared::new(&spec.process, root.as_fd())?;

    monitor.send(&FromInit::Prepared { warnings }, &[])?;
    // Nothing of the container runs before this: its network is ready now.
    match monitor.receive()? {
        Some((ToInit::Go, _)) => {}
        None => return Err(Failure::runner("the monitor of the container has gone")),
    }
    Err(prepared.exec(Some(rustix::process::Signal::KILL)))
}

/// Opens a terminal of the container's own devpts, makes it this session's and its standard streams, and returns its master. With
/// `dev`, the root of the container's /dev, it becomes the console as well.
pub fn open_terminal(dev: Option<&OwnedFd>) -> Result<OwnedFd, Failure> {
    let failed = || "cannot open a terminal in the container";
    let Pty { master, slave } =
        Pty::open_from(Path::new("/dev/pts/ptmx")).map_err(Failure::context(failed()))?;
    if let Some(dev) = dev {
        rootfs::attach_console(dev, &slave).map_err(Failure::context(failed()))?;
    }
    sys::set_controlling_terminal(slave.as_fd()).map_err(Failure::context(failed()))?;
    let streams = Streams {
        stdin: slave.try_clone()?,
        stdout: slave.try_clone()?,
        stderr: slave,
    };
    install_streams(&streams)?;
    Ok(master)
}
