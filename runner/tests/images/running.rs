//! What an image says of how it is to be run, and what the command line says instead.

use std::collections::BTreeSet;

use serde_json::json;

use crate::harness::{World, cases, need_tun, unique};
use crate::recipe::{Layer, Recipe, run_image};

cases![
    what_an_image_says_holds_until_the_command_line_says_otherwise,
    a_working_directory_is_made,
    users_of_the_image_are_found,
    exposed_ports_are_published,
    labels_come_from_files,
    an_image_goes_with_its_container,
    containers_of_an_image_share_its_layers_and_keep_their_changes,
    an_image_in_a_file_is_run,
    what_cannot_be_run_is_refused,
];

fn run(world: &World, words: &[&str]) -> String {
    run_image(world, words).success().to_owned()
}

/// An image whose entry point says what it was given.
fn telling(world: &World) -> Recipe {
    let script = b"#!/bin/sh\necho \"$*\"\nexec \"$@\"\n";
    let layer = Layer::busybox(world).file("bin/tell", 0o755, 0, script);
    Recipe::new("localhost/tell:1", [layer])
}

fn what_an_image_says_holds_until_the_command_line_says_otherwise(world: &World) {
    let config = json!({
        "Entrypoint": ["tell"], "Cmd": ["echo", "cmd"],
        "Env": ["A=image", "B=image", "PATH=/bin"],
        "WorkingDir": "/tmp",
        "StopSignal": "SIGINT",
        "Labels": {"a": "image", "b": "image"},
    });
    telling(world).config(config).load(world);
    assert_eq!(run(world, &["tell:1"]), "echo cmd\ncmd\n");
    assert_eq!(run(world, &["tell:1", "pwd"]), "pwd\n/tmp\n");
    // Behind the image nothing is an option.
    assert_eq!(
        run(world, &["tell:1", "sh", "-c", "echo $A $B"]),
        "sh -c echo $A $B\nimage image\n"
    );
    let env = [
        "-e",
        "B=mine",
        "-w",
        "/etc",
        "tell:1",
        "sh",
        "-c",
        "echo $A $B; pwd",
    ];
    assert!(run(world, &env).ends_with("\nimage mine\n/etc\n"));
    // The image's command means nothing to another entry point.
    assert_eq!(run(world, &["--entrypoint", "echo", "tell:1"]), "\n");
    assert_eq!(run(world, &["--entrypoint", "echo", "tell:1", "x"]), "x\n");
    let list = r#"["sh", "-c", "echo $0"]"#;
    assert_eq!(run(world, &["--entrypoint", list, "tell:1", "y"]), "y\n");
    assert_eq!(run(world, &["--entrypoint=", "tell:1", "echo", "z"]), "z\n");
    let rootfs = world.rootfs();
    let rootfs = rootfs.to_str().expect("a plain path");
    assert_eq!(
        run(world, &["--entrypoint", "echo", "--rootfs", rootfs, "r"]),
        "r\n"
    );

    let name = unique("image");
    let trap = "trap 'exit 7' INT; echo ready; while :; do sleep 0.1; done";
    let detach = [
        "run",
        "-d",
        "--name",
        &name,
        "--network",
        "none",
        "--label",
        "b=mine",
    ];
    let words = [&detach, &["tell:1", "sh", "-c", trap][..]].concat();
    world.try_coracle(&words).success();
    crate::harness::eventually("the trap is set", || {
        world
            .try_coracle(&["logs", &name])
            .stdout
            .contains("ready\n")
    });
    let seen = world.inspect(&name).expect("the container");
    assert_eq!(seen["image"], "localhost/tell:1");
    assert_eq!(seen["labels"], json!({"a": "image", "b": "mine"}));
    world.try_coracle(&["stop", &name]).success();
    let seen = world.inspect(&name).expect("the container");
    assert_eq!(seen["exit_code"], 7, "{seen}");
    world.try_coracle(&["rm", &name]).success();
}

fn a_working_directory_is_made(world: &World) {
    let config = json!({"WorkingDir": "/srv/app/deep", "User": "apache", "Cmd": ["sh"]});
    let image = telling(world).config(config);
    image.load(world);
    let look = "pwd; stat -c %u .";
    let owner = if world.has_single_id() { "0" } else { "48" };
    let user: &[&str] = if world.has_single_id() {
        &["-u", "0"]
    } else {
        &[]
    };
    let words = [user, &["tell:1", "sh", "-c", look]].concat();
    assert_eq!(run(world, &words), format!("/srv/app/deep\n{owner}\n"));
    // One that somebody asks for has to be there.
    let refused =
        world.try_coracle(&["run", "--rm", "-w", "/srv/none", "-u", "0", "tell:1", "pwd"]);
    assert_eq!(refused.code(), Some(126), "{refused:?}");
}

fn users_of_the_image_are_found(world: &World) {
    let config = json!({"User": "default", "Cmd": ["id", "-u"]});
    telling(world).config(config).load(world);
    if world.has_single_id() {
        let refused = run_image(world, &["tell:1"]);
        assert_ne!(refused.code(), Some(0));
        assert!(refused.stderr.contains("1001"), "{refused:?}");
    } else {
        assert_eq!(run(world, &["tell:1"]), "1001\n");
        assert_eq!(run(world, &["-u", "48", "tell:1"]), "48\n");
    }
    assert_eq!(run(world, &["--user=root", "tell:1"]), "0\n");
}

fn exposed_ports_are_published(world: &World) {
    need_tun();
    let config =
        json!({"ExposedPorts": {"80/tcp": {}, "53/udp": {}, "8080": {}}, "Cmd": ["sleep", "60"]});
    telling(world).config(config).load(world);
    let name = unique("exposed");
    let words = [
        "run",
        "-d",
        "--name",
        &name,
        "-P",
        "-p",
        "127.0.0.1::8080",
        "tell:1",
    ];
    world.try_coracle(&words).success();
    let ports = world.try_coracle(&["port", &name]);
    let ports = ports.success();
    for port in ["80/tcp -> ", "53/udp -> ", "8080/tcp -> 127.0.0.1:"] {
        assert!(ports.lines().any(|line| line.starts_with(port)), "{ports}");
    }
    assert_eq!(ports.matches("8080/tcp").count(), 1, "{ports}");
    world.try_coracle(&["rm", "-f", &name]).success();
    let more = ["--expose", "9000-9001/udp", "--expose", "80"];
    let words = [
        &["run", "-d", "--name", &name, "-P"][..],
        &more,
        &["tell:1"],
    ]
    .concat();
    world.try_coracle(&words).success();
    let ports = world.try_coracle(&["port", &name]);
    let ports = ports.success();
    for port in ["80/tcp -> ", "9000/udp -> ", "9001/udp -> "] {
        // By either family of addresses.
        let lines = ports.lines().filter(|line| line.starts_with(port));
        let on_host: BTreeSet<_> = lines.filter_map(|line| line.rsplit(':').next()).collect();
        assert_eq!(on_host.len(), 1, "{port}: {ports}");
    }
    world.try_coracle(&["rm", "-f", &name]).success();
    let refused = run_image(world, &["--expose", "80:80", "tell:1"]);
    assert_eq!(refused.code(), Some(125), "{refused:?}");
    let refused = run_image(world, &["-P", "tell:1"]);
    assert_eq!(refused.code(), Some(125), "{refused:?}");
}

fn labels_come_from_files(world: &World) {
    telling(world).load(world);
    crate::recipe::put(world, "labels", b"# mine\na=file\n\n b=file \nc");
    let name = unique("labels");
    let flags = ["--label-file", "labels", "-l", "b=word"];
    let words = [
        &["create", "--name", &name][..],
        &flags,
        &["tell:1", "true"],
    ]
    .concat();
    world.try_coracle(&words).success();
    let seen = world.inspect(&name).expect("the container");
    let labels = &seen["labels"];
    assert_eq!(
        (&labels["a"], &labels["b"], &labels["c"]),
        (&json!("file"), &json!("word"), &json!(""))
    );
    world.try_coracle(&["rm", &name]).success();
    crate::recipe::put(world, "labels", b"=x");
    let refused = run_image(world, &["--label-file", "labels", "tell:1", "true"]);
    assert!(
        refused.code() == Some(125) && refused.stderr.contains("labels"),
        "{refused:?}"
    );
}

fn an_image_goes_with_its_container(world: &World) {
    telling(world).load(world);
    let name = unique("rmi");
    world
        .try_coracle(&["create", "--name", &name, "tell:1", "true"])
        .success();
    let there = || world.try_coracle(&["image", "exists", "tell:1"]).code() == Some(0);
    // Another container is of it.
    let ran = world.try_coracle(&[
        "run",
        "--rmi",
        "--network",
        "none",
        "tell:1",
        "sh",
        "-c",
        "exit 3",
    ]);
    assert!(ran.code() == Some(3) && there(), "{ran:?}");
    world.try_coracle(&["rm", &name]).success();
    let ran = world.try_coracle(&[
        "run",
        "--rmi",
        "--network",
        "none",
        "tell:1",
        "sh",
        "-c",
        "exit 3",
    ]);
    assert!(ran.code() == Some(3) && !there(), "{ran:?}");
    assert_eq!(world.try_coracle(&["ps", "-aq"]).success(), "");
}

fn containers_of_an_image_share_its_layers_and_keep_their_changes(world: &World) {
    let id = telling(world).load(world);
    let change = [
        "tell:1",
        "sh",
        "-c",
        "echo changed >/etc/passwd; cat /etc/passwd",
    ];
    assert_eq!(run(world, &change), "changed\n");
    let again = run(world, &["tell:1", "cat", "/etc/passwd"]);
    assert!(again.starts_with("root:"), "{again}");
    assert_eq!(run(world, &[&id[..6], "echo", "by id"]), "by id\n");
    // Without a tag, and with a registry that is not localhost's.
    for wrong in ["tell", "docker.io/tell:1"] {
        let refused = world.try_coracle(&["run", "--rm", "--pull=never", wrong, "true"]);
        assert_eq!(refused.code(), Some(125));
        assert!(refused.stderr.contains("image not known"), "{refused:?}");
    }
}

fn an_image_in_a_file_is_run(world: &World) {
    let image = telling(world).config(json!({"Cmd": ["echo", "from a file"]}));
    crate::recipe::put(world, "d.tar", &image.docker_archive());
    crate::recipe::put(
        world,
        "o.tar",
        &image.oci_archive(crate::recipe::Packed::Gzip),
    );
    for name in ["docker-archive:d.tar", "oci-archive:o.tar"] {
        assert_eq!(run(world, &[name]), "from a file\n", "{name}");
    }
    for wrong in [
        "docker-archive:o.tar",
        "oci-archive:d.tar",
        "oci-archive:none.tar",
    ] {
        let refused = world.try_coracle(&["run", "--rm", wrong]);
        assert_eq!(refused.code(), Some(125), "{wrong}");
    }
}

fn what_cannot_be_run_is_refused(world: &World) {
    telling(world).load(world);
    let refused = world.try_coracle(&["run", "--rm", "tell:1"]);
    assert_eq!(refused.code(), Some(125));
    assert!(
        refused
            .stderr
            .contains("neither an entry point nor a command"),
        "{refused:?}"
    );
    telling(world)
        .config(json!({"Cmd": ["true"], "StopSignal": "SIGNONE"}))
        .load(world);
    let refused = world.try_coracle(&["run", "--rm", "tell:1"]);
    assert!(refused.stderr.contains("SIGNONE"), "{refused:?}");
    let refused = world.try_coracle(&["run", "--rm", "Not A Name", "true"]);
    assert!(
        refused.stderr.contains("cannot name an image"),
        "{refused:?}"
    );
}
