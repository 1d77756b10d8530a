//! Commands and their deadlines, and what /proc says of processes.

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};

/// No command of these tests takes as long; one that does hangs.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// What a command did.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Standard output of a command that must have succeeded.
    #[track_caller]
    pub fn success(&self) -> &str {
        assert_eq!(self.code(), Some(0), "{self:?}");
        &self.stdout
    }
}

/// Runs a command to its end, without standard input.
#[track_caller]
pub fn finish(command: Command) -> Outcome {
    finish_with_input(command, b"")
}

/// Runs a command to its end, giving it `input`.
#[track_caller]
pub fn finish_with_input(mut command: Command, input: &[u8]) -> Outcome {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    std::thread::scope(|scope| {
        // Beside reading: both pipes are short. A command that does not read its input ends all the
        // same.
        scope.spawn(move || stdin.write_all(input));
        collect(child)
    })
}

/// Waits for a child whose output is piped.
#[track_caller]
pub fn collect(mut child: Child) -> Outcome {
    let (mut stdout, mut stderr) = (
        child.stdout.take().expect("piped"),
        child.stderr.take().expect("piped"),
    );
    let read = |pipe: &mut dyn Read| {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).expect("read");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    std::thread::scope(|scope| {
        let errors = scope.spawn(move || read(&mut stderr));
        let output = scope.spawn(move || read(&mut stdout));
        let status = wait(&mut child);
        Outcome {
            status,
            stdout: output.join().expect("a reader"),
            stderr: errors.join().expect("a reader"),
        }
    })
}

#[track_caller]
pub fn wait(child: &mut Child) -> ExitStatus {
    let since = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status;
        }
        if since.elapsed() > DEADLINE {
            let command = named(i32::try_from(child.id()).expect("a PID"));
            // SIGKILL to coracle ends the container as well.
            child.kill().expect("killed");
            child.wait().expect("a child");
            panic!("not ended within {DEADLINE:?}: {command}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until something that takes a moment is so.
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(
            since.elapsed() < DEADLINE,
            "not within {DEADLINE:?}: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process runs. One that has ended and waits for its parent does not.
pub fn is_running(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| !rest.trim_start().starts_with(['Z', 'X']) && !rest.is_empty())
}

#[track_caller]
pub fn parent_of(pid: i32) -> i32 {
    try_parent_of(pid).expect("a process")
}

fn try_parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in front may have spaces and parentheses of its own.
    let mut fields = stat.rsplit(')').next()?.split_ascii_whitespace();
    fields.nth(1)?.parse().ok()
}

/// Whether every child of this process has ended and is reaped; waits for it until `limit`. For a
/// process whose commands are all done, and that is a subreaper: then its children are all that
/// they have left.
pub fn all_reaped(limit: Duration) -> bool {
    let since = Instant::now();
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return true,
            Ok(WaitStatus::StillAlive) if since.elapsed() > limit => return false,
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(5)),
            Ok(_) => {}
            Err(errno) => panic!("waitpid: {errno}"),
        }
    }
}

/// Ends every child of this process, and the children that they leave, until there is none or
/// `limit` has passed.
pub fn end_children(limit: Duration) -> bool {
    let since = Instant::now();
    while since.elapsed() < limit {
        for child in children() {
            // A setuid program is out of a normal user's reach, and ends by itself.
            let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
        if all_reaped(Duration::from_millis(20)) {
            return true;
        }
    }
    false
}

/// The children of this process, with their command lines.
pub fn children_named() -> Vec<String> {
    children().into_iter().map(named).collect()
}

fn named(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    format!("{pid} {line}")
}

/// The processes whose parent this is.
pub fn children_of(parent: i32) -> Vec<i32> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| try_parent_of(*pid) == Some(parent))
        .collect()
}

fn children() -> Vec<i32> {
    children_of(getpid().as_raw())
}
