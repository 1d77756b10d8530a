//! What a container is asked to be, and whether it can be at all.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use portfwd::spec::Publish;

use super::volumes::{ImageVolumes, VolumesFrom};
use super::{EngineError, HealthRequest, Lifetime, LogConfig};
use crate::isolation::capabilities::Capabilities;
use crate::isolation::resources::Resources;
use crate::isolation::seccomp::Seccomp;
use crate::isolation::sysctl::{Scope, Sysctl, SysctlError};
use crate::network::bridge::Attachment;
use crate::network::names::Names;
use crate::process::inherited::SoftLimits;
use crate::process::ulimit::Ulimit;
use crate::rootfs::device::DeviceArg;
use crate::rootfs::tmpfs::Tmpfs;
use crate::rootfs::volume::VolumeArg;
use crate::rootfs::{Masks, SHM_LEN};
use crate::secrets::SecretArg;
use crate::signal::Signal;
use crate::spec::{ExtraGroups, Network, UMASK, Variable};

/// What a container is to be.
#[derive(Debug, Clone)]
pub struct ContainerRequest {
    pub source: Source,
    /// Made up when not given.
    pub name: Option<String>,
    /// The short id when not given.
    pub hostname: Option<String>,
    /// What the caller wants to be told of it again. The engine makes nothing of them; keys are not
    /// empty, and all together are 256 KiB at most.
    pub labels: BTreeMap<String, String>,
    pub network: Network,
    /// What it is told of names.
    pub names: Names,
    /// A file of a time zone on the host, to be the container's.
    pub timezone: Option<PathBuf>,
    /// With [`Network::Bridge`], the networks of the container; leases are none of theirs.
    pub networks: Vec<Attachment>,
    /// What the host is to listen on. Needs a network.
    pub publish: Vec<Publish>,
    /// Whether the ports that the image exposes are published as well, where the kernel chooses.
    pub publish_all: bool,
    pub volumes: Vec<VolumeArg>,
    /// What it has from other containers, by their names or ids.
    pub volumes_from: Vec<VolumesFrom>,
    /// What becomes of the places where the image wants volumes.
    pub image_volumes: ImageVolumes,
    /// Ports that are exposed beside the image's, as `PORT[-PORT][/PROTOCOL]`.
    pub expose: Vec<String>,
    /// Secrets that its command may read.
    pub secrets: Vec<SecretArg>,
    /// File systems in memory.
    pub tmpfs: Vec<Tmpfs>,
    /// Devices of the host's.
    pub devices: Vec<DeviceArg>,
    /// What of the kernel's file systems it does not get to see.
    pub masks: Masks,
    /// Whether it has all devices that the caller may open. The rest of what Podman means by it is
    /// said by the other fields.
    pub privileged: bool,
    /// What /dev/shm may hold at most, in bytes.
    pub shm_len: u64,
    /// Whether the container cannot change its root file system. Volumes it can.
    pub read_only: bool,
    /// Whether it can then still write to /run, /tmp and /var/tmp, in memory.
    pub read_only_tmpfs: bool,
    /// Lets the host's root be root in the container.
    pub host_root: bool,
    /// Whether the container is forgotten when it ends.
    pub remove: bool,
    pub lifetime: Lifetime,
    pub health: HealthRequest,
    pub log: LogConfig,
    /// In place of the image's.
    pub stop_signal: Option<Signal>,
    /// Variables over those of the image.
    pub env: Vec<Variable>,
    /// Variables below those of the image.
    pub env_below: Vec<Variable>,
    /// What is not taken of the image's variables, of coracle's, and of `env_below`.
    pub unset: Unset,
    /// Put before the command; of an image in place of its own, and then its command is not used
    /// either.
    pub entrypoint: Option<Vec<OsString>>,
    /// The image's when not given.
    pub workdir: Option<PathBuf>,
    /// As `user::resolve` takes it; the image's when not given, or root.
    pub user: Option<String>,
    pub terminal: bool,
    /// Whether its input stays open while nobody is there to write to it.
    pub open_stdin: bool,
    /// Whether coracle stays as process 1.
    pub init: bool,
    pub capabilities: Capabilities,
    pub no_new_privs: bool,
    pub seccomp: Seccomp,
    pub limits: SoftLimits,
    /// Over `limits`.
    pub ulimits: Vec<Ulimit>,
    pub sysctls: Vec<Sysctl>,
    /// Whether it has control groups of its own, where the caller may make some.
    pub own_cgroups: bool,
    pub resources: Resources,
    pub umask: u32,
    pub oom_score_adj: Option<i32>,
    pub groups: ExtraGroups,
}

/// Variables that a container is not to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unset {
    Names(Vec<String>),
    All,
}

impl Unset {
    pub(super) fn leaves(&self, name: &OsStr) -> bool {
        match self {
            Self::Names(names) => !names.iter().any(|unset| name == OsStr::new(unset)),
            Self::All => false,
        }
    }
}

/// What a container is made from.
#[derive(Debug, Clone)]
pub enum Source {
    Directory {
        dir: PathBuf,
        /// The directory itself is changed, instead of an overlay over it.
        in_place: bool,
        command: Vec<OsString>,
    },
    /// An overlay over several directories.
    Layers {
        /// The uppermost first, as in overlayfs's `lowerdir`; an OCI manifest lists them the other
        /// way round. 1 to 500. What one hides of those below, by whiteouts and opaque directories,
        /// it says in the way of overlayfs's option `userxattr`.
        lowers: Vec<PathBuf>,
        command: Vec<OsString>,
    },
    Image {
        /// A name, or an id or its beginning.
        name: OsString,
        /// In place of the image's command.
        args: Vec<OsString>,
    },
}

impl ContainerRequest {
    /// One that asks for nothing but to be run as the source says, without a network, and to be
    /// kept when it ends.
    pub fn new(source: Source, limits: SoftLimits) -> Self {
        Self {
            source,
            name: None,
            hostname: None,
            labels: BTreeMap::new(),
            network: Network::None,
            names: Names::default(),
            timezone: None,
            networks: Vec::new(),
            publish: Vec::new(),
            publish_all: false,
            volumes: Vec::new(),
            volumes_from: Vec::new(),
            image_volumes: ImageVolumes::Volumes,
            expose: Vec::new(),
            secrets: Vec::new(),
            tmpfs: Vec::new(),
            devices: Vec::new(),
            masks: Masks::default(),
            privileged: false,
            shm_len: SHM_LEN,
            read_only: false,
            read_only_tmpfs: true,
            host_root: false,
            remove: false,
            lifetime: Lifetime::default(),
            health: HealthRequest::default(),
            log: LogConfig::default(),
            stop_signal: None,
            env: Vec::new(),
            env_below: Vec::new(),
            unset: Unset::Names(Vec::new()),
            entrypoint: None,
            workdir: None,
            user: None,
            terminal: false,
            open_stdin: false,
            init: false,
            capabilities: Capabilities::DEFAULT,
            no_new_privs: false,
            seccomp: Seccomp::Default,
            limits,
            ulimits: Vec::new(),
            sysctls: Vec::new(),
            own_cgroups: true,
            resources: Resources::default(),
            umask: UMASK,
            oom_score_adj: None,
            groups: ExtraGroups::default(),
        }
    }

    /// Whether it can be at all.
    pub(super) fn check(&self) -> Result<(), EngineError> {
        check_labels(&self.labels)?;
        self.lifetime.check(self.remove)?;
        self.names.check(&self.network)?;
        let is_shared = |setting: &&Sysctl| setting.scope() == Some(Scope::Network);
        if self.network == Network::Host
            && let Some(setting) = self.sysctls.iter().find(is_shared)
        {
            let name = setting.name.clone();
            return Err(SysctlError::Shared {
                name,
                of: "network",
            }
            .into());
        }
        let publishes = !self.publish.is_empty() || self.publish_all;
        match self.network {
            Network::None if publishes => Err(EngineError::PortsWithoutNetwork),
            Network::Host if publishes => Err(EngineError::PortsOfHost),
            Network::Bridge if self.networks.is_empty() => Err(EngineError::NoNetworks),
            Network::Bridge => Ok(()),
            _ if !self.networks.is_empty() => Err(EngineError::NotBridge),
            _ => Ok(()),
        }
    }
}

pub(super) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), EngineError> {
    /// In bytes, as for annotations in Kubernetes: a record is to stay short.
    const LABELS_LEN_MAX: usize = 256 * 1024;
    if labels.contains_key("") {
        return Err(EngineError::LabelWithoutKey);
    }
    let lens = labels.iter().map(|(key, value)| key.len() + value.len());
    match lens.sum::<usize>() > LABELS_LEN_MAX {
        true => Err(EngineError::LabelsTooLong),
        false => Ok(()),
    }
}
