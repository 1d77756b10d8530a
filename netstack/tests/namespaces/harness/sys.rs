//! The harness's only unsafe code: forking the process that holds a guest's namespaces, and
//! starting a program that lacks one capability.
#![allow(unsafe_code, reason = "the one file of the crate that may")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::unistd::{ForkResult, Pid};

use super::GuestUsers;

/// Forks a process that enters a new network namespace (owned by a new user namespace if `users`
/// says so, whose IDs are for the caller to map unless it is to have but one) and then only waits
/// to be killed. Returns once the namespaces exist.
///
/// The process also dies with the *thread* that called this, so call it from a thread that outlives
/// the guest.
pub fn fork_holder(users: GuestUsers) -> io::Result<Pid> {
    let (ready_read, ready_write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: other threads may exist, so the child must confine itself to async-signal-safe calls:
    // `hold` makes plain system calls only, allocates nothing, and never returns.
    let child = match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => hold(users, ready_write),
        ForkResult::Parent { child } => child,
    };
    drop(ready_write);
    let mut code = [0u8; 1];
    match nix::unistd::read(&ready_read, &mut code)? {
        1 if code[0] == 0 => Ok(child),
        _ => {
            let _ = nix::sys::wait::waitpid(child, None);
            Err(io::Error::from_raw_os_error(i32::from(code[0])))
        }
    }
}

/// The life of the holder: namespaces, one byte with the errno (0 = success), sleep.
fn hold(users: GuestUsers, ready: OwnedFd) -> ! {
    let errno = enter_namespaces(users)
        .err()
        .map_or(0, |errno| u8::try_from(errno).unwrap_or(u8::MAX));
    let fd = ready.as_raw_fd();
    // SAFETY: plain system calls on integers and on a buffer that lives across the call; the
    // process never returns to Rust code that could observe the closed descriptors.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::write(fd, (&raw const errno).cast(), 1);
        libc::close_range(0, libc::c_uint::MAX, 0);
        if errno != 0 {
            libc::_exit(1);
        }
        loop {
            libc::pause();
        }
    }
}

/// Returns the errno of the first call that failed.
fn enter_namespaces(users: GuestUsers) -> Result<(), i32> {
    let flags = match users {
        GuestUsers::Cases => libc::CLONE_NEWNET,
        GuestUsers::Own | GuestUsers::From(_) => libc::CLONE_NEWNET | libc::CLONE_NEWUSER,
    };
    // SAFETY: takes an integer only; the forked child has one thread, as CLONE_NEWUSER demands.
    if unsafe { libc::unshare(flags) } != 0 {
        return Err(nix::errno::Errno::last_raw());
    }
    if users == GuestUsers::Own {
        write_file(c"/proc/self/setgroups", b"deny")?;
        write_file(c"/proc/self/uid_map", b"0 0 1")?;
        write_file(c"/proc/self/gid_map", b"0 0 1")?;
    }
    Ok(())
}

fn write_file(path: &std::ffi::CStr, bytes: &[u8]) -> Result<(), i32> {
    // SAFETY: `path` is NUL-terminated and `bytes` is readable for its length; the descriptor is
    // used only here.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd < 0 {
            return Err(nix::errno::Errno::last_raw());
        }
        let written = libc::write(fd, bytes.as_ptr().cast(), bytes.len());
        let errno = nix::errno::Errno::last_raw();
        libc::close(fd);
        if written < 0 { Err(errno) } else { Ok(()) }
    }
}

nix::ioctl_read_bad!(siocoutq, libc::TIOCOUTQ, libc::c_int);

nix::ioctl_write_int_bad!(tunsetpersist, libc::TUNSETPERSIST);
nix::ioctl_readwrite_bad!(tunsetiff, libc::TUNSETIFF, libc::ifreq);

/// A tap as callers make it: plain frames, and it stays when its descriptors are closed.
pub fn make_tap(name: &str) -> io::Result<std::fs::File> {
    let tap = attach_tap(name, libc::IFF_TAP | libc::IFF_NO_PI)?;
    // SAFETY: TUNSETPERSIST takes its argument by value.
    unsafe { tunsetpersist(tap.as_raw_fd(), 1) }?;
    Ok(tap)
}

/// An interface of the tun driver that goes with its descriptors. `flags` are `IFF_TAP` and its
/// friends.
pub fn attach_tap(name: &str, flags: i32) -> io::Result<std::fs::File> {
    let tun = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: ifreq is a C struct of integers and a union of such; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives until the call returns.
    unsafe { tunsetiff(tun.as_raw_fd(), &raw mut request) }?;
    Ok(tun)
}

/// How many bytes on `stream` its peer has not acknowledged.
pub fn unacknowledged(stream: &std::net::TcpStream) -> usize {
    let mut bytes = 0;
    // SAFETY: SIOCOUTQ, which has TIOCOUTQ's number, writes one int to the pointer, which is valid
    // for it.
    unsafe { siocoutq(stream.as_raw_fd(), &raw mut bytes) }.expect("SIOCOUTQ");
    usize::try_from(bytes).expect("not negative")
}

/// Lets `command` start with room for `limit` descriptors and no way to more.
pub fn limit_descriptors(command: &mut std::process::Command, limit: u64) {
    use std::os::unix::process::CommandExt;
    let set = move || {
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, limit, limit)
            .map_err(io::Error::from)
    };
    // SAFETY: between fork and exec there is one system call on integers.
    unsafe { command.pre_exec(set) };
}

/// Lets `command` start without the capabilities to enter or to set up a network namespace.
pub fn make_powerless(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;

    use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
    let drop_them = || {
        remove_capability_from_bounding_set(CapabilitySet::NET_ADMIN)?;
        remove_capability_from_bounding_set(CapabilitySet::SYS_ADMIN)?;
        Ok(())
    };
    // SAFETY: between fork and exec there are two system calls on integers.
    unsafe { command.pre_exec(drop_them) };
}

/// Lets `fd` pass through the next `exec`, under its present number.
pub fn inherit(fd: &impl std::os::fd::AsFd) -> i32 {
    let fd = fd.as_fd();
    nix::fcntl::fcntl(
        fd,
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
    )
    .expect("clear FD_CLOEXEC");
    fd.as_raw_fd()
}
