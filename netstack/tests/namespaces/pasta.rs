//! The program under the name `pasta`: the life of its process, and what it is attached to. Where
//! passt's own pasta of 2023, which Debian 12 has, does the same in namespaces such as these it is
//! tried first, as a control, so that a difference shows as one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::harness::traffic::{EchoServer, assert_echo, connect};
use crate::harness::{
    Case, Family, Guest, GuestUsers, World, case, eventually, exit_by, root_case, skip,
};
use crate::lifecycle::bind;

pub const CASES: &[Case] = &[
    case("pasta::exit_code", exit_code),
    case("pasta::root_of_new_namespaces", root_of_new_namespaces),
    case("pasta::words_that_fail", |world| {
        both(world, words_that_fail)
    }),
    case("pasta::background", |world| both(world, background)),
    case("pasta::foreground", |world| both(world, foreground)),
    case("pasta::ends_with_the_process", ends_with_the_process),
    case("pasta::ends_with_the_path", ends_with_the_path),
    case("pasta::init", init),
    case("pasta::command_has_a_network", command_has_a_network),
    case("pasta::terminal_signals_are_the_commands", |_| {
        terminal_signals_are_the_commands()
    }),
    case("pasta::sigterm_ends_the_command", |_| {
        sigterm_ends_the_command()
    }),
    case("pasta::crash_ends_the_command", |_| {
        crash_ends_the_command()
    }),
    case("pasta::outlives_the_path", outlives_the_path),
    case("pasta::failure_is_told", failure_is_told),
    case(
        "pasta::files_that_cannot_be_made",
        files_that_cannot_be_made,
    ),
    case("pasta::system_log", system_log),
    case("pasta::log_file", log_file),
    case("pasta::log_file_is_bounded", log_file_is_bounded),
    root_case("pasta::root_is_nobody", |world| runs_as(world, &[], 65534)),
    root_case("pasta::root_is_whom_it_says", |world| {
        runs_as(world, &["--runas", "4711:42"], 4711)
    }),
];

/// The program under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Passt,
    Ours,
}

/// Without pasta, ours alone is tried, and the comparison counts as skipped. Passt's gives up being
/// root first of all, and a case of the host's root has no other user: there is nothing to compare.
fn both(world: &mut World, check: fn(&mut World, Who)) {
    let is_installed = Command::new("pasta").arg("--version").output().is_ok();
    if is_installed && !is_hosts_root() {
        // Without a default route it has no network to offer.
        world
            .host
            .link(|links| links.add_route(Family::V4.unspecified(), 0, Family::V4.elsewhere()));
        check(world, Who::Passt);
    }
    check(world, Who::Ours);
    if !is_installed {
        skip("pasta is not installed, to compare with");
    }
}

fn is_hosts_root() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").expect("our IDs");
    map.split_whitespace().nth(1) == Some("0")
}

impl Who {
    fn command<I: AsRef<std::ffi::OsStr>>(self, words: impl IntoIterator<Item = I>) -> Command {
        let mut command = match self {
            Self::Passt => Command::new("pasta"),
            Self::Ours => Command::new(env!("CARGO_BIN_EXE_coracle-net")),
        };
        command.arg0("pasta").args(words).stdin(Stdio::null());
        command
    }

    /// Runs it to its end, and what it writes to its end as well.
    fn run<I: AsRef<std::ffi::OsStr>>(self, words: impl IntoIterator<Item = I>) -> Output {
        let output = self.command(words).output();
        output.expect("start the program")
    }

    /// Attaches to `target` from the background.
    fn attach(self, world: &World, target: &[&str], options: &[&str]) -> Daemon {
        let file = world.dir.join("pid");
        let path = file.to_str().expect("a plain path");
        let words = ["--config-net", "-q", "-P", path];
        let output = self.run(words.iter().chain(options).chain(target));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{self:?}: {text}");
        let number = fs::read_to_string(&file).expect("the PID file");
        assert!(number.ends_with('\n'), "{self:?}: {number:?}");
        let number = number.trim_end().parse().expect("digits");
        fs::remove_file(file).expect("remove the PID file");
        Daemon {
            who: self,
            pid: Some(Pid::from_raw(number)),
        }
    }
}

/// A helper in the background, which has become a child of the case's.
struct Daemon {
    who: Who,
    /// `None` once it was waited for.
    pid: Option<Pid>,
}

impl Daemon {
    fn pid(&self) -> Pid {
        self.pid.expect("not waited for")
    }

    fn is_running(&self) -> bool {
        kill(self.pid(), None).is_ok()
    }

    /// One that is expected to end by itself.
    fn wait(mut self) -> WaitStatus {
        let mut status = WaitStatus::StillAlive;
        eventually(&format!("{:?} ends", self.who), SOON, || {
            let pid = self.pid();
            status = waitpid(pid, Some(WaitPidFlag::WNOHANG)).expect("a child of ours");
            status != WaitStatus::StillAlive
        });
        self.pid = None;
        status
    }

    fn end(self) {
        kill(self.pid(), Signal::SIGTERM).expect("signal the helper");
        assert!(matches!(self.wait(), WaitStatus::Exited(_, 0)));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
    }
}

fn exit_code(_: &mut World) {
    for (words, code) in [
        (&["sh", "-c", "exit 42"][..], 42),
        (&["--", "true"], 0),
        (&["-q", "--config-net", "--", "sh", "-c", "exit 7"], 7),
        (&["/no/such/program"], 1),
    ] {
        let output = Who::Ours.run(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}");
    }
}

fn root_of_new_namespaces(_: &mut World) {
    let script = "id -u; id -g; cat /proc/sys/net/ipv4/ping_group_range; \
                  for n in user net mnt uts ipc pid; do readlink /proc/self/ns/$n; done";
    let output = Who::Ours.run(["--", "sh", "-c", script]);
    let text = String::from_utf8(output.stdout).expect("text");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..3], ["0", "0", "0\t0"]);
    for (line, kind) in lines[3..]
        .iter()
        .zip(["user", "net", "mnt", "uts", "ipc", "pid"])
    {
        let ours = fs::read_link(format!("/proc/self/ns/{kind}")).expect("a namespace");
        assert!(line.starts_with(kind), "{text}");
        assert_ne!(Path::new(line), ours);
    }
    assert_eq!(lines.len(), 9, "{text}");
}

/// Always with status 1.
fn words_that_fail(_: &mut World, who: Who) {
    for (words, part) in [
        (
            &["--no-such-option", "1"][..],
            "unrecognized option '--no-such-option'",
        ),
        (&["--netns", "/no/such/file"], "/no/such/file"),
        (&["--log-size", "5", "-l", "/dev/shm/x", "1"], "5"),
        (&["--one-off", "1"], "--one-off"),
        (&["4194305"], "4194305"),
    ] {
        let output = who.run(words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{who:?} {words:?}: {errors}");
        assert!(errors.contains(part), "{who:?} {words:?}: {errors}");
    }
}

/// The exit of the process that was called says that the network is up, and nobody who stays holds
/// its streams.
fn background(world: &mut World, who: Who) {
    let guest = Guest::new(GuestUsers::Own);
    let helper = who.attach(world, &[&guest.pid.to_string()], &[]);
    let links = guest
        .net
        .run(|| nix::ifaddrs::getifaddrs().expect("addresses").count());
    assert!(links > 1, "{who:?}");
    let session = nix::unistd::getsid(Some(helper.pid())).expect("a session");
    assert_eq!(session, helper.pid(), "{who:?}");
    helper.end();
}

fn foreground(world: &mut World, who: Who) {
    let guest = Guest::new(GuestUsers::Own);
    let file = world.dir.join("pid");
    let path = file.to_str().expect("a plain path");
    let words = ["-f", "--config-net", "-P", path, &guest.pid.to_string()];
    let mut child = Running::start(who.command(words));
    let number = || fs::read_to_string(&file).unwrap_or_default();
    eventually("the PID file is written", SOON, || number().ends_with('\n'));
    assert_eq!(number().trim_end(), child.0.id().to_string(), "{who:?}");
    child.signal(Signal::SIGTERM);
    assert_eq!(child.wait().code(), Some(0), "{who:?}");
    fs::remove_file(file).expect("remove the PID file");
}

fn ends_with_the_process(world: &mut World) {
    let mut guest = Guest::new(GuestUsers::Own);
    let helper = Who::Ours.attach(world, &[&guest.pid.to_string()], &[]);
    guest.kill_process();
    assert!(matches!(helper.wait(), WaitStatus::Exited(_, 0)));
}

fn ends_with_the_path(world: &mut World) {
    let (_guest, path) = mounted(world);
    let helper = Who::Ours.attach(world, &["--netns", path.to_str().expect("plain")], &[]);
    assert!(helper.is_running());
    unmount(&path);
    assert!(matches!(helper.wait(), WaitStatus::Exited(_, 0)));
}

/// A guest whose namespace has a path.
fn mounted(world: &World) -> (Guest, PathBuf) {
    let guest = Guest::new(GuestUsers::Cases);
    let path = world.dir.join("netns");
    bind(Path::new(&format!("/proc/{}/ns/net", guest.pid)), &path);
    (guest, path)
}

fn unmount(path: &Path) {
    umount2(path, MntFlags::MNT_DETACH).expect("unmount");
    fs::remove_file(path).expect("remove the file");
}

/// Process 1 is not the command, so that signals act on it as they do elsewhere; what it leaves
/// behind ends with it.
fn init(_: &mut World) {
    let host = nix::unistd::gethostname().expect("a name");
    let script = "echo $$; cat /proc/1/comm; hostname; sleep 60 & kill -KILL $$";
    let output = Who::Ours.run(["sh", "-c", script]);
    assert_eq!(output.status.code(), Some(128 + 9));
    let text = String::from_utf8(output.stdout).expect("text");
    let name = format!("pasta-{}", host.to_str().expect("text"));
    assert_eq!(text.lines().collect::<Vec<_>>(), ["2", "pasta-init", &name]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!errors.contains("INFO"), "the terminal is the command's");
}

/// It is there before the command is.
fn command_has_a_network(world: &mut World) {
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    let script = format!(
        "exec 3<>/dev/tcp/{}/7; echo hello >&3; head -n 1 <&3",
        server.address.ip()
    );
    let output = Who::Ours.run(["--config-net", "bash", "-c", &script]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.stdout, b"hello\n", "{text}");
}

/// A terminal sends them to every process in its foreground.
fn terminal_signals_are_the_commands() {
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        let child = ready_command("echo; exec sleep 60");
        killpg(child.pid(), signal).expect("signal the group");
        assert_eq!(child.wait().code(), Some(128 + signal as i32));
    }
    let child = ready_command("trap 'exit 5' INT; echo; while :; do sleep 0.1; done");
    killpg(child.pid(), Signal::SIGINT).expect("signal the group");
    assert_eq!(child.wait().code(), Some(5));
}

fn sigterm_ends_the_command() {
    let mut child = ready_command("trap '' TERM; echo; while :; do sleep 1; done");
    child.signal(Signal::SIGTERM);
    // That nothing is left is seen at the end of the case.
    assert_eq!(child.wait().code(), Some(0));
}

fn crash_ends_the_command() {
    let mut child = ready_command("echo; while :; do sleep 1; done");
    child.signal(Signal::SIGKILL);
    assert_eq!(child.wait().signal(), Some(Signal::SIGKILL as i32));
}

/// A shell that runs `script` and has written a line, in a process group of its own with the
/// helper.
fn ready_command(script: &str) -> Running {
    use std::io::Read;
    let mut command = Who::Ours.command(["sh", "-c", script]);
    command.process_group(0).stdout(Stdio::piped());
    let mut child = Running::start(command);
    let mut stdout = child.0.stdout.take().expect("a pipe");
    stdout.read_exact(&mut [0]).expect("the command is there");
    child
}

/// A program in the foreground.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Self {
        Self(command.spawn().expect("start the program"))
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id() as i32)
    }

    fn signal(&mut self, signal: Signal) {
        kill(self.pid(), signal).expect("signal the program");
    }

    fn wait(mut self) -> std::process::ExitStatus {
        exit_by(&mut self.0, Instant::now() + SOON).expect("the program ends")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn outlives_the_path(world: &mut World) {
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    let (guest, path) = mounted(world);
    let target = ["--netns", path.to_str().expect("plain")];
    let helper = Who::Ours.attach(world, &target, &["--no-netns-quit"]);
    unmount(&path);
    std::thread::sleep(Duration::from_millis(300));
    assert_echo(&mut connect(&guest.net, server.address), b"still there");
    helper.end();
}

/// By the process that was called, with what its copy had to say.
fn failure_is_told(world: &mut World) {
    let _first = Who::Ours.attach(world, &[&world.guest.pid.to_string()], &[]);
    let output = Who::Ours.run(["--config-net", &world.guest.pid.to_string()]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.starts_with("pasta: ") && text.contains("up0"),
        "{text}"
    );
}

fn files_that_cannot_be_made(world: &mut World) {
    let pid = world.guest.pid.to_string();
    for option in ["--pid", "--log-file", "--pcap"] {
        let output = Who::Ours.run([option, "/no/such/file", &pid]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("/no/such/file"), "{text}");
    }
}

/// A background process has no other place for its messages, unless it is told of one.
fn system_log(world: &mut World) {
    let log = replace_dev(world);
    let helper = Who::Ours.attach(world, &[&world.guest.pid.to_string()], &["--trace"]);
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    assert_echo(&mut connect(&world.guest.net, server.address), b"logged");
    let mut message = [0; 2048];
    let len = log
        .recv(&mut message)
        .expect("a message within the timeout");
    let text = String::from_utf8_lossy(&message[..len]);
    let start = format!("pasta[{}]: ", helper.pid());
    let (priority, rest) = text.split_once('>').expect("a priority");
    // LOG_DAEMON with LOG_INFO or LOG_DEBUG.
    assert!(["<30", "<31"].contains(&priority), "{text}");
    assert!(rest.starts_with(&start), "{text}");
    helper.end();
    umount2("/dev", MntFlags::MNT_DETACH).expect("uncover /dev");
}

/// Gives this case a /dev of its own, with a system's log that is returned.
fn replace_dev(world: &World) -> UnixDatagram {
    let new = world.dir.join("dev");
    fs::create_dir_all(new.join("net")).expect("make directories");
    let none = None::<&str>;
    mount(Some("dev"), &new, Some("tmpfs"), MsFlags::empty(), none).expect("mount a tmpfs");
    fs::create_dir(new.join("net")).expect("make a directory");
    for device in ["null", "urandom", "net/tun"] {
        let place = new.join(device);
        fs::File::create(&place).expect("make a file to mount over");
        let old = Path::new("/dev").join(device);
        mount(Some(&old), &place, none, MsFlags::MS_BIND, none).expect("mount a device");
    }
    mount(Some(&new), "/dev", none, MsFlags::MS_MOVE, none).expect("cover /dev");
    fs::remove_dir_all(&new).expect("remove the directories");
    let log = UnixDatagram::bind("/dev/log").expect("make the log");
    log.set_read_timeout(Some(SOON)).expect("set a timeout");
    log
}

/// It has everything, from the start that it belongs to, and nobody else's eyes.
fn log_file(world: &mut World) {
    let path = world.dir.join("log");
    let text = path.to_str().expect("a plain path");
    for _ in 0..2 {
        let pid = world.guest.pid.to_string();
        let helper = Who::Ours.attach(world, &[&pid], &["-d", "-l", text]);
        let log = fs::read_to_string(&path).expect("the log");
        let (first, rest) = log.split_once('\n').expect("a line");
        assert!(first.starts_with("pasta 2026_07_16+coracle."), "{first}");
        let words = format!(": pasta --config-net -q -P {}/pid -d", world.dir.display());
        assert!(first.contains(&words), "{first}");
        assert!(first.ends_with(&format!("({})", helper.pid())), "{first}");
        assert!(rest.contains("the network is up"), "{rest}");
        assert_eq!(log.matches("pasta 2026_07_16").count(), 1, "{log}");
        helper.end();
    }
    let mode = fs::metadata(&path).expect("the log").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    fs::remove_file(path).expect("remove the log");
}

fn log_file_is_bounded(world: &mut World) {
    const SIZE: u64 = 100 << 10;
    let path = world.dir.join("log");
    let text = path.to_str().expect("a plain path");
    let pid = world.guest.pid.to_string();
    let options = ["-d", "-l", text, "--log-size", &SIZE.to_string()];
    let helper = Who::Ours.attach(world, &[&pid], &options);
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    let mut has_been_full = false;
    for _ in 0..1500 {
        drop(connect(&world.guest.net, server.address));
        let len = fs::metadata(&path).expect("the log").len();
        assert!(len <= SIZE, "{len}");
        has_been_full |= len > SIZE * 9 / 10;
        assert!(!has_been_full || len >= SIZE / 2, "{len}");
    }
    assert!(has_been_full);
    let log = fs::read_to_string(&path).expect("the log");
    let mut lines = log.lines();
    assert!(lines.next().is_some_and(|line| line.starts_with("pasta ")));
    let times: Vec<&str> = lines.map(|line| &line[..27]).collect();
    assert!(times.is_sorted() && times.len() > 100);
    helper.end();
    fs::remove_file(path).expect("remove the log");
}

/// Files are made before: root's directories are not open to others.
fn runs_as(world: &mut World, options: &[&str], uid: u32) {
    fs::set_permissions(&world.dir, fs::Permissions::from_mode(0o700)).expect("close");
    let log = world.dir.join("log");
    let mut all = vec!["-l", log.to_str().expect("a plain path")];
    all.extend(options);
    let helper = Who::Ours.attach(world, &[&world.guest.pid.to_string()], &all);
    let status = fs::read_to_string(format!("/proc/{}/status", helper.pid()));
    let line = format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n");
    assert!(status.expect("a status").contains(&line));
    helper.end();
    fs::remove_file(log).expect("remove the log");
    let script = ["sh", "-c", "cat /proc/self/uid_map; id -u"];
    let output = Who::Ours.run(options.iter().copied().chain(script));
    let text = String::from_utf8(output.stdout).expect("text");
    let numbers: Vec<u32> = text
        .split_whitespace()
        .map(|number| number.parse().expect("a number"))
        .collect();
    assert_eq!(numbers, [0, uid, 1, 0]);
}

/// Long enough for a busy machine.
const SOON: Duration = Duration::from_secs(20);
