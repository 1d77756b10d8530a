//! The namespaces that the commands of `coracle unshare` share, and the process that keeps them.

use std::fs;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{World, cases, children_of, collect, coracle, eventually, finish, is_running};

cases![
    commands_share_namespaces_until_they_are_migrated,
    commands_within_find_what_is_there,
    commands_that_come_at_once_share,
    a_holder_that_was_killed_is_missed,
    a_holder_ends_with_its_file,
    the_working_directory_is_kept,
];

const IDS: &str = "readlink /proc/self/ns/user /proc/self/ns/mnt";

#[track_caller]
fn unshared(world: &World, script: &str) -> String {
    let said = world.try_coracle(&["unshare", "sh", "-c", script]);
    said.success().to_owned()
}

/// The holder, which this process has adopted.
fn holder() -> Option<i32> {
    let is_holder = |pid: &i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name == "coracle-holder\n" && is_running(*pid)
    };
    let me = i32::try_from(std::process::id()).expect("a PID");
    children_of(me).into_iter().find(is_holder)
}

fn commands_share_namespaces_until_they_are_migrated(world: &World) {
    let ids = unshared(world, IDS);
    for kind in ["user", "mnt"] {
        let host = fs::read_link(format!("/proc/self/ns/{kind}")).expect("a namespace");
        assert!(!ids.contains(host.to_str().expect("plain")), "{ids}");
    }
    assert_eq!(unshared(world, IDS), ids);
    let place = world.path("home/place");
    fs::create_dir(&place).expect("a directory");
    world.give_away(&place);
    unshared(world, "mount -t tmpfs none ~/place && echo x >~/place/file");
    assert_eq!(unshared(world, "cat ~/place/file"), "x\n");
    assert_eq!(fs::read_dir(&place).expect("the host's").count(), 0);

    let pid = holder().expect("a holder");
    // A session that is over does not end it, nor does it keep anything of that.
    let of = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).ok();
    if let Some(stderr) = of("fd/2") {
        assert_eq!(stderr.to_str(), Some("/dev/null"));
    }
    assert_eq!(world.try_coracle(&["system", "migrate"]).success(), "");
    assert!(!is_running(pid));
    assert!(!world.path("run/coracle/holder").exists());
    assert_eq!(world.try_coracle(&["system", "migrate"]).success(), "");
    assert_ne!(unshared(world, IDS), ids);
    assert_eq!(unshared(world, "ls ~/place"), "");
}

fn commands_within_find_what_is_there(world: &World) {
    let ids = unshared(world, IDS);
    let coracle = coracle().display();
    let nested = unshared(world, &format!("{coracle} unshare sh -c '{IDS}'"));
    assert_eq!(nested, ids);
    let map = unshared(world, "cat /proc/self/uid_map");
    let nested = unshared(world, &format!("{coracle} unshare cat /proc/self/uid_map"));
    assert_eq!(nested, map);
    // The same records, whoever looks for them: root here, and the user outside.
    let run = "run -d --name within --network none --rootfs rootfs sleep 1000";
    unshared(world, &format!("{coracle} {run}"));
    assert_eq!(
        world.inspect("within").expect("the container")["status"],
        "running"
    );
    world.try_coracle(&["rm", "-f", "within"]).success();
    world.detach("without", &["--network", "none"], &["sleep", "1000"]);
    let removed = world.try_coracle(&["unshare", &coracle.to_string(), "rm", "-f", "without"]);
    if world.is_root() {
        // Its containers have other IDs, over which root of these namespaces has no power.
        assert_eq!(removed.code(), Some(125), "{removed:?}");
        assert!(
            removed.stderr.contains("cannot send SIGKILL"),
            "{removed:?}"
        );
        world.try_coracle(&["rm", "-f", "without"]).success();
    }
    assert!(world.inspect("without").is_none());
}

fn commands_that_come_at_once_share(world: &World) {
    let start = |_| {
        let words = ["unshare", "sh", "-c", IDS];
        world.start(words, Stdio::piped())
    };
    let children: Vec<_> = (0..8).map(start).collect();
    let said: Vec<_> = children.into_iter().map(collect).collect();
    for outcome in &said {
        assert_eq!(outcome.success(), said[0].stdout);
    }
}

fn a_holder_that_was_killed_is_missed(world: &World) {
    let ids = unshared(world, IDS);
    let pid = holder().expect("a holder");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("killed");
    eventually("it has ended", || !is_running(pid));
    let others = unshared(world, IDS);
    assert_ne!(others, ids);
    assert_eq!(unshared(world, IDS), others);
    // One that does not listen is ended all the same.
    let pid = holder().expect("another holder");
    kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("stopped");
    assert_eq!(unshared(world, IDS), others);
    world.try_coracle(&["system", "migrate"]).success();
    assert!(!is_running(pid));
}

fn a_holder_ends_with_its_file(world: &World) {
    unshared(world, "true");
    let pid = holder().expect("a holder");
    fs::remove_file(world.path("run/coracle/holder")).expect("the file");
    eventually("the holder has ended", || !is_running(pid));
}

fn the_working_directory_is_kept(world: &World) {
    let dir = world.path("home/some where");
    fs::create_dir(&dir).expect("a directory");
    world.give_away(&dir);
    let mut command = world.coracle(["unshare", "pwd"]);
    command.current_dir(&dir);
    assert_eq!(finish(command).success(), format!("{}\n", dir.display()));
    // One that lies below a mount of theirs is another there.
    unshared(world, "mount -t tmpfs none ~");
    let mut command = world.coracle(["unshare", "pwd"]);
    command.current_dir(&dir);
    let refused = finish(command);
    assert_eq!(refused.code(), Some(125), "{refused:?}");
    assert!(
        refused.stderr.contains("cannot enter the namespaces"),
        "{refused:?}"
    );
}
