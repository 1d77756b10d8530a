//! Containers of a program that uses the engine as a library, and has threads: the example
//! `engine`.

use std::ffi::OsStr;

use crate::harness::{Outcome, World, cases, example, finish, need_tun};

cases![a_program_with_threads_has_containers];

fn run(world: &World, seconds: &str, command: &[&str]) -> Outcome {
    let rootfs = world.rootfs();
    let rootfs = rootfs.to_str().expect("a plain path");
    let words = [&["run", seconds, rootfs], command].concat();
    finish(world.command(&[example().as_os_str()], words.iter().map(OsStr::new)))
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
    let words = ["pipe", rootfs, "sh", "-c", script];
    let piped = finish(world.command(&[example().as_os_str()], words.iter().map(OsStr::new)));
    assert_eq!(piped.success(), "hello\nexit code 3\n");
    let missing = run(world, "60", &["no-such-program"]);
    assert_eq!(missing.code(), Some(1));
    for part in ["400", "there is no no-such-program in PATH"] {
        assert!(missing.stderr.contains(part), "{missing:?}");
    }
}
