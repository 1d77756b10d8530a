//! Where coracle keeps things, and what it knows of each container.
//!
//! Owns the two directories of a user ([`Dirs`]), the record of each container ([`Container`]) and
//! the operations on all of them ([`Store`]). What is in a container's directories besides its
//! record belongs to others, who find it through [`ContainerDir`].
//!
//! Invariants:
//! - A record is replaced by rename, under one lock per data directory: a reader sees an old record
//!   or a new one. Replacing one takes no room on the disk, so that a container which has filled it
//!   can be stopped, and its exit code kept.
//! - A directory without a record is a creation or a removal that was cut short. It is swept,
//!   nothing else is.
//! - No process has to be alive for the store to be right: a record names its processes by PID,
//!   start time and boot, and whoever reads it next repairs what a crash left behind.
//! - Records are kept with the data, not in the run directory: they survive a reboot, and are the
//!   same ones whether or not XDG_RUNTIME_DIR happens to be set.

pub mod claim;
mod directory_lock;
mod dirs;
mod process;
mod record;
mod regular;
mod restart;
mod store;
mod tree;
mod usage;
pub mod version;

use std::io;
use std::path::{Path, PathBuf};

use crate::failure::Explained;

pub use directory_lock::{lock_directory, lock_fleeting_directory, try_lock_directory};
pub use dirs::Dirs;
pub use process::ProcessRef;
pub(crate) use record::now;
pub use record::{
    Container, ContainerId, InvalidId, NewContainer, STOP_TIMEOUT, Status, is_valid_name,
};
pub use regular::{REGULAR_LEN_MAX, read_regular, replace_regular};
pub use restart::{InvalidRestartPolicy, RestartPolicy};
pub use store::{ContainerDir, Listing, Store};
pub use tree::remove_tree;
pub use usage::tree_size;
use version::VERSION;

/// Exit code of a container whose end nobody saw, because its monitor was killed: 128 + SIGKILL,
/// since the kernel kills what is left in a PID namespace whose init has died.
pub const LOST_EXIT_CODE: i32 = 137;

/// Exit code of a container whose runner died before the command was started: 125, a failure of the
/// runner itself.
pub const NEVER_STARTED_EXIT_CODE: i32 = 125;

/// Why the state of containers could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "cannot {action} {}: {source}; set {variable} to a directory of your own that can be written",
        path.display()
    )]
    NoPlace {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
        variable: &'static str,
    },
    #[error("will not keep state in {}: it {defect}; remove it, or set XDG_RUNTIME_DIR to a directory of your own", path.display())]
    UnsafeDir { path: PathBuf, defect: &'static str },
    #[error("no home directory is known for user {uid}: set HOME or XDG_DATA_HOME")]
    NoHome { uid: u32 },
    #[error("{} is not a container record ({defect}): `coracle rm -f {}` ends and forgets the container", path.display(), id.short())]
    Damaged {
        id: ContainerId,
        path: PathBuf,
        defect: String,
    },
    #[error(
        "{} has version {version}, and this coracle knows container records up to version {VERSION}: use the coracle that wrote it, or a newer one",
        path.display()
    )]
    Newer {
        id: ContainerId,
        path: PathBuf,
        version: u32,
    },
    #[error(
        "no container has the name or id {wanted:?}, but it may be one whose record is damaged: {}",
        damaged.join(", ")
    )]
    PerhapsDamaged {
        wanted: String,
        damaged: Vec<String>,
    },
    #[error(
        "{name:?} cannot name a container: use a letter or digit, then letters, digits, '_', '.' and '-', 128 at most"
    )]
    InvalidName { name: String },
    #[error(
        "the name {name} is in use by container {}: `coracle rm {}{name}` frees it, or choose another with --name",
        holder.short(),
        if *runs { "-f " } else { "" }
    )]
    NameTaken {
        name: String,
        holder: ContainerId,
        runs: bool,
    },
    #[error("no container has the name or id {wanted:?}: `coracle ps -a` lists all")]
    NotFound { wanted: String },
    #[error("{prefix} begins the id of {}: give more digits", matches.join(" and of "))]
    Ambiguous {
        prefix: String,
        matches: Vec<String>,
    },
    #[error("container {name} is running: `coracle stop {name}` ends it")]
    StillRunning { name: String },
    #[error("container {name} {status}, and cannot {}", verb(*next))]
    WrongState {
        name: String,
        status: Status,
        next: Status,
    },
    #[error(
        "cannot remove {}: {source}; it holds files of the container's own users, which only its user namespace may remove",
        path.display()
    )]
    NotOurs { path: PathBuf, source: io::Error },
}

impl Explained for StateError {}

/// What brings a container there.
fn verb(next: Status) -> &'static str {
    match next {
        Status::Created => "be left for a later start",
        Status::Starting => "be started",
        Status::Running => "go on",
        Status::Paused => "be paused",
        Status::Restarting { .. } => "be started again by its monitor",
        Status::Exited { .. } => "end",
    }
}

impl StateError {
    /// The container whose record could not be read.
    pub(super) fn unread(&self) -> Option<&ContainerId> {
        match self {
            Self::Damaged { id, .. } | Self::Newer { id, .. } => Some(id),
            _ => None,
        }
    }

    /// For `map_err`: an I/O error with what was being done to which path.
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
