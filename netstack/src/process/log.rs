//! Where the messages of a helper go that has a log file, or goes to the background: to the file;
//! or to the caller's error output until it is ready, and to the system's log, if there is one,
//! from then on.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use super::background::Words;
use super::log_file::LogFile;
use super::syslog::Syslog;
use crate::logging::{self, Filter};

/// The place of the messages, which tracing writes to as well.
#[derive(Clone, Debug)]
pub struct Log(Arc<Place>);

#[derive(Debug)]
enum Place {
    Stderr,
    File(Mutex<LogFile>),
    Caller {
        words: Words,
        /// Connected from the beginning: once the sandbox is closed it would be too late.
        syslog: Option<Syslog>,
        name: &'static str,
    },
}

impl Log {
    /// Of a foreground process without a log file.
    pub fn to_stderr() -> Self {
        Self(Arc::new(Place::Stderr))
    }

    pub fn to_file(file: LogFile) -> Self {
        Self(Arc::new(Place::File(Mutex::new(file))))
    }

    /// Of a background process without a log file, which has `name` in the system's log.
    pub fn to_caller(words: Words, name: &'static str) -> Self {
        Self(Arc::new(Place::Caller {
            words,
            syslog: Syslog::connect(),
            name,
        }))
    }

    /// Logs here for the rest of the process's life.
    pub fn start(self, filter: &Filter) {
        match *self.0 {
            Place::Stderr => logging::to_stderr(filter),
            Place::File(_) => logging::to_timed_writer(filter, self),
            Place::Caller { .. } => logging::to_writer(filter, self),
        }
    }

    fn write(&self, level: Level, line: &[u8]) -> io::Result<()> {
        match &*self.0 {
            Place::Stderr => io::stderr().write_all(line),
            Place::File(file) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.write(line)
            }
            Place::Caller {
                words,
                syslog,
                name,
            } => {
                if !words.say(line)
                    && let Some(syslog) = syslog
                {
                    syslog.write(level, name, &String::from_utf8_lossy(line));
                }
                Ok(())
            }
        }
    }
}

impl<'w> MakeWriter<'w> for Log {
    type Writer = Line<'w>;

    fn make_writer(&'w self) -> Line<'w> {
        Line {
            log: self,
            level: Level::INFO,
        }
    }

    fn make_writer_for(&'w self, event: &Metadata<'_>) -> Line<'w> {
        Line {
            log: self,
            level: *event.level(),
        }
    }
}

/// What one message is written by, in one go.
#[derive(Debug)]
pub struct Line<'l> {
    log: &'l Log,
    level: Level,
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.log.write(self.level, line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
