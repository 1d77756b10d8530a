//! `coracle import`: an image of a root file system in a tar.

use std::fs::File;
use std::io::{self, Read};

use super::{open_engine, print_line};
use crate::cli::ImportArgs;
use crate::engine::ImageName;
use crate::failure::Failure;
use crate::process::foreground::warn;

pub fn import(args: ImportArgs) -> Result<u8, Failure> {
    let name = args.name.map(|name| name.parse::<ImageName>()?.to_tag());
    let name = name.transpose()?;
    let tar: Box<dyn Read> = match args.path.to_str() {
        Some("-") => Box::new(io::stdin()),
        Some(url) if url.starts_with("http://") || url.starts_with("https://") => {
            return Err(Failure::runner(format!(
                "coracle does not import from addresses: curl -L {url} | coracle import -"
            )));
        }
        _ => {
            let doing = format!("cannot open {}", args.path.display());
            Box::new(File::open(&args.path).map_err(Failure::context(doing))?)
        }
    };
    let engine = open_engine()?;
    let store = engine.images()?;
    let image = store.import(tar, name, &args.changes, args.message, &mut warn)?;
    engine.note_image("import", &image, &args.path.to_string_lossy());
    print_line(&image.id.to_string())?;
    Ok(0)
}
