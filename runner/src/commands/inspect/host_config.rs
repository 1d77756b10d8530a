//! What `inspect` tells of how a container was asked for, under Podman's `HostConfig`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::super::human;
use super::mounts::bind_text;
use super::ports::PortBindings;
use super::shown;
use crate::cli::KEEP_GROUPS;
use crate::engine::Capabilities;
use crate::isolation::resources::Amount;
use crate::logs::{self, LogDriver};
use crate::network::names::ResolvConf;
use crate::process::ulimit::Ulimit;
use crate::rootfs::Bind;
use crate::spec::{self, ContainerSpec, ExtraGroups};
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
    /// Bytes; 0 for any number, as with all that follow.
    memory: u64,
    memory_reservation: u64,
    /// -1 for as much as there is.
    memory_swap: i64,
    nano_cpus: u64,
    /// Microseconds.
    cpu_period: u64,
    cpu_quota: u64,
    cpu_shares: u64,
    cpuset_cpus: String,
    cpuset_mems: String,
    pids_limit: i64,
    ulimits: Vec<Limit>,
    oom_score_adj: i32,
    group_add: Vec<String>,
    dns: Vec<String>,
    dns_options: Vec<String>,
    dns_search: Vec<String>,
    extra_hosts: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Limit {
    name: String,
    /// -1 for none.
    soft: i64,
    hard: i64,
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
    r#type: String,
    /// Empty without a log.
    path: String,
    tag: &'static str,
    /// Nothing where it was not said.
    size: String,
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
        let resources = &spec.resources;
        let (dns, dns_search, dns_options) = lists(&spec.names.resolv_conf);
        Self {
            binds: binds.map(bind_text).collect(),
            log_config: LogConfig::of(&container.log, log),
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
            memory: resources.memory.unwrap_or(0),
            memory_reservation: resources.memory_reservation.unwrap_or(0),
            memory_swap: match (resources.memory_swap, resources.memory) {
                (Some(amount), _) => signed(amount),
                (None, memory) => clamped(memory.unwrap_or(0).saturating_mul(2)),
            },
            nano_cpus: resources.nano_cpus(),
            cpu_period: resources.cpu_period.unwrap_or(0),
            cpu_quota: resources.cpu_quota.unwrap_or(0),
            cpu_shares: resources.cpu_shares.unwrap_or(0),
            cpuset_cpus: resources.cpuset_cpus.clone().unwrap_or_default(),
            cpuset_mems: resources.cpuset_mems.clone().unwrap_or_default(),
            pids_limit: signed(resources.pids()),
            ulimits: spec.process.ulimits.iter().map(Limit::of).collect(),
            oom_score_adj: spec.process.oom_score_adj.unwrap_or(0),
            group_add: match &spec.process.groups {
                ExtraGroups::Named(groups) => groups.clone(),
                ExtraGroups::Callers => vec![KEEP_GROUPS.to_owned()],
            },
            dns,
            dns_options,
            dns_search,
            extra_hosts: spec.names.hosts.iter().map(ToString::to_string).collect(),
        }
    }
}

/// What a container has more, and less, than the default.
fn difference(capabilities: Capabilities) -> (Vec<String>, Vec<String>) {
    let (own, default) = (capabilities.names(), Capabilities::DEFAULT.names());
    let without = |all: &[String], less: &[String]| {
        let rest = all.iter().filter(|name| !less.contains(name));
        rest.cloned().collect::<Vec<_>>()
    };
    (without(&own, &default), without(&default, &own))
}

fn clamped(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn signed(amount: Amount) -> i64 {
    match amount {
        Amount::Unlimited => -1,
        Amount::Max(max) => clamped(max),
    }
}

/// Servers, domains and options.
fn lists(resolv_conf: &ResolvConf) -> (Vec<String>, Vec<String>, Vec<String>) {
    match resolv_conf {
        ResolvConf::Image => (vec!["none".to_owned()], Vec::new(), Vec::new()),
        ResolvConf::Lists {
            servers,
            search,
            options,
        } => {
            let servers = servers.iter().map(ToString::to_string).collect();
            (servers, search.clone(), options.clone())
        }
    }
}

impl Limit {
    fn of(ulimit: &Ulimit) -> Self {
        let number = |limit: Option<u64>| limit.map_or(-1, clamped);
        Self {
            name: format!("RLIMIT_{}", ulimit.name().to_ascii_uppercase()),
            soft: number(ulimit.soft),
            hard: number(ulimit.hard),
        }
    }
}

impl LogConfig {
    fn of(config: &logs::LogConfig, path: &Path) -> Self {
        Self {
            r#type: config.driver.to_string(),
            path: match config.driver {
                LogDriver::None => String::new(),
                _ => shown(path),
            },
            tag: "",
            size: human::size_in_digits(config.max_size.unwrap_or(0)),
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
