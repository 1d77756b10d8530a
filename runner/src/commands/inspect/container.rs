//! What `inspect` tells of a container.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::super::human;
use super::host_config::HostConfig;
use super::mounts::Mount;
use super::network::{Network, networks};
use super::ports::{PortBindings, bindings};
use super::{GraphData, GraphDriver, joined, shown};
use crate::build::config::Healthcheck;
use crate::engine::{Engine, EngineError, HealthLog, Image, Probe};
use crate::rootfs::overlay::RootSource;
use crate::secrets::{Delivery, SecretUse};
use crate::spec::ContainerSpec;
use crate::state::{Container, Status};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Seen {
    id: String,
    created: String,
    path: String,
    args: Vec<String>,
    state: State,
    image: String,
    image_digest: String,
    image_name: String,
    rootfs: String,
    resolv_conf_path: String,
    hostname_path: String,
    hosts_path: String,
    static_dir: String,
    log_path: String,
    #[serde(rename = "OCIRuntime")]
    oci_runtime: &'static str,
    name: String,
    restart_count: u32,
    /// Bytes of what it has written to its root file system, and of that as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    size_rw: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_root_fs: Option<u64>,
    driver: &'static str,
    effective_caps: Vec<String>,
    bounding_caps: Vec<String>,
    graph_driver: GraphDriver,
    mounts: Vec<Mount>,
    network_settings: NetworkSettings,
    config: Config,
    host_config: HostConfig,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    status: &'static str,
    running: bool,
    paused: bool,
    restarting: bool,
    dead: bool,
    /// As the host sees it; 0 while it does not run.
    pid: i32,
    exit_code: i32,
    started_at: String,
    finished_at: String,
    health: Health,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Health {
    /// Empty for a container that has no check.
    status: String,
    failing_streak: u64,
    log: Option<Vec<Probe>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    /// By `PORT/PROTOCOL` of the container.
    ports: PortBindings,
    /// By the names of networks.
    networks: BTreeMap<String, Network>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    hostname: String,
    user: String,
    tty: bool,
    open_stdin: bool,
    env: Vec<String>,
    cmd: Vec<String>,
    image: String,
    working_dir: String,
    labels: BTreeMap<String, String>,
    stop_signal: i32,
    stop_timeout: u32,
    /// Seconds that it may run at the most; 0 for ever.
    timeout: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secrets: Vec<Secret>,
    #[serde(skip_serializing_if = "Option::is_none")]
    healthcheck: Option<Healthcheck>,
    #[serde(skip_serializing_if = "Option::is_none")]
    healthcheck_on_failure_action: Option<String>,
}

/// What a secret is called, and whose its file is; never what it says.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Secret {
    name: String,
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "UID")]
    uid: u32,
    #[serde(rename = "GID")]
    gid: u32,
    mode: u32,
}

impl Secret {
    /// `None` for one that is a variable.
    fn of(used: &SecretUse) -> Option<Self> {
        match used.delivery {
            Delivery::File { uid, gid, mode, .. } => Some(Self {
                name: used.name.clone(),
                id: used.id.clone(),
                uid,
                gid,
                mode,
            }),
            Delivery::Variable(_) => None,
        }
    }
}

/// As Go prints the time of what has not happened.
const NEVER: &str = "0001-01-01T00:00:00Z";

impl Seen {
    /// `size` asks for its files to be measured.
    pub fn look(container: &Container, size: bool, engine: &Engine) -> Result<Self, EngineError> {
        let spec = engine.spec(container)?;
        let dir = engine.store().dir(container);
        let image = image_of(container, engine)?;
        let volumes = engine.volumes();
        let size_rw = size.then(|| engine.size(container)).transpose()?;
        let size_of_image = match &image {
            Some(image) => engine.images()?.size(image),
            None => 0,
        };
        let mut command = container.command.iter().cloned();
        let ports = bindings(container);
        let in_run = |name: &str| shown(&container.run_dir.join(name));
        let capabilities = spec.process.capabilities;
        Ok(Self {
            id: container.id.to_string(),
            created: created(container),
            path: command.next().unwrap_or_default(),
            args: command.collect(),
            state: State::of(container, &engine.health(container)),
            image: container.image_id.clone().unwrap_or_default(),
            image_digest: image
                .as_ref()
                .map(|image| image.manifest_digest.to_string())
                .unwrap_or_default(),
            image_name: match container.image_id {
                Some(_) => container.image.clone(),
                None => String::new(),
            },
            rootfs: match (&container.image_id, spec.tree.root.dirs()) {
                (None, [dir]) => shown(dir),
                _ => String::new(),
            },
            resolv_conf_path: in_run("resolv.conf"),
            hostname_path: in_run("hostname"),
            hosts_path: in_run("hosts"),
            static_dir: shown(&dir.data),
            log_path: shown(&dir.log()),
            oci_runtime: "coracle",
            name: container.name.clone(),
            restart_count: container.restart_count,
            size_rw,
            size_root_fs: size_rw.map(|size| size + size_of_image),
            driver: "overlay",
            effective_caps: capabilities.names(),
            bounding_caps: capabilities.names(),
            graph_driver: graph_driver(&spec.tree.root),
            mounts: spec
                .tree
                .binds
                .iter()
                .map(|bind| Mount::of(bind, volumes.name_of(&bind.source)))
                .collect(),
            network_settings: NetworkSettings {
                ports: ports.clone(),
                networks: networks(container),
            },
            host_config: HostConfig::of(container, &spec, &dir.log(), ports),
            config: Config::of(container, spec),
        })
    }
}

/// The image that the container was made of, if it is still there.
fn image_of(container: &Container, engine: &Engine) -> Result<Option<Image>, EngineError> {
    let Some(id) = &container.image_id else {
        return Ok(None);
    };
    let store = engine.images()?;
    let found = store.find(&format!("sha256:{id}")).ok();
    Ok(found.map(|(image, _)| image))
}

fn created(container: &Container) -> String {
    let seconds = human::signed(container.created);
    let nanos = i32::try_from(container.created_nanos).unwrap_or(0);
    Timestamp::new(seconds, nanos).map_or_else(|_| NEVER.to_owned(), |at| at.to_string())
}

impl Health {
    fn of(container: &Container, known: &HealthLog) -> Self {
        Self {
            status: container
                .health
                .map_or_else(String::new, |status| status.to_string()),
            failing_streak: known.failing_streak,
            log: Some(known.log.clone()).filter(|log| !log.is_empty()),
        }
    }
}

impl State {
    fn of(container: &Container, health: &HealthLog) -> Self {
        let running = container.status == Status::Running;
        let paused = container.status == Status::Paused;
        let init = container.init.as_ref().filter(|_| running || paused);
        let (status, exit_code, at) = match container.status {
            Status::Created | Status::Starting => ("created", 0, None),
            Status::Running => ("running", 0, None),
            Status::Paused => ("paused", 0, None),
            Status::Restarting { code, at } => ("restarting", code, Some(at)),
            Status::Exited { code, at } => ("exited", code, Some(at)),
        };
        Self {
            status,
            running,
            paused,
            restarting: matches!(container.status, Status::Restarting { .. }),
            dead: false,
            pid: init.map_or(0, |init| init.pid),
            exit_code,
            started_at: moment(container.started),
            finished_at: moment(at),
            health: Health::of(container, health),
        }
    }
}

/// `seconds` since 1970 as Go prints it.
fn moment(seconds: Option<u64>) -> String {
    let at = seconds.and_then(|at| Timestamp::from_second(human::signed(at)).ok());
    at.map_or_else(|| NEVER.to_owned(), |at| at.to_string())
}

impl Config {
    fn of(container: &Container, spec: ContainerSpec) -> Self {
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        let (check, action) = spec
            .health
            .map(|health| (health.check, health.on_failure.to_string()))
            .unzip();
        Self {
            hostname: container.hostname.clone(),
            user: spec.process.user,
            tty: container.tty,
            open_stdin: spec.open_stdin,
            env: spec.process.env.into_iter().map(text).collect(),
            cmd: container.command.clone(),
            image: container.image.clone(),
            working_dir: shown(&spec.process.workdir),
            labels: container.labels.clone(),
            stop_signal: container.stop_signal,
            stop_timeout: container.stop_timeout,
            timeout: container.time_limit.unwrap_or(0),
            secrets: spec.secrets.iter().filter_map(Secret::of).collect(),
            healthcheck: check,
            healthcheck_on_failure_action: action,
        }
    }
}

fn graph_driver(root: &RootSource) -> GraphDriver {
    let data = match root {
        RootSource::InPlace(dir) => GraphData {
            lower_dir: None,
            upper_dir: Some(shown(dir)),
            work_dir: None,
        },
        RootSource::Overlay(overlay) => GraphData {
            lower_dir: joined(&overlay.lowers),
            upper_dir: Some(shown(&overlay.upper)),
            work_dir: Some(shown(&overlay.work)),
        },
    };
    GraphDriver {
        name: "overlay",
        data,
    }
}
