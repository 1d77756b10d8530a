//! Which system calls a container may make.

use std::fs;

use crate::harness::{World, cases, unique};

cases![
    every_program_in_a_container_has_the_filter,
    what_the_default_profile_refuses_fails,
    a_profile_of_ones_own_decides_and_is_kept,
    a_profile_that_cannot_be_used_stops_the_start,
];

const MODE: &str = "grep Seccomp: /proc/self/status";
const FILTERED: &str = "Seccomp:\t2\n";
const UNCONFINED: &str = "Seccomp:\t0\n";

fn every_program_in_a_container_has_the_filter(world: &World) {
    for flags in [
        &[][..],
        &["--user", "1000:1000"],
        &["--cap-add", "ALL"],
        &["--cap-drop", "ALL"],
        &["--security-opt", "no-new-privileges"],
        &["--security-opt", "no-new-privileges", "--user", "7"],
        &["--init"],
        &[
            "--security-opt",
            "seccomp=unconfined",
            "--security-opt",
            "seccomp=default",
        ],
    ] {
        if world.has_single_id() && flags.contains(&"--user") {
            continue;
        }
        if flags.contains(&"--user") {
            let flags = [flags, &["--security-opt", "seccomp=unconfined"]].concat();
            assert_eq!(world.sh(&flags, MODE), UNCONFINED, "{flags:?}");
        }
        assert_eq!(world.sh(flags, MODE), FILTERED, "{flags:?}");
    }
    assert_eq!(
        world.sh(&["--init"], "grep Seccomp: /proc/1/status"),
        FILTERED
    );
    let unconfined = ["--security-opt", "seccomp=unconfined"];
    assert_eq!(world.sh(&unconfined, MODE), UNCONFINED);

    for (flags, mode) in [(&[][..], FILTERED), (&unconfined, UNCONFINED)] {
        let name = unique("filter");
        world.detach(&name, flags, &["sleep", "1000"]);
        let added = world.try_coracle(&["exec", &name, "sh", "-c", MODE]);
        assert_eq!(added.success(), mode);
        world.try_coracle(&["rm", "-f", &name]).success();
    }
}

fn what_the_default_profile_refuses_fails(world: &World) {
    // setns(2), also where the kernel would allow it: into the namespace that one is in.
    let join = "nsenter --uts=/proc/self/ns/uts true 2>&1; echo $?";
    let refused = world.sh(&[], join);
    assert!(refused.contains("Operation not permitted"), "{refused}");
    let allowed = world.sh(&["--cap-add", "SYS_ADMIN"], join);
    assert_eq!(allowed, "0\n");
    // Nested namespaces are the container's own business.
    assert_eq!(world.sh(&[], "unshare -U id -u"), "65534\n");
}

fn a_profile_of_ones_own_decides_and_is_kept(world: &World) {
    let profile = world.path("profile.json");
    let text = r#"{
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{
            "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28
        }]
    }"#;
    fs::write(&profile, text).expect("a profile");
    world.give_away(&profile);
    let option = format!("seccomp={}", profile.display());
    let script = "mkdir /tmp/x 2>&1; nsenter --uts=/proc/self/ns/uts true 2>&1";
    let output = world.sh(
        &["--security-opt", &option, "--cap-add", "SYS_ADMIN"],
        &format!("{script}; {MODE}"),
    );
    assert!(output.contains("No space left on device"), "{output}");
    assert!(output.ends_with(FILTERED), "{output}");
    assert_eq!(output.lines().count(), 2, "{output}");

    // For a later command too, whatever has become of the file.
    let name = unique("kept");
    world.detach(&name, &["--security-opt", &option], &["sleep", "1000"]);
    fs::remove_file(&profile).expect("a profile");
    let added = world.try_coracle(&["exec", &name, "mkdir", "/tmp/x"]);
    assert!(added.stderr.contains("No space left"), "{added:?}");
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn a_profile_that_cannot_be_used_stops_the_start(world: &World) {
    let garbage = world.path("garbage.json");
    fs::write(&garbage, "{\"defaultAction\": 7}").expect("a file");
    world.give_away(&garbage);
    let missing = world.path("missing.json");
    for (file, why) in [(&garbage, "profile in JSON"), (&missing, "No such file")] {
        let option = format!("seccomp={}", file.display());
        let outcome = world.run(&["--security-opt", &option], &["true"]);
        assert_eq!(outcome.code(), Some(125), "{outcome:?}");
        let named = file.display().to_string();
        assert!(
            outcome.stderr.contains(&named) && outcome.stderr.contains(why),
            "{outcome:?}"
        );
    }
    for option in ["seccomp", "proc-opts=hidepid=2", "nonsense"] {
        let outcome = world.run(&["--security-opt", option], &["true"]);
        assert_eq!(outcome.code(), Some(125), "{outcome:?}");
        assert!(
            outcome.stderr.contains("there are no-new-privileges"),
            "{outcome:?}"
        );
    }
}
