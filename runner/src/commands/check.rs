//! `coracle system check`: damage in the storage of images.

use super::{open_engine, print_line};
use crate::cli::CheckArgs;
use crate::engine::Engine;
use crate::failure::Failure;
use crate::images::digest::Digest;
use crate::images::error::StorageError;
use crate::images::store::check::{Defect, Mended, Report};

pub fn check(args: &CheckArgs) -> Result<u8, Failure> {
    let engine = open_engine()?;
    let store = engine.images()?;
    let Report {
        images,
        blobs,
        layers,
        defects,
    } = store.check(args.quick)?;
    if defects.is_empty() {
        print_line(&format!(
            "no damage in {images} images, {blobs} blobs and {layers} layers"
        ))?;
        return Ok(0);
    }
    if !args.repair {
        defects
            .iter()
            .try_for_each(|defect| print_line(&defect.to_string()))?;
        return Err(Failure::runner(format!(
            "the storage is damaged in {} places: `coracle system check --repair` mends it",
            defects.len()
        )));
    }
    if args.force {
        remove_containers(&engine, &defects)?;
    }
    let in_use = |id: &Digest| in_use(&engine, id);
    let mut left = 0;
    for (defect, mended) in store.mend(&defects, &in_use)? {
        let rebuilt;
        let what = match mended {
            Mended::Removed => "removed",
            Mended::Rebuilt(count) => {
                rebuilt = format!(
                    "made anew with {count} images, whose names are lost: `coracle images -a`, `coracle tag`"
                );
                &rebuilt
            }
            Mended::Forgotten => "the image is forgotten: pull or load it again",
            Mended::InUse => {
                left += 1;
                "left, since a container uses the image: pull or load that again, or add --force"
            }
        };
        print_line(&format!("{defect}; {what}"))?;
    }
    match left {
        0 => Ok(0),
        _ => Err(Failure::runner(format!(
            "the storage is still damaged in {left} places"
        ))),
    }
}

fn remove_containers(engine: &Engine, defects: &[Defect]) -> Result<(), Failure> {
    for defect in defects {
        let (Defect::Missing { image, .. } | Defect::Unreadable { image, .. }) = defect else {
            continue;
        };
        for container in engine.containers_of(&image.id)? {
            engine.remove(container.id.as_str(), true)?;
            print_line(&format!("container {}: removed", container.name))?;
        }
    }
    Ok(())
}

fn in_use(engine: &Engine, id: &Digest) -> Result<bool, StorageError> {
    match engine.containers_of(id) {
        Ok(containers) => Ok(!containers.is_empty()),
        Err(error) => Err(StorageError::Containers {
            source: Box::new(error),
        }),
    }
}
