//! From what a container is to be to its record and its files. Nothing runs yet.
//!
//! The order: ID maps, record, files. What fails early has nothing to undo; from the record
//! on, every failure takes the record along.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};

use portfwd::spec::Publish;

use super::{Engine, EngineError};
use crate::images::builtin;
use crate::images::digest::Digest;
use crate::images::files::Lock;
use crate::images::store::ImageStore;
use crate::isolation::capabilities::Capabilities;
use crate::isolation::idmap::IdMaps;
use crate::isolation::namespaces::Namespaces;
use crate::isolation::seccomp::Seccomp;
use crate::network::etc_files;
use crate::process::inherited::SoftLimits;
use crate::rootfs::overlay::{LOWERS_MAX, Overlay, RootSource};
use crate::rootfs::volume::{self, VolumeArg};
use crate::rootfs::{Bind, BindOptions, Tree};
use crate::signal::Signal;
use crate::spec::{
    ContainerSpec, DEFAULT_PATH, Network, ProcessSpec, SPEC_FILE, Variable, environment,
    split_variable,
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
    /// What the host is to listen on. Needs a network.
    pub publish: Vec<Publish>,
    /// Whether the ports that the image exposes are published as well, where the kernel chooses.
    pub publish_all: bool,
    pub volumes: Vec<VolumeArg>,
    /// Whether the container cannot change its root file system. Volumes it can.
    pub read_only: bool,
    /// Lets the host's root be root in the container.
    pub host_root: bool,
    /// Whether the container is forgotten when it ends.
    pub remove: bool,
    /// Variables over those of the image.
    pub env: Vec<Variable>,
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
            publish: Vec::new(),
            publish_all: false,
            volumes: Vec::new(),
            read_only: false,
            host_root: false,
            remove: false,
            env: Vec::new(),
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
        }
    }

    /// Whether it can be at all.
    pub(super) fn check(&self) -> Result<(), EngineError> {
        check_labels(&self.labels)?;
        match self.network {
            Network::None if !self.publish.is_empty() || self.publish_all => {
                Err(EngineError::PortsWithoutNetwork)
            }
            _ => Ok(()),
        }
    }
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), EngineError> {
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
        if let Some(reason) = &single {
            warn(&reason.warning());
        }
        // Until the record says that the image is in use.
        let _held = match &base.image_id {
            Some(id) => Some(self.images()?.hold(id)?),
            None => None,
        };
        base.warn_of_foreign_owner(&maps, warn);

        let container = self.store.create(NewContainer {
            name: request.name.clone(),
            hostname: request.hostname.clone(),
            labels: base.labels(&request)?,
            image: base.label.clone(),
            image_id: base.image_id.as_ref().map(|id| id.hex().to_owned()),
            command: shown_command(&base.args),
            publish: request.publish.iter().map(ToString::to_string).collect(),
            remove: request.remove,
            tty: request.terminal,
            stop_signal: Some(base.stop_signal.as_raw()),
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
            let binds = volume::binds(&base.volumes(&request)?, &mut data_of)?;
            make_files(request, &container, &dir, base, binds, &maps, warn)
        });
        if let Err(error) = made {
            // Another failure would only hide this one.
            let _ = self.store.remove(&container);
            let _ = volumes.remove_unused(&anonymous, &self.store);
            return Err(error);
        }
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

/// What the source comes to: a root file system, and what is run on it unless something else is
/// asked for.
pub(super) struct Base {
    label: String,
    /// Of an image in the store.
    image_id: Option<Digest>,
    /// Keeps its layers from being taken away.
    _shared: Option<Lock>,
    /// The uppermost first.
    dirs: Vec<PathBuf>,
    /// Whether the directory, which is the only one then, is itself changed.
    in_place: bool,
    args: Vec<OsString>,
    env: Vec<String>,
    workdir: PathBuf,
    /// As `user::resolve` takes it.
    user: String,
    labels: BTreeMap<String, String>,
    /// Where its program listens, as `PORT[-PORT][/PROTOCOL]`.
    exposed: Vec<String>,
    /// Where it wants volumes.
    volumes: Vec<String>,
    stop_signal: Signal,
    /// Where the image looks for what the network helper knows.
    status_dir: Option<PathBuf>,
}

impl Engine {
    /// Looks at what a container is to be made from; the layers of an image are unpacked where they
    /// are not yet.
    pub(super) fn find_base(
        &self,
        request: &ContainerRequest,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Base, EngineError> {
        let entrypoint = request.entrypoint.as_deref();
        match &request.source {
            Source::Directory {
                dir,
                in_place,
                command,
            } => {
                let label = format!("--rootfs {}", dir.display());
                let command = [entrypoint.unwrap_or_default(), command].concat();
                Base::directories(label, std::slice::from_ref(dir), *in_place, command)
            }
            Source::Layers { lowers, command } => {
                let label = format!("{} layers", lowers.len());
                let command = [entrypoint.unwrap_or_default(), command].concat();
                Base::directories(label, lowers, false, command)
            }
            Source::Image { name, args } if name == builtin::DEFAULT => {
                Base::builtin(entrypoint, args, &self.store.dirs().images())
            }
            Source::Image { name, args } => {
                let name = name.to_str().ok_or_else(|| EngineError::ImageName {
                    name: name.to_owned(),
                })?;
                Base::image(name, entrypoint, args, &self.images()?, warn)
            }
        }
    }
}

impl Base {
    fn directories(
        label: String,
        dirs: &[PathBuf],
        in_place: bool,
        command: Vec<OsString>,
    ) -> Result<Self, EngineError> {
        if !(1..=LOWERS_MAX).contains(&dirs.len()) {
            return Err(EngineError::Layers { count: dirs.len() });
        }
        let real = |dir: &PathBuf| {
            let unusable = |source| EngineError::Rootfs {
                dir: dir.clone(),
                source,
            };
            let real = fs::canonicalize(dir).map_err(unusable)?;
            match real.is_dir() {
                true => Ok(real),
                false => Err(unusable(io::ErrorKind::NotADirectory.into())),
            }
        };
        let dirs = dirs.iter().map(real).collect::<Result<_, _>>()?;
        if command.is_empty() {
            return Err(EngineError::NoCommand);
        }
        Ok(Self {
            dirs,
            in_place,
            args: command,
            ..Self::named(label)
        })
    }

    /// Of nothing, and with no wishes.
    fn named(label: String) -> Self {
        Self {
            label,
            image_id: None,
            _shared: None,
            dirs: Vec::new(),
            in_place: false,
            args: Vec::new(),
            env: Vec::new(),
            workdir: "/".into(),
            user: String::new(),
            labels: BTreeMap::new(),
            exposed: Vec::new(),
            volumes: Vec::new(),
            stop_signal: Signal::TERM,
            status_dir: None,
        }
    }

    fn builtin(
        entrypoint: Option<&[OsString]>,
        args: &[OsString],
        images: &Path,
    ) -> Result<Self, EngineError> {
        let image = builtin::unpack_default(images)?;
        let own: Vec<_> = image.entrypoint.iter().map(OsString::from).collect();
        let args = [entrypoint.unwrap_or(&own), args].concat();
        if args.is_empty() {
            return Err(EngineError::NoCommandInImage);
        }
        Ok(Self {
            dirs: vec![image.rootfs],
            args,
            env: image.env,
            workdir: image.working_dir,
            exposed: image.exposed_ports,
            stop_signal: image.stop_signal,
            status_dir: Path::new(builtin::STATUS_SOCKET)
                .parent()
                .map(Path::to_path_buf),
            ..Self::named(builtin::DEFAULT.to_owned())
        })
    }

    fn image(
        name: &str,
        entrypoint: Option<&[OsString]>,
        args: &[OsString],
        images: &ImageStore,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Self, EngineError> {
        let shared = images.share_content()?;
        let (image, found_as) = images.find(name)?;
        let mut dirs = images.provide_layers(&image, warn)?;
        dirs.reverse();
        let config = image.run_config();
        let strings = |list: &Option<Vec<String>>| -> Vec<OsString> {
            let list = list.iter().flatten();
            list.map(OsString::from).collect()
        };
        let own = strings(config.entrypoint());
        let command = match (args, entrypoint) {
            ([], None) => strings(config.cmd()),
            // The image's would mean nothing to another entry point.
            (args, _) => args.to_vec(),
        };
        let args = [entrypoint.unwrap_or(&own), &command].concat();
        if args.is_empty() {
            return Err(EngineError::NoCommandInImage);
        }
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let stop_signal = match &*text(config.stop_signal()) {
            "" => Signal::TERM,
            wanted => wanted.parse().map_err(|_| EngineError::ImageStopSignal {
                signal: wanted.to_owned(),
            })?,
        };
        let label = found_as.as_ref().or(image.names.first());
        Ok(Self {
            image_id: Some(image.id.clone()),
            _shared: Some(shared),
            dirs,
            args,
            env: config.env().clone().unwrap_or_default(),
            // One that is not absolute is meant from the root.
            workdir: Path::new("/").join(text(config.working_dir())),
            user: text(config.user()),
            labels: config
                .labels()
                .clone()
                .unwrap_or_default()
                .into_iter()
                .collect(),
            exposed: config.exposed_ports().clone().unwrap_or_default(),
            volumes: config.volumes().clone().unwrap_or_default(),
            stop_signal,
            ..Self::named(label.map_or_else(|| image.id.short().to_owned(), ToString::to_string))
        })
    }

    /// What the request publishes, and with it what the image exposes if that is wanted. What a
    /// rule of the request is about is not published twice.
    pub(super) fn published(
        &self,
        request: &ContainerRequest,
    ) -> Result<Vec<Publish>, EngineError> {
        let mut rules = request.publish.clone();
        if !request.publish_all {
            return Ok(rules);
        }
        for exposed in &self.exposed {
            let rule: Publish = exposed.parse().map_err(|_| EngineError::ImageExposes {
                port: exposed.clone(),
            })?;
            let is_said = |said: &Publish| {
                let mut ports = rule.guest_ports.ports();
                said.protocol == rule.protocol
                    && ports.all(|port| said.guest_ports.ports().contains(&port))
            };
            if !request.publish.iter().any(is_said) {
                rules.push(rule);
            }
        }
        Ok(rules)
    }

    /// The request's, and those of the image that it says nothing about.
    fn volumes(&self, request: &ContainerRequest) -> Result<Vec<VolumeArg>, EngineError> {
        let mut volumes = request.volumes.clone();
        for path in &self.volumes {
            let volume = VolumeArg::anonymous(path.as_ref());
            let volume = volume.map_err(|source| EngineError::ImageVolume {
                path: path.clone(),
                source,
            })?;
            let place = &volume.bind.target;
            if !volumes.iter().any(|other| other.bind.target == *place) {
                volumes.push(volume);
            }
        }
        Ok(volumes)
    }

    /// The image's, and over them the request's.
    fn labels(&self, request: &ContainerRequest) -> Result<BTreeMap<String, String>, EngineError> {
        let mut labels = self.labels.clone();
        labels.extend(request.labels.clone());
        check_labels(&labels)?;
        Ok(labels)
    }

    /// A tree that root unpacked and a user runs works for reading; better said before than found
    /// out.
    fn warn_of_foreign_owner(&self, maps: &IdMaps, warn: &mut dyn FnMut(&str)) {
        let foreign = |dir: &&PathBuf| {
            let found = fs::metadata(dir).ok()?;
            (!maps.root_is_another() && !maps.maps_host_uid(found.uid())).then_some(found.uid())
        };
        if let Some((dir, uid)) = self.dirs.iter().find_map(|dir| Some((dir, foreign(&dir)?))) {
            warn(&format!(
                "{} belongs to user {}, who has no place in the container: what that user owns belongs to nobody there and \
                 cannot be changed",
                dir.display(),
                uid
            ));
        }
    }
}

/// Makes what the container needs besides its record.
fn make_files(
    request: ContainerRequest,
    container: &Container,
    dir: &ContainerDir,
    base: Base,
    binds: Vec<Bind>,
    maps: &IdMaps,
    warn: &mut dyn FnMut(&str),
) -> Result<(), EngineError> {
    let spec = specify(request, container, dir, base, binds);
    if maps.root_is_another() {
        if let RootSource::Overlay(overlay) = &spec.tree.root {
            give_away([&overlay.upper, &overlay.work], maps)?;
        }
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

fn specify(
    request: ContainerRequest,
    container: &Container,
    dir: &ContainerDir,
    mut base: Base,
    mut binds: Vec<Bind>,
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
        });
    }
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
    let of_image = base.env.iter();
    env.extend(of_image.filter_map(|entry| split_variable(entry.as_ref())));
    env.extend(request.env);
    ContainerSpec {
        hostname: container.hostname.clone(),
        tree: Tree {
            root,
            read_only: request.read_only,
            binds,
            files: etc_files::binds(&dir.run),
        },
        namespaces: Namespaces::OWN,
        network: request.network,
        open_stdin: request.open_stdin,
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
