//! What callers hand down without a word: signals, umask, limits, descriptors, a working directory.
//! None of it may keep coracle from its work or reach the container, but what is the caller's to
//! decide about it: limits and niceness.

use std::ffi::CString;
use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use nix::mount::{MsFlags, mount, umount};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::geteuid;

use crate::harness::{
    HandedDown, Outcome, World, cases, children_of, eventually, finish, need_tun, parent_of, unique,
};

cases![
    child_signal_ignored,
    every_signal_ignored,
    end_signals_blocked,
    every_signal_blocked,
    umask_hides_from_everybody,
    umask_hides_from_others,
    umask_hides_nothing,
    umask_hides_from_oneself,
    directory_deleted,
    directory_on_another_disk,
    few_descriptors,
    no_file_size,
    small_file_size,
    small_file_size_for_good,
    nice,
    stdin_closed,
    stdout_closed,
    stderr_closed,
    standard_streams_closed,
    more_descriptors,
    descriptors_of_a_detached_container,
];

fn child_signal_ignored(world: &World) {
    works_with(world, &HandedDown::Ignored(vec![libc::SIGCHLD]));
}

fn every_signal_ignored(world: &World) {
    let handed_down = HandedDown::all_ignored();
    works_with(world, &handed_down);
    assert_no_signals(world, &handed_down);
}

fn end_signals_blocked(world: &World) {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    let handed_down = HandedDown::Blocked(signals);
    works_with(world, &handed_down);
    assert_no_signals(world, &handed_down);
}

fn every_signal_blocked(world: &World) {
    let handed_down = HandedDown::Blocked(SigSet::all());
    works_with(world, &handed_down);
    assert_no_signals(world, &handed_down);
}

/// The container's command begins with all signals unblocked and with their default actions.
fn assert_no_signals(world: &World, handed_down: &HandedDown) {
    let status = run(world, handed_down, &[], "exec cat /proc/self/status");
    for set in ["SigBlk:\t", "SigIgn:\t"] {
        let mut lines = status.success().lines();
        let bits = lines
            .find_map(|line| line.strip_prefix(set))
            .expect("a line");
        let bits = u64::from_str_radix(bits, 16).expect("a hexadecimal number");
        assert_eq!(bits & !OF_THE_C_LIBRARY, 0, "{set}{bits:x}");
    }
}

/// Signals 32 and 33, which are nobody else's: posix_spawn of glibc leaves them ignored.
const OF_THE_C_LIBRARY: u64 = 0b11 << 31;

fn umask_hides_from_everybody(world: &World) {
    umask_stays_outside(world, 0o077);
}

fn umask_hides_from_others(world: &World) {
    umask_stays_outside(world, 0o027);
}

fn umask_hides_nothing(world: &World) {
    umask_stays_outside(world, 0);
}

fn umask_hides_from_oneself(world: &World) {
    umask_stays_outside(world, 0o777);
}

fn umask_stays_outside(world: &World, bits: u32) {
    let handed_down = HandedDown::Umask(bits);
    works_with(world, &handed_down);
    let volume = format!("{}:/made/for/volume", world.path("home").display());
    let script = "umask; stat -c %a /etc/hosts /etc/hostname /etc/resolv.conf /made /made/for";
    let seen = run(world, &handed_down, &["-v", &volume], script);
    assert_eq!(seen.success(), "0022\n644\n644\n644\n755\n755\n");
    if !world.has_single_id() {
        let flags = ["-u", "1000:1000"];
        let hosts = run(world, &handed_down, &flags, "cat /etc/hosts");
        assert!(hosts.success().contains("localhost"), "{hosts:?}");
    }
}

fn directory_deleted(world: &World) {
    let gone = world.path("gone");
    let path = CString::new(gone.as_os_str().as_bytes()).expect("no NUL in it");
    let handed_down = HandedDown::NoDirectory(path);
    works(world, &|command| {
        fs::create_dir(&gone).expect("the last command has removed it");
        handed_down.to(command.current_dir(&gone));
    });
}

/// A detached container does not keep the disk busy on which its caller stood.
fn directory_on_another_disk(world: &World) {
    need_tun();
    let disk = world.path("disk");
    fs::create_dir(&disk).expect("a directory");
    let can_mount = geteuid().is_root();
    if can_mount {
        let none = None::<&str>;
        mount(none, &disk, Some("tmpfs"), MsFlags::empty(), none).expect("a tmpfs");
        mount(none, &disk, none, MsFlags::MS_SHARED, none).expect("a mount that propagates");
    }
    let (name, rootfs) = (unique("disk"), world.rootfs());
    let rootfs = rootfs.to_str().expect("a plain path");
    let args = ["run", "-d", "--rm", "--name", &name, "--rootfs", rootfs];
    let mut start = world.coracle(args.iter().chain(&["sleep", "1000"]));
    start.current_dir(&disk);
    finish(start).success();

    let monitor = parent_of(world.init_of(&name));
    for process in std::iter::once(monitor).chain(children_of(monitor)) {
        match fs::read_link(format!("/proc/{process}/cwd")) {
            Ok(directory) => assert_eq!(directory, Path::new("/"), "process {process}"),
            // The monitor and the helper let nobody look into them but root.
            Err(error) => assert!(!can_mount, "process {process}: {error}"),
        }
    }
    if can_mount {
        umount(&disk).expect("nobody uses the disk");
        let holders = holders_of(&disk);
        assert!(holders.is_empty(), "still mounted for {holders:?}");
    }
    world.try_coracle(&["rm", "-f", &name]).success();
}

/// The processes in whose mount namespace something is mounted at `place`. (Not by its device
/// number, which the next file system may get.)
fn holders_of(place: &Path) -> Vec<String> {
    let place = format!(" {} ", place.display());
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    processes
        .filter(|process| {
            let mounts = fs::read_to_string(process.path().join("mountinfo"));
            mounts.is_ok_and(|mounts| mounts.contains(&place))
        })
        .map(|process| process.file_name().to_string_lossy().into_owned())
        .collect()
}

fn few_descriptors(world: &World) {
    let handed_down = HandedDown::SoftLimit(Resource::RLIMIT_NOFILE, 64);
    works_with(world, &handed_down);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    let flags = ["--ulimit", "host"];
    let limits = run(world, &handed_down, &flags, "ulimit -Sn; ulimit -Hn");
    assert_eq!(limits.success(), format!("64\n{hard}\n"));
}

fn no_file_size(world: &World) {
    file_size(
        world,
        &HandedDown::SoftLimit(Resource::RLIMIT_FSIZE, 0),
        "0\n",
    );
}

fn small_file_size(world: &World) {
    let handed_down = HandedDown::SoftLimit(Resource::RLIMIT_FSIZE, 4096);
    file_size(world, &handed_down, "8\n");
}

/// Nor with a limit that coracle cannot raise: then the log ends early, and not the container.
fn small_file_size_for_good(world: &World) {
    let handed_down = HandedDown::HardLimit(Resource::RLIMIT_FSIZE, 4096);
    file_size(world, &handed_down, "8\n");
}

/// `blocks` is the limit in units of 512 bytes, as the container's shell tells it.
fn file_size(world: &World, handed_down: &HandedDown, blocks: &str) {
    works_with(world, handed_down);
    let limit = run(world, handed_down, &[], "ulimit -f");
    assert_eq!(limit.success(), blocks);
    let name = unique("log");
    let script = "i=0
        while [ $i -lt 500 ]; do echo a line of more than thirty bytes, $i; i=$((i + 1)); done
        trap 'exit 9' TERM
        : > /ready
        while :; do sleep 1 & wait; done";
    let mut start = world.coracle(detach_args(world, &name, script));
    handed_down.to(&mut start);
    finish(start).success();
    eventually("everything is said", || {
        world.try_coracle(&["exec", &name, "ls", "/ready"]).code() == Some(0)
    });
    assert_eq!(world.inspect(&name).expect("listed")["status"], "running");
    world.try_coracle(&["stop", &name]).success();
    assert_eq!(world.inspect(&name).expect("kept")["exit_code"], 9);
    world.try_coracle(&["rm", &name]).success();
}

fn nice(world: &World) {
    let handed_down = HandedDown::Nice(5);
    works_with(world, &handed_down);
    // proc_pid_stat(5): the nice value is field 19. No name in front of it has a space.
    let script = "set -- $(cat /proc/self/stat); shift 18; echo $1";
    let before = world.sh(&[], script);
    let before: i32 = before.trim_end().parse().expect("a number");
    let seen = run(world, &handed_down, &[], script);
    assert_eq!(seen.success(), format!("{}\n", before + 5));
}

fn stdin_closed(world: &World) {
    let handed_down = HandedDown::Closed(vec![0]);
    works_with(world, &handed_down);
    assert_eq!(run(world, &handed_down, &["-i"], "cat").success(), "");
}

fn stdout_closed(world: &World) {
    let handed_down = HandedDown::Closed(vec![1]);
    works_with(world, &handed_down);
    let heard = run(world, &handed_down, &[], "echo out; echo err >&2");
    assert!(heard.stderr.ends_with("err\n"), "{heard:?}");
}

fn stderr_closed(world: &World) {
    let handed_down = HandedDown::Closed(vec![2]);
    works_with(world, &handed_down);
    let heard = run(world, &handed_down, &[], "echo out; echo err >&2");
    assert_eq!(heard.success(), "out\n");
}

fn standard_streams_closed(world: &World) {
    works_with(world, &HandedDown::Closed(vec![0, 1, 2]));
}

fn more_descriptors(world: &World) {
    let file = fs::File::open("/").expect("a directory");
    let handed_down = HandedDown::Open(file.as_raw_fd(), vec![70, 71, 200]);
    works_with(world, &handed_down);
    // The fourth is the directory that ls itself has open.
    let listed = run(world, &handed_down, &[], "exec ls /proc/self/fd");
    assert_eq!(listed.success(), "0\n1\n2\n3\n");
}

/// Who waits for the end of a pipe that a caller has open does not wait for the container.
fn descriptors_of_a_detached_container(world: &World) {
    let (mut read, write) = std::io::pipe().expect("a pipe");
    let name = unique("pipe");
    let mut start = world.coracle(detach_args(world, &name, "sleep 1000"));
    HandedDown::Open(write.as_raw_fd(), vec![70]).to(&mut start);
    finish(start).success();
    drop(write);
    rustix::io::ioctl_fionbio(&read, true).expect("non-blocking");
    // Would block as long as somebody has the other end.
    assert_eq!(read.read(&mut [0]).expect("the end"), 0);
    let open = world.try_coracle(&["exec", &name, "ls", "/proc/1/fd"]);
    assert_eq!(open.success(), "0\n1\n2\n");
    world.try_coracle(&["rm", "-f", &name]).success();
}

fn works_with(world: &World, handed_down: &HandedDown) {
    works(world, &|command| handed_down.to(command));
}

/// Whatever `hand_down` lets the commands inherit: a container in the foreground gives its exit
/// code, and one in the background can be listed, stopped and removed.
fn works(world: &World, hand_down: &dyn Fn(&mut Command)) {
    let coracle = |args: &[&str]| -> Outcome {
        let mut command = world.coracle(args);
        hand_down(&mut command);
        finish(command)
    };
    let args = world.run_args(&[], &["sh", "-c", "exit 7"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ended = coracle(&args);
    assert_eq!(ended.code(), Some(7), "{ended:?}");

    let name = unique("handed-down");
    let script = "trap 'exit 9' TERM; : > /ready; while :; do sleep 1 & wait; done";
    let args = detach_args(world, &name, script);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    coracle(&args).success();
    coracle(&["ps"]).success();
    assert_eq!(world.inspect(&name).expect("listed")["status"], "running");
    eventually("the handler is set", || {
        coracle(&["exec", &name, "ls", "/ready"]).code() == Some(0)
    });
    coracle(&["stop", &name]).success();
    assert_eq!(world.inspect(&name).expect("kept")["exit_code"], 9);
    coracle(&["rm", &name]).success();
}

/// Runs a script in the foreground, started by a command that inherits this.
fn run(world: &World, handed_down: &HandedDown, flags: &[&str], script: &str) -> Outcome {
    let mut command = world.coracle(world.run_args(flags, &["sh", "-c", script]));
    handed_down.to(&mut command);
    finish(command)
}

fn detach_args(world: &World, name: &str, script: &str) -> Vec<String> {
    let (rootfs, fixed) = (world.rootfs(), ["run", "-d", "--network", "none"]);
    let rootfs = rootfs.to_str().expect("a plain path");
    fixed
        .iter()
        .chain(&["--name", name, "--rootfs", rootfs, "sh", "-c", script])
        .map(|word| word.to_string())
        .collect()
}
