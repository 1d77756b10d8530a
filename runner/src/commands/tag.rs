//! `coracle tag` and `coracle untag`: names of images.

use super::open_engine;
use crate::cli::{TagArgs, UntagArgs};
use crate::engine::{ImageName, ImageRef, NameError};
use crate::failure::Failure;

pub fn tag(args: TagArgs) -> Result<u8, Failure> {
    let engine = open_engine()?;
    let store = engine.images()?;
    let (image, _) = store.find(&args.image)?;
    // All are read before the first is given.
    for name in names(&args.names)? {
        store.tag(&image.id, &name)?;
        engine.note_image("tag", &image, &name.to_string());
    }
    Ok(0)
}

pub fn untag(args: UntagArgs) -> Result<u8, Failure> {
    let engine = open_engine()?;
    let store = engine.images()?;
    let (image, _) = store.find(&args.image)?;
    let mut meant = Vec::new();
    for name in &args.names {
        let (other, as_name) = store.find(name)?;
        match as_name.filter(|_| other.id == image.id) {
            Some(name) => meant.push(name),
            None => {
                let text = format!("{name} is no name of image {}", image.id.short());
                return Err(Failure::runner(text));
            }
        }
    }
    store.untag(&image.id, &meant)?;
    for name in &meant {
        engine.note_image("untag", &image, &name.to_string());
    }
    Ok(0)
}

fn names(texts: &[String]) -> Result<Vec<ImageRef>, NameError> {
    let read = |text: &String| text.parse::<ImageName>()?.to_tag();
    texts.iter().map(read).collect()
}
