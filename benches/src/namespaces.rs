//! The world of one figure: a user namespace of its own with a "host" network namespace, and the
//! guests and remote machines inside it.
//!
//! ```text
//! the user who runs the comparison
//! └─ world: user, mount, pid, network namespace; we are uid 1000 in it, with all capabilities
//!    ├─ "host"      the world's network namespace: lo, uplink 198.51.100.2; helpers run here,
//!    │              without capabilities
//!    ├─ elsewhere   network namespace at the other end of the uplink, 198.51.100.1
//!    └─ guest       user and network namespace, the helper's client
//! ```
//!
//! Helpers are started as uid 1000 without a single capability, just as a normal user's engine
//! starts them; that they may enter the guest follows from owning its user namespace. The PID
//! namespace's init is the stage: when it ends, or the comparison is killed, the kernel takes
//! everything with it, daemonised helpers included, so nothing is ever left behind.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{getgid, getuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, set_capabilities,
};

/// A directory that every system has and no measurement needs; the world mounts its private tmpfs
/// there.
pub const SCRATCH: &str = "/mnt";

/// Our user and group in the world and in guests.
const WORLD_ID: u32 = 1000;

/// Moves this single-threaded process into a new world. Its next child becomes the world's init and
/// keeps all capabilities.
pub fn create_world() -> Result<()> {
    die_with_parent()?;
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    let flags = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC;
    unshare(flags).context(
        "failed to create namespaces: unprivileged user namespaces must be allowed \
         (user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)",
    )?;
    map_ids(uid, gid)?;
    keep_capabilities()
}

/// Gives the world's init its mounts and limits.
pub fn settle_init() -> Result<()> {
    die_with_parent()?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("failed to make mounts private")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, none).context(
        "failed to mount a fresh /proc: inside a container, run it with an unmasked /proc",
    )?;
    mount(
        Some("coracle-benches"),
        SCRATCH,
        Some("tmpfs"),
        flags - MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
    .with_context(|| format!("failed to mount a tmpfs on {SCRATCH}"))?;
    // Thousands of connections need thousands of descriptors, in the helpers too, which inherit the
    // limit.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
        .context("failed to raise the limit of open files")
}

/// Which namespaces a holder process makes and keeps.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Held {
    /// User and network namespace, for a guest.
    Guest,
    /// Network namespace only, for a machine elsewhere.
    Elsewhere,
    /// Those it was started in, made by somebody else.
    Nothing,
}

/// Makes namespaces, writes one byte to standard output and holds them until standard input ends.
pub fn hold(held: Held) -> Result<()> {
    match held {
        Held::Guest => {
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
                .context("failed to create a guest")?;
            map_ids(WORLD_ID, WORLD_ID)?;
        }
        Held::Elsewhere => {
            unshare(CloneFlags::CLONE_NEWNET).context("failed to create a network namespace")?
        }
        Held::Nothing => {}
    }
    let mut out = io::stdout().lock();
    out.write_all(b"1")
        .and_then(|()| out.flush())
        .context("failed to report to the stage")?;
    io::stdin()
        .read_to_end(&mut Vec::new())
        .context("failed to wait for the stage")?;
    Ok(())
}

/// Joins the user (unless it is ours already) and network namespaces of a process. For
/// single-threaded processes.
pub fn enter(pid: i32) -> Result<()> {
    let user = File::open(format!("/proc/{pid}/ns/user"))
        .with_context(|| format!("failed to open the user namespace of process {pid}"))?;
    let net = open_network_of(pid)?;
    if user.metadata()?.ino() != fs::metadata("/proc/self/ns/user")?.ino() {
        setns(&user, CloneFlags::CLONE_NEWUSER)
            .with_context(|| format!("failed to join the user namespace of process {pid}"))?;
    }
    setns(&net, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("failed to join the network namespace of process {pid}"))
}

/// Runs `work` on a thread inside the network namespace of a process, with the capabilities of the
/// world's init.
pub fn in_network_of<T: Send>(pid: i32, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let net = open_network_of(pid)?;
    let inside = || {
        setns(&net, CloneFlags::CLONE_NEWNET).context("failed to join a network namespace")?;
        work()
    };
    match std::thread::scope(|scope| scope.spawn(inside).join()) {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// The network namespace of a process.
pub fn open_network_of(pid: i32) -> Result<File> {
    File::open(format!("/proc/{pid}/ns/net"))
        .with_context(|| format!("failed to open the network namespace of process {pid}"))
}

/// Gives up what [`create_world`] kept, so that the next `exec` starts a program without
/// capabilities.
pub fn drop_capabilities() -> Result<()> {
    clear_ambient_capability_set().context("failed to clear the ambient capabilities")?;
    let mut sets = capabilities(None).context("failed to read our capabilities")?;
    sets.inheritable = CapabilitySet::empty();
    set_capabilities(None, sets).context("failed to drop the inheritable capabilities")
}

/// Makes the capabilities of a fresh user namespace outlive `exec`, although our uid in it is not
/// 0.
fn keep_capabilities() -> Result<()> {
    let permitted = capabilities(None)
        .context("failed to read our capabilities")?
        .permitted;
    set_capabilities(
        None,
        CapabilitySets {
            effective: permitted,
            permitted,
            inheritable: permitted,
        },
    )
    .context("failed to make our capabilities inheritable")?;
    for capability in permitted.iter() {
        configure_capability_in_ambient_set(capability, true)
            .context("failed to raise an ambient capability")?;
    }
    Ok(())
}

/// Maps one user and one group, which needs no privilege and no sub-IDs.
fn map_ids(outer_uid: u32, outer_gid: u32) -> Result<()> {
    let write = |name: &str, line: String| {
        fs::write(format!("/proc/self/{name}"), line)
            .with_context(|| format!("failed to write /proc/self/{name}"))
    };
    // A group map without privilege is allowed only once setgroups is denied; in a nested namespace
    // it already is.
    if fs::read_to_string("/proc/self/setgroups").is_ok_and(|state| state.trim() == "allow") {
        write("setgroups", "deny".into())?;
    }
    write("uid_map", format!("{WORLD_ID} {outer_uid} 1"))?;
    write("gid_map", format!("{WORLD_ID} {outer_gid} 1"))
}

fn die_with_parent() -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("failed to tie this process to its parent")
}

/// Makes `name` the congestion control of new sockets in the network namespace of `pid`.
///
/// The kernel lets only the owner of the initial namespace use an algorithm that is not in
/// `net.ipv4.tcp_allowed_congestion_control`.
pub fn set_congestion(pid: i32, name: &str) -> Result<()> {
    const PATH: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
    in_network_of(pid, || {
        if fs::read_to_string(PATH).is_ok_and(|current| current.trim() == name) {
            return Ok(());
        }
        match fs::write(PATH, name) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => bail!(
                "{name} is not in net.ipv4.tcp_allowed_congestion_control, so the namespaces keep the host's default; \
                 only the generators' own sockets use {name}"
            ),
            Err(e) => Err(e).with_context(|| format!("congestion control {name} is not available")),
        }
    })
}
