//! A command in namespaces of its own, as its user's root there: what the helper gives a network
//! to, and what it ends with.
//!
//! ```text
//! helper ──clone──> init (process 1 of the namespaces) ──exec──> the command
//! ```
//!
//! The command is not process 1 itself: that one does not get the signals that it does not handle,
//! so that a terminal could not interrupt `sleep`. All of them share the helper's process group and
//! terminal, so that job control is the command's. Init ends with the command, and everything else
//! in the namespaces with init; init is killed when the helper ends. The command is executed once
//! the helper says so, when the network is up.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, exit};

use nix::mount::{MsFlags, mount};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Pid as NixPid, getegid, geteuid, gethostname, sethostname};
use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{
    DumpableBehavior, Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open,
    set_dumpable_behavior, set_parent_process_death_signal, waitid,
};
use tracing::warn;

use crate::sandbox::root::{self, Ids};
use crate::{descriptors, sys};

/// What to execute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub file: OsString,
    /// What it is told that it is called.
    pub name: OsString,
    pub arguments: Vec<OsString>,
}

impl Program {
    /// The user's shell, as at a login.
    pub fn login_shell() -> Self {
        let file = std::env::var_os("SHELL").filter(|shell| !shell.is_empty());
        let file = file.unwrap_or_else(|| "/bin/sh".into());
        let mut name = OsString::from("-");
        name.push(Path::new(&file).file_name().unwrap_or(&file));
        Self {
            file,
            name,
            arguments: Vec::new(),
        }
    }

    /// `None` without a word.
    pub fn of_words(mut words: Vec<OsString>) -> Option<Self> {
        if words.is_empty() {
            return None;
        }
        let file = words.remove(0);
        Some(Self {
            name: file.clone(),
            file,
            arguments: words,
        })
    }
}

/// A command's namespaces, and its init.
#[derive(Debug)]
pub struct Guest {
    init: Pid,
    process: OwnedFd,
    socket: OwnedFd,
}

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    #[error("cannot become another user instead of root: {0}")]
    LeaveRoot(#[source] io::Error),
    #[error(
        "cannot make namespaces: {0}; see user_namespaces(7) for what the system may forbid its \
         users"
    )]
    Namespaces(#[source] io::Error),
    #[error("cannot set up the new namespaces: {0}")]
    Init(String),
    #[error("cannot talk to the process in the new namespaces: {0}")]
    Talk(#[source] io::Error),
}

impl Guest {
    /// Makes the namespaces, while this process has a single thread. With `own_users` they belong
    /// to a new user namespace, whose root is this process's user, or `instead_of_root` if that is
    /// the host's root: this process is that from then on, with all its capabilities.
    pub fn start(
        program: Program,
        own_users: bool,
        instead_of_root: Ids,
    ) -> Result<Self, GuestError> {
        let mut namespaces = libc::CLONE_NEWNET
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWPID;
        let ids = own_users.then(|| root::leave(instead_of_root)).transpose();
        ids.map_err(GuestError::LeaveRoot)?;
        let maps = own_users.then(IdMaps::of_this_process);
        if own_users {
            namespaces |= libc::CLONE_NEWUSER;
        }
        let (ours, theirs) = descriptors::message_pair().map_err(GuestError::Talk)?;
        let init = sys::fork_into(namespaces, || live(&program, maps, theirs.as_fd()))
            .map_err(GuestError::Namespaces)?;
        drop(theirs);
        let process = pidfd_open(init, PidfdFlags::empty());
        let guest = Self {
            init,
            process: process.map_err(|errno| GuestError::Talk(errno.into()))?,
            socket: ours,
        };
        match receive(guest.socket.as_fd()).map_err(GuestError::Talk)? {
            said if said == IS_SET_UP => Ok(guest),
            said if said.is_empty() => Err(GuestError::Init("it has ended".to_owned())),
            said => Err(GuestError::Init(said)),
        }
    }

    /// The process whose namespaces they are.
    pub fn process(&self) -> Pid {
        self.init
    }

    /// Has the command executed. Another word does nothing.
    pub fn release(&self) -> io::Result<()> {
        Ok(rustix::net::send(&self.socket, GO, SendFlags::NOSIGNAL).map(drop)?)
    }

    /// The exit code of a command that has ended; 128 and the number of the signal that ended it.
    pub fn exit_code(&self) -> Option<u8> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = waitid(WaitId::PidFd(self.process.as_fd()), options).ok()??;
        let by_signal = || Some(128 + status.terminating_signal()?);
        let code = status.exit_status().or_else(by_signal)?;
        u8::try_from(code).ok()
    }
}

/// Who is who in a new user namespace.
struct IdMaps {
    users: String,
    groups: String,
}

impl IdMaps {
    /// This process's user and group are 0, and nobody else has a number.
    fn of_this_process() -> Self {
        Self {
            users: format!("0 {} 1", geteuid()),
            groups: format!("0 {} 1", getegid()),
        }
    }

    /// To be called in the namespace.
    fn write(&self) -> io::Result<()> {
        // A process that was root owns its files in /proc again.
        set_dumpable_behavior(DumpableBehavior::Dumpable)?;
        // What a user may not otherwise map groups without (user_namespaces(7)).
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", &self.users)?;
        fs::write("/proc/self/gid_map", &self.groups)
    }
}

/// Init's first word, and the one that it waits for.
const IS_SET_UP: &str = "1";
const GO: &[u8] = b"1";

/// Init's whole life.
fn live(program: &Program, maps: Option<IdMaps>, helper: BorrowedFd<'_>) {
    sys::close_descriptors(3, helper);
    let _ = rustix::thread::set_name(c"pasta-init");
    let said = match set_up(maps) {
        Ok(()) => IS_SET_UP.to_owned(),
        Err(error) => error.to_string(),
    };
    let told = rustix::net::send(helper, said.as_bytes(), SendFlags::NOSIGNAL);
    // Nothing comes any more when the helper has failed.
    let released = receive(helper).is_ok_and(|word| !word.is_empty());
    if told.is_err() || !released {
        exit(1);
    }
    exit(run(program))
}

fn set_up(maps: Option<IdMaps>) -> io::Result<()> {
    // Should the helper have ended before: then nothing comes from the socket.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    maps.map_or(Ok(()), |maps| maps.write())?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    // Not where parts of /proc are hidden from this process (mount_namespaces(7)).
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if let Err(errno) = mount(Some("proc"), "/proc", Some("proc"), flags, none) {
        warn!("/proc shows the host's processes: {errno}");
    }
    if let Err(error) = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0") {
        warn!("ping may not work without privileges: {error}");
    }
    let mut name = OsString::from("pasta-");
    name.push(gethostname()?);
    if let Err(errno) = sethostname(cut(&name)) {
        warn!("the host's name stays as it is: {errno}");
    }
    Ok(())
}

/// At most as long as a host's name may be (uname(2)).
fn cut(name: &OsStr) -> &OsStr {
    use std::os::unix::ffi::OsStrExt;
    const MAX_LEN: usize = 64;
    let bytes = name.as_bytes();
    OsStr::from_bytes(&bytes[..bytes.len().min(MAX_LEN)])
}

/// Executes the program, and returns its exit code once it has ended.
fn run(program: &Program) -> i32 {
    let mut command = Command::new(&program.file);
    command.arg0(&program.name).args(&program.arguments);
    let child = match command.spawn() {
        Ok(child) => NixPid::from_raw(child.id() as i32),
        Err(error) => {
            eprintln!("pasta: cannot execute {}: {error}", program.file.display());
            return 1;
        }
    };
    loop {
        // Those whose parents have ended are init's, too.
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => return code,
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                return 128 + signal as i32;
            }
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => {
                eprintln!("pasta: cannot wait for {}: {errno}", program.file.display());
                return 1;
            }
        }
    }
}

/// The next message; empty at the end.
fn receive(from: BorrowedFd<'_>) -> io::Result<String> {
    let mut buffer = [0; 512];
    let (len, _) = retry_on_intr(|| rustix::net::recv(from, &mut buffer, RecvFlags::empty()))?;
    Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
}
