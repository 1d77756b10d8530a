//! `coracle exec`: another command in a running container, at the caller's terminal or streams.

use netstack::logging::Filter;

use super::env::variables;
use super::open_engine;
use crate::cli::ExecArgs;
use crate::engine::{EngineError, ExecRequest, START_MAX};
use crate::failure::Failure;
use crate::process::foreground::{Foreground, Outcome, Signals, UNREAD_EXIT_CODE};

pub fn exec(args: ExecArgs, filter: Filter) -> Result<u8, Failure> {
    // A signal that comes while the command starts is kept for it.
    let signals = Signals::block()?;
    let engine = open_engine()?.logging(filter);
    let container = engine.find(&args.container())?;
    let exec = engine.exec(container.id.as_str(), request(&args)?)?;
    let (events, ends, launcher) = exec.into_parts();
    let interactive = args.process.interactive;
    let foreground = Foreground::new(signals, events, ends, interactive)?;
    let keys = args.leave.detach_keys.clone().unwrap_or_default();
    let foreground = foreground.leaving_by(Some(keys), true);
    let outcome = foreground.starting_within(START_MAX).serve();
    if matches!(outcome, Ok(Outcome::Detached)) {
        return Ok(0);
    }
    launcher.end();
    engine.note_exec_end(&container);
    match outcome? {
        Outcome::Exited(code) | Outcome::Restarting(code) => Ok(code as u8),
        Outcome::Unread => Ok(UNREAD_EXIT_CODE),
        // Signals are passed on.
        Outcome::Detached | Outcome::DetachedBy(_) => Ok(0),
        // The launcher dies with the container's other processes only when somebody kills it.
        Outcome::Lost => Err(EngineError::LauncherKilled.into()),
    }
}

fn request(args: &ExecArgs) -> Result<ExecRequest, Failure> {
    Ok(ExecRequest {
        command: args.command().to_vec(),
        env: variables(&args.process)?,
        workdir: args.process.workdir.clone(),
        user: args.process.user.clone(),
        privileged: args.privileged,
        terminal: args.process.tty,
        stdin: args.process.interactive,
    })
}
