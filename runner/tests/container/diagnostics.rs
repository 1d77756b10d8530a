//! What coracle logs about itself: where it can be read, and that the container never sees it.

use std::fs;
use std::path::PathBuf;

use crate::harness::{World, cases, finish, unique};

cases![
    each_process_logs_where_it_can_be_read,
    an_added_command_has_its_lines_in_the_same_file,
    the_environment_says_how_much_as_well,
    by_default_nothing_is_said_of_what_goes_well,
    output_that_a_full_disk_kept_out_is_told_of,
];

fn each_process_logs_where_it_can_be_read(world: &World) {
    let name = unique("log");
    // With a network where there can be one: the helper logs, too.
    let with_helper = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .is_ok();
    let network = if with_helper { "default" } else { "none" };
    let kept = ["--rm=false", "--name", &name];
    let flags = [&kept[..], &["--log-level=debug", "--network", network]].concat();
    let said = world.run(&flags, &["sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((said.code(), &*said.stdout), (Some(3), "out\n"));
    for line in [
        "the monitor was started pid=",
        "the container has ended code=3",
        "\nerr\n",
    ] {
        assert!(
            format!("\n{}", said.stderr).contains(line),
            "{line}: {}",
            said.stderr
        );
    }

    let log = fs::read_to_string(process_log(world, &name)).expect("coracle.log");
    let shown = world.inspect(&name).expect("recorded");
    let id = &shown["id"].as_str().expect("text")[..12];
    let monitor = format!("monitor{{container=\"{id}\"}}: ");
    let helper = with_helper.then_some("INFO the network is up interface=\"tap0\"");
    let expected = [
        format!("{monitor}the container runs pid="),
        format!("{monitor}the container's init has ended code=3"),
        "init: the container's program is prepared".to_owned(),
    ];
    for line in expected.iter().map(String::as_str).chain(helper) {
        assert!(log.contains(line), "{line}: {log}");
    }

    // What it wrote itself, and nothing else.
    let logs = world.try_coracle(&["logs", &name]);
    assert_eq!((&*logs.stdout, &*logs.stderr), ("out\n", "err\n"));
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn an_added_command_has_its_lines_in_the_same_file(world: &World) {
    let name = unique("log");
    world.detach(&name, &["--network=none"], &["sleep", "1000"]);
    let exec = ["exec", &name, "sh", "-c", "ls /proc/self/fd; exit 3"];
    let said = world.try_coracle(&[&["--log-level=debug"], &exec[..]].concat());
    assert_eq!((said.code(), &*said.stdout), (Some(3), "0\n1\n2\n3\n"));
    assert!(said.stderr.contains("the launcher was started pid="));
    let file = process_log(world, &name);
    let log = fs::read_to_string(&file).expect("coracle.log");
    for line in [
        "exec: the command runs pid=",
        "exec: the command has ended code=3",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
    // By default nothing is added, and without the file it goes as well.
    assert_eq!(world.try_coracle(&exec).code(), Some(3));
    assert_eq!(fs::read_to_string(&file).expect("coracle.log"), log);
    fs::remove_dir_all(file.parent().expect("a directory")).expect("removed");
    assert_eq!(world.try_coracle(&exec).code(), Some(3));
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn the_environment_says_how_much_as_well(world: &World) {
    let started = "the monitor was started";
    for (value, flags, expected) in [
        ("debug", &[][..], true),
        ("runner::process=trace", &[][..], false),
        ("debug", &["--log-level=warn"][..], false),
    ] {
        let flags = [flags, &["--rm", "--network=none"]].concat();
        let mut command = world.coracle(world.run_args(&flags, &["true"]));
        command.env("CORACLE_LOG", value);
        let said = finish(command);
        assert_eq!(said.code(), Some(0));
        assert_eq!(said.stderr.contains(started), expected, "{}", said.stderr);
    }
    let mut command = world.coracle(["ps"]);
    command.env("CORACLE_LOG", "runner=loud");
    let said = finish(command);
    assert!(
        said.stderr
            .contains("CORACLE_LOG: \"runner=loud\" is not a log filter"),
        "{}",
        said.stderr
    );
    assert_eq!(said.code(), Some(0));
}

fn by_default_nothing_is_said_of_what_goes_well(world: &World) {
    let name = unique("log");
    world.detach(&name, &["--network=none"], &["true"]);
    world.try_coracle(&["logs", "-f", &name]).success();
    let log = fs::read_to_string(process_log(world, &name)).expect("coracle.log");
    assert_eq!(log, "");
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn output_that_a_full_disk_kept_out_is_told_of(world: &World) {
    let name = unique("log");
    let id = world.detach(&name, &["--network=none"], &["echo", "there"]);
    let followed = world.try_coracle(&["logs", "-f", &name]);
    assert_eq!(followed.success(), "there\n");
    let log = world.containers().join(id).join("log");
    let mut text = fs::read_to_string(&log).expect("the log");
    let time = text[..30].to_owned();
    text += &format!("{time} lost F 4096\n{time} stdout F back\n");
    fs::write(&log, text).expect("the log");
    let said = world.try_coracle(&["logs", &name]);
    assert_eq!(said.success(), "there\nback\n");
    assert!(
        said.stderr
            .starts_with("coracle: warning: 4096 bytes of output are missing"),
        "{}",
        said.stderr
    );
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn process_log(world: &World, name: &str) -> PathBuf {
    let shown = world.inspect(name).expect("recorded");
    let record = world.containers().join(shown["id"].as_str().expect("text"));
    let record = fs::read(record.join("config.json")).expect("the record");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
    PathBuf::from(record["run_dir"].as_str().expect("text")).join("coracle.log")
}
