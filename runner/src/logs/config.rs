//! Whether and how much of what a container writes is kept.

use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{LogWriter, MAX_FILE_LEN};

/// What a container's log is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    pub driver: LogDriver,
    /// In bytes, of all its files; 32 MiB when not given.
    pub max_size: Option<u64>,
}

/// Podman's names for what keeps a log. `json-file` is another for `k8s-file` there as well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogDriver {
    #[default]
    #[serde(rename = "k8s-file")]
    K8sFile,
    #[serde(rename = "json-file")]
    JsonFile,
    #[serde(rename = "none")]
    None,
}

/// So that a few lines are always there, in bytes.
pub const MAX_SIZE_MIN: u64 = 1024;

impl LogConfig {
    /// Opens the log for the container's one writer, if there is to be one.
    pub fn open(&self, path: &Path) -> io::Result<Option<LogWriter>> {
        match self.driver {
            LogDriver::None => Ok(None),
            LogDriver::K8sFile | LogDriver::JsonFile => {
                // There are two files.
                let file_len = self.max_size.map_or(MAX_FILE_LEN, |size| size / 2);
                LogWriter::with_max_file_len(path, file_len).map(Some)
            }
        }
    }
}

impl fmt::Display for LogDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::K8sFile => "k8s-file",
            Self::JsonFile => "json-file",
            Self::None => "none",
        })
    }
}

impl FromStr for LogDriver {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "k8s-file" => Self::K8sFile,
            "json-file" => Self::JsonFile,
            "none" => Self::None,
            "journald" => {
                return Err(
                    "coracle does not write to the system's journal: a container in the foreground of a unit has its output there",
                );
            }
            "passthrough" => {
                return Err(
                    "coracle keeps its hand on what a container writes: in the foreground, with none, it goes to the caller alone",
                );
            }
            _ => return Err("there are k8s-file, json-file and none"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::Stream;

    #[test]
    fn a_log_is_as_long_as_was_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let config = LogConfig {
            max_size: Some(4000),
            ..LogConfig::default()
        };
        let mut writer = config.open(&path).unwrap().expect("a log");
        for _ in 0..1000 {
            writer.write(Stream::Stdout, b"0123456789\n");
        }
        let files = std::fs::read_dir(dir.path()).unwrap();
        let len: u64 = files
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum();
        assert!((2000..=4000).contains(&len), "{len}");
        let none = LogConfig {
            driver: LogDriver::None,
            max_size: None,
        };
        assert!(none.open(&dir.path().join("none")).unwrap().is_none());
        assert!(!dir.path().join("none").exists());
    }

    #[test]
    fn drivers_are_read_as_they_are_printed() {
        for text in ["k8s-file", "json-file", "none"] {
            let driver: LogDriver = text.parse().expect(text);
            assert_eq!(driver.to_string(), text);
            assert_eq!(serde_json::to_value(driver).unwrap(), text);
        }
        for text in ["journald", "passthrough", "", "syslog"] {
            text.parse::<LogDriver>().expect_err(text);
        }
    }
}
