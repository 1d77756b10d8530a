//! Containers that are made first and started later, and those that are started again.

use std::fs;
use std::net::TcpListener;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{
    World, cases, eventually, finish_with_input, is_running, need_tun, parent_of, unique,
};

cases![
    a_container_is_made_first_and_started_later,
    what_was_written_is_there_again,
    a_start_that_fails_leaves_all_as_it_was,
    input_and_exit_code_go_through_a_later_start,
    a_restart_is_an_end_and_a_start,
    ports_are_bound_anew_and_a_clash_names_the_holder,
    waiting_ends_when_the_container_does,
    a_name_is_changed_for_all_commands,
    whichever_process_of_a_second_life_is_killed_nothing_stays,
];

/// `coracle create` without a network. Returns the id.
fn create(world: &World, name: &str, flags: &[&str], command: &[&str]) -> String {
    let fixed = ["create", "--name", name, "--network", "none"];
    let words = [&fixed, flags, &["--rootfs", "rootfs"], command].concat();
    world.try_coracle(&words).success().trim_end().to_owned()
}

fn status(world: &World, name: &str) -> (String, Option<i64>) {
    let row = world.inspect(name).expect("the container");
    let status = row["status"].as_str().expect("a status").to_owned();
    (status, row["exit_code"].as_i64())
}

fn a_container_is_made_first_and_started_later(world: &World) {
    let name = unique("made");
    let id = create(world, &name, &[], &["sh", "-c", "echo hi; exit 3"]);
    assert_eq!(id.len(), 64);
    assert_eq!(status(world, &name), ("created".into(), None));
    assert_eq!(world.try_coracle(&["wait", &name]).success(), "0\n");
    assert_eq!(
        world.try_coracle(&["stop", &name]).success(),
        format!("{name}\n")
    );
    assert_eq!(world.try_coracle(&["kill", &name]).code(), Some(125));
    assert_eq!(world.try_coracle(&["logs", &name]).success(), "");

    let started = world.try_coracle(&["start", &id[..12]]);
    assert_eq!(started.success(), format!("{}\n", &id[..12]));
    assert_eq!(world.try_coracle(&["wait", &name]).success(), "3\n");
    assert_eq!(world.try_coracle(&["logs", &name]).success(), "hi\n");
    // One after the other; what is not there keeps no other from being started.
    let several = world.try_coracle(&["start", "no-such", &name]);
    assert_eq!(
        (several.code(), &*several.stdout),
        (Some(125), &*format!("{name}\n"))
    );
    assert!(several.stderr.contains("no-such"), "{several:?}");
    world.try_coracle(&["wait", &name]).success();
    world.try_coracle(&["rm", &name]).success();

    let once = create(world, &name, &["--rm"], &["true"]);
    world.try_coracle(&["start", &once]).success();
    eventually("it is forgotten", || world.inspect(&name).is_none());
    for wrong in [
        &["start"][..],
        &["start", "--all", "x"],
        &["start", "-a", "x", "y"],
    ] {
        assert_eq!(world.try_coracle(wrong).code(), Some(125), "{wrong:?}");
    }
}

fn what_was_written_is_there_again(world: &World) {
    let name = unique("kept");
    let script = "echo x >>/count; mkdir -p /d; chmod 700 /d; wc -l </count; hostname";
    let id = create(world, &name, &[], &["sh", "-c", script]);
    for count in 1..=3 {
        let ended = world.try_coracle(&["start", "-a", &name]);
        assert_eq!(ended.success(), format!("{count}\n{}\n", &id[..12]));
    }
    let all: String = (1..=3)
        .map(|count| format!("{count}\n{}\n", &id[..12]))
        .collect();
    assert_eq!(world.try_coracle(&["logs", &name]).success(), all);
    let last = world.try_coracle(&["logs", "--tail", "2", &name]);
    assert_eq!(last.success(), format!("3\n{}\n", &id[..12]));
    // As after a reboot.
    for run in fs::read_dir(world.path("run/coracle")).expect("run directories") {
        fs::remove_dir_all(run.expect("an entry").path()).expect("removed");
    }
    let ended = world.try_coracle(&["start", "-a", &name]);
    assert_eq!(ended.success(), format!("4\n{}\n", &id[..12]));
    world.try_coracle(&["rm", &name]).success();
}

fn a_start_that_fails_leaves_all_as_it_was(world: &World) {
    let name = unique("failing");
    create(world, &name, &[], &["no-such-program"]);
    for _ in 0..2 {
        let failed = world.try_coracle(&["start", &name]);
        assert_eq!((failed.code(), &*failed.stdout), (Some(125), ""));
        assert!(failed.stderr.contains("no-such-program"), "{failed:?}");
        assert_eq!(status(world, &name), ("created".into(), None));
    }
    let attached = world.try_coracle(&["start", "-a", &name]);
    assert_eq!(attached.code(), Some(127));
    world.try_coracle(&["rm", &name]).success();

    // One that has ended has still ended so.
    create(world, &name, &[], &["sh", "-c", "rm /bin/busybox; exit 9"]);
    assert_eq!(world.try_coracle(&["start", "-a", &name]).code(), Some(9));
    assert_eq!(world.try_coracle(&["start", &name]).code(), Some(125));
    assert_eq!(status(world, &name), ("exited".into(), Some(9)));
    world.try_coracle(&["rm", &name]).success();
}

fn input_and_exit_code_go_through_a_later_start(world: &World) {
    let name = unique("input");
    create(world, &name, &["-i"], &["sh", "-c", "cat; exit 5"]);
    for text in ["one\n", "two\n"] {
        let ended = finish_with_input(world.coracle(["start", "-ai", &name]), text.as_bytes());
        assert_eq!((ended.code(), &*ended.stdout), (Some(5), text));
    }
    world.try_coracle(&["rm", &name]).success();
    // Its input is at its end from the beginning.
    create(world, &name, &[], &["cat"]);
    let ended = finish_with_input(world.coracle(["start", "-ai", &name]), b"three\n");
    assert_eq!(ended.success(), "");
    world.try_coracle(&["rm", &name]).success();
    // It stays open while nobody is there to write to it.
    create(world, &name, &["-i"], &["cat"]);
    world.try_coracle(&["start", &name]).success();
    assert!(is_running(world.init_of(&name)));
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn a_restart_is_an_end_and_a_start(world: &World) {
    let (name, ended) = (unique("again"), unique("ended"));
    let script = "echo up; trap 'echo down; exit 0' TERM; while :; do sleep 1 & wait; done";
    world.detach(&name, &["--network", "none"], &["sh", "-c", script]);
    create(world, &ended, &[], &["true"]);
    eventually("it is up", || {
        world.try_coracle(&["logs", &name]).stdout == "up\n"
    });
    let first = world.init_of(&name);
    let running = world.try_coracle(&["restart", "--running"]);
    assert_eq!(running.success(), format!("{name}\n"));
    assert_eq!(status(world, &ended), ("created".into(), None));
    assert!(!is_running(first));
    eventually("it is up again", || {
        world.try_coracle(&["logs", &name]).stdout == "up\ndown\nup\n"
    });
    let second = world.init_of(&name);
    let all = world.try_coracle(&["restart", "-t", "10", "-a"]);
    let mut lines: Vec<_> = all.success().lines().collect();
    lines.sort_unstable();
    let mut expected = [&*name, &*ended];
    expected.sort_unstable();
    assert_eq!(lines, expected);
    assert!(!is_running(second));
    eventually("that one ends by itself", || {
        status(world, &ended).1 == Some(0)
    });
    let filtered = world.try_coracle(&["restart", "--filter", &format!("name={ended}")]);
    assert_eq!(filtered.success(), format!("{ended}\n"));
    world.try_coracle(&["rm", "-f", &name, &ended]).success();

    // There would be nothing left to start.
    world.detach(&name, &["--rm", "--network", "none"], &["sleep", "1000"]);
    let refused = world.try_coracle(&["restart", "-t", "0", &name]);
    assert_eq!(refused.code(), Some(125));
    assert!(refused.stderr.contains("--rm"), "{refused:?}");
    assert!(is_running(world.init_of(&name)));
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn ports_are_bound_anew_and_a_clash_names_the_holder(world: &World) {
    need_tun();
    let (first, second) = (unique("first"), unique("second"));
    let sleeper = ["sleep", "1000"];
    world.detach(&first, &["-p", "127.0.0.1::80"], &sleeper);
    let port = |name: &str| {
        world
            .try_coracle(&["port", name, "80"])
            .success()
            .to_owned()
    };
    let address = port(&first);
    world.try_coracle(&["restart", "-t", "0", &first]).success();
    assert_eq!(port(&first), address, "a port that was told of stays");
    let address = address.trim_end();
    assert!(TcpListener::bind(address).is_err());

    let number = address.rsplit(':').next().expect("a port");
    let rule = format!("127.0.0.1:{number}:80");
    let words = [
        "create", "--name", &second, "-p", &rule, "--rootfs", "rootfs",
    ];
    world
        .try_coracle(&[&words, &sleeper[..]].concat())
        .success();
    let clash = world.try_coracle(&["start", &second]);
    assert_eq!(clash.code(), Some(126));
    assert!(clash.stderr.contains(&first), "{clash:?}");
    assert_eq!(status(world, &second), ("created".into(), None));
    world.try_coracle(&["stop", "-t", "0", &first]).success();
    TcpListener::bind(address).expect("it is free while nobody runs");
    world.try_coracle(&["start", &second]).success();
    let clash = world.try_coracle(&["start", &first]);
    assert!(clash.stderr.contains(&second), "{clash:?}");
    assert_eq!(status(world, &first), ("exited".into(), Some(137)));
    world.try_coracle(&["rm", "-f", &first, &second]).success();
}

fn waiting_ends_when_the_container_does(world: &World) {
    let (name, other) = (unique("waited"), unique("other"));
    world.detach(&name, &["--network", "none"], &["sleep", "1000"]);
    create(world, &other, &[], &["sh", "-c", "exit 4"]);
    let running = world.try_coracle(&["wait", "--condition", "running", &name]);
    assert_eq!(running.success(), "-1\n");
    let either = world.try_coracle(&["wait", "--condition=exited,running", "-i", "1ms", &name]);
    assert_eq!(either.success(), "-1\n");
    let wait = world.start(["wait", &name, &other], std::process::Stdio::piped());
    world.try_coracle(&["start", &other]).success();
    world.try_coracle(&["kill", &name]).success();
    assert_eq!(crate::harness::collect(wait).success(), "137\n4\n");
    // Before it waits for the others.
    let missing = world.try_coracle(&["wait", &name, "no-such"]);
    assert_eq!((missing.code(), &*missing.stdout), (Some(125), ""));
    let unknown = world.try_coracle(&["wait", "--condition", "dreaming", &name]);
    assert!(unknown.stderr.contains("dreaming"), "{unknown:?}");
    world.try_coracle(&["rm", &name, &other]).success();
}

fn a_name_is_changed_for_all_commands(world: &World) {
    let (old, new) = (unique("old"), unique("new"));
    world.detach(&old, &["--network", "none"], &["sleep", "1000"]);
    assert_eq!(world.try_coracle(&["rename", &old, &new]).success(), "");
    assert!(world.inspect(&old).is_none());
    world.try_coracle(&["exec", &new, "true"]).success();
    world.detach(&old, &["--network", "none"], &["sleep", "1000"]);
    let taken = world.try_coracle(&["rename", &old, &new]);
    assert_eq!(taken.code(), Some(125));
    assert!(taken.stderr.contains(&new), "{taken:?}");
    for bad in ["../x", "a b", ""] {
        assert_eq!(
            world.try_coracle(&["rename", &old, bad]).code(),
            Some(125),
            "{bad:?}"
        );
    }
    world.try_coracle(&["rm", "-f", &old, &new]).success();
}

fn whichever_process_of_a_second_life_is_killed_nothing_stays(world: &World) {
    let name = unique("second");
    create(world, &name, &[], &["sleep", "1000"]);
    for victim in ["monitor", "init"] {
        world.try_coracle(&["start", &name]).success();
        let init = world.init_of(&name);
        let monitor = parent_of(init);
        let target = match victim {
            "monitor" => monitor,
            _ => init,
        };
        kill(Pid::from_raw(target), Signal::SIGKILL).expect("killed");
        eventually("init and monitor are gone", || {
            !is_running(init) && !is_running(monitor)
        });
        eventually("its end is known", || {
            status(world, &name) == ("exited".into(), Some(137))
        });
    }
    world.try_coracle(&["rm", &name]).success();
}
