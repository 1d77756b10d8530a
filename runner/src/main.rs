//! The `coracle` program. Which of its roles it plays is told by the name that it was started under; this file alone prints errors
//! and picks exit codes.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use runner::cli::Cli;
use runner::inherited::Inherited;
use runner::selfexec::{EXEC_ROLE, INIT_ROLE};

/// What clap returns for a command line that it does not understand is a failure of coracle itself.
const USAGE_ERROR: u8 = 125;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let name = args
        .first()
        .and_then(|name| Path::new(name).file_name())
        .and_then(|name| name.to_str());
    match name {
        Some("coracle-net") => netstack::cli::main(),
        Some(INIT_ROLE) => runner::init::main(&args),
        Some(EXEC_ROLE) => runner::exec::main(&args),
        _ => coracle(&args),
    }
}

fn coracle(args: &[OsString]) -> ExitCode {
    let inherited = Inherited::put_in_order();
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Fails only when nobody listens.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE_ERROR } else { 0 });
        }
    };
    match runner::commands::dispatch(cli, &inherited) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("coracle: {failure}");
            ExitCode::from(failure.kind.exit_code())
        }
    }
}
