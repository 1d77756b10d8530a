//! `coracle logs`: what a container has written, on the stream that it wrote it to.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use super::{open_store, output_result};
use crate::cli::LogsArgs;
use crate::failure::Failure;
use crate::logs::{LogReader, Stream};

pub fn logs(args: LogsArgs) -> Result<u8, Failure> {
    let store = open_store()?;
    let container = store.find(&args.container)?;
    let path = store.dir(&container).log();
    let unreadable = || Failure::context(format!("cannot read {}", path.display()));
    let mut reader = LogReader::open(&path, args.tail).map_err(unreadable())?;
    loop {
        // Asked before reading: what the monitor wrote last is read even if it ends in between.
        let writer = args
            .follow
            .then(|| container.monitor.as_ref()?.open())
            .flatten();
        while let Some(entry) = reader.next_entry().map_err(unreadable())? {
            let stream = entry.stream;
            let written = match stream {
                Stream::Stdout => io::stdout().write_all(&entry.output()),
                Stream::Stderr => io::stderr().write_all(&entry.output()),
            };
            if written.is_err() {
                // A reader that has seen enough is no failure.
                return output_result(written).map(|()| 0);
            }
        }
        // The last line may have no newline, which keeps it in the buffer.
        output_result(io::stdout().flush())?;
        if writer.is_none() {
            return Ok(0);
        }
        reader
            .wait(writer.as_ref().map(AsFd::as_fd), Duration::from_secs(1))
            .map_err(unreadable())?;
    }
}
