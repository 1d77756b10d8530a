//! A test in a process of its own: this executable, started once more with the name of the one
//! trial that it is to play.
//!
//! So a trial may change what belongs to a whole process (namespaces, IDs, children), and is judged
//! by its exit code: 0 passed, [`EXIT_SKIPPED`] skipped for want of something. What it prints is
//! shown when it fails, and always with `--nocapture`.
//!
//! `CORACLE_REQUIRE=all` turns each skip into a failure, for a machine on which nothing is missing.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Completion, Failed};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::wait;

/// Automake's exit code for a skipped test.
pub const EXIT_SKIPPED: u8 = 77;

/// Names the trial that the process is to play.
const VARIABLE: &str = "CORACLE_TRIAL";
/// Before the reason of a skip, on a line of its own.
const SKIPPED: &str = "skipped: ";

/// One trial, as its parent sees it.
pub struct Trial<'a> {
    pub name: &'a str,
    /// Its process group is killed after this long. `None` for a trial that keeps the time itself,
    /// so that it can clear up.
    pub limit: Option<Duration>,
    /// A skip is one even where everything is required: nothing that could be prepared is missing.
    pub may_be_skipped: bool,
    pub show_output: bool,
}

/// The trial that this process is to play, if it was started for one.
pub fn named() -> Option<String> {
    std::env::var(VARIABLE).ok()
}

/// Says why this trial is skipped. It ends with [`EXIT_SKIPPED`] next.
pub fn say_skipped(reason: impl std::fmt::Display) {
    println!("{SKIPPED}{reason}");
}

/// Whether every skip is a failure.
pub fn everything_is_required() -> bool {
    std::env::var_os("CORACLE_REQUIRE").is_some_and(|value| value == "all")
}

impl Trial<'_> {
    /// Runs the trial in a process group of its own, out of reach of a Ctrl-C that ends this
    /// process. `adjust` may add to the command.
    pub fn run(&self, adjust: impl FnOnce(&mut Command)) -> Result<Completion, Failed> {
        let mut log = File::from(rustix::fs::memfd_create("trial-log", MemfdFlags::CLOEXEC)?);
        let mut command = Command::new("/proc/self/exe");
        command
            .env(VARIABLE, self.name)
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            .process_group(0);
        adjust(&mut command);
        let status = self.wait(&mut command)?;
        let mut text = String::new();
        log.rewind()?;
        log.read_to_string(&mut text)?;
        if self.show_output {
            print!("{text}");
        }
        self.judge(status, &text)
    }

    /// `None` when the time was up.
    fn wait(&self, command: &mut Command) -> std::io::Result<Option<ExitStatus>> {
        let mut child = command.spawn()?;
        let Some(limit) = self.limit else {
            return child.wait().map(Some);
        };
        let has_exited = wait::has_exited_by(&child, Instant::now() + limit)?;
        // Whatever the trial left running shares its group. The group's number is still ours: the
        // child is reaped below.
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
        let status = child.wait()?;
        Ok(has_exited.then_some(status))
    }

    fn judge(&self, status: Option<ExitStatus>, text: &str) -> Result<Completion, Failed> {
        let ending = match status.map(|status| (status.code(), status.signal())) {
            Some((Some(0), _)) => return Ok(Completion::Completed),
            Some((Some(code), _)) if code == i32::from(EXIT_SKIPPED) => {
                let reason = text
                    .lines()
                    .rev()
                    .find_map(|line| line.strip_prefix(SKIPPED))
                    .unwrap_or("no reason given");
                if self.may_be_skipped || !everything_is_required() {
                    return Ok(Completion::ignored_with(reason));
                }
                format!("skipped, which CORACLE_REQUIRE=all forbids: {reason}")
            }
            Some((Some(code), _)) => format!("exit code {code}"),
            Some((None, signal)) => format!("ended by signal {}", signal.unwrap_or_default()),
            None => {
                let limit = self.limit.unwrap_or_default();
                format!("still running after {} s", limit.as_secs())
            }
        };
        Err(format!("{text}\n{}: {ending}", self.name).into())
    }
}
