//! From what a container is to be to its record and its files. Nothing runs yet.
//!
//! The order: ID maps, record, files. What fails early has nothing to undo; from the record
//! on, every failure takes the record along.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};

use portfwd::spec::Publish;

use super::base::Base;
use super::volumes::{ImageVolumes, VolumesFrom};
use super::{Engine, EngineError, HealthRequest, Lifetime, LogConfig};
use crate::isolation::capabilities::Capabilities;
use crate::isolation::idmap::IdMaps;
use crate::isolation::namespaces::Namespaces;
use crate::isolation::resources::Resources;
use crate::isolation::seccomp::Seccomp;
use crate::isolation::sysctl::{Scope, Sysctl, SysctlError};
use crate::network::bridge::Attachment;
use crate::network::etc_files;
use crate::network::names::Names;
use crate::process::inherited::SoftLimits;
use crate::process::ulimit::Ulimit;
use crate::rootfs::device::{self, DeviceArg};
use crate::rootfs::overlay::{Overlay, RootSource};
use crate::rootfs::tmpfs::Tmpfs;
use crate::rootfs::volume::{self, VolumeArg};
use crate::rootfs::{Bind, BindOptions, Masks, SHM_LEN, Tree};
use crate::secrets::{self, SecretArg, SecretUse};
use crate::signal::Signal;
use crate::spec::{
    ContainerSpec, DEFAULT_PATH, ExtraGroups, Network, ProcessSpec, SPEC_FILE, UMASK, Variable,
    environment, split_variable,
};
use crate::state::{Container, ContainerDir, NewContainer, REGULAR_LEN_MAX, Status};

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
    fn leaves(&self, name: &OsStr) -> bool {
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

impl Engine {
    /// Makes a container that [`Engine::start`] can start. Its ports are bound then. `warn` is told
    /// of what will not work as somebody may expect.
    pub fn create(
        &self,
        request: ContainerRequest,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Container, EngineError> {
        request.check()?;
        let base = self.find_base(&request, warn)?;
        let publish = base.published(&request)?;
        let container = self.make(ContainerRequest { publish, ..request }, base, warn)?;
        let at_rest = |container: &mut Container| container.monitor = None;
        Ok(self.store.enter(&container.id, Status::Created, at_rest)?)
    }

    /// Records a container, with the calling process to answer for it, and makes its files.
    pub(super) fn make(
        &self,
        request: ContainerRequest,
        base: Base,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Container, EngineError> {
        let (maps, single) = IdMaps::discover(request.host_root)?;
        if request.groups == ExtraGroups::Callers && maps.root_is_another() {
            return Err(EngineError::KeepGroups);
        }
        if let Some(reason) = &single {
            warn(&reason.warning());
        }
        // Until the record says that the image is in use.
        let _held = match &base.image_id {
            Some(id) => Some(self.images()?.hold(id)?),
            None => None,
        };
        base.warn_of_foreign_owner(&maps, warn);
        if let Network::Coracle(options) = &request.network {
            options.warn_of_hidden(warn);
        }
        // Until the record says which networks are in use.
        let (_networks, attachments) = self.resolve_networks(&request)?;
        let (used, contents) = self.find_secrets(&request.secrets)?;

        let container = self.store.create(NewContainer {
            name: request.name.clone(),
            hostname: request.hostname.clone(),
            labels: base.labels(&request)?,
            image: base.label.clone(),
            image_id: base.image_id.as_ref().map(|id| id.hex().to_owned()),
            command: shown_command(&base.args),
            networks: attachments,
            publish: request.publish.iter().map(ToString::to_string).collect(),
            remove: request.remove,
            tty: request.terminal,
            restart: request.lifetime.restart,
            stop_timeout: request.lifetime.stop_timeout,
            time_limit: request.lifetime.time_limit,
            log: request.log.clone(),
            stop_signal: Some(request.stop_signal.unwrap_or(base.stop_signal).as_raw()),
            id_maps: Some(maps.clone()),
        })?;
        let dir = self.store.dir(&container);
        let volumes = self.volumes();
        let mut anonymous = Vec::new();
        // Until the specification says which are in use.
        let held = volumes.hold();
        let made = held.map_err(EngineError::from).and_then(|_held| {
            let mut data_of = |name: Option<&str>| -> Result<PathBuf, EngineError> {
                let volume = match name {
                    Some(name) => volumes.ensure(name, &maps)?,
                    None => volumes.create(None, BTreeMap::new(), &maps)?,
                };
                anonymous.extend(volume.kept.anonymous.then(|| volume.clone()));
                Ok(volume.data)
            };
            let changes = dir.changes();
            let inherited = self.inherited_binds(&request.volumes_from)?;
            let wanted = base.volumes(&request, &inherited)?;
            let tmpfs = base.tmpfs(&request, &inherited)?;
            let mut binds = volume::binds(&wanted, &changes, &mut data_of)?;
            for bind in inherited {
                let is_taken = binds.iter().any(|other| other.target == bind.target)
                    || tmpfs.iter().any(|other| other.target == bind.target);
                binds.extend((!is_taken).then_some(bind));
            }
            secrets::keep(&dir.data, &contents)?;
            let request = ContainerRequest { tmpfs, ..request };
            let found = Found {
                binds,
                secrets: used,
            };
            make_files(request, &container, &dir, base, found, &maps, warn)
        });
        if let Err(error) = made {
            // Another failure would only hide this one.
            let _ = self.store.remove(&container);
            let _ = volumes.remove_unused(&anonymous, &self.store);
            return Err(error);
        }
        self.note(&container, "create");
        Ok(container)
    }
}

/// The command as listings show it: a record is to stay short, whatever somebody hands to a
/// program.
fn shown_command(args: &[OsString]) -> Vec<String> {
    const LEN_MAX: usize = 16 * 1024;
    let mut left = LEN_MAX;
    let fits = |arg: &String| {
        left = left.saturating_sub(arg.len() + 1);
        left > 0
    };
    args.iter()
        .map(|arg| arg.to_string_lossy().into_owned())
        .take_while(fits)
        .collect()
}

/// What a request was found to mean.
struct Found {
    binds: Vec<Bind>,
    secrets: Vec<SecretUse>,
}

/// Makes what the container needs besides its record.
fn make_files(
    request: ContainerRequest,
    container: &Container,
    dir: &ContainerDir,
    base: Base,
    found: Found,
    maps: &IdMaps,
    warn: &mut dyn FnMut(&str),
) -> Result<(), EngineError> {
    let devices = devices(&request)?;
    let spec = ContainerSpec {
        secrets: found.secrets,
        ..specify(request, container, dir, base, found.binds, devices)
    };
    let mut changed = make_changes(&spec.tree.binds)?;
    if maps.root_is_another() {
        if let RootSource::Overlay(overlay) = &spec.tree.root {
            changed.extend([overlay.upper.clone(), overlay.work.clone()]);
        }
        give_away(&changed, maps)?;
        let of_the_users = |bind: &&Bind| !bind.source.starts_with(&dir.run);
        warn_of_foreign_volumes(spec.tree.binds.iter().filter(of_the_users), maps, warn);
    }
    let text = spec.to_kept();
    if text.len() as u64 > REGULAR_LEN_MAX {
        return Err(EngineError::CommandTooLong);
    }
    let path = dir.data.join(SPEC_FILE);
    fs::write(&path, text).map_err(|source| EngineError::Write { path, source })
}

/// Makes the directories of overlays over volumes.
fn make_changes(binds: &[Bind]) -> Result<Vec<PathBuf>, EngineError> {
    let mut made = Vec::new();
    for changes in binds.iter().filter_map(|bind| bind.changes.as_ref()) {
        for name in [Bind::UPPER, Bind::WORK] {
            let path = changes.join(name);
            fs::create_dir_all(&path).map_err(|source| EngineError::Make {
                path: path.clone(),
                source,
            })?;
            made.push(path);
        }
    }
    Ok(made)
}

/// Those that were asked for, and for a privileged container all others.
fn devices(request: &ContainerRequest) -> Result<Vec<Bind>, EngineError> {
    let mut binds = Vec::new();
    for device in &request.devices {
        binds.extend(device.binds()?);
    }
    if request.privileged {
        let is_free = |bind: &Bind| !binds.iter().any(|other: &Bind| other.target == bind.target);
        let others: Vec<_> = device::all().into_iter().filter(is_free).collect();
        binds.extend(others);
    }
    Ok(binds)
}

/// Where a container that cannot change its root file system can write all the same, as far as
/// nothing else is mounted there.
fn scratch(request: &ContainerRequest, binds: &[Bind]) -> Vec<Tmpfs> {
    let places = match request.read_only && request.read_only_tmpfs {
        true => &["/run", "/tmp", "/var/tmp"][..],
        false => &[],
    };
    let is_free = |place: &&&str| {
        let place = Path::new(place);
        let is_there = binds.iter().any(|bind| bind.target == place);
        !is_there && !request.tmpfs.iter().any(|tmpfs| tmpfs.target == place)
    };
    let free = places.iter().filter(is_free);
    free.filter_map(|place| Tmpfs::new(place.as_ref()).ok())
        .collect()
}

fn specify(
    request: ContainerRequest,
    container: &Container,
    dir: &ContainerDir,
    mut base: Base,
    mut binds: Vec<Bind>,
    devices: Vec<Bind>,
) -> ContainerSpec {
    let root = match base.in_place {
        true => RootSource::InPlace(base.dirs.swap_remove(0)),
        false => RootSource::Overlay(Overlay {
            lowers: base.dirs,
            upper: dir.upper(),
            work: dir.work(),
            volatile: container.remove,
        }),
    };
    if let (Some(target), Network::Coracle(_)) = (base.status_dir, &request.network) {
        // The directory and not the socket, which is another one after each start of a helper.
        binds.push(Bind {
            source: dir.net(),
            target,
            read_only: true,
            options: BindOptions::default(),
            changes: None,
        });
    }
    let scratch = scratch(&request, &binds);
    let mut env: Vec<Variable> = [
        ("PATH", DEFAULT_PATH),
        ("container", "coracle"),
        ("HOSTNAME", &container.hostname),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .into();
    if request.terminal {
        env.push(("TERM".into(), "xterm".into()));
    }
    env.extend(request.env_below);
    let of_image = base.env.iter();
    env.extend(of_image.filter_map(|entry| split_variable(entry.as_ref())));
    env.retain(|(name, _)| request.unset.leaves(name));
    env.extend(request.env);
    ContainerSpec {
        hostname: container.hostname.clone(),
        tree: Tree {
            root,
            read_only: request.read_only,
            tmpfs: [scratch, request.tmpfs].concat(),
            binds,
            devices,
            files: etc_files::binds(&dir.run, &request.names, request.timezone.is_some()),
            shm_len: request.shm_len,
            masks: request.masks,
        },
        privileged: request.privileged,
        namespaces: match request.network {
            Network::Host => Namespaces::WITH_NETWORK_OF_HOST,
            _ => Namespaces::OWN,
        },
        sysctls: request.sysctls,
        own_cgroups: request.own_cgroups,
        resources: request.resources,
        network: request.network,
        secrets: Vec::new(),
        names: request.names,
        timezone: request.timezone,
        open_stdin: request.open_stdin,
        health: base.health,
        process: ProcessSpec {
            args: base.args,
            env: environment(env),
            make_workdir: request.workdir.is_none(),
            workdir: request.workdir.unwrap_or(base.workdir),
            user: request.user.unwrap_or(base.user),
            terminal: request.terminal,
            capabilities: request.capabilities,
            no_new_privs: request.no_new_privs,
            seccomp: request.seccomp,
            limits: Some(request.limits),
            ulimits: request.ulimits,
            umask: request.umask,
            oom_score_adj: request.oom_score_adj,
            groups: request.groups,
            init: request.init,
            single_id: false,
        },
    }
}

/// Makes the container's root the owner of what coracle has made for the container.
pub(super) fn give_away<'a>(
    paths: impl IntoIterator<Item = &'a PathBuf>,
    maps: &IdMaps,
) -> Result<(), EngineError> {
    let (uid, gid) = maps.root();
    for path in paths {
        lchown(path, Some(uid), Some(gid)).map_err(|source| EngineError::GiveAway {
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

/// Containers of the host's root are other users than root.
fn warn_of_foreign_volumes<'a>(
    binds: impl Iterator<Item = &'a Bind>,
    maps: &IdMaps,
    warn: &mut dyn FnMut(&str),
) {
    for bind in binds.filter(|bind| !bind.options.map_ids) {
        if let Ok(found) = fs::metadata(&bind.source)
            && !maps.maps_host_uid(found.uid())
        {
            warn(&format!(
                "{} belongs to user {}, who has no place in the container: it cannot be changed there, nor read where it is closed to \
                 others; the option idmap shows it as the container's (-v {}:{}:idmap)",
                bind.source.display(),
                found.uid(),
                bind.source.display(),
                bind.target.display()
            ));
        }
    }
}
