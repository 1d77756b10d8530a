//! One-way typed messages between the processes of a container, with descriptors attached where
//! needed.
//!
//! A [`pair`] is a SOCK_SEQPACKET socket pair whose two ends each know what they send and what they
//! receive. Both ends are close-on-exec: a program that takes over one end's process hangs up,
//! which the other end reads as end of stream. That is how a successful exec is told from a failed
//! one, and how the death of a process is noticed without polling.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    accept_with, bind, recvmsg, sendmsg, socket_with, socketpair, sockopt::socket_peercred,
};
use rustix::process::geteuid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::failure::Explained;
use crate::poll;

/// Longest message in bytes. The longest sent is a failure that quotes a path and a helper's words.
const MESSAGE_MAX: usize = 32 * 1024;
/// Descriptors per message. The kernel takes 253, `unix(7)`.
pub const DESCRIPTORS_MAX: usize = 64;
const ANCILLARY_MAX: usize = rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX));

/// One end: sends `Tx`, receives `Rx`.
#[derive(Debug)]
pub struct Channel<Tx, Rx> {
    socket: OwnedFd,
    messages: PhantomData<fn(Tx) -> Rx>,
}

/// The message type of a direction that is never used.
#[derive(Debug, Serialize, Deserialize)]
pub enum Never {}

#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("cannot make a channel between the container's processes: {source}")]
    Pair { source: io::Error },
    #[error("cannot send a message to another of the container's processes: {source}")]
    Send { source: io::Error },
    #[error("cannot receive a message from another of the container's processes: {source}")]
    Receive { source: io::Error },
}

impl Explained for ChannelError {}

impl ChannelError {
    /// Whether the peer has gone.
    pub fn is_hang_up(&self) -> bool {
        matches!(self, Self::Send { source } if source.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Two ends that talk to each other.
#[expect(
    clippy::type_complexity,
    reason = "each end tells what the other is told"
)]
pub fn pair<A, B>() -> Result<(Channel<A, B>, Channel<B, A>), ChannelError> {
    let (a, b) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| ChannelError::Pair {
        source: errno.into(),
    })?;
    Ok((Channel::from_socket(a), Channel::from_socket(b)))
}

impl<Tx: Serialize, Rx: DeserializeOwned> Channel<Tx, Rx> {
    /// Sends one message. A message is never split, and never waits for longer than the peer takes
    /// to read.
    ///
    /// # Errors
    /// [`ChannelError::is_hang_up`] when the peer has gone.
    pub fn send(&self, message: &Tx, descriptors: &[BorrowedFd]) -> Result<(), ChannelError> {
        self.try_send(message, descriptors)
            .map_err(|source| ChannelError::Send { source })
    }

    fn try_send(&self, message: &Tx, descriptors: &[BorrowedFd]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MESSAGE_MAX {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        // A bare unit variant still is a non-empty JSON text; an empty packet would read as end of
        // stream.
        debug_assert!(!bytes.is_empty());
        let mut space = [MaybeUninit::uninit(); ANCILLARY_MAX];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::from(io::ErrorKind::ArgumentListTooLong));
        }
        let parts = [IoSlice::new(&bytes)];
        sendmsg(&self.socket, &parts, &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Waits for one message. `None` when the peer has hung up.
    pub fn receive(&self) -> Result<Option<(Rx, Vec<OwnedFd>)>, ChannelError> {
        self.try_receive()
            .map_err(|source| ChannelError::Receive { source })
    }

    /// Whether there is something to receive, a hang-up included, within `limit`.
    pub fn has_news_within(&self, limit: Duration) -> Result<bool, ChannelError> {
        let news = poll::wait([Some((self.as_fd(), PollFlags::IN))], Some(limit));
        let news = news.map_err(|errno| ChannelError::Receive {
            source: errno.into(),
        })?;
        Ok(news.is_some())
    }

    fn try_receive(&self) -> io::Result<Option<(Rx, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; MESSAGE_MAX];
        let mut space = [MaybeUninit::uninit(); ANCILLARY_MAX];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = retry_on_intr(|| {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            recvmsg(
                &self.socket,
                &mut parts,
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        });
        let received = match received {
            // A peer that died with unread messages in its queue resets the connection: it is gone
            // all the same.
            Err(Errno::CONNRESET) => return Ok(None),
            other => other?,
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                descriptors.extend(some);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            // Some did not arrive: this process may open no more.
            return Err(Errno::MFILE.into());
        }
        match &bytes[..received.bytes] {
            [] => Ok(None),
            text => Ok(Some((serde_json::from_slice(text)?, descriptors))),
        }
    }
}

/// Where processes that know its path begin to talk. Makes a socket there, in place of one that was
/// left by a process that was killed. Nobody must be able to reach it but those who may talk.
/// `backlog` of them may wait to be taken.
pub fn listen(path: &Path, backlog: i32) -> io::Result<OwnedFd> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

/// The next one who has come to where a process [`listen`]s; nobody of another user.
pub fn accept<Tx, Rx>(listener: &OwnedFd) -> io::Result<Channel<Tx, Rx>> {
    let socket = accept_with(listener, SocketFlags::CLOEXEC)?;
    match socket_peercred(&socket)?.uid == geteuid() {
        true => Ok(Channel::from_socket(socket)),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

impl<Tx, Rx> Channel<Tx, Rx> {
    /// To a process that [`listen`]s.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self::from_socket(socket))
    }

    /// An end that this process was started with.
    pub fn from_socket(socket: OwnedFd) -> Self {
        Self {
            socket,
            messages: PhantomData,
        }
    }
}

impl<Tx, Rx> From<Channel<Tx, Rx>> for OwnedFd {
    fn from(channel: Channel<Tx, Rx>) -> Self {
        channel.socket
    }
}

impl<Tx, Rx> AsFd for Channel<Tx, Rx> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_with_their_descriptors_and_then_the_end() {
        let (here, there) = pair::<String, Never>().expect("a socket pair");
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        here.send(&"x".repeat(20_000), &[]).expect("a long message");
        here.send(&"with a pipe".into(), &[writer.as_fd()])
            .expect("a message with a descriptor");
        drop((here, writer));

        let (long, none) = there.receive().expect("received").expect("a message");
        assert_eq!((long.len(), none.len()), (20_000, 0));
        let (text, mut descriptors) = there.receive().expect("received").expect("a message");
        assert_eq!(text, "with a pipe");
        let writer = descriptors.pop().expect("the pipe's write end");
        rustix::io::write(&writer, b"!").expect("a byte");
        let mut byte = [0];
        assert_eq!(rustix::io::read(&reader, &mut byte), Ok(1));
        assert!(there.receive().expect("end of stream").is_none());
    }

    #[test]
    fn a_message_beyond_the_limit_is_refused_by_the_sender() {
        let (here, _there) = pair::<String, Never>().expect("a socket pair");
        assert!(here.send(&"x".repeat(MESSAGE_MAX), &[]).is_err());
    }
}
