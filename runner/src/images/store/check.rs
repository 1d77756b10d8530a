//! Finding and mending what is wrong with a store: a disk that failed, or a hand that went astray.
//!
//! A blob that is not what its name says is taken away, and so is a layer that is not complete:
//! both come back when they are needed, by a pull or from the blob. An image whose manifest or
//! blobs are missing is forgotten, so that it can be pulled or loaded again; unless a container
//! uses it, whose layers would go with it. A list of images that cannot be read is made anew of the
//! manifests among the blobs.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use oci_spec::image::MediaType;
use rustix::fs::FlockOperation;

use super::{Entry, Image, ImageStore, JSON_LEN_MAX, read_manifest};
use crate::images::digest::{Digest, Hashing};
use crate::images::error::{StorageError, io_error};
use crate::images::files::{clear, try_lock_alone};

/// What there is, and what is wrong with it.
#[derive(Debug, Default)]
pub struct Report {
    pub images: usize,
    pub blobs: usize,
    pub layers: usize,
    pub defects: Vec<Defect>,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Defect {
    /// The content of a blob is another one than its name says.
    Corrupt { blob: String },
    /// A blob of an image is not there.
    Missing { blob: Digest, image: ImageInfo },
    /// The manifest or the configuration of an image cannot be read.
    Unreadable { image: ImageInfo, cause: String },
    /// The list of images cannot be read, or is not there. Its names are lost.
    Index { cause: String },
    /// A layer's directory lacks a part. Named by the layer's chain.
    Incomplete { layer: String },
}

/// For messages: which image it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    pub id: Digest,
    pub name: Option<String>,
}

/// What became of a defect.
#[derive(Debug, PartialEq, Eq)]
pub enum Mended {
    Removed,
    /// So many images were found again by their blobs, without names.
    Rebuilt(usize),
    /// The image, with all its names.
    Forgotten,
    /// A container uses the image.
    InUse,
}

impl fmt::Display for ImageInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} ({})", self.id.short()),
            None => f.write_str(self.id.short()),
        }
    }
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupt { blob } => {
                write!(f, "blob {blob}: its content is not what its name says")
            }
            Self::Missing { blob, image } => write!(f, "image {image}: {blob} is missing"),
            Self::Unreadable { image, cause } => write!(f, "image {image}: {cause}"),
            Self::Index { cause } => write!(f, "list of images: {cause}"),
            Self::Incomplete { layer } => write!(f, "layer {layer}: it is not complete"),
        }
    }
}

impl From<&Entry> for ImageInfo {
    fn from(entry: &Entry) -> Self {
        Self {
            id: entry.id.clone(),
            name: entry.name.as_ref().map(ToString::to_string),
        }
    }
}

impl ImageStore {
    /// Looks at everything; `quick` leaves out the content of blobs.
    pub fn check(&self, quick: bool) -> Result<Report, StorageError> {
        let _shared = self.share_content()?;
        let mut report = Report::default();
        let corrupt = self.check_blobs(quick, &mut report)?;
        let mut ids = HashSet::new();
        let entries = self.entries().unwrap_or_else(|error| {
            let cause = crate::failure::chain(&error);
            report.defects.push(Defect::Index { cause });
            Vec::new()
        });
        for entry in entries {
            // One entry for each name.
            if ids.insert(entry.id.clone()) {
                report.images += 1;
                self.check_image(&entry, &corrupt, &mut report);
            }
        }
        let (complete, incomplete) = self.layers().survey()?;
        report.layers = complete;
        let incomplete = incomplete.into_iter();
        let incomplete = incomplete.map(|layer| Defect::Incomplete { layer });
        report.defects.extend(incomplete);
        Ok(report)
    }

    /// Returns the names of blobs that are not what these say.
    fn check_blobs(
        &self,
        quick: bool,
        report: &mut Report,
    ) -> Result<HashSet<String>, StorageError> {
        let dir = self.blobs();
        let mut corrupt = HashSet::new();
        for entry in fs::read_dir(&dir).map_err(io_error("list", &dir))? {
            let path = entry.map_err(io_error("list", &dir))?.path();
            report.blobs += 1;
            if quick {
                continue;
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let read = fs::File::open(&path).and_then(|file| {
                let mut hashing = Hashing::new(file);
                io::copy(&mut hashing, &mut io::sink())?;
                Ok(hashing.digest())
            });
            if !read.is_ok_and(|found| *found.hex() == *name) {
                report.defects.push(Defect::Corrupt {
                    blob: name.clone().into_owned(),
                });
                corrupt.insert(name.into_owned());
            }
        }
        Ok(corrupt)
    }

    fn check_image(&self, entry: &Entry, corrupt: &HashSet<String>, report: &mut Report) {
        let image = match self.read(entry) {
            Ok(image) => image,
            Err(error) => {
                report.defects.push(Defect::Unreadable {
                    image: entry.into(),
                    cause: crate::failure::chain(&error),
                });
                return;
            }
        };
        let blobs: BTreeSet<Digest> = image.blobs().into_iter().collect();
        let missing = blobs.into_iter().filter(|blob| {
            // One that is corrupt is told already, and missing when it is taken away.
            !self.has_blob(blob) && !corrupt.contains(blob.hex())
        });
        report.defects.extend(missing.map(|blob| Defect::Missing {
            blob,
            image: entry.into(),
        }));
    }

    /// Mends what [`ImageStore::check`] has found. `in_use` says whether a container was made of an
    /// image. Fails while somebody adds content.
    pub fn mend(
        &self,
        defects: &[Defect],
        in_use: &dyn Fn(&Digest) -> Result<bool, StorageError>,
    ) -> Result<Vec<(Defect, Mended)>, StorageError> {
        let lock = self.content_lock();
        let _alone = try_lock_alone(&lock)?.ok_or_else(|| StorageError::Busy)?;
        clear(&self.new_dir())?;
        let mut done = Vec::new();
        let mut incomplete = HashSet::new();
        for defect in defects {
            let mended = match defect {
                Defect::Corrupt { blob } => {
                    let path = self.blobs().join(blob);
                    fs::remove_file(&path).map_err(io_error("remove", &path))?;
                    Mended::Removed
                }
                Defect::Index { .. } => Mended::Rebuilt(self.rebuild_index()?),
                Defect::Incomplete { layer } => {
                    incomplete.insert(layer.clone());
                    Mended::Removed
                }
                Defect::Missing { image, .. } | Defect::Unreadable { image, .. } => {
                    self.forget(&image.id, in_use)?
                }
            };
            done.push((defect.clone(), mended));
        }
        // What went with a corrupt blob.
        for entry in self.entries()? {
            let lacks = |image: Image| image.blobs().iter().any(|blob| !self.has_blob(blob));
            let is_told = done.iter().any(|(defect, _)| defect.is_of(&entry.id));
            if !is_told && self.read(&entry).map_or(true, lacks) {
                let defect = Defect::Unreadable {
                    image: (&entry).into(),
                    cause: "a blob of it is missing now".to_owned(),
                };
                let mended = self.forget(&entry.id, in_use)?;
                done.push((defect, mended));
            }
        }
        self.layers().sweep(|name| !incomplete.contains(name))?;
        Ok(done)
    }

    /// Makes the list of images anew, of all whose blobs are there. Returns how many there are.
    fn rebuild_index(&self) -> Result<usize, StorageError> {
        let dir = self.blobs();
        let mut entries: Vec<Entry> = Vec::new();
        for blob in fs::read_dir(&dir).map_err(io_error("list", &dir))? {
            let path = blob.map_err(io_error("list", &dir))?.path();
            if let Some(entry) = self.entry_of(&path)
                && !entries.iter().any(|other| other.id == entry.id)
            {
                entries.push(entry);
            }
        }
        let _lock = self.lock(FlockOperation::LockExclusive)?;
        if self.entries().is_err() {
            self.write_index(&entries)?;
        }
        Ok(entries.len())
    }

    /// The image that a blob is the manifest of, if it is one and all of it is there.
    fn entry_of(&self, blob: &Path) -> Option<Entry> {
        let len = fs::metadata(blob).ok()?.len();
        if len > JSON_LEN_MAX {
            return None;
        }
        let digest: Digest = format!("sha256:{}", blob.file_name()?.to_str()?)
            .parse()
            .ok()?;
        let text = self.read_blob(&digest).ok()?;
        let manifest = read_manifest(blob, &text).ok()?;
        let entry = Entry {
            id: manifest.config().digest().to_string().parse().ok()?,
            manifest: digest,
            manifest_len: len,
            media_type: manifest
                .media_type()
                .clone()
                .unwrap_or(MediaType::ImageManifest),
            name: None,
        };
        let image = self.read(&entry).ok()?;
        let is_whole = image.blobs().iter().all(|blob| self.has_blob(blob));
        is_whole.then_some(entry)
    }

    fn forget(
        &self,
        id: &Digest,
        in_use: &dyn Fn(&Digest) -> Result<bool, StorageError>,
    ) -> Result<Mended, StorageError> {
        self.change(|entries| {
            if in_use(id)? {
                return Ok(Mended::InUse);
            }
            entries.retain(|entry| entry.id != *id);
            Ok(Mended::Forgotten)
        })
    }
}

impl Defect {
    fn is_of(&self, id: &Digest) -> bool {
        match self {
            Self::Missing { image, .. } | Self::Unreadable { image, .. } => image.id == *id,
            Self::Corrupt { .. } | Self::Index { .. } | Self::Incomplete { .. } => false,
        }
    }
}
