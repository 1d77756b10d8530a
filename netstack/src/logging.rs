//! What coracle's programs log about themselves: how much, and how a line looks.
//!
//! A [`Filter`] says how much, in the syntax of tracing's `EnvFilter`. It comes from `CORACLE_LOG`,
//! which is also how it reaches the programs that a program starts. Lines on stderr have no time,
//! as whoever collects them adds it; lines of a file have. A line that cannot be written is lost
//! without a word: stderr may be somebody else's.

use std::fmt::{self, Display};
use std::fs::File;
use std::io::{self, IsTerminal};
use std::str::FromStr;

use rustix::fs::FileType;
use serde::{Deserialize, Serialize};
use tracing::Dispatch;
use tracing::dispatcher::set_global_default;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Holds a [`Filter`].
pub const VARIABLE: &str = "CORACLE_LOG";

/// How much is logged: a level, or levels by module and span, as in `warn,netstack::driver=trace`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter(String);

#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not a log filter: {source}")]
pub struct InvalidFilter {
    text: String,
    source: tracing_subscriber::filter::ParseError,
}

impl Filter {
    /// What `CORACLE_LOG` asks for; the default if it is not set.
    pub fn from_environment() -> Result<Self, InvalidFilter> {
        match std::env::var_os(VARIABLE) {
            Some(text) => text.to_string_lossy().parse(),
            None => Ok(Self::default()),
        }
    }
}

impl Default for Filter {
    /// Warnings and errors.
    fn default() -> Self {
        Self("warn".to_owned())
    }
}

impl FromStr for Filter {
    type Err = InvalidFilter;

    fn from_str(text: &str) -> Result<Self, InvalidFilter> {
        match EnvFilter::try_new(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(source) => Err(InvalidFilter {
                text: text.to_owned(),
                source,
            }),
        }
    }
}

impl Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Logs to stderr, for the rest of the process's life.
pub fn to_stderr(filter: &Filter) {
    let form = Form {
        has_colours: io::stderr().is_terminal(),
        has_time: is_file(io::stderr()),
    };
    start(dispatch(filter, io::stderr, form));
}

/// Logs to what `writer` makes, plain text without the time, for the rest of the process's life.
pub fn to_writer<W>(filter: &Filter, writer: W)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    start(dispatch(filter, writer, Form::default()));
}

/// As [`to_writer`], with the time.
pub fn to_timed_writer<W>(filter: &Filter, writer: W)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let form = Form {
        has_colours: false,
        has_time: true,
    };
    start(dispatch(filter, writer, form));
}

/// Logs to a file, for as long as the returned value is somebody's default.
pub fn to_file(filter: &Filter, file: File) -> Dispatch {
    let form = Form {
        has_colours: false,
        has_time: true,
    };
    dispatch(filter, file, form)
}

#[derive(Debug, Default)]
struct Form {
    has_colours: bool,
    has_time: bool,
}

fn dispatch<W>(filter: &Filter, writer: W, form: Form) -> Dispatch
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&filter.0))
        .with_writer(writer)
        .with_ansi(form.has_colours)
        .with_target(false)
        .log_internal_errors(false);
    match form.has_time {
        true => Dispatch::new(lines.finish()),
        false => Dispatch::new(lines.without_time().finish()),
    }
}

/// The first in a process counts.
fn start(dispatch: Dispatch) {
    let _ = set_global_default(dispatch);
}

fn is_file(stream: io::Stderr) -> bool {
    rustix::fs::fstat(stream)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_checked_and_handed_on_as_it_was() {
        for text in ["debug", "warn,netstack::driver=trace", "off"] {
            assert_eq!(text.parse::<Filter>().unwrap().to_string(), text);
        }
        let error = "netstack=loud".parse::<Filter>().unwrap_err().to_string();
        assert!(
            error.starts_with("\"netstack=loud\" is not a log filter: "),
            "{error}"
        );
    }

    #[test]
    fn lines_of_a_file_have_the_time_and_the_filter_holds() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        let file = File::options().append(true).open(&path).unwrap();
        let filter = "info".parse().unwrap();
        tracing::dispatcher::with_default(&to_file(&filter, file), || {
            let _span = tracing::info_span!("monitor", container = "0123").entered();
            tracing::debug!("not asked for");
            tracing::info!(pid = 7, "init was started");
        });
        let text = std::fs::read_to_string(&path).unwrap();
        let (time, rest) = text.split_once(' ').unwrap();
        assert!(time.ends_with('Z'), "{text}");
        assert_eq!(
            rest.trim_start(),
            "INFO monitor{container=\"0123\"}: init was started pid=7\n"
        );
    }
}
