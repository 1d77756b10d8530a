//! `coracle rm`: forgets containers that have ended, and with `-f` ends them first.

use super::{for_each, open_engine, print_line, select};
use crate::cli::RmArgs;
use crate::engine::Removed;
use crate::failure::Failure;

pub fn rm(args: RmArgs) -> Result<u8, Failure> {
    let engine = open_engine()?;
    let names = select(&engine, &args.containers, args.all, |c| {
        args.force || c.status.can_remove()
    })?;
    for_each(&names, |name| match engine.remove(name, args.force)? {
        Removed::Removed => print_line(name),
        Removed::WasNotThere => Ok(()),
    })
}
