//! `coracle logs`: what a container has written, on the stream that it wrote it to.

use std::io::{self, Write};
use std::time::Duration;

use super::filter::time_option;
use super::{latest, open_engine, output_result};
use crate::cli::LogsArgs;
use crate::failure::Failure;
use crate::logs::{Entry, Line, Stream, Timestamp};
use crate::process::foreground::warn;

pub fn logs(args: LogsArgs) -> Result<u8, Failure> {
    let since = time_option("since", args.since.as_deref())?;
    let until = time_option("until", args.until.as_deref())?;
    let engine = open_engine()?;
    let name = match args.container {
        Some(name) => name,
        None => latest(&engine)?,
    };
    let mut log = engine.logs(&name, args.tail.0)?;
    let mut lines = Lines::default();
    loop {
        let writer = args.follow.then(|| log.writer()).flatten();
        while let Some(line) = log.next_line()? {
            let entry = match line {
                Line::Output(entry) => entry,
                Line::Lost(bytes) => {
                    // Between what came before and after it, where both go to one place.
                    output_result(io::stdout().flush())?;
                    warn(&missing(bytes));
                    continue;
                }
            };
            let at = entry.time.as_second();
            if since.is_some_and(|since| at < since) {
                continue;
            }
            if until.is_some_and(|until| at >= until) {
                return output_result(io::stdout().flush()).map(|()| 0);
            }
            let stream = entry.stream;
            let mut output = match args.timestamps {
                true => lines.time_before(&entry),
                false => Vec::new(),
            };
            output.extend(entry.output());
            let written = match stream {
                Stream::Stdout => io::stdout().write_all(&output),
                Stream::Stderr => io::stderr().write_all(&output),
            };
            if written.is_err() {
                // A reader that has seen enough is no failure.
                return output_result(written).map(|()| 0);
            }
        }
        // The last line may have no newline, which keeps it in the buffer.
        output_result(io::stdout().flush())?;
        let is_over = until.is_some_and(|until| Timestamp::now().as_second() >= until);
        match writer.filter(|_| !is_over) {
            Some(writer) => log.wait(&writer, Duration::from_secs(1))?,
            None => return Ok(0),
        }
    }
}

fn missing(bytes: u64) -> String {
    format!(
        "{bytes} bytes of output are missing from the log here: they could not be written, as on a full disk"
    )
}

/// Which of the two streams are within a line.
#[derive(Debug, Default)]
struct Lines {
    stdout_goes_on: bool,
    stderr_goes_on: bool,
}

impl Lines {
    /// When a line was begun, for its beginning: an entry may be a later part of one.
    fn time_before(&mut self, entry: &Entry) -> Vec<u8> {
        let goes_on = match entry.stream {
            Stream::Stdout => &mut self.stdout_goes_on,
            Stream::Stderr => &mut self.stderr_goes_on,
        };
        match std::mem::replace(goes_on, !entry.ends_line) {
            true => Vec::new(),
            false => format!("{} ", entry.time).into_bytes(),
        }
    }
}
