//! Layers as directories: what containers lie over.
//!
//! `STORAGE/layers/MAPS/CHAIN/diff` is a layer on the layers below it, named by the chain of all
//! their contents (OCI image specification, "layer chain ID"), so that images share what they have
//! in common. MAPS names the user namespace whose IDs the files belong to: with other sub-IDs, or
//! none, layers are unpacked anew from their blobs.
//!
//! A process of its own unpacks, and removes, as root of such a namespace ([`role`]). A layer is
//! there as a whole or not at all: it is unpacked beside its place, brought to the disk, and
//! renamed. Where no overlay can be mounted upon the storage, a layer has all that is below it
//! copied into it.

mod added;
pub mod apply;
pub mod attributes;
pub mod decompress;
pub mod role;
pub mod tar;
pub mod tar_split;
mod whiteout;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::{StorageError, io_error};
use super::files::{replace, to_json};
use crate::isolation::idmap::{IdMapError, IdMaps};
use crate::isolation::namespaces::NamespaceError;
use crate::process::owner;
use tar_split::Rebuild;

/// One layer of an image, as its manifest and its configuration tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// What the blob is named by.
    pub blob: Digest,
    /// Of the tar in it.
    pub diff: Digest,
    /// Of the tar and all those below it.
    pub chain: Digest,
}

/// What is kept beside a layer's directory.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// Bytes of all its files.
    size: u64,
    /// Whether what is below it is in it as well, where no overlay could be mounted to unpack it.
    #[serde(default)]
    is_whole: bool,
}

/// Without those that lie below the uppermost that is whole.
fn needed(places: Vec<PathBuf>) -> Vec<PathBuf> {
    let is_whole = |place: &PathBuf| {
        let kept = fs::read(place.join(KEPT_FILE)).unwrap_or_default();
        serde_json::from_slice::<Kept>(&kept).is_ok_and(|kept| kept.is_whole)
    };
    let first = places.iter().rposition(is_whole).unwrap_or(0);
    places[first..].to_vec()
}

/// The layers of an image, the lowest first.
pub fn layers(blobs: Vec<Digest>, diffs: Vec<Digest>) -> Vec<Layer> {
    let mut below: Option<Digest> = None;
    let pairs = blobs.into_iter().zip(diffs);
    pairs
        .map(|(blob, diff)| {
            let chain = match &below {
                None => diff.clone(),
                Some(below) => Digest::of(format!("{below} {diff}").as_bytes()),
            };
            below = Some(chain.clone());
            Layer { blob, diff, chain }
        })
        .collect()
}

/// The directories of layers.
#[derive(Debug, Clone)]
pub struct LayerDirs {
    /// `STORAGE/layers`.
    root: PathBuf,
}

/// The directory of those of one user namespace, with its ID maps.
const MAPS_FILE: &str = "maps.json";
const KEPT_FILE: &str = "layer.json";
const DIFF: &str = "diff";
/// Before the name of what is being made, or removed.
const UNFINISHED: &str = "new-";
const CONDEMNED: &str = "old-";

impl LayerDirs {
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directories of `layers`, the lowest first and without those that a whole one has in it;
    /// those that are not there are unpacked from
    /// `blobs`, by a process that holds the lock `lock` meanwhile. `warn` is told of the owners
    /// that cannot be kept.
    pub fn provide(
        &self,
        layers: &[Layer],
        blobs: &Path,
        lock: &Path,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Vec<PathBuf>, StorageError> {
        // The host's root keeps its own IDs, and shows them to each container as its own.
        let (maps, single) = IdMaps::discover(true)?;
        match self.provide_for(&maps, layers, blobs, lock) {
            Err(StorageError::Namespace(NamespaceError::IdMap(error))) if error.is_lasting() => {
                warn(&tool_failed(&error));
                self.provide_for(&IdMaps::single(), layers, blobs, lock)
            }
            provided => {
                // Else it is said when the container starts.
                let is_new = matches!(provided, Ok((_, true)));
                if let (Some(reason), true) = (single, is_new) {
                    warn(&reason.warning());
                }
                provided
            }
        }
        .map(|(dirs, _)| dirs)
    }

    /// And whether anything had to be unpacked.
    fn provide_for(
        &self,
        maps: &IdMaps,
        layers: &[Layer],
        blobs: &Path,
        lock: &Path,
    ) -> Result<(Vec<PathBuf>, bool), StorageError> {
        let dir = self.root.join(key(maps));
        let place = |layer: &Layer| dir.join(layer.chain.hex());
        let is_missing = |layer: &Layer| !place(layer).join(KEPT_FILE).exists();
        let first_missing = layers.iter().position(is_missing);
        if let Some(first) = first_missing {
            make_maps_dir(&dir, maps)?;
            let unpack = role::Job::Unpack {
                dir: dir.clone(),
                blobs: blobs.to_owned(),
                lock: lock.to_owned(),
                below: layers[..first].iter().map(|l| l.chain.clone()).collect(),
                layers: layers[first..].to_vec(),
                single: maps.is_single(),
            };
            owner::run(role::ROLE, &unpack, maps)?;
        }
        let places = needed(layers.iter().map(place).collect());
        let dirs = places.iter().map(|place| place.join(DIFF));
        Ok((dirs.collect(), first_missing.is_some()))
    }

    /// How many layers are complete, and the chains of those that are not.
    pub fn survey(&self) -> Result<(usize, Vec<String>), StorageError> {
        let (mut complete, mut incomplete) = (0, Vec::new());
        for dir in self.maps_dirs()? {
            for entry in fs::read_dir(&dir).map_err(io_error("list", &dir))? {
                let path = entry.map_err(io_error("list", &dir))?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if *name == *MAPS_FILE
                    || name.starts_with(UNFINISHED)
                    || name.starts_with(CONDEMNED)
                {
                    continue;
                }
                let kept = fs::read(path.join(KEPT_FILE)).unwrap_or_default();
                let is_whole = serde_json::from_slice::<Kept>(&kept).is_ok();
                match is_whole && path.join(DIFF).is_dir() {
                    true => complete += 1,
                    false => incomplete.push(name.into_owned()),
                }
            }
        }
        Ok((complete, incomplete))
    }

    /// The directories of `layers`, the lowest first, where all are unpacked for somebody.
    pub fn find(&self, layers: &[Layer]) -> Option<Vec<PathBuf>> {
        let places = |dir: PathBuf| {
            let places = layers.iter().map(|layer| dir.join(layer.chain.hex()));
            let is_there = |place: &PathBuf| place.join(KEPT_FILE).exists();
            let dirs = places.map(|place| is_there(&place).then(|| place.join(DIFF)));
            dirs.collect::<Option<Vec<_>>>()
        };
        self.maps_dirs().ok()?.into_iter().find_map(places)
    }

    /// Bytes of all files of a layer, where it is unpacked for anybody.
    pub fn size(&self, chain: &Digest) -> Option<u64> {
        self.maps_dirs().ok()?.into_iter().find_map(|dir| {
            let text = fs::read(dir.join(chain.hex()).join(KEPT_FILE)).ok()?;
            Some(serde_json::from_slice::<Kept>(&text).ok()?.size)
        })
    }

    /// Removes all but the layers that `is_kept`, and what was cut short. For whoever holds the
    /// lock alone.
    pub fn sweep(&self, is_kept: impl Fn(&str) -> bool) -> Result<(), StorageError> {
        for dir in self.maps_dirs()? {
            let mut condemned = Vec::new();
            for entry in fs::read_dir(&dir).map_err(io_error("list", &dir))? {
                let entry = entry.map_err(io_error("list", &dir))?;
                let name = entry.file_name();
                let name = name.to_string_lossy();
                let path = entry.path();
                if *name == *MAPS_FILE || is_kept(&name) {
                    continue;
                }
                if name.starts_with(UNFINISHED) || name.starts_with(CONDEMNED) {
                    condemned.push(path);
                    continue;
                }
                // In one step: half a layer must not pass for one.
                let gone = dir.join(format!("{CONDEMNED}{name}"));
                fs::rename(&path, &gone).map_err(io_error("remove", &path))?;
                condemned.push(gone);
            }
            if condemned
                .iter()
                .all(|path| crate::state::remove_tree(path).is_ok())
            {
                continue;
            }
            let maps = dir.join(MAPS_FILE);
            let text = fs::read(&maps).map_err(io_error("read", &maps))?;
            let recorded: IdMaps = serde_json::from_slice(&text)
                .map_err(|error| io_error("read", &maps)(io::Error::other(error)))?;
            remove_as_owner(condemned, &recorded)?;
        }
        Ok(())
    }

    fn maps_dirs(&self) -> Result<Vec<PathBuf>, StorageError> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(io_error("list", &self.root))?,
        };
        let paths = entries.map(|entry| entry.map(|entry| entry.path()));
        paths
            .collect::<Result<_, _>>()
            .map_err(io_error("list", &self.root))
    }
}

/// Removes trees of the users of a user namespace with these IDs.
pub fn remove_as_owner(paths: Vec<PathBuf>, maps: &IdMaps) -> Result<(), NamespaceError> {
    owner::run(role::ROLE, &role::Job::Remove { paths }, maps)
}

/// The lengths of all files of a tree of these users. `report` is a file to be made for the answer.
pub fn measure_as_owner(path: &Path, report: &Path, maps: &IdMaps) -> Result<u64, StorageError> {
    let job = role::Job::Measure {
        path: path.to_owned(),
        report: report.to_owned(),
    };
    owner::run(role::ROLE, &job, maps)?;
    let text = fs::read(report).map_err(io_error("read", report))?;
    super::files::parse(report, &text)
}

/// Puts tars together, of files that may belong to the caller's sub-IDs.
pub fn rebuild_tars(jobs: &[Rebuild]) -> Result<(), StorageError> {
    let (maps, _) = IdMaps::discover(true)?;
    let job = role::Job::Rebuild {
        jobs: jobs.to_vec(),
    };
    Ok(owner::run(role::ROLE, &job, &maps)?)
}

/// Two user namespaces with the same IDs have the same key.
fn key(maps: &IdMaps) -> String {
    Digest::of(&to_json(maps)).short().to_owned()
}

fn make_maps_dir(dir: &Path, maps: &IdMaps) -> Result<(), StorageError> {
    fs::create_dir_all(dir).map_err(io_error("create", dir))?;
    let path = dir.join(MAPS_FILE);
    match path.exists() {
        true => Ok(()),
        false => replace(&path, &to_json(maps)),
    }
}

fn tool_failed(error: &IdMapError) -> String {
    format!("images are unpacked with a single user and group ID: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_all_that_is_below() {
        let digest = |text: &str| Digest::of(text.as_bytes());
        let blobs = ["a", "b", "c"].map(digest);
        let diffs = ["d", "e", "f"].map(digest);
        let chains = layers(blobs.to_vec(), diffs.to_vec());
        assert_eq!(chains[0].chain, diffs[0]);
        assert_eq!(
            chains[1].chain,
            digest(&format!("{} {}", diffs[0], diffs[1]))
        );
        assert_eq!(chains[2].blob, blobs[2]);
        let others = layers(blobs.to_vec(), vec![diffs[1].clone(), diffs[1].clone()]);
        assert_ne!(others[1].chain, chains[1].chain);
    }

    #[test]
    fn other_ids_have_other_directories() {
        let single = IdMaps::single();
        assert_eq!(key(&single), key(&IdMaps::single()));
        let other: IdMaps = serde_json::from_str(
            r#"{"uids":[{"inside":0,"outside":9,"count":1}],"gids":[],"method":"single"}"#,
        )
        .expect("maps");
        assert_ne!(key(&single), key(&other));
    }
}
