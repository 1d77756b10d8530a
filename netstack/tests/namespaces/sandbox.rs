//! What a running helper has given up, and its companion, which still has the file system.

use std::fs;
use std::io::ErrorKind;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::harness::{Case, Helper, World, case, eventually};
use crate::options::{assert_works, status};

pub const CASES: &[Case] = &[
    case(
        "sandbox::every_thread_is_filtered",
        every_thread_is_filtered,
    ),
    case("sandbox::no_file_is_left", no_file_is_left),
    case(
        "sandbox::status_socket_goes_after_a_kill",
        status_socket_goes_after_a_kill,
    ),
    case(
        "sandbox::helper_outlives_its_companion",
        helper_outlives_its_companion,
    ),
];

const COMPANION: &str = "coracle-net-dns";

fn companion_of(helper: &Helper) -> u32 {
    let children = format!("/proc/{0}/task/{0}/children", helper.pid());
    let children = fs::read_to_string(children).expect("the helper's children");
    let companion = children.trim().parse().expect("one child");
    let name = fs::read_to_string(format!("/proc/{companion}/comm")).expect("a name");
    assert_eq!(name.trim_end(), COMPANION);
    companion
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.expect("a field of proc_pid_status(5)").trim()
}

/// Not even its own user may look into it, without CAP_SYS_PTRACE.
pub fn assert_closed(helper: &Helper) {
    let environment = format!("/proc/{}/environ", helper.pid());
    let open = move || {
        let mut own = capabilities(None).expect("capabilities");
        own.effective.remove(CapabilitySet::SYS_PTRACE);
        set_capabilities(None, own).expect("give one up");
        fs::File::open(environment)
    };
    let opened = thread::spawn(open).join().expect("a look");
    let error = opened.expect_err("the process is dumpable");
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
}

fn every_thread_is_filtered(world: &mut World) {
    let helper = world.helper().publish("8080:80").start();
    assert_closed(&helper);
    let companion = companion_of(&helper);
    let status = fs::read_to_string(format!("/proc/{companion}/status")).expect("its status");
    assert_eq!(field(&status, "CapEff:"), "0000000000000000");
    let threads = helper.of_each_thread("status");
    assert_eq!(threads.len(), 2);
    for status in threads.iter().chain([&status]) {
        assert_eq!(field(status, "Seccomp:"), "2");
        assert_eq!(field(status, "NoNewPrivs:"), "1");
    }
    // Nothing that the helper listens on lives on in its companion.
    let open = fs::read_dir(format!("/proc/{companion}/fd")).expect("its descriptors");
    assert!(open.count() <= 6);
    drop(helper);
    assert!(!fs::exists(format!("/proc/{companion}")).expect("a look"));
}

fn no_file_is_left(world: &mut World) {
    let helper = world.helper().start();
    for thread in helper.threads() {
        let root = fs::read_dir(thread.join("root/")).expect("a root directory");
        assert_eq!(root.count(), 0);
    }
    // What is mounted for others stays so.
    assert!(fs::exists(&world.dir).expect("a look"));
}

fn status_socket_goes_after_a_kill(world: &mut World) {
    let socket = world.dir.join("status.sock");
    let helper = world
        .helper()
        .option("--status-socket")
        .option(&socket)
        .start();
    assert_eq!(status(&socket)["connections_total"], 0);
    helper.signal(Signal::KILL);
    helper.wait();
    eventually("the socket is gone", Duration::from_secs(10), || {
        !socket.exists()
    });
}

fn helper_outlives_its_companion(world: &mut World) {
    let helper = world.helper().start();
    let companion = Pid::from_raw(companion_of(&helper) as i32).expect("a process");
    kill_process(companion, Signal::KILL).expect("kill the companion");
    assert_works(world, &world.guest);
    let before = helper.cpu_ticks();
    thread::sleep(Duration::from_millis(300));
    assert!(helper.cpu_ticks() - before < 15, "it waits busily");
}
