//! Images of Podman and buildah: `containers-storage:IMAGE`, containers-storage(1).
//!
//! A storage has a directory for each of its drivers' layers, and beside it lists of images and of
//! layers in JSON. Of each layer it keeps how its tar was put together (tar-split), so that the tar
//! comes back bit by bit, and the image keeps its id. Files of sub-IDs are read by a process that
//! is root of a user namespace with these IDs, as Podman's own are.
//!
//! The storage is only read. Podman may change it meanwhile: what does not have its digest is
//! refused.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use oci_spec::image::{ImageManifest, ImageManifestBuilder, MediaType};
use serde::Deserialize;

use super::archive::descriptor;
use super::digest::{Digest, Hashing};
use super::error::{StorageError, io_error};
use super::files::{parse, to_json};
use super::layers::rebuild_tars;
use super::layers::tar_split::Rebuild;
use super::reference::ImageName;
use super::registries::Registries;
use super::store::{Image, ImageStore, read_manifest};

/// Those whose layers are directories of files.
const DRIVERS: [&str; 2] = ["overlay", "vfs"];

#[derive(Deserialize)]
struct ImageEntry {
    id: String,
    #[serde(default)]
    names: Vec<String>,
    /// The uppermost.
    #[serde(default)]
    layer: String,
}

#[derive(Deserialize)]
struct LayerEntry {
    id: String,
    #[serde(default)]
    parent: String,
    #[serde(default, rename = "diff-digest")]
    diff: Option<Digest>,
}

impl ImageStore {
    /// Adds an image that Podman or buildah of the same user has, under the name that it is asked
    /// for by.
    pub fn load_from_podman(
        &self,
        wanted: &str,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Image, StorageError> {
        let place = graph_root()?;
        let storage = Storage::find(&place, wanted)?;
        let unusable = |defect: String| StorageError::Unusable {
            origin: format!("containers-storage:{wanted}"),
            defect,
        };
        let adding = self.add_content()?;
        let manifest_path = storage.big_data("manifest");
        let manifest_text = read(&manifest_path)?;
        let manifest: ImageManifest = read_manifest(&manifest_path, &manifest_text)?;
        let config_name = manifest.config().digest().to_string();
        let config = read(&storage.big_data(&config_name))?;
        let id = adding.write(&config)?;
        if id.to_string() != config_name {
            return Err(unusable(format!("its configuration is {id}")));
        }
        let dir = adding.dir()?;
        let layers = storage.layers()?;
        let jobs = layers.iter().enumerate().map(|(number, layer)| Rebuild {
            recipe: storage.tar_split(&layer.id),
            files: storage.files(&layer.id),
            tar: dir.path().join(number.to_string()),
        });
        let jobs: Vec<_> = jobs.collect();
        rebuild_tars(&jobs)?;
        let mut descriptors = Vec::new();
        for (job, layer) in jobs.iter().zip(&layers) {
            let tar = fs::File::open(&job.tar).map_err(io_error("open", &job.tar))?;
            let mut tar = Hashing::new(tar);
            io::copy(&mut tar, &mut io::sink()).map_err(io_error("read", &job.tar))?;
            let (digest, len) = (tar.digest(), tar.len());
            if layer.diff.as_ref().is_some_and(|diff| *diff != digest) {
                return Err(unusable(format!("layer {} is {digest} now", layer.id)));
            }
            adding.adopt(&job.tar, &digest)?;
            descriptors.push(descriptor(MediaType::ImageLayer, &digest, len));
        }
        let manifest = ImageManifestBuilder::default()
            .schema_version(oci_spec::image::SCHEMA_VERSION)
            .media_type(MediaType::ImageManifest)
            .config(descriptor(MediaType::ImageConfig, &id, config.len() as u64))
            .layers(descriptors)
            .build()
            .expect("all that is required is given");
        let text = to_json(&manifest);
        let names = storage.name.parse().into_iter().collect();
        let manifest = adding.write(&text)?;
        self.admit(&id, &manifest, text.len() as u64, names, warn)
    }
}

/// One image in a storage.
struct Storage {
    root: PathBuf,
    driver: &'static str,
    image: ImageEntry,
    /// By which it was found, or an empty one.
    name: String,
}

impl Storage {
    fn find(root: &Path, wanted: &str) -> Result<Self, StorageError> {
        let name: Option<ImageName> = wanted.parse().ok();
        let candidates: Vec<String> = match &name {
            Some(name) => name
                .local_candidates(&Registries::load()?)
                .iter()
                .map(ToString::to_string)
                .collect(),
            None => Vec::new(),
        };
        for driver in DRIVERS {
            let path = root.join(format!("{driver}-images/images.json"));
            let Ok(text) = fs::read(&path) else { continue };
            let images: Vec<ImageEntry> = parse(&path, &text)?;
            let by_name = candidates.iter().find_map(|candidate| {
                let of_it = images
                    .iter()
                    .position(|image| image.names.contains(candidate));
                Some((of_it?, candidate.clone()))
            });
            let by_id = || {
                let is_id = wanted.len() >= 4 && wanted.bytes().all(|b| b.is_ascii_hexdigit());
                let mut found = images.iter().enumerate();
                let found = found.find(|(_, image)| is_id && image.id.starts_with(wanted));
                found.map(|(at, _)| (at, String::new()))
            };
            if let Some((at, name)) = by_name.or_else(by_id) {
                let image = images.into_iter().nth(at).expect("it was found there");
                return Ok(Self {
                    root: root.to_owned(),
                    driver,
                    image,
                    name,
                });
            }
        }
        Err(StorageError::NotInPodman {
            name: wanted.to_owned(),
            place: root.to_owned(),
        })
    }

    /// A file that belongs to the image. What is no plain name is kept as base64.
    fn big_data(&self, name: &str) -> PathBuf {
        let dir = self
            .root
            .join(format!("{}-images", self.driver))
            .join(&self.image.id);
        let is_plain = name.bytes().all(|byte| {
            byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-' || byte == b'_'
        });
        match is_plain && name == "manifest" {
            true => dir.join(name),
            false => dir.join(format!("={}", BASE64_STANDARD.encode(name))),
        }
    }

    /// The lowest first.
    fn layers(&self) -> Result<Vec<LayerEntry>, StorageError> {
        let path = self
            .root
            .join(format!("{}-layers/layers.json", self.driver));
        let mut entries: Vec<LayerEntry> = parse(&path, &read(&path)?)?;
        let mut layers = Vec::new();
        let mut wanted = self.image.layer.clone();
        while !wanted.is_empty() {
            let at = entries.iter().position(|layer| layer.id == wanted);
            let at = at.ok_or_else(|| StorageError::Damaged {
                path: path.clone(),
                defect: format!("layer {wanted:?} is missing in it"),
            })?;
            // Each once: a circle ends here.
            let layer = entries.swap_remove(at);
            wanted.clone_from(&layer.parent);
            layers.push(layer);
        }
        layers.reverse();
        Ok(layers)
    }

    fn tar_split(&self, layer: &str) -> PathBuf {
        let dir = self.root.join(format!("{}-layers", self.driver));
        dir.join(format!("{layer}.tar-split.gz"))
    }

    fn files(&self, layer: &str) -> PathBuf {
        match self.driver {
            "vfs" => self.root.join("vfs/dir").join(layer),
            driver => self.root.join(driver).join(layer).join("diff"),
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, StorageError> {
    fs::read(path).map_err(io_error("read", path))
}

/// Where the storage of the calling user is: what storage.conf says, containers-storage.conf(5), or
/// its default.
fn graph_root() -> Result<PathBuf, StorageError> {
    #[derive(Default, Deserialize)]
    struct Conf {
        #[serde(default)]
        storage: Table,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Table {
        graphroot: Option<PathBuf>,
        rootless_storage_path: Option<PathBuf>,
    }
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let is_root = rustix::process::geteuid().is_root();
    let home = variable("HOME").unwrap_or_else(|| "/".into());
    let own = variable("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
    let own = own.join("containers/storage.conf");
    let path = match variable("CONTAINERS_STORAGE_CONF") {
        Some(path) => path,
        None if !is_root && own.exists() => own.clone(),
        None => "/etc/containers/storage.conf".into(),
    };
    let conf: Conf = match fs::read_to_string(&path) {
        Ok(text) => toml::from_str(&text).map_err(|error| StorageError::Damaged {
            path: path.clone(),
            defect: error.to_string().trim_end().to_owned(),
        })?,
        Err(_) => Conf::default(),
    };
    // The system's graphroot is root's.
    let is_users = is_root || path != Path::new("/etc/containers/storage.conf");
    let told = match is_users {
        true => conf.storage.graphroot,
        false => conf.storage.rootless_storage_path,
    };
    let told = told.filter(|path| !path.as_os_str().is_empty());
    Ok(match told {
        // It may name variables, which Podman replaces.
        Some(path) => {
            let text = path.to_string_lossy().into_owned();
            let user = std::env::var("USER").unwrap_or_default();
            let uid = rustix::process::geteuid().as_raw().to_string();
            text.replace("$HOME", &home.to_string_lossy())
                .replace("$USER", &user)
                .replace("$UID", &uid)
                .into()
        }
        None if is_root => "/var/lib/containers/storage".into(),
        None => variable("XDG_DATA_HOME")
            .unwrap_or_else(|| home.join(".local/share"))
            .join("containers/storage"),
    })
}
