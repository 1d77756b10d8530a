//! Standard streams and terminals.

use std::fs::File;
use std::io::Read;
use std::process::Stdio;

use nix::pty::openpty;

use crate::harness::{Session, World, cases, eventually, finish_with_input, unique, wait};

cases![
    input_goes_in_only_when_asked,
    a_megabyte_passes_unchanged_both_ways,
    a_reader_that_leaves_ends_the_writer,
    a_reader_that_leaves_keeps_nobody_who_does_not_care,
    what_a_container_says_without_main_is_logged,
    a_terminal_is_one_in_every_respect,
    an_added_command_can_have_a_terminal,
    a_terminal_that_only_shows_output_shows_it_unchanged,
    input_that_ends_ends_a_shell_on_a_terminal,
    a_follower_ends_with_the_container,
];

fn input_goes_in_only_when_asked(world: &World) {
    let cat = |flags: &[&str]| {
        finish_with_input(world.coracle(world.run_args(flags, &["cat"])), b"hello\n")
    };
    assert_eq!(cat(&["-i"]).success(), "hello\n");
    assert_eq!(cat(&[]).success(), "");
}

fn a_megabyte_passes_unchanged_both_ways(world: &World) {
    let bytes: Vec<u8> = (0..1_000_000u32)
        .map(|i| b'a' + (i % 7 * (i / 1000) % 26) as u8)
        .collect();
    let echoed = finish_with_input(world.coracle(world.run_args(&["-i"], &["cat"])), &bytes);
    assert!(echoed.success().as_bytes() == bytes);
    let both = world.run(&[], &["sh", "-c", "echo out; echo err >&2"]);
    assert_eq!(
        (&*both.stdout, both.stderr.lines().last().unwrap_or("")),
        ("out\n", "err")
    );
}

fn a_reader_that_leaves_ends_the_writer(world: &World) {
    // Not the shell itself: PID 1 is spared SIGPIPE.
    let args = world.run_args(&[], &["sh", "-c", "cat /dev/zero; exit 3"]);
    let mut child = world.start(args, Stdio::null());
    let mut some = [0; 100_000];
    child
        .stdout
        .take()
        .expect("piped")
        .read_exact(&mut some)
        .expect("zeroes");
    assert_eq!(wait(&mut child).code(), Some(3));
}

/// The shell is PID 1, which SIGPIPE does not end: it goes on, and coracle leaves it, as one of a
/// pipeline.
fn a_reader_that_leaves_keeps_nobody_who_does_not_care(world: &World) {
    let script = "while :; do echo line; sleep 0.1; done 2>/dev/null";
    let name = unique("pipeline");
    let mut child = world.start(
        world.run_args(&["--name", &name], &["sh", "-c", script]),
        Stdio::null(),
    );
    let mut line = [0; 5];
    child
        .stdout
        .take()
        .expect("piped")
        .read_exact(&mut line)
        .expect("a line");
    assert_eq!(wait(&mut child).code(), Some(128 + 13));
    // The monitor stops it, as it would in ten seconds.
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn what_a_container_says_without_main_is_logged(world: &World) {
    for flags in [&[][..], &["-t"]] {
        let name = unique("alone");
        let script = "trap 'for i in 1 2 3 4 5; do echo end $i || exit 9; done; exit 4' TERM; \
                      echo ready; while :; do echo more || exit 8; sleep 0.02; done";
        let args = [&["run", "--name", &name, "--network", "none"][..], flags].concat();
        let args = [&args, &["--rootfs", "rootfs", "sh", "-c", script][..]].concat();
        let mut main = world.start(args, Stdio::null());
        let mut ready = [0; 5];
        main.stdout
            .as_mut()
            .expect("piped")
            .read_exact(&mut ready)
            .expect("ready");
        main.kill().expect("killed");
        wait(&mut main);
        eventually("the container has ended", || {
            world.inspect(&name).expect("kept")["exit_code"].is_i64()
        });
        assert_eq!(
            world.inspect(&name).expect("kept")["exit_code"],
            4,
            "{flags:?}"
        );
        let logs = world.try_coracle(&["logs", &name]);
        assert!(logs.success().contains("end 5"), "{flags:?}: {logs:?}");
        world.try_coracle(&["rm", &name]).success();
    }
}

fn a_terminal_is_one_in_every_respect(world: &World) {
    let mut session = Session::with_shell(world, &world.run_args(&["-it"], &["sh"]));
    session.ask(
        "tty; stty size; readlink /proc/self/fd/0",
        "/dev/pts/0\r\n41 99\r\n/dev/pts/0\r\n",
    );
    session.ask("stat -c %t:%T /dev/console", "88:0\r\n");
    session.resize(30, 77);
    session.ask("stty size", "30 77\r\n");
    // Job control: the interrupt reaches the foreground job, and the shell lives on.
    session.ask("echo started; sleep 1000", "started\r\n");
    session.interrupt();
    session.ask("echo after; echo $?", "after\r\n");
    session.say("exit 5\n");
    assert_eq!(session.end(), Some(5));
}

fn an_added_command_can_have_a_terminal(world: &World) {
    let name = unique("tty");
    world.detach(&name, &["--rm", "--network", "none"], &["sleep", "1000"]);
    let args = ["exec", "-it", &name, "sh"].map(str::to_owned);
    let mut session = Session::with_shell(world, &args);
    session.ask("tty; stty size", "/dev/pts/0\r\n41 99\r\n");
    session.say("exit 6\n");
    assert_eq!(session.end(), Some(6));
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn a_terminal_that_only_shows_output_shows_it_unchanged(world: &World) {
    // Without -i nothing is typed for the container: our terminal shows what the container's has
    // made ready.
    let pty = openpty(None, None).expect("a terminal");
    let slave = || Stdio::from(pty.slave.try_clone().expect("a descriptor"));
    let args = world.run_args(&["-t"], &["sh", "-c", "echo one; echo two"]);
    let mut child = world
        .coracle(args)
        .stdin(slave())
        .stdout(slave())
        .stderr(slave())
        .spawn()
        .expect("coracle");
    let mut master = File::from(pty.master);
    wait(&mut child);
    drop(pty.slave);
    let mut shown = Vec::new();
    // Ends with EIO.
    let _ = master.read_to_end(&mut shown);
    let shown = String::from_utf8_lossy(&shown);
    // Behind a warning to a caller without sub-IDs.
    assert!(
        shown.ends_with("\none\r\ntwo\r\n") || shown == "one\r\ntwo\r\n",
        "{shown:?}"
    );
}

fn input_that_ends_ends_a_shell_on_a_terminal(world: &World) {
    let args = world.run_args(&["-it"], &["sh"]);
    let ended = finish_with_input(world.coracle(args), b"echo aha; exit 3\n");
    assert_eq!(ended.code(), Some(3), "{ended:?}");
    let args = world.run_args(&["-it"], &["sh"]);
    let ended = finish_with_input(world.coracle(args), b"echo aha\n");
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert!(ended.stdout.contains("\naha\r\n"), "{ended:?}");
}

fn a_follower_ends_with_the_container(world: &World) {
    let name = unique("follow");
    let script = ["sh", "-c", "echo line; sleep 0.3"];
    world.detach(&name, &["--network", "none"], &script);
    let followed = world.try_coracle(&["logs", "-f", &name]);
    assert_eq!(followed.success(), "line\n");
    assert_eq!(world.inspect(&name).expect("kept")["status"], "exited");
    world.try_coracle(&["rm", &name]).success();
}
