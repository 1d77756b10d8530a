//! The role `coracle-launcher NAME`: from its execution to a launcher that belongs to nobody and is
//! in the container's control groups.
//!
//! Whoever adds a command executes it, with a channel for standard input, and may be any program:
//! nothing that such a program hands down is relied on. The name is for `ps` only.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use super::Main;
use crate::failure::Failure;
use crate::isolation::cgroup::{self, Entrance};
use crate::printable::complain;
use crate::process::channel::{self, Channel, Never};
use crate::process::inherited;
use crate::process::messages::{FromMonitor, ToLauncher};
use crate::process::selfexec::{self, EXEC_ROLE, LAUNCHER_ROLE};
use crate::stdio::ProgramEnds;
use crate::sys::{self, Child, NewNamespaces};

/// The process itself.
pub fn main(_args: &[OsString]) -> ExitCode {
    inherited::put_behind();
    let Some(channel) = selfexec::stdin_channel() else {
        complain(format_args!(
            "{LAUNCHER_ROLE} is started by coracle itself, for a command in a container"
        ));
        return ExitCode::from(125);
    };
    let main = Channel::from_socket(channel);
    if let Err(failure) = make_launcher(&main) {
        // Main may be gone, and then nobody asks.
        let _ = main.send(&FromMonitor::Failed(failure), &[]);
    }
    ExitCode::SUCCESS
}

/// Makes the launcher, and ends as the one that goes into the container's user namespace for what
/// the launcher is to execute: that stays outside until then.
fn make_launcher(main: &Main) -> Result<(), Failure> {
    let out_of_order = || Failure::runner("the launcher's first message is none for it");
    let Some((ToLauncher::Launch { cgroups }, mut descriptors)) = main.receive()? else {
        return Err(Failure::runner("the command that asked for this has gone"));
    };
    let streams = descriptors.split_off(1.min(descriptors.len()));
    let (Some(init), Some(streams)) = (descriptors.pop(), ProgramEnds::from_fds(streams)) else {
        return Err(out_of_order());
    };
    let (ours, theirs) = channel::pair::<(), Never>()?;
    let mut groups = Entrance::open(&cgroups).unwrap_or_default();
    let Some(launcher) = clone_into(&groups)? else {
        drop(ours);
        let Err(failure) = launch(main, &theirs, &streams);
        let _ = main.send(&FromMonitor::Failed(failure), &[]);
        std::process::exit(125)
    };
    drop(theirs);
    let _ = groups.admit(launcher.pid);
    let born = FromMonitor::Born(launcher.pid.as_raw_pid());
    main.send(&born, &[launcher.pidfd.as_fd()])?;
    let program = selfexec::protected_program_inside(&init)
        .map_err(Failure::context("cannot protect the coracle program"))?;
    // One that has failed has told main.
    let _ = ours.send(&(), &[program.as_fd()]);
    Ok(())
}

fn clone_into(groups: &Entrance) -> Result<Option<Child>, Failure> {
    sys::clone_process(NewNamespaces::NONE, groups.unified())
        // Not every caller may go from its own control group to the container's. The command runs
        // outside then, if there it can do no harm.
        .or_else(|error| match cgroup::may_be_harmed() {
            true => Err(error),
            false => sys::clone_process(NewNamespaces::NONE, None),
        })
        .map_err(Failure::context(
            "cannot start the command in the container's control group, and the caller's own it could freeze or kill; run it from \
             where the container was started",
        ))
}

/// Goes on as the launcher, with the program that `maker` hands over.
fn launch(
    main: &Main,
    maker: &Channel<Never, ()>,
    streams: &ProgramEnds,
) -> Result<Infallible, Failure> {
    let Some(((), descriptors)) = maker.receive()? else {
        // It has told main why, or was killed.
        std::process::exit(125)
    };
    let [program]: [OwnedFd; 1] = descriptors
        .try_into()
        .map_err(|_| Failure::runner("no program came for the launcher"))?;
    streams.install().map_err(Failure::context(
        "cannot set the command's standard streams",
    ))?;
    Err(selfexec::run_role(&program, EXEC_ROLE, main.as_fd()))
}
