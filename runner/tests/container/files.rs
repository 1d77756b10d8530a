//! `cp`, `export` and `diff`: files into containers and out of them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Outcome, World, cases, eventually, finish_with_input, snapshot, unique};

cases![
    files_go_where_podman_puts_them,
    what_cannot_be_copied_is_told,
    files_belong_to_the_containers_user_and_to_the_caller,
    volumes_and_containers_that_have_ended_are_reached,
    a_tar_goes_in_and_out,
    containers_get_files_from_each_other,
    links_lead_nowhere_but_inside,
    a_directory_that_is_swapped_leads_nowhere,
    a_container_starts_once_its_files_are_copied,
    an_export_has_the_root_file_system_only,
    differences_are_told,
];

/// A container that goes on, in a tree with `files` beside what all have.
fn start(world: &World, flags: &[&str]) -> String {
    let name = unique("files");
    let rootfs = world.rootfs();
    fs::create_dir_all(rootfs.join("data")).expect("a directory");
    fs::write(
        rootfs.join("etc/passwd"),
        "root:x:0:0::/:\nweb:x:33:33::/:\n",
    )
    .expect("a file");
    fs::write(rootfs.join("etc/motd"), "hello").expect("a file");
    world.give_away(&rootfs);
    world.detach(
        &name,
        &[&["--network", "none"], flags].concat(),
        &["sleep", "600"],
    );
    name
}

fn cp(world: &World, from: &str, to: &str) -> Outcome {
    world.try_coracle(&["cp", from, to])
}

fn exec(world: &World, name: &str, script: &str) -> String {
    let words = ["exec", "--user", "root", name, "sh", "-c", script];
    world.try_coracle(&words).success().to_owned()
}

fn make_source(world: &World) {
    let source = world.path("src");
    fs::create_dir_all(source.join("sub")).expect("a directory");
    fs::write(source.join("file"), "one").expect("a file");
    fs::write(source.join("sub/.wh.odd"), "two").expect("a file");
    symlink("file", source.join("link")).expect("a link");
    symlink("src", world.path("to-src")).expect("a link");
    world.give_away(&source);
}

/// What becomes of a source by what is at its destination. Both ways.
fn files_go_where_podman_puts_them(world: &World) {
    make_source(world);
    let name = start(world, &[]);
    let there = |path: &str| format!("{name}:{path}");
    for (from, to, then) in [
        ("src/file", "/tmp/new", "/tmp/new"),
        ("src/file", "/data/", "/data/file"),
        ("src/file", "/etc/motd", "/etc/motd"),
        ("src/link", "data/of-link", "/data/of-link"),
        ("src", "/tmp/made", "/tmp/made/file"),
        ("src/", "/data", "/data/src/file"),
        ("to-src/", "/tmp/linked", "/tmp/linked/sub/.wh.odd"),
        ("src/.", "/data", "/data/sub/.wh.odd"),
        ("src/.", "/tmp/contents", "/tmp/contents/link"),
    ] {
        cp(world, from, &there(to)).success();
        let script = format!("test -f {then} && test ! -L {}", to.trim_end_matches('/'));
        let content = exec(world, &name, &format!("{script} && cat {then}"));
        assert!(
            ["one", "two"].contains(&&*content),
            "{from} {to}: {content}"
        );
    }
    exec(
        world,
        &name,
        "mkdir /back; echo 1 >/back/a; ln -s /etc/motd /back/link",
    );
    fs::create_dir(world.path("out")).expect("a directory");
    world.give_away(&world.path("out"));
    for (from, to, then) in [
        ("/etc/motd", "out", "out/motd"),
        ("/back/link", "out/link", "out/link"),
        ("/back", "out/new", "out/new/a"),
        ("/back", "out", "out/back/a"),
        ("/back/.", "out", "out/a"),
        ("/proc/1/comm", "out/comm", "out/comm"),
    ] {
        cp(world, &there(from), to).success();
        let found = fs::symlink_metadata(world.path(then)).expect(then);
        assert!(found.is_file(), "{from} {to}");
    }
    assert_eq!(
        fs::read_link(world.path("out/back/link")).expect("a link"),
        Path::new("/etc/motd")
    );
    // A file that is mounted there is written to.
    cp(world, "src/file", &there("/etc/hosts")).success();
    assert_eq!(exec(world, &name, "cat /etc/hosts"), "one");
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn what_cannot_be_copied_is_told(world: &World) {
    make_source(world);
    let name = start(world, &[]);
    let there = |path: &str| format!("{name}:{path}");
    exec(world, &name, "mkdir -p /data/file /dir");
    for (from, to, told) in [
        ("nothing", &*there("/tmp"), "there is no"),
        ("src/file", &there("/none/"), "there is no /none/"),
        ("src/file", &there("/none/x"), "no directory for /none/x"),
        ("src", &there("/none/"), "there is no /none/"),
        ("src", &there("/etc/motd"), "the destination of a directory"),
        ("src/file/", &there("/tmp"), "is no directory"),
        ("src/file", &there("/etc/motd/"), "is no directory"),
        ("src/file", &there("/data"), "--overwrite"),
        (&there("/none"), ".", "there is no /none in container"),
        (&there("/dev/null"), "null", "is a device"),
        (&there("/dir"), "src/file", "the destination of a directory"),
        (&there("/etc/motd"), "none/", "there is no"),
        ("src/file", "src/other", "CONTAINER:PATH"),
        ("src/file", "no-such-container:/x", "no container has"),
    ] {
        let outcome = cp(world, from, to);
        assert_eq!(outcome.code(), Some(125), "{from} {to}: {outcome:?}");
        assert!(outcome.stderr.contains(told), "{from} {to}: {outcome:?}");
    }
    let words = ["cp", "--overwrite", "src/file", &there("/data")];
    world.try_coracle(&words).success();
    assert_eq!(exec(world, &name, "cat /data/file"), "one");
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn files_belong_to_the_containers_user_and_to_the_caller(world: &World) {
    make_source(world);
    let flags: &[&str] = match world.has_single_id() {
        true => &[],
        false => &["--user", "web"],
    };
    let name = start(world, flags);
    let user = if world.has_single_id() { 0 } else { 33 };
    let to = format!("{name}:/tmp");
    cp(world, "src", &to).success();
    let owners = "cd /tmp/src; stat -c '%u:%g' . file link sub";
    assert_eq!(
        exec(world, &name, owners),
        format!("{user}:{user}\n").repeat(4)
    );
    exec(world, &name, "rm -r /tmp/src");
    let words = ["cp", "--archive=false", "src", &to];
    world.try_coracle(&words).success();
    assert_eq!(exec(world, &name, owners), "0:0\n".repeat(4));
    // What makes its caller somebody else does so in there only.
    exec(
        world,
        &name,
        "cat /bin/busybox >/tmp/su; chmod 6755 /tmp/su",
    );
    cp(world, &format!("{name}:/tmp"), "out").success();
    for path in ["out", "out/src/file", "out/src/link", "out/su"] {
        let found = fs::symlink_metadata(world.path(path)).expect(path);
        assert_eq!(found.uid(), world.uid(), "{path}");
    }
    let mode = fs::metadata(world.path("out/su")).expect("a file");
    assert_eq!(mode.permissions().mode() & 0o7777, 0o755);
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn volumes_and_containers_that_have_ended_are_reached(world: &World) {
    make_source(world);
    let name = start(world, &["-v", "files:/data"]);
    let (data, tmp) = (format!("{name}:/data"), format!("{name}:/tmp"));
    cp(world, "src/file", &data).success();
    // Others may have no control group to freeze.
    if world.is_root() {
        world.try_coracle(&["pause", &name]).success();
        cp(world, "src/file", &tmp).success();
        world.try_coracle(&["unpause", &name]).success();
    }
    cp(world, "src/file", &tmp).success();
    world.try_coracle(&["stop", "-t", "0", &name]).success();
    cp(world, "src", &data).success();
    cp(world, "src", &tmp).success();
    cp(world, &data, "out").success();
    assert_eq!(fs::read(world.path("out/src/file")).expect("it"), b"one");
    world.try_coracle(&["start", &name]).success();
    let all = "cat /data/file /data/src/sub/.wh.odd /tmp/file /tmp/src/file";
    assert_eq!(exec(world, &name, all), "onetwooneone");
    // One that has never run.
    let never = unique("files");
    let rootfs = [
        "--network",
        "none",
        "--rootfs",
        "rootfs",
        "cat",
        "/tmp/file",
    ];
    let words = [&["create", "--rm", "--name", &never][..], &rootfs].concat();
    world.try_coracle(&words).success();
    cp(world, "src/file", &format!("{never}:/tmp")).success();
    let ran = world.try_coracle(&["start", "-a", &never]);
    assert_eq!(ran.success(), "one");
    world.try_coracle(&["rm", "-f", &name]).success();
    world.try_coracle(&["volume", "rm", "files"]).success();
}

fn a_tar_goes_in_and_out(world: &World) {
    make_source(world);
    let name = start(world, &[]);
    let tar = |path: &str| {
        let mut command = Command::new("tar");
        command.args(["-C"]).arg(world.path(path)).args(["-c", "."]);
        let made = command.output().expect("tar");
        assert!(made.status.success(), "{made:?}");
        made.stdout
    };
    let send = |to: &str, tar: &[u8]| {
        let words = ["cp".to_owned(), "-".to_owned(), format!("{name}:{to}")];
        finish_with_input(world.coracle(words), tar)
    };
    send("/data", &tar("src")).success();
    assert_eq!(exec(world, &name, "cat /data/file"), "one");
    for (to, tar) in [("/none", tar("src")), ("/etc/motd", tar("src"))] {
        let outcome = send(to, &tar);
        assert_eq!(outcome.code(), Some(125), "{to}: {outcome:?}");
    }
    let outcome = send("/data", &[b'x'; 600]);
    assert_eq!(outcome.code(), Some(125), "{outcome:?}");

    let mut command = world.coracle(["cp".to_owned(), format!("{name}:/data"), "-".to_owned()]);
    let out = command.output().expect("coracle");
    assert!(out.status.success(), "{out:?}");
    let mut members = tar::Archive::new(&out.stdout[..]);
    let names: Vec<_> = members
        .entries()
        .expect("a tar")
        .map(|entry| {
            entry
                .expect("an entry")
                .path()
                .expect("a path")
                .into_owned()
        })
        .collect();
    let expected = [
        "data",
        "data/file",
        "data/link",
        "data/sub",
        "data/sub/.wh.odd",
    ];
    assert_eq!(names, expected.map(Path::new));
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn containers_get_files_from_each_other(world: &World) {
    make_source(world);
    let (one, other) = (start(world, &[]), start(world, &[]));
    cp(world, "src", &format!("{one}:/tmp")).success();
    cp(world, &format!("{one}:/tmp/src"), &format!("{other}:/data")).success();
    assert_eq!(exec(world, &other, "cat /data/src/file"), "one");
    cp(world, &format!("{one}:/tmp/src"), &format!("{one}:/data")).success();
    world
        .try_coracle(&["stop", "-t", "0", &one, &other])
        .success();
    cp(
        world,
        &format!("{one}:/data/src"),
        &format!("{one}:/tmp/again"),
    )
    .success();
    cp(
        world,
        &format!("{one}:/tmp/again"),
        &format!("{other}:/tmp"),
    )
    .success();
    cp(world, &format!("{other}:/tmp/again"), "out").success();
    assert_eq!(fs::read(world.path("out/file")).expect("it"), b"one");
    world.try_coracle(&["rm", &one, &other]).success();
}

/// CVE-2018-15664 and CVE-2019-10152: a container's links are followed in the container.
fn links_lead_nowhere_but_inside(world: &World) {
    make_source(world);
    let outside = world.path("outside");
    fs::create_dir(&outside).expect("a directory");
    fs::write(outside.join("secret"), "the host's").expect("a file");
    world.give_away(&outside);
    let before = snapshot(&outside);
    let name = start(world, &[]);
    let (path, climb) = (outside.display(), "../../../../../../..");
    let script = format!(
        "mkdir /hostile /hostile/real; ln -s {path} /hostile/abs; ln -s {climb}{path} /hostile/rel; \
         ln -s / /hostile/root; ln -s /proc/1/root /hostile/magic"
    );
    exec(world, &name, &script);
    for link in ["abs", "rel", "root/..", "magic/.."] {
        let from = format!(
            "{name}:/hostile/{link}{}",
            match link {
                "abs" | "rel" => "/secret".to_owned(),
                _ => format!("{path}/secret"),
            }
        );
        let outcome = cp(world, &from, "stolen");
        assert_eq!(outcome.code(), Some(125), "{from}: {outcome:?}");
        assert!(!world.path("stolen").exists(), "{from}");
        let to = from.replace("secret", "planted");
        let outcome = cp(world, "src/file", &to);
        assert_eq!(outcome.code(), Some(125), "{to}: {outcome:?}");
    }
    assert_eq!(snapshot(&outside), before);
    // What comes out does not lead anywhere either: links stay links, in a directory of their own.
    cp(world, &format!("{name}:/hostile"), ".").success();
    symlink(&outside, world.path("hostile/real/sub")).expect("a link");
    let outcome = cp(world, "hostile/.", &format!("{name}:/tmp"));
    outcome.success();
    assert_eq!(snapshot(&outside), before);
    // A tar that leads out by its names.
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "way", &outside)
        .expect("a link");
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    let climbing = format!("{climb}{path}/climbed");
    header.as_gnu_mut().expect("a header").name[..climbing.len()]
        .copy_from_slice(climbing.as_bytes());
    header.set_cksum();
    tar.append(&header, &b"x"[..]).expect("a member");
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    tar.append_data(&mut header, "way/through", &b"x"[..])
        .expect("a member");
    let tar = tar.into_inner().expect("a tar");
    let words = ["cp".to_owned(), "-".to_owned(), format!("{name}:/tmp")];
    let outcome = finish_with_input(world.coracle(words), &tar);
    assert_eq!(outcome.code(), Some(125), "{outcome:?}");
    assert_eq!(snapshot(&outside), before);
    world.try_coracle(&["rm", "-f", &name]).success();
}

/// While the container swaps a directory for a link, nothing of the host's is read or written.
fn a_directory_that_is_swapped_leads_nowhere(world: &World) {
    make_source(world);
    let outside = world.path("outside");
    fs::create_dir_all(outside.join("sub")).expect("a directory");
    fs::write(outside.join("file"), "the host's").expect("a file");
    world.give_away(&outside);
    let before = snapshot(&outside);
    let name = start(world, &[]);
    let script = format!(
        "mkdir /real; echo own >/real/file; mkdir /real/sub; \
         while :; do ln -sfn {} /place.new; mv -T /place.new /place 2>/dev/null || rm -rf /place; \
         rm -f /place; mkdir /place; echo own >/place/file; rm -rf /place; done",
        outside.display()
    );
    let words = [
        "exec".to_owned(),
        name.clone(),
        "sh".into(),
        "-c".into(),
        script,
    ];
    let mut swapper = world.coracle(words).spawn().expect("coracle");
    for round in 0..20 {
        let to = format!("out-{round}");
        let _ = cp(world, &format!("{name}:/place"), &to);
        assert!(!world.path(&to).is_symlink());
        let found = fs::read_to_string(world.path(&to).join("file")).unwrap_or_default();
        assert!(!found.contains("host"), "{found}");
        let _ = cp(world, "src/.", &format!("{name}:/place"));
    }
    assert_eq!(snapshot(&outside), before);
    world.try_coracle(&["rm", "-f", &name]).success();
    swapper.wait().expect("the exec ends with its container");
}

fn a_container_starts_once_its_files_are_copied(world: &World) {
    let name = start(world, &[]);
    world.try_coracle(&["stop", "-t", "0", &name]).success();
    // A copy that waits for its tar, in the container's tree.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let words = ["cp".to_owned(), "-".to_owned(), format!("{name}:/tmp")];
    let mut copy = world.coracle(words).stdin(reader).spawn().expect("coracle");
    let dir = world.containers().join(
        world.inspect(&name).expect("it")["id"]
            .as_str()
            .expect("text"),
    );
    eventually("the copy has the container", || {
        let dir = fs::File::open(&dir).expect("a directory");
        rustix::fs::flock(&dir, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err()
    });
    let mut start = world.coracle(["start", &name]).spawn().expect("coracle");
    let mut tar = tar::Builder::new(writer);
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.set_mode(0o644);
    tar.append_data(&mut header, "late", &b"x"[..])
        .expect("a member");
    drop(tar.into_inner().expect("a tar"));
    assert!(copy.wait().expect("coracle").success());
    assert!(start.wait().expect("coracle").success());
    assert_eq!(exec(world, &name, "cat /tmp/late"), "x");
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn an_export_has_the_root_file_system_only(world: &World) {
    let name = start(world, &["-v", "files:/data"]);
    exec(
        world,
        &name,
        "echo v >/data/in-volume; echo new >/tmp/new; rm /etc/motd",
    );
    for state in ["running", "exited"] {
        let file = format!("{state}.tar");
        world.try_coracle(&["export", "-o", &file, &name]).success();
        let bytes = fs::read(world.path(&file)).expect("a file");
        let mut members = tar::Archive::new(&bytes[..]);
        let names: Vec<String> = members
            .entries()
            .expect("a tar")
            .map(|entry| {
                let path = entry
                    .expect("an entry")
                    .path()
                    .expect("a path")
                    .into_owned();
                path.display().to_string()
            })
            .collect();
        let has = |name: &str| {
            names
                .iter()
                .any(|known| known.trim_end_matches('/') == name)
        };
        for there in [
            "data",
            "tmp/new",
            "proc",
            "sys",
            "dev",
            "etc/hosts",
            "bin/sh",
        ] {
            assert!(has(there), "{state} {there}: {names:?}");
        }
        for missing in ["data/in-volume", "proc/1", "dev/null", "etc/motd"] {
            assert!(!has(missing), "{state} {missing}");
        }
        if state == "running" {
            world.try_coracle(&["stop", "-t", "0", &name]).success();
        }
    }
    // A reader that leaves is no failure.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = world.coracle(["export", &name]);
    let status = command.stdout(writer).status().expect("coracle");
    assert!(status.success(), "{status:?}");
    let missing = world.try_coracle(&["export", "no-such-container"]);
    assert_eq!(missing.code(), Some(125), "{missing:?}");
    world.try_coracle(&["rm", &name]).success();
    world.try_coracle(&["volume", "rm", "files"]).success();
}

fn differences_are_told(world: &World) {
    let name = start(world, &[]);
    let script =
        "rm /etc/motd; echo x >/etc/new; mkdir -p /tmp/a/b; echo y >>/etc/passwd; chmod 700 /data";
    exec(world, &name, script);
    let expected =
        "C /data\nC /etc\nD /etc/motd\nA /etc/new\nC /etc/passwd\nC /tmp\nA /tmp/a\nA /tmp/a/b\n";
    for state in ["running", "exited"] {
        let told = world.try_coracle(&["diff", &name]);
        assert_eq!(told.success(), expected, "{state}");
        world.try_coracle(&["stop", "-t", "0", &name]).success();
    }
    let told = world.try_coracle(&["diff", "--format", "json", &name]);
    let told: Value = serde_json::from_str(told.success()).expect("JSON");
    let lists = serde_json::json!({
        "changed": ["/data", "/etc", "/etc/passwd", "/tmp"],
        "added": ["/etc/new", "/tmp/a", "/tmp/a/b"],
        "deleted": ["/etc/motd"],
    });
    assert_eq!(told, lists);
    let wrong = world.try_coracle(&["diff", "--format", "xml", &name]);
    assert_eq!(wrong.code(), Some(125), "{wrong:?}");
    let missing = world.try_coracle(&["diff", "no-such-thing"]);
    assert_eq!(missing.code(), Some(125), "{missing:?}");
    world.try_coracle(&["rm", &name]).success();
}
