//! `coracle export`: the file system of a container as a tar.

use std::io::{self, IsTerminal};

use super::cp::descriptor;
use super::open_engine;
use super::save::save_file;
use crate::cli::ExportArgs;
use crate::failure::Failure;

pub fn export(args: &ExportArgs) -> Result<u8, Failure> {
    let engine = open_engine()?;
    let wanted = &args.container;
    match &args.output {
        Some(path) => save_file(path, |out| -> Result<(), Failure> {
            Ok(engine.export(wanted, descriptor(out.get_ref())?)?)
        })?,
        None if io::stdout().is_terminal() => {
            return Err(Failure::runner(
                "will not write a tar to the terminal: name a file with --output, or use a pipe",
            ));
        }
        None => engine.export(wanted, descriptor(io::stdout())?)?,
    }
    Ok(0)
}
