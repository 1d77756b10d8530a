//! Files of every version, as some coracle has written them, beside what is made of them now.

use std::path::Path;

use super::*;
use crate::rootfs::overlay::RootSource;
use crate::spec::{ContainerSpec, Network};
use crate::state::{Container, STOP_TIMEOUT, Status};

const RECORD_0: &str = include_str!("config-0.json");
const SPEC_0: &str = include_str!("spec-0.json");
const RECORD_1: &str = include_str!("config-1.json");
const SPEC_1: &str = include_str!("spec-1.json");
const RECORD_2: &str = include_str!("config-2.json");
const SPEC_2: &str = include_str!("spec-2.json");
const RECORD_3: &str = include_str!("config-3.json");
const SPEC_3: &str = include_str!("spec-3.json");
const RECORD_4: &str = include_str!("config-4.json");
const SPEC_4: &str = include_str!("spec-4.json");
const RECORD_5: &str = include_str!("config-5.json");
const SPEC_5: &str = include_str!("spec-5.json");
const RECORD_7: &str = include_str!("config-7.json");
const SPEC_6: &str = include_str!("spec-6.json");
const SPEC_8: &str = include_str!("spec-8.json");

fn object(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_record_of_version_0_is_read() {
    let container: Container = read(Kept::Record, RECORD_0.as_bytes()).unwrap();
    assert_eq!(container.name, "web");
    assert_eq!(container.created_nanos, 340_124_845);
    let exited = Status::Exited {
        code: 0,
        at: 1_795_934_345,
    };
    assert_eq!(container.status, exited);
    assert_eq!(container.id_maps, None);
    let written = serde_json::to_string(&Versioned::new(&container)).unwrap();
    let mut expected = object(RECORD_0);
    expected.extend(added_to_record_3());
    expected.insert("id_maps".to_owned(), Value::Null);
    assert_eq!(object(&written), expected);
    let again: Container = read(Kept::Record, written.as_bytes()).unwrap();
    assert_eq!(again, container);
}

#[test]
fn a_specification_of_version_0_is_read() {
    let spec: ContainerSpec = read(Kept::Spec, SPEC_0.as_bytes()).unwrap();
    let written = String::from_utf8(spec.to_kept()).unwrap();
    let mut expected = object(SPEC_0);
    expected.extend(added_to_spec_1());
    name_root(&mut expected);
    name_network(&mut expected);
    refuse_workdir(&mut expected);
    copy_nothing(&mut expected);
    bring_to_9(&mut expected);
    // Its container was started without a filter, and so are its later commands.
    expected["process"]["seccomp"] = json!("unconfined");
    assert_eq!(object(&written), expected);
    let again: ContainerSpec = read(Kept::Spec, written.as_bytes()).unwrap();
    assert_eq!(again.process.args, spec.process.args);
}

#[test]
fn a_record_of_version_1_is_read() {
    let container: Container = read(Kept::Record, RECORD_1.as_bytes()).unwrap();
    let written = serde_json::to_string(&Versioned::new(&container)).unwrap();
    let mut expected = object(RECORD_1);
    expected.extend(added_to_record_3());
    assert_eq!(object(&written), expected);
}

/// Somebody was starting it, and a crash may have come between.
#[test]
fn what_was_created_in_version_1_is_starting() {
    let mut record = object(RECORD_1);
    record["status"] = json!({"state": "created"});
    let text = serde_json::to_vec(&record).unwrap();
    let container: Container = read(Kept::Record, &text).unwrap();
    assert_eq!(container.status, Status::Starting);
}

#[test]
fn a_specification_of_version_1_is_read() {
    let spec: ContainerSpec = read(Kept::Spec, SPEC_1.as_bytes()).unwrap();
    let written = String::from_utf8(spec.to_kept()).unwrap();
    let mut expected = object(SPEC_1);
    expected.extend(added_to_spec_1());
    name_root(&mut expected);
    name_network(&mut expected);
    refuse_workdir(&mut expected);
    copy_nothing(&mut expected);
    bring_to_9(&mut expected);
    assert_eq!(object(&written), expected);
}

#[test]
fn a_record_of_version_2_is_read() {
    let container: Container = read(Kept::Record, RECORD_2.as_bytes()).unwrap();
    let written = serde_json::to_string(&Versioned::new(&container)).unwrap();
    let mut expected = object(RECORD_2);
    expected.extend(added_to_record_3());
    assert_eq!(object(&written), expected);
}

#[test]
fn a_specification_of_version_2_is_read() {
    let spec: ContainerSpec = read(Kept::Spec, SPEC_2.as_bytes()).unwrap();
    let written = String::from_utf8(spec.to_kept()).unwrap();
    let mut expected = object(SPEC_2);
    expected.insert("version".to_owned(), json!(VERSION));
    name_root(&mut expected);
    name_network(&mut expected);
    refuse_workdir(&mut expected);
    copy_nothing(&mut expected);
    bring_to_9(&mut expected);
    assert_eq!(object(&written), expected);

    let mut changed_in_place = object(SPEC_2);
    changed_in_place["tree"]["changes"] = json!("InPlace");
    let text = serde_json::to_vec(&changed_in_place).unwrap();
    let spec: ContainerSpec = read(Kept::Spec, &text).unwrap();
    assert!(matches!(&spec.tree.root, RootSource::InPlace(dir) if dir == Path::new("/srv/root")));
    assert!(!spec.tree.read_only);
}

#[test]
fn what_is_missing_from_version_2_is_not_made_up() {
    for part in ["rootfs", "changes"] {
        let mut damaged = object(SPEC_2);
        let tree = damaged["tree"].as_object_mut().unwrap();
        tree.remove(part).unwrap();
        let text = serde_json::to_vec(&damaged).unwrap();
        assert!(read::<ContainerSpec>(Kept::Spec, &text).is_err(), "{part}");
    }
}

#[test]
fn files_of_version_3_are_read() {
    let container: Container = read(Kept::Record, RECORD_3.as_bytes()).unwrap();
    let written = serde_json::to_string(&Versioned::new(&container)).unwrap();
    let mut expected = object(RECORD_3);
    expected.extend(added_to_record_3());
    assert_eq!(object(&written), expected);

    let spec: ContainerSpec = read(Kept::Spec, SPEC_3.as_bytes()).unwrap();
    let written = String::from_utf8(spec.to_kept()).unwrap();
    let mut expected = object(SPEC_3);
    expected.insert("version".to_owned(), json!(VERSION));
    name_network(&mut expected);
    refuse_workdir(&mut expected);
    copy_nothing(&mut expected);
    bring_to_9(&mut expected);
    assert_eq!(object(&written), expected);
}

#[test]
fn files_of_version_4_are_read() {
    let container: Container = read(Kept::Record, RECORD_4.as_bytes()).unwrap();
    let written = serde_json::to_string(&Versioned::new(&container)).unwrap();
    let mut expected = object(RECORD_4);
    expected.extend(added_to_record_5());
    assert_eq!(object(&written), expected);

    let spec: ContainerSpec = read(Kept::Spec, SPEC_4.as_bytes()).unwrap();
    let written = String::from_utf8(spec.to_kept()).unwrap();
    let mut expected = object(SPEC_4);
    expected.insert("version".to_owned(), json!(VERSION));
    name_network(&mut expected);
    refuse_workdir(&mut expected);
    copy_nothing(&mut expected);
    bring_to_9(&mut expected);
    assert_eq!(object(&written), expected);
    assert_eq!(spec.network, Network::default());
}

#[test]
fn files_of_version_5_are_read() {
    let container: Container = read(Kept::Record, RECORD_5.as_bytes()).unwrap();
    let written = serde_json::to_string(&Versioned::new(&container)).unwrap();
    let mut expected = object(RECORD_5);
    expected.extend(added_to_record_5());
    assert_eq!(object(&written), expected);

    let spec: ContainerSpec = read(Kept::Spec, SPEC_5.as_bytes()).unwrap();
    let written = String::from_utf8(spec.to_kept()).unwrap();
    let mut expected = object(SPEC_5);
    expected.insert("version".to_owned(), json!(VERSION));
    refuse_workdir(&mut expected);
    copy_nothing(&mut expected);
    bring_to_9(&mut expected);
    assert_eq!(object(&written), expected);
}

#[test]
fn a_record_of_version_7_is_read() {
    let container: Container = read(Kept::Record, RECORD_7.as_bytes()).unwrap();
    let written = serde_json::to_string(&Versioned::new(&container)).unwrap();
    let mut expected = object(RECORD_7);
    expected.extend(added_to_record_7());
    assert_eq!(object(&written), expected);
}

#[test]
fn a_record_of_version_8_is_read() {
    let mut record = object(RECORD_7);
    for (name, value) in [
        ("version", json!(8)),
        ("networks", json!([])),
        ("started", json!(1_795_985_399)),
    ] {
        record.insert(name.to_owned(), value);
    }
    let text = serde_json::to_vec(&record).unwrap();
    let container: Container = read(Kept::Record, &text).unwrap();
    assert_eq!(container.stop_timeout, STOP_TIMEOUT);
    let written = serde_json::to_string(&Versioned::new(&container)).unwrap();
    record.extend(added_to_record_8());
    assert_eq!(object(&written), record);
}

#[test]
fn a_specification_of_version_6_is_read() {
    let spec: ContainerSpec = read(Kept::Spec, SPEC_6.as_bytes()).unwrap();
    let written = String::from_utf8(spec.to_kept()).unwrap();
    let mut expected = object(SPEC_6);
    expected.insert("version".to_owned(), json!(VERSION));
    copy_nothing(&mut expected);
    bring_to_9(&mut expected);
    assert_eq!(object(&written), expected);
    assert!(spec.process.make_workdir);
}

/// What was one directory with changes to it is now what the root file system is made of.
fn name_root(spec: &mut Map<String, Value>) {
    let tree = spec["tree"].as_object_mut().unwrap();
    let dir = tree.remove("rootfs").unwrap();
    let mut root = tree.remove("changes").unwrap();
    root["Overlay"]["lowers"] = json!([dir]);
    tree.extend([
        ("root".to_owned(), root),
        ("read_only".to_owned(), json!(false)),
    ]);
}

/// Nothing of the image's was copied to what is mounted over it.
fn copy_nothing(spec: &mut Map<String, Value>) {
    let tree = spec["tree"].as_object_mut().unwrap();
    for list in ["binds", "files"] {
        for bind in tree[list].as_array_mut().unwrap() {
            bind["options"]["copy_up"] = json!(false);
        }
    }
}

/// There was one network, which had no options.
fn name_network(spec: &mut Map<String, Value>) {
    if spec["network"] == "default" {
        spec["network"] = json!({
            "coracle": {
                "cidr": null, "cidr6": null, "mtu": null, "map_host": [], "egress": [],
            },
        });
    }
}

/// What was mounted was all on disk.
fn bring_to_9(spec: &mut Map<String, Value>) {
    spec["version"] = json!(VERSION);
    let tree = spec["tree"].as_object_mut().unwrap();
    for list in ["binds", "files"] {
        for bind in tree[list].as_array_mut().unwrap() {
            bind["changes"] = Value::Null;
        }
    }
    tree.extend([
        ("tmpfs".to_owned(), json!([])),
        ("devices".to_owned(), json!([])),
        ("shm_len".to_owned(), json!(64 << 20)),
        (
            "masks".to_owned(),
            json!({"uncovered": "nothing", "covered": [], "writable_sys": false}),
        ),
    ]);
    let lists = json!({"lists": {"servers": [], "search": [], "options": []}});
    let names = json!({"resolv_conf": lists, "hosts": [], "no_hosts": false});
    spec.extend([
        ("privileged".to_owned(), json!(false)),
        ("secrets".to_owned(), json!([])),
        ("timezone".to_owned(), Value::Null),
        ("names".to_owned(), names),
        ("sysctls".to_owned(), json!([])),
        ("own_cgroups".to_owned(), json!(true)),
        (
            "resources".to_owned(),
            json!({
                "memory": null, "memory_swap": null, "memory_reservation": null,
                "cpu_quota": null, "cpu_period": null, "cpu_shares": null,
                "cpuset_cpus": null, "cpuset_mems": null, "pids": "unlimited",
            }),
        ),
        ("health".to_owned(), Value::Null),
    ]);
    let process = spec["process"].as_object_mut().unwrap();
    process.extend([
        ("ulimits".to_owned(), json!([])),
        ("umask".to_owned(), json!(0o022)),
        ("oom_score_adj".to_owned(), Value::Null),
        ("groups".to_owned(), json!({"named": []})),
    ]);
}

/// Containers of that time had no labels.
fn added_to_record_3() -> Vec<(String, Value)> {
    more(added_to_record_5(), [("labels", json!({}))])
}

/// Nor were there images in a store.
fn added_to_record_5() -> Vec<(String, Value)> {
    more(added_to_record_7(), [("image_id", Value::Null)])
}

/// Nor networks that containers share, nor was it known when they were last started.
fn added_to_record_7() -> Vec<(String, Value)> {
    let added = [("networks", json!([])), ("started", Value::Null)];
    more(added_to_record_8(), added)
}

/// Nor was a container started again by itself, and each had the same time for its end.
fn added_to_record_8() -> Vec<(String, Value)> {
    let added = [
        ("version", json!(VERSION)),
        ("restart", json!("no")),
        ("restart_count", json!(0)),
        ("stopped", json!(false)),
        ("stop_timeout", json!(10)),
        ("time_limit", Value::Null),
        ("health", Value::Null),
        ("log", json!({"driver": "k8s-file", "max_size": null})),
    ];
    more(Vec::new(), added)
}

fn more<const N: usize>(
    mut fields: Vec<(String, Value)>,
    added: [(&str, Value); N],
) -> Vec<(String, Value)> {
    fields.extend(added.map(|(name, value)| (name.to_owned(), value)));
    fields
}

/// The working directory of a container had to be there.
fn refuse_workdir(spec: &mut Map<String, Value>) {
    spec["process"]["make_workdir"] = json!(false);
}

/// Its container had namespaces of its own, like all of that time, and an input that had ended
/// unless somebody was there to write to it.
fn added_to_spec_1() -> [(String, Value); 3] {
    [
        ("version", json!(VERSION)),
        (
            "namespaces",
            json!({
                "user": "new", "mount": "new", "pid": "new", "network": "new",
                "ipc": "new", "uts": "new", "cgroup": "new",
            }),
        ),
        ("open_stdin", json!(false)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
}

#[test]
fn a_specification_of_version_8_is_read() {
    let spec: ContainerSpec = read(Kept::Spec, SPEC_8.as_bytes()).unwrap();
    let written = String::from_utf8(spec.to_kept()).unwrap();
    let mut expected = object(SPEC_8);
    bring_to_9(&mut expected);
    assert_eq!(object(&written), expected);
}

/// Version 0 grew fields without saying so.
#[test]
fn early_files_of_version_0_lack_fields() {
    let mut record = object(RECORD_0);
    for name in ["created_nanos", "stop_signal", "cgroups"] {
        record.remove(name).unwrap();
    }
    let text = serde_json::to_vec(&record).unwrap();
    let container: Container = read(Kept::Record, &text).unwrap();
    assert_eq!(container.stop_signal, libc::SIGTERM);
    assert!(container.cgroups.is_empty());

    let mut spec = object(SPEC_0);
    let process = spec["process"].as_object_mut().unwrap();
    for name in ["limits", "init", "single_id"] {
        process.remove(name).unwrap();
    }
    let binds = spec["tree"]["binds"].as_array_mut().unwrap();
    binds[0].as_object_mut().unwrap().remove("options").unwrap();
    let files = spec["tree"]["files"].as_array_mut().unwrap();
    let options = files[0]["options"].as_object_mut().unwrap();
    options.remove("map_ids").unwrap();
    let text = serde_json::to_vec(&spec).unwrap();
    let spec: ContainerSpec = read(Kept::Spec, &text).unwrap();
    assert_eq!(spec.process.limits, None);
    assert_eq!(spec.tree.binds[0].options, Default::default());
}

#[test]
fn a_version_to_come_is_refused() {
    let text = format!("{{\"version\": {}, \"id\": 7}}", VERSION + 1);
    let refused = read::<Container>(Kept::Record, text.as_bytes()).unwrap_err();
    assert!(
        matches!(refused, VersionError::Newer { version } if version == VERSION + 1),
        "{refused}"
    );
}
