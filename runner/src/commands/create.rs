//! `coracle create`: the first half of `coracle run`.

use super::cidfile::CidFile;
use super::request::request;
use super::run::{replace, source};
use super::{open_engine, print_line};
use crate::cli::CreateArgs;
use crate::failure::Failure;
use crate::process::foreground::warn;
use crate::process::inherited::Inherited;

pub fn create(args: CreateArgs, inherited: &Inherited) -> Result<u8, Failure> {
    let args = args.container;
    let engine = open_engine()?;
    let interactive = args.process.interactive;
    let source = source(&args, &engine)?;
    let request = request(&args, source, args.rm, interactive, inherited.limits)?;
    let cidfile = CidFile::create(args.cidfile.as_deref())?;
    replace(&args, &engine)?;
    let container = engine.create(request, &mut warn)?;
    cidfile.tell(&container)?;
    print_line(container.id.as_str())?;
    Ok(0)
}
