//! Removing files that belong to a container's own users, which only root of a user namespace with
//! the container's IDs may.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::isolation::idmap::IdMaps;
use crate::isolation::namespaces::NamespaceError;
use crate::path_text;
use crate::process::owner;
use crate::state::{ContainerId, Dirs, Store};

/// `argv[0]` of the process.
pub const OWNER_ROLE: &str = "coracle-owner";

#[derive(Debug, Serialize, Deserialize)]
struct Job {
    dirs: Dirs,
    #[serde(with = "path_text")]
    run_dir: PathBuf,
    id: ContainerId,
}

/// Removes all files of a container that has ended, its record among them.
pub(super) fn remove_files(
    store: &Store,
    id: &ContainerId,
    run_dir: &Path,
    maps: &IdMaps,
) -> Result<(), NamespaceError> {
    let job = Job {
        dirs: store.dirs().clone(),
        run_dir: run_dir.to_owned(),
        id: id.clone(),
    };
    owner::run(OWNER_ROLE, &job, maps)
}

/// The process itself.
pub fn main() -> ExitCode {
    owner::main(|job: Job| {
        Store::open(job.dirs)
            .and_then(|store| store.remove_files(&job.id, &job.run_dir))
            .map_err(|error| error.to_string())
    })
}
