//! Containers of a program that uses the engine as a library, and has threads: the example
//! `engine`.

use std::ffi::OsStr;
use std::fs;

use crate::harness::{Outcome, World, cases, example, finish, need_tun, unique};

cases![
    a_program_with_threads_has_containers,
    a_program_with_threads_adds_commands,
    a_container_starts_though_its_run_directory_is_gone,
];

fn engine(world: &World, words: &[&str]) -> Outcome {
    finish(world.command(&[example().as_os_str()], words.iter().map(OsStr::new)))
}

fn run(world: &World, seconds: &str, command: &[&str]) -> Outcome {
    let rootfs = world.rootfs();
    let rootfs = rootfs.to_str().expect("a plain path");
    engine(world, &[&["run", seconds, rootfs], command].concat())
}

fn a_program_with_threads_has_containers(world: &World) {
    need_tun();
    let script = "echo hello; echo oops >&2; exit 3";
    let ended = run(world, "60", &["sh", "-c", script]);
    let mut lines: Vec<_> = ended.success().lines().collect();
    // Two pipes have no order between them.
    lines[..2].sort_unstable();
    assert_eq!(lines, ["hello", "oops", "exit code 3"]);
    let stopped = run(world, "1", &["sleep", "1000"]);
    assert_eq!(stopped.success(), "exit code 143\n");
    let rootfs = world.rootfs();
    let rootfs = rootfs.to_str().expect("a plain path");
    let piped = engine(world, &["pipe", rootfs, "sh", "-c", script]);
    assert_eq!(piped.success(), "hello\nexit code 3\n");
    let missing = run(world, "60", &["no-such-program"]);
    assert_eq!(missing.code(), Some(1));
    for part in ["400", "there is no no-such-program in PATH"] {
        assert!(missing.stderr.contains(part), "{missing:?}");
    }
}

fn a_program_with_threads_adds_commands(world: &World) {
    let name = unique("exec");
    world.detach(&name, &["--network=none"], &["sleep", "1000"]);
    let exec = |command: &[&str]| engine(world, &[&["exec", &name], command].concat());
    // As much on each stream as no pipe holds.
    let script = "head -c 200000 /dev/zero; head -c 200000 /dev/zero >&2; echo; hostname; exit 4";
    let ended = exec(&["sh", "-c", script]);
    let hostname = world.try_coracle(&["exec", &name, "hostname"]);
    let expected = format!("\n{}exit code 4\n", hostname.success());
    assert_eq!(ended.success().trim_start_matches('\0'), expected);
    assert_eq!(ended.stderr.len(), 200_000);
    for (command, status, message) in [
        (
            "no-such-program",
            "400",
            "there is no no-such-program in PATH",
        ),
        ("/etc", "400", "cannot execute /etc"),
    ] {
        let refused = exec(&[command]);
        assert_eq!(refused.code(), Some(1));
        for part in [status, message] {
            assert!(refused.stderr.contains(part), "{refused:?}");
        }
    }
    // Nothing of them is left beside the first.
    let ps = exec(&["ps", "-o", "args"]);
    assert_eq!(
        ps.success(),
        "COMMAND\nsleep 1000\nps -o args\nexit code 0\n"
    );
    world.try_coracle(&["kill", &name]).success();
    world.try_coracle(&["logs", "-f", &name]).success();
    let ended = exec(&["true"]);
    for part in ["409", "NotRunning"] {
        assert!(ended.stderr.contains(part), "{ended:?}");
    }
    world.try_coracle(&["rm", &name]).success();
}

/// As after a reboot.
fn a_container_starts_though_its_run_directory_is_gone(world: &World) {
    need_tun();
    let rootfs = world.rootfs();
    let rootfs = rootfs.to_str().expect("a plain path");
    let script = r#"
        [ "$(hostname)" = "$(cat /etc/hostname)" ] && grep -q "$(hostname)" /etc/hosts &&
        grep nameserver /etc/resolv.conf | head -n 1
    "#;
    let created = engine(world, &["create", rootfs, "sh", "-c", script]);
    let name = created.success().trim_end();
    let runs = fs::read_dir(world.path("run/coracle")).expect("run directories");
    let runs: Vec<_> = runs.map(|run| run.expect("an entry").path()).collect();
    assert_eq!(runs.len(), 1, "{runs:?}");
    fs::remove_dir_all(&runs[0]).expect("removed");
    let ended = engine(world, &["start", "60", name]);
    assert_eq!(ended.success(), "nameserver 10.0.2.3\nexit code 0\n");
}
