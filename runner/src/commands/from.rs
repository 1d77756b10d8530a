//! `coracle from`: begins a working container.

use super::print_line;
use super::workshop::Workshop;
use crate::cli::FromArgs;
use crate::failure::Failure;
use crate::process::inherited::Inherited;

pub fn from(args: FromArgs, inherited: &Inherited) -> Result<u8, Failure> {
    let workshop = Workshop::enter(inherited)?;
    let name = args.name.as_deref();
    let container = workshop.begin(&args.image, name, args.pull, &args.registry, args.quiet)?;
    print_line(&container.name)?;
    Ok(0)
}
