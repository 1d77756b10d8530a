//! `coracle start`: the commands of containers that are there already, in the background or, with
//! `-a`, in the foreground.

use netstack::logging::Filter;

use super::follow::{Bond, adopt_orphans, follow};
use super::{chosen, for_each, open_engine, print_line};
use crate::cli::StartArgs;
use crate::engine::{Attach, Engine, EngineError, ErrorKind};
use crate::failure::Failure;
use crate::process::foreground::{Signals, warn};
use crate::state::Status;

pub fn start(args: StartArgs, filter: Filter) -> Result<u8, Failure> {
    let is_attached = args.attach || args.interactive;
    // A signal that comes while the container starts is kept for it.
    let signals = is_attached.then(Signals::block).transpose()?;
    let engine = open_engine()?.logging(filter);
    let names = chosen(&engine, &args.chosen, args.all, |c| c.status.can_start())?;
    match (signals, &names[..]) {
        (Some(signals), [name]) => start_attached(&engine, name, &args, signals),
        (Some(_), names) => Err(Failure::runner(format!(
            "start attaches to one container at a time, and {} are meant",
            names.len()
        ))),
        (None, names) => for_each(names, |name| {
            start_detached(&engine, name)?;
            print_line(name)
        }),
    }
}

fn start_attached(
    engine: &Engine,
    name: &str,
    args: &StartArgs,
    signals: Signals,
) -> Result<u8, Failure> {
    let spec = engine.spec(&engine.find(name)?)?;
    let interactive = args.interactive && (spec.open_stdin || spec.process.terminal);
    adopt_orphans();
    let attach = Attach {
        stdin: interactive,
        stdout: true,
        stderr: true,
    };
    let bond = Bond::of(&args.leave, interactive, args.sig_proxy.unwrap_or(true));
    follow(engine.start(name, Some(attach))?, signals, bond, engine)
}

/// One that runs, or is about to be started again by its monitor, is as wanted.
pub fn start_detached(engine: &Engine, name: &str) -> Result<(), Failure> {
    let runs = |engine: &Engine| -> Result<bool, Failure> {
        let status = engine.find(name)?.status;
        Ok(matches!(
            status,
            Status::Running | Status::Restarting { .. }
        ))
    };
    let started = match runs(engine)? {
        true => return Ok(()),
        false => engine
            .start(name, None)
            .and_then(|mut launch| launch.started(&mut warn)),
    };
    match started {
        // Somebody else was faster.
        Err(error) if error.kind() == ErrorKind::WrongState && runs(engine)? => Ok(()),
        other => other.map_err(not_started),
    }
}

/// What is wrong with the command of a container that is there already is told by no exit code of
/// its own, as with Podman.
pub fn not_started(error: EngineError) -> Failure {
    match error.kind() {
        ErrorKind::CommandNotFound | ErrorKind::CommandNotExecutable => {
            Failure::runner(Failure::from(error).message)
        }
        _ => error.into(),
    }
}
