//! What a container must not reach: the host through root's IDs, the caller through control groups
//! and processes, and what coracle mounts through what the image puts in its way.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{
    DelegatedGroup, World, cases, children_of, eventually, is_running, parent_of, skip, unique,
};

cases![
    root_of_a_container_is_never_root_of_the_host,
    the_hosts_root_may_be_let_in_by_name,
    monitor_and_helper_cannot_be_opened_from_inside,
    masks_stay_what_they_are_whatever_the_image_holds,
    the_hosts_tree_is_out_of_reach_of_an_added_command,
    volumes_have_places_of_their_own;
    an_added_command_has_not_got_the_callers_groups,
    a_container_has_control_groups_of_its_own,
    a_file_capability_that_is_lacking_is_named,
];

/// The user IDs that a process has for the kernel: real, effective, saved, of the file system.
fn user_ids(pid: i32) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .expect("user IDs");
    line.split_ascii_whitespace().map(str::to_owned).collect()
}

fn is_host_root(world: &World) -> bool {
    world.is_root() && fs::metadata("/proc/sys/kernel").expect("/proc").uid() == 0
}

fn root_of_a_container_is_never_root_of_the_host(world: &World) {
    if !is_host_root(world) {
        return;
    }
    let name = unique("root");
    world.detach(&name, &["--cap-add", "ALL"], &["sleep", "1000"]);
    let init = world.init_of(&name);
    let monitor = parent_of(init);
    for pid in children_of(monitor) {
        let ids = user_ids(pid);
        assert!(ids.iter().all(|id| id != "0"), "{pid}: {ids:?}");
    }
    let inside = |script: &str| world.try_coracle(&["exec", &name, "sh", "-c", script]);
    assert_eq!(inside("id -u").success(), "0\n");
    // With every capability of its own namespace, and the read-only mounts undone where it may.
    let script = "mount -o remount,rw /proc/sys; mount -t proc p /tmp; for f in /proc /tmp; do echo x >$f/sys/kernel/core_pattern; done";
    inside(script);
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").expect("a pattern");
    assert_ne!(pattern, "x\n");
    world.try_coracle(&["rm", "-f", &name]).success();
    // Where others could run setuid programs that the container's root makes as the host's, it
    // makes none.
    let open = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir()
        .expect("a directory");
    let refused = world.run_in_place(open.path(), &["true"]);
    assert_eq!(refused.code(), Some(125), "{refused:?}");
    assert!(refused.stderr.contains("setuid"), "{refused:?}");
    // A volume is shown with root's own IDs when that is asked for by name.
    let shared = world.path("shared");
    fs::create_dir(&shared).expect("a directory");
    let volume = |option: &str| format!("{}:/v{option}", shared.display());
    assert_eq!(
        world.run(&["-v", &volume("")], &["touch", "/v/x"]).code(),
        Some(1)
    );
    assert_eq!(
        world.sh(&["-v", &volume(":idmap")], "touch /v/x; stat -c %u /v/x"),
        "0\n"
    );
    assert_eq!(fs::metadata(shared.join("x")).expect("made").uid(), 0);
    // Its files are root's in the container, and in the directory when that is written in place.
    world
        .run_in_place(&world.rootfs(), &["touch", "/made"])
        .success();
    assert_eq!(
        fs::metadata(world.rootfs().join("made"))
            .expect("made")
            .uid(),
        0
    );
}

fn the_hosts_root_may_be_let_in_by_name(world: &World) {
    let map = |flags: &[&str]| world.sh(flags, "cat /proc/self/uid_map");
    match is_host_root(world) {
        true => {
            let words = map(&["--userns", "host"]);
            let own: Vec<&str> = words.split_ascii_whitespace().take(2).collect();
            assert_eq!(own, ["0", "0"]);
        }
        false => {
            assert_eq!(map(&["--userns", "host"]), map(&[]));
            let volume = format!("{}:/v:idmap", world.path("home").display());
            assert_eq!(world.run(&["-v", &volume], &["true"]).code(), Some(125));
        }
    }
    assert_eq!(
        world.run(&["--userns", "keep-id"], &["true"]).code(),
        Some(125)
    );
}

fn a_container_has_control_groups_of_its_own(world: &World) {
    let group = DelegatedGroup::enter(world);
    let delegated = group.path();
    let name = unique("group");
    world.detach(&name, &["--network", "none"], &["sleep", "1000"]);
    let init = world.init_of(&name);
    let of = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("a process");
    assert_ne!(of(init), of(parent_of(init)));
    let inside = world.try_coracle(&["exec", &name, "sh", "-c", "grep ^0: /proc/self/cgroup"]);
    assert_eq!(inside.success(), "0::/\n");

    // What the container may do to its group it does to itself.
    let script = "unshare -UrmC sh -c 'mount -t cgroup2 none /tmp && echo 1 >/tmp/cgroup.kill'";
    let nested = world.run(&["--cap-add", "SYS_ADMIN"], &["sh", "-c", script]);
    let killed = nested.code() == Some(137);
    let refused = nested.code() == Some(1) && !nested.stderr.is_empty();
    assert!(killed || refused, "{nested:?}");
    assert!(is_running(init), "the neighbour lives on, as we do");
    world.try_coracle(&["rm", "-f", &name]).success();
    let left: Vec<_> = fs::read_dir(delegated)
        .expect("the group")
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .collect();
    assert!(left.is_empty(), "{left:?}");

    // One whose monitor was killed leaves its group to the next command.
    world.detach(&name, &["--network", "none", "--init"], &["sleep", "1000"]);
    let init = world.init_of(&name);
    kill(Pid::from_raw(parent_of(init)), Signal::SIGKILL).expect("killed");
    eventually("init is gone", || !is_running(init));
    world.try_coracle(&["rm", &name]).success();
    group.leave();
}

fn monitor_and_helper_cannot_be_opened_from_inside(world: &World) {
    let name = unique("proc");
    let flags = ["-v", "/proc:/hp", "--cap-add", "ALL"];
    world.detach(&name, &flags, &["sleep", "1000"]);
    let init = world.init_of(&name);
    let monitor = parent_of(init);
    let mut pids = children_of(monitor);
    pids.retain(|pid| *pid != init);
    assert_eq!(pids.len(), 1, "the helper");
    pids.push(monitor);
    for pid in pids {
        for file in [
            "mem",
            "environ",
            "maps",
            "fd/0",
            "root/etc/passwd",
            "cwd/etc/passwd",
        ] {
            let script = format!("head -c1 /hp/{pid}/{file}");
            let said = world.try_coracle(&["exec", &name, "sh", "-c", &script]);
            assert!(
                said.stderr.contains("Permission denied"),
                "{file}: {said:?}"
            );
        }
    }
    world.try_coracle(&["rm", "-f", &name]).success();
}

/// Every place that coracle mounts upon, in an image that leads it elsewhere.
fn masks_stay_what_they_are_whatever_the_image_holds(world: &World) {
    let masked = ["/proc/keys", "/proc/timer_list", "/proc/interrupts"];
    let look = "stat -L -c '%F %t:%T' /dev/null /proc/keys /proc/timer_list /proc/interrupts; \
                for f in /dev/null /proc/keys; do echo data >$f; cat $f; done";
    let plain = world.sh(&[], look);
    assert!(
        plain
            .lines()
            .all(|line| line == "character special file 1:3"),
        "{plain}"
    );
    let targets = [
        "/dev/null",
        "/dev/zero",
        "/dev/shm/x",
        "/proc/keys",
        "/proc/sys/kernel/core_pattern",
        "/sys/firmware",
        "/",
    ];
    for file in ["hosts", "resolv.conf", "hostname"] {
        for target in targets {
            let place = world.rootfs().join("etc").join(file);
            let _ = fs::remove_file(&place);
            symlink(target, &place).expect("a link");
            let said = world.run(&[], &["sh", "-c", look]);
            assert_eq!(said.success(), plain, "{file} -> {target}");
            assert!(
                said.stderr.contains(file),
                "it goes without, and says so: {said:?}"
            );
        }
        fs::remove_file(world.rootfs().join("etc").join(file)).expect("removed");
    }
    for target in masked
        .iter()
        .chain(&["/dev/null", "/proc", "/sys/kernel", "/"])
    {
        let place = world.rootfs().join("u");
        let _ = fs::remove_file(&place);
        symlink(target, &place).expect("a link");
        for source in ["/etc", "/etc/hostname"] {
            let volume = format!("{source}:/u");
            let refused = world.run(&["-v", &volume], &["true"]);
            assert_eq!(refused.code(), Some(125), "{target}: {refused:?}");
            assert!(refused.stderr.contains("/u"), "{refused:?}");
        }
    }
}

fn the_hosts_tree_is_out_of_reach_of_an_added_command(world: &World) {
    let name = unique("tree");
    world.detach(&name, &["--network", "none"], &["sleep", "1000"]);
    let script = "grep -c ' / / ' /proc/self/mountinfo; ls -d /rootfs /home 2>/dev/null; cat /proc/1/mountinfo | grep -c ' / / '";
    let said = world.try_coracle(&["exec", &name, "sh", "-c", script]);
    assert_eq!(said.stdout, "1\n1\n", "{said:?}");
    world.try_coracle(&["rm", "-f", &name]).success();
}

/// Whatever the container has put in the place of its /proc.
fn an_added_command_has_not_got_the_callers_groups(world: &World) {
    if world.has_single_id() {
        // There the caller's groups stay, as setgroups(2) is denied: nobody's, and no others can be
        // had.
        return;
    }
    let name = unique("groups");
    let script = "mount -t tmpfs none /proc && mkdir -p /proc/self && echo deny >/proc/self/setgroups; echo ready; sleep 1000";
    let flags = ["--network", "none", "--cap-add", "SYS_ADMIN"];
    world.detach(&name, &flags, &["sh", "-c", script]);
    eventually("it is ready", || {
        world.try_coracle(&["logs", &name]).stdout.contains("ready")
    });
    let added = world.try_coracle(&["exec", "-u", "5:5", &name, "id"]);
    assert_eq!(added.success(), "uid=5 gid=5 groups=5\n");
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn volumes_have_places_of_their_own(world: &World) {
    symlink("/tmp", world.rootfs().join("t")).expect("a link");
    let dir = world.path("dir");
    fs::create_dir(&dir).expect("a directory");
    let file = world.path("file");
    fs::write(&file, "").expect("a file");
    let volume = |source: &Path, target: &str| format!("{}:{target}", source.display());
    for (volumes, said) in [
        ([volume(&dir, "/tmp"), volume(&dir, "/t")], "same place"),
        ([volume(&dir, "/a/b"), volume(&dir, "/a/./b/")], "/a"),
        ([volume(&dir, "/x"), volume(&file, "/tmp")], "a directory"),
        (
            [volume(&file, "/x"), volume(&dir, "/x/../bin/busybox")],
            "a file",
        ),
    ] {
        let refused = world.run(&["-v", &volumes[0], "-v", &volumes[1]], &["true"]);
        assert_eq!(refused.code(), Some(125), "{volumes:?}: {refused:?}");
        assert!(refused.stderr.contains(said), "{volumes:?}: {refused:?}");
    }
}

fn a_file_capability_that_is_lacking_is_named(world: &World) {
    let program = world.rootfs().join("bin/raw");
    fs::copy(world.rootfs().join("bin/busybox"), &program).expect("a program");
    world.give_away(&program);
    let set = std::process::Command::new("setcap")
        .arg("cap_net_raw=ep")
        .arg(&program)
        .status();
    if !set.is_ok_and(|status| status.success()) {
        skip("there is no setcap here (package libcap2-bin)");
    }
    let refused = world.run(&[], &["/bin/raw", "true"]);
    assert_eq!(refused.code(), Some(126), "{refused:?}");
    assert!(refused.stderr.contains("--cap-add NET_RAW"), "{refused:?}");
    // Busybox knows no applet of this name, which it could not say if it had not been executed.
    let executed = world.run(&["--cap-add", "NET_RAW"], &["/bin/raw"]);
    assert!(executed.stderr.contains("applet not found"), "{executed:?}");
}
