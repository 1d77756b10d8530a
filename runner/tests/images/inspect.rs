//! What `inspect`, and `ps` with a template, tell of containers and images, and Podman's word on
//! it.

use serde_json::{Value, json};

use crate::harness::{World, cases, unique};
use crate::judges::podman;
use crate::recipe::{Layer, Recipe, load, put};

cases![
    an_image_is_told_with_podmans_fields,
    a_container_is_told_with_podmans_fields,
    names_are_looked_for_among_both,
    containers_are_listed_by_template_and_filter;
    podman_tells_the_same_of_an_image,
];

fn image(world: &World) -> Recipe {
    let image = Recipe::new("localhost/seen:1", [Layer::busybox(world)]);
    image.config(json!({
        "Cmd": ["sleep", "60"], "Env": ["A=b"], "User": "apache", "WorkingDir": "/tmp",
        "Labels": {"a.b": "c"}, "Volumes": {"/data": {}}, "StopSignal": "SIGINT",
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 3_000_000_000_u64},
    }))
}

#[track_caller]
fn told(world: &World, words: &[&str]) -> Value {
    let told = world.try_coracle(&[&["inspect"], words].concat());
    serde_json::from_str(told.success()).expect("JSON")
}

#[track_caller]
fn filled(world: &World, template: &str, name: &str) -> String {
    let told = world.try_coracle(&["inspect", "-f", template, name]);
    told.success().trim_end_matches('\n').to_owned()
}

fn an_image_is_told_with_podmans_fields(world: &World) {
    let image = image(world);
    let id = image.load(world);
    let told = &told(world, &["seen:1"])[0];
    for (field, expected) in [
        ("/Id", json!(id)),
        ("/RepoTags", json!(["localhost/seen:1"])),
        ("/Created", json!("2024-01-02T03:04:05Z")),
        ("/Os", json!("linux")),
        ("/User", json!("apache")),
        ("/Labels", json!({"a.b": "c"})),
        ("/RootFS/Layers", json!(image.diff_ids)),
        ("/Config/Env", json!(["A=b"])),
        ("/Config/Volumes", json!({"/data": {}})),
        ("/Config/StopSignal", json!("SIGINT")),
        ("/Healthcheck/Test", json!(["CMD", "true"])),
        ("/GraphDriver/Name", json!("overlay")),
    ] {
        assert_eq!(told.pointer(field), Some(&expected), "{field}: {told}");
    }
    let upper = told["GraphDriver"]["Data"]["UpperDir"]
        .as_str()
        .expect("unpacked");
    assert!(upper.ends_with("/diff"), "{upper}");
    for (template, expected) in [
        ("{{.Id}} {{.ID}}", format!("{id} {id}")),
        ("{{json .Config.Cmd}}", r#"["sleep","60"]"#.to_owned()),
        (r#"{{index .Labels "a.b"}}"#, "c".to_owned()),
        (
            "{{range .Config.Env}}{{println .}}{{end}}",
            "A=b".to_owned(),
        ),
        (
            r#"{{join .Config.Cmd " "}} {{len .RootFS.Layers}}"#,
            "sleep 60 1".to_owned(),
        ),
        ("{{if .Healthcheck}}checked{{end}}", "checked".to_owned()),
    ] {
        assert_eq!(filled(world, template, "seen:1"), expected, "{template}");
    }
}

fn a_container_is_told_with_podmans_fields(world: &World) {
    let id = image(world).load(world);
    let name = unique("seen");
    let shared = put(world, "shared/file", b"");
    world.give_away(&world.path("shared"));
    let volume = format!(
        "{}:/mnt/shared:ro",
        shared.parent().expect("a directory").display()
    );
    let flags = [
        "--name",
        &name,
        "--network",
        "none",
        "--label",
        "x=y",
        "-v",
        &volume,
    ];
    let words = [
        &["run", "-d", "--cap-drop", "KILL", "--user", "0"],
        &flags[..],
        &["seen:1"],
    ];
    let container = world.try_coracle(&words.concat());
    let container = container.success().trim_end();
    let told = &told(world, &[&name])[0];
    for (field, expected) in [
        ("/Id", json!(container)),
        ("/Name", json!(name)),
        ("/Path", json!("sleep")),
        ("/Args", json!(["60"])),
        ("/Image", json!(id)),
        ("/ImageName", json!("localhost/seen:1")),
        ("/State/Status", json!("running")),
        ("/State/Running", json!(true)),
        ("/Config/Labels", json!({"a.b": "c", "x": "y"})),
        ("/Config/User", json!("0")),
        ("/Config/WorkingDir", json!("/tmp")),
        ("/Config/StopSignal", json!(2)),
        ("/Config/Healthcheck/Test", json!(["CMD", "true"])),
        ("/HostConfig/NetworkMode", json!("none")),
        ("/HostConfig/CapDrop", json!(["CAP_KILL"])),
        ("/HostConfig/AutoRemove", json!(false)),
    ] {
        assert_eq!(told.pointer(field), Some(&expected), "{field}: {told}");
    }
    let mounts = told["Mounts"].as_array().expect("mounts");
    let shared = mounts
        .iter()
        .find(|mount| mount["Destination"] == "/mnt/shared");
    assert_eq!(shared.expect("a mount")["RW"], false, "{told}");
    let pid = world.init_of(&name).to_string();
    assert_eq!(filled(world, "{{.State.Pid}}", &container[..12]), pid);
    world.try_coracle(&["kill", &name]).success();
    crate::harness::eventually("it has ended", || {
        filled(world, "{{.State.Status}} {{.State.ExitCode}}", &name) == "exited 137"
    });
    let sizes = world.try_coracle(&["inspect", "-s", "-f", "{{.SizeRw}} {{.SizeRootFs}}", &name]);
    let sizes: Vec<u64> = sizes
        .success()
        .split_whitespace()
        .flat_map(str::parse)
        .collect();
    assert!(sizes[0] < 1000 && sizes[1] > 1_000_000, "{sizes:?}");
    let latest = world.try_coracle(&["inspect", "-l", "-f", "{{.Name}}"]);
    assert_eq!(latest.success(), format!("{name}\n"));
    world.try_coracle(&["rm", &name]).success();
}

fn names_are_looked_for_among_both(world: &World) {
    let id = image(world).load(world);
    let both = told(world, &["seen:1", &id[..12]]);
    assert_eq!(both.as_array().map(Vec::len), Some(2));
    let some = world.try_coracle(&["inspect", "no-such", "seen:1"]);
    assert_eq!(some.code(), Some(125));
    assert!(
        some.stderr.contains("no such object: \"no-such\""),
        "{some:?}"
    );
    let told: Value = serde_json::from_str(&some.stdout).expect("JSON");
    assert_eq!(told[0]["Id"], json!(id));
    for (words, said) in [
        (&["--type", "container", "seen:1"][..], "no container"),
        (&["--type", "image", "no-such"], "image not known"),
        (&["--type", "pod", "x"], "\"pod\""),
        (&["-f", "{{.Nope}}", "seen:1"], "\"Nope\""),
        (&["-f", "{{.Id", "seen:1"], "--format"),
        (&["-f", "table {{.Id}}", "seen:1"], "no tables"),
        (&["-l"], "there is no container"),
        (&[], "inspect needs"),
    ] {
        let refused = world.try_coracle(&[&["inspect"], words].concat());
        assert_eq!(refused.code(), Some(125), "{words:?}");
        assert!(refused.stderr.contains(said), "{words:?}: {refused:?}");
    }
}

fn containers_are_listed_by_template_and_filter(world: &World) {
    image(world).load(world);
    let (one, two) = (unique("one"), unique("two"));
    let run = |name: &str, rest: &[&str]| {
        let words = [
            "run",
            "-d",
            "--user",
            "0",
            "--network",
            "none",
            "--name",
            name,
        ];
        world.try_coracle(&[&words, rest].concat()).success();
    };
    run(&one, &["--label", "x=y", "seen:1"]);
    run(&two, &["seen:1", "sh", "-c", "exit 3"]);
    crate::harness::eventually("the second has ended", || {
        world.inspect(&two).is_some_and(|row| row["exit_code"] == 3)
    });
    let ps = |words: &[&str]| {
        let words = [&["ps", "--format", "{{.Names}} {{.State}}"], words].concat();
        world.try_coracle(&words).success().to_owned()
    };
    let (first, second) = (format!("{one} running\n"), format!("{two} exited\n"));
    assert_eq!(ps(&[]), first);
    assert_eq!(ps(&["-a"]), format!("{second}{first}"));
    for (words, expected) in [
        (&["-l"][..], &second),
        (&["-n", "1"], &second),
        (&["-a", "-f", "exited=3"], &second),
        (&["-a", "-f", "label=x=y"], &first),
        (&["-f", "status=exited"], &second),
        (&["-a", "-f", &format!("name=^{one}$")], &first),
        (&["-a", "-f", &format!("since={one}")], &second),
        (&["-f", "ancestor=seen:1"], &first),
        (
            &["-a", "-f", "ancestor=other", "-f", "label=x"],
            &String::new(),
        ),
    ] {
        assert_eq!(ps(words), *expected, "{words:?}");
    }
    let table = world.try_coracle(&["ps", "--format", "table {{.Names}}\\t{{.ExitCode}}"]);
    assert!(table.success().starts_with("NAMES "), "{table:?}");
    assert!(
        table
            .stdout
            .lines()
            .next()
            .expect("a head")
            .ends_with("  EXIT CODE")
    );
    for (words, said) in [
        (&["-f", "colour=x"][..], "no filter \"colour\""),
        (&["-f", "status=odd"], "restarting and exited"),
        (&["--format", "{{.Nope}}"], "\"Nope\""),
        (&["-n", "1", "-l"], "together"),
    ] {
        let refused = world.try_coracle(&[&["ps"], words].concat());
        assert_eq!(refused.code(), Some(125), "{words:?}");
        assert!(refused.stderr.contains(said), "{words:?}: {refused:?}");
    }
    world.try_coracle(&["rm", "-f", &one, &two]).success();
}

/// What both tell is the same.
fn podman_tells_the_same_of_an_image(world: &World) {
    if !world.is_root() {
        return;
    }
    let archive = image(world).docker_archive();
    put(world, "image.tar", &archive);
    load(world, &archive).success();
    podman(world, &["load", "-q", "-i", "image.tar"]);
    let theirs = podman(world, &["inspect", "seen:1"]);
    let theirs: Value = serde_json::from_str(&theirs.stdout).expect("JSON");
    let ours = told(world, &["seen:1"]);
    // Theirs made a manifest of its own, and sizes count directories.
    let differs = [
        "Digest",
        "RepoDigests",
        "Size",
        "VirtualSize",
        "GraphDriver",
        "ManifestType",
    ];
    // Docker's word for what OCI does not know.
    let differs = [&differs[..], &["Config", "History"]].concat();
    for (field, value) in theirs[0].as_object().expect("fields") {
        let seen = ours[0]
            .get(field)
            .unwrap_or_else(|| panic!("no {field} in {ours}"));
        if !differs.contains(&&**field) {
            assert_eq!(seen, value, "{field}");
        }
    }
    for (field, value) in theirs[0]["Config"].as_object().expect("fields") {
        assert_eq!(&ours[0]["Config"][field], value, "{field}");
    }
}
