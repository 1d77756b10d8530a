//! A log file of bounded size. It begins with a line that says what writes to it. Once it is full,
//! the older third of the lines behind that one is taken out, so that it has between half and all
//! of the size that it may have from then on, in the order of time.
//!
//! It works on one open file: the sandbox has no path. Whoever reads the file while lines are taken
//! out may see some of them twice.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::output_file;

/// What is used where no size is asked for, in bytes.
pub const DEFAULT_SIZE: u64 = 1 << 20;

/// The smallest size that can be asked for, in bytes: enough lines for the order of a start.
pub const MIN_SIZE: u64 = 40 << 10;

/// An open log file.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    path: PathBuf,
    max_len: u64,
    len: u64,
    /// The first line.
    head_len: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot write the log file {path}: {source}")]
pub struct LogFileError {
    path: PathBuf,
    source: io::Error,
}

impl LogFile {
    /// Makes the file, for this user only, or empties the one that is there. It will have `max_len`
    /// bytes at most, which are [`MIN_SIZE`] at least.
    pub fn create(path: &Path, max_len: u64) -> Result<Self, LogFileError> {
        let error = |source| LogFileError {
            path: path.to_owned(),
            source,
        };
        let options = &mut OpenOptions::new();
        let file = output_file::create(path, options.read(true).write(true)).map_err(error)?;
        if !file.metadata().map_err(error)?.is_file() {
            return Err(error(io::Error::other("it is not a regular file")));
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            max_len,
            len: 0,
            head_len: 0,
        })
    }

    /// Writes the first line, which stays.
    pub fn begin(&mut self, line: &str) -> Result<(), LogFileError> {
        let line = format!("{line}\n");
        self.file
            .write_all_at(line.as_bytes(), 0)
            .map_err(|source| LogFileError {
                path: self.path.clone(),
                source,
            })?;
        self.head_len = line.len() as u64;
        self.len = self.head_len;
        Ok(())
    }

    /// Adds a line, which has its end of line.
    pub fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let room = self.max_len.saturating_sub(self.head_len);
        let line = &line[..line
            .len()
            .min(usize::try_from(room / 2).unwrap_or(usize::MAX))];
        if self.len + line.len() as u64 > self.max_len {
            self.take_out_older_third()?;
        }
        self.file.write_all_at(line, self.len)?;
        self.len += line.len() as u64;
        Ok(())
    }

    /// Moves the newer lines to where the older ones begin.
    fn take_out_older_third(&mut self) -> io::Result<()> {
        let from = self.head_len + (self.len - self.head_len) / 3;
        let mut newer = vec![0; (self.len - from) as usize];
        self.file.read_exact_at(&mut newer, from)?;
        let first_line = newer.iter().position(|byte| *byte == b'\n');
        let kept = &newer[first_line.map_or(newer.len(), |end| end + 1)..];
        self.file.write_all_at(kept, self.head_len)?;
        self.len = self.head_len + kept.len() as u64;
        self.file.set_len(self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_newer_lines_stay_whole_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "of an earlier run\n").unwrap();
        let mut log = LogFile::create(&path, MIN_SIZE).unwrap();
        log.begin("pasta: first").unwrap();
        let mut has_been_full = false;
        for number in 0..20_000 {
            log.write(format!("{number} a line\n").as_bytes()).unwrap();
            let len = fs::metadata(&path).unwrap().len();
            assert!(len <= MIN_SIZE);
            has_been_full |= len > MIN_SIZE - 20;
            assert!(!has_been_full || len >= MIN_SIZE / 2, "{len}");
        }
        let text = fs::read_to_string(&path).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("pasta: first"));
        let numbers: Vec<u32> = lines
            .map(|line| line.strip_suffix(" a line").unwrap().parse().unwrap())
            .collect();
        assert!(numbers.is_sorted());
        assert_eq!(numbers.last(), Some(&19_999));
        assert_eq!(numbers.len() as u32, 20_000 - numbers[0], "none is missing");
    }

    #[test]
    fn a_line_of_any_length_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::create(&path, MIN_SIZE).unwrap();
        log.begin("pasta: first").unwrap();
        for _ in 0..5 {
            log.write(&vec![b'x'; 1 << 20]).unwrap();
            assert!(fs::metadata(&path).unwrap().len() <= MIN_SIZE);
        }
    }

    #[test]
    fn what_is_no_file_is_refused_by_name() {
        for path in ["/dev/null", "/no/such/file", "/"] {
            let error = LogFile::create(Path::new(path), MIN_SIZE).unwrap_err();
            assert!(error.to_string().contains(path), "{error}");
        }
    }
}
