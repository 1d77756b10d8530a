//! `coracle load`: images from files.

use std::io::IsTerminal;

use super::{open_engine, print_line};
use crate::cli::LoadArgs;
use crate::engine::{Image, Place};
use crate::failure::Failure;
use crate::process::foreground::warn;

pub fn load(args: LoadArgs) -> Result<u8, Failure> {
    let stdin = std::io::stdin();
    if args.input.is_none() && stdin.is_terminal() {
        return Err(Failure::runner(
            "cannot read an image from the terminal: name a file with --input, or use a pipe",
        ));
    }
    let engine = open_engine()?;
    let store = engine.images()?;
    let images = match args.input {
        Some(path) => store.load(&Place::File(path), &mut warn)?,
        None => store.load_from(stdin.lock(), "the standard input", &mut warn)?,
    };
    for image in &images {
        engine.note_image("loadfromarchive", image, &shown(image));
    }
    if args.quiet {
        return Ok(0);
    }
    for image in images {
        if image.names.is_empty() {
            print_line(&format!("Loaded image: {}", image.id))?;
        }
        for name in &image.names {
            print_line(&format!("Loaded image: {name}"))?;
        }
    }
    Ok(0)
}

/// What an image is known by.
fn shown(image: &Image) -> String {
    let name = image.names.first().map(ToString::to_string);
    name.unwrap_or_else(|| image.id.hex().to_owned())
}
