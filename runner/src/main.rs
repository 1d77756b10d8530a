//! The `coracle` program, unless it plays one of its other roles. This file alone prints errors and
//! picks exit codes.

use std::ffi::OsString;
use std::process::ExitCode;

use runner::cli::{self, Command, ImageCommand, NetworkCommand, Unread, VolumeCommand};
use runner::failure::{Failure, FailureKind};
use runner::inherited::Inherited;
use runner::logging;
use runner::printable::complain;

/// No command at all is a failure of coracle itself, though the help is the answer to it.
const USAGE_ERROR: u8 = 125;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    runner::roles::play(&args).unwrap_or_else(|| coracle(&args))
}

fn coracle(args: &[OsString]) -> ExitCode {
    let inherited = Inherited::put_in_order();
    let cli = match cli::read(args) {
        Ok(cli) => cli,
        Err(Unread::Answer(answer)) => {
            return match runner::commands::output_result(answer.print()) {
                Ok(()) => ExitCode::from(if answer.use_stderr() { USAGE_ERROR } else { 0 }),
                Err(failure) => fail(&failure, FailureKind::exit_code),
            };
        }
        Err(Unread::Wrong(failure)) => return fail(&failure, FailureKind::exit_code),
    };
    let filter = logging::filter(cli.log_level);
    logging::to_stderr(&filter);
    let exit_code = match cli.command {
        Command::Rm(_)
        | Command::Rmi(_)
        | Command::Image(ImageCommand::Rm(_))
        | Command::Network(NetworkCommand::Rm(_))
        | Command::Volume(VolumeCommand::Rm(_)) => FailureKind::exit_code_of_rm,
        _ => FailureKind::exit_code,
    };
    match runner::commands::dispatch(cli.command, &inherited, filter) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => fail(&failure, exit_code),
    }
}

fn fail(failure: &Failure, exit_code: fn(FailureKind) -> u8) -> ExitCode {
    complain(failure);
    ExitCode::from(exit_code(failure.kind))
}
