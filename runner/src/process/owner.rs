//! A process that is root of a user namespace of its own, for work on files of sub-IDs, which
//! nobody may touch outside.
//!
//! It is this program, executed anew: a caller may have threads, and could not go on in a copy of
//! itself. The two talk over a channel, which the process has for its standard input:
//!
//! ```text
//! process -> caller   Made                   Done | Failed
//! caller  -> process       Job Descriptors*
//! ```
//! It makes the namespace; the caller gives that its IDs, and lets the process go on with its job.
//! Its death cannot pass for success, which is told.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, ExitCode, Stdio};

use rustix::process::Pid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::channel::{self, Channel, ChannelError, DESCRIPTORS_MAX};
use super::{selfexec, task};
use crate::isolation::idmap::IdMaps;
use crate::isolation::namespaces::{NamespaceError, become_root};
use crate::stdio::ProgramEnds;
use crate::sys::{self, NewNamespaces};

/// From the caller.
#[derive(Debug, Serialize, Deserialize)]
enum ToOwner {
    /// The namespace has its IDs. Attached is a file with the job; so many descriptors follow.
    Job { descriptors: usize },
    /// Some of them are attached.
    Descriptors,
}

/// From the process.
#[derive(Debug, Serialize, Deserialize)]
enum FromOwner {
    Made,
    Done,
    Failed(String),
}

type Caller = Channel<FromOwner, ToOwner>;
type Owner = Channel<ToOwner, FromOwner>;

/// Has the process of the role `role` do `job` with the IDs of `maps`, and waits for its end.
pub fn run(role: &str, job: &impl Serialize, maps: &IdMaps) -> Result<(), NamespaceError> {
    run_with(role, job, maps, |_| Ok(Vec::new()))
}

/// As [`run`], with descriptors, which `provide` opens: it is told the PID of a process that is in
/// the namespace, which has its IDs by then.
pub fn run_with<E: From<NamespaceError>>(
    role: &str,
    job: &impl Serialize,
    maps: &IdMaps,
    provide: impl FnOnce(Pid) -> Result<Vec<OwnedFd>, E>,
) -> Result<(), E> {
    let mut owner = ask(role, job, maps, provide)?;
    owner
        .wait()
        .map(drop)
        .map_err(|error| handshake(error).into())
}

/// As [`run`], for a process that stays when its job is done, and does not depend on this one.
pub fn start(role: &str, job: &impl Serialize, maps: &IdMaps) -> Result<(), NamespaceError> {
    ask(role, job, maps, |_| Ok(Vec::new())).map(drop)
}

/// Returns the process once its job is done.
fn ask<E: From<NamespaceError>>(
    role: &str,
    job: &impl Serialize,
    maps: &IdMaps,
    provide: impl FnOnce(Pid) -> Result<Vec<OwnedFd>, E>,
) -> Result<Child, E> {
    let (ours, theirs) = channel::pair::<ToOwner, FromOwner>().map_err(no_talk)?;
    let mut owner = selfexec::command(role)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()
        .map_err(|source| NamespaceError::Start { source })?;
    let said = converse(&ours, Pid::from_child(&owner), job, maps, provide);
    if let Ok(Some(FromOwner::Done)) = said {
        return Ok(owner);
    }
    if said.is_err() {
        // It waits for its IDs, or has ended.
        let _ = owner.kill();
    }
    owner.wait().map_err(handshake)?;
    Err(match said? {
        Some(FromOwner::Failed(message)) => NamespaceError::Told { message },
        _ => NamespaceError::Killed,
    }
    .into())
}

/// The caller's side. Returns the last word of the other.
fn converse<E: From<NamespaceError>>(
    owner: &Owner,
    pid: Pid,
    job: &impl Serialize,
    maps: &IdMaps,
    provide: impl FnOnce(Pid) -> Result<Vec<OwnedFd>, E>,
) -> Result<Option<FromOwner>, E> {
    let hear = || -> Result<Option<FromOwner>, NamespaceError> {
        let heard = owner.receive().map_err(no_talk)?;
        Ok(heard.map(|(word, _)| word))
    };
    match hear()? {
        Some(FromOwner::Made) => {}
        word => return Ok(word),
    }
    maps.write(pid).map_err(NamespaceError::from)?;
    let descriptors = provide(pid)?;
    let task = task::write("coracle-owner", job).map_err(no_talk)?;
    let first = ToOwner::Job {
        descriptors: descriptors.len(),
    };
    let tell =
        |word: &ToOwner, attached: &[BorrowedFd]| owner.send(word, attached).map_err(no_talk);
    tell(&first, &[task.as_fd()])?;
    for some in descriptors.chunks(DESCRIPTORS_MAX) {
        let some: Vec<_> = some.iter().map(OwnedFd::as_fd).collect();
        tell(&ToOwner::Descriptors, &some)?;
    }
    // Those of them that are ends of pipes are the other's alone from here on.
    drop(descriptors);
    Ok(hear()?)
}

fn handshake(source: io::Error) -> NamespaceError {
    NamespaceError::Handshake { source }
}

fn no_talk(error: impl std::error::Error + Send + Sync + 'static) -> NamespaceError {
    handshake(io::Error::other(error))
}

/// The process itself.
pub fn main<J: DeserializeOwned>(work: impl FnOnce(J) -> Result<(), String>) -> ExitCode {
    main_with(|job, _| work(job))
}

/// The process itself, where it is handed descriptors.
pub fn main_with<J: DeserializeOwned>(
    work: impl FnOnce(J, Vec<OwnedFd>) -> Result<(), String>,
) -> ExitCode {
    let Some(caller) = caller() else {
        return ExitCode::from(125);
    };
    let done = receive(&caller).and_then(|(job, descriptors)| work(job, descriptors));
    say(&caller, done.err());
    ExitCode::SUCCESS
}

/// The process itself, where it stays: `rest` comes after the job, with nothing of the caller's.
pub fn main_staying<J: DeserializeOwned, T>(
    work: impl FnOnce(J) -> Result<T, String>,
    rest: impl FnOnce(T),
) -> ExitCode {
    let Some(caller) = caller() else {
        return ExitCode::from(125);
    };
    let done = receive(&caller)
        .and_then(|(job, _)| work(job))
        .and_then(|done| {
            let streams = ProgramEnds::null().and_then(|null| null.install());
            streams.map_err(|error| format!("cannot let go of the caller's streams: {error}"))?;
            Ok(done)
        });
    match done {
        Ok(done) => {
            say(&caller, None);
            drop(caller);
            rest(done);
        }
        Err(error) => say(&caller, Some(error)),
    }
    ExitCode::SUCCESS
}

/// `None` for somebody who has typed the name of a role.
fn caller() -> Option<Caller> {
    selfexec::stdin_channel().map(Channel::from_socket)
}

/// The last word. Nobody listens where the caller has gone.
fn say(caller: &Caller, error: Option<String>) {
    /// So that it fits into a message, however it is written there.
    const LEN_MAX: usize = 4 * 1024;
    let word = match error {
        None => FromOwner::Done,
        Some(mut message) => {
            message.truncate(message.floor_char_boundary(LEN_MAX));
            FromOwner::Failed(message)
        }
    };
    let _ = caller.send(&word, &[]);
}

fn receive<J: DeserializeOwned>(caller: &Caller) -> Result<(J, Vec<OwnedFd>), String> {
    let gone = || "the caller has gone".to_owned();
    let failed = |error: ChannelError| no_talk(error).to_string();
    sys::unshare(NewNamespaces::USER).map_err(|error| NamespaceError::user(error).to_string())?;
    caller.send(&FromOwner::Made, &[]).map_err(failed)?;
    let Some((ToOwner::Job { descriptors: count }, mut task)) = caller.receive().map_err(failed)?
    else {
        return Err(gone());
    };
    let job = task::read(task.pop().ok_or_else(gone)?).map_err(|error| error.to_string())?;
    let mut descriptors = Vec::new();
    while descriptors.len() < count {
        let (_, some) = caller.receive().map_err(failed)?.ok_or_else(gone)?;
        descriptors.extend(some);
    }
    become_root().map_err(|errno| format!("cannot become the container's root: {errno}"))?;
    Ok((job, descriptors))
}
