//! Which process serves a container, known without a file: a name among the abstract Unix sockets
//! of the host's network namespace. It goes with the process that has it, however that ends.
//!
//! Nobody is answered there. Who connects learns from the kernel who listens (SO_PEERCRED), and
//! that it lives for as long as the connection does; so its number is never mistaken for that of a
//! later process. The names are for everybody to take: one that another user has means nothing.

use std::hash::Hasher;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};
use siphasher::sip::SipHasher24;

/// What a claim is laid to, for this user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name(u64);

impl Name {
    /// Of what has `parts` for its name; however long they are.
    pub fn of(parts: [&str; 2]) -> Self {
        let mut hasher = SipHasher24::new();
        for part in parts {
            hasher.write_usize(part.len());
            hasher.write(part.as_bytes());
        }
        Self(hasher.finish())
    }

    fn address(self) -> SocketAddrUnix {
        let name = format!("coracle-net/{}/{:016x}", geteuid().as_raw(), self.0);
        SocketAddrUnix::new_abstract_name(name.as_bytes()).expect("shorter than sun_path")
    }
}

/// The name, for as long as this process has it.
#[derive(Debug)]
pub struct Claim {
    _socket: OwnedFd,
}

/// Why the name is not ours.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("process {0} serves it already")]
    Taken(i32),
    /// Whoever it is has no right to it.
    #[error("user {0} has taken the name of its socket")]
    Stranger(u32),
    #[error("cannot find out which process serves it: {0}")]
    Socket(#[from] io::Error),
}

impl Claim {
    /// Takes the name, if need be once the process that has it has ended, for which it gets
    /// `patience`.
    pub fn take(name: Name, patience: Duration) -> Result<Self, ClaimError> {
        let deadline = Instant::now() + patience;
        let socket = open()?;
        loop {
            match rustix::net::bind(&socket, &name.address()) {
                Ok(()) => {
                    rustix::net::listen(&socket, BACKLOG).map_err(io::Error::from)?;
                    return Ok(Self { _socket: socket });
                }
                Err(Errno::ADDRINUSE) => {}
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match Holder::find(name)? {
                Some(holder) if !holder.ends_within(left)? => {
                    return Err(ClaimError::Taken(holder.number()));
                }
                // It does not listen yet, or not any more.
                None if left.is_zero() => {
                    return Err(io::Error::from(Errno::ADDRINUSE).into());
                }
                _ => thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

/// The process of this user's that has a name.
#[derive(Debug)]
pub struct Holder {
    number: Pid,
    process: OwnedFd,
}

impl Holder {
    /// `None` if nobody has it.
    pub fn find(name: Name) -> Result<Option<Self>, ClaimError> {
        let socket = open()?;
        // Non-blocking: where others fill the queue of those who connect, that is an error.
        match rustix::net::connect(&socket, &name.address()) {
            Ok(()) => {}
            Err(Errno::CONNREFUSED) => return Ok(None),
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
        let listener = sockopt::socket_peercred(&socket).map_err(io::Error::from)?;
        if listener.uid != geteuid() {
            return Err(ClaimError::Stranger(listener.uid.as_raw()));
        }
        let process = match pidfd_open(listener.pid, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(Errno::SRCH) => return Ok(None),
            Err(errno) => return Err(io::Error::from(errno).into()),
        };
        // With the connection still there, the process that was opened is the one that listens.
        let is_connected = !is_ready(&socket, Duration::ZERO)?;
        Ok(is_connected.then_some(Self {
            number: listener.pid,
            process,
        }))
    }

    pub fn number(&self) -> i32 {
        self.number.as_raw_nonzero().get()
    }

    /// Ends it, by force when it takes longer than `patience`.
    pub fn end(&self, patience: Duration) -> io::Result<()> {
        for signal in [Signal::TERM, Signal::KILL] {
            match pidfd_send_signal(&self.process, signal) {
                Ok(()) => {}
                Err(Errno::SRCH) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
            if self.ends_within(patience)? {
                return Ok(());
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    fn ends_within(&self, patience: Duration) -> io::Result<bool> {
        is_ready(&self.process, patience)
    }
}

/// Whether `fd` is readable, or hung up, within `patience`.
fn is_ready(fd: &impl AsFd, patience: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(patience).map_err(io::Error::other)?;
    let mut polled = [PollFd::new(fd, PollFlags::IN)];
    Ok(retry_on_intr(|| poll(&mut polled, Some(&timeout)))? > 0)
}

fn open() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    Ok(socket?)
}

/// As long as it may be, since anybody may connect (net.core.somaxconn).
const BACKLOG: i32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: Duration = Duration::ZERO;

    /// For this test alone, whatever else runs on this machine.
    fn name(test: &str) -> Name {
        Name::of([test, &std::process::id().to_string()])
    }

    #[test]
    fn a_name_is_one_processs_and_goes_with_it() {
        let name = name("one");
        assert!(Holder::find(name).unwrap().is_none());
        let claim = Claim::take(name, AT_ONCE).unwrap();
        let holder = Holder::find(name).unwrap().unwrap();
        assert_eq!(holder.number() as u32, std::process::id());
        let error = Claim::take(name, AT_ONCE).unwrap_err();
        assert!(matches!(error, ClaimError::Taken(_)), "{error}");
        drop(claim);
        assert!(Holder::find(name).unwrap().is_none());
        Claim::take(name, AT_ONCE).unwrap();
    }

    #[test]
    fn parts_are_told_apart() {
        assert_ne!(Name::of(["a", "bc"]), Name::of(["ab", "c"]));
        assert_eq!(Name::of(["a", "b"]), Name::of(["a", "b"]));
        Name::of(["", &"x".repeat(5000)]).address();
    }
}
