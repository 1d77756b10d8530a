//! What containers may use of the host's. Limits hold where the caller may make control groups that
//! have them.

use std::fs;
use std::path::Path;

use crate::harness::{World, cases, skip, unique};

cases![
    limits_hold_or_are_told_not_to,
    limits_are_shown,
    a_container_may_go_without_groups,
    limits_that_contradict_each_other_are_refused,
    limits_can_be_changed,
];

/// The words of `/proc/PID/cgroup` that lead to a file of one controller, version 1 or unified.
fn file_of(pid: i32, controller: &str, version_1: &str, unified: &str) -> Option<String> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = |line: &str| {
        line.splitn(3, ':')
            .nth(2)
            .map(|path| path.trim_start_matches('/').to_owned())
    };
    let has = |line: &&str| {
        line.split(':')
            .nth(1)
            .is_some_and(|list| list.split(',').any(|name| name == controller))
    };
    let candidates = [
        groups.lines().find(has).and_then(path).map(|path| {
            Path::new("/sys/fs/cgroup")
                .join(controller)
                .join(path)
                .join(version_1)
        }),
        groups
            .lines()
            .find(|line| line.starts_with("0::"))
            .and_then(path)
            .map(|path| Path::new("/sys/fs/cgroup").join(path).join(unified)),
    ];
    candidates
        .into_iter()
        .flatten()
        .find_map(|file| fs::read_to_string(file).ok())
}

fn limits_hold_or_are_told_not_to(world: &World) {
    match world.is_root() {
        true => limits_hold(world),
        // A normal user has no control groups with controllers here.
        false => limits_are_told_not_to_hold(world),
    }
    // Nothing is said of what nobody asked for.
    let said = world.run(&[], &["true"]);
    assert!(!said.stderr.contains("limited"), "{said:?}");
}

fn limits_hold(world: &World) {
    let name = unique("limited");
    let flags = [
        "--network",
        "none",
        "--memory",
        "64m",
        "--cpus",
        "0.5",
        "--pids-limit",
        "9",
        "--cpu-shares",
        "512",
    ];
    world.detach(&name, &flags, &["sleep", "1000"]);
    let init = world.init_of(&name);
    let said = |controller, version_1, unified| {
        let text = file_of(init, controller, version_1, unified);
        text.map(|text| text.trim().to_owned())
    };
    if said("memory", "memory.limit_in_bytes", "memory.max").is_none() {
        world.try_coracle(&["rm", "-f", &name]).success();
        skip("control groups have no controllers here");
    }
    assert_eq!(
        said("memory", "memory.limit_in_bytes", "memory.max").as_deref(),
        Some("67108864")
    );
    assert_eq!(said("pids", "pids.max", "pids.max").as_deref(), Some("9"));
    let quota = said("cpu", "cpu.cfs_quota_us", "cpu.max").expect("a quota");
    assert!(quota.starts_with("50000"), "{quota}");
    // Commands that come later are limited with the others.
    let many = "i=0; while [ $i -lt 20 ]; do sleep 5 & i=$((i+1)); done; echo all";
    let said = world.try_coracle(&["exec", &name, "sh", "-c", many]);
    assert!(!said.stdout.contains("all"), "{said:?}");
    world.try_coracle(&["rm", "-f", &name]).success();
    let greedy = "head -c 200m /dev/zero | tail -c 150m | wc -c";
    let flags = ["--memory", "32m", "--memory-swap", "32m"];
    let said = world.run(&flags, &["sh", "-c", greedy]);
    assert!(!said.stdout.contains("157286400"), "{said:?}");
}

fn limits_are_told_not_to_hold(world: &World) {
    let said = world.run(&["--memory", "64m", "--cpus", "1"], &["echo", "runs"]);
    assert_eq!(said.success(), "runs\n");
    let told = "memory, processor time cannot be limited";
    assert!(said.stderr.contains(told), "{said:?}");
}

fn limits_are_shown(world: &World) {
    let name = unique("shown");
    let rootfs = world.rootfs();
    let words = [
        "create",
        "--name",
        &name,
        "--network",
        "none",
        "-m",
        "64m",
        "--cpus",
        "1.5",
        "--pids-limit",
        "-1",
        "--ulimit",
        "core=0",
        "--add-host",
        "a:192.0.2.1",
        "--rootfs",
        rootfs.to_str().expect("plain"),
        "true",
    ];
    world.try_coracle(&words).success();
    let template = "{{.HostConfig.Memory}} {{.HostConfig.MemorySwap}} {{.HostConfig.NanoCpus}} \
                    {{.HostConfig.PidsLimit}} {{.HostConfig.ExtraHosts}}";
    let said = world.try_coracle(&["inspect", "--format", template, &name]);
    assert_eq!(
        said.success(),
        "67108864 134217728 1500000000 -1 [a:192.0.2.1]\n"
    );
    world.try_coracle(&["rm", &name]).success();
}

fn a_container_may_go_without_groups(world: &World) {
    let said = world.run(&["--cgroups=disabled"], &["cat", "/proc/self/cgroup"]);
    if said.code() == Some(125) {
        assert!(said.stderr.contains("freeze or kill"), "{said:?}");
        return;
    }
    let lines = said.success();
    assert!(!lines.contains("coracle-"), "{lines}");
}

fn limits_that_contradict_each_other_are_refused(world: &World) {
    for (flags, named) in [
        (&["-m", "64m", "--memory-swap", "32m"][..], "below --memory"),
        (&["--memory-swap", "32m"], "goes with --memory"),
        (&["--cpus", "1", "--cpu-quota", "5000"], "--cpu"),
        (&["--cgroups=disabled", "-m", "1m"], "--cgroups=disabled"),
        (&["-m", "many"], "many"),
        (&["--cpus", "0"], "0.01"),
        (&["--cpuset-cpus", "a"], "0-2,4"),
    ] {
        let wrong = world.run(flags, &["true"]);
        assert_eq!(wrong.code(), Some(125), "{flags:?}");
        assert!(wrong.stderr.contains(named), "{flags:?}: {wrong:?}");
    }
}

fn limits_can_be_changed(world: &World) {
    let name = unique("changed");
    let flags = ["--network", "none", "-m", "64m"];
    world.detach(&name, &flags, &["sleep", "1000"]);
    let update = |flags: &[&str]| world.try_coracle(&[&["update"], flags, &[&name]].concat());
    let init = world.init_of(&name);
    let limit = || file_of(init, "memory", "memory.limit_in_bytes", "memory.max");
    // Up beyond what memory and swap have together, and down again.
    for (size, bytes) in [("512m", "536870912"), ("32m", "33554432")] {
        let said = update(&["-m", size, "--pids-limit", "50"]);
        assert_eq!(said.success().trim().len(), 64, "{said:?}");
        let shown = world.try_coracle(&[
            "inspect",
            "-f",
            "{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}",
            &name,
        ]);
        assert_eq!(shown.success(), format!("{bytes} 50\n"));
        if world.is_root()
            && let Some(limit) = limit()
        {
            assert_eq!(limit.trim(), bytes);
        }
    }
    update(&["--restart", "on-failure:3"]).success();
    let policy =
        "{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}";
    let shown = world.try_coracle(&["inspect", "-f", policy, &name]);
    assert_eq!(shown.success(), "on-failure 3\n");
    for (flags, named) in [
        (&[][..], "needs a limit"),
        (&["-m", "many"], "many"),
        (&["--env", "A=1"], "--env"),
    ] {
        let wrong = update(flags);
        assert_eq!(wrong.code(), Some(125), "{wrong:?}");
        assert!(wrong.stderr.contains(named), "{wrong:?}");
    }
    world.try_coracle(&["rm", "-f", &name]).success();
    let missing = world.try_coracle(&["update", "-m", "1g", "no-such"]);
    assert!(missing.stderr.contains("no-such"), "{missing:?}");
}
