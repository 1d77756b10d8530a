//! The world of a trial: a caller, with a directory, a store and a busybox tree of their own.
//!
//! The store of root is not chosen by variables. When the tests run as root, each trial has its own
//! mounts, and there its own directories lie over the machine's. So trials see no containers but
//! theirs, and none of them shows outside.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;
use tempfile::TempDir;

use super::caller::{Caller, Kind};
use super::process::{Outcome, all_reaped, children_named, end_children, finish};
use super::skip;

const APPLETS: &[&str] = &[
    "cat", "chmod", "chown", "cut", "echo", "env", "false", "grep", "head", "hostname", "id", "ip",
    "kill", "ln", "ls", "mkdir", "mount", "mv", "nsenter", "ps", "pwd", "readlink", "rm", "sh",
    "sleep", "stat", "stty", "test", "touch", "true", "tty", "umask", "unshare", "wc",
];

/// Somebody who runs containers, with a directory of their own and a busybox tree in it.
pub struct World {
    dir: TempDir,
    caller: Caller,
    /// The mounts of this process, as they were before the body.
    mounts: Vec<String>,
}

impl World {
    /// Makes this process, which must have one thread, the one that a trial has to itself. Tells
    /// what is missing for it.
    pub fn new(caller: Caller) -> Result<Self, String> {
        if busybox().is_none() {
            return Err("there is no static busybox here (package busybox-static)".into());
        }
        // What a command leaves behind becomes our child, where `left` sees it.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .expect("become a subreaper");
        // Closed to others, who could run what containers of the host's root make in it.
        let dir = tempfile::Builder::new()
            .prefix("coracle-test-")
            .permissions(PermissionsExt::from_mode(0o700))
            .tempdir()
            .expect("a directory");
        let mut world = Self {
            dir,
            caller,
            mounts: Vec::new(),
        };
        for name in ["home", "run", "run/coracle", "data"] {
            DirBuilder::new()
                .mode(0o700)
                .create(world.path(name))
                .expect("a directory");
        }
        world.make_rootfs("rootfs");
        world.give_away(world.dir.path());
        if geteuid().is_root() {
            world.hide_stores_of_the_machine()?;
        }
        world.mounts = mount_points();
        Ok(world)
    }

    fn hide_stores_of_the_machine(&self) -> Result<(), String> {
        let none = None::<&str>;
        unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
            .map_err(|errno| format!("root cannot have mounts of its own here: {errno}"))?;
        if self.is_root() {
            for (name, place) in [
                ("run/coracle", "/run/coracle"),
                ("data", "/var/lib/coracle"),
            ] {
                // As coracle makes them: it will not use one that is open to others.
                DirBuilder::new()
                    .mode(0o700)
                    .recursive(true)
                    .create(place)
                    .expect("root's store");
                mount(Some(&self.path(name)), place, none, MsFlags::MS_BIND, none)
                    .expect("a bind mount");
            }
        }
        Ok(())
    }

    /// What this world's containers have left behind: processes, records, files in the run
    /// directory, mounts. For the end of a body, which should have removed them all.
    pub fn left(&self) -> Vec<String> {
        self.end_shared_namespaces();
        let mut left = Vec::new();
        if !all_reaped(GRACE) {
            left.extend(
                children_named()
                    .into_iter()
                    .map(|line| format!("process {line}")),
            );
        }
        let listed = |dir: PathBuf, expected: &str| {
            let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
            entries
                .filter(|entry| entry.file_name() != expected)
                .map(|entry| entry.path().display().to_string())
                .collect::<Vec<String>>()
        };
        left.extend(listed(self.path("run"), "coracle"));
        left.extend(listed(self.path("run/coracle"), ""));
        left.extend(listed(self.containers(), "lock"));
        let mounts = mount_points();
        let new = mounts.iter().filter(|line| !self.mounts.contains(line));
        left.extend(new.map(|place| format!("mount {place}")));
        left
    }

    /// What `coracle unshare` leaves on purpose.
    pub fn end_shared_namespaces(&self) {
        if self.path("run/coracle/holder").exists() {
            self.try_coracle(&["system", "migrate"]).success();
        }
    }

    /// Ends and removes everything that is still there, the directory included.
    pub fn clear(&self) -> Result<(), String> {
        if !end_children(GRACE) {
            return Err(format!("these do not end: {:?}", children_named()));
        }
        let recorded = fs::read_dir(self.containers())
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.path().is_dir());
        // Files of sub-IDs can be removed by coracle only. A command that hangs is ended with its
        // children.
        for entry in recorded {
            let mut remove = self.coracle([OsStr::new("rm"), OsStr::new("-f"), &entry.file_name()]);
            let _ = remove.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
            let _ = all_reaped(GRACE) || end_children(GRACE);
        }
        if self.data().join("volumes").exists() {
            let mut remove = self.coracle(["volume", "rm", "-a", "-f"]);
            let _ = remove.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
            let _ = all_reaped(GRACE) || end_children(GRACE);
        }
        let working = fs::read_dir(self.storage().with_file_name("working"));
        for entry in working.into_iter().flatten().flatten() {
            let mut remove = self.coracle([OsStr::new("rm"), &entry.file_name()]);
            let _ = remove.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
            let _ = all_reaped(GRACE) || end_children(GRACE);
        }
        if self.storage().exists() {
            let mut remove = self.coracle(["rmi", "-a", "-f"]);
            let _ = remove.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
            let _ = all_reaped(GRACE) || end_children(GRACE);
        }
        for place in mount_points() {
            if Path::new(&place).starts_with(self.dir.path()) {
                let _ = umount2(Path::new(&place), MntFlags::MNT_DETACH);
            }
        }
        fs::remove_dir_all(self.dir.path())
            .map_err(|error| format!("{}: {error}", self.dir.path().display()))
    }

    /// The data directory by the name that coracle has for it.
    pub fn store(&self) -> PathBuf {
        match self.is_root() {
            true => "/var/lib/coracle".into(),
            false => self.data(),
        }
    }

    /// Where images are, by the name that these tests have for it.
    pub fn storage(&self) -> PathBuf {
        self.data().join("storage")
    }

    /// Where each container has a directory.
    pub fn containers(&self) -> PathBuf {
        self.data().join("containers")
    }

    /// Where this world's records, images and logs are.
    fn data(&self) -> PathBuf {
        if self.is_root() {
            self.path("data")
        } else {
            self.path("home/.local/share/coracle")
        }
    }

    /// Whether the container has but one user and one group.
    pub fn has_single_id(&self) -> bool {
        self.caller.kind == Kind::Stranger
    }

    /// Makes root of the world's containers the owner of a file or directory: the world's user, or,
    /// where that is the host's root, another.
    pub fn give_to_container(&self, path: &Path) {
        self.give_away(path);
        if self.is_root() {
            let root = Some(self.container_root());
            lchown(path, root, root).expect("a change of owner");
        }
    }

    /// The user ID that root of a container has here: not the caller's, if that is the host's root.
    pub fn container_root(&self) -> u32 {
        let maps = self.sh(&[], "cat /proc/self/uid_map");
        let outside = maps.split_ascii_whitespace().nth(1).expect("an ID map");
        outside.parse().expect("a user ID")
    }

    pub fn is_root(&self) -> bool {
        self.caller.kind == Kind::Root
    }

    /// The caller's user ID.
    pub fn uid(&self) -> u32 {
        self.caller.uid.as_raw()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn rootfs(&self) -> PathBuf {
        self.path("rootfs")
    }

    /// Makes a tree with busybox and little else, owned by the test's own user until
    /// [`World::give_away`].
    pub fn make_rootfs(&self, name: &str) -> PathBuf {
        let rootfs = self.path(name);
        for dir in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
            fs::create_dir_all(rootfs.join(dir)).expect("a directory");
        }
        fs::copy(
            busybox().expect("looked for before"),
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
        if geteuid() == self.caller.uid {
            return;
        }
        let (uid, gid) = (self.caller.uid.as_raw(), self.caller.gid.as_raw());
        lchown(path, Some(uid), Some(gid)).expect("a change of owner");
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
            .caller
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

    /// The arguments of a run in the usual tree, without a network unless `flags` names one.
    pub fn run_args(&self, flags: &[&str], command: &[&str]) -> Vec<String> {
        let rootfs = self.rootfs();
        let network = match flags.iter().any(|flag| flag.starts_with("--net")) {
            true => &[][..],
            false => &["--network", "none"],
        };
        let rootfs = ["--rootfs", rootfs.to_str().expect("a plain path")];
        ["run", "--rm"]
            .iter()
            .chain(network)
            .chain(flags)
            .chain(&rootfs)
            .chain(command)
            .map(|word| word.to_string())
            .collect()
    }

    /// `coracle run -d --name NAME FLAGS --rootfs ROOTFS COMMAND`, which must succeed. Returns the
    /// container's id.
    #[track_caller]
    pub fn detach(&self, name: &str, flags: &[&str], command: &[&str]) -> String {
        let fixed = ["run", "-d", "--name", name];
        let words = [&fixed, flags, &["--rootfs", "rootfs"], command].concat();
        self.try_coracle(&words).success().trim_end().to_owned()
    }

    /// A `coracle` in the foreground, with no input and an output that the case reads.
    pub fn start<A: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = A>,
        stderr: Stdio,
    ) -> Child {
        let mut command = self.coracle(args);
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(stderr).spawn().expect("coracle")
    }

    /// `coracle run --rm --network none --rootfs ROOTFS:rw COMMAND`: the directory itself is
    /// written.
    pub fn run_in_place(&self, rootfs: &Path, command: &[&str]) -> Outcome {
        let rootfs = format!("{}:rw", rootfs.display());
        let fixed = ["run", "--rm", "--network", "none", "--rootfs", &rootfs];
        self.try_coracle(&[&fixed, command].concat())
    }

    /// What `coracle ps -a` knows of a container: null for an exit code, or a PID, that it has not
    /// got.
    pub fn inspect(&self, name: &str) -> Option<serde_json::Value> {
        let listing = self.try_coracle(&["ps", "-a", "--format", "json"]);
        let rows: Vec<serde_json::Value> = serde_json::from_str(listing.success()).expect("JSON");
        let row = rows.into_iter().find(|row| row["Names"][0] == name)?;
        let exit_code = row["ExitCode"].as_i64().filter(|_| row["Exited"] == true);
        Some(serde_json::json!({
            "id": row["Id"], "name": name, "image": row["Image"], "command": row["Command"],
            "created": row["Created"], "status": row["State"], "exit_code": exit_code,
            "pid": row["Pid"].as_i64().filter(|pid| *pid > 0), "ports": row["Ports"],
            "labels": row["Labels"],
        }))
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

/// Every path of a tree with its type, mode, owner, size and link target.
pub fn snapshot(dir: &Path) -> Vec<String> {
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

/// The program under test.
pub fn coracle() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        std::env::var_os(PROGRAM_VARIABLE)
            .expect("set for every trial")
            .into()
    })
}

/// The example that uses the engine as a library. Skips where nobody has built it.
pub fn example() -> PathBuf {
    let example = example_beside(coracle());
    if !example.exists() {
        skip("the example is not built: cargo build -p coracle --example engine");
    }
    example
}

fn example_beside(program: &Path) -> PathBuf {
    program.with_file_name("examples").join("engine")
}

/// The program under test, where every user can reach it: a build directory may be private.
pub struct Program {
    /// Of the copy that root has made. Its end is the copy's.
    _dir: Option<TempDir>,
    path: PathBuf,
}

impl Program {
    pub fn for_everybody() -> Self {
        let built = Path::new(env!("CARGO_BIN_EXE_coracle"));
        if !geteuid().is_root() {
            return Self {
                _dir: None,
                path: built.to_owned(),
            };
        }
        let dir = tempfile::Builder::new()
            .prefix("coracle-bin-")
            .permissions(PermissionsExt::from_mode(0o755))
            .tempdir()
            .expect("a directory");
        let path = dir.path().join("coracle");
        copy_for_everybody(built, &path);
        if example_beside(built).exists() {
            let examples = dir.path().join("examples");
            fs::create_dir(&examples).expect("a directory");
            fs::set_permissions(&examples, PermissionsExt::from_mode(0o755)).expect("open to all");
            copy_for_everybody(&example_beside(built), &example_beside(&path));
        }
        Self {
            _dir: Some(dir),
            path,
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn copy_for_everybody(built: &Path, path: &Path) {
    fs::copy(built, path).expect("a copy of the program");
    fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("open to all");
    chown(path, Some(0), Some(0)).expect("root's");
}

/// Where something is mounted in this process's namespace.
fn mount_points() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(str::to_owned)
        .collect()
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

/// The monitor's end comes a moment after that of the command.
const GRACE: Duration = Duration::from_secs(10);

/// Names the copy of the program to a trial.
pub const PROGRAM_VARIABLE: &str = "CORACLE_PROGRAM";

/// The store of a world on an overlay, as in a container of another engine. For cases that root
/// prepares. Dropped, it is gone with all that is in it.
pub struct OverlayStore {
    store: PathBuf,
    base: PathBuf,
}

impl OverlayStore {
    pub fn of(world: &World) -> Self {
        let store = world.store();
        fs::create_dir_all(&store).expect("made");
        // Who comes after it is gone finds a store to be made there.
        world.give_away(&store);
        let base = world.path("overlay-base");
        fs::create_dir(&base).expect("made");
        let none = MsFlags::empty();
        mount(Some("none"), &base, Some("tmpfs"), none, None::<&str>).expect("a tmpfs");
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| base.join(name));
        for dir in [&lower, &upper, &work] {
            fs::create_dir(dir).expect("made");
            world.give_away(dir);
            fs::set_permissions(dir, PermissionsExt::from_mode(0o700)).expect("ours");
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        mount(Some("none"), &store, Some("overlay"), none, Some(&*options)).expect("an overlay");
        Self { store, base }
    }
}

impl Drop for OverlayStore {
    fn drop(&mut self) {
        for place in [&self.store, &self.base] {
            umount2(place, MntFlags::MNT_DETACH).expect("unmounted");
        }
    }
}
