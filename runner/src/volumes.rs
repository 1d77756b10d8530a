//! Volumes: directories with a name that outlive containers, `-v NAME:/path` and an image's VOLUME.
//!
//! `DATA/volumes/NAME` has the files in `_data` and what is known of the volume in `volume.json`.
//! One that nobody has named is anonymous: it is there for one container, and goes with that when
//! it is removed by `--rm` or `rm -v`.
//!
//! Which containers use a volume is told by their specifications. A lock keeps a volume from going
//! while a container that is to use it is made: shared by whoever makes one, held alone by whoever
//! removes volumes.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use tracing::debug;

use crate::events::{Event, Journal};
use crate::failure::Explained;
use crate::images::error::StorageError;
use crate::images::files::{Lock, lock, replace, to_json};
use crate::images::remove_as_owner;
use crate::isolation::idmap::IdMaps;
use crate::isolation::namespaces::NamespaceError;
use crate::spec::ContainerSpec;
use crate::state::{
    Container, ContainerId, StateError, Store, lock_directory, read_regular, remove_tree,
    try_lock_directory,
};

/// A volume that is there.
#[derive(Debug, Clone)]
pub struct Volume {
    pub name: String,
    /// Where its files are.
    pub data: PathBuf,
    pub kept: Kept,
}

/// What is known of a volume besides.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    version: u32,
    /// Seconds since 1970.
    pub created: u64,
    pub labels: BTreeMap<String, String>,
    pub anonymous: bool,
    /// To whose IDs the files belong.
    id_maps: IdMaps,
}

const VERSION: u32 = 1;
const KEPT: &str = "volume.json";
const DATA: &str = "_data";
/// Before the name of what is being removed.
const CONDEMNED: &str = "old-";

#[derive(Debug, thiserror::Error)]
pub enum VolumesError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("there is no volume {name:?}; `coracle volume ls` lists them")]
    NotFound { name: String },
    #[error("there is a volume {name:?} already")]
    Exists { name: String },
    #[error(
        "{name:?} cannot name a volume: a name has letters, digits, and, not at its beginning, `_`, `.` and `-`"
    )]
    Name { name: String },
    #[error(
        "volume {name} is used by container {container}: `coracle rm {container}` removes that, `coracle volume rm -f {name}` both"
    )]
    InUse { name: String, container: String },
    #[error("{} is damaged: {defect}", path.display())]
    Damaged { path: PathBuf, defect: String },
    #[error(transparent)]
    Lock(#[from] StorageError),
    #[error(transparent)]
    Owner(#[from] NamespaceError),
    #[error(transparent)]
    State(#[from] StateError),
}

impl Explained for VolumesError {}

impl Volume {
    /// To whose IDs its files belong.
    pub fn id_maps(&self) -> &IdMaps {
        &self.kept.id_maps
    }
}

/// Containers by the names of the volumes that they use; volumes that nobody uses are not among
/// them.
pub type Users = BTreeMap<String, Vec<Container>>;

/// The volumes of one user. Cheap to make.
#[derive(Debug, Clone)]
pub struct Volumes {
    root: PathBuf,
    journal: Journal,
}

impl Volumes {
    pub fn of(store: &Store) -> Self {
        Self {
            root: store.dirs().volumes(),
            journal: store.journal(),
        }
    }

    /// Keeps volumes from being removed.
    pub fn hold(&self) -> Result<Lock, VolumesError> {
        self.lock(FlockOperation::LockShared)
    }

    fn lock(&self, operation: FlockOperation) -> Result<Lock, VolumesError> {
        let made = DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&self.root);
        made.map_err(io_error("create", &self.root))?;
        Ok(lock(&self.root.join("lock"), operation)?)
    }

    /// Makes a volume, whose files are to belong to the root of `maps`. One without a name is
    /// anonymous.
    pub fn create(
        &self,
        name: Option<&str>,
        labels: BTreeMap<String, String>,
        maps: &IdMaps,
    ) -> Result<Volume, VolumesError> {
        let _lock = self.hold()?;
        let made_up = random_name()?;
        let volume = Volume {
            name: name.unwrap_or(&made_up).to_owned(),
            data: PathBuf::new(),
            kept: Kept {
                version: VERSION,
                created: SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |since| since.as_secs()),
                labels,
                anonymous: name.is_none(),
                id_maps: maps.clone(),
            },
        };
        self.make(volume)
    }

    /// There as a whole or not at all.
    fn make(&self, volume: Volume) -> Result<Volume, VolumesError> {
        let name = &volume.name;
        if !is_valid_name(name) {
            return Err(VolumesError::Name { name: name.clone() });
        }
        let new = tempfile::Builder::new()
            .prefix(CONDEMNED)
            .tempdir_in(&self.root)
            .map_err(io_error("write in", &self.root))?;
        let data = new.path().join(DATA);
        let make = || -> io::Result<()> {
            fs::create_dir(&data)?;
            // Past the umask.
            fs::set_permissions(&data, PermissionsExt::from_mode(0o755))?;
            let maps = &volume.kept.id_maps;
            if maps.root_is_another() {
                let (uid, gid) = maps.root();
                lchown(&data, Some(uid), Some(gid))?;
            }
            Ok(())
        };
        make().map_err(io_error("create", &data))?;
        replace(&new.path().join(KEPT), &to_json(&volume.kept))?;
        let place = self.root.join(name);
        match fs::rename(new.path(), &place) {
            Ok(()) => {
                // Its name is another now.
                let _ = new.keep();
                self.journal.write(&Event::of_volume("create", name));
                Ok(Volume {
                    data: place.join(DATA),
                    ..volume
                })
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) =>
            {
                Err(VolumesError::Exists { name: name.clone() })
            }
            Err(error) => Err(io_error("create", &place)(error)),
        }
    }

    /// The volume of that name, made where there is none.
    pub fn ensure(&self, name: &str, maps: &IdMaps) -> Result<Volume, VolumesError> {
        match self.find(name) {
            Err(VolumesError::NotFound { .. }) => {}
            found => return found,
        }
        match self.create(Some(name), BTreeMap::new(), maps) {
            // Somebody was faster.
            Err(VolumesError::Exists { .. }) => self.find(name),
            made => made,
        }
    }

    pub fn find(&self, name: &str) -> Result<Volume, VolumesError> {
        let not_found = || VolumesError::NotFound {
            name: name.to_owned(),
        };
        if !is_valid_name(name) {
            return Err(not_found());
        }
        let path = self.root.join(name).join(KEPT);
        let text = match read_regular(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(not_found()),
            text => text.map_err(io_error("read", &path))?,
        };
        let kept: Kept = serde_json::from_slice(&text).map_err(|error| VolumesError::Damaged {
            path: path.clone(),
            defect: error.to_string(),
        })?;
        if kept.version != VERSION {
            return Err(VolumesError::Damaged {
                path,
                defect: format!(
                    "it has version {}, and this coracle knows version {VERSION}",
                    kept.version
                ),
            });
        }
        Ok(Volume {
            name: name.to_owned(),
            data: self.root.join(name).join(DATA),
            kept,
        })
    }

    /// All, in the order of their names.
    pub fn list(&self) -> Result<Vec<Volume>, VolumesError> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(io_error("list", &self.root))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(io_error("list", &self.root))?.file_name();
            names.extend(name.into_string().ok().filter(|name| {
                self.root.join(name).join(KEPT).exists() && !name.starts_with(CONDEMNED)
            }));
        }
        names.sort();
        names.iter().map(|name| self.find(name)).collect()
    }

    /// The volume that a directory of the host's is, or is in.
    pub fn name_of(&self, source: &Path) -> Option<String> {
        let rest = source.strip_prefix(self.real_root()).ok()?;
        let name = rest.components().next()?.as_os_str();
        name.to_str().map(str::to_owned)
    }

    /// As specifications have it, which hold real paths.
    fn real_root(&self) -> PathBuf {
        fs::canonicalize(&self.root).unwrap_or_else(|_| self.root.clone())
    }

    /// The names of the volumes that a container uses.
    pub fn used_by(&self, spec: &ContainerSpec) -> Vec<String> {
        let binds = spec.tree.binds.iter();
        binds
            .filter_map(|bind| self.name_of(&bind.source))
            .collect()
    }

    /// The anonymous volumes of a container.
    pub fn anonymous_of(&self, spec: &ContainerSpec) -> Vec<Volume> {
        let names = self.used_by(spec).into_iter();
        let volumes = names.filter_map(|name| self.find(&name).ok());
        volumes.filter(|volume| volume.kept.anonymous).collect()
    }

    /// Removes a volume that no container of `store` uses, and what is left of removals that were
    /// cut short.
    pub fn remove(&self, volume: &Volume, store: &Store) -> Result<(), VolumesError> {
        let lock = self.lock(FlockOperation::LockExclusive)?;
        let users = self.users(store).remove(&volume.name);
        if let Some(user) = users.and_then(|mut users| users.pop()) {
            return Err(VolumesError::InUse {
                name: volume.name.clone(),
                container: user.name,
            });
        }
        let place = self.root.join(&volume.name);
        // In one step: half a volume must not pass for one.
        let condemned = self.root.join(format!("{CONDEMNED}{}", random_name()?));
        fs::rename(&place, &condemned).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => VolumesError::NotFound {
                name: volume.name.clone(),
            },
            _ => io_error("remove", &place)(error),
        })?;
        self.journal
            .write(&Event::of_volume("remove", &volume.name));
        let _claim = lock_directory(&condemned).map_err(io_error("lock", &condemned))?;
        let left = self.left_by_the_dead();
        drop(lock);
        for (path, _claim) in left {
            if let Err(error) = remove_files(&path, volume.id_maps()) {
                debug!(%error, "what was left of a volume stays");
            }
        }
        remove_files(&condemned, volume.id_maps())
    }

    /// What removals that were cut short have left, and who removes it now. Under the lock that one
    /// process has alone: nothing there is about to become a volume.
    fn left_by_the_dead(&self) -> Vec<(PathBuf, File)> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let condemned = entries.filter(|entry| {
            let name = entry.file_name();
            name.as_encoded_bytes().starts_with(CONDEMNED.as_bytes())
        });
        condemned
            .filter_map(|entry| {
                let path = entry.path();
                let claim = try_lock_directory(&path).ok()??;
                Some((path, claim))
            })
            .collect()
    }

    /// Removes those of `volumes` that no container of `store` uses. Those that somebody uses stay.
    pub fn remove_unused(&self, volumes: &[Volume], store: &Store) -> Result<(), VolumesError> {
        let mut outcome = Ok(());
        for volume in volumes {
            match self.remove(volume, store) {
                // Or somebody else has removed it.
                Err(VolumesError::InUse { .. } | VolumesError::NotFound { .. }) => {}
                removed => outcome = outcome.and(removed),
            }
        }
        outcome
    }

    /// The containers that use volumes, by the volumes' names.
    pub fn users(&self, store: &Store) -> Users {
        let mut users = Users::new();
        let listing = store.list().unwrap_or_default();
        for container in listing.containers {
            let spec = ContainerSpec::load(&store.dir(&container).data);
            for name in spec.map(|spec| self.used_by(&spec)).unwrap_or_default() {
                users.entry(name).or_default().push(container.clone());
            }
        }
        users
    }
}

/// What could be the id of a container; Podman as well makes such names up.
fn random_name() -> Result<String, VolumesError> {
    Ok(ContainerId::random()?.to_string())
}

/// Removes a tree, some of which may belong to the container's own users.
fn remove_files(path: &Path, maps: &IdMaps) -> Result<(), VolumesError> {
    match remove_tree(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Ok(remove_as_owner(vec![path.to_owned()], maps)?)
        }
        removed => removed.map_err(io_error("remove", path)),
    }
}

/// As Podman's.
pub fn is_valid_name(name: &str) -> bool {
    const LEN_MAX: usize = 200;
    name.len() <= LEN_MAX
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && !name.starts_with(CONDEMNED)
        && name != "lock"
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumesError {
    let path = path.to_owned();
    move |source| VolumesError::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Dirs;

    fn volumes(dir: &Path) -> (Volumes, Store) {
        let dirs = Dirs::at(dir.join("run"), dir.join("data")).expect("directories");
        let store = Store::open(dirs).expect("a store");
        (Volumes::of(&store), store)
    }

    #[test]
    fn volumes_come_and_go() {
        let dir = tempfile::tempdir().expect("a directory");
        let (volumes, store) = volumes(dir.path());
        let maps = IdMaps::single();
        assert!(volumes.list().expect("none").is_empty());
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let made = volumes
            .create(Some("web"), labels.clone(), &maps)
            .expect("made");
        assert!(made.data.is_dir() && !made.kept.anonymous);
        assert!(matches!(
            volumes.create(Some("web"), BTreeMap::new(), &maps),
            Err(VolumesError::Exists { .. })
        ));
        let again = volumes.ensure("web", &maps).expect("found");
        assert_eq!((again.data, again.kept.labels), (made.data.clone(), labels));
        let anonymous = volumes.create(None, BTreeMap::new(), &maps).expect("made");
        assert!(anonymous.kept.anonymous && anonymous.name.len() == 64);
        let names: Vec<_> = volumes
            .list()
            .expect("two")
            .into_iter()
            .map(|v| v.name)
            .collect();
        assert!(names.len() == 2 && names.contains(&"web".to_owned()));
        let data = fs::canonicalize(&made.data).expect("a directory");
        assert_eq!(volumes.name_of(&data.join("below")).as_deref(), Some("web"));
        assert_eq!(volumes.name_of(dir.path()), None);
        fs::create_dir_all(made.data.join("a/b")).expect("files");
        // What removals that were cut short have left, one of which goes on.
        let left = |name| dir.path().join("data/volumes").join(name);
        for name in ["old-web", "old-mine"] {
            fs::create_dir_all(left(name).join(DATA)).expect("files");
        }
        let _removes = lock_directory(&left("old-mine")).expect("a lock");
        volumes.remove(&made, &store).expect("removed");
        assert!(matches!(
            volumes.find("web"),
            Err(VolumesError::NotFound { .. })
        ));
        assert!(!left("old-web").exists() && left("old-mine").exists());
    }

    #[test]
    fn names_cannot_lead_elsewhere() {
        for name in ["a", "web-1", "A.b_c", &random_name().expect("a name")] {
            assert!(is_valid_name(name), "{name}");
        }
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "-a",
            ".a",
            "old-x",
            "lock",
            "a b",
            "a\n",
            &"a".repeat(201),
        ] {
            assert!(!is_valid_name(name), "{name}");
        }
    }
}
