//! Appending to a log. A container's output never waits for a full disk, and never ends because of
//! one: what cannot be written is dropped and counted, and the log says so where it goes on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{MAX_CONTENT_LEN, MAX_FILE_LEN, Stream, Timestamp, rotated, with_suffix};

/// Longest run of entries that is appended in one call: large enough that calls do not matter,
/// small enough to keep.
const BATCH_LEN: usize = 128 * 1024;

/// What is in an entry besides its content: the time, the stream, whether the line ends, newline.
const HEAD_LEN: usize = 30 + 1 + 6 + 1 + 1 + 1 + 1;

const TAKES_ALL: &str = "a Vec takes all that is written";

/// The one writer of a log.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    file: File,
    file_len: u64,
    max_file_len: u64,
    /// Entries to be appended, and how many bytes of output they hold.
    batch: Vec<u8>,
    batch_output_len: u64,
    /// Bytes of output that are missing behind the last entry.
    lost: u64,
}

impl LogWriter {
    /// Opens the log at `path`, creating it or going on after its last complete entry.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        Self::with_max_file_len(path, MAX_FILE_LEN)
    }

    /// Like [`LogWriter::open`], rotating at another size than [`MAX_FILE_LEN`].
    pub fn with_max_file_len(path: impl Into<PathBuf>, max_file_len: u64) -> io::Result<Self> {
        let path = path.into();
        let file = open_log(&path)?;
        let found_len = file.metadata()?.len();
        let file_len = complete_len(&file, found_len)?;
        if file_len < found_len {
            file.set_len(file_len)?;
        }
        let batch = Vec::new();
        Ok(Self {
            path,
            file,
            file_len,
            max_file_len,
            batch,
            batch_output_len: 0,
            lost: 0,
        })
    }

    /// Logs output that was written just now.
    pub fn write(&mut self, stream: Stream, output: &[u8]) {
        let time = Timestamp::now();
        for line in output.split_inclusive(|&byte| byte == b'\n') {
            let (line, ends_line) = match line.strip_suffix(b"\n") {
                Some(line) => (line, true),
                None => (line, false),
            };
            // All parts but the last are full, and the last may be empty: an empty line is an entry
            // too.
            let part_len = self.max_content_len();
            let parts_len = line.len().saturating_sub(1) / part_len * part_len;
            let (parts, last) = line.split_at(parts_len);
            for part in parts.chunks(part_len) {
                self.push(time, stream, false, part);
            }
            self.push(time, stream, ends_line, last);
        }
        self.flush();
    }

    /// Bytes of output that are missing at the end of the log, and that not even the log tells of:
    /// there is still no room.
    pub fn finish(mut self) -> u64 {
        self.begin_batch(Timestamp::now());
        self.flush();
        self.lost
    }

    /// Says first what is missing.
    fn begin_batch(&mut self, time: Timestamp) {
        if self.lost > 0 {
            writeln!(self.batch, "{time} lost F {}", self.lost).expect(TAKES_ALL);
        }
    }

    /// Of one entry, which is to fit into a file.
    fn max_content_len(&self) -> usize {
        let room = usize::try_from(self.max_file_len).unwrap_or(usize::MAX);
        room.saturating_sub(HEAD_LEN).clamp(1, MAX_CONTENT_LEN)
    }

    fn push(&mut self, time: Timestamp, stream: Stream, ends_line: bool, content: &[u8]) {
        let len = self.batch.len() + HEAD_LEN + content.len();
        if !self.batch.is_empty() && len as u64 > self.max_file_len {
            self.flush();
        }
        if self.batch.is_empty() {
            self.begin_batch(time);
        }
        let tag = if ends_line { 'F' } else { 'P' };
        write!(self.batch, "{time} {stream} {tag} ").expect(TAKES_ALL);
        self.batch.extend_from_slice(content);
        self.batch.push(b'\n');
        self.batch_output_len += content.len() as u64 + u64::from(ends_line);
        if self.batch.len() >= BATCH_LEN {
            self.flush();
        }
    }

    fn flush(&mut self) {
        match self.append() {
            Ok(()) => self.lost = 0,
            Err(_) => self.lost += self.batch_output_len,
        }
        self.batch.clear();
        self.batch_output_len = 0;
    }

    /// Appends the batch, all of it or nothing.
    fn append(&mut self) -> io::Result<()> {
        let batch_len = self.batch.len() as u64;
        if self.file_len > 0 && self.file_len + batch_len > self.max_file_len {
            self.rotate()?;
        }
        if let Err(error) = self.file.write_all(&self.batch) {
            // Takes back the part of an entry that there was room for.
            self.file.set_len(self.file_len)?;
            return Err(error);
        }
        self.file_len += batch_len;
        Ok(())
    }

    /// Goes on in an empty file. It is made before the full one is moved away, so that on a disk
    /// too full for it all stays as it is.
    fn rotate(&mut self) -> io::Result<()> {
        let new_path = with_suffix(&self.path, ".new");
        let new_file = open_log(&new_path)?;
        // One may be there from a rotation that was cut short.
        new_file.set_len(0)?;
        fs::rename(&self.path, rotated(&self.path))?;
        fs::rename(&new_path, &self.path)?;
        self.file = new_file;
        self.file_len = 0;
        Ok(())
    }
}

/// Opens a log file for appending, and for reading where the last entry ends.
fn open_log(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .mode(0o600)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    match file.metadata()?.file_type().is_fifo() {
        false => Ok(file),
        true => Err(io::Error::new(io::ErrorKind::InvalidData, "it is a FIFO")),
    }
}

/// Length of the file up to the end of its last complete line. A monitor that was killed, or a
/// power failure, may have left half a line, to which the next entry would be glued.
fn complete_len(file: &File, file_len: u64) -> io::Result<u64> {
    const BLOCK_LEN: usize = 4096;
    let mut block = [0; BLOCK_LEN];
    let mut end = file_len;
    while end > 0 {
        let start = end.saturating_sub(BLOCK_LEN as u64);
        let block = &mut block[..(end - start) as usize];
        file.read_exact_at(block, start)?;
        if let Some(newline) = block.iter().rposition(|&byte| byte == b'\n') {
            return Ok(start + newline as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}
