//! Volumes: those that an image wants, those that somebody names, and what becomes of them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::{Outcome, World, cases, eventually, finish_with_input, unique};
use crate::recipe::{Layer, Recipe, put, run_image};

cases![
    an_image_gets_the_volumes_that_it_wants,
    anonymous_volumes_go_with_their_container,
    named_volumes_are_filled_and_shared,
    a_volume_is_filled_with_owners_and_modes,
    volumes_are_made_listed_and_removed,
    what_is_no_volume_is_refused,
    a_volume_hides_no_file_that_every_container_has,
    the_places_of_an_images_volumes_are_what_is_asked_for,
    volumes_of_another_container_are_there_as_well,
];

/// Wants a volume at /data, where it has files.
fn image(world: &World) -> Recipe {
    let upper = Layer::new()
        .dir("data", 0o750, 0)
        .file("data/one", 0o640, 0, b"one")
        .dir("data/dir", 0o700, 0)
        .symlink("data/link", "one");
    let image = Recipe::new("localhost/wants:1", [Layer::busybox(world), upper]);
    image.config(json!({"Cmd": ["sleep", "60"], "Volumes": {"/data": {}, "/empty": {}}}))
}

fn volume(world: &World, words: &[&str]) -> Outcome {
    world.try_coracle(&[&["volume"], words].concat())
}

fn names(world: &World) -> Vec<String> {
    let listed = volume(world, &["ls", "-q"]);
    listed.success().lines().map(str::to_owned).collect()
}

fn mounts(world: &World, container: &str) -> Vec<Value> {
    let told = world.try_coracle(&["inspect", container]);
    let told: Value = serde_json::from_str(told.success()).expect("JSON");
    told[0]["Mounts"].as_array().expect("mounts").clone()
}

fn start(world: &World, flags: &[&str]) -> String {
    let name = unique("volumes");
    let words = [
        &["run", "-d", "--network", "none", "--name", &name],
        flags,
        &["wants:1"],
    ];
    world.try_coracle(&words.concat()).success();
    name
}

fn an_image_gets_the_volumes_that_it_wants(world: &World) {
    image(world).load(world);
    let name = start(world, &[]);
    let mounts = mounts(world, &name);
    assert_eq!(mounts.len(), 2);
    for mount in &mounts {
        assert_eq!(
            (&mount["Type"], &mount["RW"]),
            (&json!("volume"), &json!(true))
        );
        let volume = mount["Name"].as_str().expect("a name");
        assert!(volume.len() == 64 && names(world).contains(&volume.to_owned()));
    }
    let exec = |script: &str| {
        let words = ["exec", &name, "sh", "-c", script];
        world.try_coracle(&words).success().to_owned()
    };
    assert_eq!(
        exec("cat /data/one /data/link; stat -c %a /data /data/dir"),
        "oneone750\n700\n"
    );
    exec("echo new > /data/new; echo x > /empty/x");
    // What is written is the volume's, and not the container's.
    let upper = world.containers().join(
        world.inspect(&name).expect("it")["id"]
            .as_str()
            .expect("text"),
    );
    assert!(!upper.join("upper/data/new").exists());
    // A volume that is named takes its place.
    let other = start(world, &["-v", "mine:/data", "-v", "/empty"]);
    assert!(names(world).contains(&"mine".to_owned()));
    assert_eq!(names(world).len(), 4);
    world
        .try_coracle(&["rm", "-f", "-v", &name, &other])
        .success();
    assert_eq!(names(world), ["mine"]);
    volume(world, &["rm", "mine"]).success();
}

fn anonymous_volumes_go_with_their_container(world: &World) {
    image(world).load(world);
    let kept = start(world, &[]);
    world
        .try_coracle(&["exec", &kept, "sh", "-c", "echo x > /data/dir/x"])
        .success();
    world.try_coracle(&["rm", "-f", &kept]).success();
    assert_eq!(names(world).len(), 2, "without -v they stay");
    volume(world, &["prune", "-f"]).success();
    assert_eq!(names(world).len(), 0);

    assert_eq!(
        run_image(
            world,
            &["-v", "named:/named", "wants:1", "cat", "/data/one"]
        )
        .success(),
        "one"
    );
    assert_eq!(names(world), ["named"], "--rm");
    let removed = start(world, &["--rm"]);
    world.try_coracle(&["kill", &removed]).success();
    eventually("its volumes have gone", || names(world) == ["named"]);
    // One that somebody else uses stays.
    let first = start(world, &[]);
    let data = mounts(world, &first);
    let data = data
        .iter()
        .find(|mount| mount["Destination"] == "/data")
        .expect("it");
    let shared = data["Name"].as_str().expect("a name").to_owned();
    let second = start(world, &["-v", &format!("{shared}:/data")]);
    world.try_coracle(&["rm", "-f", "-v", &first]).success();
    assert!(names(world).contains(&shared));
    world
        .try_coracle(&["exec", &second, "cat", "/data/one"])
        .success();
    world.try_coracle(&["rm", "-f", "-v", &second]).success();
    assert_eq!(names(world), ["named"]);
    // A container that never came to be leaves none.
    let failed = run_image(world, &["wants:1", "no-such-command"]);
    assert_eq!(failed.code(), Some(127), "{failed:?}");
    let failed = run_image(world, &["--workdir", "/data/one", "wants:1", "true"]);
    assert_ne!(failed.code(), Some(0), "{failed:?}");
    let missing = run_image(world, &["-v", "/no/such:/x", "wants:1", "true"]);
    assert_eq!(missing.code(), Some(125), "{missing:?}");
    assert_eq!(names(world), ["named"]);
    volume(world, &["rm", "-a"]).success();
}

fn named_volumes_are_filled_and_shared(world: &World) {
    image(world).load(world);
    let run = |volume: &str, script: &str| {
        let words = ["-v", volume, "wants:1", "sh", "-c", script];
        run_image(world, &words).success().to_owned()
    };
    assert_eq!(
        run("work:/data", "cat /data/one; echo two > /data/two"),
        "one"
    );
    assert_eq!(
        run("work:/data", "cat /data/two; echo three > /data/one"),
        "two\n"
    );
    // Filled once, elsewhere as well, and kept from writers where that is asked for.
    assert_eq!(
        run(
            "work:/mnt:ro",
            "cat /mnt/one; echo x > /mnt/x || echo refused"
        ),
        "three\nrefused\n"
    );
    assert_eq!(run("bare:/data:nocopy", "ls /data | busybox wc -l"), "0\n");
    assert_eq!(run("bare:/none", "ls /none | busybox wc -l"), "0\n");
    assert_eq!(
        run("bare:/data", "cat /data/one"),
        "one",
        "it was empty still"
    );
    // Coracle's own files are no part of the image: the volume has places for them, with nothing
    // in them, as with Podman.
    let script = "test -s /etc/hosts && test -s /etc/passwd && echo both";
    assert_eq!(run("etc:/etc", script), "both\n");
    let etc = data(world, "etc");
    assert!(etc.join("passwd").exists());
    let place = fs::metadata(etc.join("hosts")).expect("a place");
    assert_eq!(place.len(), 0);
    volume(world, &["rm", "-a"]).success();
}

fn data(world: &World, name: &str) -> PathBuf {
    let told = volume(world, &["inspect", "-f", "{{.Mountpoint}}", name]);
    let place = PathBuf::from(told.success().trim_end());
    let rest = place.strip_prefix(world.store()).expect("in the store");
    world.storage().parent().expect("the data").join(rest)
}

fn a_volume_is_filled_with_owners_and_modes(world: &World) {
    let upper = Layer::new()
        .dir("data", 0o3770, 48)
        .file("data/setuid", 0o4755, 48, b"x")
        .file("data/default", 0o600, 1001, b"x");
    let image = Recipe::new("localhost/owned:1", [Layer::busybox(world), upper]);
    image.config(json!({"Volumes": {"/data": {}}})).load(world);
    let script = "stat -c '%n %u:%g %a %Y' /data /data/setuid /data/default";
    let words = ["-v", "owned:/data", "owned:1", "sh", "-c", script];
    let filled = run_image(world, &words).success().to_owned();
    let words = [
        "-v",
        "/tmp/unused",
        "-v",
        "none:/data:nocopy",
        "owned:1",
        "stat",
        "-c",
        "%a",
        "/data",
    ];
    assert_eq!(run_image(world, &words).success(), "755\n");
    let expected = "/data 48:48 3770 1700000000\n\
                    /data/setuid 48:48 4755 1700000000\n\
                    /data/default 1001:1001 600 1700000000\n";
    match world.has_single_id() {
        // Nobody there can be given a file.
        true => assert!(filled.contains("/data/setuid 0:0"), "{filled}"),
        false => assert_eq!(filled, expected),
    }
    let found = fs::metadata(data(world, "none")).expect("a directory");
    assert_eq!(found.uid(), world.container_root());
    volume(world, &["rm", "-a"]).success();
}

fn volumes_are_made_listed_and_removed(world: &World) {
    image(world).load(world);
    assert_eq!(
        volume(world, &["ls"]).success(),
        "DRIVER      VOLUME NAME\n"
    );
    let made = volume(world, &["create", "-l", "a=b", "web"]);
    assert_eq!(made.success(), "web\n");
    let again = volume(world, &["create", "web"]);
    assert_eq!(again.code(), Some(125));
    assert!(again.stderr.contains("already"), "{again:?}");
    let random = volume(world, &["create"]).success().trim_end().to_owned();
    assert_eq!(random.len(), 64);
    let told = volume(world, &["inspect", "web"]);
    let told: Value = serde_json::from_str(told.success()).expect("JSON");
    assert_eq!(told[0]["Name"], "web");
    assert_eq!(told[0]["Labels"], json!({"a": "b"}));
    assert_eq!(
        (&told[0]["Driver"], &told[0]["Anonymous"]),
        (&json!("local"), &json!(false))
    );
    let listed = volume(
        world,
        &["ls", "--format", "{{.Name}} {{.Labels}}", "-f", "label=a"],
    );
    assert_eq!(listed.success(), "web map[a:b]\n");
    let table = volume(world, &["ls", "-f", "name=^w"]);
    assert_eq!(
        table.success(),
        "DRIVER      VOLUME NAME\nlocal       web\n"
    );
    assert_eq!(volume(world, &["exists", "web"]).code(), Some(0));
    assert_eq!(volume(world, &["exists", "no"]).code(), Some(1));

    let user = start(world, &["-v", "web:/web", "--rm"]);
    let used = volume(world, &["rm", "web"]);
    assert_eq!(used.code(), Some(2));
    assert!(used.stderr.contains(&user), "{used:?}");
    let missing = volume(world, &["rm", "no"]);
    assert_eq!(missing.code(), Some(1));
    assert!(missing.stderr.contains("no volume \"no\""), "{missing:?}");
    let listed = world.try_coracle(&["ps", "-q", "-f", "volume=web"]);
    assert_eq!(listed.success().lines().count(), 1);
    let unused = volume(world, &["ls", "-q", "-f", "dangling=true"]);
    assert_eq!(unused.success(), format!("{random}\n"));
    let refused = finish_with_input(world.coracle(["volume", "prune"]), b"n\n");
    assert!(refused.success().contains(&random) && names(world).contains(&random));
    assert_eq!(
        volume(world, &["prune", "-f"]).success(),
        format!("{random}\n")
    );
    assert_eq!(volume(world, &["rm", "-f", "web"]).success(), "web\n");
    assert!(world.inspect(&user).is_none());
    assert_eq!(names(world).len(), 0);
}

fn what_is_no_volume_is_refused(world: &World) {
    for (name, said) in [
        ("../x", "cannot name a volume"),
        ("a/b", "cannot name a volume"),
        ("", "cannot name a volume"),
        ("lock", "cannot name a volume"),
    ] {
        let refused = volume(world, &["create", name]);
        assert_eq!(refused.code(), Some(125), "{name}");
        assert!(refused.stderr.contains(said), "{name}: {refused:?}");
    }
    for (words, said) in [
        (&["rm"][..], "needs the name of a volume"),
        (&["rm", "-a", "x"], "cannot be given together"),
        (&["export", "x"], "does not have `export` yet"),
        (&["create", "--driver", "nfs"], "does not have --driver yet"),
        (&["inspect", "no"], "no volume \"no\""),
    ] {
        let refused = volume(world, words);
        assert!(refused.stderr.contains(said), "{words:?}: {refused:?}");
    }
    let image = Recipe::new("localhost/bad:1", [Layer::busybox(world)]);
    image
        .config(json!({"Cmd": ["true"], "Volumes": {"/proc/sys": {}}}))
        .load(world);
    let refused = run_image(world, &["bad:1"]);
    assert_eq!(refused.code(), Some(125));
    assert!(
        refused.stderr.contains("wants a volume at \"/proc/sys\""),
        "{refused:?}"
    );
    assert_eq!(names(world).len(), 0);
}

fn a_volume_hides_no_file_that_every_container_has(world: &World) {
    image(world).load(world);
    put(world, "etc/passwd", b"root:x:0:0::/:/bin/sh\n");
    world.give_away(&world.path("etc"));
    world.give_to_container(&world.path("etc"));
    let etc = format!("{}:/etc", world.path("etc").display());
    let words = [
        "--name",
        "holder",
        "--hostname",
        "holder",
        "-v",
        &etc,
        "wants:1",
    ];
    let look = ["sh", "-c", "cat /etc/hostname /etc/hosts; ls /etc"];
    let ran = run_image(world, &[&words[..], &look].concat());
    let said = ran.success();
    assert!(
        said.starts_with("holder\n") && said.contains("localhost"),
        "{ran:?}"
    );
    assert!(said.contains("passwd\n"), "{ran:?}");
    // What somebody puts in the place of one of them is what they see.
    put(world, "hosts", b"10.0.0.1 mine\n");
    let hosts = format!("{}:/etc/hosts:ro", world.path("hosts").display());
    let words = ["-v", &etc, "-v", &hosts, "wants:1", "cat", "/etc/hosts"];
    assert_eq!(run_image(world, &words).success(), "10.0.0.1 mine\n");
    // They are the container's, and their content is not the directory's.
    let left = fs::read(world.path("etc/hosts")).unwrap_or_default();
    assert!(left.is_empty(), "{left:?}");
}

fn the_places_of_an_images_volumes_are_what_is_asked_for(world: &World) {
    image(world).load(world);
    let look = "cat /data/one; grep ' /data ' /proc/mounts | cut -d' ' -f1; echo x >/data/new";
    for (how, kind) in [("tmpfs", "onetmpfs\n"), ("ignore", "one")] {
        let words = ["--image-volume", how, "wants:1", "sh", "-c", look];
        assert_eq!(run_image(world, &words).success(), kind, "{how}");
        assert!(names(world).is_empty(), "{how}");
    }
    let refused = run_image(world, &["--image-volume", "none", "wants:1", "true"]);
    assert_eq!(refused.code(), Some(125), "{refused:?}");
}

fn volumes_of_another_container_are_there_as_well(world: &World) {
    image(world).load(world);
    let shared = world.path("shared");
    fs::create_dir(&shared).expect("a directory");
    world.give_away(&shared);
    let first = start(world, &["-v", "mine:/data", "-v", "./shared:/shared"]);
    let write = [
        "exec",
        &first,
        "sh",
        "-c",
        "echo first >/data/first; echo x >/empty/x",
    ];
    world.try_coracle(&write).success();
    let from = |options: &str, script: &str| {
        let from = format!("{first}{options}");
        run_image(
            world,
            &["--volumes-from", &from, "wants:1", "sh", "-c", script],
        )
    };
    let seen = from(
        "",
        "cat /data/first /empty/x; ls -d /shared; echo second >/data/second",
    );
    assert_eq!(seen.success(), "first\nx\n/shared\n");
    let read = ["exec", &first, "cat", "/data/second"];
    assert_eq!(world.try_coracle(&read).success(), "second\n");
    let refused = from(":ro", "echo x >/data/third");
    assert!(refused.stderr.contains("Read-only"), "{refused:?}");
    // What is asked for itself comes first.
    let own = [
        "-v",
        "other:/data",
        "--volumes-from",
        &first,
        "wants:1",
        "ls",
        "/data/first",
    ];
    assert_ne!(run_image(world, &own).code(), Some(0));
    let none = run_image(world, &["--volumes-from", "none", "wants:1", "true"]);
    assert!(
        none.code() == Some(125) && none.stderr.contains("no container"),
        "{none:?}"
    );
    world.try_coracle(&["rm", "-f", "-v", &first]).success();
    world.try_coracle(&["volume", "rm", "-a", "-f"]).success();
}
