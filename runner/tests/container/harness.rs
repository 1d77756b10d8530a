//! Callers, root file systems and deadlines for the container tests.
//!
//! Each test runs as whoever runs the tests and, when that is root, once more as a user with no sub-IDs, who gets the single-ID map.
//! What a machine lacks is reported as a skip with its reason.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::unistd::geteuid;
use tempfile::TempDir;

/// No command of these tests takes as long; one that does hangs.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Not in any passwd file, so that nobody has granted it sub-IDs.
const STRANGER: u32 = 64_123;

const APPLETS: &[&str] = &[
    "cat", "echo", "env", "false", "grep", "head", "hostname", "id", "ip", "kill", "ls", "mkdir",
    "mount", "ps", "pwd", "readlink", "rm", "sh", "sleep", "stat", "stty", "touch", "true", "tty",
    "umask", "wc",
];

/// Somebody who runs containers, with a directory of their own and a busybox tree in it.
pub struct World {
    dir: TempDir,
    uid: u32,
    prefix: Vec<String>,
}

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

/// Everyone a test is to be done for; empty, with a word on why, where containers cannot be run at all.
pub fn worlds() -> Vec<World> {
    if busybox().is_none() {
        eprintln!("SKIPPED: no static busybox on this machine (package busybox-static)");
        return Vec::new();
    }
    if fs::read_to_string("/proc/sys/user/max_user_namespaces").is_ok_and(|max| max.trim() == "0") {
        eprintln!("SKIPPED: user namespaces are switched off on this machine");
        return Vec::new();
    }
    let me = geteuid().as_raw();
    let mut worlds = vec![World::new(me, Vec::new())];
    if me == 0 {
        let ids = [
            format!("--reuid={STRANGER}"),
            format!("--regid={STRANGER}"),
            "--clear-groups".into(),
        ];
        let prefix: Vec<String> = std::iter::once("setpriv".to_owned()).chain(ids).collect();
        match Command::new("setpriv").arg("--version").output() {
            Ok(_) => worlds.push(World::new(STRANGER, prefix)),
            Err(_) => eprintln!(
                "SKIPPED for a normal user: setpriv is not installed (package util-linux)"
            ),
        }
    }
    worlds
}

impl World {
    fn new(uid: u32, prefix: Vec<String>) -> World {
        let dir = tempfile::Builder::new()
            .prefix("coracle-test-")
            .tempdir()
            .expect("a directory");
        let world = World { dir, uid, prefix };
        for name in ["home", "run"] {
            fs::create_dir(world.path(name)).expect("a directory");
        }
        fs::set_permissions(world.path("run"), PermissionsExt::from_mode(0o700)).expect("private");
        world.make_rootfs("rootfs");
        world.give_away(world.dir.path());
        world
    }

    /// Whether the container has but one user and one group.
    pub fn has_single_id(&self) -> bool {
        self.uid == STRANGER
    }

    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn rootfs(&self) -> PathBuf {
        self.path("rootfs")
    }

    /// Makes a tree with busybox and little else, owned by the test's own user until [`World::give_away`].
    pub fn make_rootfs(&self, name: &str) -> PathBuf {
        let rootfs = self.path(name);
        for dir in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
            fs::create_dir_all(rootfs.join(dir)).expect("a directory");
        }
        fs::copy(
            busybox().expect("checked by worlds"),
            rootfs.join("bin/busybox"),
        )
        .expect("busybox");
        for applet in APPLETS {
            symlink("busybox", rootfs.join("bin").join(applet)).expect("a link");
        }
        rootfs
    }

    /// Makes the world's user the owner of a tree.
    pub fn give_away(&self, path: &Path) {
        if geteuid().as_raw() == self.uid {
            return;
        }
        std::os::unix::fs::lchown(path, Some(self.uid), Some(self.uid)).expect("a change of owner");
        if path.is_dir() && !path.is_symlink() {
            for entry in fs::read_dir(path).expect("a directory") {
                self.give_away(&entry.expect("an entry").path());
            }
        }
    }

    /// A coracle command as the world's user.
    pub fn coracle<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        self.command(&[coracle().as_os_str()], args)
    }

    /// A command as the world's user: `program` with its first arguments, then `args`.
    pub fn command<S: AsRef<OsStr>>(
        &self,
        program: &[&OsStr],
        args: impl IntoIterator<Item = S>,
    ) -> Command {
        let words: Vec<&OsStr> = self
            .prefix
            .iter()
            .map(OsStr::new)
            .chain(program.iter().copied())
            .collect();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .args(args)
            .current_dir(self.dir.path());
        command
            .env("HOME", self.path("home"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env_remove("XDG_DATA_HOME");
        command
    }

    /// `coracle ARGS`, to its end.
    #[track_caller]
    pub fn try_coracle(&self, args: &[&str]) -> Outcome {
        finish(self.coracle(args))
    }

    /// `coracle run --rm --network none FLAGS --rootfs ROOTFS COMMAND`, to its end.
    #[track_caller]
    pub fn run(&self, flags: &[&str], command: &[&str]) -> Outcome {
        finish(self.coracle(self.run_args(flags, command)))
    }

    /// The same with `sh -c SCRIPT`, which must succeed. Returns what it printed.
    #[track_caller]
    pub fn sh(&self, flags: &[&str], script: &str) -> String {
        self.run(flags, &["sh", "-c", script]).success().to_owned()
    }

    pub fn run_args(&self, flags: &[&str], command: &[&str]) -> Vec<String> {
        let rootfs = self.rootfs();
        let fixed = ["run", "--rm", "--network", "none"];
        let rootfs = ["--rootfs", rootfs.to_str().expect("a plain path")];
        fixed
            .iter()
            .chain(flags)
            .chain(&rootfs)
            .chain(command)
            .map(|word| word.to_string())
            .collect()
    }

    /// What `coracle ps -a` knows of a container.
    pub fn inspect(&self, name: &str) -> Option<serde_json::Value> {
        let listing = self.try_coracle(&["ps", "-a", "--format", "json"]);
        let rows: Vec<serde_json::Value> = serde_json::from_str(listing.success()).expect("JSON");
        rows.into_iter().find(|row| row["name"] == name)
    }

    /// PID 1 of a running container.
    #[track_caller]
    pub fn init_of(&self, name: &str) -> i32 {
        let pid = self.inspect(name).expect("the container")["pid"]
            .as_i64()
            .expect("it runs");
        i32::try_from(pid).expect("a PID")
    }
}

/// A name that no other test uses, in this run or another.
pub fn unique(stem: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!(
        "test-{stem}-{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
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
        // Beside reading: both pipes are short. A command that does not read its input ends all the same.
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
            // SIGKILL to coracle ends the container as well.
            child.kill().expect("killed");
            child.wait().expect("a child");
            panic!("a command did not end within {DEADLINE:?}");
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

pub fn parent_of(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .expect("fields")
        .split_ascii_whitespace()
        .collect();
    fields[1].parse().expect("a PID")
}

/// Every path of a tree with its type, mode, owner, size and link target.
pub fn snapshot(dir: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut lines = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(path) = left.pop() {
        let found = fs::symlink_metadata(&path).expect("a file");
        let target = fs::read_link(&path).unwrap_or_default();
        let times = (found.mtime(), found.mtime_nsec());
        lines.push(format!(
            "{path:?} {:o} {}:{} {} {times:?} {target:?}",
            found.mode(),
            found.uid(),
            found.gid(),
            found.size()
        ));
        if found.is_dir() {
            left.extend(
                fs::read_dir(&path)
                    .expect("a directory")
                    .map(|entry| entry.expect("an entry").path()),
            );
        }
    }
    lines.sort();
    lines
}

/// The program under test, where every user can reach it: a build directory may be private.
pub fn coracle() -> &'static Path {
    static PROGRAM: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let built = Path::new(env!("CARGO_BIN_EXE_coracle"));
    if !geteuid().is_root() {
        return built;
    }
    let make = || {
        let dir = tempfile::Builder::new()
            .prefix("coracle-bin-")
            .tempdir()
            .expect("a directory");
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("open to all");
        let program = dir.path().join("coracle");
        fs::copy(built, &program).expect("a copy of the program");
        chown(&program, Some(0), Some(0)).expect("root's");
        (dir, program)
    };
    &PROGRAM.get_or_init(make).1
}

/// A busybox that needs no library.
fn busybox() -> Option<&'static Path> {
    static BUSYBOX: OnceLock<Option<PathBuf>> = OnceLock::new();
    let is_static = |path: &PathBuf| {
        let program = fs::read(path).unwrap_or_default();
        let loader = [&b"/ld-linux"[..], b"/ld-musl"];
        let names = |wanted: &[u8]| program.windows(wanted.len()).any(|window| window == wanted);
        !program.is_empty() && !loader.into_iter().any(names)
    };
    let find = || {
        ["/bin/busybox", "/usr/bin/busybox", "/usr/local/bin/busybox"]
            .map(PathBuf::from)
            .into_iter()
            .find(is_static)
    };
    BUSYBOX.get_or_init(find).as_deref()
}
