//! What a network's coracle-net is told while it runs, by its API socket.

use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use portfwd::publish::Listener;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

/// Why it has not done what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("the network helper does not answer: {0}")]
    Silent(#[from] io::Error),
    #[error("the network helper has refused: {0}")]
    Refused(String),
}

/// An answer takes as long as a few system calls.
const PATIENCE: Duration = Duration::from_secs(5);
/// No answer to what is asked here is longer.
const ANSWER_LEN_MAX: u64 = 4096;

/// A name, with who may see it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    /// Subnets; only who asks from one of them sees the name.
    pub networks: Vec<String>,
}

/// Adds a name, and returns its number.
pub fn add_name(api: &Path, name: &Name) -> Result<u64, ApiError> {
    let arguments =
        json!({"name": name.name, "addresses": name.addresses, "networks": name.networks});
    number(ask(api, "add_name", arguments, None)?)
}

pub fn remove_name(api: &Path, id: u64) -> Result<(), ApiError> {
    ask(api, "remove_name", json!({ "id": id }), None).map(drop)
}

/// Publishes a port that is bound already at `guest`, and returns its number.
pub fn publish(api: &Path, listener: &Listener, guest: IpAddr) -> Result<u64, ApiError> {
    let arguments = json!({
        "proto": listener.protocol.to_string(),
        "host_addr": listener.host.ip(), "host_port": listener.host.port(),
        "guest_addr": guest, "guest_port": listener.guest_port,
    });
    number(ask(
        api,
        "add_hostfwd",
        arguments,
        Some(listener.socket.as_fd()),
    )?)
}

pub fn withdraw(api: &Path, id: u64) -> Result<(), ApiError> {
    ask(api, "remove_hostfwd", json!({ "id": id }), None).map(drop)
}

fn number(answer: Value) -> Result<u64, ApiError> {
    let id = answer["id"].as_u64();
    id.ok_or_else(|| ApiError::Refused(format!("{answer} is no number")))
}

/// What the answer returns.
fn ask(
    api: &Path,
    execute: &str,
    arguments: Value,
    socket: Option<BorrowedFd>,
) -> Result<Value, ApiError> {
    let mut stream = UnixStream::connect(api)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = json!({"execute": execute, "arguments": arguments}).to_string();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let sockets = socket.map(|socket| [socket]);
    if let Some(sockets) = &sockets {
        control.push(SendAncillaryMessage::ScmRights(sockets));
    }
    // Shorter than what a socket takes at once.
    let parts = [IoSlice::new(request.as_bytes())];
    sendmsg(&stream, &parts, &mut control, SendFlags::NOSIGNAL).map_err(io::Error::from)?;
    let mut answer = Vec::new();
    (&mut stream)
        .take(ANSWER_LEN_MAX)
        .read_to_end(&mut answer)?;
    let answer: Value = serde_json::from_slice(&answer).map_err(io::Error::from)?;
    match answer.get("return") {
        Some(value) => Ok(value.clone()),
        None => Err(ApiError::Refused(answer["error"]["desc"].to_string())),
    }
}
