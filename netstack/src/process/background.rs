//! Going to the background. The process that was called stays until its copy, which goes on as the
//! helper, is ready or has failed: its exit code says which of them. The copy has a session of its
//! own, the root directory as its working directory, and none of the caller's standard streams:
//! callers read them to their end, and processes that the copy forks must not keep them open
//! either. What it has to say until it is ready goes to a copy of the error output, which no other
//! process gets.

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::fcntl_dupfd_cloexec;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use tracing::error;

use crate::sys;

/// Which of the two processes one is in.
#[derive(Debug)]
pub enum Side {
    Caller(Caller),
    Daemon(Daemon),
}

/// The process that was called.
#[derive(Debug)]
pub struct Caller {
    daemon: Pid,
    ready: File,
}

/// The process that stays.
#[derive(Debug)]
pub struct Daemon {
    ready: OwnedFd,
    pub words: Words,
}

/// The caller's error output, until the daemon is ready.
#[derive(Clone, Debug)]
pub struct Words(Arc<Mutex<Option<File>>>);

/// Forks, while this process has a single thread.
pub fn enter() -> io::Result<Side> {
    let (ready, tell) = pipe_with(PipeFlags::CLOEXEC)?;
    if let Some(daemon) = sys::fork_here()? {
        return Ok(Side::Caller(Caller {
            daemon,
            ready: ready.into(),
        }));
    }
    rustix::process::setsid()?;
    // No mount is kept busy.
    rustix::process::chdir("/")?;
    let words = fcntl_dupfd_cloexec(io::stderr(), 3)?;
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    sys::replace_standard_streams(null.as_fd())?;
    let words = Words(Arc::new(Mutex::new(Some(words.into()))));
    Ok(Side::Daemon(Daemon { ready: tell, words }))
}

impl Caller {
    /// Waits until the daemon is ready, and returns its process; `Err` when it has ended instead,
    /// with its exit code unless it was killed.
    pub fn wait(mut self) -> Result<Pid, Option<u8>> {
        let mut byte = [0];
        if matches!(self.ready.read(&mut byte), Ok(1)) {
            return Ok(self.daemon);
        }
        let ended = waitid(WaitId::Pid(self.daemon), WaitIdOptions::EXITED);
        let code = ended.ok().flatten().and_then(|status| status.exit_status());
        Err(code.and_then(|code| u8::try_from(code).ok()))
    }
}

impl Daemon {
    /// Lives as `body` says. Why that fails is told to the caller, behind `name`, or to the log
    /// once that has gone.
    pub fn live<E: Display>(
        self,
        name: &str,
        body: impl FnOnce(Self) -> Result<(), E>,
    ) -> ExitCode {
        let words = self.words.clone();
        match body(self) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                if !words.say(format!("{name}: {error}\n").as_bytes()) {
                    error!("{error}");
                }
                ExitCode::FAILURE
            }
        }
    }

    /// Lets go of the caller's error output, and the process that was called end.
    ///
    /// EPIPE when it was killed meanwhile: nobody wants this one any more.
    pub fn announce(self) -> io::Result<()> {
        *self.words.lock() = None;
        File::from(self.ready).write_all(b"1")
    }
}

impl Words {
    /// Returns whether there is still somebody to say it to.
    pub fn say(&self, text: &[u8]) -> bool {
        let words = self.lock();
        // A caller who does not listen is still one.
        words
            .as_ref()
            .map(|mut words| words.write_all(text))
            .is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Option<File>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
