//! How a command has a running container put into a network or taken out: a socket of the
//! container's monitor, in the container's run directory.
//!
//! A connection is one change and its answer. The container itself cannot reach the socket: of the
//! directory it has single files.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::net::{SocketAddrUnix, SocketFlags, accept_with, bind, connect, listen};
use serde::{Deserialize, Serialize};

use super::Attachment;
use super::client::socket;
use crate::failure::{Explained, Failure};
use crate::poll;
use crate::process::channel::{Channel, ChannelError};

/// What is asked of a monitor.
#[derive(Debug, Serialize, Deserialize)]
pub enum Change {
    Connect(Attachment),
    /// Leave the network of this name.
    Disconnect(String),
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Done,
    Failed(Failure),
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("cannot reach the container's monitor by {}: {source}", path.display())]
    Reach { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("the container's monitor does not answer")]
    Silent,
    /// What it has said.
    #[error("{0}")]
    Refused(Failure),
}

impl Explained for ControlError {}

const SOCKET: &str = "networks.sock";
/// How long a monitor may take: it may have to wait for a holder of networks.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a command may take to say what it wants.
const HEARD_WITHIN: Duration = Duration::from_secs(1);

/// Where a monitor listens.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
}

/// A command that waits for an answer.
#[derive(Debug)]
pub struct Asker(Channel<Answer, Change>);

impl Listener {
    /// Listens in the container's run directory.
    pub fn open(run: &Path) -> io::Result<Self> {
        let path = run.join(SOCKET);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        bind(&socket, &SocketAddrUnix::new(&path)?)?;
        listen(&socket, 8)?;
        Ok(Self { socket, path })
    }

    /// The next change that somebody asks for, if there is one.
    pub fn next(&self) -> Option<(Change, Asker)> {
        loop {
            let asker = accept_with(&self.socket, SocketFlags::CLOEXEC).ok()?;
            let asker = Asker(Channel::from_socket(asker));
            let heard = [Some((asker.0.as_fd(), PollFlags::IN))];
            if let Ok(Some(_)) = poll::wait(heard, Some(HEARD_WITHIN))
                && let Ok(Some((change, _))) = asker.0.receive()
            {
                return Some((change, asker));
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Fails when the run directory has gone with the session.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Asker {
    /// Nobody may be there any more.
    pub fn answer(self, result: Result<(), Failure>) {
        let answer = match result {
            Ok(()) => Answer::Done,
            Err(failure) => Answer::Failed(failure),
        };
        let _ = self.0.send(&answer, &[]);
    }
}

/// Has the monitor of the container whose run directory this is make a change, and waits for it.
pub fn ask(run: &Path, change: &Change) -> Result<(), ControlError> {
    let path = run.join(SOCKET);
    let reach = || -> io::Result<OwnedFd> {
        let socket = socket(SocketFlags::CLOEXEC)?;
        connect(&socket, &SocketAddrUnix::new(&path)?)?;
        Ok(socket)
    };
    let socket = reach().map_err(|source| ControlError::Reach {
        path: path.clone(),
        source,
    })?;
    let monitor = Channel::<Change, Answer>::from_socket(socket);
    monitor.send(change, &[])?;
    let answered = [Some((monitor.as_fd(), PollFlags::IN))];
    match poll::wait(answered, Some(PATIENCE)) {
        Ok(Some(_)) => {}
        Ok(None) => return Err(ControlError::Silent),
        Err(errno) => {
            let source = errno.into();
            return Err(ChannelError::Receive { source }.into());
        }
    }
    match monitor.receive()? {
        Some((Answer::Done, _)) => Ok(()),
        Some((Answer::Failed(failure), _)) => Err(ControlError::Refused(failure)),
        None => Err(ControlError::Silent),
    }
}
