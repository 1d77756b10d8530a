//! The caller's side of the processes that the engine executes beside containers: the monitor of a
//! container, and the launcher of a command that is added to one.
//!
//! Both are this program in a role of its own, started by a process that ends at once. So they are
//! nobody's children: the caller, which may have threads and may live longer, has nothing to reap.
//! Both tell in the words of [`FromMonitor`] how the program fares that they start.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::event::PollFlags;
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use serde::Serialize;
use tracing::debug;

use super::EngineError;
use super::processes::wait_for_end;
use crate::poll;
use crate::process::channel::Channel;
use crate::process::messages::FromMonitor;
use crate::process::selfexec::{self, LAUNCHER_ROLE, MONITOR_ROLE};

/// What is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Monitor,
    Launcher,
}

impl Role {
    /// Executes it for the container `name`, with `channel` for its standard input. The process
    /// that this returns ends as soon as it has started the one that stays, or has been hung up on.
    pub fn execute(self, name: &str, channel: OwnedFd) -> Result<Child, EngineError> {
        let role = match self {
            Self::Monitor => MONITOR_ROLE,
            Self::Launcher => LAUNCHER_ROLE,
        };
        let execute = || -> io::Result<Child> {
            // A signal to the caller's whole process group, as of a Ctrl-C, is none to this
            // process, which takes all signals for itself from its first instruction.
            let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
            let executed = selfexec::command(role)
                .arg(name)
                .stdin(channel)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            mask.thread_set_mask()?;
            executed
        };
        execute().map_err(|source| match self {
            Self::Monitor => EngineError::Monitor { source },
            Self::Launcher => EngineError::Launcher { source },
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Monitor => "monitor",
            Self::Launcher => "launcher",
        }
    }

    fn killed(self) -> EngineError {
        match self {
            Self::Monitor => EngineError::MonitorKilled,
            Self::Launcher => EngineError::LauncherKilled,
        }
    }
}

/// The talk with a monitor or a launcher, which is told `T`, from its birth on. Dropped, it is a
/// hang-up.
#[derive(Debug)]
pub(super) struct Talk<T> {
    role: Role,
    events: Channel<T, FromMonitor>,
    process: Orphan,
    /// The exit code, where it came before the news of the start.
    ended: Option<i32>,
    /// The same, of a container that is started again.
    restarting: Option<i32>,
}

impl<T: Serialize> Talk<T> {
    /// Begins with the news of its birth. One that could not be born has said why.
    pub fn begin(role: Role, events: Channel<T, FromMonitor>) -> Result<Self, EngineError> {
        let process = match events.receive()? {
            Some((FromMonitor::Born(pid), mut pidfd)) => {
                debug!(pid, "the {} was started", role.name());
                pidfd.pop().map(Orphan)
            }
            Some((FromMonitor::Failed(failure), _)) => return Err(EngineError::Start(failure)),
            _ => None,
        };
        Ok(Self {
            role,
            events,
            process: process.ok_or_else(|| role.killed())?,
            ended: None,
            restarting: None,
        })
    }

    /// Waits until the program runs, at the longest until `limit`. One that ran for a moment only
    /// has run. `terminal` becomes the master of its terminal, if it has one.
    pub fn started(
        &mut self,
        limit: Option<Instant>,
        terminal: &mut Option<OwnedFd>,
        warn: &mut dyn FnMut(&str),
    ) -> Result<(), EngineError> {
        loop {
            let left = limit.map(|limit| limit.saturating_duration_since(Instant::now()));
            let news = poll::wait([Some((self.events.as_fd(), PollFlags::IN))], left);
            if news
                .map_err(|errno| EngineError::wait(errno.into()))?
                .is_none()
            {
                return Err(EngineError::StartOverdue);
            }
            match self.events.receive()? {
                Some((FromMonitor::Warning(text), _)) => warn(&text),
                Some((FromMonitor::Terminal, mut master)) => *terminal = master.pop(),
                Some((FromMonitor::Born(_) | FromMonitor::Input, _)) => {}
                Some((FromMonitor::Started, _)) => return Ok(()),
                Some((FromMonitor::Exited(code), _)) => {
                    self.ended = Some(code);
                    return Ok(());
                }
                Some((FromMonitor::Restarting(code), _)) => {
                    self.restarting = Some(code);
                    return Ok(());
                }
                Some((FromMonitor::Failed(failure), _)) => return Err(EngineError::Start(failure)),
                None => return Err(self.role.killed()),
            }
        }
    }

    /// Waits until a program that has started ends, and whoever told of it, unless it is started
    /// again. Returns the exit code.
    pub fn ended(self) -> Result<i32, EngineError> {
        if let Some(code) = self.restarting {
            return Ok(code);
        }
        let code = match self.ended {
            Some(code) => Ok(code),
            None => match self.events.receive()? {
                Some((FromMonitor::Restarting(code), _)) => return Ok(code),
                Some((FromMonitor::Exited(code), _)) => Ok(code),
                Some((FromMonitor::Failed(failure), _)) => Err(EngineError::Start(failure)),
                _ => Err(self.role.killed()),
            },
        };
        self.process.wait();
        code
    }

    /// For whoever serves the caller's terminal and signals meanwhile.
    pub fn into_parts(self) -> (Channel<T, FromMonitor>, Orphan) {
        (self.events, self.process)
    }
}

/// A process that is nobody's child, or that of whoever adopts orphans.
#[derive(Debug)]
pub(crate) struct Orphan(OwnedFd);

impl Orphan {
    /// Waits for its end.
    pub fn wait(&self) {
        wait_for_end(&self.0, None);
        // An orphan's, where this process adopts orphans. Nobody else's has to be reaped.
        let _ = waitid(WaitId::PidFd(self.0.as_fd()), WaitIdOptions::EXITED);
    }

    /// Waits for its end, and kills it if that takes too long.
    pub fn end_within(&self, limit: Duration) {
        if !wait_for_end(&self.0, Some(limit)) {
            // Fails only when it has ended.
            let _ = pidfd_send_signal(&self.0, Signal::KILL);
        }
        self.wait();
    }
}
