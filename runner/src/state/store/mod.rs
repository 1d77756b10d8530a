//! The containers of one user: creating, finding, changing and removing their records.
//!
//! Layout: `DATA/containers/ID/config.json` beside the container's own data, and `RUN/SHORT-ID/`
//! for sockets, whose paths may have only 107 bytes. The lock is on the directory `DATA/containers`
//! itself, which is there however full the disk is.

mod change;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::claim;
use super::directory_lock::lock_directory;
use super::dirs::{Dirs, claim_run};
use super::record::{is_valid_name, made_up_name, now_precisely};
use super::regular::read_regular;
use super::tree::remove_tree;
use super::version::{self, Kept, VersionError, Versioned};
use super::{
    Container, ContainerId, LOST_EXIT_CODE, NEVER_STARTED_EXIT_CODE, NewContainer, ProcessRef,
    STOP_TIMEOUT, StateError, Status,
};
use crate::events::{Event, Journal};
use crate::isolation::cgroup;
use crate::random;

/// All containers of one user. Cheap to open, holds no descriptor; safe to use from any number of
/// processes.
#[derive(Debug, Clone)]
pub struct Store {
    dirs: Dirs,
}

/// Where the parts of one container are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerDir {
    /// For sockets; goes with the session.
    pub run: PathBuf,
    /// For data; goes with the container.
    pub data: PathBuf,
}

impl ContainerDir {
    /// The overlay's writable layer.
    pub fn upper(&self) -> PathBuf {
        self.data.join("upper")
    }

    /// For the status socket of the network helper; the container may see this directory.
    pub fn net(&self) -> PathBuf {
        self.run.join("net")
    }

    /// The overlay's work directory.
    pub fn work(&self) -> PathBuf {
        self.data.join("work")
    }

    /// For changes of volumes that are not to reach them.
    pub fn changes(&self) -> PathBuf {
        self.data.join("changes")
    }

    /// The current log file, for [`crate::logs`].
    pub fn log(&self) -> PathBuf {
        self.data.join("log")
    }

    /// Held by the monitor, see [`super::claim`].
    fn claim(&self) -> PathBuf {
        self.data.join("monitor")
    }

    fn config(&self) -> PathBuf {
        self.data.join("config.json")
    }
}

/// What [`Store::list`] found.
#[derive(Debug, Default)]
pub struct Listing {
    /// Newest first.
    pub containers: Vec<Container>,
    /// One [`StateError`] per record that cannot be read. They do not keep the others from being
    /// used.
    pub damaged: Vec<StateError>,
}

impl Store {
    /// Opens the store in these directories, creating what is missing.
    pub fn open(dirs: Dirs) -> Result<Self, StateError> {
        let store = Self { dirs };
        let path = store.containers_dir();
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(store
                .dirs
                .with_way_out(StateError::io("create", &path)(error))),
            _ => Ok(store),
        }
    }

    pub fn dirs(&self) -> &Dirs {
        &self.dirs
    }

    /// Where it is told what happens.
    pub(crate) fn journal(&self) -> Journal {
        Journal::of(&self.dirs)
    }

    /// Records a new container, with the calling process to answer for it, and makes its
    /// directories, `upper` and `work` among them. Fails with [`StateError::NameTaken`] when the
    /// name is in use.
    ///
    /// It is [`Status::Starting`]. Next, whoever takes over (the monitor) puts itself into
    /// `monitor` before the caller ends, or the caller leaves it [`Status::Created`].
    pub fn create(&self, new: NewContainer) -> Result<Container, StateError> {
        let _lock = self.lock()?;
        let taken = self.read_all()?.containers;
        let name = match new.name {
            Some(name) if !is_valid_name(&name) => return Err(StateError::InvalidName { name }),
            Some(name) => name,
            None => free_name(&taken)?,
        };
        check_free(&name, taken)?;
        let (id, run_dir) = self.reserve_id()?;
        let created = now_precisely();
        let me = ProcessRef::current()?;
        let container = Container {
            hostname: new.hostname.unwrap_or_else(|| id.short().to_owned()),
            labels: new.labels,
            name,
            created: created.as_secs(),
            created_nanos: created.subsec_nanos(),
            started: None,
            image: new.image,
            image_id: new.image_id,
            command: new.command,
            networks: new.networks,
            publish: new.publish,
            remove: new.remove,
            tty: new.tty,
            init: None,
            monitor: Some(me),
            status: Status::Starting,
            restart: new.restart,
            restart_count: 0,
            stopped: false,
            stop_signal: new.stop_signal.unwrap_or(libc::SIGTERM),
            stop_timeout: new.stop_timeout.unwrap_or(STOP_TIMEOUT),
            time_limit: new.time_limit,
            health: None,
            log: new.log,
            cgroups: Vec::new(),
            id_maps: new.id_maps,
            run_dir,
            id,
        };
        self.make_data_dirs(&container)
            .and_then(|()| self.write(&container))
            // Once more, so that there are two files to take turns.
            .and_then(|()| self.write(&container))
            .inspect_err(|_| drop(self.forget(&container.id, &container.run_dir)))?;
        Ok(container)
    }

    /// Finds a container by its name, its id, or the beginning of its id when no other id begins
    /// so.
    pub fn find(&self, wanted: &str) -> Result<Container, StateError> {
        let Listing {
            mut containers,
            damaged,
        } = self.list()?;
        if let Some(index) = containers.iter().position(|c| c.name == wanted) {
            return Ok(containers.swap_remove(index));
        }
        let unreadable: Vec<String> = damaged
            .iter()
            .filter_map(|error| Some(error.unread()?.short().to_owned()))
            .collect();
        let begins = |id: &ContainerId| !wanted.is_empty() && id.as_str().starts_with(wanted);
        let mut matches: Vec<Result<Container, StateError>> = containers
            .into_iter()
            .filter(|c| begins(&c.id))
            .map(Ok)
            .collect();
        matches.extend(
            damaged
                .into_iter()
                .filter(|error| error.unread().is_some_and(begins))
                .map(Err),
        );
        match matches.len() {
            0 if !unreadable.is_empty() => Err(StateError::PerhapsDamaged {
                wanted: wanted.to_owned(),
                damaged: unreadable,
            }),
            0 => Err(StateError::NotFound {
                wanted: wanted.to_owned(),
            }),
            1 => matches.swap_remove(0),
            _ => Err(StateError::Ambiguous {
                prefix: wanted.to_owned(),
                matches: matches
                    .iter()
                    .map(|found| match found {
                        Ok(container) => format!("{} ({})", container.id.short(), container.name),
                        Err(_) => "a damaged record".to_owned(),
                    })
                    .collect(),
            }),
        }
    }

    /// All containers, after repairing what crashes have left: a container without a living process
    /// has exited with [`LOST_EXIT_CODE`] or [`NEVER_STARTED_EXIT_CODE`], and is gone if it was to
    /// be removed.
    ///
    /// One that is still listed as exited with `remove` set, and with no living monitor, holds
    /// files that only a process inside its user namespace can remove: call [`Store::remove`]
    /// there.
    pub fn list(&self) -> Result<Listing, StateError> {
        let mut listing = {
            let _lock = self.lock()?;
            let mut listing = self.read_all()?;
            for container in listing.containers.iter_mut().filter(|c| c.is_lost()) {
                let code = match container.status {
                    Status::Running | Status::Paused | Status::Restarting { .. } => LOST_EXIT_CODE,
                    _ => NEVER_STARTED_EXIT_CODE,
                };
                container.status = Status::exited_now(code);
                // A file system that takes no more, or is read-only, does not change what is true.
                let _ = self.write(container);
                self.journal().write(&Event::death(container, code));
            }
            listing
        };
        listing
            .containers
            .retain(|c| !(c.is_left_over() && self.remove(c).is_ok()));
        listing
            .containers
            .sort_by(|a, b| b.age_key().cmp(&a.age_key()));
        Ok(listing)
    }

    /// Forgets a container that has ended, with all its files.
    ///
    /// Fails with [`StateError::NotOurs`], the record still there, when the container's own users
    /// left files that the caller may not remove: then the same call inside the container's user
    /// namespace, with the overlay unmounted, succeeds.
    pub fn remove(&self, container: &Container) -> Result<(), StateError> {
        if container.is_alive() {
            return Err(StateError::StillRunning {
                name: container.name.clone(),
            });
        }
        // Recorded, as the caller may be in other groups than whoever made these.
        cgroup::remove(&container.cgroups);
        self.remove_files(&container.id, &container.run_dir)
    }

    /// Like [`Store::remove`], for a record that cannot be read ([`StateError::Damaged`]).
    pub fn remove_damaged(&self, id: &ContainerId) -> Result<(), StateError> {
        self.remove_files(id, &self.run_dir(id))
    }

    /// Makes a container's run directory where that has gone with its session or the boot, and
    /// refuses one that somebody else may have prepared.
    pub(crate) fn claim_run_dir(&self, container: &Container) -> Result<(), StateError> {
        let dir = container.run_dir.as_path();
        dir.parent()
            .into_iter()
            .chain([dir])
            .try_for_each(claim_run)
    }

    /// Makes the calling process the one that answers for a container, until it ends or drops the
    /// file.
    pub fn claim(&self, container: &Container) -> Result<File, StateError> {
        let path = self.dir(container).claim();
        claim::take(&path).map_err(StateError::io("lock", &path))
    }

    /// The first process of a container, as its monitor has told beside the record.
    pub fn claimed_init(&self, id: &ContainerId) -> Option<ProcessRef> {
        let text = read_regular(&self.data_dir(id).join("monitor")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// The process that answers for a container whose record cannot be read.
    pub fn claimant(&self, id: &ContainerId) -> Option<rustix::process::Pid> {
        claim::holder(&self.data_dir(id).join("monitor"))
    }

    /// Where the parts of this container are.
    pub fn dir(&self, container: &Container) -> ContainerDir {
        ContainerDir {
            run: container.run_dir.clone(),
            data: self.data_dir(&container.id),
        }
    }

    fn containers_dir(&self) -> PathBuf {
        self.dirs.data.join("containers")
    }

    fn data_dir(&self, id: &ContainerId) -> PathBuf {
        self.containers_dir().join(id.as_str())
    }

    /// Where a container's run directory is, unless another session has made it.
    pub(crate) fn run_dir(&self, id: &ContainerId) -> PathBuf {
        self.dirs.run.join(id.short())
    }

    /// Keeps every other process from changing records until the file is dropped.
    fn lock(&self) -> Result<File, StateError> {
        let path = self.containers_dir();
        lock_directory(&path).map_err(StateError::io("lock", &path))
    }

    /// All records, and removes directories that have none. Under the lock.
    fn read_all(&self) -> Result<Listing, StateError> {
        let path = self.containers_dir();
        let failed = |error| StateError::io("list", &path)(error);
        let mut listing = Listing::default();
        for entry in fs::read_dir(&path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let Some(id) = name
                .to_str()
                .and_then(|name| name.parse::<ContainerId>().ok())
            else {
                continue;
            };
            match self.read(&id) {
                Ok(container) => listing.containers.push(container),
                Err(StateError::NotFound { .. }) => drop(self.forget(&id, &self.run_dir(&id))),
                Err(damaged) => listing.damaged.push(damaged),
            }
        }
        Ok(listing)
    }

    /// The record of the container with this id, as it is.
    pub fn read(&self, id: &ContainerId) -> Result<Container, StateError> {
        let path = self.data_dir(id).join("config.json");
        let damaged = |defect: String| StateError::Damaged {
            id: id.clone(),
            path: path.clone(),
            defect,
        };
        let text = match read_regular(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StateError::NotFound {
                    wanted: id.to_string(),
                });
            }
            read => read.map_err(|error| damaged(error.to_string()))?,
        };
        let container: Container = match version::read(Kept::Record, &text) {
            Err(VersionError::Newer { version }) => {
                return Err(StateError::Newer {
                    id: id.clone(),
                    path,
                    version,
                });
            }
            read => read.map_err(|error| damaged(error.to_string()))?,
        };
        if container.id != *id {
            return Err(damaged(format!(
                "it is the record of {}",
                container.id.short()
            )));
        }
        Ok(container)
    }

    /// Replaces the record in one step. Under the lock. Not synced to disk: after a power failure
    /// the container is not running either, and a torn record is reported as damaged.
    ///
    /// Two files take turns, each as long as the record is likely to become: what is written has
    /// its blocks already.
    fn write(&self, container: &Container) -> Result<(), StateError> {
        let path = self.dir(container).config();
        let new_path = path.with_extension("json.new");
        let mut text = serde_json::to_vec_pretty(&Versioned::new(container))
            .expect("a record has only strings, numbers and lists");
        text.resize(
            (text.len() + RECORD_GROWTH).next_multiple_of(RECORD_BLOCK),
            b'\n',
        );
        overwrite(&new_path, &text).map_err(StateError::io("write", &new_path))?;
        match renameat_with(CWD, &new_path, CWD, &path, RenameFlags::EXCHANGE) {
            Ok(()) => Ok(()),
            // There is no record yet, or the file system cannot exchange two files.
            Err(_) => fs::rename(&new_path, &path).map_err(StateError::io("replace", &path)),
        }
    }

    /// Picks a random id and makes its run directory, which also proves that its short form is not
    /// in use.
    fn reserve_id(&self) -> Result<(ContainerId, PathBuf), StateError> {
        claim_run(&self.dirs.run).map_err(|error| self.dirs.with_way_out(error))?;
        loop {
            let id = ContainerId::from_random(random()?);
            let run_dir = self.run_dir(&id);
            match DirBuilder::new().mode(0o700).create(&run_dir) {
                Ok(()) => return Ok((id, run_dir)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(StateError::io("create", &run_dir)(error)),
            }
        }
    }

    fn make_data_dirs(&self, container: &Container) -> Result<(), StateError> {
        let dir = self.dir(container);
        for (path, mode) in [
            // A container whose root is another user than the caller has to find its own
            // directories in here.
            (dir.data.clone(), 0o711),
            (dir.upper(), 0o755),
            (dir.work(), 0o700),
        ] {
            DirBuilder::new()
                .mode(mode)
                .create(&path)
                .map_err(StateError::io("create", &path))?;
            // Past the umask: the upper directory's mode becomes that of the container's `/`.
            fs::set_permissions(&path, Permissions::from_mode(mode))
                .map_err(StateError::io("create", &path))?;
        }
        Ok(())
    }

    /// The files of a container that has ended, record and all.
    ///
    /// # Errors
    /// As [`Store::remove`].
    pub(crate) fn remove_files(&self, id: &ContainerId, run_dir: &Path) -> Result<(), StateError> {
        let data = self.data_dir(id);
        // The bulk first and without the lock, the record last: a removal cut short can be
        // repeated.
        for part in ["work", "upper"].map(|name| data.join(name)) {
            remove_tree(&part).map_err(|source| removal_error(&part, source))?;
        }
        let _lock = self.lock()?;
        self.forget(id, run_dir)
    }

    /// Removes a container's directories, record and all.
    fn forget(&self, id: &ContainerId, run_dir: &Path) -> Result<(), StateError> {
        cgroup::remove(&cgroup::named(&cgroup::name(id.short())));
        // After a reboot somebody else may own the run directory's parent under /tmp: then nothing
        // of ours is in it.
        if run_dir
            .parent()
            .is_some_and(|parent| parent.is_dir() && claim_run(parent).is_ok())
        {
            remove_tree(run_dir).map_err(|source| removal_error(run_dir, source))?;
        }
        let data = self.data_dir(id);
        remove_tree(&data).map_err(|source| removal_error(&data, source))
    }
}

/// How much longer a record may become: two processes, an exit code.
const RECORD_GROWTH: usize = 1024;
/// The block size of most file systems.
const RECORD_BLOCK: usize = 4096;

/// Writes `bytes` over what is in a file, so that a disk need have no room left for them.
fn overwrite(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64)
}

fn removal_error(path: &Path, source: io::Error) -> StateError {
    match source.kind() {
        io::ErrorKind::PermissionDenied => StateError::NotOurs {
            path: path.to_owned(),
            source,
        },
        _ => StateError::io("remove", path)(source),
    }
}

fn check_free(name: &str, taken: impl IntoIterator<Item = Container>) -> Result<(), StateError> {
    match taken.into_iter().find(|other| other.name == name) {
        Some(holder) => Err(StateError::NameTaken {
            name: name.to_owned(),
            runs: holder.is_alive(),
            holder: holder.id,
        }),
        None => Ok(()),
    }
}

/// A made-up name that no container has: two words, and a number behind them when luck runs out.
fn free_name(taken: &[Container]) -> Result<String, StateError> {
    const PLAIN_TRIES: u32 = 8;
    let mut tries = 0;
    loop {
        let [first, second, third, fourth] = random()?;
        let mut name = made_up_name([first, second]);
        if tries >= PLAIN_TRIES {
            name = format!("{name}-{}", u16::from_ne_bytes([third, fourth]));
        }
        if taken.iter().all(|other| other.name != name) {
            return Ok(name);
        }
        tries += 1;
    }
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], StateError> {
    random::random().map_err(StateError::io("read", Path::new("/dev/urandom")))
}

#[cfg(test)]
mod tests;
