//! What images take on the disk.

use std::fs;
use std::io;
use std::path::Path;

use super::{Image, ImageStore};
use crate::images::digest::Digest;
use crate::images::error::{StorageError, io_error};
use crate::images::layers::{Layer, measure_as_owner};
use crate::isolation::idmap::IdMaps;
use crate::state::tree_size;

/// Something on the disk that images may have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Blob(Digest),
    /// Unpacked, by the digest of its chain of layers.
    Layer(Digest),
}

impl ImageStore {
    /// How many bytes an image takes: unpacked where that is known.
    pub fn size(&self, image: &Image) -> u64 {
        let layers = image.layers();
        layers.iter().map(|layer| self.layer_size(layer)).sum()
    }

    /// How many bytes a layer takes: unpacked where that is known.
    pub fn layer_size(&self, layer: &Layer) -> u64 {
        let unpacked = self.layers().size(&layer.chain);
        unpacked.unwrap_or_else(|| self.blob_size(&layer.blob))
    }

    /// What an image has on the disk, with the length of each part in bytes.
    pub fn parts(&self, image: &Image) -> Vec<(Part, u64)> {
        let blobs = image.blobs().into_iter().map(|blob| {
            let size = self.blob_size(&blob);
            (Part::Blob(blob), size)
        });
        let layers = image.layers().into_iter().filter_map(|layer| {
            let size = self.layers().size(&layer.chain)?;
            Some((Part::Layer(layer.chain), size))
        });
        blobs.chain(layers).collect()
    }

    /// Nothing, of one that is not there.
    fn blob_size(&self, blob: &Digest) -> u64 {
        let found = fs::metadata(self.blobs().join(blob.hex()));
        found.map_or(0, |found| found.len())
    }

    /// The lengths of all files of a tree that users of these IDs have written.
    pub fn measure(&self, path: &Path, maps: &IdMaps) -> Result<u64, StorageError> {
        match tree_size(path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let dir = self.add_content()?.dir()?;
                measure_as_owner(path, &dir.path().join("size"), maps)
            }
            size => size.map_err(io_error("measure", path)),
        }
    }
}
