//! What `run` and `create` are told beside the command.

use std::fs;

use crate::harness::{World, cases, eventually, unique};

cases![
    variables_come_from_files,
    the_id_is_written_to_a_file_of_its_own,
    a_container_takes_the_place_of_another,
    the_stop_signal_is_the_one_that_was_named,
];

fn variables_come_from_files(world: &World) {
    let file = world.path("env");
    fs::write(&file, "A=1\n# B=2\n  C=x y\nGONE\nA=3\n").expect("written");
    world.give_away(&file);
    let file = file.to_str().expect("plain");
    let script = "echo $A-$B-$C-${GONE-unset}";
    let said = world.sh(&["--env-file", file, "-e", "C=z"], script);
    assert_eq!(said, "3--z-unset\n");
    let name = unique("exec");
    world.detach(&name, &["--network", "none"], &["sleep", "1000"]);
    let said = world.try_coracle(&["exec", "--env-file", file, &name, "sh", "-c", script]);
    assert_eq!(said.success(), "3--x y-unset\n");
    world.try_coracle(&["rm", "-f", &name]).success();
    fs::write(file, "A=1\n=2\n").expect("written");
    let wrong = world.run(&["--env-file", file], &["true"]);
    assert_eq!(wrong.code(), Some(125));
    assert!(wrong.stderr.contains("\"=2\" is no variable"), "{wrong:?}");
    let missing = world.run(&["--env-file", "/no/such"], &["true"]);
    assert!(missing.stderr.contains("/no/such"), "{missing:?}");
}

fn the_id_is_written_to_a_file_of_its_own(world: &World) {
    let dir = world.path("ids");
    fs::create_dir(&dir).expect("a directory");
    world.give_away(&dir);
    let (file, name) = (dir.join("id"), unique("id"));
    let path = file.to_str().expect("plain");
    let id = world.detach(
        &name,
        &["--network", "none", "--cidfile", path],
        &["sleep", "1000"],
    );
    assert_eq!(fs::read_to_string(&file).expect("the file"), id);
    // It is nobody else's.
    let again = world.run(&["--cidfile", path], &["true"]);
    assert_eq!(again.code(), Some(125));
    assert!(again.stderr.contains("there already"), "{again:?}");
    assert_eq!(fs::read_to_string(&file).expect("the file"), id);
    world.try_coracle(&["rm", "-f", &name]).success();
    // What came to nothing leaves none.
    fs::remove_file(&file).expect("removed");
    let taken = unique("taken");
    world.detach(&taken, &["--network", "none"], &["sleep", "1000"]);
    let clash = world.run(&["--cidfile", path, "--name", &taken], &["true"]);
    assert_eq!(clash.code(), Some(125));
    assert!(!file.exists());
    world.try_coracle(&["rm", "-f", &taken]).success();
}

fn a_container_takes_the_place_of_another(world: &World) {
    let name = unique("place");
    let flags = ["--network", "none", "--replace"];
    let script = "trap 'exit 0' TERM; sleep 1000 & wait";
    let first = world.detach(&name, &flags, &["sh", "-c", script]);
    let init = world.init_of(&name);
    let second = world.detach(&name, &flags, &["sh", "-c", script]);
    assert_ne!(first, second);
    eventually("the first has gone", || !crate::harness::is_running(init));
    // A command line that is wrong costs it nothing.
    let profile = "seccomp=/no/such";
    let flags = ["--name", &name, "--replace", "--security-opt", profile];
    let wrong = world.run(&flags, &["true"]);
    assert_eq!(wrong.code(), Some(125), "{wrong:?}");
    let listed = world.try_coracle(&["ps", "-a", "--no-trunc", "-q"]);
    assert_eq!(listed.success().trim(), second);
    let nameless = world.run(&["--replace"], &["true"]);
    assert!(nameless.stderr.contains("--name"), "{nameless:?}");
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn the_stop_signal_is_the_one_that_was_named(world: &World) {
    let name = unique("signal");
    let script = "trap 'exit 5' USR1; echo up; while :; do sleep 1 & wait; done";
    let flags = ["--network", "none", "--stop-signal", "SIGUSR1"];
    world.detach(&name, &flags, &["sh", "-c", script]);
    eventually("it is up", || {
        world.try_coracle(&["logs", &name]).success() == "up\n"
    });
    world.try_coracle(&["stop", &name]).success();
    assert_eq!(world.inspect(&name).expect("kept")["exit_code"], 5);
    world.try_coracle(&["rm", &name]).success();
    let wrong = world.run(&["--stop-signal", "NOPE"], &["true"]);
    assert_eq!(wrong.code(), Some(125));
}
