//! What the kernel gives the container's processes: limits, settings, groups, variables.

use crate::harness::{World, cases, unique};

cases![
    limits_can_be_set,
    a_limit_beyond_the_callers_is_refused,
    settings_of_its_namespaces_can_be_set,
    new_files_have_the_permissions_that_are_left,
    the_kernel_can_be_told_whom_to_kill,
    groups_can_be_added,
    variables_come_and_go,
];

fn limits_can_be_set(world: &World) {
    let script = "ulimit -n; ulimit -Hn; ulimit -c";
    let flags = ["--ulimit", "nofile=100:200", "--ulimit", "core=0"];
    assert_eq!(world.sh(&flags, script), "100\n200\n0\n");
    // By default as many open files as there may be.
    let said = world.sh(&[], "test $(ulimit -n) = $(ulimit -Hn) || ulimit -n");
    assert!(said.is_empty() || said == "1048576\n", "{said}");
    // Commands that come later have them too.
    let name = unique("limits");
    let flags = [&["--network", "none"], &flags[..]].concat();
    world.detach(&name, &flags, &["sleep", "1000"]);
    let said = world.try_coracle(&["exec", &name, "sh", "-c", script]);
    assert_eq!(said.success(), "100\n200\n0\n");
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn a_limit_beyond_the_callers_is_refused(world: &World) {
    let beyond = world.run(&["--ulimit", "nofile=99999999999"], &["true"]);
    assert_eq!(beyond.code(), Some(125));
    assert!(beyond.stderr.contains("hard limit"), "{beyond:?}");
    let wrong = world.run(&["--ulimit", "files=1"], &["true"]);
    assert!(wrong.stderr.contains("nofile"), "{wrong:?}");
    // The caller's own, as they are.
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let own = own.expect("a limit").to_string();
    assert_eq!(world.sh(&["--ulimit", "host"], "ulimit -n").trim(), own);
}

fn settings_of_its_namespaces_can_be_set(world: &World) {
    let flags = [
        "--sysctl",
        "net.core.somaxconn=99",
        "--sysctl",
        "net/ipv4/ip_forward=1",
    ];
    let script = "cat /proc/sys/net/core/somaxconn /proc/sys/net/ipv4/ip_forward";
    assert_eq!(world.sh(&flags, script), "99\n1\n");
    for (setting, named) in [
        ("kernel.panic=1", "whole host"),
        ("net.core.no_such=1", "net.core.no_such"),
        ("net.ipv4.ip_forward=many", "\"many\""),
        ("somaxconn", "expected NAME"),
    ] {
        let wrong = world.run(&["--sysctl", setting], &["true"]);
        assert_eq!(wrong.code(), Some(125));
        assert!(wrong.stderr.contains(named), "{wrong:?}");
    }
    let flags = ["--network", "host", "--sysctl", "net.core.somaxconn=99"];
    let wrong = world.run(&flags, &["true"]);
    assert!(wrong.stderr.contains("host's network"), "{wrong:?}");
}

fn new_files_have_the_permissions_that_are_left(world: &World) {
    let script = "umask; touch /f; ls -l /f | cut -c1-10";
    assert_eq!(world.sh(&[], script), "0022\n-rw-r--r--\n");
    assert_eq!(world.sh(&["--umask", "077"], script), "0077\n-rw-------\n");
    let wrong = world.run(&["--umask", "9"], &["true"]);
    assert_eq!(wrong.code(), Some(125));
}

fn the_kernel_can_be_told_whom_to_kill(world: &World) {
    let script = "cat /proc/self/oom_score_adj";
    assert_eq!(world.sh(&["--oom-score-adj", "500"], script), "500\n");
    let below = world.run(&["--oom-score-adj", "-1000"], &["true"]);
    // The host's root may, but its containers are not root.
    if !world.is_root() {
        assert_eq!(below.code(), Some(125));
        assert!(below.stderr.contains("only the host's root"), "{below:?}");
    }
    let wrong = world.run(&["--oom-score-adj", "1001"], &["true"]);
    assert_eq!(wrong.code(), Some(125));
}

fn groups_can_be_added(world: &World) {
    if !world.has_single_id() {
        let said = world.sh(&["--group-add", "7", "--group-add", "8"], "id -G");
        assert_eq!(said, "0 7 8\n");
        let missing = world.run(&["--group-add", "no-such"], &["true"]);
        assert!(missing.stderr.contains("no-such"), "{missing:?}");
    }
    let both = world.run(
        &["--group-add", "7", "--group-add", "keep-groups"],
        &["true"],
    );
    assert_eq!(both.code(), Some(125));
    let kept = world.run(&["--group-add", "keep-groups"], &["id", "-G"]);
    if world.is_root() {
        assert!(kept.stderr.contains("is for users"), "{kept:?}");
    } else {
        // The caller's have no names there, so that they all show as one.
        kept.success();
    }
}

fn variables_come_and_go(world: &World) {
    let mut command = world.coracle(world.run_args(&["--env-host", "-e", "B=mine"], &["env"]));
    command.env("A_OF_CALLER", "1").env("B", "2");
    let said = crate::harness::finish(command);
    let said = said.success();
    assert!(
        said.contains("A_OF_CALLER=1\n") && said.contains("B=mine\n"),
        "{said}"
    );
    let said = world.sh(&["--unsetenv", "container", "-e", "A=1"], "env");
    assert!(
        !said.contains("container=") && said.contains("A=1\n"),
        "{said}"
    );
    let said = world.run(&["--unsetenv-all", "-e", "A=1"], &["/bin/busybox", "env"]);
    assert_eq!(said.success(), "A=1\nHOME=/\n");
}
