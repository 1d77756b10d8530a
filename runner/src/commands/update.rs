//! `coracle update`: other limits and another restart policy for a container.

use super::{open_engine, print_line};
use crate::cli::UpdateArgs;
use crate::engine::UpdateRequest;
use crate::failure::Failure;
use crate::process::foreground::warn;

pub fn update(args: &UpdateArgs) -> Result<u8, Failure> {
    let request = UpdateRequest {
        resources: args.limits.resources(),
        restart: args.restart,
    };
    let updated = open_engine()?.update(&args.container, &request, &mut warn)?;
    print_line(updated.id.as_str())?;
    Ok(0)
}
