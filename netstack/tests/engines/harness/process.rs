//! Programs that a machine's user runs. Each has a deadline, and what it says goes to memory: a
//! daemon that keeps its caller's output open is no reason to wait for it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::process::{Pid, Signal, kill_process};
use testbed::wait::exit_by;

/// How a program ended, and what it said.
pub struct Outcome {
    pub what: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Runs `command` to its end.
    pub fn of(command: Command) -> Self {
        Daemon::start(command).wait()
    }

    /// What it wrote to its standard output, if it succeeded.
    pub fn expect(self) -> String {
        assert!(self.status.success(), "{self}");
        self.stdout.trim_end().to_owned()
    }

    /// What it wrote to its standard error, if it failed.
    pub fn expect_failure(self) -> String {
        assert!(!self.status.success(), "{self}");
        self.stderr
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            what,
            status,
            stdout,
            stderr,
        } = self;
        write!(f, "{what}: {status}\n{stdout}{stderr}")
    }
}

/// A program that runs beside the case. Dropping it kills it; what it said is shown if the case
/// fails.
pub struct Daemon {
    what: String,
    child: Child,
    stdout: File,
    stderr: File,
}

impl Daemon {
    pub fn start(mut command: Command) -> Self {
        let what = words_of(&command);
        let memory =
            |name| File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC).expect("memfd"));
        let (stdout, stderr) = (memory("stdout"), memory("stderr"));
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout.try_clone().expect("duplicate a descriptor"))
            .stderr(stderr.try_clone().expect("duplicate a descriptor"))
            .spawn()
            .unwrap_or_else(|error| panic!("start {what}: {error}"));
        Self {
            what,
            child,
            stdout,
            stderr,
        }
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Outcome {
        let status = exit_by(&mut self.child, Instant::now() + PATIENCE);
        let status =
            status.unwrap_or_else(|| panic!("{} still runs after {PATIENCE:?}", self.what));
        Outcome {
            what: self.what.clone(),
            status,
            stdout: said(&self.stdout),
            stderr: said(&self.stderr),
        }
    }

    /// Asks it to end, and waits until it has.
    pub fn terminate(self) -> Outcome {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("SIGTERM");
        self.wait()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!(
                "{}\n{}{}",
                self.what,
                said(&self.stdout),
                said(&self.stderr)
            );
        }
    }
}

fn words_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

/// What has been written so far. The offset is the writer's, too, so it is left alone.
fn said(memory: &File) -> String {
    let len = memory
        .metadata()
        .expect("the length of what was said")
        .len();
    let mut bytes = vec![0; len as usize];
    memory
        .read_exact_at(&mut bytes, 0)
        .expect("read what was said");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// No command of an engine takes longer unless something is broken.
const PATIENCE: Duration = Duration::from_secs(60);
