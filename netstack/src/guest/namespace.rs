//! Finding and entering the guest's namespaces.
//!
//! What decides is the user namespace that *owns* the network namespace: only in there have we got
//! CAP_NET_ADMIN over the guest's network. The process joins it as a whole, while it is
//! single-threaded; it stays in the host's network namespace. One thread,
//! [`GuestThread`](super::GuestThread), joins the network namespace later.
//!
//! Everything is opened before anything is joined, so that a process that goes away half-way cannot
//! be mistaken for another one that got its number.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::mount::{NamespaceMount, process_in_path};
use crate::sandbox::root::{self, Ids, ZeroIs};
use crate::sys;

/// How the command line names the guest's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetName {
    /// That of a process.
    Process(Pid),
    /// A file that is one: `/proc/PID/ns/net`, or a bind mount of such (`/run/netns/NAME`).
    Path(PathBuf),
}

/// Which user namespace is joined before the network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserNamespace {
    /// The one that owns the network namespace.
    Owner,
    At(PathBuf),
    /// None: the one that this process is in has to do.
    Own,
}

/// The one at the path, if there is one.
impl From<Option<PathBuf>> for UserNamespace {
    fn from(path: Option<PathBuf>) -> Self {
        path.map_or(Self::Owner, Self::At)
    }
}

/// The guest's namespaces, open.
#[derive(Debug)]
pub struct Target {
    network: OwnedFd,
    /// What to join. `None` too if the kernel does not let us see the owner, which means that it is
    /// not below our own user namespace.
    user: Option<OwnedFd>,
    holders: Holders,
}

/// What the guest's network namespace stands and falls with. Neither is known of one that another
/// program's descriptor keeps.
#[derive(Debug)]
pub struct Holders {
    /// The pidfd of the process whose namespace it is; readable when that process ends.
    pub process: Option<OwnedFd>,
    /// The mount at the path that was named.
    pub mount: Option<NamespaceMount>,
}

/// Why the guest's namespaces could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    #[error("there is no process {0}")]
    NoProcess(i32),
    #[error("cannot open {path}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error(
        "cannot open {path}: {source}; it belongs to another user, or to a process that is not dumpable"
    )]
    Forbidden { path: PathBuf, source: io::Error },
    #[error("{0} is not a network namespace")]
    NotNetwork(PathBuf),
    #[error("{0} is the network namespace that this program is in itself")]
    OwnNetwork(PathBuf),
    #[error("{0} is not a user namespace")]
    NotUser(PathBuf),
    #[error("cannot see which user namespace owns {path}: {source}")]
    Owner { path: PathBuf, source: io::Error },
    #[error("cannot find the network namespace of the tap: {0}; this needs CAP_NET_ADMIN over it")]
    OfTap(#[source] io::Error),
    #[error("the tap is in the network namespace that this program is in itself")]
    TapIsHere,
    #[error(
        "cannot join the guest's user namespace: {0}; only the user who created it, or its root, can"
    )]
    JoinUser(#[source] io::Error),
    #[error("cannot become another user instead of root: {0}")]
    LeaveRoot(#[source] io::Error),
    #[error("cannot become root of the guest's user namespace: {0}")]
    BecomeRoot(#[source] io::Error),
    #[error(
        "cannot join the guest's network namespace: {0}; this needs CAP_SYS_ADMIN in the user namespace that owns it (see --userns-path)"
    )]
    JoinNetwork(#[source] io::Error),
    #[error("cannot start the guest thread: {0}")]
    Thread(#[source] io::Error),
}

impl Target {
    /// Opens the namespaces of `name`.
    pub fn open(name: &TargetName, user: &UserNamespace) -> Result<Self, NamespaceError> {
        let path = match name {
            TargetName::Process(pid) => format!("/proc/{}/ns/net", pid.as_raw_nonzero()).into(),
            TargetName::Path(path) => path.clone(),
        };
        let process = process_in_path(&path).or_else(|| process_in_path(&followed(&path)));
        let process = process.map(open_process).transpose()?;
        let (network, mount) = match name {
            // A process's own is mounted nowhere.
            TargetName::Process(_) => (open(&path)?, None),
            TargetName::Path(_) => {
                let mounts = NamespaceMount::list(&path).map_err(open_error(&path))?;
                let network = open(&path)?;
                let mount = NamespaceMount::find(mounts, network.as_fd());
                (network, mount.map_err(open_error(&path))?)
            }
        };
        // Unmounted since it was opened, it would look as if it had never been mounted.
        if mount.is_none() && !is_at(&network, &path) {
            return Err(gone(&path));
        }
        if let Some(process) = &process {
            // Alive now, so the path that was opened above was this process's own.
            ensure_alive(process, &path)?;
        }
        if !is_kind(&network, libc::CLONE_NEWNET) {
            return Err(NamespaceError::NotNetwork(path));
        }
        if is_own(&network, "net").map_err(open_error(&path))? {
            return Err(NamespaceError::OwnNetwork(path));
        }
        let user = user_namespace(user, &network, &path)?;
        Ok(Self {
            network,
            user,
            holders: Holders { process, mount },
        })
    }

    /// Finds the network namespace of `tap`, a descriptor that is attached to an interface. What
    /// the namespace stands and falls with is not known then.
    pub fn of_tap(tap: BorrowedFd<'_>, user: &UserNamespace) -> Result<Self, NamespaceError> {
        let network = sys::tun_network_namespace(tap).map_err(NamespaceError::OfTap)?;
        if is_own(&network, "net").map_err(NamespaceError::OfTap)? {
            return Err(NamespaceError::TapIsHere);
        }
        Ok(Self {
            user: user_namespace(user, &network, Path::new("the tap's namespace"))?,
            network,
            holders: Holders {
                process: None,
                mount: None,
            },
        })
    }

    /// Joins the user namespace and becomes its root, or does nothing when the process is in it
    /// already. The host's root becomes `instead_of_root` first: once inside, it may be the only
    /// one who has a number. The process must be single-threaded, or the kernel refuses.
    pub fn join_user(&self, instead_of_root: Ids) -> Result<(), NamespaceError> {
        let Some(user) = &self.user else {
            return Ok(());
        };
        if is_own(user, "user").map_err(NamespaceError::JoinUser)? {
            return Ok(());
        }
        root::leave(instead_of_root).map_err(NamespaceError::LeaveRoot)?;
        move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))
            .map_err(|error| NamespaceError::JoinUser(error.into()))?;
        become_root().map_err(|error| NamespaceError::BecomeRoot(error.into()))
    }

    /// The network namespace, for [`GuestThread::spawn`](super::GuestThread::spawn).
    pub fn network(&self) -> BorrowedFd<'_> {
        self.network.as_fd()
    }

    /// What to watch for the namespace's end.
    pub fn into_holders(self) -> Holders {
        self.holders
    }
}

/// What to join before `network`, which was found at `path`.
fn user_namespace(
    name: &UserNamespace,
    network: &OwnedFd,
    path: &Path,
) -> Result<Option<OwnedFd>, NamespaceError> {
    match name {
        UserNamespace::Own => Ok(None),
        UserNamespace::At(path) => {
            let user = open(path)?;
            match is_kind(&user, libc::CLONE_NEWUSER) {
                true => Ok(Some(user)),
                false => Err(NamespaceError::NotUser(path.clone())),
            }
        }
        UserNamespace::Owner => match sys::owning_user_namespace(network.as_fd()) {
            Ok(owner) => Ok(Some(owner)),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(None),
            Err(source) => Err(NamespaceError::Owner {
                path: path.to_owned(),
                source,
            }),
        },
    }
}

/// Where a symbolic link in the place of the namespace's file leads to; `path` itself if it is
/// none. A namespace's own file is a link as well, to a name that no file has.
fn followed(path: &Path) -> PathBuf {
    /// Links in a row, as in path_resolution(7).
    const MAX_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(target) if !target.to_string_lossy().contains(":[") => {
                path = path.parent().unwrap_or(Path::new("/")).join(target);
            }
            _ => break,
        }
    }
    path
}

fn open_process(pid: Pid) -> Result<OwnedFd, NamespaceError> {
    let raw = pid.as_raw_nonzero().get();
    pidfd_open(pid, PidfdFlags::empty()).map_err(|error| match error {
        rustix::io::Errno::SRCH => NamespaceError::NoProcess(raw),
        _ => NamespaceError::Open {
            path: format!("process {raw}").into(),
            source: error.into(),
        },
    })
}

fn ensure_alive(process: &OwnedFd, path: &Path) -> Result<(), NamespaceError> {
    let mut polled = [PollFd::new(process, PollFlags::IN)];
    match poll(&mut polled, Some(&Timespec::default())) {
        Ok(0) => Ok(()),
        _ => Err(gone(path)),
    }
}

fn gone(path: &Path) -> NamespaceError {
    NamespaceError::Open {
        path: path.to_owned(),
        source: io::Error::from_raw_os_error(libc::ESRCH),
    }
}

fn is_at(namespace: &OwnedFd, path: &Path) -> bool {
    let there = fs::metadata(path).map(|there| (there.dev(), there.ino()));
    let open = rustix::fs::fstat(namespace).map(|open| (open.st_dev, open.st_ino));
    there.ok() == open.ok()
}

/// Whether this process is in `namespace`, which is of kind `kind`.
fn is_own(namespace: &OwnedFd, kind: &str) -> io::Result<bool> {
    let own = fs::metadata(format!("/proc/self/ns/{kind}"))?;
    let theirs = rustix::fs::fstat(namespace)?;
    Ok((own.dev(), own.ino()) == (theirs.st_dev, theirs.st_ino))
}

fn is_kind(namespace: &OwnedFd, kind: libc::c_int) -> bool {
    sys::namespace_kind(namespace.as_fd()).is_ok_and(|found| found == kind)
}

fn open(path: &Path) -> Result<OwnedFd, NamespaceError> {
    // Non-blocking: whoever names a FIFO gets an error instead of a hang.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    file.map(OwnedFd::from).map_err(open_error(path))
}

fn open_error(path: &Path) -> impl FnOnce(io::Error) -> NamespaceError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::PermissionDenied => NamespaceError::Forbidden { path, source },
        _ => NamespaceError::Open { path, source },
    }
}

/// In the namespace just joined we have every capability but still our old IDs, perhaps unmapped.
/// Files that its root owns (/proc/sys/net, our own /proc entries) are easier to reach as root.
/// Stays as it is where 0 is not mapped, or is the host's root.
fn become_root() -> nix::Result<()> {
    let optional = |result| match result {
        // Not mapped; or setgroups is denied in this namespace (user_namespaces(7)).
        Err(Errno::EINVAL | Errno::EPERM) => Ok(()),
        other => other,
    };
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    let zero = ZeroIs::here();
    optional(setgroups(&[]))?;
    if !zero.roots_group {
        optional(setresgid(gid, gid, gid))?;
    }
    if !zero.root {
        optional(setresuid(uid, uid, uid))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::{Command, Stdio};
    use std::thread;

    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::guest::GuestThread;
    use crate::testing::in_namespaces;

    fn own_network() -> PathBuf {
        fs::read_link("/proc/thread-self/ns/net").unwrap()
    }

    #[test]
    fn the_guest_thread_alone_enters_the_network_namespace() {
        in_namespaces(
            module_path!(),
            "the_guest_thread_alone_enters_the_network_namespace",
            || {
                let outside = own_network();
                let open = || {
                    unshare(CloneFlags::CLONE_NEWNET).unwrap();
                    let path = fs::canonicalize("/proc/thread-self")
                        .unwrap()
                        .join("ns/net");
                    (
                        Target::open(&TargetName::Path(path), &UserNamespace::Owner).unwrap(),
                        own_network(),
                    )
                };
                let (target, inside) = thread::spawn(open).join().unwrap();
                assert_ne!(inside, outside);
                // Owned by the user namespace that we are in: nothing to join, although the process
                // has threads.
                target.join_user(Ids::default()).unwrap();
                let network = target.network().try_clone_to_owned().unwrap();
                let guest = GuestThread::spawn(network).unwrap();
                assert_eq!(guest.run(own_network).unwrap(), inside);
                assert_eq!(own_network(), outside);
            },
        );
    }

    #[test]
    fn the_owner_is_found_and_the_process_watched() {
        in_namespaces(
            module_path!(),
            "the_owner_is_found_and_the_process_watched",
            || {
                let mut command = Command::new("cat");
                command.stdin(Stdio::piped());
                sys::start_in_namespaces(&mut command);
                let mut child = command.spawn().unwrap();
                let pid = Pid::from_child(&child);
                let path = |kind: &str| PathBuf::from(format!("/proc/{}/ns/{kind}", child.id()));

                let target =
                    Target::open(&TargetName::Process(pid), &UserNamespace::Owner).unwrap();
                let owner = File::from(target.user.as_ref().unwrap().try_clone().unwrap())
                    .metadata()
                    .unwrap();
                assert_eq!(owner.ino(), fs::metadata(path("user")).unwrap().ino());
                let by_path = Target::open(
                    &TargetName::Path(path("net")),
                    &UserNamespace::At(path("user")),
                )
                .unwrap();
                assert!(matches!(
                    Target::open(&TargetName::Path(path("user")), &UserNamespace::Owner),
                    Err(NamespaceError::NotNetwork(_))
                ));
                assert!(matches!(
                    Target::open(&TargetName::Process(pid), &UserNamespace::At(path("net"))),
                    Err(NamespaceError::NotUser(_))
                ));

                let process = by_path.into_holders().process.unwrap();
                ensure_alive(&process, Path::new("")).unwrap();
                child.kill().unwrap();
                child.wait().unwrap();
                ensure_alive(&process, Path::new("")).unwrap_err();
                assert!(matches!(
                    Target::open(&TargetName::Process(pid), &UserNamespace::Owner),
                    Err(NamespaceError::NoProcess(_))
                ));
            },
        );
    }

    #[test]
    fn what_is_no_namespace_is_refused_by_name() {
        let error =
            Target::open(&TargetName::Path("/dev/null".into()), &UserNamespace::Owner).unwrap_err();
        assert_eq!(error.to_string(), "/dev/null is not a network namespace");
        let error =
            Target::open(&TargetName::Path("/no/such".into()), &UserNamespace::Owner).unwrap_err();
        assert!(error.to_string().contains("/no/such"), "{error}");
    }

    #[test]
    fn our_own_network_is_refused() {
        let own = TargetName::Process(rustix::process::getpid());
        let error = Target::open(&own, &UserNamespace::Owner).unwrap_err();
        assert!(matches!(error, NamespaceError::OwnNetwork(_)), "{error}");
    }

    #[test]
    fn a_panicking_job_ends_the_thread_and_is_reported() {
        in_namespaces(
            module_path!(),
            "a_panicking_job_ends_the_thread_and_is_reported",
            || {
                let network = File::open("/proc/thread-self/ns/net").unwrap().into();
                let guest = GuestThread::spawn(network).unwrap();
                assert_eq!(guest.run(|| 7), Ok(7));
                guest.run(|| panic!("on purpose")).unwrap_err();
                guest.run(|| 7).unwrap_err();
            },
        );
    }
}
