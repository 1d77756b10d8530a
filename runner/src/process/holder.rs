//! The user and mount namespaces that all of a user's commands share (`coracle unshare`), and the
//! process that keeps them.
//!
//! Namespaces live as long as something refers to them: a process, a descriptor, or a mount in a
//! namespace outside, which a user cannot make. A file handle of nsfs (Linux 6.18) finds them but
//! does not keep them. So a process does, the holder, which is this program once more, in a role
//! that does nothing else.
//!
//! It holds a lock on `RUN/holder` for as long as it lives ([`claim`]): the kernel tells who that
//! is, so that nobody takes another process for it and one that was killed is missed at once.
//! Only who has made the namespaces complete takes the lock. The holder ends when the file goes:
//! by [`end`], or with the session's run directory.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::PollFlags;
use rustix::fs::inotify;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::inherited::put_behind;
use super::owner;
use super::selfexec::HOLDER_ROLE;
use crate::isolation::idmap::{IdMaps, SingleReason};
use crate::isolation::namespaces::{NamespaceError, join_as_root};
use crate::path_text;
use crate::poll;
use crate::state::claim;
use crate::sys::{self, NewNamespaces};

/// How long a holder may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the holder says when another one was faster.
const TAKEN: &str = "another process holds the namespaces";

/// The namespaces, by the process that keeps them.
#[derive(Debug)]
pub struct Holder {
    pid: Pid,
    pidfd: OwnedFd,
}

#[derive(Debug, Serialize, Deserialize)]
struct Job {
    #[serde(with = "path_text")]
    file: PathBuf,
}

/// The namespaces of the user whose run directory this is, which are made where there are none.
/// `warn` is told of IDs that somebody may miss in them.
pub fn provide(run: &Path, warn: &mut dyn FnMut(&str)) -> Result<Holder, NamespaceError> {
    let (mut maps, mut single) = IdMaps::discover(true)?;
    loop {
        if let Some(holder) = find(run) {
            match single {
                Some(reason) => warn(&reason.warning()),
                None if !maps.are_of(holder.pid.as_raw_nonzero().get()) => warn(OTHER_IDS),
                None => {}
            }
            return Ok(holder);
        }
        match start(run, &maps) {
            // The next look finds it, or the one that was faster.
            Ok(()) => {}
            Err(NamespaceError::Told { message }) if message == TAKEN => {}
            Err(NamespaceError::IdMap(error)) if error.is_lasting() && single.is_none() => {
                maps = IdMaps::single();
                single = Some(SingleReason::ToolFailed(error.to_string()));
            }
            Err(error) => return Err(error),
        }
    }
}

const OTHER_IDS: &str = "the namespaces of `coracle unshare` have other IDs than /etc/subuid and /etc/subgid give by now: \
                         `coracle system migrate` ends them";

/// The holder of the user whose run directory this is, if there is one.
pub fn find(run: &Path) -> Option<Holder> {
    let file = run.join(FILE);
    let pid = claim::holder(&file)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    // Asked again, now that the descriptor means one process for good.
    (claim::holder(&file) == Some(pid)).then_some(Holder { pid, pidfd })
}

/// Ends the holder, and with it the namespaces and all that is mounted there, unless some process
/// is still in them. Returns whether there was one.
pub fn end(run: &Path) -> io::Result<bool> {
    let holder = find(run);
    let file = run.join(FILE);
    match fs::remove_file(&file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let Some(Holder { pidfd, .. }) = holder else {
        return Ok(false);
    };
    let has_ended = || poll::wait([Some((pidfd.as_fd(), PollFlags::IN))], Some(PATIENCE));
    if has_ended()?.is_none() {
        // Somebody has stopped it.
        let _ = pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
        has_ended()?;
    }
    Ok(true)
}

impl Holder {
    /// Moves this process, which must have one thread, into the namespaces, as their root.
    pub fn join(&self) -> io::Result<()> {
        join_as_root(self.pidfd.as_fd())
    }

    /// Whether this process is in them already.
    pub fn is_joined(&self) -> bool {
        let is_same = |kind: &str| {
            let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{kind}")).ok();
            of("self").is_some() && of("self") == of(&self.pid.to_string())
        };
        is_same("user") && is_same("mnt")
    }
}

/// In the run directory.
const FILE: &str = "holder";

fn start(run: &Path, maps: &IdMaps) -> Result<(), NamespaceError> {
    let job = Job {
        file: run.join(FILE),
    };
    owner::start(HOLDER_ROLE, &job, maps)
}

/// The process itself.
pub fn main() -> ExitCode {
    put_behind();
    owner::main_staying(|job: Job| hold(&job.file), stay)
}

/// What the holder waits for, and its lock.
struct Held {
    file: PathBuf,
    lock: File,
    watch: OwnedFd,
    signals: SignalFd,
}

fn hold(file: &Path) -> Result<Held, String> {
    let prepare = || -> io::Result<_> {
        sys::unshare(NewNamespaces::MOUNT)?;
        // What the host mounts later is seen, what is mounted here is not seen outside.
        let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change("/", slave)?;
        rustix::process::setsid()?;
        rustix::process::chdir("/")?;
        rustix::thread::set_name(c"coracle-holder")?;
        let term = SigSet::from(Signal::SIGTERM);
        let signals = SignalFd::with_flags(&term, SfdFlags::SFD_CLOEXEC)?;
        Ok((signals, inotify::init(inotify::CreateFlags::CLOEXEC)?))
    };
    let failed = |error: io::Error| format!("cannot keep namespaces: {error}");
    let (signals, watch) = prepare().map_err(failed)?;
    let lock = match claim::take(file) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(TAKEN.to_owned()),
        taken => taken
            .map_err(|error| format!("cannot keep namespaces by {}: {error}", file.display()))?,
    };
    // A link less is a change of attributes, for whoever has the file open.
    inotify::add_watch(&watch, file, inotify::WatchFlags::ATTRIB)
        .map_err(|errno| failed(errno.into()))?;
    let held = Held {
        file: file.to_owned(),
        lock,
        watch,
        signals,
    };
    match held.is_current() {
        true => Ok(held),
        // Removed meanwhile, by whoever has ended another holder.
        false => Err(TAKEN.to_owned()),
    }
}

impl Held {
    /// Whether the file is still there; its path may lead elsewhere in here.
    fn is_current(&self) -> bool {
        self.lock.metadata().is_ok_and(|found| found.nlink() > 0)
    }
}

fn stay(held: Held) {
    while held.is_current() {
        let watched = [held.watch.as_fd(), held.signals.as_fd()];
        let watched = watched.map(|fd| Some((fd, PollFlags::IN)));
        match poll::wait(watched, None) {
            Ok(Some([true, false])) => {
                // What has changed is looked at anew.
                let _ = rustix::io::read(&held.watch, &mut [0; 4096]);
            }
            Ok(None) => {}
            Ok(Some(_)) | Err(_) => break,
        }
    }
    if held.is_current() {
        let _ = fs::remove_file(&held.file);
    }
}
