//! What the helper logs, and where to: stderr, as much as `CORACLE_LOG` asks for, else warnings.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

pub fn to_stderr() {
    let quiet = || EnvFilter::new("warn");
    let filter = match std::env::var("CORACLE_LOG") {
        Ok(text) => EnvFilter::try_new(&text).unwrap_or_else(|error| {
            eprintln!("coracle-net: CORACLE_LOG={text:?} is not a log filter: {error}");
            quiet()
        }),
        Err(_) => quiet(),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .init();
}
