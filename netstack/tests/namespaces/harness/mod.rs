//! What every namespace test stands on. A [`Case`] is a named body that gets a fresh [`World`]: a
//! host, a guest and an "elsewhere" network namespace, owned by one new user namespace, so that
//! cases run the same as root and as a normal user, in parallel, and leave nothing behind.
//!
//! Each case runs in a process of its own: [`run`] starts this executable again with
//! `CORACLE_CASE=name`, and that process is still single-threaded when it unshares its user
//! namespace. The parent keeps its output in a memfd, ends the whole process group at the deadline,
//! and reads the verdict from the exit code: 0 passed, 77 skipped.
//!
//! Environment: `CORACLE_REQUIRE=all` turns each skip into a failure, save that of a root case
//! under a normal user; `CORACLE_FULL=1` runs the long sizes, `CORACLE_FLOWS=n` sets how many
//! random flows `haul` makes and `CORACLE_SEED=n` which ones, and `CORACLE_PEER=slirp4netns` puts
//! slirp4netns in the helper's place, which proves the harness by a peer. What a case measured is
//! shown with `--nocapture`.

mod far;
mod helper;
mod links;
mod nft;
mod socket_table;
pub mod sys;
pub mod traffic;
mod world;

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

pub use far::FarLink;
pub use helper::{Helper, Setup};
pub use nft::nft;
pub use socket_table::tcp_sockets;
pub use world::{Family, Guest, GuestUsers, Netns, World};

/// One test: `body` panics to fail and calls [`skip`] when a facility is missing.
#[derive(Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub body: fn(&mut World),
    /// The whole case, set-up and teardown included, is killed after this long.
    pub limit: Duration,
    /// In the host's own user namespace, instead of one of the case's; skipped unless its root runs
    /// it.
    pub as_root: bool,
}

/// A case with the usual limit, generous since two cores may run many cases and a build at once.
pub const fn case(name: &'static str, body: fn(&mut World)) -> Case {
    Case {
        name,
        body,
        limit: Duration::from_secs(120),
        as_root: false,
    }
}

/// A case about a helper that the host's root starts.
pub const fn root_case(name: &'static str, body: fn(&mut World)) -> Case {
    Case {
        as_root: true,
        ..case(name, body)
    }
}

/// A case that moves enough data or connections to need more than the usual limit.
pub const fn long_case(name: &'static str, body: fn(&mut World)) -> Case {
    Case {
        name,
        body,
        limit: Duration::from_secs(600),
        ..case(name, body)
    }
}

/// Whether the long sizes (1 GiB, 500,000 connections) were asked for.
pub fn full() -> bool {
    std::env::var_os("CORACLE_FULL").is_some_and(|value| value == "1")
}

/// The number in environment variable `name`, if it is set.
pub fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|error| panic!("{name}={value}: {error}")),
    )
}

/// Ends this case as skipped: `reason` names the facility that is missing.
pub fn skip(reason: impl std::fmt::Display) -> ! {
    println!("{SKIPPED}{reason}");
    std::process::exit(EXIT_SKIPPED)
}

/// Runs all cases, or, in the process that [`run_case`] started, the one that it named.
pub fn run(cases: &[Case]) -> ExitCode {
    if let Ok(name) = std::env::var(CASE_VARIABLE) {
        let case = cases
            .iter()
            .find(|case| case.name == name)
            .expect("the parent names an existing case");
        world::enter(case.as_root);
        let mut world = World::new();
        (case.body)(&mut world);
        world.finish();
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    let show_output = arguments.nocapture;
    let trials = cases
        .iter()
        .map(|&case| Trial::ignorable_test(case.name, move || run_case(case, show_output)))
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs `case` in its own process and turns its exit code and output into a verdict.
fn run_case(case: Case, show_output: bool) -> Result<Completion, Failed> {
    let mut log = File::from(rustix::fs::memfd_create("case-log", MemfdFlags::CLOEXEC)?);
    let mut child = Command::new("/proc/self/exe")
        .env(CASE_VARIABLE, case.name)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        .process_group(0)
        .spawn()?;
    // Flows by the million take hours; each of them has a deadline of its own.
    let flows = number("CORACLE_FLOWS").map(|flows| Duration::from_millis(20 * flows));
    let limit = case.limit.max(flows.unwrap_or_default());
    let status = wait_until(&mut child, Instant::now() + limit)?;
    // Whatever the case left running shares its group. The group's number is still ours: the child
    // is reaped below.
    let group = Pid::from_child(&child);
    let _ = rustix::process::kill_process_group(group, Signal::KILL);
    let reaped = child.wait()?;

    let mut text = String::new();
    log.rewind()?;
    log.read_to_string(&mut text)?;
    if show_output {
        print!("{text}");
    }
    let ending = match status {
        None => format!("still running after {} s", limit.as_secs()),
        Some(()) => match (reaped.code(), reaped.signal()) {
            (Some(0), _) => return Ok(Completion::Completed),
            (Some(EXIT_SKIPPED), _) => {
                let reason = text
                    .lines()
                    .rev()
                    .find_map(|line| line.strip_prefix(SKIPPED))
                    .unwrap_or("no reason given");
                // No preparation makes a normal user root.
                let is_of_root = case.as_root && !rustix::process::geteuid().is_root();
                let require = std::env::var_os("CORACLE_REQUIRE");
                if is_of_root || require.is_none_or(|value| value != "all") {
                    return Ok(Completion::ignored_with(reason));
                }
                format!("skipped, which CORACLE_REQUIRE=all forbids: {reason}")
            }
            (Some(code), _) => format!("exit code {code}"),
            (None, signal) => format!("ended by signal {}", signal.unwrap_or_default()),
        },
    };
    Err(format!("{text}\n{}: {ending}", case.name).into())
}

/// Waits until `child` has exited, without reaping it; `None` when `deadline` came first.
fn wait_until(child: &mut Child, deadline: Instant) -> std::io::Result<Option<()>> {
    let pidfd = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    Ok(readable_by(pidfd, deadline)?.then_some(()))
}

/// Waits for `child` to exit and reaps it; `None` when `deadline` came first.
pub fn wait_exit(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    wait_until(child, deadline).expect("pidfd of a child")?;
    Some(child.wait().expect("reap a child"))
}

/// Whether `fd` became readable (or hung up) before `deadline`.
pub fn readable_by(fd: impl AsFd, deadline: Instant) -> std::io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = left.try_into().expect("deadlines are hours away at most");
        match rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Polls `condition` until it holds, and panics with `what` when it does not within `limit`. For
/// the few facts that nothing announces, such as the number of a process's descriptors.
pub fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

const CASE_VARIABLE: &str = "CORACLE_CASE";
const SKIPPED: &str = "skipped: ";
/// Automake's exit code for a skipped test.
const EXIT_SKIPPED: i32 = 77;
