//! Attaching to containers that run, and leaving programs to themselves.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket,
};
use nix::unistd::Pid;

use crate::harness::{
    Session, World, cases, collect, eventually, finish_with_input, is_running, unique,
};

cases![
    a_visitor_has_both_outputs_and_the_input,
    visitors_come_and_go_and_the_container_goes_on,
    a_visitor_that_does_not_read_costs_no_output,
    what_does_not_run_cannot_be_attached_to,
    a_terminal_is_left_and_come_back_to,
    an_added_command_goes_on_without_its_caller,
    signals_end_the_caller_where_they_are_not_passed_on,
    nonsense_at_the_door_harms_nobody,
];

/// The keys that leave a program.
const LEAVE: &str = "\x10\x11";

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn a_visitor_has_both_outputs_and_the_input(world: &World) {
    let name = unique("visited");
    let script = "read x; echo out $x; echo err >&2; cat; exit 4";
    world.detach(&name, &["-i", "--network", "none"], &["sh", "-c", script]);
    let attached = finish_with_input(world.coracle(["attach", &name]), b"1\n2\n");
    assert_eq!(
        (attached.success(), &*attached.stderr),
        ("out 1\n2\n", "err\n")
    );
    eventually("its end is recorded", || {
        world.inspect(&name).expect("kept")["exit_code"] == 4
    });
    assert_eq!(world.try_coracle(&["logs", &name]).success(), "out 1\n2\n");
    world.try_coracle(&["rm", &name]).success();
}

fn visitors_come_and_go_and_the_container_goes_on(world: &World) {
    let name = unique("visitors");
    let script = "read x; echo $x; read x; echo $x";
    world.detach(&name, &["-i", "--network", "none"], &["sh", "-c", script]);
    let quiet = ["attach", "--no-stdin", &name];
    let (first, second) = (
        world.start(quiet, Stdio::piped()),
        world.start(quiet, Stdio::piped()),
    );
    let mut writer = world
        .coracle(["attach", &name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("coracle");
    writer
        .stdin
        .as_mut()
        .expect("piped")
        .write_all(b"one\n")
        .expect("written");
    let mut line = [0; 4];
    writer
        .stdout
        .as_mut()
        .expect("piped")
        .read_exact(&mut line)
        .expect("a line");
    assert_eq!(&line, b"one\n");
    kill(Pid::from_raw(writer.id() as i32), Signal::SIGKILL).expect("killed");
    collect(writer);
    assert!(is_running(world.init_of(&name)));
    let last = finish_with_input(world.coracle(["attach", &name]), b"two\n");
    assert_eq!(last.success(), "two\n");
    for visitor in [first, second] {
        // It may have come after the first line.
        assert!(collect(visitor).success().ends_with("two\n"));
    }
    assert_eq!(world.try_coracle(&["logs", &name]).success(), "one\ntwo\n");
    world.try_coracle(&["rm", &name]).success();
}

fn a_visitor_that_does_not_read_costs_no_output(world: &World) {
    let name = unique("unread");
    let script = "read x; head -c 1000000 /dev/zero; echo; echo done";
    world.detach(&name, &["-i", "--network", "none"], &["sh", "-c", script]);
    let mut visitor = world
        .coracle(["attach", &name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("coracle");
    visitor
        .stdin
        .as_mut()
        .expect("piped")
        .write_all(b"go\n")
        .expect("written");
    let size = || world.try_coracle(&["logs", &name]).success().len();
    eventually("the first of it is logged", || size() > 0);
    let init = world.init_of(&name);
    assert!(is_running(init), "as with a pipe, the writer waits");
    kill(Pid::from_raw(visitor.id() as i32), Signal::SIGKILL).expect("killed");
    eventually("all of it is logged", || size() == 1_000_000 + 6);
    crate::harness::wait(&mut visitor);
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn what_does_not_run_cannot_be_attached_to(world: &World) {
    let name = unique("ended");
    world.run(&["--name", &name], &["true"]).success();
    world.detach(&name, &["--network", "none"], &["true"]);
    eventually("it has ended", || {
        world.inspect(&name).expect("kept")["status"] == "exited"
    });
    let refused = world.try_coracle(&["attach", &name]);
    assert_eq!(refused.code(), Some(125));
    assert!(refused.stderr.contains("is not running"), "{refused:?}");
    world.try_coracle(&["rm", &name]).success();
    assert_eq!(world.try_coracle(&["attach", &name]).code(), Some(125));
    assert_eq!(world.try_coracle(&["attach"]).code(), Some(125));
    let keys = world.try_coracle(&["run", "--detach-keys", "ctrl-foo", "x"]);
    assert!(keys.stderr.contains("ctrl-foo"), "{keys:?}");
}

fn a_terminal_is_left_and_come_back_to(world: &World) {
    let name = unique("left");
    let mut args = world.run_args(&["-it", "--name", &name], &["sh"]);
    args.retain(|arg| arg != "--rm");
    let mut session = Session::with_shell(world, &args);
    session.ask("mine=$((6 * 7)); echo $mine", "42\r\n");
    session.say(LEAVE);
    assert_eq!(session.end(), Some(0));
    assert!(is_running(world.init_of(&name)));

    // The shell is the same, and so is its terminal, which has the visitor's size.
    let mut session = Session::start(world, &words(&["attach", "--detach-keys=x,y", &name]));
    session.ask("stty size; echo $mine", "41 99\r\n42\r\n");
    session.ask("echo x", "\r\nx\r\n");
    session.say("xy");
    assert_eq!(session.end(), Some(0));
    let mut session = Session::start(world, &words(&["attach", &name]));
    session.ask("echo again", "\r\nagain\r\n");
    session.say("exit 3\n");
    assert_eq!(session.end(), Some(0));
    eventually("its end is recorded", || {
        world.inspect(&name).expect("kept")["exit_code"] == 3
    });
    let mut session = Session::with_shell(world, &words(&["start", "-ai", &name]));
    session.ask("echo once more", "\r\nonce more\r\n");
    session.say(LEAVE);
    assert_eq!(session.end(), Some(0));
    assert!(is_running(world.init_of(&name)));
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn an_added_command_goes_on_without_its_caller(world: &World) {
    let name = unique("added");
    world.detach(&name, &["--network", "none"], &["sleep", "1000"]);
    let mut session = Session::with_shell(world, &words(&["exec", "-it", &name, "sh"]));
    session.ask("echo here", "\r\nhere\r\n");
    // More than a terminal holds, written while nobody reads it.
    session.say("sleep 0.2; head -c 100000 /dev/zero; echo >/tmp/done; sleep 77\n");
    session.say(LEAVE);
    assert_eq!(session.end(), Some(0));
    eventually("it has gone on", || {
        world
            .try_coracle(&["exec", &name, "ls", "/tmp/done"])
            .code()
            == Some(0)
    });
    eventually("and goes on", || {
        world
            .try_coracle(&["top", &name, "args"])
            .success()
            .contains("sleep 77")
    });
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn signals_end_the_caller_where_they_are_not_passed_on(world: &World) {
    let name = unique("apart");
    let script = "trap 'exit 9' TERM; while :; do echo up; sleep 1 & wait; done";
    let flags = ["--sig-proxy=false", "--name", &name];
    let args = world.run_args(&flags, &["sh", "-c", script]);
    let sees_it_up = |child: &mut Child| {
        let stdout = child.stdout.as_mut().expect("piped");
        stdout.read_exact(&mut [0; 3]).expect("a line");
    };
    let mut child = world.start(args, Stdio::piped());
    sees_it_up(&mut child);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("signalled");
    assert_eq!(collect(child).code(), Some(143));
    let init = world.init_of(&name);
    assert!(is_running(init));
    // With them, a visitor's signals are the container's.
    let mut visitor = world.start(["attach", "--no-stdin", &name], Stdio::piped());
    sees_it_up(&mut visitor);
    kill(Pid::from_raw(visitor.id() as i32), Signal::SIGTERM).expect("signalled");
    eventually("the signal has come", || !is_running(init));
    collect(visitor);
    eventually("it is forgotten", || world.inspect(&name).is_none());
}

fn nonsense_at_the_door_harms_nobody(world: &World) {
    let name = unique("door");
    let id = world.detach(&name, &["-i", "--network", "none"], &["cat"]);
    let door = world.path("run/coracle").join(&id[..12]).join("attach");
    let address = UnixAddr::new(&door).expect("a path");
    for text in [
        "",
        "x",
        "{}",
        "\"Started\"",
        "{\"Attach\":{\"input\":true}}",
    ] {
        let flags = SockFlag::SOCK_CLOEXEC;
        let visitor = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None);
        let visitor = visitor.expect("a socket");
        connect(visitor.as_raw_fd(), &address).expect("somebody listens");
        // Whoever is refused may have been so by now.
        let _ = send(visitor.as_raw_fd(), text.as_bytes(), MsgFlags::MSG_NOSIGNAL);
    }
    let attached = finish_with_input(world.coracle(["attach", &name]), b"still here\n");
    assert_eq!(attached.success(), "still here\n");
    eventually("it has ended", || {
        world.inspect(&name).expect("kept")["status"] == "exited"
    });
    assert!(!door.exists());
    world.try_coracle(&["rm", &name]).success();
}
