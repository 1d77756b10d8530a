//! What `inspect` tells of how a container was asked for, under Podman's `HostConfig`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::container::{PortBindings, bind_text, difference, shown};
use crate::rootfs::Bind;
use crate::spec::{self, ContainerSpec};
use crate::state::{Container, RestartPolicy};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HostConfig {
    binds: Vec<String>,
    log_config: LogConfig,
    network_mode: &'static str,
    port_bindings: PortBindings,
    restart_policy: Policy,
    auto_remove: bool,
    cap_add: Vec<String>,
    cap_drop: Vec<String>,
    devices: Vec<Device>,
    init: bool,
    readonly_rootfs: bool,
    privileged: bool,
    /// Bytes.
    shm_size: u64,
    /// Options, by places.
    tmpfs: BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Policy {
    name: &'static str,
    /// 0 for any number.
    maximum_retry_count: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct LogConfig {
    r#type: &'static str,
    path: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Device {
    path_on_host: String,
    path_in_container: String,
    cgroup_permissions: &'static str,
}

impl HostConfig {
    pub fn of(
        container: &Container,
        spec: &ContainerSpec,
        log: &Path,
        ports: PortBindings,
    ) -> Self {
        let (cap_add, cap_drop) = difference(spec.process.capabilities);
        let (binds, devices) = (spec.tree.binds.iter(), spec.tree.devices.iter());
        let tmpfs = spec.tree.tmpfs.iter();
        Self {
            binds: binds.map(bind_text).collect(),
            log_config: LogConfig {
                r#type: "k8s-file",
                path: shown(log),
            },
            network_mode: match spec.network {
                spec::Network::None => "none",
                spec::Network::Coracle(_) => "coracle",
                spec::Network::Bridge => "bridge",
                spec::Network::Host => "host",
            },
            port_bindings: ports,
            restart_policy: Policy::of(container.restart),
            auto_remove: container.remove,
            cap_add,
            cap_drop,
            devices: devices.map(Device::of).collect(),
            init: spec.process.init,
            readonly_rootfs: spec.tree.read_only,
            privileged: spec.privileged,
            shm_size: spec.tree.shm_len,
            tmpfs: tmpfs
                .map(|tmpfs| (shown(&tmpfs.target), tmpfs.options()))
                .collect(),
        }
    }
}

impl Policy {
    fn of(policy: RestartPolicy) -> Self {
        Self {
            name: policy.name(),
            maximum_retry_count: match policy {
                RestartPolicy::OnFailure { retries } => retries.unwrap_or(0),
                _ => 0,
            },
        }
    }
}

impl Device {
    fn of(bind: &Bind) -> Self {
        Self {
            path_on_host: shown(&bind.source),
            path_in_container: shown(&bind.target),
            cgroup_permissions: "rwm",
        }
    }
}
