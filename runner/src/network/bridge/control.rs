//! How a command has a running container put into a network or taken out: a socket of the
//! container's monitor, in the container's run directory.
//!
//! A connection is one change and its answer. The container itself cannot reach the socket: of the
//! directory it has single files.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Attachment;
use crate::failure::{Explained, Failure};
use crate::process::channel::{self, Channel, ChannelError};

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
/// Commands that wait to be taken.
const BACKLOG: i32 = 8;
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
        let socket = channel::listen(&path, BACKLOG)?;
        Ok(Self { socket, path })
    }

    /// The next change that somebody asks for, if there is one.
    pub fn next(&self) -> Option<(Change, Asker)> {
        loop {
            let asker = Asker(channel::accept(&self.socket).ok()?);
            if let Ok(true) = asker.0.has_news_within(HEARD_WITHIN)
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
    let monitor: Channel<Change, Answer> =
        Channel::connect(&path).map_err(|source| ControlError::Reach { path, source })?;
    monitor.send(change, &[])?;
    if !monitor.has_news_within(PATIENCE)? {
        return Err(ControlError::Silent);
    }
    match monitor.receive()? {
        Some((Answer::Done, _)) => Ok(()),
        Some((Answer::Failed(failure), _)) => Err(ControlError::Refused(failure)),
        None => Err(ControlError::Silent),
    }
}
