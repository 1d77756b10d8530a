//! What a container is made from: a directory, layers, the built-in image or one of the store.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use portfwd::spec::Publish;
use serde_json::Value;

use super::request::{ContainerRequest, Source, check_labels};
use super::volumes::ImageVolumes;
use super::{Engine, EngineError};
use crate::build::config::Healthcheck;
use crate::health::HealthCheck;
use crate::images::builtin;
use crate::images::digest::Digest;
use crate::images::files::Lock;
use crate::images::store::ImageStore;
use crate::isolation::idmap::IdMaps;
use crate::rootfs::Bind;
use crate::rootfs::overlay::LOWERS_MAX;
use crate::rootfs::tmpfs::Tmpfs;
use crate::rootfs::volume::VolumeArg;
use crate::signal::Signal;

/// What the source comes to: a root file system, and what is run on it unless something else is
/// asked for.
pub struct Base {
    pub label: String,
    /// Of an image in the store.
    pub image_id: Option<Digest>,
    /// Keeps its layers from being taken away.
    _shared: Option<Lock>,
    /// The uppermost first.
    pub dirs: Vec<PathBuf>,
    /// Whether the directory, which is the only one then, is itself changed.
    pub in_place: bool,
    pub args: Vec<OsString>,
    pub env: Vec<String>,
    pub workdir: PathBuf,
    /// As `user::resolve` takes it.
    pub user: String,
    labels: BTreeMap<String, String>,
    /// Where its program listens, as `PORT[-PORT][/PROTOCOL]`.
    exposed: Vec<String>,
    /// Where it wants volumes.
    volumes: Vec<String>,
    pub stop_signal: Signal,
    /// The image's, or what the request says in its place.
    pub health: Option<HealthCheck>,
    /// Where the image looks for what the network helper knows.
    pub status_dir: Option<PathBuf>,
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
        let (base, health) = match &request.source {
            Source::Directory {
                dir,
                in_place,
                command,
            } => {
                let label = format!("--rootfs {}", dir.display());
                let command = [entrypoint.unwrap_or_default(), command].concat();
                (
                    Base::directories(label, std::slice::from_ref(dir), *in_place, command)?,
                    None,
                )
            }
            Source::Layers { lowers, command } => {
                let label = format!("{} layers", lowers.len());
                let command = [entrypoint.unwrap_or_default(), command].concat();
                (Base::directories(label, lowers, false, command)?, None)
            }
            Source::Image { name, args } if name == builtin::DEFAULT => {
                let images = self.store.dirs().images();
                (Base::builtin(entrypoint, args, &images)?, None)
            }
            Source::Image { name, args } => {
                let name = name.to_str().ok_or_else(|| EngineError::ImageName {
                    name: name.to_owned(),
                })?;
                let images = self.images()?;
                let base = Base::image(name, entrypoint, args, &images, warn)?;
                let health = healthcheck(&images, base.image_id.as_ref())?;
                (base, health)
            }
        };
        let health = request.health.resolve(health)?;
        Ok(Base { health, ..base })
    }
}

/// What an image of the store says of its health, which is Docker's word and none of OCI's.
fn healthcheck(
    images: &ImageStore,
    id: Option<&Digest>,
) -> Result<Option<Healthcheck>, EngineError> {
    let Some(id) = id else { return Ok(None) };
    let (image, _) = images.find(&id.to_string())?;
    let mut config = images.raw_config(&image)?;
    let said = config.pointer_mut("/config/Healthcheck").map(Value::take);
    // One that nobody can read is none.
    Ok(said.and_then(|said| serde_json::from_value(said).ok()))
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
            health: None,
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
    pub fn published(&self, request: &ContainerRequest) -> Result<Vec<Publish>, EngineError> {
        let mut rules = request.publish.clone();
        if !request.publish_all {
            return Ok(rules);
        }
        for exposed in self.exposed.iter().chain(&request.expose) {
            let rule: Publish = exposed.parse().map_err(|_| EngineError::ImageExposes {
                port: exposed.clone(),
            })?;
            let is_said = |said: &Publish| {
                let mut ports = rule.guest_ports.ports();
                said.protocol == rule.protocol
                    && ports.all(|port| said.guest_ports.ports().contains(&port))
            };
            if !rules.iter().any(is_said) {
                rules.push(rule);
            }
        }
        Ok(rules)
    }

    /// The request's, and those of the image that it says nothing about.
    pub fn volumes(
        &self,
        request: &ContainerRequest,
        inherited: &[Bind],
    ) -> Result<Vec<VolumeArg>, EngineError> {
        let own = match request.image_volumes {
            ImageVolumes::Volumes => self.wanted_volumes(request, inherited)?,
            ImageVolumes::Memory | ImageVolumes::Ignored => Vec::new(),
        };
        Ok(request.volumes.iter().cloned().chain(own).collect())
    }

    /// The request's file systems in memory, and those in the places of the image's volumes.
    pub fn tmpfs(
        &self,
        request: &ContainerRequest,
        inherited: &[Bind],
    ) -> Result<Vec<Tmpfs>, EngineError> {
        let mut all = request.tmpfs.clone();
        if request.image_volumes == ImageVolumes::Memory {
            for volume in self.wanted_volumes(request, inherited)? {
                let tmpfs = Tmpfs::new(volume.bind.target.as_os_str());
                all.push(tmpfs.expect("the place was one for a volume"));
            }
        }
        Ok(all)
    }

    /// Those that the image wants where nothing else is mounted.
    fn wanted_volumes(
        &self,
        request: &ContainerRequest,
        inherited: &[Bind],
    ) -> Result<Vec<VolumeArg>, EngineError> {
        let mut volumes: Vec<VolumeArg> = Vec::new();
        for path in &self.volumes {
            let volume = VolumeArg::anonymous(path.as_ref());
            let volume = volume.map_err(|source| EngineError::ImageVolume {
                path: path.clone(),
                source,
            })?;
            let place = &volume.bind.target;
            let mut all = request.volumes.iter().chain(&volumes);
            let is_taken = all.any(|other| other.bind.target == *place)
                || inherited.iter().any(|bind| bind.target == *place)
                || request.tmpfs.iter().any(|tmpfs| tmpfs.target == *place);
            if !is_taken {
                volumes.push(volume);
            }
        }
        Ok(volumes)
    }

    /// The image's, and over them the request's.
    pub fn labels(
        &self,
        request: &ContainerRequest,
    ) -> Result<BTreeMap<String, String>, EngineError> {
        let mut labels = self.labels.clone();
        labels.extend(request.labels.clone());
        check_labels(&labels)?;
        Ok(labels)
    }

    /// A tree that root unpacked and a user runs works for reading; better said before than found
    /// out.
    pub fn warn_of_foreign_owner(&self, maps: &IdMaps, warn: &mut dyn FnMut(&str)) {
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
