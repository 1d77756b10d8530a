//! The standard streams of a program in a container, in two halves.
//!
//! [`ProgramEnds`] are what the program has as its descriptors 0, 1 and 2. [`CallerEnds`] belong to
//! whoever feeds it and reads what it says. Three things can lie between: the null device, pipes
//! ([`pipes`]), or a terminal ([`terminal`]), whose master then takes the place of the pipes.
//! [`copier`] carries bytes from one pair to the next, [`keys`] are those that leave a program
//! behind.

pub mod copier;
pub mod keys;
pub mod terminal;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Gid, Mode, OFlags, Uid, fchown};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::rootfs::lookup::file_type;

/// Where a program's descriptors 0, 1 and 2 lead.
#[derive(Debug)]
pub struct ProgramEnds {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// The other ends of a program's streams.
#[derive(Debug)]
pub struct CallerEnds {
    /// Where its input is written to. `None` when it has none, or has a terminal.
    pub stdin: Option<OwnedFd>,
    /// Where its output is read. `None` when that is its terminal, which does not exist yet.
    pub outputs: Option<Outputs>,
}

/// Whether an end of the caller's is that of the program's input: it can be written to only. A
/// terminal is for both.
pub fn is_input(end: &OwnedFd) -> bool {
    rustix::fs::fcntl_getfl(end).is_ok_and(|flags| flags & OFlags::ACCMODE == OFlags::WRONLY)
}

/// The read ends of a program's two outputs.
#[derive(Debug)]
pub struct Outputs {
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// What a program without terminal reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Nothing: it is at its end from the beginning.
    Empty,
    /// What is written to the other end.
    Pipe,
}

/// Streams without terminal.
pub fn pipes(input: Input) -> io::Result<(CallerEnds, ProgramEnds)> {
    let pipe = || pipe_with(PipeFlags::CLOEXEC);
    let (stdin, our_stdin) = match input {
        Input::Empty => (null()?, None),
        Input::Pipe => pipe().map(|(stdin, ours)| (stdin, Some(ours)))?,
    };
    let ((our_stdout, stdout), (our_stderr, stderr)) = (pipe()?, pipe()?);
    let ours = CallerEnds {
        stdin: our_stdin,
        outputs: Some(Outputs {
            stdout: our_stdout,
            stderr: our_stderr,
        }),
    };
    let theirs = ProgramEnds {
        stdin,
        stdout,
        stderr,
    };
    Ok((ours, theirs))
}

impl CallerEnds {
    /// Those of a program that opens a terminal of its own.
    pub fn of_terminal() -> Self {
        Self {
            stdin: None,
            outputs: None,
        }
    }
}

impl ProgramEnds {
    /// Nothing to read, and nobody who reads. A program that opens a terminal of its own begins so.
    pub fn null() -> io::Result<Self> {
        Self::all(null()?)
    }

    /// All three lead to `file`.
    fn all(file: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            stdin: file.try_clone()?,
            stdout: file.try_clone()?,
            stderr: file,
        })
    }

    /// For handing them to another process, which has them by [`ProgramEnds::from_fds`].
    pub fn as_fds(&self) -> [BorrowedFd<'_>; 3] {
        [&self.stdin, &self.stdout, &self.stderr].map(AsFd::as_fd)
    }

    /// `None` when they are not three.
    pub fn from_fds(fds: Vec<OwnedFd>) -> Option<Self> {
        let [stdin, stdout, stderr] = fds.try_into().ok()?;
        Some(Self {
            stdin,
            stdout,
            stderr,
        })
    }

    /// Makes them this process's own.
    pub fn install(&self) -> io::Result<()> {
        rustix::stdio::dup2_stdin(&self.stdin)?;
        rustix::stdio::dup2_stdout(&self.stdout)?;
        rustix::stdio::dup2_stderr(&self.stderr)?;
        Ok(())
    }

    /// Lets the container's root open `/dev/stdout` and its like anew, and pass them on. Pipes
    /// only: the null device is the host's.
    pub fn give_pipes_to(&self, (uid, gid): (u32, u32)) -> io::Result<()> {
        for stream in self.as_fds() {
            if file_type(stream)? == FileType::Fifo {
                fchown(stream, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
            }
        }
        Ok(())
    }
}

/// The null device.
pub fn null() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/dev/null", flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use rustix::io::{FdFlags, fcntl_getfd, read, write};

    use super::*;

    #[test]
    fn what_one_end_writes_the_other_reads_and_no_program_inherits() {
        let (ours, theirs) = pipes(Input::Pipe).unwrap();
        let outputs = ours.outputs.unwrap();
        let ways = [
            (ours.stdin.unwrap(), theirs.stdin),
            (theirs.stdout, outputs.stdout),
            (theirs.stderr, outputs.stderr),
        ];
        for (number, (from, to)) in (0u8..).zip(ways) {
            for end in [&from, &to] {
                assert!(fcntl_getfd(end).unwrap().contains(FdFlags::CLOEXEC));
            }
            write(&from, &[number]).unwrap();
            drop(from);
            let mut read_bytes = [9; 2];
            assert_eq!(read(&to, &mut read_bytes), Ok(1));
            assert_eq!(read_bytes[0], number);
            assert_eq!(read(&to, &mut read_bytes), Ok(0));
        }
    }

    #[test]
    fn an_empty_input_is_at_its_end() {
        let (ours, theirs) = pipes(Input::Empty).unwrap();
        assert!(ours.stdin.is_none());
        assert_eq!(read(&theirs.stdin, &mut [0]), Ok(0));
    }
}
