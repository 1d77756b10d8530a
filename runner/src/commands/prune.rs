//! `coracle image prune` and `coracle image exists`.

use std::io::{BufRead, Write};

use super::filter::{admits, check};
use super::images::{FILTERS, has};
use super::{exists, open_engine, output_result, print_line};
use crate::cli::{ExistsArgs, Filter, ImagePruneArgs};
use crate::engine::{Engine, EngineError, ErrorKind, Image};
use crate::failure::Failure;
use crate::process::inherited::Inherited;

pub fn image_exists(args: &ExistsArgs) -> Result<u8, Failure> {
    let found = open_engine()?.images()?.find(&args.name);
    exists(found.map_err(EngineError::from), ErrorKind::NoSuchImage)
}

pub fn image_prune(args: &ImagePruneArgs, inherited: &Inherited) -> Result<u8, Failure> {
    check(&args.filters, "image prune", FILTERS)?;
    if args.build_cache {
        // Their files may be sub-IDs'.
        super::unshare::go_on_as_root(inherited)?;
    }
    let warning = match args.all {
        true => {
            "This command removes all images without at least one container associated with them."
        }
        false => "This command removes all dangling images.",
    };
    if args.force || confirm(warning)? {
        if args.build_cache {
            open_engine()?.build_caches().prune()?;
        }
        for image in prune_images(&open_engine()?, args.all, &args.filters)? {
            print_line(image.id.hex())?;
        }
    }
    Ok(0)
}

/// Removes the images that no container uses and that have no name, or whatever name with `all`.
/// Returns those that are gone.
pub fn prune_images(engine: &Engine, all: bool, filters: &[Filter]) -> Result<Vec<Image>, Failure> {
    let store = engine.images()?;
    let mut gone = Vec::new();
    for image in store.list()? {
        let is_meant = all || image.names.is_empty();
        if !is_meant || !admits(filters, |filter| has(&image, filter, &store, engine))? {
            continue;
        }
        match engine.remove_unused_image(&image.id.to_string()) {
            Ok(_) => gone.push(image),
            // Or somebody else has removed it meanwhile.
            Err(error)
                if matches!(error.kind(), ErrorKind::ImageInUse | ErrorKind::NoSuchImage) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(gone)
}

/// Asks, as Podman does.
pub fn confirm(warning: &str) -> Result<bool, Failure> {
    let mut stdout = std::io::stdout();
    let asked = write!(
        stdout,
        "WARNING! {warning}\nAre you sure you want to continue? [y/N] "
    );
    output_result(asked.and_then(|()| stdout.flush()))?;
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    read.map_err(Failure::context("cannot read the answer"))?;
    Ok(answer.trim_start().starts_with(['y', 'Y']))
}
