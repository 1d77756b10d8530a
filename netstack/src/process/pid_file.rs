//! A file with the number of the process that stays, for whoever is to end it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::process::Pid;

use crate::output_file;

/// The file, empty until it is written.
#[derive(Debug)]
pub struct PidFile {
    file: File,
    path: PathBuf,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot write the PID file {path}: {source}")]
pub struct PidFileError {
    path: PathBuf,
    source: io::Error,
}

impl PidFile {
    /// Makes the file, for this user only, or empties the one that is there.
    pub fn create(path: &Path) -> Result<Self, PidFileError> {
        match output_file::create(path, OpenOptions::new().write(true)) {
            Ok(file) => Ok(Self {
                file,
                path: path.to_owned(),
            }),
            Err(source) => Err(PidFileError {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// Writes the number, in digits and with an end of line.
    pub fn write(mut self, process: Pid) -> Result<(), PidFileError> {
        let line = format!("{}\n", process.as_raw_nonzero());
        self.file
            .write_all(line.as_bytes())
            .map_err(|source| PidFileError {
                path: self.path,
                source,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_and_an_end_of_line_replace_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        std::fs::write(&path, "4294967295 and more").unwrap();
        let file = PidFile::create(&path).unwrap();
        file.write(Pid::from_raw(4711).unwrap()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "4711\n");
    }

    #[test]
    fn the_file_is_named_that_cannot_be_made() {
        let error = PidFile::create(Path::new("/no/such/file")).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("cannot write the PID file /no/such/file: "),
            "{text}"
        );
    }
}
