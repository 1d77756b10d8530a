//! The machine of a case, as a distribution would have set it up: a root file system, a normal user
//! with sub-IDs, and a network.
//!
//! ```text
//!  guest ── (an engine's helper) ── host ── up0 (veth) ── elsewhere
//!                                   198.51.100.1          198.51.100.7
//!                                   2001:db8::1           2001:db8::7
//! ```
//!
//! The root file system is the host's or that of another tree, read-only in effect: whatever is
//! written goes to memory. The default routes lead elsewhere, where the resolver is, too.

use std::fs::{self, File, Permissions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use testbed::family::Family;
use testbed::netns::Netns;

use super::process::Outcome;
use super::{namespaces, skip};

/// A name that `coracle-net` has in the place of the program of this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Helper {
    Slirp4netns,
    Pasta,
}

pub struct Machine {
    pub host: Netns,
    pub elsewhere: Netns,
    /// Whether the helpers are the installed programs instead of `coracle-net`.
    pub has_peers: bool,
    /// What was mounted at the beginning.
    mounts: String,
}

impl Machine {
    /// Turns this process into the root of a new machine. It must be one of the machine's, with one
    /// thread.
    pub fn new() -> Self {
        namespaces::die_with_parent();
        let has_peers = std::env::var_os("CORACLE_PEER").is_some_and(|peer| peer == "installed");
        let tree = std::env::var_os("CORACLE_TREE").map_or("/".into(), PathBuf::from);
        mount_all(&tree);
        enter(&tree);
        write_etc();
        lay_out_programs(has_peers);
        share_mounts();
        let (host, elsewhere) = connect_to_elsewhere();
        Self {
            host,
            elsewhere,
            has_peers,
            mounts: mounts(),
        }
    }

    /// A program as the machine's user starts it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .envs([
                ("HOME", HOME),
                ("USER", "user"),
                ("PATH", PATH),
                ("TMPDIR", TEMPORARY),
                ("XDG_RUNTIME_DIR", RUNTIME),
                ("PODMAN_IGNORE_CGROUPSV1_WARNING", "1"),
            ])
            .current_dir(HOME)
            .uid(USER)
            .gid(USER);
        command
    }

    /// Runs a program of the user's to its end.
    pub fn run(&self, words: &[&str]) -> Outcome {
        let (program, arguments) = words.split_first().expect("a program");
        let mut command = self.command(program);
        command.args(arguments);
        Outcome::of(command)
    }

    /// Skips the case if `program` is not installed.
    pub fn need(&self, program: &str) {
        if !PATH
            .split(':')
            .any(|dir| Path::new(dir).join(program).is_file())
        {
            skip(format!("{program} is not installed"));
        }
    }

    /// Skips a case that compares with what the installed helpers do not do: `what`.
    pub fn need_ours(&self, what: &str) {
        if self.has_peers {
            skip(format!("the installed helpers do not {what}"));
        }
    }

    /// An empty directory of the user's.
    pub fn make_dir(&self, name: &str) -> PathBuf {
        let dir = Path::new(HOME).join(name);
        fs::create_dir(&dir).unwrap_or_else(|error| panic!("make {}: {error}", dir.display()));
        give_to_user(&dir);
        dir
    }

    /// The path of the link that helper has.
    pub fn path_of(&self, helper: Helper) -> String {
        format!("{HELPERS}/{}", helper.name())
    }

    /// The command line of each process that runs `helper`.
    pub fn running(&self, helper: Helper) -> Vec<String> {
        let is_it = |line: &String| {
            let program = Path::new(line.split(' ').next().unwrap_or_default());
            let name = program.file_name().unwrap_or_default().to_string_lossy();
            // The one of passt starts a program for the processor that it finds.
            name.trim_end_matches(".avx2") == helper.name()
        };
        processes().map(command_line).filter(is_it).collect()
    }

    /// Ends the case: nothing that it or an engine started may be left, but what Podman keeps.
    pub fn finish(self) {
        // A process that holds the user's user namespace.
        let pause = Path::new(RUNTIME).join("libpod/tmp/pause.pid");
        if let Some(pid) = fs::read_to_string(pause)
            .ok()
            .and_then(|pid| pid.trim().parse().ok())
        {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
        }
        let left = || processes().filter(|pid| *pid != 1 && *pid != std::process::id());
        eventually_empty("processes", || left().map(command_line).collect());
        assert_eq!(mounts(), self.mounts, "what is mounted");
        for dir in ["/tmp", TEMPORARY] {
            let entries = fs::read_dir(dir).expect("a directory");
            let names: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
            assert!(names.is_empty(), "left: {names:?}");
        }
        // slirp4netns leaves those of its API, and Docker those of containerd.
        if !self.has_peers {
            eventually_empty("sockets", || {
                let mut sockets = sockets_below(Path::new(RUNTIME));
                sockets.retain(|path| !path.contains("/docker/containerd/"));
                sockets
            });
        }
    }
}

impl Helper {
    pub fn name(self) -> &'static str {
        match self {
            Self::Slirp4netns => "slirp4netns",
            Self::Pasta => "pasta",
        }
    }
}

/// Lays memory over what is written, and the kernel's own file systems into another tree.
fn mount_all(tree: &Path) {
    let (none, no_flags) = (None::<&str>, MsFlags::empty());
    if let Err(errno) = mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none) {
        skip(format!(
            "user namespaces have no capabilities here (AppArmor?): {errno}"
        ));
    }
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    if tree != Path::new("/") {
        mount(Some(tree), tree, none, bind, none).expect("bind the tree");
        for dir in ["dev", "sys"] {
            let source = Path::new("/").join(dir);
            mount(Some(&source), &tree.join(dir), none, bind, none).expect("bind /dev and /sys");
        }
    }
    if let Err(errno) = mount(
        Some("proc"),
        &tree.join("proc"),
        Some("proc"),
        no_flags,
        none,
    ) {
        skip(format!("no /proc can be mounted here: {errno}"));
    }
    let ours = File::open(env!("CARGO_BIN_EXE_coracle-net")).expect("open coracle-net");
    // By its path: what /proc/self/exe opens is of the mount namespace where we began.
    let own = std::env::current_exe().and_then(File::open);
    let own = own.expect("open the test's own program");
    for dir in ["run", "tmp", "var/tmp", "home", "opt"] {
        mount(
            Some("memory"),
            &tree.join(dir),
            Some("tmpfs"),
            no_flags,
            none,
        )
        .expect("mount a tmpfs");
    }
    for (name, file) in [("coracle-net", &ours), ("guest", &own)] {
        let programs = tree.join(PROGRAMS.trim_start_matches('/'));
        fs::create_dir_all(&programs).expect("make the programs' directory");
        let path = programs.join(name);
        fs::write(&path, "").expect("make a mount point");
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        mount(Some(source.as_str()), &path, none, bind, none).expect("bind a program");
    }
}

/// Makes `tree` the root directory.
fn enter(tree: &Path) {
    if tree == Path::new("/") {
        return;
    }
    std::env::set_current_dir(tree).expect("enter the tree");
    nix::unistd::pivot_root(".", ".").expect("make the tree the root");
    umount2(".", MntFlags::MNT_DETACH).expect("leave the old root");
    std::env::set_current_dir("/").expect("enter the new root");
}

/// An /etc of this machine's own; what it does not need to have otherwise is the tree's.
fn write_etc() {
    let (none, bind) = (None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC);
    fs::create_dir(ETC_OF_TREE).expect("make a mount point");
    mount(Some("/etc"), ETC_OF_TREE, none, bind, none).expect("bind /etc");
    mount(
        Some("memory"),
        "/etc",
        Some("tmpfs"),
        MsFlags::empty(),
        none,
    )
    .expect("mount a tmpfs");
    let resolver = Family::V4.elsewhere();
    let sub_ids = format!("user:{FIRST_SUB_ID}:{SUB_IDS}\n");
    for (name, text) in [
        (
            "passwd",
            format!("root:x:0:0::/root:/bin/sh\nuser:x:{USER}:{USER}::{HOME}:/bin/sh\n"),
        ),
        ("group", format!("root:x:0:\nuser:x:{USER}:\n")),
        ("subuid", sub_ids.clone()),
        ("subgid", sub_ids),
        ("hosts", "127.0.0.1 localhost\n".into()),
        ("resolv.conf", format!("nameserver {resolver}\n")),
    ] {
        fs::write(Path::new("/etc").join(name), text).expect("write to /etc");
    }
    let containers = Path::new("/etc/containers");
    fs::create_dir(containers).expect("make /etc/containers");
    let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
    fs::write(containers.join("policy.json"), policy).expect("write policy.json");
    for entry in fs::read_dir(ETC_OF_TREE)
        .expect("the tree's /etc")
        .flatten()
    {
        // What is there already stays.
        let _ = symlink(entry.path(), Path::new("/etc").join(entry.file_name()));
    }
}

/// The helpers and the programs that map sub-IDs, which must be this machine's root's to have its
/// rights. And the user's directories.
fn lay_out_programs(has_peers: bool) {
    for name in ["newuidmap", "newgidmap"] {
        let copy = Path::new(PROGRAMS).join(name);
        if let Err(error) = fs::copy(Path::new("/usr/bin").join(name), &copy) {
            skip(format!("{name} cannot be copied (package uidmap): {error}"));
        }
        fs::set_permissions(&copy, Permissions::from_mode(0o4755)).expect("make it setuid");
    }
    fs::create_dir(HELPERS).expect("make the helpers' directory");
    for name in ["slirp4netns", "pasta", "pesto"] {
        let program = match has_peers {
            false => Path::new(PROGRAMS).join("coracle-net"),
            true => Path::new("/usr/bin").join(name),
        };
        symlink(program, Path::new(HELPERS).join(name)).expect("link a helper");
    }
    for dir in [HOME, TEMPORARY, RUNTIME] {
        fs::create_dir_all(dir).expect("make a directory of the user's");
        give_to_user(Path::new(dir));
    }
}

fn give_to_user(path: &Path) {
    chown(path, Some(USER), Some(USER)).expect("give a directory to the user");
}

/// As init systems have it, and engines expect it.
fn share_mounts() {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none).expect("share the mounts");
}

/// The host's network, and elsewhere behind it.
fn connect_to_elsewhere() -> (Netns, Netns) {
    let host = Netns::open(Path::new("/proc/self/ns/net"));
    let elsewhere = Netns::create();
    host.link(|links| links.up("lo")?.add_veth("up0", "up0", elsewhere.as_fd()));
    let (v4, v6) = (Family::V4, Family::V6);
    for (netns, own, gateway) in [
        (
            &host,
            Family::host as fn(Family) -> _,
            Family::elsewhere as fn(Family) -> _,
        ),
        (&elsewhere, Family::elsewhere, Family::host),
    ] {
        netns.sysctl("ipv4/ping_group_range", "0 65535");
        netns.link(|links| {
            links
                .up("up0")?
                .add_address("up0", own(v4), 24)?
                .add_address("up0", own(v6), 64)?
                .add_route(v4.unspecified(), 0, gateway(v4))?
                .add_route(v6.unspecified(), 0, gateway(v6))
        });
        netns.wait_until_local(own(v6));
    }
    (host, elsewhere)
}

/// The processes of the machine.
fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").expect("read /proc").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn command_line(pid: u32) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&words).replace('\0', " ")
}

/// Waits until nothing is left: some of it goes by itself.
fn eventually_empty(what: &str, left: impl Fn() -> Vec<String>) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = left();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{what} left: {left:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn sockets_below(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => sockets_below(&entry.path()),
            Ok(kind) if kind.is_socket() => vec![entry.path().display().to_string()],
            _ => Vec::new(),
        })
        .collect()
}

fn mounts() -> String {
    fs::read_to_string("/proc/self/mounts").expect("our mounts")
}

// Nothing of this is below /run: for its bridge networks, Podman hides what is there.
const HELPERS: &str = "/opt/helpers";
const PROGRAMS: &str = "/opt/programs";
const ETC_OF_TREE: &str = "/opt/etc";
const HOME: &str = "/home/user";
const TEMPORARY: &str = "/home/user/tmp";
const RUNTIME: &str = "/run/user/1000";
/// The helpers come first: Podman finds them so where its configuration names no other.
const PATH: &str = "/opt/helpers:/opt/programs:/usr/sbin:/usr/bin:/sbin:/bin";
const USER: u32 = 1000;
const FIRST_SUB_ID: u32 = 2000;
const SUB_IDS: u32 = 60000;
