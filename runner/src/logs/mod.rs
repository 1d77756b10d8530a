//! The log of a container: what it wrote to stdout and stderr, and when.
//!
//! One line of text per entry, in the format that Kubernetes' and Podman's tools read:
//!
//! ```text
//! 2026-11-21T23:59:59.123456789Z stdout F Listening on :8080
//! 2026-11-21T23:59:59.200000000Z stderr P half a li
//! 2026-11-21T23:59:59.300000000Z stderr F ne
//! ```
//!
//! `F` ends a line, `P` is a part of one that goes on in the stream's next entry: output is logged
//! when it is written, newline or not. Content is the container's bytes, unchanged, whatever their
//! encoding; an entry has none that is a newline. Per stream, the contents with a newline after
//! each `F` are exactly what was written, save for what a full disk kept out. Where that was, once
//! there is room again, stands how many bytes are missing; other tools pass over the line:
//!
//! ```text
//! 2026-11-21T23:59:59.400000000Z lost F 4096
//! ```
//!
//! A log is two files at most: `LOG`, and `LOG.1` from before the last rotation. How long they may
//! be, and whether there is a log at all, the container's [`LogConfig`] says.

mod config;
mod reader;
mod timestamp;
mod writer;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

pub use config::{LogConfig, LogDriver, MAX_SIZE_MIN};
pub use reader::LogReader;
pub use timestamp::Timestamp;
pub use writer::LogWriter;

/// Longest content of one entry, in bytes; longer lines are logged in parts. The same as the limit
/// of Kubernetes' tools.
pub const MAX_CONTENT_LEN: usize = 16 * 1024;

/// Size in bytes at which a log file is rotated, so that a log takes up to twice as much.
pub const MAX_FILE_LEN: u64 = 16 * 1024 * 1024;

/// Which of a container's two outputs. With a terminal there is only stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// What a line of the file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    Output(Entry),
    /// So many bytes of output are missing here, as they could not be written.
    Lost(u64),
}

/// A line of output, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub time: Timestamp,
    pub stream: Stream,
    /// Whether a newline followed the content.
    pub ends_line: bool,
    pub content: Vec<u8>,
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        })
    }
}

impl Line {
    /// Reads a line of the file, without its newline; `None` when it is not as it should be.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.splitn(4, |&byte| byte == b' ');
        let time = str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let kind = fields.next()?;
        let ends_line = match fields.next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        let content = fields.next()?;
        let stream = match kind {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            b"lost" => return str::from_utf8(content).ok()?.parse().ok().map(Self::Lost),
            _ => return None,
        };
        Some(Self::Output(Entry {
            time,
            stream,
            ends_line,
            content: content.to_vec(),
        }))
    }
}

impl Entry {
    /// The output that this entry stands for: its content, with the newline that ended it.
    pub fn output(mut self) -> Vec<u8> {
        if self.ends_line {
            self.content.push(b'\n');
        }
        self.content
    }
}

/// The file that `log` becomes when it is rotated.
fn rotated(log: &Path) -> PathBuf {
    with_suffix(log, ".1")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests;
