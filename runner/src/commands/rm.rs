//! `coracle rm`: forgets containers that have ended, and with `-f` ends them first; working
//! containers as well, by their names.

use super::{for_each, open_engine, print_line, select, unshare};
use crate::build::store::Working;
use crate::cli::RmArgs;
use crate::engine::{Engine, ErrorKind, Removed};
use crate::failure::Failure;
use crate::process::inherited::Inherited;

pub fn rm(args: RmArgs, inherited: &Inherited) -> Result<u8, Failure> {
    let engine = open_engine()?;
    let names = select(&engine, &args.containers, args.all, |c| {
        args.force || c.status.can_remove()
    })?;
    if names.iter().any(|name| working(&engine, name).is_some()) {
        // Their files may belong to sub-IDs, and they may be mounted.
        unshare::go_on_as_root(inherited)?;
    }
    let remove = |name: &str| match args.volumes {
        true => engine.remove_with_volumes(name, args.force),
        false => engine.remove(name, args.force),
    };
    for_each(&names, |name| {
        if let Some(container) = working(&engine, name) {
            engine.working().remove(&container)?;
            return print_line(name);
        }
        match remove(name)? {
            Removed::Removed => print_line(name),
            Removed::WasNotThere => Ok(()),
        }
    })
}

/// The working container that is meant, unless a container is.
fn working(engine: &Engine, name: &str) -> Option<Working> {
    match engine.find(name) {
        Err(error) if error.kind() == ErrorKind::NoSuchContainer => {
            engine.working().find(name).ok()
        }
        _ => None,
    }
}
