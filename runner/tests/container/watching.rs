//! What `events` tells of what happens, and `stats` of what containers take.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{World, cases, eventually, parent_of, unique, wait};

cases![
    a_containers_life_is_told,
    events_are_followed,
    an_end_that_nobody_saw_is_told_when_it_is_found,
    volumes_and_networks_are_told_of,
    what_is_asked_of_events_is_checked,
    what_a_container_takes_is_told,
    a_container_is_looked_at_again_and_again,
];

/// `coracle events` of what has happened.
fn told(world: &World, words: &[&str]) -> String {
    let words = [&["events", "--stream=false"], words].concat();
    world.try_coracle(&words).success().to_owned()
}

fn a_containers_life_is_told(world: &World) {
    let (name, later) = (unique("told"), unique("later"));
    let flags = ["--network", "none", "-l", "tier=front"];
    let words = [
        &["create", "--name", &name],
        &flags[..],
        &["--rootfs", "rootfs", "sleep", "1000"],
    ];
    let id = world
        .try_coracle(&words.concat())
        .success()
        .trim_end()
        .to_owned();
    world.try_coracle(&["start", &name]).success();
    world.try_coracle(&["exec", &name, "true"]).success();
    world.try_coracle(&["kill", &name]).success();
    world.try_coracle(&["rename", &name, &later]).success();
    world.try_coracle(&["rm", &later]).success();
    let of_it = format!("container={}", &id[..12]);
    let statuses = told(world, &["--filter", &of_it, "--format", "{{.Status}}"]);
    let expected = "create init start exec exec_died kill died cleanup rename remove";
    assert_eq!(
        statuses.split_whitespace().collect::<Vec<_>>().join(" "),
        expected
    );

    let died = told(
        world,
        &[
            "--filter",
            &of_it,
            "--filter",
            "event=died",
            "--format",
            "json",
        ],
    );
    let event: Value = serde_json::from_str(&died).expect("one line of JSON");
    assert_eq!(event["ID"], id);
    assert_eq!(event["Name"], name);
    assert_eq!(event["Type"], "container");
    assert_eq!(event["ContainerExitCode"], 137);
    assert_eq!(event["Attributes"]["tier"], "front");
    assert!(
        event["Time"]
            .as_str()
            .is_some_and(|time| time.ends_with('Z'))
    );
    let line = told(
        world,
        &["--filter", "label=tier=front", "--filter", "event=start"],
    );
    let end = format!(" container start {id} (image=, name={name}, tier=front)\n");
    assert!(line.ends_with(&end), "{line}");

    let ended = world.run(&["--name", &name], &["true"]);
    assert_eq!(ended.code(), Some(0));
    let of_it = format!("container={name}");
    let statuses = told(world, &["--filter", &of_it, "--format", "{{.Status}}"]);
    assert!(statuses.ends_with("attach\ndied\nremove\n"), "{statuses}");
    assert_eq!(told(world, &["--until", "1h"]), "");
    assert_eq!(told(world, &["--since", "2999-01-01T00:00:00Z"]), "");
}

fn events_are_followed(world: &World) {
    let name = unique("followed");
    let of_it = format!("container={name}");
    let format = "{{.Status}} {{.Name}}";
    // What has happened before it listens is not missed.
    let words = [
        "events", "--since", "1h", "--filter", &of_it, "--format", format,
    ];
    let mut events = world.start(words, Stdio::inherit());
    let mut lines = BufReader::new(events.stdout.take().expect("piped")).lines();
    let mut next = || lines.next().expect("a line").expect("text");
    for round in 0..3 {
        assert_eq!(world.run(&["--name", &name], &["true"]).code(), Some(0));
        for status in ["create", "init", "start", "attach", "died", "remove"] {
            assert_eq!(next(), format!("{status} {name}"), "{round}");
        }
    }
    events.kill().expect("killed");
    wait(&mut events);
}

fn an_end_that_nobody_saw_is_told_when_it_is_found(world: &World) {
    let name = unique("lost");
    world.detach(&name, &["--network", "none"], &["sleep", "1000"]);
    kill(
        Pid::from_raw(parent_of(world.init_of(&name))),
        Signal::SIGKILL,
    )
    .expect("killed");
    eventually("it is found", || {
        world
            .inspect(&name)
            .is_some_and(|seen| seen["status"] == "exited")
    });
    let of_it = format!("container={name}");
    let died = told(
        world,
        &[
            "--filter",
            &of_it,
            "--filter",
            "event=died",
            "--format",
            "{{.ContainerExitCode}}",
        ],
    );
    assert_eq!(died, "137\n");
    world.try_coracle(&["rm", &name]).success();
}

fn volumes_and_networks_are_told_of(world: &World) {
    let name = unique("thing");
    world.try_coracle(&["volume", "create", &name]).success();
    world.try_coracle(&["volume", "rm", &name]).success();
    world.try_coracle(&["network", "create", &name]).success();
    world.try_coracle(&["network", "rm", &name]).success();
    for kind in ["volume", "network"] {
        let of_kind = format!("type={kind}");
        let lines = told(world, &["--filter", &of_kind]);
        let lines: Vec<_> = lines.lines().collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(
            lines[0].ends_with(&format!(" {kind} create {name}")),
            "{lines:?}"
        );
        assert!(
            lines[1].ends_with(&format!(" {kind} remove {name}")),
            "{lines:?}"
        );
    }
}

fn what_is_asked_of_events_is_checked(world: &World) {
    for (words, said) in [
        (&["--filter", "colour=red"][..], "no filter"),
        (&["--filter", "type=cat"], "volume"),
        (&["--since", "soon"], "how long ago"),
        (&["--format", "table {{.ID}}"], "one by one"),
    ] {
        let refused = world.try_coracle(&[&["events", "--stream=false"], words].concat());
        assert_eq!(refused.code(), Some(125), "{refused:?}");
        assert!(refused.stderr.contains(said), "{refused:?}");
    }
}

fn what_a_container_takes_is_told(world: &World) {
    let (name, ended) = (unique("busy"), unique("ended"));
    world.detach(
        &name,
        &["--network", "none"],
        &["sh", "-c", "while :; do :; done"],
    );
    let words = [
        "create",
        "--name",
        &ended,
        "--network",
        "none",
        "--rootfs",
        "rootfs",
        "true",
    ];
    world.try_coracle(&words).success();
    let look = || -> Value {
        let seen = world.try_coracle(&["stats", "--no-stream", "--format", "json", &name]);
        let rows: Vec<Value> = serde_json::from_str(seen.success()).expect("JSON");
        rows.into_iter().next().expect("a row")
    };
    eventually("it has taken time", || look()["cpu_time"] != "0s");
    let row = look();
    assert_eq!(row["name"], name);
    assert_eq!(
        (&row["pids"], &row["net_io"]),
        (&"1".into(), &"0B / 0B".into())
    );
    let memory = row["mem_usage"].as_str().expect("a text");
    assert!(
        !memory.contains("--") && !memory.starts_with("0B"),
        "{memory}"
    );
    assert!(
        row["cpu_percent"]
            .as_str()
            .is_some_and(|share| share.ends_with('%'))
    );

    let all = world.try_coracle(&[
        "stats",
        "-a",
        "--no-stream",
        "--format",
        "{{.Name}} {{.PIDS}}",
    ]);
    let all = all.success();
    assert!(
        all.contains(&format!("{ended} --\n")) && all.contains(&format!("{name} 1\n")),
        "{all}"
    );
    let table = world.try_coracle(&["stats", "--no-stream"]);
    let mut lines = table.success().lines();
    assert!(
        lines
            .next()
            .is_some_and(|head| head.starts_with("ID  ") && head.ends_with("AVG CPU %"))
    );
    assert_eq!(lines.count(), 1);
    let refused = world.try_coracle(&["stats", "--no-stream", "no-such"]);
    assert_eq!(refused.code(), Some(125));
    world.try_coracle(&["rm", "-f", &name, &ended]).success();
}

fn a_container_is_looked_at_again_and_again(world: &World) {
    let name = unique("watched");
    world.detach(&name, &["--network", "none"], &["sleep", "1000"]);
    let words = ["stats", "-i", "1", "--format", "{{.Name}}", &name];
    let mut stats = world.start(words, Stdio::inherit());
    let mut lines = BufReader::new(stats.stdout.take().expect("piped")).lines();
    for _ in 0..2 {
        assert_eq!(lines.next().expect("a line").expect("text"), name);
    }
    stats.kill().expect("killed");
    wait(&mut stats);
    world.try_coracle(&["rm", "-f", &name]).success();
}
