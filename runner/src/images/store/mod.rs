//! The images of one user.
//!
//! `DATA/storage` holds
//! - `oci`: an OCI image layout, which other tools read as well: blobs named by their content, and
//!   `index.json`, which says what images there are. A descriptor in it has the image's id, the
//!   digest of its configuration, as an annotation, and its name where it has one;
//! - `layers`: the layers, unpacked (see [`super::layers`]);
//! - `new`: what is being written;
//! - `version`, and two locks.
//!
//! Two locks (flock(2)) keep processes apart. `lock` is for `index.json`, and held for moments:
//! alone by whoever changes it, shared by whoever makes a container of an image, until the record
//! of the container says so. `content.lock` is shared by all who add blobs and layers, and held
//! alone by whoever takes away what no image needs; a process that was killed holds no lock, so
//! that what it left unfinished is found then. Files are replaced by rename, after their content
//! has reached the disk.

mod blobs;
pub mod check;
mod image;
mod usage;

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, ImageIndex, MediaType};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::{StorageError, io_error};
use super::files::{Lock, clear, lock, parse, replace, to_json, try_lock_alone};
use super::layers::{Layer, LayerDirs};
use super::reference::{ImageName, ImageRef};
use super::registries::Registries;
use crate::state::read_regular;

pub use blobs::{Adding, BlobWriter};
pub use image::{Image, JSON_LEN_MAX, index, read_manifest};
pub use usage::Part;

/// Of the layout described above.
const VERSION: u32 = 1;

/// The annotation of OCI's that holds a name.
pub const NAME_ANNOTATION: &str = "org.opencontainers.image.ref.name";
/// And ours for the digest of the configuration.
const ID_ANNOTATION: &str = "net.coracle.image.id";

/// The images of one user. Cheap to open, holds no descriptor; safe to use from any number of
/// processes and threads.
#[derive(Debug, Clone)]
pub struct ImageStore {
    root: PathBuf,
}

/// A line of `index.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The digest of the configuration.
    pub id: Digest,
    pub manifest: Digest,
    pub manifest_len: u64,
    pub media_type: MediaType,
    pub name: Option<ImageRef>,
}

/// What [`ImageStore::remove`] has taken away.
#[derive(Debug, PartialEq, Eq)]
pub struct Removed {
    pub names: Vec<ImageRef>,
    /// Whether the image itself is gone.
    pub image: bool,
}

#[derive(Serialize, Deserialize)]
struct Version {
    version: u32,
}

impl ImageStore {
    /// Opens the store in `root`, creating what is missing.
    pub fn open(root: PathBuf) -> Result<Self, StorageError> {
        let store = Self { root };
        let path = store.root.join("version");
        match read_regular(&path) {
            Ok(text) => {
                let Version { version } = parse(&path, &text)?;
                match version {
                    VERSION => Ok(store),
                    _ => Err(StorageError::Newer {
                        path,
                        version,
                        known: VERSION,
                    }),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                store.make(&path)?;
                Ok(store)
            }
            Err(error) => Err(io_error("read", &path)(error)),
        }
    }

    fn make(&self, version: &Path) -> Result<(), StorageError> {
        for dir in [
            self.blobs(),
            self.root.join("layers"),
            self.new_dir(),
            self.partial_dir(),
        ] {
            fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
        }
        let layout = self.layout().join("oci-layout");
        replace(&layout, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let _lock = self.lock(FlockOperation::LockExclusive)?;
        if !self.index_file().exists() {
            self.write_index(&[])?;
        }
        replace(version, &to_json(&Version { version: VERSION }))
    }

    /// The directory that other tools may read, as `oci:DIR`.
    fn layout(&self) -> PathBuf {
        self.root.join("oci")
    }

    fn blobs(&self) -> PathBuf {
        self.layout().join("blobs/sha256")
    }

    fn new_dir(&self) -> PathBuf {
        self.root.join("new")
    }

    fn index_file(&self) -> PathBuf {
        self.layout().join("index.json")
    }

    /// Downloads that are not complete; the next one goes on there.
    pub fn partial_dir(&self) -> PathBuf {
        self.root.join("partial")
    }

    /// Whether the blob is there.
    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.blobs().join(digest.hex()).exists()
    }

    fn content_lock(&self) -> PathBuf {
        self.root.join("content.lock")
    }

    pub fn layers(&self) -> LayerDirs {
        LayerDirs::new(self.root.join("layers"))
    }

    /// The directories of an image's layers, the lowest first, unpacked where they are not yet.
    pub fn provide_layers(
        &self,
        image: &Image,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Vec<PathBuf>, StorageError> {
        self.provide(&image.layers(), warn)
    }

    /// As [`ImageStore::provide_layers`], of some of an image's layers from the lowest on.
    pub fn provide(
        &self,
        layers: &[Layer],
        warn: &mut dyn FnMut(&str),
    ) -> Result<Vec<PathBuf>, StorageError> {
        let _adding = self.add_content()?;
        let lock = self.content_lock();
        self.layers().provide(layers, &self.blobs(), &lock, warn)
    }

    /// Keeps an image that is there from being removed, while somebody records a container of it.
    pub fn hold(&self, id: &Digest) -> Result<Lock, StorageError> {
        let lock = self.lock(FlockOperation::LockShared)?;
        match self.entries()?.iter().any(|entry| entry.id == *id) {
            true => Ok(lock),
            false => Err(StorageError::NotFound {
                name: id.to_string(),
            }),
        }
    }

    /// Keeps blobs and layers from being taken away, while somebody reads them.
    pub fn share_content(&self) -> Result<Lock, StorageError> {
        lock(&self.content_lock(), FlockOperation::LockShared)
    }

    /// Lets blobs and layers be added, which nobody takes for left over until this is dropped.
    pub fn add_content(&self) -> Result<Adding, StorageError> {
        self.sweep_unfinished()?;
        Ok(Adding::new(
            self.share_content()?,
            self.new_dir(),
            self.blobs(),
        ))
    }

    fn lock(&self, operation: FlockOperation) -> Result<Lock, StorageError> {
        lock(&self.root.join("lock"), operation)
    }

    /// All images under all their names.
    pub fn entries(&self) -> Result<Vec<Entry>, StorageError> {
        let path = self.index_file();
        let text = read_regular(&path).map_err(io_error("read", &path))?;
        let index: ImageIndex = parse(&path, &text)?;
        let entry = |descriptor: &Descriptor| {
            let annotation = |name: &str| descriptor.annotations().as_ref()?.get(name).cloned();
            let name = annotation(NAME_ANNOTATION);
            Some(Entry {
                id: annotation(ID_ANNOTATION)?.parse().ok()?,
                manifest: descriptor.digest().to_string().parse().ok()?,
                manifest_len: descriptor.size(),
                media_type: descriptor.media_type().clone(),
                name: name.and_then(|name| name.parse().ok()),
            })
        };
        let entries = index.manifests().iter();
        let entries: Option<_> = entries.map(entry).collect();
        entries.ok_or_else(|| StorageError::Damaged {
            path,
            defect: "an image in it has no id".to_owned(),
        })
    }

    /// All images, each once, those made last first.
    pub fn list(&self) -> Result<Vec<Image>, StorageError> {
        let _shared = self.share_content()?;
        let mut images = self.read_all(&self.entries()?)?;
        images.sort_by_cached_key(|image| std::cmp::Reverse(image.created()));
        Ok(images)
    }

    /// Each image once, with all its names.
    fn read_all<'e>(
        &self,
        entries: impl IntoIterator<Item = &'e Entry>,
    ) -> Result<Vec<Image>, StorageError> {
        let mut images: Vec<Image> = Vec::new();
        for entry in entries {
            match images.iter_mut().find(|image| image.id == entry.id) {
                Some(image) => image.names.extend(entry.name.clone()),
                None => images.push(self.read(entry)?),
            }
        }
        Ok(images)
    }

    /// The image that somebody means: by a name, by its id or the beginning of that. With it the
    /// name, if it was one.
    pub fn find(&self, wanted: &str) -> Result<(Image, Option<ImageRef>), StorageError> {
        let _shared = self.share_content()?;
        let entries = self.entries()?;
        let (id, name) = look_up(&entries, wanted)?;
        let of_it = entries.iter().filter(|entry| entry.id == id);
        let image = self.read_all(of_it)?.pop();
        let image = image.ok_or_else(|| StorageError::NotFound {
            name: wanted.to_owned(),
        })?;
        Ok((image, name))
    }

    /// Enters an image whose blobs are all there, once its layers are unpacked and found to be what
    /// its configuration says.
    pub fn admit(
        &self,
        id: &Digest,
        manifest: &Digest,
        manifest_len: u64,
        names: Vec<ImageRef>,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Image, StorageError> {
        let entry = Entry {
            id: id.clone(),
            manifest: manifest.clone(),
            manifest_len,
            media_type: MediaType::ImageManifest,
            name: None,
        };
        let image = self.read(&entry)?;
        self.provide_layers(&image, warn)?;
        let media_type = image.manifest.media_type().clone();
        let entry = Entry {
            media_type: media_type.unwrap_or(entry.media_type),
            ..entry
        };
        self.enter(entry, &names)?;
        Ok(Image { names, ..image })
    }

    /// Enters an image, without a name of its own, under `names`: they are taken from the images
    /// that have them.
    fn enter(&self, image: Entry, names: &[ImageRef]) -> Result<(), StorageError> {
        self.change(|entries| {
            for name in names {
                untag(entries, name);
            }
            let named = |name: &ImageRef| Entry {
                name: Some(name.clone()),
                ..image.clone()
            };
            entries.extend(names.iter().map(named));
            entries.push(image);
            forget_nameless(entries);
            Ok(())
        })
    }

    /// Gives the image that has the id another name.
    pub fn tag(&self, id: &Digest, name: &ImageRef) -> Result<(), StorageError> {
        self.change(|entries| {
            let of_it = entries.iter().find(|entry| entry.id == *id);
            let entry = of_it.ok_or_else(|| StorageError::NotFound {
                name: id.to_string(),
            })?;
            let named = Entry {
                name: Some(name.clone()),
                ..entry.clone()
            };
            untag(entries, name);
            entries.push(named);
            forget_nameless(entries);
            Ok(())
        })
    }

    /// Takes names from an image, which stays. All of them where none is given.
    pub fn untag(&self, id: &Digest, names: &[ImageRef]) -> Result<(), StorageError> {
        self.change(|entries| {
            for entry in entries.iter_mut().filter(|entry| entry.id == *id) {
                let is_meant = |name: &ImageRef| names.is_empty() || names.contains(name);
                entry.name.take_if(|name| is_meant(name));
            }
            forget_nameless(entries);
            Ok(())
        })
    }

    /// Takes a name from an image or, where that is its last one or none is given, the image away.
    /// `check` is asked before an image goes, while nobody makes a container of it.
    pub fn remove(
        &self,
        id: &Digest,
        name: Option<&ImageRef>,
        force: bool,
        check: impl FnOnce() -> Result<(), StorageError>,
    ) -> Result<Removed, StorageError> {
        self.change(|entries| {
            let of_it = entries.iter().filter(|entry| entry.id == *id);
            let names: Vec<_> = of_it.filter_map(|entry| entry.name.clone()).collect();
            match name {
                Some(name) if names.len() > 1 => {
                    entries.retain(|entry| entry.name.as_ref() != Some(name));
                    return Ok(Removed {
                        names: vec![name.clone()],
                        image: false,
                    });
                }
                None if names.len() > 1 && !force => {
                    return Err(StorageError::SeveralNames {
                        id: id.clone(),
                        names: names.iter().map(ToString::to_string).collect(),
                    });
                }
                _ => {}
            }
            check()?;
            entries.retain(|entry| entry.id != *id);
            Ok(Removed { names, image: true })
        })
    }

    fn change<T>(
        &self,
        change: impl FnOnce(&mut Vec<Entry>) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let _lock = self.lock(FlockOperation::LockExclusive)?;
        let mut entries = self.entries()?;
        let before = entries.clone();
        let result = change(&mut entries)?;
        if entries != before {
            self.write_index(&entries)?;
        }
        Ok(result)
    }

    fn write_index(&self, entries: &[Entry]) -> Result<(), StorageError> {
        let descriptor = |entry: &Entry| {
            let digest: oci_spec::image::Digest = entry
                .manifest
                .to_string()
                .parse()
                .expect("ours are well-formed");
            let mut descriptor =
                Descriptor::new(entry.media_type.clone(), entry.manifest_len, digest);
            let name = entry.name.as_ref().map(ToString::to_string);
            let annotations = [
                Some((ID_ANNOTATION.to_owned(), entry.id.to_string())),
                name.map(|name| (NAME_ANNOTATION.to_owned(), name)),
            ];
            descriptor.set_annotations(Some(annotations.into_iter().flatten().collect()));
            descriptor
        };
        replace(
            &self.index_file(),
            &to_json(&index(entries.iter().map(descriptor).collect())),
        )
    }

    fn read(&self, entry: &Entry) -> Result<Image, StorageError> {
        Image::read(&self.blobs(), entry)
    }

    /// The bytes of a blob that is there.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, StorageError> {
        let path = self.blobs().join(digest.hex());
        File::open(&path).map_err(io_error("open", &path))
    }

    /// The whole of a small blob, which is found to be what its name says.
    pub fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, StorageError> {
        image::read_blob(&self.blobs().join(digest.hex()), digest)
    }

    /// An image's configuration as it is written, with what no type here has.
    pub fn raw_config(&self, image: &Image) -> Result<serde_json::Value, StorageError> {
        let text = self.read_blob(&image.id)?;
        parse(&self.blobs().join(image.id.hex()), &text)
    }

    /// Takes away what no image needs. While somebody adds content nothing is, until the next time.
    pub fn sweep(&self) -> Result<(), StorageError> {
        let Some(_alone) = try_lock_alone(&self.content_lock())? else {
            return Ok(());
        };
        clear(&self.new_dir())?;
        clear(&self.partial_dir())?;
        let (mut blobs, mut chains) = (HashSet::new(), HashSet::new());
        for entry in self.entries()? {
            let image = self.read(&entry)?;
            blobs.extend(image.blobs().iter().map(|blob| blob.hex().to_owned()));
            let layers = image.layers().into_iter();
            chains.extend(layers.map(|layer| layer.chain.hex().to_owned()));
        }
        let dir = self.blobs();
        for entry in fs::read_dir(&dir).map_err(io_error("list", &dir))? {
            let entry = entry.map_err(io_error("list", &dir))?;
            let is_needed = |name: &str| blobs.contains(name);
            if !entry.file_name().to_str().is_some_and(is_needed) {
                let path = entry.path();
                fs::remove_file(&path).map_err(io_error("remove", &path))?;
            }
        }
        self.layers().sweep(|name| chains.contains(name))
    }

    /// What a killed process was writing.
    fn sweep_unfinished(&self) -> Result<(), StorageError> {
        let dir = self.new_dir();
        let is_empty = fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_none());
        match is_empty {
            true => Ok(()),
            false => match try_lock_alone(&self.content_lock())? {
                Some(_alone) => clear(&dir),
                None => Ok(()),
            },
        }
    }
}

/// The id of the image that is meant, and the name that it was meant by.
fn look_up(entries: &[Entry], wanted: &str) -> Result<(Digest, Option<ImageRef>), StorageError> {
    let digits = wanted.strip_prefix("sha256:").unwrap_or(wanted);
    let exact = |entry: &&Entry| entry.id.hex() == digits;
    if let Some(entry) = entries.iter().find(exact) {
        return Ok((entry.id.clone(), None));
    }
    let name = match wanted.starts_with("sha256:") {
        true => None,
        false => wanted.parse::<ImageName>().ok(),
    };
    if let Some(name) = &name {
        let registries = match name {
            ImageName::Short(_) => Registries::load()?,
            ImageName::Full(_) => Registries::default(),
        };
        for candidate in name.local_candidates(&registries) {
            if let Some(entry) = entries.iter().find(|entry| entry.is_named(&candidate)) {
                return Ok((entry.id.clone(), entry.name.clone()));
            }
        }
    }
    let is_prefix = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let begins = |entry: &&Entry| is_prefix && entry.id.hex().starts_with(digits);
    let mut matches: Vec<_> = entries
        .iter()
        .filter(begins)
        .map(|entry| &entry.id)
        .collect();
    matches.sort();
    matches.dedup();
    match matches[..] {
        [id] => Ok((id.clone(), None)),
        [] => {
            // A name that can be none is told as such.
            if name.is_none() && !wanted.starts_with("sha256:") {
                wanted.parse::<ImageName>()?;
            }
            Err(StorageError::NotFound {
                name: wanted.to_owned(),
            })
        }
        _ => Err(StorageError::Ambiguous {
            prefix: wanted.to_owned(),
        }),
    }
}

impl Entry {
    /// A name with a digest means the manifest that has it, under any tag of the repository.
    fn is_named(&self, wanted: &ImageRef) -> bool {
        let Some(name) = &self.name else { return false };
        match wanted.digest() {
            None => name == wanted,
            Some(digest) => {
                let of_tag = wanted.tag().is_none() || wanted.tag() == name.tag();
                *digest == self.manifest && wanted.name() == name.name() && of_tag
            }
        }
    }
}

/// Takes a name from whichever image has it.
fn untag(entries: &mut [Entry], name: &ImageRef) {
    for entry in entries {
        entry.name.take_if(|own| own == name);
    }
}

/// An image without a name has one entry, an image with names one for each.
fn forget_nameless(entries: &mut Vec<Entry>) {
    let mut kept: Vec<Entry> = Vec::with_capacity(entries.len());
    let (named, nameless): (Vec<_>, Vec<_>) = std::mem::take(entries)
        .into_iter()
        .partition(|entry| entry.name.is_some());
    kept.extend(named);
    for entry in nameless {
        if !kept.iter().any(|other| other.id == entry.id) {
            kept.push(entry);
        }
    }
    *entries = kept;
}
