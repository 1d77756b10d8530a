//! Starting the processes of a figure and listening to them: generators, holders and the helper
//! under test.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{self, Child, ChildStdin, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::namespaces::{Held, SCRATCH};
use crate::traffic::datagrams::Command;
use crate::traffic::{Event, Report, Task};

/// Our own executable, whatever became of its path.
const SELF: &str = "/proc/self/exe";

/// A generator process.
pub struct Generator {
    child: Child,
    events: Receiver<Event>,
    log: PathBuf,
}

impl Generator {
    pub fn start(name: &str, task: &Task) -> Result<Self> {
        let log = log_path(name);
        let mut child = process::Command::new(SELF)
            .args(["__traffic", &serde_json::to_string(task)?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(create(&log)?)
            .spawn()
            .with_context(|| format!("failed to start the {name} process"))?;
        let stdout = child
            .stdout
            .take()
            .context("a piped standard output is there")?;
        let (sender, events) = mpsc::channel();
        thread::spawn(move || {
            // Ends with the process; the receiver sees a closed channel.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let Ok(event) = serde_json::from_str(&line) else {
                    break;
                };
                if sender.send(event).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, events, log })
    }

    /// Waits until the process listens.
    pub fn wait_ready(&mut self) -> Result<()> {
        match self.next(Duration::from_secs(10))? {
            Event::Ready => Ok(()),
            other => bail!("expected a listening generator, got {other:?}"),
        }
    }

    /// Waits for the measured part to begin.
    pub fn wait_begin(&mut self, limit: Duration) -> Result<()> {
        loop {
            match self.next(limit)? {
                Event::Ready => {}
                Event::Begin => return Ok(()),
                Event::Done(_) => bail!("a generator was done before it began"),
            }
        }
    }

    /// Waits for the result.
    pub fn wait_done(&mut self, limit: Duration) -> Result<Report> {
        match self.next(limit)? {
            Event::Done(report) => Ok(report),
            other => bail!("expected a result, got {other:?}"),
        }
    }

    /// Gives a process that takes orders one, and waits for its result.
    pub fn command(&mut self, command: &Command, limit: Duration) -> Result<Report> {
        let line = serde_json::to_string(command)? + "\n";
        let input = self
            .child
            .stdin
            .as_mut()
            .context("the process still takes orders")?;
        // A process that has ended says why in its log.
        let _ = input.write_all(line.as_bytes());
        self.wait_done(limit)
    }

    /// Closes the process's standard input.
    pub fn release(&mut self) {
        drop(self.child.stdin.take());
    }

    fn next(&mut self, limit: Duration) -> Result<Event> {
        self.events.recv_timeout(limit).map_err(|e| match e {
            RecvTimeoutError::Timeout => anyhow!("no result within {limit:?}"),
            RecvTimeoutError::Disconnected => anyhow!("{}", tail(&self.log)),
        })
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that does nothing but keep namespaces alive.
pub struct Holder {
    child: Child,
    _release: ChildStdin,
}

impl Holder {
    pub fn start(held: Held) -> Result<Self> {
        let name = clap::ValueEnum::to_possible_value(&held).context("every kind has a name")?;
        let mut child = process::Command::new(SELF)
            .args(["__hold", name.get_name()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("failed to start a holder process")?;
        let release = child
            .stdin
            .take()
            .context("a piped standard input is there")?;
        let mut ready = [0_u8; 1];
        let mut stdout = child
            .stdout
            .take()
            .context("a piped standard output is there")?;
        stdout
            .read_exact(&mut ready)
            .context("a holder process failed to make its namespaces")?;
        Ok(Self {
            child,
            _release: release,
        })
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }
}

/// A program under test, started as a normal user's process: no capability, output to a log.
pub struct Program {
    name: String,
    command: process::Command,
    log: PathBuf,
    ready: Option<OwnedFd>,
    /// Kept open, across the `exec`, until the program is started.
    inherited: Vec<OwnedFd>,
}

impl Program {
    /// `program` run through our trampoline, which drops the capabilities and then becomes it.
    pub fn new(program: &Path) -> Result<Self> {
        let name = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let log = log_path(&name);
        let mut command = process::Command::new(SELF);
        let output = create(&log)?;
        command
            .args(["__exec", "--"])
            .arg(program)
            .stdin(Stdio::piped());
        command.stdout(output.try_clone()?).stderr(output);
        Ok(Self {
            name,
            command,
            log,
            ready: None,
            inherited: Vec::new(),
        })
    }

    pub fn args<S: AsRef<std::ffi::OsStr>>(
        &mut self,
        args: impl IntoIterator<Item = S>,
    ) -> &mut Self {
        self.command.args(args);
        self
    }

    pub fn env(&mut self, name: &str, value: &std::ffi::OsStr) -> &mut Self {
        self.command.env(name, value);
        self
    }

    /// The number of an inherited descriptor to which the program writes once it is ready.
    pub fn ready_fd(&mut self) -> Result<i32> {
        let (read, write) =
            nix::unistd::pipe2(OFlag::O_CLOEXEC).context("failed to create a pipe")?;
        nix::fcntl::fcntl(
            &write,
            nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
        )
        .context("failed to make a pipe inheritable")?;
        let number = write.as_raw_fd();
        self.ready = Some(read);
        self.inherited.push(write);
        Ok(number)
    }

    /// Starts the program.
    pub fn start(mut self) -> Result<Running> {
        let child = self
            .command
            .spawn()
            .with_context(|| format!("failed to start {}", self.name))?;
        // Only the program's copy of the write end may stay open, or its death would go unnoticed.
        self.inherited.clear();
        Ok(Running {
            name: self.name,
            child,
            log: self.log,
            ready: self.ready,
            started: Instant::now(),
        })
    }
}

/// A started [`Program`].
pub struct Running {
    name: String,
    child: Child,
    log: PathBuf,
    ready: Option<OwnedFd>,
    pub started: Instant,
}

/// No helper takes this long to set up a network.
const READY_LIMIT: Duration = Duration::from_secs(10);

impl Running {
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Waits for a byte on the ready descriptor.
    pub fn wait_ready(&mut self) -> Result<()> {
        let ready = self
            .ready
            .take()
            .context("ready_fd was called before the start")?;
        let mut fds = [PollFd::new(
            std::os::fd::AsFd::as_fd(&ready),
            PollFlags::POLLIN,
        )];
        let limit = PollTimeout::try_from(READY_LIMIT).context("the limit fits")?;
        if poll(&mut fds, limit).context("failed to wait for a pipe")? == 0 {
            bail!(
                "{} was not ready within {READY_LIMIT:?}: {}",
                self.name,
                tail(&self.log)
            );
        }
        let mut byte = [0_u8; 1];
        match File::from(ready).read(&mut byte) {
            Ok(1) => Ok(()),
            _ => bail!("{} ended during set-up: {}", self.name, tail(&self.log)),
        }
    }

    /// Waits for the program to end successfully, as one that goes to the background does when it
    /// is ready.
    pub fn wait_exit(&mut self) -> Result<()> {
        let status = self.wait_until(|child| Ok(child.try_wait()?))?;
        if !status.success() {
            bail!("{} failed with {status}: {}", self.name, tail(&self.log));
        }
        Ok(())
    }

    /// Waits until `path` exists and is not empty, and returns its text.
    pub fn wait_file(&mut self, path: &Path) -> Result<String> {
        let name = self.name.clone();
        let log = self.log.clone();
        self.wait_until(|child| {
            if let Some(status) = child.try_wait()? {
                bail!("{name} ended with {status}: {}", tail(&log));
            }
            Ok(fs::read_to_string(path)
                .ok()
                .filter(|text| !text.trim().is_empty()))
        })
    }

    fn wait_until<T>(
        &mut self,
        mut condition: impl FnMut(&mut Child) -> Result<Option<T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + READY_LIMIT;
        while Instant::now() < deadline {
            if let Some(value) = condition(&mut self.child)? {
                return Ok(value);
            }
            thread::sleep(Duration::from_micros(200));
        }
        bail!(
            "{} was not ready within {READY_LIMIT:?}: {}",
            self.name,
            tail(&self.log)
        )
    }
}

fn log_path(name: &str) -> PathBuf {
    Path::new(SCRATCH).join(format!("{name}.log"))
}

fn create(path: &Path) -> Result<File> {
    // Appending, since a program's two streams and several starts share the file.
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("failed to create {}", path.display()))
}

/// The last lines of a log, on one line, for an error message.
fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    match lines[lines.len().saturating_sub(4)..].join(" | ") {
        empty if empty.is_empty() => "it said nothing".into(),
        lines => lines,
    }
}
