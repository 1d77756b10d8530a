//! `coracle commit`: makes an image of a working container.

use super::print_line;
use super::workshop::Workshop;
use crate::build::commit::{CommitRequest, commit as make_image};
use crate::cli::CommitArgs;
use crate::engine::{Image, ImageName};
use crate::failure::Failure;
use crate::printable::put;
use crate::process::foreground::warn;
use crate::process::inherited::Inherited;

pub fn commit(args: CommitArgs, inherited: &Inherited) -> Result<u8, Failure> {
    let workshop = Workshop::enter(inherited)?;
    let container = workshop.find(&args.container)?;
    let name = args.image.as_deref();
    let name = name
        .map(|name| name.parse::<ImageName>()?.to_tag())
        .transpose()?;
    let request = CommitRequest {
        names: name.into_iter().collect(),
        squash: args.squash,
        timestamp: args.timestamp,
        ..CommitRequest::default()
    };
    let (working, images) = (&workshop.working, &workshop.images);
    let image = make_image(working, images, &container, request, &mut warn)?;
    if !args.quiet {
        tell(&image, container.config.rootfs.diff_ids.len());
    }
    if args.rm {
        workshop.working.remove(&container)?;
    }
    if let Some(file) = &args.iidfile {
        let doing = format!("cannot write {}", file.display());
        std::fs::write(file, image.id.to_string()).map_err(Failure::context(doing))?;
    }
    print_line(image.id.hex())?;
    Ok(0)
}

/// Podman's lines; `before` layers were there already.
fn tell(image: &Image, before: usize) {
    put("Getting image source signatures\n");
    for (number, layer) in image.layers().iter().enumerate() {
        let state = match number < before {
            true => "skipped: already exists",
            false => "done",
        };
        put(&format!("Copying blob {} {state}\n", layer.blob.short()));
    }
    put(&format!("Copying config {} done\n", &image.id.hex()[..10]));
    put("Writing manifest to image destination\nStoring signatures\n");
}
