//! What can be done to containers, as calls: the command line is one user of it.
//!
//! Each verb has a file here. Nothing is printed, no flag is known, and every error is an
//! [`EngineError`] whose [`ErrorKind`] says what a caller can do about it. Records are `state`'s.
//!
//! No process of the engine's own runs between calls: [`Engine::repair`] puts right what a crash
//! has left. Calls block until what they say is done, and may come from any thread. A program that
//! uses the engine first asks [`crate::roles`] whether it is to be something else.

mod attach;
mod base;
mod create;
mod error;
mod exec;
mod files;
mod health;
mod images;
mod kill;
mod launch;
mod lifetime;
mod logs;
mod networks;
mod owner;
mod pause;
mod ports;
mod processes;
mod remove;
mod rename;
mod request;
mod run_dir;
mod secrets;
mod stats;
mod stop;
mod talk;
mod top;
mod update;
mod volumes;
mod wait;

use netstack::logging::Filter;

use crate::events::Event;
use crate::spec::ContainerSpec;
use crate::state::{Container, Dirs, Listing, Store};

// What a request is made of.
pub use crate::health::{HealthLog, HealthStatus, OnFailure, Probe};
pub use crate::isolation::capabilities::Capabilities;
pub use crate::isolation::seccomp::Seccomp;
pub use crate::logs::{LogConfig, LogDriver};
pub use crate::process::inherited::SoftLimits;
pub use crate::rootfs::volume::VolumeArg;
pub use crate::spec::{Network, Variable};
pub use crate::state::RestartPolicy;
// What an attached caller gets.
pub use crate::stdio::{CallerEnds, Outputs};

pub use crate::images::archive::{ArchiveForm, Place};
pub use crate::images::destination::{Destination, DestinationError};
pub use crate::images::platform::Platform;
pub use crate::images::reference::{ImageName, ImageRef, NameError};
pub use crate::images::registries::Registries;
pub use crate::images::registry::form::ManifestForm;
pub use crate::images::registry::{Access, BlobProgress, Progress, PullRequest};
pub use crate::images::store::{Image, ImageStore, Part, Removed as RemovedImage};

pub use crate::rootfs::difference::{Change, ChangeKind};

pub use crate::network::bridge::{Attachment, Lease, Mac};
pub use crate::network::store::{BridgeNetwork, NetworkRequest, Networks, NetworksError};
pub use crate::secrets::{Content, Secret, SecretArg, Secrets, SecretsError};
pub use crate::volumes::{Users as VolumeUsers, Volume, Volumes, VolumesError};
pub use attach::Attached;
pub use error::{EngineError, ErrorKind};
pub(crate) use exec::START_MAX;
pub use exec::{Exec, ExecRequest};
pub use files::{CopyEnd, CopyRequest, Layers, TransferError};
pub(crate) use files::{FILES_ROLE, files_main};
pub use health::HealthRequest;
pub(crate) use health::{HEALTH_ROLE, HealthJob, main as health_main};
pub use images::is_of;
pub use launch::{Attach, Launch};
pub use lifetime::Lifetime;
pub use logs::ContainerLog;
pub(crate) use owner::{OWNER_ROLE, main as owner_main};
pub use ports::{PublishedPort, published_ports};
pub use remove::{LeftOver, Removed};
pub use request::{ContainerRequest, Source, Unset};
pub use stats::Stats;
pub use stop::Stop;
pub use top::{ProcessEntry, Top};
pub use update::UpdateRequest;
pub use volumes::{ImageVolumes, VolumesFrom};
pub use wait::Condition;

/// The containers of one user, and what can be done to them. Cheap to make and to clone; any number
/// of processes and threads may have one.
///
/// A container is named as users do: by its name, its id, or the beginning of its id.
#[derive(Debug, Clone)]
pub struct Engine {
    store: Store,
    filter: Filter,
}

impl Engine {
    /// Opens the containers kept in `dirs`. [`Engine::repair`] comes next, before what is found
    /// there is shown or trusted.
    pub fn open(dirs: Dirs) -> Result<Self, EngineError> {
        let store = Store::open(dirs)?;
        Ok(Self {
            store,
            filter: Filter::default(),
        })
    }

    /// How much the processes of containers that are started from here on log, to `coracle.log` in
    /// the container's run directory.
    pub fn logging(self, filter: Filter) -> Self {
        Self { filter, ..self }
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Puts into the journal what has been done to a container.
    fn note(&self, container: &Container, status: &str) {
        self.store.journal().write(&Event::of(container, status));
    }

    /// Puts into the journal what has been done to an image, under a name.
    pub(crate) fn note_image(&self, status: &str, image: &Image, name: &str) {
        let event = Event::of_image(status, image.id.hex(), name);
        self.store.journal().write(&event);
    }

    /// # Errors
    /// [`ErrorKind::NoSuchContainer`]; [`ErrorKind::Ambiguous`] when several ids begin so.
    pub fn find(&self, wanted: &str) -> Result<Container, EngineError> {
        Ok(self.store.find(wanted)?)
    }

    /// What a container was to be when it was created.
    pub fn spec(&self, container: &Container) -> Result<ContainerSpec, EngineError> {
        Ok(ContainerSpec::load(&self.store.dir(container).data)?)
    }

    /// All containers, newest first, and what is wrong with records that cannot be read.
    pub fn list(&self) -> Result<Listing, EngineError> {
        Ok(self.store.list()?)
    }
}

#[cfg(test)]
mod tests;
