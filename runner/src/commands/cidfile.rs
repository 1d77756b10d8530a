//! `--cidfile`: a file for the id of a container that is about to be made.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::state::Container;

/// The file, made before the container, so that nothing is to be undone where it cannot be. It
/// goes if there comes no container.
pub struct CidFile {
    file: Option<(File, PathBuf)>,
}

impl CidFile {
    /// Nothing for a command line without the flag.
    ///
    /// # Errors
    /// A file that is there already, as it may be another container's.
    pub fn create(path: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = path else {
            return Ok(Self { file: None });
        };
        let file = File::create_new(path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => Failure::runner(format!(
                "the file {} for the container's id is there already, perhaps another container's: remove it, or name another",
                path.display()
            )),
            _ => {
                let doing = format!("cannot make the file {} for the container's id", path.display());
                Failure::context(doing)(error)
            }
        })?;
        Ok(Self {
            file: Some((file, path.to_owned())),
        })
    }

    /// Writes the id of the container that has been made.
    pub fn tell(mut self, container: &Container) -> Result<(), Failure> {
        let Some((mut file, path)) = self.file.take() else {
            return Ok(());
        };
        let doing = format!("cannot write the container's id to {}", path.display());
        let written = file.write_all(container.id.as_str().as_bytes());
        written.map_err(Failure::context(doing))
    }
}

impl Drop for CidFile {
    fn drop(&mut self) {
        if let Some((_, path)) = &self.file {
            // It is of this process's making.
            let _ = fs::remove_file(path);
        }
    }
}
