//! From what a container is to be to its record and its files. Nothing runs yet.
//!
//! The order: ID maps, record, files. What fails early has nothing to undo; from the record
//! on, every failure takes the record along.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};

use super::base::Base;
use super::request::ContainerRequest;
use super::{Engine, EngineError};
use crate::isolation::idmap::IdMaps;
use crate::isolation::namespaces::Namespaces;
use crate::network::etc_files;
use crate::rootfs::device::{self};
use crate::rootfs::overlay::{Overlay, RootSource};
use crate::rootfs::tmpfs::Tmpfs;
use crate::rootfs::volume::{self};
use crate::rootfs::{Bind, BindOptions, Tree};
use crate::secrets::{self, SecretUse};
use crate::spec::{
    ContainerSpec, DEFAULT_PATH, ExtraGroups, Network, ProcessSpec, SPEC_FILE, Variable,
    environment, split_variable,
};
use crate::state::{Container, ContainerDir, NewContainer, REGULAR_LEN_MAX, Status};

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
