//! One direction of bytes between two descriptors, in small steps that never block for long.
//!
//! A [`Copier`] belongs to a poll loop: [`Copier::interest`] says what to wait for,
//! [`Copier::advance`] does one step. Nothing that a reader does, or does not, keeps the loop from
//! its other duties. It holds one buffer at most and reads only when that is empty, so that a slow
//! reader slows the writer down as a pipe would. When the writer behind ends, or the reader ahead
//! leaves, both are closed: the one gets EPIPE, the other sees the end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::keys::DetachKeys;

/// Bytes read at a time.
const CHUNK: usize = 64 * 1024;

/// Bytes that a pipe which polls writable takes without blocking: PIPE_BUF, `pipe(7)`.
const WRITE_MAX: usize = 4096;
/// The same of a terminal, which promises nothing: little enough to fit most of the time.
const TERMINAL_WRITE_MAX: usize = 256;

/// Copies from `from` to `to`, if there is a `to`.
#[derive(Debug)]
pub struct Copier {
    ends: Option<(OwnedFd, Option<OwnedFd>)>,
    pending: Vec<u8>,
    written: usize,
    /// Bytes written at a time.
    write_max: usize,
    write_error: Option<Errno>,
    /// Whether reading goes on when the reader ahead has left.
    outlives_reader: bool,
    /// What is looked for in what is read, and whether it has come.
    keys: Option<DetachKeys>,
    keys_have_come: bool,
}

impl Copier {
    /// Without `to`, what is read is shown to the observer only.
    ///
    /// A `to` of our own had better be non-blocking: one that is shared with others, as the
    /// caller's streams are, must not be made so, and takes short writes when it polls writable.
    pub fn new(from: OwnedFd, to: Option<OwnedFd>) -> Self {
        let write_max = to.as_ref().map_or(CHUNK, write_max);
        Self {
            write_max,
            ends: Some((from, to)),
            pending: Vec::new(),
            written: 0,
            write_error: None,
            outlives_reader: false,
            keys: None,
            keys_have_come: false,
        }
    }

    /// Copies nothing.
    pub fn closed() -> Self {
        Self {
            write_max: CHUNK,
            ends: None,
            pending: Vec::new(),
            written: 0,
            write_error: None,
            outlives_reader: false,
            keys: None,
            keys_have_come: false,
        }
    }

    /// Looks for keys in what is read, and keeps them back.
    pub fn watching_for(mut self, keys: Option<DetachKeys>) -> Self {
        self.keys = keys;
        self
    }

    /// Whether the keys have been typed.
    pub fn keys_have_come(&self) -> bool {
        self.keys_have_come
    }

    /// What is read, and what is written to.
    pub fn ends(&self) -> (Option<BorrowedFd<'_>>, Option<BorrowedFd<'_>>) {
        let ends = self.ends.as_ref();
        let to = ends.and_then(|(_, to)| to.as_ref());
        (ends.map(|(from, _)| from.as_fd()), to.map(AsFd::as_fd))
    }

    pub fn is_closed(&self) -> bool {
        self.ends.is_none()
    }

    /// What to wait for before the next [`Copier::advance`].
    pub fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let (from, to) = self.ends.as_ref()?;
        match to {
            Some(to) if !self.pending.is_empty() => Some((to.as_fd(), PollFlags::OUT)),
            _ => Some((from.as_fd(), PollFlags::IN)),
        }
    }

    /// One step: a write if there is something to write, else a read that `observe` is shown, and a
    /// write. Call it when what [`Copier::interest`] named is ready.
    pub fn advance(&mut self, mut observe: impl FnMut(&[u8])) {
        if self.pending.is_empty() {
            match self.fill() {
                Ok(true) => {
                    observe(&self.pending);
                    if self.write_max < CHUNK {
                        // It has not been said to be writable.
                        return;
                    }
                }
                Ok(false) => return,
                // End of file. EIO is a terminal's way to say it: the last program has closed the
                // slave.
                Err(_) => return self.close(),
            }
        }
        if let Err(errno) = self.flush() {
            // A disk that is full, or a terminal that has hung up, is nothing to the writer behind;
            // a reader that has left is.
            match errno == Errno::PIPE && !self.outlives_reader {
                true => self.close(),
                false => self.let_go(),
            }
            self.write_error = Some(errno);
        }
    }

    /// Goes on reading, for the observer, when the reader ahead has left. Whoever asks for this
    /// closes it if the writer is to know.
    pub fn outliving_reader(mut self) -> Self {
        self.outlives_reader = true;
        self
    }

    /// Goes on reading without writing. What is buffered is lost.
    pub fn let_go(&mut self) {
        if let Some((_, to)) = &mut self.ends {
            *to = None;
        }
        self.pending.clear();
    }

    /// Whether the reader ahead has left.
    pub fn has_lost_reader(&self) -> bool {
        self.write_error == Some(Errno::PIPE)
    }

    /// Closes both ends. What is buffered is lost.
    pub fn close(&mut self) {
        self.ends = None;
        self.pending.clear();
    }

    /// Why not everything was written, unless the reader has left: then nobody misses it.
    pub fn write_error(&self) -> Option<io::Error> {
        self.write_error
            // A terminal that has hung up says EIO.
            .filter(|errno| !matches!(*errno, Errno::PIPE | Errno::IO))
            .map(io::Error::from)
    }

    /// False when there is nothing to read right now.
    fn fill(&mut self) -> io::Result<bool> {
        let Some((from, _)) = &self.ends else {
            return Ok(false);
        };
        self.pending.resize(CHUNK, 0);
        self.written = 0;
        let read = rustix::io::read(from, &mut self.pending[..]);
        self.pending.truncate(*read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {
                if let Some(keys) = &mut self.keys {
                    self.keys_have_come |= keys.filter(&mut self.pending);
                }
                Ok(!self.pending.is_empty())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn flush(&mut self) -> Result<(), Errno> {
        let to = self.ends.as_ref().and_then(|(_, to)| to.as_ref());
        if let Some(to) = to {
            // One write per readiness: the second might block, and with it the signals that the
            // same loop passes on.
            let end = self.pending.len().min(self.written + self.write_max);
            match rustix::io::write(to, &self.pending[self.written..end]) {
                Ok(count) => self.written += count,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
            if self.written < self.pending.len() {
                return Ok(());
            }
        }
        self.pending.clear();
        Ok(())
    }
}

/// How much may be written at a time without blocking.
fn write_max(to: &OwnedFd) -> usize {
    let flags = rustix::fs::fcntl_getfl(to).unwrap_or(OFlags::empty());
    match (
        flags.contains(OFlags::NONBLOCK),
        rustix::termios::isatty(to),
    ) {
        (true, _) => CHUNK,
        (false, true) => TERMINAL_WRITE_MAX,
        (false, false) => WRITE_MAX,
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::Mode;

    use super::*;

    fn pipe() -> (OwnedFd, OwnedFd) {
        rustix::pipe::pipe().expect("a pipe")
    }

    #[test]
    fn everything_arrives_and_then_the_end() {
        let ((from, input), (output, to)) = (pipe(), pipe());
        let mut copier = Copier::new(from, Some(to));
        let mut observed = Vec::new();
        rustix::io::write(&input, b"hello").expect("written");
        copier.advance(|bytes| observed.extend_from_slice(bytes));
        copier.advance(|_| unreachable!("it is written"));
        drop(input);
        copier.advance(|_| unreachable!("nothing was written"));
        assert!(copier.is_closed());
        let mut buffer = [0; 16];
        assert_eq!(rustix::io::read(&output, &mut buffer), Ok(5));
        assert_eq!((&buffer[..5], &*observed), (&b"hello"[..], &b"hello"[..]));
        assert_eq!(
            rustix::io::read(&output, &mut buffer),
            Ok(0),
            "the end is passed on"
        );
    }

    #[test]
    fn a_reader_that_leaves_takes_the_writer_along() {
        let ((from, input), (output, to)) = (pipe(), pipe());
        let mut copier = Copier::new(from, Some(to));
        drop(output);
        rustix::io::write(&input, b"hello").expect("written");
        copier.advance(|_| {});
        copier.advance(|_| {});
        assert!(copier.is_closed());
        assert_eq!(rustix::io::write(&input, b"more"), Err(Errno::PIPE));
    }

    #[test]
    fn a_full_disk_is_an_error_and_a_reader_that_left_is_none() {
        let full = || rustix::fs::open("/dev/full", OFlags::WRONLY, Mode::empty());
        let closed_pipe = || Ok(pipe().1);
        let outputs: [(&dyn Fn() -> rustix::io::Result<OwnedFd>, _); 2] = [
            (&full, Some(Errno::NOSPC.raw_os_error())),
            (&closed_pipe, None),
        ];
        for (output, expected) in outputs {
            let (from, input) = pipe();
            let mut copier = Copier::new(from, Some(output().expect("opened")));
            rustix::io::write(&input, b"hello").expect("written");
            copier.advance(|_| {});
            copier.advance(|_| {});
            let error = copier.write_error().and_then(|error| error.raw_os_error());
            // The writer behind is told of a reader that has left only.
            assert_eq!((copier.is_closed(), error), (expected.is_none(), expected));
        }
    }

    #[test]
    fn no_more_is_read_than_can_be_written() {
        let ((from, input), (_output, to)) = (pipe(), pipe());
        rustix::io::ioctl_fionbio(&to, true).expect("non-blocking");
        rustix::io::ioctl_fionbio(&input, true).expect("non-blocking");
        let mut copier = Copier::new(from, Some(to));
        let chunk = [7; CHUNK];
        let mut total = 0;
        for _ in 0..1000 {
            total += rustix::io::write(&input, &chunk).unwrap_or(0);
            copier.advance(|_| {});
        }
        assert!(
            total < 4 * CHUNK + CHUNK,
            "two pipes and a buffer hold {total} bytes"
        );
        assert!(!copier.is_closed());
    }
}
