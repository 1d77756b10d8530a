//! `coracle rmi`: takes names from images, and removes images.

use super::{for_each, open_engine, print_line, unshare};
use crate::cli::RmiArgs;
use crate::engine::{Engine, ErrorKind};
use crate::failure::Failure;
use crate::process::inherited::Inherited;

pub fn rmi(args: RmiArgs, inherited: &Inherited) -> Result<u8, Failure> {
    let engine = open_engine()?;
    if args.force && !engine.working().list()?.is_empty() {
        // Those of the images go as well.
        unshare::go_on_as_root(inherited)?;
    }
    let wanted = match args.all {
        false => args.images.clone(),
        true => {
            let images = engine.images()?.list()?;
            images.iter().map(|image| image.id.to_string()).collect()
        }
    };
    let code = for_each(&wanted, |wanted| remove(&engine, wanted, &args))?;
    if args.all {
        // What belongs to no image goes as well: downloads that broke off.
        engine.images()?.sweep()?;
    }
    Ok(code)
}

fn remove(engine: &Engine, wanted: &str, args: &RmiArgs) -> Result<(), Failure> {
    // All images are meant under all their names.
    let removed = match args.all && !args.force {
        true => engine.remove_unused_image(wanted),
        false => engine.remove_image(wanted, args.force),
    };
    let (image, removed) = match removed {
        Err(error) if args.ignore && error.kind() == ErrorKind::NoSuchImage => return Ok(()),
        removed => removed?,
    };
    for name in &removed.names {
        print_line(&format!("Untagged: {name}"))?;
    }
    match removed.image {
        true => print_line(&format!("Deleted: {}", image.id.hex())),
        false => Ok(()),
    }
}
