//! How containers begin and end, and what the other commands make of them.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{
    World, cases, collect, eventually, finish, is_running, parent_of, unique, wait,
};

cases![
    exit_codes_tell_what_happened,
    a_port_that_is_taken_is_known_before_anything_is_made,
    a_container_can_be_detached_looked_at_and_stopped,
    a_container_that_does_not_listen_is_killed,
    commands_can_be_added,
    signals_reach_the_container,
    whichever_process_is_killed_nothing_stays,
    files_of_other_users_are_removed_with_the_container,
    a_container_is_removed_with_the_ids_that_it_was_made_with,
];

fn exit_codes_tell_what_happened(world: &World) {
    assert_eq!(world.run(&[], &["sh", "-c", "exit 3"]).code(), Some(3));
    assert_eq!(
        world
            .run(&[], &["sh", "-c", "sh -c 'kill -9 $$'; exit $?"])
            .code(),
        Some(137)
    );
    assert_eq!(world.run(&["--no-such-flag"], &["true"]).code(), Some(125));
    for network in ["container:other", "no-such", "none,no-such"] {
        let refused = world.run(&["--network", network], &["true"]);
        assert_eq!(refused.code(), Some(125), "{refused:?}");
    }
    assert_eq!(world.run(&[], &[]).code(), Some(125));
    assert_eq!(world.run(&[], &["/etc"]).code(), Some(126));
    assert_eq!(world.run(&["-w", "/no/such"], &["true"]).code(), Some(126));
    assert_eq!(world.run(&[], &["no-such-program"]).code(), Some(127));
    assert_eq!(world.run(&[], &["/no/such/program"]).code(), Some(127));
    let missing = world.try_coracle(&["run", "--pull=never", "some/image"]);
    assert_eq!(missing.code(), Some(125));
}

fn a_port_that_is_taken_is_known_before_anything_is_made(world: &World) {
    let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = holder.local_addr().expect("bound").port();
    let (name, publish) = (unique("port"), format!("127.0.0.1:{port}:80"));
    let rootfs = world.rootfs();
    let args = [
        "run",
        "--name",
        &name,
        "-p",
        &publish,
        "--rootfs",
        rootfs.to_str().expect("plain"),
        "true",
    ];
    let refused = world.try_coracle(&args);
    assert_eq!(refused.code(), Some(126));
    assert!(
        refused.stderr.contains(&format!("127.0.0.1:{port}")),
        "{refused:?}"
    );
    assert!(world.inspect(&name).is_none());
}

fn a_container_can_be_detached_looked_at_and_stopped(world: &World) {
    let name = unique("life");
    // PID 1 has no handlers of its own: the trap is what makes it end at SIGTERM.
    let script = "trap 'exit 7' TERM; echo ready; echo oops >&2; while :; do sleep 1 & wait; done";
    let id = world.detach(&name, &["--network", "none"], &["sh", "-c", script]);
    assert!(
        id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{id:?}"
    );

    let again = world.try_coracle(&["run", "--name", &name, "--rootfs", "rootfs", "true"]);
    assert_eq!(again.code(), Some(125));
    assert!(again.stderr.contains(&id[..12]), "{again:?}");

    eventually("the log has both lines", || {
        let logs = world.try_coracle(&["logs", &name]);
        (logs.success(), &*logs.stderr) == ("ready\n", "oops\n")
    });
    assert_eq!(world.inspect(&name).expect("listed")["status"], "running");
    assert!(world.try_coracle(&["ps"]).success().contains(&id[..12]));
    assert!(
        world
            .try_coracle(&["ps", "-q"])
            .success()
            .lines()
            .any(|line| line == &id[..12])
    );

    let refused = world.try_coracle(&["rm", &name]);
    assert_eq!(refused.code(), Some(2));
    assert_eq!(
        world.try_coracle(&["stop", &name]).success(),
        format!("{name}\n")
    );
    let ended = world.inspect(&name).expect("kept");
    assert_eq!(
        (&ended["status"], &ended["exit_code"]),
        (&"exited".into(), &7.into())
    );
    assert_eq!(
        world.try_coracle(&["exec", &name, "true"]).code(),
        Some(125)
    );

    assert_eq!(
        world.try_coracle(&["rm", &id[..12]]).success(),
        format!("{}\n", &id[..12])
    );
    assert!(world.inspect(&name).is_none());
    assert_eq!(world.try_coracle(&["rm", &name]).code(), Some(1));
    assert_eq!(world.try_coracle(&["rm", "-f", &name]).code(), Some(0));
}

fn a_container_that_does_not_listen_is_killed(world: &World) {
    let name = unique("deaf");
    world.detach(&name, &["--network", "none"], &["sh", "-c", "sleep 1000"]);
    world.try_coracle(&["stop", "-t", "0", &name]).success();
    assert_eq!(world.inspect(&name).expect("kept")["exit_code"], 137);
    world.try_coracle(&["rm", &name]).success();

    world.detach(
        &name,
        &["--network", "none"],
        &[
            "sh",
            "-c",
            "trap 'exit 9' USR1; while :; do sleep 1 & wait; done",
        ],
    );
    let init = world.init_of(&name);
    eventually("the handler is set", || {
        // It may have ended since the last look.
        world.try_coracle(&["kill", "-s", "SIGUSR1", &name]);
        !is_running(init)
    });
    eventually("the end is recorded", || {
        world.inspect(&name).expect("kept")["exit_code"] == 9
    });
    assert_eq!(world.try_coracle(&["kill", &name]).code(), Some(125));
    world.try_coracle(&["rm", &name]).success();
}

fn commands_can_be_added(world: &World) {
    let name = unique("exec");
    world.detach(&name, &["--network", "none"], &["sh", "-c", "sleep 1000"]);
    let exec = |flags: &[&str], command: &[&str]| {
        finish(world.coracle(["exec"].iter().chain(flags).chain(&[&*name]).chain(command)))
    };
    let init = world.init_of(&name);
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let of_init = fs::read_link(format!("/proc/{init}/ns/{kind}")).expect("a namespace");
        let inside = exec(&[], &["readlink", &format!("/proc/self/ns/{kind}")]);
        assert_eq!(
            inside.success().trim_end(),
            of_init.to_str().expect("plain"),
            "{kind}"
        );
    }
    let status = exec(&[], &["cat", "/proc/self/status"]);
    assert!(status.success().contains("CapEff:\t00000000800405fb"));
    assert!(status.success().contains("CapInh:\t0000000000000000"));
    assert_eq!(
        exec(&[], &["ls", "/proc/self/fd"]).success(),
        "0\n1\n2\n3\n"
    );
    assert_eq!(
        exec(&["-e", "A=1", "-w", "/tmp"], &["sh", "-c", "echo $A; pwd"]).success(),
        "1\n/tmp\n"
    );
    assert_eq!(exec(&[], &["sh", "-c", "exit 4"]).code(), Some(4));
    // What goes on in the background keeps nobody waiting.
    assert_eq!(
        exec(&[], &["sh", "-c", "sleep 1000 & exit 5"]).code(),
        Some(5)
    );
    assert_eq!(exec(&[], &["/etc"]).code(), Some(126));
    assert_eq!(exec(&[], &["no-such-program"]).code(), Some(127));
    assert_eq!(exec(&["--no-such-flag"], &["true"]).code(), Some(125));
    for fd in 3..20 {
        let refused = exec(&["-w", &format!("/proc/self/fd/{fd}")], &["pwd"]);
        assert_eq!(refused.code(), Some(126), "{refused:?}");
    }
    assert_eq!(
        world.try_coracle(&["rm", "-f", &name]).success(),
        format!("{name}\n")
    );
    assert!(!is_running(init));
}

fn signals_reach_the_container(world: &World) {
    let script = "trap 'exit 21' TERM; echo ready; while :; do sleep 1 & wait; done";
    let mut child = world.start(world.run_args(&[], &["sh", "-c", script]), Stdio::piped());
    let mut first = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().expect("piped"), &mut first).expect("ready");
    let main = main_of(child.id());
    kill(main, Signal::SIGTERM).expect("signalled");
    assert_eq!(collect(child).code(), Some(21));
}

fn whichever_process_is_killed_nothing_stays(world: &World) {
    for victim in ["main", "monitor", "init"] {
        let name = unique(victim);
        let args = [
            "run",
            "--rm",
            "--name",
            &name,
            "--network",
            "none",
            "--rootfs",
            "rootfs",
            "sleep",
            "1000",
        ];
        let mut run = world.coracle(args);
        let mut main = run
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("coracle");
        eventually("it runs", || {
            world.inspect(&name).is_some_and(|row| row["pid"].is_i64())
        });
        let init = world.init_of(&name);
        let monitor = parent_of(init);
        let target = match victim {
            "main" => main_of(main.id()),
            "monitor" => Pid::from_raw(monitor),
            _ => Pid::from_raw(init),
        };
        kill(target, Signal::SIGKILL).expect("killed");
        let status = wait(&mut main);
        match victim {
            "main" => assert_eq!(status.signal(), Some(9), "{victim}"),
            "monitor" => assert_eq!(status.code(), Some(125), "{victim}"),
            _ => assert_eq!(status.code(), Some(137), "{victim}"),
        }
        eventually("init and monitor are gone", || {
            !is_running(init) && !is_running(monitor)
        });
        assert!(
            world.inspect(&name).is_none(),
            "{victim}: the next command repairs"
        );
        // The name is free again, and with it everything else.
        let args = [
            "run",
            "--rm",
            "--name",
            &name,
            "--network",
            "none",
            "--rootfs",
            "rootfs",
            "true",
        ];
        world.try_coracle(&args).success();
    }
}

fn files_of_other_users_are_removed_with_the_container(world: &World) {
    let name = unique("owned");
    let script = match world.has_single_id() {
        true => "mkdir -p /d/e && touch /d/e/f && chmod 000 /d/e",
        false => "mkdir -p /d/e && touch /d/e/f && chmod 000 /d/e && chown -R 77:77 /d",
    };
    let args = [
        "run",
        "--name",
        &name,
        "--network",
        "none",
        "--rootfs",
        "rootfs",
        "sh",
        "-c",
        script,
    ];
    world.try_coracle(&args).success();
    world.try_coracle(&["rm", &name]).success();
    assert!(world.inspect(&name).is_none());
}

/// What the caller is granted may have changed since.
fn a_container_is_removed_with_the_ids_that_it_was_made_with(world: &World) {
    // The host's root needs no others to remove anything.
    if world.has_single_id() || world.is_root() {
        return;
    }
    let name = unique("granted");
    let script = "mkdir -p /d/e && touch /d/e/f && chmod 000 /d/e && chown -R 77:77 /d";
    let mut args = world.run_args(&["--name", &name], &["sh", "-c", script]);
    args.retain(|arg| arg != "--rm");
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    world.try_coracle(&args).success();

    let containers = fs::read_dir(world.containers()).expect("containers");
    let dirs = containers.flatten().map(|entry| entry.path());
    let path = dirs.map(|dir| dir.join("config.json")).next();
    let path = path.expect("a record");
    let kept = fs::read(&path).expect("a record");
    let mut record: serde_json::Value = serde_json::from_slice(&kept).expect("a record");
    let uids = &mut record["id_maps"]["uids"];
    assert_eq!(uids[0]["outside"], world.uid(), "{uids}");
    assert!(uids[1]["count"].as_u64() > Some(77), "{uids}");
    record["id_maps"]["uids"]
        .as_array_mut()
        .expect("extents")
        .truncate(1);
    fs::write(&path, record.to_string()).expect("changed");
    let refused = world.try_coracle(&["rm", &name]);
    assert_eq!(refused.code(), Some(125), "{refused:?}");
    assert!(refused.stderr.contains("own users"), "{refused:?}");

    fs::write(&path, kept).expect("as it was");
    world.try_coracle(&["rm", &name]).success();
    assert!(world.inspect(&name).is_none());
}

/// The coracle process itself: setpriv executes it in its own place, so that it is the child.
fn main_of(child: u32) -> Pid {
    Pid::from_raw(i32::try_from(child).expect("a PID"))
}
