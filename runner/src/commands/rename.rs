//! `coracle rename`: another name for a container.

use super::open_engine;
use crate::cli::RenameArgs;
use crate::failure::Failure;

pub fn rename(args: &RenameArgs) -> Result<u8, Failure> {
    open_engine()?.rename(&args.container, &args.name)?;
    Ok(0)
}
