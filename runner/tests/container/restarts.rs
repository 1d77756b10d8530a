//! Containers that are started again when they end, and how long they may take to end.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{World, cases, eventually, is_running, need_tun, parent_of, unique};

cases![
    a_failure_is_tried_again_as_often_as_was_said,
    the_foreground_has_the_first_life,
    what_somebody_ends_stays_ended,
    a_container_that_rests_is_ended_too,
    ports_and_network_are_there_again,
    a_start_that_fails_is_tried_again,
    a_lost_container_is_not_started_again,
    a_boot_is_followed_by_start,
    a_container_has_its_own_time_to_end,
    a_container_may_run_for_so_long,
    policies_are_checked,
];

/// What a template makes of a container.
fn look(world: &World, name: &str, template: &str) -> String {
    let seen = world.try_coracle(&["inspect", "-f", template, name]);
    seen.success().trim_end().to_owned()
}

fn restarts(world: &World, name: &str) -> u32 {
    let count = look(world, name, "{{.RestartCount}}");
    count.parse().expect("a number")
}

fn detach(world: &World, name: &str, policy: &str, script: &str) {
    let flags = ["--network", "none", "--restart", policy];
    world.detach(name, &flags, &["sh", "-c", script]);
}

fn a_failure_is_tried_again_as_often_as_was_said(world: &World) {
    let name = unique("failing");
    // What it has written is there again.
    let script = "echo x >>/lives; wc -l </lives; exit 3";
    detach(world, &name, "on-failure:2", script);
    // The end of the last life, not of the first.
    assert_eq!(world.try_coracle(&["wait", &name]).success(), "3\n");
    assert_eq!(world.try_coracle(&["logs", &name]).success(), "1\n2\n3\n");
    assert_eq!(restarts(world, &name), 2);
    let state = "{{.State.Status}} {{.State.Restarting}} {{.HostConfig.RestartPolicy.Name}} \
                 {{.HostConfig.RestartPolicy.MaximumRetryCount}}";
    assert_eq!(look(world, &name, state), "exited false on-failure 2");
    // Another start begins anew.
    world.try_coracle(&["start", &name]).success();
    world.try_coracle(&["wait", &name]).success();
    assert_eq!(restarts(world, &name), 2);
    world.try_coracle(&["rm", &name]).success();

    detach(world, &name, "on-failure", "true");
    assert_eq!(world.try_coracle(&["wait", &name]).success(), "0\n");
    assert_eq!(restarts(world, &name), 0);
    world.try_coracle(&["rm", &name]).success();
}

fn the_foreground_has_the_first_life(world: &World) {
    let name = unique("foreground");
    let fixed = ["run", "--name", &name, "--network", "none"];
    let command = ["--rootfs", "rootfs", "sh", "-c", "echo hi; exit 4"];
    let words = [&fixed[..], &["--restart", "on-failure:1"], &command].concat();
    let ended = world.try_coracle(&words);
    assert_eq!((ended.code(), &*ended.stdout), (Some(4), "hi\n"));
    assert_eq!(world.try_coracle(&["wait", &name]).success(), "4\n");
    assert_eq!(world.try_coracle(&["logs", &name]).success(), "hi\nhi\n");
    world.try_coracle(&["rm", &name]).success();
}

fn what_somebody_ends_stays_ended(world: &World) {
    let name = unique("always");
    let script = "trap 'exit 0' TERM; trap : HUP; echo up; while :; do sleep 1 & wait; done";
    detach(world, &name, "always", script);
    let first = world.init_of(&name);
    let monitor = parent_of(first);
    kill_first_of(world, &name);
    runs_again(world, &name, first);
    assert_eq!(restarts(world, &name), 1);
    assert_eq!(parent_of(world.init_of(&name)), monitor);
    let listed = world.try_coracle(&["ps", "--filter", "restart-policy=always", "-q"]);
    assert_eq!(listed.success().lines().count(), 1);

    world.try_coracle(&["stop", &name]).success();
    assert!(!is_running(monitor));
    assert_eq!(look(world, &name, "{{.State.Status}}"), "exited");
    world.try_coracle(&["start", &name]).success();
    assert_eq!(restarts(world, &name), 0);
    let refused = world.try_coracle(&["rm", &name]);
    assert_eq!(refused.code(), Some(2), "{refused:?}");
    world.try_coracle(&["kill", &name]).success();
    assert_eq!(look(world, &name, "{{.State.Status}}"), "exited");
    // A restart by hand is none by itself, and leaves the policy alone.
    world.try_coracle(&["restart", &name]).success();
    let first = world.init_of(&name);
    kill_first_of(world, &name);
    runs_again(world, &name, first);
    world.try_coracle(&["rm", "-f", &name]).success();
}

/// Waits until there is another first process than this one.
fn runs_again(world: &World, name: &str, first: i32) {
    eventually("it runs again", || {
        let pid = world.inspect(name).expect("the container")["pid"].as_i64();
        pid.is_some_and(|pid| pid != i64::from(first))
    });
}

/// Ends the first process behind the engine's back.
fn kill_first_of(world: &World, name: &str) {
    kill(Pid::from_raw(world.init_of(name)), Signal::SIGKILL).expect("signalled");
}

fn a_container_that_rests_is_ended_too(world: &World) {
    let name = unique("resting");
    for end in [&["stop"][..], &["kill"], &["rm", "-f"]] {
        detach(world, &name, "always", "exit 7");
        eventually("it rests", || {
            look(world, &name, "{{.State.Status}}") == "restarting"
        });
        let listed = world.try_coracle(&["ps", "--format", "{{.State}} {{.Status}}"]);
        let listed = listed.success();
        assert!(
            listed.is_empty()
                || listed.starts_with("restarting Restarting (7) ")
                || listed.starts_with("running"),
            "{listed}"
        );
        world.try_coracle(&[end, &[&name]].concat()).success();
        if end != ["rm", "-f"] {
            assert_eq!(look(world, &name, "{{.State.Status}}"), "exited");
            world.try_coracle(&["rm", &name]).success();
        }
        assert!(world.inspect(&name).is_none());
    }
}

fn ports_and_network_are_there_again(world: &World) {
    need_tun();
    let name = unique("served");
    let address: SocketAddr = TcpListener::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .expect("a port");
    let publish = format!("127.0.0.1:{}:80", address.port());
    let script = "echo here >/index.html; busybox httpd -f -p 80 -h /";
    let flags = ["--restart", "always", "-p", &publish];
    world.detach(&name, &flags, &["sh", "-c", script]);
    let serves =
        || crate::network::get(address, "/index.html").is_some_and(|page| page.contains("here"));
    eventually("it serves", serves);
    for _ in 0..2 {
        let first = world.init_of(&name);
        kill_first_of(world, &name);
        runs_again(world, &name, first);
        // The port was there all the time.
        TcpStream::connect(address).expect("a connection");
        eventually("it serves again", serves);
    }
    world.try_coracle(&["stop", "-t", "0", &name]).success();
    TcpListener::bind(address).expect("a free port");
    world.try_coracle(&["rm", &name]).success();
}

fn a_start_that_fails_is_tried_again(world: &World) {
    need_tun();
    let name = unique("hindered");
    let (volume, away) = (world.path("volume"), world.path("away"));
    fs::create_dir(&volume).expect("a directory");
    fs::write(volume.join("index.html"), "here").expect("a page");
    world.give_to_container(&volume);
    let address: SocketAddr = TcpListener::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .expect("a port");
    let publish = format!("127.0.0.1:{}:80", address.port());
    let mount = format!("{}:/page", volume.display());
    let flags = ["--restart", "always", "-p", &publish, "-v", &mount];
    let command = ["busybox", "httpd", "-f", "-p", "80", "-h", "/page"];
    world.detach(&name, &flags, &command);
    let serves = || {
        let page = crate::network::get(address, "/index.html");
        page.is_some_and(|page| page.contains("here"))
    };
    eventually("it serves", serves);
    fs::rename(&volume, &away).expect("moved away");
    kill_first_of(world, &name);
    eventually("it does not start", || {
        look(world, &name, "{{.State.Restarting}} {{.State.ExitCode}}") == "true 125"
    });
    fs::rename(&away, &volume).expect("moved back");
    eventually("it serves again", serves);
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn a_lost_container_is_not_started_again(world: &World) {
    let name = unique("lost");
    detach(world, &name, "always", "sleep 1000");
    let monitor = parent_of(world.init_of(&name));
    kill(Pid::from_raw(monitor), Signal::SIGKILL).expect("killed");
    eventually("it is found lost", || {
        look(world, &name, "{{.State.Status}} {{.State.ExitCode}}") == "exited 137"
    });
    world.try_coracle(&["rm", &name]).success();
}

fn a_boot_is_followed_by_start(world: &World) {
    let (always, once) = (unique("always"), unique("once"));
    detach(world, &always, "always", "sleep 1000");
    detach(world, &once, "no", "sleep 1000");
    for name in [&always, &once] {
        // As a shutdown ends them.
        kill(
            Pid::from_raw(parent_of(world.init_of(name))),
            Signal::SIGQUIT,
        )
        .expect("signalled");
        eventually("it has ended", || {
            look(world, name, "{{.State.Status}}") == "exited"
        });
    }
    let started = world.try_coracle(&["start", "--all", "--filter", "restart-policy=always"]);
    assert_eq!(started.success(), format!("{always}\n"));
    assert_eq!(look(world, &always, "{{.State.Status}}"), "running");
    world.try_coracle(&["rm", "-f", &always, &once]).success();
}

fn a_container_has_its_own_time_to_end(world: &World) {
    let name = unique("stubborn");
    let flags = ["--network", "none", "--stop-timeout", "0"];
    let script = "trap '' TERM; echo deaf; while :; do sleep 1; done";
    world.detach(&name, &flags, &["sh", "-c", script]);
    assert_eq!(look(world, &name, "{{.Config.StopTimeout}}"), "0");
    eventually("it is deaf", || {
        world.try_coracle(&["logs", &name]).stdout == "deaf\n"
    });
    let stopped = world.try_coracle(&["stop", &name]);
    // With nothing to wait for nothing is said of waiting.
    assert_eq!(
        (stopped.success(), &*stopped.stderr),
        (&*format!("{name}\n"), "")
    );
    assert_eq!(look(world, &name, "{{.State.ExitCode}}"), "137");
    // The monitor heeds it as well.
    world.try_coracle(&["start", &name]).success();
    kill(
        Pid::from_raw(parent_of(world.init_of(&name))),
        Signal::SIGTERM,
    )
    .expect("signalled");
    assert_eq!(world.try_coracle(&["wait", &name]).success(), "137\n");
    world.try_coracle(&["rm", &name]).success();
}

fn a_container_may_run_for_so_long(world: &World) {
    let ended = world.run(&["--timeout", "1"], &["sleep", "1000"]);
    assert_eq!(ended.code(), Some(255), "{ended:?}");
    let ended = world.run(&["--timeout", "0"], &["true"]);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
}

fn policies_are_checked(world: &World) {
    for (flags, said) in [
        (&["--restart", "sometimes"][..], "unless-stopped"),
        (&["--restart", "always:2"], "on-failure only"),
        (&["--restart", "on-failure:-1"], "whole number"),
        (&["--restart", "always", "--rm"], "--rm"),
        (&["--stop-timeout=-1"], "seconds"),
    ] {
        let words = [&["create"], flags, &["--rootfs", "rootfs", "true"]].concat();
        let refused = world.try_coracle(&words);
        assert_eq!(refused.code(), Some(125), "{flags:?}");
        assert!(refused.stderr.contains(said), "{refused:?}");
    }
}
