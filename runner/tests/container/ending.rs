//! How containers are asked to end: which signal reaches which process, and who waits for how long.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{
    Outcome, World, cases, children_of, eventually, finish, is_running, need_tun, parent_of, skip,
    unique, wait,
};

cases![
    a_database_survives_a_signal_to_every_process,
    the_network_stays_until_the_container_has_ended,
    a_monitor_that_is_asked_to_leave_stops_its_container,
    a_container_outlives_its_main_for_as_long_as_it_takes_to_stop,
    many_containers_stop_under_one_deadline,
    a_stop_that_takes_time_says_why,
    an_init_passes_signals_on_and_reaps,
    a_real_time_signal_is_an_exit_code,
    a_command_that_is_stopped_before_it_begins_keeps_nobody,
    signals_that_mean_nothing_end_no_monitor,
    real_time_signals_reach_the_command,
    a_stopped_caller_holds_nobody_up,
];

/// Ends in its own time, with a code that tells that it was asked.
const SLOW_TO_END: &str =
    "trap 'sleep 1; exit 9' TERM; echo ready; while :; do sleep 0.1 & wait $!; done";

fn wait_for_line(world: &World, name: &str, line: &str) {
    eventually("the container is ready", || {
        let logs = world.try_coracle(&["logs", name]);
        logs.stdout.lines().any(|found| found == line)
    });
}

/// Asks every process of a container to end, as systemd does with a service and the machine when it
/// shuts down.
fn signal_all(world: &World, name: &str) {
    let init = world.init_of(name);
    let monitor = parent_of(init);
    let mut pids = children_of(monitor);
    pids.push(monitor);
    assert!(
        pids.contains(&init) && pids.len() > 2,
        "the helper is one of {pids:?}"
    );
    for pid in pids {
        kill(Pid::from_raw(pid), Signal::SIGTERM).expect("signalled");
    }
}

/// The network helper of a container.
fn helper_of(world: &World, name: &str) -> i32 {
    let init = world.init_of(name);
    let mut others = children_of(parent_of(init))
        .into_iter()
        .filter(|pid| *pid != init);
    others.next().expect("a helper")
}

/// Waits for the end of a container, and returns its exit code.
fn exit_code(world: &World, name: &str) -> i64 {
    let code = || world.inspect(name).expect("kept")["exit_code"].as_i64();
    eventually("the container has ended", || code().is_some());
    code().expect("it has ended")
}

fn a_database_survives_a_signal_to_every_process(world: &World) {
    need_tun();
    let (Some(server), Some(client)) = (find("redis-server"), find("redis-cli")) else {
        skip("there is no redis-server here (package redis-server)");
    };
    for program in [&server, &client] {
        add_program(&world.rootfs(), program);
    }
    let name = unique("redis");
    let data = world.path("redis");
    fs::create_dir(&data).expect("a directory");
    world.give_to_container(&data);
    let volume = format!("{}:/data", data.display());
    let server = server.to_str().expect("plain");
    let command = [
        server,
        "--dir",
        "/data",
        "--save",
        "3600 1",
        "--unixsocket",
        "/tmp/socket",
    ];
    world.detach(&name, &["-v", &volume], &command);
    let set = |words: &[&str]| -> Outcome {
        let fixed = ["exec", &name, "redis-cli", "-s", "/tmp/socket"];
        world.try_coracle(&[&fixed, words].concat())
    };
    eventually("the server answers", || {
        set(&["set", "key", "value"]).stdout == "OK\n"
    });

    signal_all(world, &name);
    assert_eq!(
        exit_code(world, &name),
        0,
        "{:?}",
        world.try_coracle(&["logs", &name])
    );
    let saved = fs::read(data.join("dump.rdb")).expect("what the server has saved");
    assert!(saved.windows(5).any(|window| window == b"value"));
    world.try_coracle(&["rm", &name]).success();
}

/// What is still to be sent when a shutdown begins has a way out.
fn the_network_stays_until_the_container_has_ended(world: &World) {
    need_tun();
    let name = unique("late");
    world.detach(&name, &[], &["sh", "-c", SLOW_TO_END]);
    wait_for_line(world, &name, "ready");
    let helper = helper_of(world, &name);
    signal_all(world, &name);
    std::thread::sleep(Duration::from_millis(500));
    assert!(is_running(helper));
    assert_eq!(exit_code(world, &name), 9);
    eventually("the helper leaves with the monitor", || !is_running(helper));
    world.try_coracle(&["rm", &name]).success();
}

fn a_monitor_that_is_asked_to_leave_stops_its_container(world: &World) {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let name = unique("leave");
        world.detach(&name, &["--network", "none"], &["sh", "-c", SLOW_TO_END]);
        wait_for_line(world, &name, "ready");
        let monitor = parent_of(world.init_of(&name));
        kill(Pid::from_raw(monitor), signal).expect("signalled");
        assert_eq!(exit_code(world, &name), 9, "{signal}");
        world.try_coracle(&["rm", &name]).success();
    }
}

fn a_container_outlives_its_main_for_as_long_as_it_takes_to_stop(world: &World) {
    let name = unique("orphan");
    let marker = world.path("marker");
    fs::create_dir(&marker).expect("a directory");
    world.give_to_container(&marker);
    let script = "trap 'sleep 1; touch /m/ended; exit 0' TERM; echo ready; while :; do sleep 0.1 & wait $!; done";
    let volume = format!("{}:/m", marker.display());
    let flags = ["--name", &name, "-v", &volume];
    let mut main = world
        .coracle(world.run_args(&flags, &["sh", "-c", script]))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("coracle");
    wait_for_line(world, &name, "ready");
    main.kill().expect("killed");
    wait(&mut main);
    eventually("the container has ended in its own time", || {
        marker.join("ended").exists() && world.inspect(&name).is_none()
    });
}

fn many_containers_stop_under_one_deadline(world: &World) {
    const SECONDS: u64 = 4;
    let names: Vec<String> = (0..4).map(|_| unique("deaf")).collect();
    for name in &names {
        world.detach(name, &["--network", "none"], &["sleep", "1000"]);
    }
    let since = Instant::now();
    let mut stop = vec!["stop".to_owned(), "-t".to_owned(), SECONDS.to_string()];
    stop.extend(names.iter().cloned());
    let stopped = finish(world.coracle(&stop));
    // One after the other they would take four times as long.
    assert!(
        since.elapsed() < Duration::from_secs(3 * SECONDS),
        "{:?}",
        since.elapsed()
    );
    assert_eq!(stopped.success().lines().collect::<Vec<_>>(), names);
    let mut remove = vec!["rm".to_owned()];
    remove.extend(names);
    finish(world.coracle(&remove)).success();
}

fn a_stop_that_takes_time_says_why(world: &World) {
    let name = unique("why");
    world.detach(&name, &["--network", "none"], &["sleep", "1000"]);
    let stopped = world.try_coracle(&["stop", "-t", "3", &name]);
    stopped.success();
    for part in [&*name, "--init", "3 s"] {
        assert!(stopped.stderr.contains(part), "{stopped:?}");
    }
    world.try_coracle(&["rm", &name]).success();
}

fn an_init_passes_signals_on_and_reaps(world: &World) {
    let name = unique("init");
    // Its orphan is process 1's to reap.
    let script = "(sh -c 'sleep 0.1; exit 3' &); trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    world.detach(
        &name,
        &["--network", "none", "--init"],
        &["sh", "-c", script],
    );
    wait_for_line(world, &name, "ready");
    let ps = || {
        world
            .try_coracle(&["exec", &name, "ps", "-o", "pid,stat,args"])
            .stdout
    };
    assert!(
        ps().lines().any(|line| line.contains("coracle-init")),
        "{}",
        ps()
    );
    eventually("no zombie is left", || !ps().contains(" Z "));
    world.try_coracle(&["stop", &name]).success();
    assert_eq!(exit_code(world, &name), 5);
    world.try_coracle(&["rm", &name]).success();
    // A program without handlers ends like anywhere else.
    world.detach(&name, &["--network", "none", "--init"], &["sleep", "1000"]);
    world.try_coracle(&["stop", "-t", "50", &name]).success();
    assert_eq!(exit_code(world, &name), 128 + 15);
    world.try_coracle(&["rm", &name]).success();
    assert_eq!(
        world.run(&["--init"], &["no-such-program"]).code(),
        Some(127)
    );
    assert_eq!(
        world.run(&["--init"], &["sh", "-c", "exit 4"]).code(),
        Some(4)
    );
}

fn a_real_time_signal_is_an_exit_code(world: &World) {
    let kill_itself = ["sh", "-c", "kill -40 $$; exit 1"];
    assert_eq!(world.run(&["--init"], &kill_itself).code(), Some(128 + 40));
    let name = unique("rt");
    world.detach(&name, &["--network", "none"], &["sleep", "1000"]);
    let exec = [&["exec", &name][..], &kill_itself].concat();
    assert_eq!(world.try_coracle(&exec).code(), Some(128 + 40));
    let unshare = [&["unshare"][..], &kill_itself].concat();
    // It has become the command.
    assert_eq!(world.try_coracle(&unshare).status.signal(), Some(40));
    world.try_coracle(&["rm", "-f", &name]).success();
}

/// The container stops each process that turns up beside its own, as fast as it can: of several
/// commands one is caught between its birth in the container and its execution.
fn a_command_that_is_stopped_before_it_begins_keeps_nobody(world: &World) {
    let name = unique("frozen");
    let script = "while :; do for p in /proc/[0-9]*; do p=${p#/proc/}; [ $p = 1 ] || kill -STOP $p; done; done 2>/dev/null";
    world.detach(&name, &["--network", "none"], &["sh", "-c", script]);
    let init = world.init_of(&name);
    for _ in 0..5 {
        let mut exec = world
            .coracle(["exec", &name, "true"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("coracle");
        std::thread::sleep(Duration::from_millis(300));
        let is_over = exec.try_wait().expect("a child").is_some();
        if is_over || is_executed(init) {
            // It was stopped when it ran already, or not at all: the next one may be caught.
            let _ = exec.kill();
            wait(&mut exec);
            continue;
        }
        let pid = Pid::from_raw(exec.id().cast_signed());
        kill(pid, Signal::SIGTERM).expect("signalled");
        assert_eq!(wait(&mut exec).code(), Some(128 + 15));
        eventually("nothing of the command is left", || {
            children_in(init).is_empty()
        });
        break;
    }
    world.try_coracle(&["rm", "-f", &name]).success();
    assert!(!is_running(init));
}

fn signals_that_mean_nothing_end_no_monitor(world: &World) {
    let name = unique("stray");
    world.detach(&name, &["--network", "none"], &["sh", "-c", SLOW_TO_END]);
    wait_for_line(world, &name, "ready");
    let monitor = parent_of(world.init_of(&name));
    for number in (1..=64).filter(|n| ![1, 2, 3, 9, 15, 17, 19].contains(n)) {
        let sent = Command::new("kill")
            .args([&format!("-{number}"), &monitor.to_string()])
            .status();
        assert!(sent.expect("kill").success(), "{number}");
    }
    world.try_coracle(&["stop", &name]).success();
    assert_eq!(exit_code(world, &name), 9);
    world.try_coracle(&["rm", &name]).success();
}

fn real_time_signals_reach_the_command(world: &World) {
    let script = "trap 'exit 21' 40; echo ready; while :; do sleep 0.1; done";
    let mut main = world.start(world.run_args(&[], &["sh", "-c", script]), Stdio::null());
    let mut ready = [0; 5];
    std::io::Read::read_exact(main.stdout.as_mut().expect("piped"), &mut ready).expect("ready");
    let sent = Command::new("kill")
        .args(["-40", &main.id().to_string()])
        .status();
    assert!(sent.expect("kill").success());
    assert_eq!(wait(&mut main).code(), Some(21));
}

/// One that is stopped as a job, with an output that it does not read.
fn a_stopped_caller_holds_nobody_up(world: &World) {
    let name = unique("job");
    let script = "trap 'exit 4' TERM; while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done";
    let flags = ["--name", &name];
    let mut main = world
        .coracle(world.run_args(&flags, &["sh", "-c", script]))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("coracle");
    eventually("it runs", || {
        world.inspect(&name).is_some_and(|row| row["pid"].is_i64())
    });
    let pid = Pid::from_raw(main.id().cast_signed());
    kill(pid, Signal::SIGSTOP).expect("stopped");
    // The pipes to it are full by then.
    std::thread::sleep(Duration::from_millis(500));
    world.try_coracle(&["stop", "-t", "50", &name]).success();
    assert!(
        world.inspect(&name).is_none(),
        "it has ended, and is forgotten"
    );
    kill(pid, Signal::SIGCONT).expect("continued");
    wait(&mut main);
}

/// The processes of a container besides its first.
fn children_in(init: i32) -> Vec<i32> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let container = namespace(init);
    fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != init && container.is_some() && namespace(*pid) == container)
        .collect()
}

/// Whether a command that was added to the container has been executed: it is no coracle any more.
fn is_executed(init: i32) -> bool {
    let name = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    children_in(init)
        .iter()
        .any(|pid| !name(pid).starts_with("coracle"))
}

fn find(program: &str) -> Option<std::path::PathBuf> {
    ["/usr/bin", "/bin", "/usr/local/bin"]
        .map(|dir| Path::new(dir).join(program))
        .into_iter()
        .find(|path| path.exists())
}

/// Copies a program of this machine into a tree, with the libraries that it needs.
fn add_program(tree: &Path, program: &Path) {
    let listed = Command::new("ldd").arg(program).output().expect("ldd");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let libraries = listed
        .split_ascii_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(Path::new);
    for file in libraries.chain([program]) {
        let place = tree.join(file.strip_prefix("/").expect("absolute"));
        fs::create_dir_all(place.parent().expect("a directory")).expect("made");
        fs::copy(file, place).expect("copied");
    }
}
