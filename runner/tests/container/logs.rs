//! What is kept of what containers write, and what of it is shown.

use crate::harness::{World, cases, unique};

cases![
    a_container_may_have_no_log,
    a_log_is_as_long_as_was_said,
    times_choose_lines,
    what_cannot_keep_a_log_is_refused,
];

/// Runs a script to its end, and leaves the container there.
fn run(world: &World, name: &str, flags: &[&str], script: &str) -> String {
    let fixed = ["run", "--name", name, "--network", "none"];
    let command = ["--rootfs", "rootfs", "sh", "-c", script];
    let words = [&fixed, flags, &command].concat();
    world.try_coracle(&words).success().to_owned()
}

fn look(world: &World, name: &str, template: &str) -> String {
    let seen = world.try_coracle(&["inspect", "-f", template, name]);
    seen.success().trim_end().to_owned()
}

const CONFIG: &str = "{{.HostConfig.LogConfig.Type}} {{.HostConfig.LogConfig.Size}}";

fn a_container_may_have_no_log(world: &World) {
    let name = unique("silent");
    let shown = run(world, &name, &["--log-driver", "none"], "echo hi");
    assert_eq!(shown, "hi\n");
    let refused = world.try_coracle(&["logs", &name]);
    assert_eq!(refused.code(), Some(125));
    assert!(refused.stderr.contains("--log-driver none"), "{refused:?}");
    assert_eq!(look(world, &name, CONFIG), "none 0B");
    let files = std::fs::read_dir(world.containers()).expect("the containers");
    for dir in files.flatten().filter(|entry| entry.path().is_dir()) {
        assert!(!dir.path().join("log").exists(), "{dir:?}");
    }
    world.try_coracle(&["rm", &name]).success();
}

fn a_log_is_as_long_as_was_said(world: &World) {
    let name = unique("short");
    let script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done";
    let flags = ["--log-driver", "json-file", "--log-opt", "max-size=8k"];
    assert_eq!(run(world, &name, &flags, script).lines().count(), 2000);
    assert_eq!(look(world, &name, CONFIG), "json-file 8.192kB");
    let kept = world.try_coracle(&["logs", "-l"]);
    let kept = kept.success();
    assert!(kept.ends_with("line 1998\nline 1999\n"), "{kept}");
    let first = kept
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("line "));
    let first: usize = first
        .and_then(|number| number.parse().ok())
        .expect("a whole line");
    assert_eq!(kept.lines().count(), 2000 - first);
    assert!((20..200).contains(&kept.lines().count()), "{kept}");
    world.try_coracle(&["rm", &name]).success();
}

fn times_choose_lines(world: &World) {
    let name = unique("timed");
    run(world, &name, &[], "echo one; echo two >&2");
    let logs = |words: &[&str]| {
        let shown = world.try_coracle(&[&["logs"], words, &[&name]].concat());
        shown.success().to_owned()
    };
    assert_eq!(logs(&["--since", "1h"]), "one\n");
    assert_eq!(logs(&["--since", "2999-01-01T00:00:00Z"]), "");
    assert_eq!(logs(&["--until", "1h"]), "");
    assert_eq!(logs(&["-f", "--until", "2999-01-01T00:00:00Z"]), "one\n");
    let wrong = world.try_coracle(&["logs", "--since", "soon", &name]);
    assert_eq!(wrong.code(), Some(125));
    world.try_coracle(&["rm", &name]).success();

    // It ends with the time, though the container does not.
    world.detach(&name, &["--network", "none"], &["sleep", "1000"]);
    assert_eq!(logs(&["-f", "--until", "0s"]), "");
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn what_cannot_keep_a_log_is_refused(world: &World) {
    for (flags, said) in [
        (&["--log-driver", "journald"][..], "journal"),
        (&["--log-driver", "passthrough"], "foreground"),
        (&["--log-driver", "syslog"], "k8s-file"),
        (&["--log-opt", "path=/x"], "LogPath"),
        (&["--log-opt", "max-size=7"], "1024"),
        (
            &["--log-driver", "none", "--log-opt", "max-size=1m"],
            "none",
        ),
    ] {
        let words = [&["create"], flags, &["--rootfs", "rootfs", "true"]].concat();
        let refused = world.try_coracle(&words);
        assert_eq!(refused.code(), Some(125), "{flags:?}");
        assert!(refused.stderr.contains(said), "{refused:?}");
    }
    for wrong in [&["logs"][..], &["logs", "-l", "x"]] {
        assert_eq!(world.try_coracle(wrong).code(), Some(125), "{wrong:?}");
    }
}
