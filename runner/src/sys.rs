//! The system calls that rustix and nix do not wrap as safe functions, and the only `unsafe` of
//! this crate.
//!
//! Each function is one kernel interface with an owned or borrowed descriptor at its edge; policy
//! is the callers'. [`clone_process`] is for processes with one thread only, as the roles of this
//! program are, and the commands that call it.

#![allow(unsafe_code, reason = "the one file of the crate that may")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use rustix::process::Pid;
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};

/// A process made by [`clone_process`], seen from its parent.
#[derive(Debug)]
pub struct Child {
    pub pid: Pid,
    /// Becomes readable when the process ends; never names another process.
    pub pidfd: OwnedFd,
}

/// Namespaces that [`clone_process`] makes for the child, or [`unshare`] for this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewNamespaces(u64);

impl NewNamespaces {
    pub const NONE: Self = Self(0);
    pub const USER: Self = Self(libc::CLONE_NEWUSER as u64);
    pub const MOUNT: Self = Self(libc::CLONE_NEWNS as u64);

    /// Those of `kinds`, as far as they are known here.
    pub fn of(kinds: ThreadNameSpaceType) -> Self {
        let known = ThreadNameSpaceType::USER
            | ThreadNameSpaceType::MOUNT
            | ThreadNameSpaceType::PROCESS_ID
            | ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::CONTROL_GROUP;
        Self((kinds & known).bits().into())
    }

    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Forks into new namespaces, and into the group of the unified cgroup hierarchy whose directory is
/// `cgroup` (Linux 5.7). Returns `None` in the child, as `fork` returns 0 there.
///
/// # Errors
/// EPERM, ENOSPC and EUSERS tell of limits on user namespaces; see `user_namespaces(7)`.
pub fn clone_process(
    namespaces: NewNamespaces,
    cgroup: Option<BorrowedFd>,
) -> io::Result<Option<Child>> {
    let mut pidfd: RawFd = -1;
    // SAFETY: `clone_args` is plain data for which all-zeroes means "not asked for".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces.0 | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = &cgroup {
        const CLONE_INTO_CGROUP: u64 = 1 << 33;
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM and with no stack given this is fork(2): the child goes on with a
    // copy of this memory. The process is single-threaded, so no lock is held by a thread that the
    // child lacks. `args` lives across the call.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            size_of::<libc::clone_args>(),
        )
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => {
            // SAFETY: the kernel stored a new descriptor (close-on-exec by definition) that nobody
            // else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Some(Child {
                pid: Pid::from_raw(pid as i32).expect("only the child is told 0"),
                pidfd,
            }))
        }
    }
}

/// Makes namespaces for this process; that of PIDs for its children only.
pub fn unshare(namespaces: NewNamespaces) -> io::Result<()> {
    let flags = UnshareFlags::from_bits_retain(namespaces.0 as u32);
    // SAFETY: there are only namespaces among the flags, which leave the table of descriptors as it
    // is.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// What [`change_mount`] does to a mount.
#[derive(Debug, Clone, Copy, Default)]
pub struct MountChange {
    pub set: u64,
    pub clear: u64,
    /// One of MS_PRIVATE, MS_SLAVE and MS_SHARED; 0 leaves it.
    pub propagation: u64,
}

/// Adds attributes to the mount that `mount` refers to, and with `recursive` to those below it.
/// Attributes that are set already, locked ones among them, are left as they are. Linux 5.12.
pub fn mount_setattr(mount: BorrowedFd, add: u64, recursive: bool) -> io::Result<()> {
    let change = MountChange {
        set: add,
        ..MountChange::default()
    };
    change_mount(mount, change, recursive)
}

/// Changes the mount that `mount` refers to, and with `recursive` those below it. Linux 5.12.
pub fn change_mount(mount: BorrowedFd, change: MountChange, recursive: bool) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: 0,
    };
    set_mount_attributes(mount, &attr, recursive)
}

/// Shows the files of the detached mount `mount`, and of those below it, with the owners that
/// `user_namespace` maps theirs to. Linux 5.12, and CAP_SYS_ADMIN over the file system.
///
/// # Errors
/// EINVAL when the file system has no such mounts.
pub fn map_mount_ids(mount: BorrowedFd, user_namespace: BorrowedFd) -> io::Result<()> {
    /// `linux/mount.h`.
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    let attr = libc::mount_attr {
        attr_set: MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace.as_raw_fd() as u64,
    };
    set_mount_attributes(mount, &attr, true)
}

fn set_mount_attributes(
    mount: BorrowedFd,
    attr: &libc::mount_attr,
    recursive: bool,
) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty NUL-terminated string, `attr` is read only and of the size
    // given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sends a signal, one of 1 to 64, to the process that `pidfd` refers to. rustix has no real-time
/// signals.
///
/// # Errors
/// ESRCH when the process has ended, EINVAL for a number that is no signal.
pub fn send_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    // SAFETY: the descriptor is open, and no information beside the number is handed over.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Marks every descriptor from `first` on close-on-exec. Linux 5.11.
pub fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 1 << 2;
    // SAFETY: close_range with CLOSE_RANGE_CLOEXEC only sets a flag on descriptors; no memory is
    // involved.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first as libc::c_uint,
            u32::MAX,
            CLOSE_RANGE_CLOEXEC,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Closes every descriptor from `first` on. Linux 5.9.
///
/// For a process that has just begun: what is open then was left so by the caller, and nothing here
/// owns it.
pub fn close_from(first: RawFd) {
    // SAFETY: no memory is involved, and by the contract above no owner of a descriptor exists. The
    // only error is EINVAL for an inverted range.
    unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first as libc::c_uint,
            u32::MAX,
            0 as libc::c_uint,
        )
    };
}

/// Takes ownership of a descriptor that this process was started with, and makes it close-on-exec.
///
/// # Errors
/// EBADF when the descriptor is not open.
pub fn adopt_descriptor(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD touches no memory; a descriptor that is not open is an error.
    if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and by the contract between the process that started us and this role
    // nobody else in this process knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets `command` inherit `fds` under their present numbers, and start with the signals of
/// [`reset_signals`], but with `ignored` ones ignored. The caller keeps the descriptors open until
/// the command is spawned.
pub fn prepare_command(command: &mut Command, fds: Vec<RawFd>, ignored: &'static [Signal]) {
    let prepare = move || {
        reset_signals();
        ignored.iter().copied().for_each(ignore);
        for &fd in &fds {
            // SAFETY: F_SETFD touches no memory, and fcntl is async-signal-safe.
            if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec. It calls sigaction, signal, sigprocmask and
    // fcntl, which are async-signal-safe, and does not allocate.
    unsafe { command.pre_exec(prepare) };
}

/// The kernel's `struct sigaction` for [`reset_actions`]: all zeroes is SIG_DFL, no flags, an empty
/// mask. Longer than that of any architecture.
const DEFAULT_ACTION: [u64; 8] = [0; 8];
/// Bytes of the kernel's signal set.
const KERNEL_SIGSET_LEN: usize = 8;

/// Gives every signal its default action and unblocks all, as a program expects to find them.
pub fn reset_signals() {
    reset_actions();
    set_signal_mask(0);
}

/// Gives every signal its default action. The C library keeps two real-time signals for itself and
/// does not reset them, so this goes past it.
pub fn reset_actions() {
    /// `_NSIG` of the kernel.
    const SIGNAL_MAX: libc::c_int = 64;
    for signal in 1..=SIGNAL_MAX {
        // SAFETY: the kernel reads one `sigaction`, which all-zero bytes are; the default action
        // runs no code of ours. SIGKILL and SIGSTOP refuse, which is as good.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                DEFAULT_ACTION.as_ptr(),
                std::ptr::null_mut::<libc::c_void>(),
                KERNEL_SIGSET_LEN,
            )
        };
    }
}

/// Whether the signal with this number is ignored.
pub fn is_ignored(signal: i32) -> bool {
    // SAFETY: `sigaction` is plain data for which all-zeroes is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: with no new action given this only stores the present one; `action` lives across the
    // call.
    let result = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// A set of signals by their numbers, real-time ones included.
pub fn signal_set(numbers: &[i32]) -> SigSet {
    // SAFETY: `sigset_t` is plain data that sigemptyset fills in; sigaddset refuses a number that
    // is no signal.
    let set = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for number in numbers {
            libc::sigaddset(&raw mut set, *number);
        }
        set
    };
    // SAFETY: the set is initialised.
    unsafe { SigSet::from_sigset_t_unchecked(set) }
}

/// Ignores `signal`, here and in what this process executes unless it calls [`reset_signals`].
pub fn ignore(signal: Signal) {
    let ignored = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: ignoring a signal runs no code of ours.
    let _ = unsafe { sigaction(signal, &ignored) };
}

/// Blocks every signal that can be blocked, until [`reset_signals`].
pub fn block_all_signals() {
    set_signal_mask(u64::MAX);
}

/// Past the C library, which leaves two real-time signals out of every set.
fn set_signal_mask(mask: u64) {
    // SAFETY: the kernel reads a signal set of the length given.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            std::ptr::null_mut::<libc::c_void>(),
            KERNEL_SIGSET_LEN,
        )
    };
}

/// Waits for any signal, all of which are blocked, and returns its number.
pub fn wait_for_signal() -> io::Result<i32> {
    // SAFETY: as in `block_all_signals`; a null `info` asks for nothing to be stored.
    let signal = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigwaitinfo(&raw const all, std::ptr::null_mut())
    };
    match signal {
        -1 => Err(io::Error::last_os_error()),
        signal => Ok(signal),
    }
}

/// Leaves the caller's session keyring for a fresh one, so that a container cannot read the user's
/// keys.
pub fn join_fresh_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_ulong = 1;
    // SAFETY: a null name asks for an anonymous keyring; nothing is read or written.
    let result = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        )
    };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Sets IFF_UP on the loopback interface of the network namespace that this process is in.
pub fn bring_loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    // SAFETY: `ifreq` is plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(CStr::to_bytes(c"lo")) {
        *to = *from as libc::c_char;
    }
    // SAFETY: both ioctls take a pointer to an `ifreq` that lives across the call; SIOCGIFFLAGS
    // fills the flags.
    unsafe {
        if libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCGIFFLAGS as _,
            &raw mut request,
        ) == -1
        {
            return Err(io::Error::last_os_error());
        }
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        if libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw const request,
        ) == -1
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Makes the terminal `slave` the controlling terminal of this process, which leads its session.
pub fn set_controlling_terminal(slave: BorrowedFd) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    if unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY as _, 0) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// How many of the ticks make a second that `/proc/PID/stat` counts in.
pub fn clock_ticks_per_second() -> u64 {
    // SAFETY: it reads a constant of the system's, and takes a number only.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    // Linux has told 100 to every program there is.
    u64::try_from(ticks)
        .ok()
        .filter(|ticks| *ticks > 0)
        .unwrap_or(100)
}
