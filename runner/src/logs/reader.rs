//! Reading a log from a given line on, and following it through rotations while it is written.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use super::{Line, Stream, rotated};
use crate::poll;

/// Reads the lines of a log, oldest first. Those that are none of ours, as a crash may leave, are
/// passed over.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    /// What is still to be read, from the file being read to the newest. Empty while the log does
    /// not exist.
    files: VecDeque<BufReader<File>>,
    /// The line being read, as far as it is there.
    line: Vec<u8>,
    changes: Changes,
}

/// How [`LogReader::wait`] learns of changes.
#[derive(Debug)]
enum Changes {
    NotWatched,
    Watched(OwnedFd),
    /// The user has no inotify instances left.
    Polled,
}

impl LogReader {
    /// Opens the log at `path` at its beginning, or `tail` lines before its end. A log that does
    /// not exist is empty.
    pub fn open(path: impl Into<PathBuf>, tail: Option<usize>) -> io::Result<Self> {
        let path = path.into();
        let mut files: VecDeque<_> = open_log(&path)?.into_iter().map(BufReader::new).collect();
        if let Some(lines) = tail {
            skip_to_last(lines, &mut files)?;
        }
        Ok(Self {
            path,
            files,
            line: Vec::new(),
            changes: Changes::NotWatched,
        })
    }

    /// The next line, or `None` when there is none yet: after [`LogReader::wait`] there may be.
    pub fn next_line(&mut self) -> io::Result<Option<Line>> {
        loop {
            if let Some(file) = self.files.front_mut() {
                file.read_until(b'\n', &mut self.line)?;
                if self.line.pop_if(|last| *last == b'\n').is_some() {
                    let line = Line::parse(&self.line);
                    self.line.clear();
                    match line {
                        Some(line) => return Ok(Some(line)),
                        None => continue,
                    }
                }
            }
            // Nothing was written to this file after a newer one was there to be seen, so this is
            // its end for good.
            if self.files.len() > 1 {
                self.files.pop_front();
                self.line.clear();
            } else if !self.find_newer()? {
                return Ok(None);
            }
        }
    }

    /// Waits until the log has probably changed, `writer` is readable (the pidfd of a monitor that
    /// has ended), the time is up or a signal has arrived.
    pub fn wait(&mut self, writer: Option<BorrowedFd>, timeout: Duration) -> io::Result<()> {
        /// How long a change may stay unnoticed without inotify.
        const POLL_INTERVAL: Duration = Duration::from_millis(100);
        let reader = |writer: Option<_>| writer.map(|writer| (writer, PollFlags::IN));
        match &self.changes {
            Changes::NotWatched => {
                // Returns at once: a change may have come before the watch.
                self.changes = watch(self.path.parent().unwrap_or(Path::new(".")))?;
                Ok(())
            }
            Changes::Watched(inotify) => {
                let interests = [Some((inotify.as_fd(), PollFlags::IN)), reader(writer)];
                if let Some([true, _]) = poll::wait(interests, Some(timeout))? {
                    // Only so that the next wait waits again; what happened is read from the log.
                    rustix::io::read(inotify, &mut [0; 4096])?;
                }
                Ok(())
            }
            Changes::Polled => {
                poll::wait([reader(writer)], Some(timeout.min(POLL_INTERVAL)))?;
                Ok(())
            }
        }
    }

    /// Adds the files that are newer than the one being read; false when there is none.
    fn find_newer(&mut self) -> io::Result<bool> {
        let mut newer = open_log(&self.path)?;
        if let Some(reading) = self.files.front() {
            for index in (0..newer.len()).rev() {
                if is_same_file(reading.get_ref(), &newer[index])? {
                    newer.drain(..=index);
                    break;
                }
            }
        }
        let found = !newer.is_empty();
        self.files.extend(newer.into_iter().map(BufReader::new));
        Ok(found)
    }
}

/// The files of a log that there are, oldest first.
fn open_log(path: &Path) -> io::Result<Vec<File>> {
    // The current file first: if it is rotated before the old one is opened, that is the same file
    // twice, not a gap.
    let current = open_if_there(path)?;
    let old = open_if_there(&rotated(path))?;
    match (old, current) {
        (Some(old), Some(current)) if is_same_file(&old, &current)? => Ok(vec![current]),
        (old, current) => Ok(old.into_iter().chain(current).collect()),
    }
}

fn open_if_there(path: &Path) -> io::Result<Option<File>> {
    // A FIFO in its place must not make the reader wait for a writer.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Ok(file) if file.metadata()?.file_type().is_fifo() => {
            Err(io::Error::new(io::ErrorKind::InvalidData, "it is a FIFO"))
        }
        opened => opened.map(Some),
    }
}

fn is_same_file(one: &File, other: &File) -> io::Result<bool> {
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// Moves on to where the last `lines` lines begin. A line in parts counts once, where it begins.
fn skip_to_last(lines: usize, files: &mut VecDeque<BufReader<File>>) -> io::Result<()> {
    let mut beginnings: VecDeque<(usize, u64)> = VecDeque::new();
    let mut end = (0, 0);
    let mut under_way: Option<Stream> = None;
    let mut line = Vec::new();
    for (index, file) in files.iter_mut().enumerate() {
        let mut offset = 0;
        loop {
            line.clear();
            let len = file.read_until(b'\n', &mut line)? as u64;
            // Half a line at the end is being written, and will be read when it is whole.
            if line.pop_if(|last| *last == b'\n').is_none() {
                break;
            }
            if let Some(Line::Output(entry)) = Line::parse(&line) {
                if under_way != Some(entry.stream) {
                    beginnings.push_back((index, offset));
                }
                under_way = (!entry.ends_line).then_some(entry.stream);
                if beginnings.len() > lines {
                    beginnings.pop_front();
                }
            }
            offset += len;
        }
        end = (index, offset);
    }
    let (index, offset) = beginnings.front().copied().unwrap_or(end);
    files.drain(..index);
    for file in files.iter_mut() {
        file.seek(SeekFrom::Start(0))?;
    }
    if let Some(first) = files.front_mut() {
        first.seek(SeekFrom::Start(offset))?;
    }
    Ok(())
}

fn watch(dir: &Path) -> io::Result<Changes> {
    let inotify = match inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK) {
        Ok(inotify) => inotify,
        // fs.inotify.max_user_instances is 128 on many machines, and shared with the user's
        // editors.
        Err(Errno::MFILE) => return Ok(Changes::Polled),
        Err(error) => return Err(error.into()),
    };
    // The directory, not the file: rotation puts another file in its place.
    let events = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO;
    inotify::add_watch(&inotify, dir, events)?;
    Ok(Changes::Watched(inotify))
}
