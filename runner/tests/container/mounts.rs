//! What a container has mounted besides its root file system: memory, devices, volumes that are not
//! changed.

use std::fs;
use std::path::Path;

use crate::harness::{World, cases, skip, unique};

cases![
    memory_has_options,
    memory_begins_with_what_the_image_has,
    mounts_are_spelled_out,
    places_below_others_are_seen,
    a_read_only_root_has_scratch_places,
    changes_stay_apart,
    devices_are_the_hosts,
    shared_memory_has_a_size,
    two_mounts_for_one_place_are_refused,
];

fn memory_has_options(world: &World) {
    let script = "grep ' /t ' /proc/mounts; ls -ld /t; dd if=/dev/zero of=/t/f bs=1M count=2 2>/dev/null || echo full";
    let flags = ["--tmpfs", "/t:size=1m,mode=700,noexec,uid=0"];
    let said = world.sh(&flags, script);
    for part in [
        "tmpfs /t tmpfs rw,nosuid,nodev,noexec",
        "size=1024k",
        "mode=700",
        "drwx------",
        "full",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let flags = ["--tmpfs", "/t:ro"];
    let said = world.sh(&flags, "touch /t/f 2>&1 || ls -ld /t");
    assert!(said.contains("Read-only"), "{said}");
    assert!(said.contains("drwxrwxrwt"), "{said}");
    let wrong = world.run(&["--tmpfs", "/t:foo"], &["true"]);
    assert_eq!(wrong.code(), Some(125));
    assert!(wrong.stderr.contains("\"foo\""), "{wrong:?}");
}

fn memory_begins_with_what_the_image_has(world: &World) {
    let rootfs = world.make_rootfs("filled");
    let dir = rootfs.join("data/deep");
    fs::create_dir_all(&dir).expect("directories");
    fs::write(dir.join("file"), "of the image").expect("a file");
    world.give_to_container(&rootfs.join("data"));
    let run = |flags: &[&str], script: &str| {
        let rootfs = rootfs.to_str().expect("plain");
        let mut words = vec!["run", "--rm", "--network", "none", "--rootfs", rootfs];
        words.extend(flags);
        words.extend(["sh", "-c", script]);
        world.try_coracle(&words).success().to_owned()
    };
    let said = run(
        &["--tmpfs", "/data"],
        "cat /data/deep/file; echo new > /data/x",
    );
    assert_eq!(said, "of the image");
    let said = run(&["--tmpfs", "/data:notmpcopyup"], "ls /data");
    assert_eq!(said, "");
    assert!(!rootfs.join("data/x").exists());
}

fn mounts_are_spelled_out(world: &World) {
    let dir = world.path("spelled");
    fs::create_dir(&dir).expect("a directory");
    fs::write(dir.join("f"), "on the host").expect("a file");
    world.give_to_container(&dir);
    let bind = format!("type=bind,source={},target=/b,ro", dir.display());
    let flags = [
        "--mount",
        &bind,
        "--mount",
        "type=tmpfs,dst=/m,tmpfs-size=64k",
    ];
    let said = world.sh(
        &flags,
        "cat /b/f; touch /b/x 2>/dev/null || echo; grep -c ' /m tmpfs' /proc/mounts",
    );
    assert_eq!(said, "on the host\n1\n");
    let volume = unique("vol");
    let mount = format!("type=volume,src={volume},dst=/v");
    world.sh(&["--mount", &mount], "echo kept > /v/f");
    let said = world.sh(
        &["--mount", &format!("{mount},readonly")],
        "cat /v/f; touch /v/x 2>&1 || true",
    );
    assert!(
        said.starts_with("kept\n") && said.contains("Read-only"),
        "{said}"
    );
    world.try_coracle(&["volume", "rm", &volume]).success();
    let wrong = world.run(&["--mount", "type=bind,src=/no/such,dst=/b"], &["true"]);
    assert!(wrong.stderr.contains("/no/such"), "{wrong:?}");
}

/// Whatever their order on the command line.
fn places_below_others_are_seen(world: &World) {
    let dir = world.path("below");
    fs::create_dir(&dir).expect("a directory");
    fs::write(dir.join("f"), "deep").expect("a file");
    world.give_to_container(&dir);
    let deep = format!("{}:/a/b/c", dir.display());
    let flags = ["-v", &deep, "--tmpfs", "/a/b", "--tmpfs", "/a"];
    assert_eq!(world.sh(&flags, "cat /a/b/c/f"), "deep");
}

fn a_read_only_root_has_scratch_places(world: &World) {
    let script = "for place in / /etc /run /tmp /var/tmp /dev/shm; do touch $place/f 2>/dev/null && echo $place; done; true";
    let said = world.sh(&["--read-only"], script);
    assert_eq!(said, "/run\n/tmp\n/var/tmp\n/dev/shm\n");
    let flags = ["--read-only", "--read-only-tmpfs=false"];
    assert_eq!(world.sh(&flags, script), "/dev/shm\n");
    let dir = world.path("scratch");
    fs::create_dir(&dir).expect("a directory");
    world.give_to_container(&dir);
    let volume = format!("{}:/run", dir.display());
    world.sh(&["--read-only", "-v", &volume], "touch /run/mine");
    assert!(dir.join("mine").exists());
}

fn changes_stay_apart(world: &World) {
    let dir = world.path("apart");
    fs::create_dir(&dir).expect("a directory");
    fs::write(dir.join("f"), "old\n").expect("a file");
    world.give_to_container(&dir);
    world.give_to_container(&dir.join("f"));
    let volume = format!("{}:/v:O", dir.display());
    let name = unique("apart");
    let flags = ["--network", "none", "-v", &*volume, "--name", &name];
    let rootfs = world.rootfs();
    let mut words = vec!["run", "--rootfs", rootfs.to_str().expect("plain")];
    words.extend(flags);
    words.extend(["sh", "-c", "cat /v/*; echo new > /v/f; touch /v/g"]);
    let said = world.try_coracle(&words);
    if said.stderr.contains("cannot mount an overlay") {
        skip("the data directory cannot hold the changes of an overlay");
    }
    assert_eq!(said.success(), "old\n");
    assert_eq!(fs::read_to_string(dir.join("f")).expect("a file"), "old\n");
    assert!(!dir.join("g").exists());
    // They end with the container, and not before.
    let again = world.try_coracle(&["start", "-a", &name]);
    assert_eq!(again.success(), "new\n");
    world.try_coracle(&["rm", &name]).success();
    let file = format!("{}:/v:O", dir.join("f").display());
    let wrong = world.run(&["-v", &file], &["true"]);
    assert!(wrong.stderr.contains("option O"), "{wrong:?}");
}

fn devices_are_the_hosts(world: &World) {
    let device = "/dev/net/tun";
    if !Path::new(device).exists() {
        skip("there is no /dev/net/tun here");
    }
    let said = world.sh(&["--device", device], "ls -l /dev/net/tun");
    assert!(said.starts_with('c') && said.contains("10, 200"), "{said}");
    let said = world.sh(&["--device", "/dev/net:/dev/x:rw"], "ls /dev/x");
    assert_eq!(said, "tun\n");
    let absent = world.sh(&[], "ls /dev/net 2>&1 || true");
    assert!(absent.contains("No such file"), "{absent}");
    for (device, named) in [
        ("/dev/no-such", "/dev/no-such"),
        ("/etc/passwd", "no device"),
        ("/dev/net/tun:r", "reading and writing"),
    ] {
        let wrong = world.run(&["--device", device], &["true"]);
        assert_eq!(wrong.code(), Some(125));
        assert!(wrong.stderr.contains(named), "{wrong:?}");
    }
}

fn shared_memory_has_a_size(world: &World) {
    let script = "grep ' /dev/shm ' /proc/mounts";
    assert!(world.sh(&[], script).contains("size=65536k"));
    assert!(
        world
            .sh(&["--shm-size", "1m"], script)
            .contains("size=1024k")
    );
}

fn two_mounts_for_one_place_are_refused(world: &World) {
    for flags in [
        ["--tmpfs", "/x", "-v", "/etc:/x"],
        ["--tmpfs", "/x", "--mount", "type=tmpfs,dst=/x/"],
        ["--device", "/dev/null:/x", "--tmpfs", "/x"],
    ] {
        let wrong = world.run(&flags, &["true"]);
        assert_eq!(wrong.code(), Some(125));
        assert!(wrong.stderr.contains("both for /x"), "{wrong:?}");
    }
}
