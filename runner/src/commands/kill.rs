//! `coracle kill`: a signal to the first process of containers.

use super::{for_each, open_engine, print_line, select};
use crate::cli::KillArgs;
use crate::failure::Failure;

pub fn kill(args: KillArgs) -> Result<u8, Failure> {
    let engine = open_engine()?;
    let names = select(&engine, &args.containers, args.all, |c| c.status.can_kill())?;
    for_each(&names, |name| {
        engine.kill(name, args.signal)?;
        print_line(name)
    })
}
