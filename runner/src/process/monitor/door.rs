//! Where others attach to a container that runs: a socket in its run directory.
//!
//! A visitor brings the ends that it takes the container's outputs by, and is given the
//! container's terminal, or where its input is written. What is written while it is there it gets
//! besides the log. One that does not read slows the container down, as a pipe would, and one that
//! has gone does not.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{PollFlags, Timespec};
use tracing::{debug, info};

use crate::logs::Stream;
use crate::poll;
use crate::process::channel::{self, Channel};
use crate::process::messages::{FromForeground, FromMonitor, ToMonitor};

/// Bytes of output that wait for a visitor before the container has to.
const QUEUE_MAX: usize = 256 * 1024;

/// Visitors at a time. Each takes three descriptors.
const VISITORS_MAX: usize = 64;

/// Nobody has to wait for long: each is taken at once.
const BACKLOG: i32 = 16;

/// The socket's name in the run directory of a container.
pub const DOOR: &str = "attach";

/// What there is of a container for a visitor.
pub struct Host<'a> {
    pub init: BorrowedFd<'a>,
    pub terminal: Option<BorrowedFd<'a>>,
    /// Where its input is written to. A visitor may end that.
    pub stdin: &'a mut Option<OwnedFd>,
}

#[derive(Debug)]
pub struct Door {
    path: PathBuf,
    listener: OwnedFd,
    /// Of the listener and of all that visitors have; readable when one of them is ready.
    epoll: OwnedFd,
    visitors: BTreeMap<u64, Visitor>,
    last: u64,
}

#[derive(Debug)]
struct Visitor {
    channel: Channel<FromMonitor, ToMonitor>,
    outputs: [Output; 2],
}

/// What an event is about, by its number.
const LISTENER: u64 = 0;
const PARTS: u64 = 4;

impl Door {
    pub fn open(run_dir: &Path) -> io::Result<Self> {
        let path = run_dir.join(DOOR);
        let listener = channel::listen(&path, BACKLOG)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            &listener,
            EventData::new_u64(LISTENER),
            EventFlags::IN,
        )?;
        Ok(Self {
            path,
            listener,
            epoll,
            visitors: BTreeMap::new(),
            last: 0,
        })
    }

    /// Whether the container has to wait for a visitor.
    pub fn is_full(&self) -> bool {
        let outputs = self.visitors.values().flat_map(|visitor| &visitor.outputs);
        outputs
            .into_iter()
            .any(|output| output.queue.len() >= QUEUE_MAX)
    }

    /// Shows visitors what the container has written.
    pub fn show(&mut self, stream: Stream, bytes: &[u8]) {
        let part = match stream {
            Stream::Stdout => 0,
            Stream::Stderr => 1,
        };
        for (number, visitor) in &mut self.visitors {
            visitor.outputs[part].push(bytes);
            visitor.outputs[part].flush(&self.epoll, number * PARTS + 1 + part as u64);
        }
    }

    /// Does what is ready to be done.
    pub fn serve(&mut self, host: &mut Host) {
        const AT_ONCE: usize = 16;
        let mut events = Vec::with_capacity(AT_ONCE);
        let now = Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        });
        if epoll::wait(&self.epoll, spare_capacity(&mut events), now).is_err() {
            return;
        }
        for Event { data, .. } in events {
            let (number, part) = (data.u64() / PARTS, data.u64() % PARTS);
            match (data.u64(), part) {
                (LISTENER, _) => self.let_in(),
                (_, 0) => self.listen_to(number, host),
                (key, part) => {
                    if let Some(visitor) = self.visitors.get_mut(&number) {
                        let output = usize::from(part == 2);
                        visitor.outputs[output].flush(&self.epoll, key);
                    }
                }
            }
        }
    }

    fn let_in(&mut self) {
        let Ok(channel) = channel::accept(&self.listener) else {
            return;
        };
        if self.visitors.len() >= VISITORS_MAX {
            return;
        }
        let number = self.last + 1;
        let key = EventData::new_u64(number * PARTS);
        if epoll::add(&self.epoll, &channel, key, EventFlags::IN).is_ok() {
            self.last = number;
            let visitor = Visitor {
                channel,
                outputs: Default::default(),
            };
            self.visitors.insert(number, visitor);
        }
    }

    /// A visitor has said something, or has gone.
    fn listen_to(&mut self, number: u64, host: &mut Host) {
        let Some(visitor) = self.visitors.get_mut(&number) else {
            return;
        };
        let stays = match visitor.channel.receive() {
            Ok(Some((ToMonitor::Attach { input }, outputs))) => {
                info!(number, input, "somebody attaches to the container");
                visitor.welcome(input, outputs, host).is_some()
            }
            Ok(Some((ToMonitor::Foreground(FromForeground::InputEnded), _))) => {
                *host.stdin = None;
                true
            }
            _ => false,
        };
        if !stays {
            debug!(number, "a visitor has gone");
            if let Some(visitor) = self.visitors.remove(&number) {
                visitor.leave(&self.epoll);
            }
        }
    }

    /// Tells visitors of the end, when they have what was written before it.
    pub fn close(mut self, code: i32) {
        /// For visitors that do not read.
        const PATIENCE: Duration = Duration::from_millis(500);
        let deadline = Instant::now() + PATIENCE;
        let is_owed = |visitor: &Visitor| {
            let mut outputs = visitor.outputs.iter();
            outputs.any(|output| !output.queue.is_empty())
        };
        while self.visitors.values().any(is_owed) {
            let left = deadline.saturating_duration_since(Instant::now());
            let ready = poll::wait([Some((self.epoll.as_fd(), PollFlags::IN))], Some(left));
            if left.is_zero() || !matches!(ready, Ok(Some(_))) {
                break;
            }
            for (number, visitor) in &mut self.visitors {
                for (output, part) in visitor.outputs.iter_mut().zip(1..) {
                    output.flush(&self.epoll, number * PARTS + part);
                }
            }
            // Nobody else is let in, and who leaves is no matter.
            let _ = epoll::delete(&self.epoll, &self.listener);
            self.visitors.retain(|_, visitor| !visitor.has_gone());
        }
        for visitor in self.visitors.into_values() {
            // One that has gone need not know.
            let _ = visitor.channel.send(&FromMonitor::Exited(code), &[]);
        }
        let _ = fs::remove_file(&self.path);
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Visitor {
    /// `None` for one that cannot be served.
    fn welcome(&mut self, input: bool, outputs: Vec<OwnedFd>, host: &Host) -> Option<()> {
        let [stdout, stderr]: [OwnedFd; 2] = outputs.try_into().ok()?;
        for (output, to) in self.outputs.iter_mut().zip([stdout, stderr]) {
            rustix::io::ioctl_fionbio(&to, true).ok()?;
            output.to = Some(to);
        }
        let say = |message, fd| self.channel.send(&message, &[fd]).ok();
        match (host.terminal, &host.stdin) {
            (Some(terminal), _) => say(FromMonitor::Terminal, terminal)?,
            (None, Some(stdin)) if input => say(FromMonitor::Input, stdin.as_fd())?,
            _ => {}
        }
        say(FromMonitor::Started, host.init)
    }

    /// Nobody watches for it any more. Its process may still have what it gave us open, which would
    /// be watched on.
    fn leave(self, epoll: &OwnedFd) {
        for output in self.outputs.iter().filter(|output| output.is_watched) {
            if let Some(to) = &output.to {
                let _ = epoll::delete(epoll, to);
            }
        }
    }

    fn has_gone(&self) -> bool {
        let news = [Some((self.channel.as_fd(), PollFlags::IN))];
        matches!(poll::wait(news, Some(Duration::ZERO)), Ok(Some(_)))
            && matches!(self.channel.receive(), Ok(None) | Err(_))
    }
}

/// An output of the container's, on its way to a visitor.
#[derive(Debug, Default)]
struct Output {
    to: Option<OwnedFd>,
    queue: VecDeque<u8>,
    is_watched: bool,
}

impl Output {
    fn push(&mut self, bytes: &[u8]) {
        if self.to.is_some() {
            self.queue.extend(bytes);
        }
    }

    /// Writes what can be written; the rest waits for an event.
    fn flush(&mut self, epoll: &OwnedFd, key: u64) {
        while let (Some(to), (bytes, _)) = (&self.to, self.queue.as_slices()) {
            if bytes.is_empty() {
                break;
            }
            match rustix::io::write(to, bytes) {
                Ok(count) => drop(self.queue.drain(..count)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                // It does not read any more.
                Err(_) => {
                    let _ = epoll::delete(epoll, to);
                    (self.to, self.is_watched) = (None, false);
                    self.queue = VecDeque::new();
                }
            }
        }
        let Some(to) = &self.to else {
            return;
        };
        match (self.queue.is_empty(), self.is_watched) {
            (false, false) => {
                let added = epoll::add(epoll, to, EventData::new_u64(key), EventFlags::OUT);
                self.is_watched = added.is_ok();
            }
            (true, true) => {
                let _ = epoll::delete(epoll, to);
                self.is_watched = false;
            }
            _ => {}
        }
    }
}
