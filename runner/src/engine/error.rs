//! Why the engine did not do what it was asked for.

use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::files::TransferError;
use crate::build::BuildError;
use crate::failure::{Failure, FailureKind};
use crate::health::OnFailure;
use crate::images::builtin::ImageError;
use crate::images::error::StorageError;
use crate::isolation::freezer::FreezeError;
use crate::isolation::idmap::IdMapError;
use crate::isolation::namespaces::NamespaceError;
use crate::isolation::resources::ResourcesError;
use crate::isolation::sysctl::SysctlError;
use crate::network::bridge::ControlError;
use crate::network::etc_files::WriteError;
use crate::network::names::NamesError;
use crate::network::ports::PortError;
use crate::network::store::NetworksError;
use crate::process::channel::ChannelError;
use crate::process::task::TaskError;
use crate::rootfs::RootfsError;
use crate::rootfs::device::DeviceError;
use crate::rootfs::difference::DifferenceError;
use crate::rootfs::overlay::LOWERS_MAX;
use crate::rootfs::volume::VolumeError;
use crate::secrets::SecretsError;
use crate::spec::SpecFileError;
use crate::state::StateError;
use crate::volumes::VolumesError;

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error("container {name} is not running")]
    NotRunning { name: String },
    #[error(
        "container {name} is running: `coracle stop {wanted}` ends it, `coracle rm -f` kills it"
    )]
    StillRunning { name: String, wanted: String },
    #[error("container {name} is paused: `coracle unpause {name}` lets it go on")]
    Paused { name: String },
    #[error("one end of a copy at least is in a container, as CONTAINER:PATH")]
    NoContainerEnd,
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error("cannot reach the host's files: {source}")]
    HostTree { source: io::Error },
    #[error("cannot open the root directory of container {name}: {source}")]
    Root { name: String, source: io::Error },
    #[error("cannot lock container {name}: {source}")]
    Lock { name: String, source: io::Error },
    #[error(transparent)]
    Tree(#[from] RootfsError),
    #[error(
        "container {name} changes the directory that it was made from, and what was there before is not known"
    )]
    ChangesInPlace { name: String },
    #[error(transparent)]
    Difference(#[from] DifferenceError),
    #[error("cannot attach to container {name}: {source}")]
    Attach { name: String, source: io::Error },
    #[error("container {name} is not paused")]
    NotPaused { name: String },
    #[error("cannot pause container {name}: {source}")]
    Pause { name: String, source: FreezeError },
    #[error("cannot let container {name} go on: {source}")]
    Unpause { name: String, source: FreezeError },
    #[error("container {name} is forgotten when it ends (--rm), and cannot be started again")]
    GoneAtItsEnd { name: String },
    #[error(
        "a container that is forgotten when it ends (--rm) cannot be started again then (--restart)"
    )]
    RestartForgotten,
    #[error("container {name} has no log: it was made with --log-driver none")]
    NoLog { name: String },
    #[error("container {name} has no health check: `coracle run --health-cmd` gives it one")]
    NoHealthCheck { name: String },
    #[error("--health-on-failure {action} goes with a health check, and there is none")]
    OnFailureOfNothing { action: OnFailure },
    #[error("the health check took longer than {timeout:?}")]
    HealthOverdue { timeout: Duration },
    #[error("cannot record the health of a container in {}: {source}", path.display())]
    Health { path: PathBuf, source: io::Error },
    /// Its record says nothing about it, or not the truth.
    #[error("container {id} is running: `coracle rm -f {id}` kills it")]
    RunsUnrecorded { id: String },
    #[error("container {id} runs on: its monitor does not end")]
    RunsOn { id: String },
    #[error("cannot send {signal} to container {name}: {source}")]
    Signal {
        signal: String,
        name: String,
        source: io::Error,
    },
    #[error("cannot read {}: {source}", path.display())]
    Log { path: PathBuf, source: io::Error },
    #[error("a label has a key, and this one is empty")]
    LabelWithoutKey,
    #[error("labels are longer than 256 KiB in all: what does not fit belongs into a file")]
    LabelsTooLong,
    #[error("ports cannot be published with --network none")]
    PortsWithoutNetwork,
    #[error("ports cannot be published with --network host: the container has the host's own")]
    PortsOfHost,
    #[error("ports cannot be published in the network {network}: it is internal")]
    PortsOfInternal { network: String },
    #[error("a container of networks is in one at least")]
    NoNetworks,
    #[error("networks are named, and the container is to be in none")]
    NotBridge,
    #[error("the network {network} is named twice")]
    NetworkTwice { network: String },
    #[error("the container {container} is in no networks: it was not made with --network NAME")]
    NotInNetworks { container: String },
    #[error("container {container} is in the network {network} already")]
    InNetwork { container: String, network: String },
    #[error("container {container} is not in the network {network}")]
    NotInNetwork { container: String, network: String },
    #[error("{ip} is no address for a container of the network {network}, which has {subnets}")]
    NetworkAddress {
        ip: IpAddr,
        network: String,
        subnets: String,
    },
    #[error(transparent)]
    Networks(#[from] NetworksError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Port(#[from] PortError),
    #[error("cannot use --rootfs {}: {source}", dir.display())]
    Rootfs { dir: PathBuf, source: io::Error },
    #[error("a root file system is made of 1 to {LOWERS_MAX} directories, not of {count}")]
    Layers { count: usize },
    #[error("no command given: coracle run --rootfs DIR COMMAND")]
    NoCommand,
    #[error("the name of an image is text, and {name:?} is not")]
    ImageName { name: OsString },
    #[error("the image has neither an entry point nor a command: name one behind the image")]
    NoCommandInImage,
    #[error("the image wants to be stopped by the signal {signal:?}, which there is not")]
    ImageStopSignal { signal: String },
    #[error("the image exposes {port:?}, which is no port")]
    ImageExposes { port: String },
    /// The built-in image's.
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    #[error(
        "--group-add keep-groups is for users: containers of the host's root have other IDs than it, and none of its groups"
    )]
    KeepGroups,
    #[error(transparent)]
    Resources(#[from] ResourcesError),
    #[error(
        "container {name} was made without control groups of its own (--cgroups=disabled), which limits need"
    )]
    NoGroups { name: String },
    #[error(transparent)]
    Names(#[from] NamesError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Volumes(#[from] VolumesError),
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    #[error("the image wants a volume at {path:?}, which cannot be: {source}")]
    ImageVolume { path: String, source: VolumeError },
    #[error(transparent)]
    File(#[from] WriteError),
    #[error("the command and its environment are too long to be recorded")]
    CommandTooLong,
    #[error("cannot create {}: {source}", path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot give {} to the container's root: {source}", path.display())]
    GiveAway { path: PathBuf, source: io::Error },
    #[error("cannot make standard streams: {source}")]
    Streams { source: io::Error },
    #[error("cannot start the container's monitor: {source}")]
    Monitor { source: io::Error },
    #[error("the container's monitor was killed while it started")]
    MonitorKilled,
    #[error("cannot start the command's launcher: {source}")]
    Launcher { source: io::Error },
    #[error("the command's launcher was killed, and the command with it")]
    LauncherKilled,
    #[error("the command did not start in time: a process of the container may have stopped it")]
    StartOverdue,
    #[error("cannot wait for the command: {source}")]
    Wait { source: io::Error },
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error(transparent)]
    Task(#[from] TaskError),
    #[error(transparent)]
    Spec(#[from] SpecFileError),
    /// What a monitor, or the launcher of a command, has said.
    #[error("{0}")]
    Start(Failure),
    #[error(transparent)]
    IdMap(#[from] IdMapError),
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
}

/// What a caller can do about an [`EngineError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Nothing has that name or id.
    NoSuchContainer,
    /// Several ids begin so: a longer beginning says which.
    Ambiguous,
    /// What was asked for can never be, whatever the state of containers.
    Invalid,
    /// The container has to run for that, and does not.
    NotRunning,
    /// The container has to end first.
    StillRunning,
    /// Another container has the name.
    InUse,
    /// A port of the host's cannot be had.
    PortUnavailable,
    /// The container is at another point of its life.
    WrongState,
    /// The container has no such command.
    CommandNotFound,
    /// The command, or what it needs, is there and of no use.
    CommandNotExecutable,
    /// There is no image of that name.
    NoSuchImage,
    /// A container is made of the image, or it has several names.
    ImageInUse,
    /// There is no volume of that name.
    NoSuchVolume,
    /// A container uses the volume.
    VolumeInUse,
    /// There is no secret of that name.
    NoSuchSecret,
    /// There is no network of that name.
    NoSuchNetwork,
    /// A container is in the network.
    NetworkInUse,
    /// The machine, or a file of the engine's own, is at fault.
    Internal,
}

impl EngineError {
    pub(super) fn streams(source: io::Error) -> Self {
        Self::Streams { source }
    }

    pub(super) fn wait(source: io::Error) -> Self {
        Self::Wait { source }
    }

    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotRunning { .. } => ErrorKind::NotRunning,
            Self::Paused { .. } | Self::NotPaused { .. } => ErrorKind::WrongState,
            Self::StillRunning { .. } | Self::RunsUnrecorded { .. } => ErrorKind::StillRunning,
            Self::State(error) => match error {
                StateError::NotFound { .. } => ErrorKind::NoSuchContainer,
                StateError::Ambiguous { .. } => ErrorKind::Ambiguous,
                StateError::InvalidName { .. } => ErrorKind::Invalid,
                StateError::NameTaken { .. } => ErrorKind::InUse,
                StateError::StillRunning { .. } => ErrorKind::StillRunning,
                StateError::WrongState { .. } => ErrorKind::WrongState,
                _ => ErrorKind::Internal,
            },
            Self::NoContainerEnd
            | Self::ChangesInPlace { .. }
            | Self::LabelWithoutKey
            | Self::LabelsTooLong
            | Self::PortsWithoutNetwork
            | Self::PortsOfHost
            | Self::PortsOfInternal { .. }
            | Self::NoNetworks
            | Self::NotBridge
            | Self::NetworkTwice { .. }
            | Self::NotInNetworks { .. }
            | Self::InNetwork { .. }
            | Self::NotInNetwork { .. }
            | Self::NetworkAddress { .. }
            | Self::Rootfs { .. }
            | Self::Layers { .. }
            | Self::NoCommand
            | Self::ImageName { .. }
            | Self::NoCommandInImage
            | Self::ImageStopSignal { .. }
            | Self::ImageExposes { .. }
            | Self::Volume(_)
            | Self::Device(_)
            | Self::Names(_)
            | Self::Resources(_)
            | Self::NoGroups { .. }
            | Self::Sysctl(_)
            | Self::KeepGroups
            | Self::ImageVolume { .. }
            | Self::GoneAtItsEnd { .. }
            | Self::RestartForgotten
            | Self::NoHealthCheck { .. }
            | Self::NoLog { .. }
            | Self::OnFailureOfNothing { .. }
            | Self::CommandTooLong => ErrorKind::Invalid,
            Self::Port(_) => ErrorKind::PortUnavailable,
            Self::Start(failure) => match failure.kind {
                FailureKind::NotFound => ErrorKind::CommandNotFound,
                FailureKind::NotExecutable => ErrorKind::CommandNotExecutable,
                FailureKind::PortUnavailable => ErrorKind::PortUnavailable,
                _ => ErrorKind::Internal,
            },
            Self::Storage(error) => match error {
                StorageError::NotFound { .. } => ErrorKind::NoSuchImage,
                StorageError::Ambiguous { .. } => ErrorKind::Ambiguous,
                StorageError::Name(_) => ErrorKind::Invalid,
                StorageError::InUse { .. } | StorageError::SeveralNames { .. } => {
                    ErrorKind::ImageInUse
                }
                _ => ErrorKind::Internal,
            },
            Self::Volumes(error) => match error {
                VolumesError::NotFound { .. } => ErrorKind::NoSuchVolume,
                VolumesError::InUse { .. } => ErrorKind::VolumeInUse,
                VolumesError::Name { .. } => ErrorKind::Invalid,
                VolumesError::Exists { .. } => ErrorKind::InUse,
                _ => ErrorKind::Internal,
            },
            Self::Secrets(error) => match error {
                SecretsError::NotFound { .. } => ErrorKind::NoSuchSecret,
                SecretsError::Ambiguous { .. } => ErrorKind::Ambiguous,
                SecretsError::Exists { .. } => ErrorKind::InUse,
                SecretsError::Io { .. } | SecretsError::Damaged { .. } => ErrorKind::Internal,
                _ => ErrorKind::Invalid,
            },
            Self::Networks(error) => match error {
                NetworksError::NotFound { .. } => ErrorKind::NoSuchNetwork,
                NetworksError::Ambiguous { .. } => ErrorKind::Ambiguous,
                NetworksError::InUse { .. } => ErrorKind::NetworkInUse,
                NetworksError::Exists { .. } => ErrorKind::InUse,
                NetworksError::Name { .. }
                | NetworksError::Reserved { .. }
                | NetworksError::Subnet(_)
                | NetworksError::Taken { .. }
                | NetworksError::Family
                | NetworksError::NoSubnet { .. }
                | NetworksError::Mtu { .. } => ErrorKind::Invalid,
                _ => ErrorKind::Internal,
            },
            Self::Transfer(_)
            | Self::HostTree { .. }
            | Self::Root { .. }
            | Self::Lock { .. }
            | Self::Tree(_)
            | Self::Difference(_)
            | Self::RunsOn { .. }
            | Self::Attach { .. }
            | Self::Pause { .. }
            | Self::Unpause { .. }
            | Self::Control(_)
            | Self::Signal { .. }
            | Self::Log { .. }
            | Self::Image(_)
            | Self::Build(_)
            | Self::File(_)
            | Self::Make { .. }
            | Self::Write { .. }
            | Self::GiveAway { .. }
            | Self::Streams { .. }
            | Self::Monitor { .. }
            | Self::MonitorKilled
            | Self::Launcher { .. }
            | Self::LauncherKilled
            | Self::HealthOverdue { .. }
            | Self::Health { .. }
            | Self::StartOverdue
            | Self::Wait { .. }
            | Self::Task(_)
            | Self::Spec(_)
            | Self::Channel(_)
            | Self::IdMap(_)
            | Self::Namespace(_) => ErrorKind::Internal,
        }
    }
}
