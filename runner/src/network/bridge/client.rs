//! A monitor's way to the holder, which is started where there is none.
//!
//! `RUN/networks` has the holder's socket. Whoever connects holds the lock on that directory, and
//! so does a holder that ends: nobody is connected to one that is about to go.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use netstack::logging::Filter;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::messages::{FromHolder, ToHolder};
use crate::failure::{Explained, Failure};
use crate::process::channel::{self, Channel, ChannelError};
use crate::process::selfexec::{self, NETWORKS_ROLE};
use crate::process::task::{self, TaskError};
use crate::state::{Dirs, lock_fleeting_directory};

/// What a holder is told when it is started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    pub dirs: Dirs,
    /// How much it logs, and what it starts.
    pub filter: Filter,
}

#[derive(Debug, thiserror::Error)]
pub enum HolderError {
    #[error("cannot {action} {}: {source}", path.display())]
    Place {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot start the holder of networks: {source}")]
    Start { source: io::Error },
    #[error(transparent)]
    Task(#[from] TaskError),
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("the holder of networks was killed")]
    Killed,
    #[error("the holder of networks does not answer")]
    Silent,
    /// What it has said.
    #[error("{0}")]
    Refused(Failure),
}

impl Explained for HolderError {}

/// How long the holder may take for an answer: it starts a coracle-net at most.
const PATIENCE: Duration = Duration::from_secs(20);
/// Who is not served at once waits here.
const BACKLOG: i32 = 128;
const SOCKET: &str = "holder.sock";

/// Where the holder of a user's networks keeps its files.
pub fn directory(dirs: &Dirs) -> PathBuf {
    dirs.run.join("networks")
}

pub fn socket_path(directory: &Path) -> PathBuf {
    directory.join(SOCKET)
}

/// A connection to the holder.
#[derive(Debug)]
pub struct Client(Channel<ToHolder, FromHolder>);

impl Client {
    /// Connects to the holder, and starts one where there is none.
    pub fn connect(dirs: &Dirs, filter: &Filter) -> Result<Self, HolderError> {
        let directory = directory(dirs);
        let _lock = lock(&directory)?;
        let path = socket_path(&directory);
        let failed = |action| {
            let path = path.clone();
            move |source: io::Error| HolderError::Place {
                action,
                path,
                source,
            }
        };
        match Channel::connect(&path) {
            Ok(channel) => return Ok(Self(channel)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
                ) => {}
            Err(error) => return Err(failed("connect to")(error)),
        }
        let listener = channel::listen(&path, BACKLOG).map_err(failed("listen at"))?;
        let job = Job {
            dirs: dirs.clone(),
            filter: filter.clone(),
        };
        start(&job, listener)?;
        let channel = Channel::connect(&path).map_err(failed("connect to"))?;
        Ok(Self(channel))
    }

    /// Asks for something, with descriptors, and waits for the answer.
    pub fn ask(
        &self,
        message: &ToHolder,
        descriptors: &[std::os::fd::BorrowedFd],
    ) -> Result<FromHolder, HolderError> {
        match self.0.send(message, descriptors) {
            Err(error) if error.is_hang_up() => return Err(HolderError::Killed),
            sent => sent?,
        }
        if !self.0.has_news_within(PATIENCE)? {
            return Err(HolderError::Silent);
        }
        match self.0.receive()? {
            None => Err(HolderError::Killed),
            Some((FromHolder::Failed(failure), _)) => Err(HolderError::Refused(failure)),
            Some((answer, _)) => Ok(answer),
        }
    }
}

impl AsFd for Client {
    /// Readable when the holder has gone: it says nothing unasked.
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Locks the holder's directory, which is made where it is missing. A holder takes it away when it
/// ends.
fn lock(directory: &Path) -> Result<File, HolderError> {
    let failed = |(action, source)| HolderError::Place {
        action,
        path: directory.to_owned(),
        source,
    };
    let lock = lock_fleeting_directory(directory, FlockOperation::LockExclusive);
    Ok(lock.map_err(failed)?.expect("it was waited for"))
}

/// Executes the holder, which listens at `listener`.
fn start(job: &Job, listener: OwnedFd) -> Result<(), HolderError> {
    let task = task::write("coracle-networks", job)?;
    let failed = |source| HolderError::Start { source };
    let mut executed = selfexec::command(NETWORKS_ROLE)
        .stdin(listener)
        .stdout(task)
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    // It has started the process that stays.
    executed.wait().map_err(failed)?;
    Ok(())
}
