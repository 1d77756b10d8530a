//! The processes of containers: shown, frozen and let go.

use std::fs;

use crate::harness::{DelegatedGroup, World, cases, collect, eventually, is_running, unique};

cases![
    the_processes_of_a_container_are_shown,
    only_a_containers_own_processes_are_shown,
    what_cannot_be_frozen_is_refused;
    a_container_is_paused_and_goes_on,
];

fn the_processes_of_a_container_are_shown(world: &World) {
    let name = unique("top");
    let passwd = world.rootfs().join("etc/passwd");
    fs::write(&passwd, "boss:x:0:0::/:/bin/sh\n").expect("written");
    world.detach(
        &name,
        &["--network", "none"],
        &["sh", "-c", "sleep 1000 & exec sleep 2000"],
    );
    eventually("both are there", || {
        let top = world.try_coracle(&["top", &name, "pid,ppid", "user", "args"]);
        let lines: Vec<Vec<&str>> = top
            .success()
            .lines()
            .map(|line| line.split_ascii_whitespace().collect())
            .collect();
        lines[..2]
            == [
                vec!["PID", "PPID", "USER", "COMMAND"],
                vec!["1", "0", "boss", "sleep", "2000"],
            ]
            && lines[2..]
                .iter()
                .any(|line| line[1..] == ["1", "boss", "sleep", "1000"])
    });
    let default = world.try_coracle(&["top", "-l"]);
    let head = default.success().lines().next().expect("a line").to_owned();
    let heads = [
        "USER", "PID", "PPID", "%CPU", "ELAPSED", "TTY", "TIME", "COMMAND",
    ];
    assert_eq!(head.split_ascii_whitespace().collect::<Vec<_>>(), heads);
    let init = world.init_of(&name);
    let host = world.try_coracle(&["top", &name, "hpid,huser,seccomp,capeff"]);
    let first: Vec<&str> = host
        .success()
        .lines()
        .nth(1)
        .expect("a line")
        .split(' ')
        .collect();
    let first: Vec<&str> = first.into_iter().filter(|cell| !cell.is_empty()).collect();
    let expected = [
        init.to_string(),
        world.container_root().to_string(),
        "filter".to_owned(),
    ];
    assert_eq!(first[..3], expected);
    assert!(first[3].starts_with("CHOWN,DAC_OVERRIDE"), "{first:?}");

    for wrong in ["-eo", "nosuch", "pid,"] {
        assert_eq!(
            world.try_coracle(&["top", &name, "--", wrong]).code(),
            Some(125),
            "{wrong}"
        );
    }
    world.try_coracle(&["kill", &name]).success();
    let ended = world.try_coracle(&["top", &name]);
    assert_eq!(ended.code(), Some(125));
    assert!(ended.stderr.contains("not running"), "{ended:?}");
    world.try_coracle(&["rm", &name]).success();
}

/// Nor is a program of the container's executed for it, as was once done elsewhere (CVE-2022-1227),
/// nor do names that it gives itself act on a terminal.
fn only_a_containers_own_processes_are_shown(world: &World) {
    let (name, neighbour) = (unique("own"), unique("neighbour"));
    let rootfs = world.rootfs();
    for program in ["ps", "nsenter", "id"] {
        let path = rootfs.join("bin").join(program);
        fs::remove_file(&path).expect("a link");
        fs::write(&path, "#!/bin/sh\necho pwned >/pwned\n").expect("written");
    }
    // What is to be read of it may be no file at all, or lead out.
    let script = "
        rm -f /etc/passwd /etc/group
        busybox mkfifo /etc/passwd
        busybox ln -s ../../../../../dev/zero /etc/group
        exec sh -c 'sleep 1000; :' $(printf 'x\\033[31m')";
    let id = world.detach(&name, &["--network", "none"], &["sh", "-c", script]);
    world.detach(&neighbour, &["--network", "none"], &["sleep", "3000"]);
    eventually("its child is there", || {
        world
            .try_coracle(&["top", &name, "pid"])
            .success()
            .lines()
            .count()
            == 3
    });
    let top = world.try_coracle(&["top", &name, "user,args"]);
    assert!(
        !top.success().contains("3000") && !top.success().contains('\x1b'),
        "{top:?}"
    );
    assert!(top.success().contains("\\u001b[31m"), "{top:?}");
    assert!(!world.containers().join(id).join("upper/pwned").exists());
    // A command that is added is one of them, though nobody inside is its parent.
    let exec = world.start(
        ["exec", &neighbour, "sleep", "77"],
        std::process::Stdio::piped(),
    );
    eventually("it is shown", || {
        let top = world.try_coracle(&["top", &neighbour, "ppid,args"]);
        top.success()
            .lines()
            .any(|line| line.split_ascii_whitespace().collect::<Vec<_>>() == ["0", "sleep", "77"])
    });
    world
        .try_coracle(&["rm", "-f", &name, &neighbour])
        .success();
    collect(exec);
}

fn what_cannot_be_frozen_is_refused(world: &World) {
    let name = unique("free");
    world.detach(&name, &["--network", "none"], &["sleep", "1000"]);
    let paused = world.try_coracle(&["pause", &name]);
    // Where the caller may make groups, as root may, it can be paused.
    if paused.code() == Some(0) {
        world.try_coracle(&["unpause", &name]).success();
    } else {
        assert_eq!(paused.code(), Some(125));
        assert!(paused.stderr.contains("control group"), "{paused:?}");
    }
    assert_eq!(world.inspect(&name).expect("listed")["status"], "running");
    let running = world.try_coracle(&["unpause", &name]);
    assert_eq!(running.code(), Some(125));
    assert!(running.stderr.contains("is not paused"), "{running:?}");
    world.try_coracle(&["kill", &name]).success();
    let ended = world.try_coracle(&["pause", &name]);
    assert!(ended.stderr.contains("has ended"), "{ended:?}");
    world.try_coracle(&["rm", &name]).success();
    assert_eq!(world.try_coracle(&["pause", &name]).code(), Some(125));
}

fn a_container_is_paused_and_goes_on(world: &World) {
    let group = DelegatedGroup::enter(world);
    let name = unique("paused");
    let script = "trap 'exit 7' TERM; while :; do date +%N; sleep 0.01; done";
    world.detach(&name, &["--network", "none"], &["sh", "-c", script]);
    let lines = || {
        world
            .try_coracle(&["logs", &name])
            .success()
            .lines()
            .count()
    };
    eventually("it is at work", || lines() > 0);
    let wait = world.start(
        ["wait", "--condition=paused", &name],
        std::process::Stdio::piped(),
    );
    assert_eq!(
        world.try_coracle(&["pause", "-a"]).success(),
        format!("{name}\n")
    );
    assert_eq!(collect(wait).success(), "-1\n");
    assert_eq!(world.inspect(&name).expect("listed")["status"], "paused");
    let frozen = fs::read_dir(group.path()).expect("the group").flatten();
    let frozen: Vec<_> = frozen
        .filter_map(|entry| fs::read_to_string(entry.path().join("cgroup.events")).ok())
        .collect();
    assert!(
        frozen.len() == 1 && frozen[0].contains("frozen 1"),
        "{frozen:?}"
    );
    for (refused, named) in [
        (&["exec", &*name, "true"][..], "coracle unpause"),
        (&["pause", &name], "is paused"),
        (&["start", &name], "is paused"),
        (&["rm", &name], "is running"),
    ] {
        let refused = world.try_coracle(refused);
        assert!(
            refused.code() != Some(0) && refused.stderr.contains(named),
            "{refused:?}"
        );
    }
    assert!(world.try_coracle(&["top", &name]).success().lines().count() > 1);
    let before = lines();
    assert_eq!(
        world.try_coracle(&["unpause", &name]).success(),
        format!("{name}\n")
    );
    eventually("it goes on", || lines() > before);

    // One that is asked to end can heed that, and one that is killed ends.
    world.try_coracle(&["pause", &name]).success();
    world.try_coracle(&["stop", &name]).success();
    assert_eq!(world.inspect(&name).expect("kept")["exit_code"], 7);
    world.try_coracle(&["start", &name]).success();
    world.try_coracle(&["pause", &name]).success();
    let init = world.init_of(&name);
    world.try_coracle(&["kill", &name]).success();
    assert!(!is_running(init));
    assert_eq!(world.inspect(&name).expect("kept")["exit_code"], 137);
    // A monitor that is asked to end lets it heed the stop signal, too.
    world.try_coracle(&["start", &name]).success();
    world.try_coracle(&["pause", &name]).success();
    let monitor = crate::harness::parent_of(world.init_of(&name));
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(monitor),
        nix::sys::signal::SIGTERM,
    )
    .expect("signalled");
    eventually("it ends by itself", || {
        world.inspect(&name).expect("kept")["exit_code"] == 7
    });
    world.try_coracle(&["start", &name]).success();
    world.try_coracle(&["pause", &name]).success();
    world.try_coracle(&["rm", "-f", &name]).success();
    group.leave();
}
