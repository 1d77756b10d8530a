//! What becomes of pasta's words: the order of its process's life.
//!
//! Files are made first, with the caller's rights. Then the process forks: an init for a program of
//! the caller's own, or itself, to go to the background. From there on it is a helper like any
//! other (`start`), and what is told when it is up is all that differs.

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use rustix::process::{Signal, getpid, kill_process};

use super::{Args, ArgsError, For, VERSION};
use crate::guest::TargetName;
use crate::logging::{Filter, InvalidFilter, VARIABLE};
use crate::process::background::{self, Caller, Daemon, Side};
use crate::process::{
    Guest, GuestError, Log, LogFile, LogFileError, PidFile, PidFileError, Program,
};
use crate::start::{self, StartError};
use crate::sys;

/// Why there is no network, or no more.
#[derive(Debug, thiserror::Error)]
pub enum LifeError {
    #[error(transparent)]
    Args(#[from] ArgsError),
    #[error("{VARIABLE}: {0}")]
    Filter(#[from] InvalidFilter),
    #[error(transparent)]
    PidFile(#[from] PidFileError),
    #[error(transparent)]
    LogFile(#[from] LogFileError),
    #[error("cannot go to the background: {0}")]
    Background(#[source] io::Error),
    #[error("the process in the background was killed before the network was up")]
    DaemonKilled,
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Runs the program until it ends, or until its copy in the background is ready. `words` are those
/// behind the program's name.
pub fn run(args: Args, words: &[OsString]) -> Result<ExitCode, LifeError> {
    sys::close_inherited();
    let purpose = args.purpose()?;
    let files = Files {
        pid: args.pid.as_deref().map(PidFile::create).transpose()?,
        log: args
            .log_file
            .as_deref()
            .map(|path| LogFile::create(path, args.log_size))
            .transpose()?,
        title: format!(
            "pasta {VERSION}: pasta {}",
            words.join(" ".as_ref()).display()
        ),
        filter: args.filter(&purpose)?,
    };
    match purpose {
        For::Program { program, own_users } => with_program(args, program, own_users, files),
        For::Namespace(target) if args.foreground => in_foreground(args, target, files),
        For::Namespace(target) => match background::enter().map_err(LifeError::Background)? {
            Side::Caller(caller) => wait_for_daemon(caller, files.pid),
            Side::Daemon(daemon) => {
                Ok(daemon.live("pasta", |daemon| as_daemon(args, target, files, daemon)))
            }
        },
    }
}

fn with_program(
    args: Args,
    program: Program,
    own_users: bool,
    mut files: Files,
) -> Result<ExitCode, LifeError> {
    files.start_log(Log::to_stderr)?;
    let guest = Guest::start(program, own_users, args.runas.unwrap_or_default())?;
    let config = args.config(TargetName::Process(guest.process()), true)?;
    start::run(config, || {
        files.write_pid()?;
        guest.release()
    })?;
    // Without one it was SIGTERM that ended this process, and now ends the program.
    Ok(guest.exit_code().map_or(ExitCode::SUCCESS, ExitCode::from))
}

fn in_foreground(args: Args, target: TargetName, mut files: Files) -> Result<ExitCode, LifeError> {
    files.start_log(Log::to_stderr)?;
    start::run(args.config(target, false)?, || files.write_pid())?;
    Ok(ExitCode::SUCCESS)
}

/// The process that was called: it waits for its copy.
fn wait_for_daemon(caller: Caller, pid_file: Option<PidFile>) -> Result<ExitCode, LifeError> {
    let daemon = match caller.wait() {
        Ok(daemon) => daemon,
        // It has said why.
        Err(Some(code)) => return Ok(ExitCode::from(code)),
        Err(None) => return Err(LifeError::DaemonKilled),
    };
    if let Some(file) = pid_file {
        file.write(daemon).inspect_err(|_| {
            // Nobody else would find it. It may have ended already.
            let _ = kill_process(daemon, Signal::TERM);
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The copy's life.
fn as_daemon(
    args: Args,
    target: TargetName,
    mut files: Files,
    daemon: Daemon,
) -> Result<(), LifeError> {
    files.pid = None;
    files.start_log(|| Log::to_caller(daemon.words.clone(), "pasta"))?;
    Ok(start::run(args.config(target, false)?, || {
        daemon.announce()
    })?)
}

/// What was made with the caller's rights.
struct Files {
    pid: Option<PidFile>,
    log: Option<LogFile>,
    /// Of the log file.
    title: String,
    filter: Filter,
}

impl Files {
    /// To be called in the process that stays. Without a log file the log is `otherwise`.
    fn start_log(&mut self, otherwise: impl FnOnce() -> Log) -> Result<(), LifeError> {
        let log = match self.log.take() {
            Some(mut file) => {
                let process = getpid().as_raw_nonzero();
                file.begin(&format!("{} ({process})", self.title))?;
                Log::to_file(file)
            }
            None => otherwise(),
        };
        log.start(&self.filter);
        Ok(())
    }

    fn write_pid(self) -> io::Result<()> {
        match self.pid {
            Some(file) => file.write(getpid()).map_err(io::Error::other),
            None => Ok(()),
        }
    }
}
