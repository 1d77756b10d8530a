//! The form of the files that are kept of a container, and the only place that knows earlier forms.
//!
//! Each file tells its form by a number, `version`. What is read is brought up to date step by step
//! before anybody sees it; a form that is yet to come is refused, since nothing is known of what it
//! asks for.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::rootfs::SHM_LEN;
use crate::spec::UMASK;

/// The version of what is written.
///
/// - 0: told no version. Early ones lack fields.
/// - 1: the record has the container's ID maps, the specification its seccomp profile.
/// - 2: a container that somebody makes or starts is `starting`, one at rest `created`. The
///   specification says which namespaces it has, and whether its input stays open.
/// - 3: the root file system is made of any number of directories, and may be read-only.
/// - 4: the record has the container's labels.
/// - 5: the specification has options of the network.
/// - 6: the record has the id of the container's image; the specification says whether the working
///   directory is made.
/// - 7: the specification says which volumes get what the image has at their place.
/// - 8: the record says when the container was last started, which networks it is in, and it may be
///   paused.
/// - 9: the specification has file systems in memory, devices, the length of /dev/shm, what is
///   hidden in /proc and /sys, where changes of volumes go, names, a time zone, settings of the
///   kernel's, limits, umask and groups, and how the container's health is checked. The record says
///   how healthy it is, whether it is started again when it ends, how long it may take to end, or
///   run, and what becomes of what it writes.
pub const VERSION: u32 = 9;

/// A file that is kept of each container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// `config.json`: a [`Container`](super::Container).
    Record,
    /// `spec.json`: a `ContainerSpec`.
    Spec,
}

/// For writing: the content as it is now, with its version.
#[derive(Debug, Serialize)]
pub struct Versioned<'a, T> {
    version: u32,
    #[serde(flatten)]
    content: &'a T,
}

impl<'a, T> Versioned<'a, T> {
    pub fn new(content: &'a T) -> Self {
        Self {
            version: VERSION,
            content,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    #[error(
        "it has version {version}, and this coracle knows versions up to {VERSION}: use the coracle that wrote it, or a newer one"
    )]
    Newer { version: u32 },
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// Reads a file of any version up to the present one.
pub fn read<T: DeserializeOwned>(kept: Kept, text: &[u8]) -> Result<T, VersionError> {
    #[derive(Deserialize)]
    struct Head {
        #[serde(default)]
        version: u32,
    }
    // Most files are of the present version, and this passes over the rest of them.
    let Head { version } = serde_json::from_slice(text)?;
    match version {
        VERSION => Ok(serde_json::from_slice(text)?),
        0..VERSION => {
            let mut fields: Map<String, Value> = serde_json::from_slice(text)?;
            for step in version..VERSION {
                kept.upgrade(step, &mut fields);
            }
            Ok(serde_json::from_value(fields.into())?)
        }
        _ => Err(VersionError::Newer { version }),
    }
}

impl Kept {
    /// One step, from `version` to the next.
    fn upgrade(self, version: u32, fields: &mut Map<String, Value>) {
        match (self, version) {
            (Self::Record, 0) => record_from_0(fields),
            (Self::Spec, 0) => spec_from_0(fields),
            (Self::Record, 1) => record_from_1(fields),
            (Self::Spec, 1) => spec_from_1(fields),
            // The record is as it was.
            (Self::Record, 2) => {}
            (Self::Spec, 2) => spec_from_2(fields),
            (Self::Record, 3) => add_missing(fields, [("labels", json!({}))]),
            // And here the specification.
            (Self::Spec, 3) => {}
            (Self::Record, 4) => {}
            (Self::Spec, 4) => spec_from_4(fields),
            (Self::Record, 5) => add_missing(fields, [("image_id", Value::Null)]),
            (Self::Spec, 5) => spec_from_5(fields),
            (Self::Record, 6) => {}
            (Self::Spec, 6) => spec_from_6(fields),
            (Self::Record, 7) => {
                add_missing(fields, [("started", Value::Null), ("networks", json!([]))]);
            }
            (Self::Spec, 7) => {}
            (Self::Record, 8) => record_from_8(fields),
            (Self::Spec, 8) => spec_from_8(fields),
            _ => unreachable!("there are steps from all versions before {VERSION}"),
        }
    }
}

fn record_from_0(record: &mut Map<String, Value>) {
    let added = [
        ("created_nanos", json!(0)),
        ("stop_signal", json!(libc::SIGTERM)),
        ("cgroups", json!([])),
        // To be found out again where they are needed.
        ("id_maps", Value::Null),
    ];
    add_missing(record, added);
}

fn spec_from_0(spec: &mut Map<String, Value>) {
    if let Some(Value::Object(process)) = spec.get_mut("process") {
        let added = [
            ("limits", Value::Null),
            ("seccomp", json!("unconfined")),
            ("init", json!(false)),
            ("single_id", json!(false)),
        ];
        add_missing(process, added);
    }
    for bind in binds(spec) {
        let options = bind.entry("options").or_insert_with(|| {
            json!({
                "top_only": false,
                "propagation": "private",
                "propagates_below": false,
                "give_to_user": false,
            })
        });
        if let Value::Object(options) = options {
            add_missing(options, [("map_ids", json!(false))]);
        }
    }
}

fn record_from_1(record: &mut Map<String, Value>) {
    let status = record.get_mut("status").and_then(Value::as_object_mut);
    if let Some(state) = status.and_then(|status| status.get_mut("state"))
        && state == "created"
    {
        *state = json!("starting");
    }
}

fn spec_from_1(spec: &mut Map<String, Value>) {
    let kinds = ["user", "mount", "pid", "network", "ipc", "uts", "cgroup"];
    let new = kinds.map(|kind| (kind.to_owned(), json!("new")));
    let added = [
        ("namespaces", Value::Object(new.into_iter().collect())),
        ("open_stdin", json!(false)),
    ];
    add_missing(spec, added);
}

fn spec_from_2(spec: &mut Map<String, Value>) {
    let Some(Value::Object(tree)) = spec.get_mut("tree") else {
        return;
    };
    let dir = tree.remove("rootfs");
    let root = match tree.remove("changes") {
        Some(Value::Object(mut changes)) => {
            if let Some(Value::Object(overlay)) = changes.get_mut("Overlay") {
                overlay.insert("lowers".to_owned(), json!([dir]));
            }
            Value::Object(changes)
        }
        Some(Value::String(in_place)) if in_place == "InPlace" => json!({ "InPlace": dir }),
        // Damaged, and refused as such.
        other => json!(other),
    };
    add_missing(tree, [("root", root), ("read_only", json!(false))]);
}

fn spec_from_4(spec: &mut Map<String, Value>) {
    if let Some(network) = spec.get_mut("network")
        && network == "default"
    {
        let none = Value::Null;
        let options =
            json!({"cidr": none, "cidr6": none, "mtu": none, "map_host": [], "egress": []});
        *network = json!({ "coracle": options });
    }
}

fn spec_from_5(spec: &mut Map<String, Value>) {
    if let Some(Value::Object(process)) = spec.get_mut("process") {
        add_missing(process, [("make_workdir", json!(false))]);
    }
}

fn spec_from_6(spec: &mut Map<String, Value>) {
    for bind in binds(spec) {
        if let Some(Value::Object(options)) = bind.get_mut("options") {
            add_missing(options, [("copy_up", json!(false))]);
        }
    }
}

fn spec_from_8(spec: &mut Map<String, Value>) {
    for bind in binds(spec) {
        add_missing(bind, [("changes", Value::Null)]);
    }
    if let Some(Value::Object(tree)) = spec.get_mut("tree") {
        let masks = json!({"uncovered": "nothing", "covered": [], "writable_sys": false});
        let added = [
            ("devices", json!([])),
            ("tmpfs", json!([])),
            ("shm_len", json!(SHM_LEN)),
            ("masks", masks),
        ];
        add_missing(tree, added);
    }
    if let Some(Value::Object(process)) = spec.get_mut("process") {
        let added = [
            ("ulimits", json!([])),
            ("umask", json!(UMASK)),
            ("oom_score_adj", Value::Null),
            ("groups", json!({"named": []})),
        ];
        add_missing(process, added);
    }
    let lists = json!({"lists": {"servers": [], "search": [], "options": []}});
    let names = json!({"resolv_conf": lists, "hosts": [], "no_hosts": false});
    let added = [
        ("privileged", json!(false)),
        ("secrets", json!([])),
        ("timezone", Value::Null),
        ("names", names),
        ("sysctls", json!([])),
        ("own_cgroups", json!(true)),
        // Any number of processes.
        ("resources", json!({"pids": "unlimited"})),
        ("health", Value::Null),
    ];
    add_missing(spec, added);
}

/// The mounts of a specification, of users and of coracle.
fn binds(spec: &mut Map<String, Value>) -> impl Iterator<Item = &mut Map<String, Value>> {
    let tree = spec.get_mut("tree").and_then(Value::as_object_mut);
    let lists = tree.into_iter().flatten();
    lists
        .filter(|(name, _)| matches!(&***name, "binds" | "files"))
        .filter_map(|(_, list)| list.as_array_mut())
        .flatten()
        .filter_map(Value::as_object_mut)
}

fn record_from_8(record: &mut Map<String, Value>) {
    let added = [
        ("restart", json!("no")),
        ("restart_count", json!(0)),
        ("stopped", json!(false)),
        ("stop_timeout", json!(10)),
        ("time_limit", Value::Null),
        ("health", Value::Null),
        ("log", json!({"driver": "k8s-file", "max_size": null})),
    ];
    add_missing(record, added);
}

fn add_missing<const N: usize>(fields: &mut Map<String, Value>, added: [(&str, Value); N]) {
    for (name, value) in added {
        fields.entry(name).or_insert(value);
    }
}

#[cfg(test)]
mod tests;
