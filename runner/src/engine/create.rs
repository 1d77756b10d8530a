//! From what a container is to be to its record and its files. Nothing runs yet.
//!
//! The order: ID maps, record, files. What fails early has nothing to undo; from the record
//! on, every failure takes the record along.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use portfwd::spec::Publish;

use super::{Engine, EngineError};
use crate::images::builtin;
use crate::isolation::capabilities::Capabilities;
use crate::isolation::idmap::IdMaps;
use crate::isolation::namespaces::Namespaces;
use crate::isolation::seccomp::Seccomp;
use crate::network::etc_files;
use crate::process::inherited::SoftLimits;
use crate::rootfs::overlay::{LOWERS_MAX, Overlay, RootSource};
use crate::rootfs::volume::{self, VolumeArg};
use crate::rootfs::{Bind, BindOptions, Tree};
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
    pub volumes: Vec<VolumeArg>,
    /// Whether the container cannot change its root file system. Volumes it can.
    pub read_only: bool,
    /// Lets the host's root be root in the container.
    pub host_root: bool,
    /// Whether the container is forgotten when it ends.
    pub remove: bool,
    /// Variables over those of the image.
    pub env: Vec<Variable>,
    /// The image's when not given.
    pub workdir: Option<PathBuf>,
    /// As `user::resolve` takes it; root when not given.
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
        name: OsString,
        /// For the image's entry point.
        args: Vec<OsString>,
    },
}

impl ContainerRequest {
    /// Whether it can be at all.
    pub(super) fn check(&self) -> Result<(), EngineError> {
        /// In bytes, as for annotations in Kubernetes: a record is to stay short.
        const LABELS_LEN_MAX: usize = 256 * 1024;
        if self.labels.contains_key("") {
            return Err(EngineError::LabelWithoutKey);
        }
        let lens = self
            .labels
            .iter()
            .map(|(key, value)| key.len() + value.len());
        if lens.sum::<usize>() > LABELS_LEN_MAX {
            return Err(EngineError::LabelsTooLong);
        }
        match self.network {
            Network::None if !self.publish.is_empty() => Err(EngineError::PortsWithoutNetwork),
            _ => Ok(()),
        }
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
        let container = self.make(request, warn)?;
        let at_rest = |container: &mut Container| container.monitor = None;
        Ok(self.store.enter(&container.id, Status::Created, at_rest)?)
    }

    /// Records a container, with the calling process to answer for it, and makes its files.
    pub(super) fn make(
        &self,
        request: ContainerRequest,
        warn: &mut dyn FnMut(&str),
    ) -> Result<Container, EngineError> {
        let (maps, single) = IdMaps::discover(request.host_root)?;
        if let Some(reason) = &single {
            warn(&reason.warning());
        }
        let base = Base::find(&request.source, &self.store.dirs().images())?;
        base.warn_of_foreign_owner(&maps, warn);

        let container = self.store.create(NewContainer {
            name: request.name.clone(),
            hostname: request.hostname.clone(),
            labels: request.labels.clone(),
            image: base.label.clone(),
            command: shown_command(&base.args),
            publish: request.publish.iter().map(ToString::to_string).collect(),
            remove: request.remove,
            tty: request.terminal,
            stop_signal: Some(base.stop_signal as i32),
            id_maps: Some(maps.clone()),
        })?;
        let dir = self.store.dir(&container);
        make_files(request, &container, &dir, base, &maps, warn)
            .inspect_err(|_| drop(self.store.remove(&container)))?;
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
struct Base {
    label: String,
    /// The uppermost first.
    dirs: Vec<PathBuf>,
    /// Whether the directory, which is the only one then, is itself changed.
    in_place: bool,
    args: Vec<OsString>,
    env: Vec<String>,
    workdir: PathBuf,
    stop_signal: Signal,
    /// Where the image looks for what the network helper knows.
    status_dir: Option<PathBuf>,
}

impl Base {
    fn find(source: &Source, images: &Path) -> Result<Self, EngineError> {
        match source {
            Source::Directory {
                dir,
                in_place,
                command,
            } => {
                let label = format!("--rootfs {}", dir.display());
                Self::directories(label, std::slice::from_ref(dir), *in_place, command)
            }
            Source::Layers { lowers, command } => {
                let label = format!("{} layers", lowers.len());
                Self::directories(label, lowers, false, command)
            }
            Source::Image { name, args } => Self::image(name, args, images),
        }
    }

    fn directories(
        label: String,
        dirs: &[PathBuf],
        in_place: bool,
        command: &[OsString],
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
            label,
            dirs,
            in_place,
            args: command.to_vec(),
            env: Vec::new(),
            workdir: "/".into(),
            stop_signal: Signal::SIGTERM,
            status_dir: None,
        })
    }

    fn image(name: &OsStr, args: &[OsString], images: &Path) -> Result<Self, EngineError> {
        if name != builtin::DEFAULT {
            return Err(EngineError::NoSuchImage {
                name: name.to_owned(),
            });
        }
        let image = builtin::unpack_default(images)?;
        let entrypoint = image.entrypoint.iter().map(OsString::from);
        Ok(Self {
            label: builtin::DEFAULT.to_owned(),
            dirs: vec![image.rootfs],
            in_place: false,
            args: entrypoint.chain(args.iter().cloned()).collect(),
            env: image.env,
            workdir: image.working_dir,
            stop_signal: image.stop_signal,
            status_dir: Path::new(builtin::STATUS_SOCKET)
                .parent()
                .map(Path::to_path_buf),
        })
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
    maps: &IdMaps,
    warn: &mut dyn FnMut(&str),
) -> Result<(), EngineError> {
    let spec = specify(request, container, dir, base)?;
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
) -> Result<ContainerSpec, EngineError> {
    let root = match base.in_place {
        true => RootSource::InPlace(base.dirs.swap_remove(0)),
        false => RootSource::Overlay(Overlay {
            lowers: base.dirs,
            upper: dir.upper(),
            work: dir.work(),
            volatile: container.remove,
        }),
    };
    let mut binds = volume::binds(&request.volumes)?;
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
    Ok(ContainerSpec {
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
            workdir: request.workdir.unwrap_or(base.workdir),
            user: request.user.unwrap_or_default(),
            terminal: request.terminal,
            capabilities: request.capabilities,
            no_new_privs: request.no_new_privs,
            seccomp: request.seccomp,
            limits: Some(request.limits),
            init: request.init,
            single_id: false,
        },
    })
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
