//! The ends of a helper's working life: the word that it is ready, and everything that tells it to
//! stop.
//!
//! All reasons to stop are gathered behind one descriptor, an epoll instance that is itself polled
//! by the driver: readable means to ask [`ExitWatch::is_over`], and to stop with exit code 0 if so.
//! The reasons are SIGTERM, SIGINT and SIGQUIT, the end of the process whose namespace was named,
//! the end of the mount at the path that was, and a hang-up of the descriptor that `--exit-fd`
//! names.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{Timespec, epoll};
use tracing::debug;

use crate::guest::NamespaceMount;
use crate::sys;

/// Which of SIGTERM, SIGINT and SIGQUIT end the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeededSignals {
    All,
    /// Those that the caller ignores stay so: whoever ends this process by a descriptor, and serves
    /// something that is still to end when a shutdown signals every process at once, asks for it in
    /// this way.
    AllNotIgnored,
    /// SIGTERM alone. Those that a terminal sends are for the command that is in its foreground
    /// together with this process.
    NotTerminals,
}

impl HeededSignals {
    /// For a process that is ended by the descriptor `exit_fd`, if it has one.
    pub fn beside(exit_fd: Option<RawFd>) -> Self {
        match exit_fd {
            Some(_) => Self::AllNotIgnored,
            None => Self::All,
        }
    }
}

/// Readable once it may be time to stop.
#[derive(Debug)]
pub struct ExitWatch {
    epoll: OwnedFd,
    mount: Option<NamespaceMount>,
    /// Held open: a descriptor leaves its epoll instance when it is closed.
    _watched: Vec<OwnedFd>,
    _signals: SignalFd,
}

impl ExitWatch {
    /// Takes over the ending signals of the process. To be called before any thread is started:
    /// threads inherit which signals are blocked, and one that blocks none would be ended by the
    /// signal.
    ///
    pub fn new(heeded: HeededSignals) -> io::Result<Self> {
        let terminals = [Signal::SIGINT, Signal::SIGQUIT];
        let mut set: SigSet = terminals.into_iter().chain([Signal::SIGTERM]).collect();
        set.thread_block()?;
        match heeded {
            HeededSignals::All => {}
            HeededSignals::AllNotIgnored => {
                set = set
                    .iter()
                    .filter(|signal| !sys::is_ignored(*signal))
                    .collect();
            }
            HeededSignals::NotTerminals => {
                terminals.into_iter().for_each(|signal| set.remove(signal))
            }
        }
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &signals, OVER, epoll::EventFlags::IN)?;
        Ok(Self {
            epoll,
            mount: None,
            _watched: Vec::new(),
            _signals: signals,
        })
    }

    /// Stop when this process ends.
    pub fn watch_process(&mut self, pidfd: OwnedFd) -> io::Result<()> {
        self.watch(pidfd, epoll::EventFlags::IN)
    }

    /// Stop when the other end of `fd` is closed. What is written to it does not matter.
    pub fn watch_hang_up(&mut self, fd: OwnedFd) -> io::Result<()> {
        // Hang-up and error are always reported.
        self.watch(fd, epoll::EventFlags::RDHUP)
    }

    /// Stop when the namespace is no longer mounted there.
    pub fn watch_mount(&mut self, mount: NamespaceMount) -> io::Result<()> {
        epoll::add(&self.epoll, &mount, MOUNTS_CHANGED, epoll::EventFlags::PRI)?;
        self.mount = Some(mount);
        Ok(())
    }

    /// Whether it is time to stop. To be asked when the descriptor is readable, and once when it is
    /// watched: that mounts have changed is told only once, to whoever polls first.
    pub fn is_over(&mut self) -> bool {
        let mut events = Vec::with_capacity(8);
        let space = rustix::buffer::spare_capacity(&mut events);
        // What a signal interrupts is asked again: the descriptor stays readable.
        let _ = epoll::wait(&self.epoll, space, Some(&Timespec::default()));
        let over = |event: &epoll::Event| {
            let what = event.data;
            what.u64() == OVER.u64()
        };
        events.iter().any(over) || self.mount.as_mut().is_some_and(|mount| !mount.is_there())
    }

    fn watch(&mut self, fd: OwnedFd, events: epoll::EventFlags) -> io::Result<()> {
        epoll::add(&self.epoll, &fd, OVER, events)?;
        self._watched.push(fd);
        Ok(())
    }
}

impl AsFd for ExitWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// What events of the inner epoll stand for.
const OVER: epoll::EventData = epoll::EventData::new_u64(0);
const MOUNTS_CHANGED: epoll::EventData = epoll::EventData::new_u64(1);

/// The descriptor of `--ready-fd`.
#[derive(Debug)]
pub struct ReadySignal(OwnedFd);

impl ReadySignal {
    /// Takes the descriptor over.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Tells the waiting process that the network is up and the ports are bound: writes `1` and
    /// closes.
    pub fn send(self) {
        if let Err(error) = File::from(self.0).write_all(b"1") {
            // Nobody waits any more. If that is a reason to stop, the exit descriptor says so.
            debug!("cannot write to the ready descriptor: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::{Command, Stdio};

    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::pipe::{PipeFlags, pipe_with};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    const AT_ONCE: Option<&Timespec> = Some(&Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    });

    fn is_over(watch: &mut ExitWatch, timeout: Option<&Timespec>) -> bool {
        let mut polled = [PollFd::new(watch, PollFlags::IN)];
        poll(&mut polled, timeout).unwrap() == 1 && watch.is_over()
    }

    #[test]
    fn a_hang_up_ends_it_and_a_write_does_not() {
        let mut watch = ExitWatch::new(HeededSignals::All).unwrap();
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        watch.watch_hang_up(read).unwrap();
        rustix::io::write(&write, b"x").unwrap();
        assert!(!is_over(&mut watch, AT_ONCE));
        drop(write);
        assert!(is_over(&mut watch, None));
    }

    #[test]
    fn the_end_of_the_process_ends_it() {
        let mut watch = ExitWatch::new(HeededSignals::All).unwrap();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        watch.watch_process(pidfd).unwrap();
        assert!(!is_over(&mut watch, AT_ONCE));
        drop(child.stdin.take());
        assert!(is_over(&mut watch, None));
        child.wait().unwrap();
    }

    #[test]
    fn a_signal_to_the_thread_ends_it() {
        let mut watch = ExitWatch::new(HeededSignals::All).unwrap();
        assert!(!is_over(&mut watch, AT_ONCE));
        nix::sys::signal::raise(Signal::SIGTERM).unwrap();
        assert!(is_over(&mut watch, None));
    }

    #[test]
    fn ready_is_one_byte_and_a_close() {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        ReadySignal::new(write).send();
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "1");
    }
}
