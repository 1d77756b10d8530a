//! Another command in a running container: the processes between the caller and that command.
//!
//! ```text
//! main (engine::exec) -> launcher (roles coracle-launcher, coracle-exec) -> the command
//! ```
//! The launcher exists because a PID namespace is joined for children only. It is executed twice:
//! outside ([`role`]), by a main that may have threads, and again from a protected copy of the
//! program before it joins the namespaces. It cannot be traced: to the container it and its child
//! are a user's processes of a namespace outside, until the moment of exec (CVE-2019-5736,
//! CVE-2016-9962).

mod role;

pub use role::main as launcher_main;

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use rustix::event::PollFlags;
use rustix::fs::OFlags;
use rustix::process::{DumpableBehavior, Signal};
use tracing::dispatcher::with_default;
use tracing::{Dispatch, debug, error_span, info};

use crate::failure::Failure;
use crate::isolation::namespaces::{Namespaces, become_root, wait_for};
use crate::poll;
use crate::printable::complain;
use crate::process::channel::{self, Channel, Never};
use crate::process::messages::{FromForeground, FromInit, FromMonitor, ToLauncher};
use crate::process::program::Prepared;
use crate::process::selfexec::{self, EXEC_ROLE};
use crate::process::task;
use crate::rootfs::lookup::{DEVPTS_SUPER_MAGIC, Root, filesystem_magic};
use crate::spec::ProcessSpec;
use crate::stdio::terminal::{NO_TERMINAL, PTMX, Pty};
use crate::stdio::{self, ProgramEnds};
use crate::sys::{self, Child, NewNamespaces};

/// Whoever has asked for the command.
type Main = Channel<FromMonitor, ToLauncher>;

/// The role `coracle-exec CHANNEL-FD`.
pub fn main(args: &[OsString]) -> ExitCode {
    let Some(channel) = selfexec::role_channel(args) else {
        complain(format_args!(
            "{EXEC_ROLE} is started by coracle itself, beside a container"
        ));
        return ExitCode::from(125);
    };
    let main = Channel::from_socket(channel);
    let last = match start(&main) {
        Ok(code) => FromMonitor::Exited(code),
        Err(failure) => FromMonitor::Failed(failure),
    };
    // Main may be gone, and then nobody asks.
    let _ = main.send(&last, &[]);
    ExitCode::SUCCESS
}

fn start(main: &Main) -> Result<i32, Failure> {
    // Before the container can see us.
    hide_from_container()?;
    rustix::process::setsid().map_err(Failure::context("cannot begin a session"))?;
    let Some((ToLauncher::Run { namespaces, log }, descriptors)) = main.receive()? else {
        return Err(Failure::runner("the command that asked for this has gone"));
    };
    let mut descriptors = descriptors.into_iter();
    let (Some(init), Some(spec)) = (descriptors.next(), descriptors.next()) else {
        return Err(Failure::runner("the task came without its descriptors"));
    };
    let log_file = descriptors.next().map(File::from);
    let log = log_file.map_or_else(Dispatch::none, |file| log.dispatch(file));
    with_default(&log, || {
        let _span = error_span!("exec").entered();
        launch(main, namespaces, &init, task::read(spec)?)
            .inspect(|code| debug!(code, "the command has ended"))
            .inspect_err(|failure| info!(%failure, "the command was not started"))
    })
}

/// Joins the container, starts the command there and waits for its end.
fn launch(
    main: &Main,
    namespaces: Namespaces,
    init: &OwnedFd,
    spec: ProcessSpec,
) -> Result<i32, Failure> {
    namespaces.join(init)?;
    become_root().map_err(Failure::context("cannot become the container's root"))?;
    // Changing IDs makes a process dumpable as the machine is set.
    hide_from_container()?;

    let (ours, theirs) = channel::pair::<Never, FromInit>()?;
    let clone = sys::clone_process(NewNamespaces::NONE, None);
    let clone = clone.map_err(Failure::context("cannot start a process for the command"))?;
    let Some(child) = clone else {
        drop(ours);
        let Err(failure) = become_command(&spec, &theirs);
        let code = failure.kind.exit_code();
        let _ = theirs.send(&FromInit::Failed(failure), &[]);
        std::process::exit(code.into());
    };
    drop(theirs);
    // From here on only the command writes to them: their end is its end.
    let let_go = ProgramEnds::null().and_then(|null| null.install());
    let_go.map_err(Failure::context(
        "cannot let go of the command's standard streams",
    ))?;
    accompany(&ours, main, &child)
}

/// Keeps processes of the container from looking into this one.
fn hide_from_container() -> Result<(), Failure> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(Failure::context("cannot hide from the container"))
}

/// Tells main what the command's process has to say, and how it ends. When main is gone, so is the
/// command: the launcher reaps it, without which the container could not end.
fn accompany(
    command: &Channel<Never, FromInit>,
    main: &Main,
    child: &Child,
) -> Result<i32, Failure> {
    let mut left = Left::default();
    let failed = loop {
        left.wait_beside(command.as_fd(), main, child)?;
        match command.receive()? {
            Some((FromInit::Terminal, descriptors)) => {
                let descriptors: Vec<_> = descriptors.iter().map(OwnedFd::as_fd).collect();
                main.send(&FromMonitor::Terminal, &descriptors)?;
            }
            Some((FromInit::Failed(failure), _)) => break Some(failure),
            Some((FromInit::Prepared { .. }, _)) => {}
            None => break None,
        }
    };
    if failed.is_none() {
        info!(pid = child.pid.as_raw_pid(), "the command runs");
        main.send(&FromMonitor::Started, &[child.pidfd.as_fd()])?;
    }
    left.wait_beside(child.pidfd.as_fd(), main, child)?;
    let code = wait_for(child.pid)?;
    failed.map_or(Ok(code), Err)
}

/// What main has left of the command's streams, so that the command can go on without it.
#[derive(Default)]
struct Left {
    has_left: bool,
    /// Read, and what is read is nobody's.
    outputs: [Option<OwnedFd>; 2],
    /// Its input, which stays open.
    _input: Option<OwnedFd>,
}

impl Left {
    /// Waits for `news`, and ends the child when main goes first without leaving it to itself.
    fn wait_beside(&mut self, news: BorrowedFd, main: &Main, child: &Child) -> Result<(), Failure> {
        loop {
            let main_fd = (!self.has_left).then(|| main.as_fd());
            let [stdout, stderr] = self
                .outputs
                .each_ref()
                .map(|fd| fd.as_ref().map(AsFd::as_fd));
            let interests = [Some(news), main_fd, stdout, stderr];
            let interests = interests.map(|fd| Some((fd?, PollFlags::IN)));
            let [is_news, from_main, stdout, stderr] = poll::wait(interests, None)
                .map_err(Failure::context("cannot wait for the command"))?
                .unwrap_or_default();
            for (output, is_ready) in self.outputs.iter_mut().zip([stdout, stderr]) {
                if is_ready && !skip_some(output.as_ref()) {
                    *output = None;
                }
            }
            if from_main {
                self.listen_to(main, child)?;
            }
            if is_news {
                return Ok(());
            }
        }
    }

    fn listen_to(&mut self, main: &Main, child: &Child) -> Result<(), Failure> {
        match main.receive() {
            Ok(Some((ToLauncher::Foreground(FromForeground::Detached), descriptors))) => {
                info!("main leaves the command to itself");
                self.has_left = true;
                let (input, outputs): (Vec<_>, Vec<_>) =
                    descriptors.into_iter().partition(stdio::is_input);
                self._input = input.into_iter().next();
                for (place, output) in self.outputs.iter_mut().zip(outputs) {
                    *place = Some(output);
                }
                Ok(())
            }
            Ok(Some((ToLauncher::Foreground(FromForeground::InputEnded), _))) => Ok(()),
            _ => {
                // Fails only when it has ended.
                let _ = rustix::process::pidfd_send_signal(&child.pidfd, Signal::KILL);
                wait_for(child.pid)?;
                Err(Failure::runner("the command that asked for this has gone"))
            }
        }
    }
}

/// Reads what there is to read, and says whether there may be more.
fn skip_some(output: Option<&OwnedFd>) -> bool {
    let mut buffer = [0; 4096];
    output.is_some_and(|output| rustix::io::read(output, &mut buffer).is_ok_and(|count| count > 0))
}

fn become_command(
    spec: &ProcessSpec,
    launcher: &Channel<FromInit, Never>,
) -> Result<Infallible, Failure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(Failure::context("cannot tie the command to its launcher"))?;
    rustix::process::setsid().map_err(Failure::context("cannot begin a session"))?;
    let root = Root::open().map_err(Failure::context("cannot open the container's root"))?;
    if spec.terminal {
        // A container with rights over its mounts may have put anything there.
        let pts = root.resolve(Path::new("/dev/pts"), OFlags::NOFOLLOW);
        let magic = pts.and_then(|pts| filesystem_magic(&pts));
        let magic = magic.map_err(Failure::context("cannot open /dev/pts of the container"))?;
        if magic != DEVPTS_SUPER_MAGIC {
            return Err(Failure::runner(
                "/dev/pts of the container holds no terminals",
            ));
        }
        let pty = Pty::open_from(Path::new(PTMX)).and_then(Pty::inhabit);
        let master = pty.map_err(Failure::context(NO_TERMINAL))?;
        launcher.send(&FromInit::Terminal, &[master.as_fd()])?;
    }
    let prepared = Prepared::new(spec, root.as_fd())?;
    Err(prepared.exec(Some(Signal::KILL)))
}
