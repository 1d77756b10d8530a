//! `coracle system`: what is kept beside containers and images.

use super::check::check;
use super::df::{df, prune};
use super::info::info;
use crate::cli::{SystemArgs, SystemCommand};
use crate::failure::Failure;
use crate::process::holder;
use crate::state::Dirs;

pub fn system(args: SystemArgs) -> Result<u8, Failure> {
    match args.command {
        SystemCommand::Migrate => migrate(),
        SystemCommand::Df(args) => df(&args),
        SystemCommand::Prune(args) => prune(&args),
        SystemCommand::Check(args) => check(&args),
        SystemCommand::Info(args) => info(&args),
    }
}

/// Ends the namespaces that commands share.
fn migrate() -> Result<u8, Failure> {
    let run = Dirs::discover()?.run;
    let doing = "cannot end the namespaces of `coracle unshare`";
    holder::end(&run).map_err(Failure::context(doing))?;
    Ok(0)
}
