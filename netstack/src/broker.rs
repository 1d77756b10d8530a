//! The process that opens host ports while the helper is at work.
//!
//! The helper may not listen, and has not its caller's rights any more (`sandbox`). So it asks this
//! process, which was forked with them before the helper joined a namespace: it binds the one
//! socket that is named, hands it over, and keeps nothing. All that is left to it is opening
//! sockets for IP, and CAP_NET_BIND_SERVICE if its caller had that: who may bind a low port may
//! still do so. What the helper can gain by it is what a caller lets it do anyway: listen.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use libc::c_long;
use nix::sys::signal::SigSet;
use portfwd::Endpoint;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tracing::warn;

use crate::{descriptors, sandbox, sys};

/// What the broker calls, for its sandbox; `socket` for IP besides.
pub const SYSTEM_CALLS: &[c_long] = &[
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
];

/// The helper's hold on its broker, which ends when this is dropped.
#[derive(Debug)]
pub struct Broker(OwnedFd);

/// Why a port was not opened.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// In the words of portfwd's `BindError`.
    #[error("{0}")]
    Bind(String),
    #[error("the process that opens ports does not answer: {0}")]
    Silent(#[from] io::Error),
}

impl Broker {
    /// Starts the process, while this one has a single thread.
    pub fn start() -> io::Result<Self> {
        let (ours, theirs) = descriptors::message_pair()?;
        sys::fork(|| live(theirs.as_fd()))?;
        Ok(Self(ours))
    }

    /// Opens a socket at `endpoint`. Waits for the answer, which takes as long as a few system
    /// calls.
    pub fn open(&self, endpoint: &Endpoint) -> Result<OwnedFd, BrokerError> {
        send(self.0.as_fd(), &endpoint.to_string(), None)?;
        let (text, socket) = receive(self.0.as_fd())?;
        match socket {
            Some(socket) => Ok(socket),
            None if text.is_empty() => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            None => Err(BrokerError::Bind(text)),
        }
    }
}

/// An endpoint, or why it could not be opened.
const MAX_MESSAGE: usize = 512;

/// The broker's whole life.
fn live(helper: BorrowedFd<'_>) {
    sys::close_descriptors(3, helper);
    let _ = SigSet::all().thread_block();
    let _ = rustix::thread::set_name(c"coracle-net-pub");
    if let Err(error) = serve(helper) {
        warn!("no more ports can be opened: {error}");
    }
}

/// Answers the helper until it has ended.
fn serve(helper: BorrowedFd<'_>) -> io::Result<()> {
    sandbox::confine_broker(SYSTEM_CALLS).map_err(io::Error::other)?;
    loop {
        let (endpoint, _) = receive(helper)?;
        if endpoint.is_empty() {
            return Ok(());
        }
        match open(&endpoint) {
            Ok(socket) => send(helper, "1", Some(socket.as_fd()))?,
            Err(why) => send(helper, &why, None)?,
        }
    }
}

fn open(text: &str) -> Result<OwnedFd, String> {
    let endpoint: Endpoint = text.parse().map_err(|error| format!("{text}: {error}"))?;
    endpoint.listen().map_err(|error| error.to_string())
}

fn send(to: BorrowedFd<'_>, text: &str, socket: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let len = text.len().min(MAX_MESSAGE);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let sockets = socket.map(|socket| [socket]);
    if let Some(sockets) = &sockets {
        control.push(SendAncillaryMessage::ScmRights(sockets));
    }
    let text = [IoSlice::new(&text.as_bytes()[..len])];
    rustix::net::sendmsg(to, &text, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The next message, empty at the end, and the socket that came with it.
fn receive(from: BorrowedFd<'_>) -> io::Result<(String, Option<OwnedFd>)> {
    let mut text = [0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut slices = [IoSliceMut::new(&mut text)];
        rustix::net::recvmsg(from, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let socket = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
        _ => None,
    });
    let text = String::from_utf8_lossy(&text[..received.bytes]).into_owned();
    Ok((text, socket))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::testing::in_namespaces;

    #[test]
    fn ports_are_opened_and_clashes_told() {
        in_namespaces(module_path!(), "ports_are_opened_and_clashes_told", || {
            let broker = Broker::start().unwrap();
            let open = |text: &str| broker.open(&text.parse().unwrap());
            let tcp = "tcp 0.0.0.0:8080";
            let listener = open(tcp).unwrap();
            let bound = rustix::net::getsockname(&listener).unwrap();
            assert_eq!(SocketAddr::try_from(bound).unwrap().port(), 8080);
            match open(tcp) {
                Err(BrokerError::Bind(text)) => assert!(text.contains("in use"), "{text}"),
                other => panic!("{other:?}"),
            }
            drop(listener);
            // The broker has kept nothing of it.
            open(tcp).unwrap();
            open("udp [::]:53").unwrap();
            open("udp 0.0.0.0:53 lo").unwrap();
            assert!(open("udp 0.0.0.0:54 nosuch").is_err());
        });
    }
}
