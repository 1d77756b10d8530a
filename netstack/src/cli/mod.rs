//! The command line: flags as typed, which become a checked [`Config`], and exit codes. `start`
//! brings up what the configuration says; only [`main`] prints errors.

pub mod coracle_net;

use std::ffi::CStr;
use std::fmt::Display;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::config::Config;
use crate::logging::{self, Filter};
use crate::start::{self, StartError};

/// A host port cannot be bound; as container engines have it, "the container could not be started".
const EXIT_PORT: u8 = 126;
const EXIT_FAILURE: u8 = 1;

/// What `ps`, `top` and `ss` show. 15 bytes at most (TASK_COMM_LEN).
const PROCESS_NAME: &CStr = c"coracle-net";

/// Runs the helper with the process's arguments until it is told to end.
pub fn main() -> ExitCode {
    // The kernel takes the name from the file that was executed, which may be /proc/self/exe.
    // Threads have their own.
    let _ = rustix::thread::set_name(PROCESS_NAME);
    let args = match coracle_net::Args::try_parse() {
        Ok(args) => args,
        Err(error) => return usage(&error),
    };
    let filter = Filter::from_environment().unwrap_or_else(|error| {
        eprintln!("coracle-net: {}: {error}", logging::VARIABLE);
        Filter::default()
    });
    logging::to_stderr(&filter);
    let config = match Config::try_from(args) {
        Ok(config) => config,
        Err(error) => return fail(&error, EXIT_FAILURE),
    };
    match start::run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, exit_code(&error)),
    }
}

fn fail(error: &impl Display, code: u8) -> ExitCode {
    eprintln!("coracle-net: {error}");
    ExitCode::from(code)
}

fn exit_code(error: &StartError) -> u8 {
    match error {
        StartError::Bind(_) => EXIT_PORT,
        _ => EXIT_FAILURE,
    }
}

/// Help and version are answers; anything else is an error in this program's own form.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        // A closed pipe is no failure of ours.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    eprint!(
        "coracle-net: {}",
        text.strip_prefix("error: ").unwrap_or(&text)
    );
    ExitCode::from(EXIT_FAILURE)
}

#[cfg(test)]
mod tests {
    use portfwd::BindError;

    use super::*;
    use crate::guest::GuestThreadEnded;

    #[test]
    fn only_a_port_clash_has_its_own_exit_code() {
        let port = StartError::Bind(BindError::InUse("127.0.0.1:80".parse().unwrap()));
        assert_eq!(exit_code(&port), 126);
        assert_eq!(exit_code(&StartError::Thread(GuestThreadEnded)), 1);
    }
}
