//! The health of containers: how it is checked, shown, and what follows.

use serde_json::Value;

use crate::harness::{World, cases, eventually, parent_of, unique};

cases![
    a_check_is_run_by_hand,
    checks_follow_each_other,
    failures_early_do_not_count,
    a_check_that_takes_too_long_is_ended,
    an_unhealthy_container_is_dealt_with,
    a_check_is_the_containers_own,
    words_are_checked,
];

/// By hand only.
const BY_HAND: [&str; 4] = ["--network", "none", "--health-interval", "disable"];

fn detach(world: &World, name: &str, flags: &[&str]) {
    world.detach(name, flags, &["sleep", "1000"]);
}

fn state(world: &World, name: &str) -> Value {
    let seen = world.try_coracle(&["inspect", "-f", "{{json .State.Health}}", name]);
    serde_json::from_str(seen.success()).expect("JSON")
}

fn status(world: &World, name: &str) -> String {
    let status = &state(world, name)["Status"];
    status.as_str().expect("a status").to_owned()
}

fn check(world: &World, name: &str) -> (Option<i32>, String) {
    let checked = world.try_coracle(&["healthcheck", "run", name]);
    (checked.code(), checked.stdout)
}

fn listed(world: &World, filter: &str) -> String {
    let listed = world.try_coracle(&["ps", "--filter", filter, "--format", "{{.Names}}"]);
    listed.success().to_owned()
}

fn a_check_is_run_by_hand(world: &World) {
    let name = unique("checked");
    let test = "echo out; echo err >&2; test -e /good";
    let flags = [
        &BY_HAND[..],
        &["--health-cmd", test, "--health-retries", "2"],
    ]
    .concat();
    detach(world, &name, &flags);
    assert_eq!(state(world, &name)["Log"], Value::Null);
    assert_eq!(status(world, &name), "starting");
    let unhealthy = (Some(1), "unhealthy\n".to_owned());
    assert_eq!(check(world, &name), unhealthy);
    assert_eq!(status(world, &name), "starting");
    assert_eq!(check(world, &name), unhealthy);
    assert_eq!(status(world, &name), "unhealthy");
    assert_eq!(listed(world, "health=unhealthy"), format!("{name}\n"));

    world
        .try_coracle(&["exec", &name, "touch", "/good"])
        .success();
    assert_eq!(check(world, &name), (Some(0), String::new()));
    let row = world.try_coracle(&["ps", "--format", "{{.Status}}"]);
    assert!(row.success().ends_with(" (healthy)\n"), "{row:?}");
    assert_eq!(listed(world, "health=unhealthy"), "");
    let waited = world.try_coracle(&["wait", "--condition", "healthy", &name]);
    assert_eq!(waited.success(), "-1\n");
    let health = state(world, &name);
    let codes: Vec<_> = health["Log"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|probe| &probe["ExitCode"])
        .collect();
    assert_eq!(codes, [1, 1, 0]);
    assert_eq!(
        health["Log"][2]["Output"]
            .as_str()
            .map(|said| said.contains("out") && said.contains("err")),
        Some(true)
    );
    assert_eq!(health["FailingStreak"], 0);
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn checks_follow_each_other(world: &World) {
    let name = unique("looked-after");
    let test = r#"["sh", "-c", "echo x >>/checks; ! test -e /bad"]"#;
    let flags = [
        "--network",
        "none",
        "--health-cmd",
        test,
        "--health-interval",
        "50ms",
        "--health-retries",
        "1",
    ];
    detach(world, &name, &flags);
    let is = |wanted: &str| {
        let filter = format!("health={wanted}");
        eventually(wanted, || listed(world, &filter) == format!("{name}\n"));
    };
    is("healthy");
    world
        .try_coracle(&["exec", &name, "touch", "/bad"])
        .success();
    is("unhealthy");
    world.try_coracle(&["exec", &name, "rm", "/bad"]).success();
    is("healthy");
    let count = world.try_coracle(&["exec", &name, "wc", "-l", "/checks"]);
    let count = count
        .success()
        .split(' ')
        .next()
        .and_then(|n| n.parse().ok());
    assert!(count.is_some_and(|count: u32| count >= 3), "{count:?}");
    assert!(
        state(world, &name)["Log"]
            .as_array()
            .is_some_and(|log| log.len() <= 5)
    );
    // A container that has ended is not checked, and a new life begins with nothing known.
    world.try_coracle(&["stop", "-t", "0", &name]).success();
    assert_eq!(check(world, &name).0, Some(125));
    world.try_coracle(&["start", &name]).success();
    is("healthy");
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn failures_early_do_not_count(world: &World) {
    let name = unique("early");
    let more = [
        "--health-cmd",
        "false",
        "--health-retries",
        "1",
        "--health-start-period",
        "1h",
    ];
    detach(world, &name, &[&BY_HAND[..], &more].concat());
    assert_eq!(check(world, &name).0, Some(1));
    assert_eq!(status(world, &name), "starting");
    assert_eq!(state(world, &name)["FailingStreak"], 0);
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn a_check_that_takes_too_long_is_ended(world: &World) {
    let name = unique("slow");
    let more = [
        "--health-cmd",
        "sleep 999",
        "--health-timeout",
        "100ms",
        "--health-retries",
        "1",
    ];
    detach(world, &name, &[&BY_HAND[..], &more].concat());
    let checked = world.try_coracle(&["healthcheck", "run", &name]);
    assert_eq!(checked.code(), Some(125), "{checked:?}");
    assert!(checked.stderr.contains("longer than 100ms"), "{checked:?}");
    assert_eq!(state(world, &name)["Log"][0]["ExitCode"], -1);
    assert_eq!(status(world, &name), "unhealthy");
    let processes = world.try_coracle(&["top", &name, "args"]);
    assert!(!processes.success().contains("999"), "{processes:?}");
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn an_unhealthy_container_is_dealt_with(world: &World) {
    let more = [
        "--health-cmd",
        "! test -e /bad",
        "--health-interval",
        "50ms",
        "--health-retries",
        "1",
    ];
    let looked_after = |name: &str, action: &str| {
        let flags = [
            &["--network", "none", "--health-on-failure", action],
            &more[..],
        ]
        .concat();
        let command = [
            "sh",
            "-c",
            "trap 'exit 3' TERM; while :; do sleep 1 & wait; done",
        ];
        world.detach(name, &flags, &command);
        world.init_of(name)
    };
    for (action, code) in [("kill", "137\n"), ("stop", "3\n")] {
        let name = unique(action);
        looked_after(&name, action);
        world
            .try_coracle(&["exec", &name, "touch", "/bad"])
            .success();
        assert_eq!(world.try_coracle(&["wait", &name]).success(), code);
        world.try_coracle(&["rm", "-f", &name]).success();
    }
    let name = unique("restart");
    let first = looked_after(&name, "restart");
    let monitor = parent_of(first);
    world
        .try_coracle(&["exec", &name, "touch", "/bad"])
        .success();
    eventually("it runs again", || {
        let pid = world.inspect(&name).expect("the container")["pid"].as_i64();
        pid.is_some_and(|pid| pid != i64::from(first))
    });
    assert!(world.inspect(&name).is_some() && monitor > 0);
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn a_check_is_the_containers_own(world: &World) {
    let name = unique("own");
    let more = [
        "-e",
        "WORD=own",
        "--health-cmd",
        "echo $WORD; id -u; busybox yes",
    ];
    detach(
        world,
        &name,
        &[&BY_HAND[..], &more, &["--health-timeout", "300ms"]].concat(),
    );
    // It never stops to write, and is ended all the same.
    assert_eq!(check(world, &name).0, Some(125));
    let said = state(world, &name)["Log"][0]["Output"]
        .as_str()
        .expect("a text")
        .to_owned();
    assert!(
        said.starts_with("own\n0\ny\n") && said.len() <= 500,
        "{said}"
    );
    world.try_coracle(&["rm", "-f", &name]).success();

    let missing = unique("missing");
    detach(
        world,
        &missing,
        &[&BY_HAND[..], &["--health-cmd", r#"["no-such"]"#]].concat(),
    );
    assert_eq!(check(world, &missing).0, Some(1));
    let said = state(world, &missing)["Log"][0]["Output"].to_string();
    assert!(said.contains("no-such"), "{said}");
    world.try_coracle(&["rm", "-f", &missing]).success();
}

fn words_are_checked(world: &World) {
    for (flags, said) in [
        (&["--health-cmd", "x", "--no-healthcheck"][..], "together"),
        (&["--health-on-failure", "kill"], "health check"),
        (
            &["--health-cmd", "x", "--health-on-failure", "pray"],
            "restart",
        ),
        (&["--health-cmd", "x", "--health-retries", "0"], "greater"),
        (
            &["--health-cmd", "x", "--health-interval", "7"],
            "expected a duration",
        ),
    ] {
        let words = [&["create"], flags, &["--rootfs", "rootfs", "true"]].concat();
        let refused = world.try_coracle(&words);
        assert_eq!(refused.code(), Some(125), "{flags:?}");
        assert!(refused.stderr.contains(said), "{refused:?}");
    }
    let name = unique("unchecked");
    world.detach(&name, &["--network", "none"], &["sleep", "1000"]);
    assert_eq!(check(world, &name).0, Some(125));
    assert_eq!(check(world, "no-such").0, Some(125));
    assert_eq!(listed(world, "health=none"), format!("{name}\n"));
    world.try_coracle(&["rm", "-f", &name]).success();
}
