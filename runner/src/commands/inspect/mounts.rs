//! What `inspect` tells of a container's volumes.

use serde::Serialize;

use super::shown;
use crate::rootfs::{Bind, Propagation};

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Mount {
    r#type: &'static str,
    /// Of a volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    source: String,
    destination: String,
    driver: &'static str,
    mode: &'static str,
    options: Vec<&'static str>,
    #[serde(rename = "RW")]
    rw: bool,
    propagation: &'static str,
}

impl Mount {
    pub fn of(bind: &Bind, volume: Option<String>) -> Self {
        let (kind, driver) = match volume {
            Some(_) => ("volume", "local"),
            None => ("bind", ""),
        };
        Self {
            r#type: kind,
            name: volume,
            source: shown(&bind.source),
            destination: shown(&bind.target),
            driver,
            mode: "",
            options: options(bind),
            rw: !bind.read_only,
            propagation: propagation(bind),
        }
    }
}

fn options(bind: &Bind) -> Vec<&'static str> {
    let flags = [
        (bind.options.exec, "exec", "noexec"),
        (bind.options.suid, "suid", "nosuid"),
        (bind.options.dev, "dev", "nodev"),
    ];
    let flags = flags.into_iter().filter_map(|(flag, on, off)| match flag {
        Some(true) => Some(on),
        Some(false) => Some(off),
        None => None,
    });
    let depth = match bind.options.top_only {
        true => "bind",
        false => "rbind",
    };
    flags.chain([depth]).collect()
}

fn propagation(bind: &Bind) -> &'static str {
    match (bind.options.propagation, bind.options.propagates_below) {
        (Propagation::Private, _) => "rprivate",
        (Propagation::Slave, false) => "slave",
        (Propagation::Slave, true) => "rslave",
        (Propagation::Shared, false) => "shared",
        (Propagation::Shared, true) => "rshared",
    }
}

/// As `-v` takes it.
pub fn bind_text(bind: &Bind) -> String {
    let access = match bind.read_only {
        true => "ro",
        false => "rw",
    };
    let apart = bind.changes.as_ref().map(|_| "O");
    let options = [access, propagation(bind)].into_iter().chain(options(bind));
    let options: Vec<_> = options.chain(apart).collect();
    let (source, target) = (shown(&bind.source), shown(&bind.target));
    format!("{source}:{target}:{}", options.join(","))
}
