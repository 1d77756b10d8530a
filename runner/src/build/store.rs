//! The working containers of one user.
//!
//! `DATA/working/ID` holds a record, the container's own layer (`upper`, and `work` for overlayfs)
//! and the place where its tree is mounted (`merged`). The lock is on `DATA/working` itself. The
//! record comes last and goes first: a directory without one was cut short, and is swept by the
//! next who makes or removes a container.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::BuildError;
use super::config::ImageConfig;
use super::tree;
use crate::images::digest::Digest;
use crate::images::files::{replace, to_json};
use crate::state::{ContainerId, is_valid_name, lock_directory, read_regular, remove_tree};

/// An image that is being made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Working {
    pub id: ContainerId,
    pub name: String,
    /// Seconds since 1970.
    pub created: i64,
    /// The image that it began with: its name, where it has one, and its id.
    pub image: Option<String>,
    pub image_id: Option<Digest>,
    pub config: ImageConfig,
    /// What its history is to say of how it was made.
    #[serde(default)]
    pub created_by: Option<String>,
    #[serde(default)]
    pub comment: Option<String>,
}

/// The record as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    container: Working,
}

const VERSION: u32 = 1;
const RECORD: &str = "container.json";

/// The working containers of one user. Cheap to open, holds no descriptor.
#[derive(Debug, Clone)]
pub struct WorkingStore {
    root: PathBuf,
}

/// Where the parts of one are.
#[derive(Debug, Clone)]
pub struct WorkingDir(PathBuf);

impl WorkingDir {
    pub fn upper(&self) -> PathBuf {
        self.0.join("upper")
    }

    pub fn work(&self) -> PathBuf {
        self.0.join("work")
    }

    /// Where the tree is mounted.
    pub fn merged(&self) -> PathBuf {
        self.0.join("merged")
    }

    /// Keeps others from using the container, until the file is dropped.
    pub fn lock(&self) -> Result<File, BuildError> {
        lock(&self.0)
    }
}

impl WorkingStore {
    pub fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Records a container, which begins with an empty layer, under `name` or one that is made of
    /// `stem`.
    pub fn create(
        &self,
        name: Option<&str>,
        stem: &str,
        image: Option<(String, Digest)>,
        config: ImageConfig,
    ) -> Result<Working, BuildError> {
        fs::create_dir_all(&self.root).map_err(BuildError::io("create", &self.root))?;
        let _lock = lock(&self.root)?;
        self.sweep()?;
        let taken = self.read_all()?;
        let holder = |name: &str| taken.iter().find(|other| other.name == name);
        let name = match name {
            Some(name) if !is_valid_name(name) => {
                return Err(BuildError::InvalidName {
                    name: name.to_owned(),
                });
            }
            Some(name) => {
                if let Some(holder) = holder(name) {
                    return Err(BuildError::NameTaken {
                        name: name.to_owned(),
                        holder: holder.id.short().to_owned(),
                    });
                }
                name.to_owned()
            }
            None => {
                let numbered = (1..).map(|number| format!("{stem}-{number}"));
                let mut names = std::iter::once(stem.to_owned()).chain(numbered);
                let free = names.find(|name| holder(name).is_none());
                free.expect("there are more names than containers")
            }
        };
        let (image, image_id) = image.unzip();
        let container = Working {
            id: ContainerId::random()?,
            name,
            created: jiff::Timestamp::now().as_second(),
            image,
            image_id,
            config,
            created_by: None,
            comment: None,
        };
        let dir = self.dir(&container);
        for (path, mode) in [
            (dir.0.clone(), 0o700),
            (dir.upper(), 0o755),
            (dir.work(), 0o700),
            (dir.merged(), 0o700),
        ] {
            let made = DirBuilder::new().mode(mode).create(&path);
            made.map_err(BuildError::io("create", &path))?;
        }
        // Past the umask: it becomes the tree's root.
        let upper = dir.upper();
        fs::set_permissions(&upper, PermissionsExt::from_mode(0o755))
            .map_err(BuildError::io("create", &upper))?;
        self.write(&container)?;
        Ok(container)
    }

    pub fn dir(&self, container: &Working) -> WorkingDir {
        WorkingDir(self.root.join(container.id.as_str()))
    }

    /// All, the newest first.
    pub fn list(&self) -> Result<Vec<Working>, BuildError> {
        let mut containers = self.read_all()?;
        containers.sort_by_key(|container| {
            (std::cmp::Reverse(container.created), container.name.clone())
        });
        Ok(containers)
    }

    /// By name, id, or the beginning of an id.
    pub fn find(&self, wanted: &str) -> Result<Working, BuildError> {
        let mut containers = self.read_all()?;
        if let Some(index) = containers.iter().position(|c| c.name == wanted) {
            return Ok(containers.swap_remove(index));
        }
        let begins = |c: &Working| !wanted.is_empty() && c.id.as_str().starts_with(wanted);
        containers.retain(begins);
        match containers.len() {
            0 => Err(BuildError::NotFound {
                wanted: wanted.to_owned(),
            }),
            1 => Ok(containers.swap_remove(0)),
            _ => Err(BuildError::Ambiguous {
                prefix: wanted.to_owned(),
            }),
        }
    }

    /// The one that has just this name or id.
    pub fn find_exactly(&self, wanted: &str) -> Result<Option<Working>, BuildError> {
        let is_meant = |c: &Working| c.name == wanted || c.id.as_str() == wanted;
        Ok(self.read_all()?.into_iter().find(is_meant))
    }

    /// Changes the record as it is now.
    pub fn modify(
        &self,
        id: &ContainerId,
        change: impl FnOnce(&mut Working),
    ) -> Result<Working, BuildError> {
        let _lock = lock(&self.root)?;
        let mut container = self.read(id)?;
        change(&mut container);
        self.write(&container)?;
        Ok(container)
    }

    /// Unmounts and forgets a container, once nobody uses it.
    pub fn remove(&self, container: &Working) -> Result<(), BuildError> {
        let dir = self.dir(container);
        let used = dir.lock()?;
        tree::unmount(&dir)?;
        let _lock = lock(&self.root)?;
        let record = dir.0.join(RECORD);
        match fs::remove_file(&record) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(BuildError::io("remove", &record)(error));
            }
            _ => {}
        }
        drop(used);
        remove_tree(&dir.0).map_err(BuildError::io("remove", &dir.0))
    }

    /// Removes what was cut short. Under the lock.
    fn sweep(&self) -> Result<(), BuildError> {
        for id in self.ids()? {
            let dir = WorkingDir(self.root.join(id.as_str()));
            if !dir.0.join(RECORD).exists() {
                tree::unmount(&dir)?;
                remove_tree(&dir.0).map_err(BuildError::io("remove", &dir.0))?;
            }
        }
        Ok(())
    }

    fn ids(&self) -> Result<Vec<ContainerId>, BuildError> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(BuildError::io("list", &self.root))?,
        };
        let id = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
        Ok(entries.filter_map(id).collect())
    }

    fn read_all(&self) -> Result<Vec<Working>, BuildError> {
        let ids = self.ids()?.into_iter();
        let found = ids.filter_map(|id| match self.read(&id) {
            Err(BuildError::NotFound { .. }) => None,
            other => Some(other),
        });
        found.collect()
    }

    fn read(&self, id: &ContainerId) -> Result<Working, BuildError> {
        let path = self.root.join(id.as_str()).join(RECORD);
        let text = match read_regular(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(BuildError::NotFound {
                    wanted: id.short().to_owned(),
                });
            }
            text => text.map_err(BuildError::io("read", &path))?,
        };
        let damaged = |defect| BuildError::Damaged {
            id: id.short().to_owned(),
            path: path.clone(),
            defect,
        };
        let kept: Kept =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        match kept.version {
            VERSION => Ok(kept.container),
            other => Err(damaged(format!(
                "it has version {other}, and this coracle knows version {VERSION}"
            ))),
        }
    }

    fn write(&self, container: &Working) -> Result<(), BuildError> {
        let path = self.root.join(container.id.as_str()).join(RECORD);
        let kept = Kept {
            version: VERSION,
            container: container.clone(),
        };
        Ok(replace(&path, &to_json(&kept))?)
    }
}

fn lock(path: &Path) -> Result<File, BuildError> {
    lock_directory(path).map_err(BuildError::io("lock", path))
}
