//! Doors to what reads texts and bytes of strangers, for fuzz targets: each takes what came from
//! outside, and tells what was wrong with it.

use std::io;
use std::path::Path;

use crate::build::containerfile::{self, Action, mount::Mount};
use crate::build::expand;
use crate::build::tree::open_directory;
use crate::images::layers::apply::{Owners, Tree};
use crate::images::layers::tar::Members;

/// Reads a Containerfile, and all that its instructions say in words.
///
/// # Errors
/// The line, from 1 on, and what is wrong with it.
pub fn containerfile(text: &str) -> Result<(), (usize, String)> {
    let file = containerfile::parse(text).map_err(|error| (error.line, error.defect))?;
    let lookup = |name: &str| (name.len() % 2 == 1).then(|| name.to_owned());
    for instruction in file.stages.iter().flat_map(|stage| &stage.instructions) {
        let read = match &instruction.action {
            Action::Copy(copy) => {
                for document in &copy.documents {
                    let _ = expand::text(&document.text, file.escape, &lookup);
                }
                copy.words.expand(file.escape, &lookup).map(drop)
            }
            Action::Run(run) => {
                for mount in &run.mounts {
                    let _ = expand::one(mount, file.escape, &lookup)
                        .map(|text| text.parse::<Mount>().map(drop));
                }
                Ok(())
            }
            Action::OnBuild(text) => {
                // It was read once, and reads so again.
                containerfile::parse_trigger(text, file.escape)
                    .map_err(|defect| (instruction.line, defect))?;
                Ok(())
            }
            _ => expand::words(&instruction.text, file.escape, &lookup).map(drop),
        };
        read.map_err(|error| (instruction.line, error.to_string()))?;
    }
    Ok(())
}

/// Applies a layer's tar to a directory, as the lowest layer of an image and then as one over it,
/// with the owners recorded.
///
/// # Errors
/// Why it was refused.
pub fn layer(tar: &[u8], tree: &Path) -> Result<(), String> {
    for is_lowest in [true, false] {
        let root = open_directory(tree).map_err(|error| error.to_string())?;
        Tree::new(root, Owners::Recorded, is_lowest)
            .apply(&mut Members::new(tar))
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Removes a tree that was made so.
pub fn remove(tree: &Path) -> io::Result<()> {
    crate::state::remove_tree(tree)
}
