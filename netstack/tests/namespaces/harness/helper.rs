//! Starting, watching and ending the helper under test: `coracle-net`, or slirp4netns with
//! `CORACLE_PEER=slirp4netns` for the cases that need no more than it has. With
//! `CORACLE_DEVICE=veth` it works without a tap.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use rustix::process::{Pid, Resource, Rlimit, Signal};

use super::{eventually, exit_by, readable_by, skip, sys};

/// What is started.
enum Program {
    /// At this path, and by this name if it is not the path's own.
    Ours(PathBuf, Option<&'static str>),
    Slirp4netns,
}

/// A helper's command line. The default is `--configure` at MTU 65520 with the process of a guest
/// as its target.
pub struct Setup {
    target: OsString,
    configure: bool,
    mtu: u32,
    options: Vec<OsString>,
    program: Program,
    descriptors: Option<u64>,
    is_powerless: bool,
}

impl Setup {
    /// `target` is a process ID or a namespace's path.
    pub fn new(target: impl Into<OsString>) -> Self {
        Self {
            target: target.into(),
            configure: true,
            mtu: 65520,
            options: Vec::new(),
            program: Program::Ours(env!("CARGO_BIN_EXE_coracle-net").into(), None),
            descriptors: None,
            is_powerless: false,
        }
    }

    /// Another path to the same program.
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = Program::Ours(path.into(), None);
        self
    }

    /// Another name of the program, as a link gives it.
    pub fn by_name(mut self, name: &'static str) -> Self {
        self.program = Program::Ours(env!("CARGO_BIN_EXE_coracle-net").into(), Some(name));
        self
    }

    /// slirp4netns itself, as it is installed here.
    pub fn slirp4netns(mut self) -> Self {
        self.program = Program::Slirp4netns;
        self
    }

    /// The hard limit of descriptors.
    pub fn descriptors(mut self, limit: u64) -> Self {
        self.descriptors = Some(limit);
        self
    }

    /// Without a capability over any network namespace.
    pub fn powerless(mut self) -> Self {
        self.is_powerless = true;
        self
    }

    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = mtu;
        self
    }

    pub fn publish(self, spec: &str) -> Self {
        self.option("--publish").option(spec)
    }

    pub fn option(mut self, option: impl AsRef<OsStr>) -> Self {
        self.options.push(option.as_ref().to_owned());
        self
    }

    /// Leaves the links of the guest down and without addresses.
    pub fn without_configure(mut self) -> Self {
        self.configure = false;
        self
    }

    /// Starts the helper and returns once it reported that it is ready.
    pub fn start(self) -> Helper {
        let (ready, ready_write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).expect("pipe");
        let mut command = self.command();
        command
            .arg("--ready-fd")
            .arg(sys::inherit(&ready_write).to_string())
            .arg(&self.target)
            .arg("tap0");
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        drop(ready_write);

        let answered =
            readable_by(ready.as_fd(), Instant::now() + READY_WITHIN).expect("poll the ready pipe");
        assert!(
            answered,
            "{command:?} was not ready within {READY_WITHIN:?}"
        );
        let mut announcement = Vec::new();
        fs::File::from(ready)
            .read_to_end(&mut announcement)
            .expect("read the ready pipe");
        let mut helper = Helper {
            child,
            ended: false,
            dies_of_sigterm: peer_in_use() || matches!(self.program, Program::Slirp4netns),
        };
        if announcement != b"1" {
            let status = exit_by(&mut helper.child, Instant::now() + READY_WITHIN);
            helper.ended = status.is_some();
            panic!("{command:?} was never ready and ended with {status:?}");
        }
        eventually("the guest's thread is done", READY_WITHIN, || {
            helper.guest_thread_sleeps()
        });
        helper
    }

    /// Runs a helper that is expected to give up, and returns its exit code and standard error.
    pub fn fail(self) -> (i32, String) {
        let mut command = self.command();
        let mut child = command
            .arg(&self.target)
            .arg("tap0")
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the helper");
        if exit_by(&mut child, Instant::now() + READY_WITHIN).is_none() {
            child.kill().expect("kill the helper");
            panic!("{command:?} did not fail");
        }
        let Output { status, stderr, .. } = child
            .wait_with_output()
            .expect("read the helper's messages");
        (
            status.code().expect("an exit code"),
            String::from_utf8_lossy(&stderr).into_owned(),
        )
    }

    fn command(&self) -> Command {
        let mut command = match (&self.program, std::env::var("CORACLE_PEER").as_deref()) {
            (Program::Slirp4netns, _) => Command::new("slirp4netns"),
            (Program::Ours(path, name), Err(_)) => {
                let mut command = Command::new(path);
                match (name, std::env::var("CORACLE_DEVICE")) {
                    (Some(name), _) => {
                        command.arg0(name);
                    }
                    (None, Ok(device)) => {
                        command.args(["--device", &device]);
                    }
                    (None, Err(_)) => {}
                }
                command
            }
            (Program::Ours(..), Ok("slirp4netns")) if self.options.is_empty() => {
                let mut command = Command::new("slirp4netns");
                command.args(["--enable-ipv6", "--disable-host-loopback"]);
                command
            }
            (_, Ok(peer)) => skip(format!("{peer} cannot do what this case asks for")),
        };
        command
            .stdin(Stdio::null())
            .arg(format!("--mtu={}", self.mtu))
            .args(&self.options);
        if self.configure {
            command.arg("--configure");
        }
        if let Some(limit) = self.descriptors {
            sys::limit_descriptors(&mut command, limit);
        }
        if self.is_powerless {
            sys::make_powerless(&mut command);
        }
        command
    }
}

/// A running helper. Dropping it ends it with SIGTERM, which it must answer with exit code 0.
pub struct Helper {
    child: Child,
    ended: bool,
    /// Instead of ending with exit code 0.
    dies_of_sigterm: bool,
}

impl Helper {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The name of each of its threads, the first one's first.
    pub fn thread_names(&self) -> Vec<String> {
        let names = self.of_each_thread("comm").into_iter();
        names.map(|name| name.trim_end().to_owned()).collect()
    }

    /// The content of the file `name` in the /proc directory of each of its threads, in the order
    /// of their numbers.
    pub fn of_each_thread(&self, name: &str) -> Vec<String> {
        let read = |thread: PathBuf| fs::read_to_string(thread.join(name));
        let threads = self.threads().into_iter();
        threads
            .map(|thread| read(thread).expect("a file of a thread"))
            .collect()
    }

    /// The /proc directory of each of its threads, in the order of their numbers.
    pub fn threads(&self) -> Vec<PathBuf> {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.pid()));
        let mut ids: Vec<u32> = fs::read_dir(&tasks)
            .expect("the helper's threads")
            .map(|entry| entry.expect("a thread").file_name())
            .map(|id| {
                id.to_str()
                    .and_then(|id| id.parse().ok())
                    .expect("a number")
            })
            .collect();
        ids.sort_unstable();
        ids.into_iter()
            .map(|id| tasks.join(id.to_string()))
            .collect()
    }

    /// Whether what it does in the background after the start is done: sockets for hand-overs.
    fn guest_thread_sleeps(&self) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("its threads");
        let stats = tasks.flatten().map(|task| {
            let stat = fs::read_to_string(task.path().join("stat"));
            stat.expect("a thread's state")
        });
        let mut of_guest = stats.filter(|stat| stat.contains("(coracle-guest)"));
        of_guest.all(|stat| stat.contains(") S "))
    }

    /// How many descriptors the helper has open when it has nothing to do: it makes sockets for
    /// hand-overs after it has said that it is ready.
    pub fn resting_fd_count(&self) -> usize {
        let mut count = 0;
        eventually("the helper rests", Duration::from_secs(20), || {
            let before = std::mem::replace(&mut count, self.fd_count());
            self.is_asleep() && before == count
        });
        count
    }

    /// Whether each thread of the helper waits for something.
    fn is_asleep(&self) -> bool {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("its threads");
        let mut states = threads.map(|thread| {
            let stat = thread.expect("a thread").path().join("stat");
            fs::read_to_string(stat).expect("the thread's stat")
        });
        states.all(|stat| {
            let (_, fields) = stat.rsplit_once(')').expect("a program in parentheses");
            fields.trim_start().starts_with('S')
        })
    }

    /// How many descriptors the helper has open.
    pub fn fd_count(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .expect("the helper's descriptors")
            .count()
    }

    /// The helper's resident memory.
    pub fn rss_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .expect("the helper's status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .expect("VmRSS");
        line.trim()
            .trim_end_matches(" kB")
            .parse()
            .expect("a number of KiB")
    }

    /// Lets the helper have no descriptor from number `limit` on.
    pub fn limit_descriptors(&self, limit: usize) {
        let limit = Rlimit {
            current: Some(limit as u64),
            maximum: Some(limit as u64),
        };
        rustix::process::prlimit(Pid::from_raw(self.pid() as i32), Resource::Nofile, limit)
            .expect("limit the helper's descriptors");
    }

    /// The processor time that the helper has used, in hundredths of a second.
    pub fn cpu_ticks(&self) -> u64 {
        let stat =
            fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("the helper's stat");
        let (_, fields) = stat.rsplit_once(')').expect("a program in parentheses");
        // utime and stime are fields 14 and 15 of proc_pid_stat(5); these begin with the third.
        let ticks = fields.split_whitespace().skip(11).take(2);
        ticks
            .map(|ticks| ticks.parse::<u64>().expect("a number"))
            .sum()
    }

    /// Waits until the helper has no more descriptors open than `baseline`.
    pub fn expect_fds_back_to(&self, baseline: usize) {
        eventually(
            &format!("descriptors back to {baseline}"),
            Duration::from_secs(20),
            || self.fd_count() <= baseline,
        );
    }

    pub fn is_running(&mut self) -> bool {
        self.child
            .try_wait()
            .expect("look after the helper")
            .is_none()
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal)
            .expect("signal the helper");
    }

    /// The exit status of a helper that is expected to end by itself.
    pub fn wait(mut self) -> ExitStatus {
        self.reap().expect("the helper ends by itself")
    }

    fn reap(&mut self) -> Option<ExitStatus> {
        let status = exit_by(&mut self.child, Instant::now() + ENDS_WITHIN);
        self.ended = status.is_some();
        status
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if !std::thread::panicking() {
            self.signal(Signal::TERM);
            if let Some(status) = self.reap() {
                assert!(
                    self.dies_of_sigterm || status.code() == Some(0),
                    "SIGTERM ended the helper with {status}"
                );
                return;
            }
        }
        self.signal(Signal::KILL);
        let _ = self.child.wait();
        assert!(
            std::thread::panicking(),
            "the helper did not end within {ENDS_WITHIN:?} of SIGTERM"
        );
    }
}

/// Whether slirp4netns stands in for the helper; it ends by the signal instead of exiting.
fn peer_in_use() -> bool {
    std::env::var_os("CORACLE_PEER").is_some()
}

const READY_WITHIN: Duration = Duration::from_secs(15);
const ENDS_WITHIN: Duration = Duration::from_secs(10);
