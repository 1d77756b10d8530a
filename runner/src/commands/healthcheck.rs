//! `coracle healthcheck run`: the health check of a container, once and now.

use super::{open_engine, print_line};
use crate::cli::HealthcheckCommand;
use crate::failure::Failure;

pub fn healthcheck(command: HealthcheckCommand) -> Result<u8, Failure> {
    let HealthcheckCommand::Run(args) = command;
    match open_engine()?.check_health(&args.container)? {
        true => Ok(0),
        false => {
            print_line("unhealthy")?;
            Ok(1)
        }
    }
}
