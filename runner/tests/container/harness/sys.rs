//! What a command inherits from its caller, and the harness's only unsafe code: the calls between
//! fork and exec that hand it down.
#![allow(unsafe_code, reason = "the one file of the crate that may")]

use std::ffi::CString;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::SigSet;
use nix::sys::stat::{Mode, umask};

/// One thing that a process has from whoever started it.
#[derive(Clone, Debug)]
pub enum HandedDown {
    /// Signals that are ignored.
    Ignored(Vec<libc::c_int>),
    Blocked(SigSet),
    Umask(u32),
    SoftLimit(Resource, u64),
    /// Soft and hard.
    HardLimit(Resource, u64),
    Nice(libc::c_int),
    /// Descriptors that are closed.
    Closed(Vec<RawFd>),
    /// A descriptor that is open under these numbers, too.
    Open(RawFd, Vec<RawFd>),
    /// The working directory, whose path this is, is gone.
    NoDirectory(CString),
}

impl HandedDown {
    /// Every signal that can be ignored.
    pub fn all_ignored() -> Self {
        // Not those that the C library keeps for itself.
        let numbers = (1..=libc::SIGSYS).chain(libc::SIGRTMIN()..=libc::SIGRTMAX());
        let fixed = [libc::SIGKILL, libc::SIGSTOP];
        Self::Ignored(numbers.filter(|number| !fixed.contains(number)).collect())
    }

    /// Lets `command` inherit it.
    pub fn to(&self, command: &mut Command) {
        let handed_down = self.clone();
        // SAFETY: between fork and exec only async-signal-safe functions may be called. `apply`
        // makes plain system calls on what was allocated before, and allocates nothing.
        unsafe { command.pre_exec(move || handed_down.apply()) };
    }

    fn apply(&self) -> io::Result<()> {
        match self {
            Self::Ignored(signals) => {
                for signal in signals {
                    // SAFETY: takes a number and no handler.
                    if unsafe { libc::signal(*signal, libc::SIG_IGN) } == libc::SIG_ERR {
                        return Err(io::Error::last_os_error());
                    }
                }
            }
            Self::Blocked(signals) => signals.thread_block()?,
            Self::Umask(bits) => drop(umask(Mode::from_bits_truncate(*bits))),
            Self::SoftLimit(resource, limit) => {
                let (_, hard) = getrlimit(*resource)?;
                setrlimit(*resource, *limit, hard)?;
            }
            Self::HardLimit(resource, limit) => setrlimit(*resource, *limit, *limit)?,
            // SAFETY: takes a number.
            Self::Nice(more) => drop(unsafe { libc::nice(*more) }),
            Self::Closed(fds) => {
                for fd in fds {
                    // SAFETY: a standard stream, which nothing uses between here and exec.
                    unsafe { libc::close(*fd) };
                }
            }
            Self::Open(fd, numbers) => {
                for number in numbers {
                    // SAFETY: takes numbers only; those that are taken over are far above what is
                    // open.
                    if unsafe { libc::dup2(*fd, *number) } < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
            }
            Self::NoDirectory(path) => {
                // SAFETY: the string ends in NUL and lives across the call.
                if unsafe { libc::rmdir(path.as_ptr()) } != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        Ok(())
    }
}
