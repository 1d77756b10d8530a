//! The first process in a container, from its birth in the new namespaces to the exec of the
//! container's command.
//!
//! Two lives: [`launch`] runs in the process that the monitor cloned and executes coracle again in
//! the role `coracle-init`; [`main`] is that role. The order of the steps in `start` is the design:
//! each comment says why not earlier or later.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::ExitCode;

use rustix::io::Errno;
use tracing::dispatcher::with_default;
use tracing::{Dispatch, debug, error_span};

use crate::failure::Failure;
use crate::isolation::idmap::{self, Kind};
use crate::isolation::namespaces::{Namespaces, become_root};
use crate::printable::complain;
use crate::process::channel::Channel;
use crate::process::messages::{FromInit, ToInit};
use crate::process::program::Prepared;
use crate::process::selfexec::{self, INIT_ROLE};
use crate::process::{task, user};
use crate::rootfs::secrets::SecretFile;
use crate::rootfs::{self, Entered, Sources};
use crate::secrets::{Content, Delivery, SecretUse};
use crate::spec::{ContainerSpec, Network, ProcessSpec, environment, split_variable};
use crate::stdio::ProgramEnds;
use crate::stdio::terminal::{NO_TERMINAL, PTMX, Pty};
use crate::sys;

/// Goes on as init. Runs in the cloned process; `monitor` is the socket of a channel of
/// [`FromInit`] and [`ToInit`].
pub fn launch(namespaces: Namespaces, streams: &ProgramEnds, monitor: &OwnedFd) -> Failure {
    let attempt = || -> Result<Infallible, Failure> {
        // Now that this process is in the container's group.
        namespaces.make_rest().map_err(Failure::context(
            "cannot make the container's cgroup namespace",
        ))?;
        streams.install().map_err(Failure::context(
            "cannot set the container's standard streams",
        ))?;
        // While this process still has the caller's ID, which may reach the program.
        let program = selfexec::protected_program()
            .map_err(Failure::context("cannot protect the coracle program"))?;
        become_root().map_err(Failure::context("cannot become the container's root"))?;
        Err(selfexec::run_role(&program, INIT_ROLE, monitor.as_fd()))
    };
    let Err(failure) = attempt();
    failure
}

/// The role `coracle-init CHANNEL-FD`.
pub fn main(args: &[OsString]) -> ExitCode {
    let Some(channel) = selfexec::role_channel(args) else {
        complain(format_args!(
            "{INIT_ROLE} is started by coracle itself, inside a container"
        ));
        return ExitCode::from(125);
    };
    let channel = Channel::from_socket(channel);
    let Err(failure) = start(&channel);
    // The monitor may be gone, and then nobody asks.
    let _ = channel.send(&FromInit::Failed(failure.clone()), &[]);
    ExitCode::from(failure.kind.exit_code())
}

/// What the monitor wants.
struct Task {
    spec: ContainerSpec,
    /// Those of the specification, in their order.
    secrets: Vec<Content>,
    /// The mounts that it made for it.
    sources: Option<Sources>,
}

/// And where to log to.
fn receive_task(monitor: &Channel<FromInit, ToInit>) -> Result<(Task, Dispatch), Failure> {
    let gone = || Failure::runner("the monitor of the container has gone");
    let out_of_order = || Failure::runner("the monitor's first message is no task");
    let Some((ToInit::Start { mounts: count, log }, mut files)) = monitor.receive()? else {
        return Err(gone());
    };
    let (Some(log_file), Some(secrets), Some(task)) = (files.pop(), files.pop(), files.pop())
    else {
        return Err(out_of_order());
    };
    let log = log.dispatch(log_file.into());
    let spec: ContainerSpec = task::read(task)?;
    let secrets: Vec<Content> = task::read(secrets)?;
    let mut mounts = Vec::new();
    while mounts.len() < count {
        match monitor.receive()?.ok_or_else(gone)? {
            (ToInit::Mounts, descriptors) => mounts.extend(descriptors),
            _ => return Err(out_of_order()),
        }
    }
    let sources = match mounts.is_empty() {
        true => None,
        false => Some(Sources::from_descriptors(&spec.tree, mounts).ok_or_else(out_of_order)?),
    };
    let what = Task {
        spec,
        secrets,
        sources,
    };
    Ok((what, log))
}

fn start(monitor: &Channel<FromInit, ToInit>) -> Result<Infallible, Failure> {
    // First, so that a monitor that is killed takes us along. One that is dead already has hung up
    // on the channel.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(Failure::context("cannot tie the container to its monitor"))?;
    // Away from the caller's terminal and process group: signals reach the container through its
    // monitor only.
    rustix::process::setsid().map_err(Failure::context("cannot begin a session"))?;
    let (task, log) = receive_task(monitor)?;
    let prepared = with_default(&log, || {
        let _span = error_span!("init").entered();
        prepare(monitor, task)
    })?;
    // Closes it: what runs from here on is the container's.
    drop(log);
    Err(prepared.exec(Some(rustix::process::Signal::KILL)))
}

/// Makes the container from inside. Returns when only the exec is left to be done, and may be.
fn prepare(monitor: &Channel<FromInit, ToInit>, task: Task) -> Result<Prepared, Failure> {
    let Task {
        mut spec,
        secrets,
        sources,
    } = task;
    // While the host's /proc is still in sight.
    let gids = idmap::read_own(Kind::Group)?;
    spec.process.single_id = idmap::is_single(&gids);

    let files = hand_out(&spec.secrets, secrets, &mut spec.process);
    let Entered {
        root,
        dev,
        to_give,
        mut warnings,
    } = rootfs::enter(
        &spec.tree,
        sources,
        &files,
        &gids,
        spec.namespaces.has_own_network(),
        &spec.sysctls,
    )?;
    debug!(root = ?spec.tree.root.dirs(), "the container's root is entered");
    if !to_give.is_empty() {
        // The image alone knows who its user is.
        let user = user::resolve(&spec.process.user, root.as_fd())?;
        for gift in to_give {
            gift.give(user.uid, user.gid)?;
        }
    }
    match rustix::system::sethostname(spec.hostname.as_bytes()) {
        // An outer container's filter. Its own name does no harm.
        Err(Errno::PERM) => warnings.push(
            "the container has the host name of the one around it, which may not be changed there"
                .to_owned(),
        ),
        other => other.map_err(Failure::context("cannot set the host name"))?,
    }
    if matches!(spec.network, Network::None | Network::Bridge) {
        sys::bring_loopback_up()
            .map_err(Failure::context("cannot bring up the loopback interface"))?;
    }
    if spec.process.terminal {
        let master = open_terminal(&dev).map_err(Failure::context(NO_TERMINAL))?;
        monitor.send(&FromInit::Terminal, &[master.as_fd()])?;
    }
    let prepared = Prepared::new(&spec.process, root.as_fd())?;
    debug!("the container's program is prepared");

    monitor.send(&FromInit::Prepared { warnings }, &[])?;
    // Nothing of the container runs before this: its network is ready now.
    match monitor.receive()? {
        Some((ToInit::Go, _)) => Ok(prepared),
        _ => Err(Failure::runner("the monitor of the container has gone")),
    }
}

/// Gives the program the secrets that are variables, and returns those that are files.
fn hand_out(
    used: &[SecretUse],
    contents: Vec<Content>,
    process: &mut ProcessSpec,
) -> Vec<SecretFile> {
    let mut files = Vec::new();
    let mut variables = Vec::new();
    for (used, content) in used.iter().zip(contents) {
        match &used.delivery {
            Delivery::File {
                target,
                uid,
                gid,
                mode,
            } => files.push(SecretFile {
                target: target.clone(),
                uid: *uid,
                gid: *gid,
                mode: *mode,
                content,
            }),
            Delivery::Variable(name) => {
                let value = OsString::from_vec(content.bytes().to_vec());
                variables.push((OsString::from(name), value));
            }
        }
    }
    let own = std::mem::take(&mut process.env);
    let own = own.iter().filter_map(|entry| split_variable(entry));
    process.env = environment(own.chain(variables));
    files
}

/// Opens a terminal of the container's own, which becomes its console as well. `dev` is the root of
/// the container's /dev.
fn open_terminal(dev: &OwnedFd) -> io::Result<OwnedFd> {
    let pty = Pty::open_from(Path::new(PTMX))?;
    rootfs::attach_console(dev, &pty.slave)?;
    pty.inhabit()
}
