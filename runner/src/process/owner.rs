//! A process that is root of a user namespace of its own, for work on files of sub-IDs, which
//! nobody may touch outside.
//!
//! It is this program, executed anew: a caller may have threads, and could not go on in a copy of
//! itself. It makes the namespace and says so by [`MADE`]; the caller gives the namespace its IDs
//! and lets it go on, with one byte and the description of its job. Then it says [`DONE`], or what
//! is wrong, so that its death cannot pass for success.

use std::io::{self, Read, Write};
use std::process::{Child, ExitCode, Stdio};

use rustix::process::Pid;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::selfexec;
use crate::isolation::idmap::IdMaps;
use crate::isolation::namespaces::{NamespaceError, become_root};
use crate::stdio::ProgramEnds;
use crate::sys::{self, NewNamespaces};

const MADE: u8 = b'+';
const DONE: &str = "ok";

/// Has the process of the role `role` do `job` with the IDs of `maps`, and waits for its end.
pub fn run(role: &str, job: &impl Serialize, maps: &IdMaps) -> Result<(), NamespaceError> {
    ask(role, job, maps)?.wait().map(drop).map_err(handshake)
}

/// As [`run`], for a process that stays when its job is done, and does not depend on this one.
pub fn start(role: &str, job: &impl Serialize, maps: &IdMaps) -> Result<(), NamespaceError> {
    ask(role, job, maps).map(drop)
}

/// Returns the process once its job is done.
fn ask(role: &str, job: &impl Serialize, maps: &IdMaps) -> Result<Child, NamespaceError> {
    let job = serde_json::to_vec(job).expect("jobs have only strings, numbers and lists");
    let mut owner = selfexec::command(role)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|source| NamespaceError::Start { source })?;
    let said = converse(&mut owner, &job, maps);
    if let Ok(DONE) = said.as_deref() {
        return Ok(owner);
    }
    if said.is_err() {
        // It waits for its IDs, or has ended.
        let _ = owner.kill();
    }
    owner.wait().map_err(handshake)?;
    match said? {
        message if message.is_empty() => Err(NamespaceError::Killed),
        message => Err(NamespaceError::Told { message }),
    }
}

/// The caller's side. Returns the last word of the other.
fn converse(owner: &mut Child, job: &[u8], maps: &IdMaps) -> Result<String, NamespaceError> {
    let pid = Pid::from_child(owner);
    let (Some(mut tell), Some(mut told)) = (owner.stdin.take(), owner.stdout.take()) else {
        unreachable!("both are pipes");
    };
    let mut first = [0];
    if told.read(&mut first).map_err(handshake)? == 0 {
        return Ok(String::new());
    }
    let mut said = Vec::new();
    if first == [MADE] {
        maps.write(pid)?;
        tell.write_all(&[&[MADE], job].concat())
            .map_err(handshake)?;
        drop(tell);
    } else {
        said.extend(first);
    }
    told.read_to_end(&mut said).map_err(handshake)?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

fn handshake(source: io::Error) -> NamespaceError {
    NamespaceError::Handshake { source }
}

/// The process itself.
pub fn main<J: DeserializeOwned>(work: impl FnOnce(J) -> Result<(), String>) -> ExitCode {
    say(&receive().and_then(work));
    ExitCode::SUCCESS
}

/// The process itself, where it stays: `rest` comes after the job, with nothing of the caller's.
pub fn main_staying<J: DeserializeOwned, T>(
    work: impl FnOnce(J) -> Result<T, String>,
    rest: impl FnOnce(T),
) -> ExitCode {
    let done = receive().and_then(work).and_then(|done| {
        let streams = ProgramEnds::null();
        let streams = streams.map_err(|error| format!("cannot open the null device: {error}"))?;
        Ok((done, streams))
    });
    say(&done);
    if let Ok((done, streams)) = done {
        // The caller waits for the end of what is said. Cannot fail: all are open.
        let _ = streams.install();
        rest(done);
    }
    ExitCode::SUCCESS
}

/// The last word. Nobody listens where the caller has gone.
fn say<T>(result: &Result<T, String>) {
    let word = match result {
        Ok(_) => DONE,
        Err(message) => message,
    };
    let mut stdout = io::stdout();
    let _ = stdout
        .write_all(word.as_bytes())
        .and_then(|()| stdout.flush());
}

fn receive<J: DeserializeOwned>() -> Result<J, String> {
    sys::unshare(NewNamespaces::USER).map_err(|error| NamespaceError::user(error).to_string())?;
    let mut job = Vec::new();
    let mut stdout = io::stdout();
    stdout
        .write_all(&[MADE])
        .and_then(|()| stdout.flush())
        .and_then(|()| io::stdin().read_to_end(&mut job))
        .map_err(|error| handshake(error).to_string())?;
    let Some((_, job)) = job.split_first() else {
        return Err("the caller has gone".to_owned());
    };
    become_root().map_err(|errno| format!("cannot become the container's root: {errno}"))?;
    serde_json::from_slice(job).map_err(|error| error.to_string())
}
