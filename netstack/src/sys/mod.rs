//! The crate's only unsafe code: the system calls that neither nix nor rustix wraps.
//!
//! Each function is one call, takes borrowed descriptors, returns `io::Result` and leaves all
//! meaning to its caller. Descriptors made here are close-on-exec. Nothing in here is called from
//! the data path but the socket options and [`ReceiveBuffer::receive`].
//!
//! System calls, for the sandbox's list: ioctl, setsockopt, getsockopt, fcntl.
#![allow(unsafe_code, reason = "the one module of the crate that may")]

mod receive;

use std::ffi::c_int;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use rtnetlink::sys::Socket;
use rustix::process::Pid;

pub use receive::{ReceiveBuffer, Received};

/// Attaches `tun`, a fresh descriptor of /dev/net/tun, to the interface `name` of the caller's
/// network namespace and creates the interface if there is none. `flags` are `IFF_TAP` and its
/// friends from linux/if_tun.h.
///
/// `InvalidInput` if `name` does not fit into an interface name (15 bytes).
pub fn tun_attach(tun: BorrowedFd<'_>, name: &str, flags: c_int) -> io::Result<()> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() >= libc::IFNAMSIZ || bytes.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = libc::c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: ifreq is a C struct of integers and a union of such; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: TUNSETIFF reads and writes one ifreq; `request` lives until the call returns.
    cvt(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// Tells the kernel which offloads (`TUN_F_*`) the reader of `tun` accepts. `InvalidInput` (EINVAL)
/// for one that this kernel does not know.
pub fn tun_set_offload(tun: BorrowedFd<'_>, offload: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    cvt(unsafe {
        libc::ioctl(
            tun.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(offload),
        )
    })
}

/// The same socket, of AF_NETLINK, for its library.
pub fn netlink_socket(socket: OwnedFd) -> Socket {
    // SAFETY: the descriptor is open, and whoever owned it has given it up.
    unsafe { Socket::from_raw_fd(socket.into_raw_fd()) }
}

/// Sets the length in bytes of the virtio-net header that precedes each frame.
pub fn tun_set_vnet_header_len(tun: BorrowedFd<'_>, len: c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int; `len` lives until the call returns.
    cvt(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) })
}

/// The Ethernet address of the interface that `tun` is attached to. Works from any namespace.
pub fn tun_mac(tun: BorrowedFd<'_>) -> io::Result<[u8; 6]> {
    // SAFETY: ifreq is a C struct of integers and a union of such; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // SAFETY: SIOCGIFHWADDR writes one ifreq; `request` lives until the call returns.
    cvt(unsafe { libc::ioctl(tun.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) })?;
    // SAFETY: the call has filled in this member of the union; any bytes are valid for it.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr };
    let mut mac = [0; 6];
    for (to, from) in mac.iter_mut().zip(address.sa_data) {
        *to = from as u8;
    }
    Ok(mac)
}

/// Name and flags (`IFF_TAP` and its friends) of the interface that `tun` is attached to. ENOTTY
/// if it is no such descriptor, EBADFD if it is attached to nothing.
pub fn tun_interface(tun: BorrowedFd<'_>) -> io::Result<(String, c_int)> {
    // SAFETY: ifreq is a C struct of integers and a union of such; all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // SAFETY: TUNGETIFF writes one ifreq; `request` lives until the call returns.
    cvt(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    let name = request.ifr_name.iter().map(|byte| *byte as u8);
    let name: Vec<u8> = name.take_while(|byte| *byte != 0).collect();
    // SAFETY: the call has filled in this member of the union; any bytes are valid for it.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let flags = c_int::from(flags.cast_unsigned());
    Ok((String::from_utf8_lossy(&name).into_owned(), flags))
}

/// The network namespace of the interface that `tun` is attached to. EPERM without CAP_NET_ADMIN
/// over it. Linux 5.2.
pub fn tun_network_namespace(tun: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: TUNGETDEVNETNS takes no argument and returns a new descriptor or -1.
    let fd = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETDEVNETNS) };
    cvt(fd)?;
    // SAFETY: the kernel just made this descriptor for us alone; it is close-on-exec already.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the interface of `tun` outlives its descriptors.
#[cfg(test)]
pub fn tun_set_persistent(tun: BorrowedFd<'_>, persistent: bool) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    cvt(unsafe {
        libc::ioctl(
            tun.as_raw_fd(),
            libc::TUNSETPERSIST,
            libc::c_ulong::from(persistent),
        )
    })
}

/// The user namespace that owns `namespace`, a descriptor of any other kind of namespace.
/// `PermissionDenied` (EPERM) if it is an ancestor of the caller's own. Linux 4.9.
pub fn owning_user_namespace(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: NS_GET_USERNS takes no argument and returns a new descriptor or -1.
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), libc::NS_GET_USERNS) };
    cvt(fd)?;
    // SAFETY: the kernel just made this descriptor for us alone; it is close-on-exec already.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The `CLONE_NEW*` flag that says of which kind `namespace` is. ENOTTY if it is no namespace.
/// Linux 4.11.
pub fn namespace_kind(namespace: BorrowedFd<'_>) -> io::Result<c_int> {
    // SAFETY: NS_GET_NSTYPE takes no argument.
    let kind = unsafe { libc::ioctl(namespace.as_raw_fd(), libc::NS_GET_NSTYPE) };
    cvt(kind)?;
    Ok(kind)
}

/// Takes over descriptor number `fd`, inherited from the parent process and named on the command
/// line, and marks it close-on-exec.
///
/// To be called once per number, before the process opens any descriptor of its own: a number the
/// parent did not pass is then reported as EBADF, and cannot be one that somebody else in this
/// process owns. 0, 1 and 2 are refused.
pub fn adopt_inherited_fd(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= libc::STDERR_FILENO {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: only borrowed for F_SETFD, which fails with EBADF when nothing is open under this
    // number.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: open, as fcntl just found, and by the contract above owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Binds a packet socket (packet(7)) to all that passes the interface with this index.
pub fn bind_to_interface(socket: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let index = c_int::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: sockaddr_ll is a C struct of integers; all zeroes is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index;
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of `address`, which lives until the call returns.
    cvt(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })
}

/// `setsockopt` for options that nix does not know; `value` is the option's C struct or int as
/// bytes.
pub fn set_socket_option(
    socket: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &[u8],
) -> io::Result<()> {
    let len = libc::socklen_t::try_from(value.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel reads at most `len` bytes, which `value` has, and checks their meaning
    // itself.
    cvt(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), len) })
}

/// `getsockopt` into `value`; returns how many bytes the kernel wrote.
pub fn socket_option(
    socket: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &mut [u8],
) -> io::Result<usize> {
    let mut len =
        libc::socklen_t::try_from(value.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the kernel writes at most `len` bytes, which `value` has, and then `len` itself.
    cvt(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    })?;
    Ok(len as usize)
}

/// Makes the allocator give each block of at least `MMAP_THRESHOLD` bytes its own mapping, so that
/// the pages of a connection's ring buffers are touched lazily, and go back to the system when the
/// buffer is freed. By default glibc raises its threshold with the first such block that is freed,
/// and then carves the next from its heap.
///
/// Does nothing on other C libraries (musl never puts such blocks on its heap).
pub fn map_large_allocations() {
    #[cfg(target_env = "gnu")]
    {
        /// The smallest ring buffer is one byte less, smoltcp's unscaled window, and glibc's header
        /// is added to it.
        const MMAP_THRESHOLD: c_int = 64 << 10;
        // SAFETY: mallopt only sets allocator parameters and may be called at any time.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD);
            libc::mallopt(libc::M_TRIM_THRESHOLD, MMAP_THRESHOLD);
            // The smallest that the heap grows by: with more at hand than a buffer takes, calloc
            // would carve it out of the heap, and write it full of zeroes.
            libc::mallopt(libc::M_TOP_PAD, 0);
            // glibc falls back to its heap past this many mappings (65,536 by default); the
            // kernel's own limit, vm.max_map_count, still holds.
            libc::mallopt(libc::M_MMAP_MAX, c_int::MAX);
            // The guest thread has little to allocate, and no need of a heap of its own.
            libc::mallopt(libc::M_ARENA_MAX, 1);
        }
    }
}

/// Gives memory that was freed back to the system, wherever in the heap it is. Takes milliseconds
/// for a large heap. Does nothing on other C libraries than glibc.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim touches nothing that is allocated, and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Gives the pages that lie within `bytes` back to the system; they read as zeroes afterwards, or
/// as before if the system does not want them.
pub fn discard(bytes: &mut [u8]) {
    // SAFETY: takes no pointer.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let Some(page) = usize::try_from(page)
        .ok()
        .filter(|page| page.is_power_of_two())
    else {
        return;
    };
    let skipped = bytes.as_ptr().align_offset(page).min(bytes.len());
    let whole = &mut bytes[skipped..];
    let len = whole.len() / page * page;
    // SAFETY: these pages are wholly within a slice that is borrowed exclusively, and zeroes are
    // valid for bytes. Memory of the allocator's is private and anonymous, for which MADV_DONTNEED
    // means just that.
    unsafe {
        libc::madvise(whole.as_mut_ptr().cast(), len, libc::MADV_DONTNEED);
    }
}

/// Lets the calling thread wait for its turn when it is woken, instead of taking the processor from
/// who woke it (SCHED_BATCH). A thread that was given another policy than the default keeps that.
pub fn wait_for_turn_when_woken() -> io::Result<()> {
    /// The calling thread.
    const SELF: libc::pid_t = 0;
    // SAFETY: no pointer is passed.
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, SELF) };
    if policy != libc::c_long::from(libc::SCHED_OTHER) {
        return Ok(());
    }
    // Must be 0 for this policy: the priorities of sched_param are those of real time.
    let priority: c_int = 0;
    // SAFETY: struct sched_param is one int, which the kernel reads during the call. The C
    // library's function of the name may be for a process, or not there (musl).
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            SELF,
            libc::SCHED_BATCH,
            &raw const priority,
        )
    };
    cvt(if result == 0 { 0 } else { -1 })
}

/// Installs a seccomp filter for this process and what comes from it, with the flags
/// `SECCOMP_FILTER_FLAG_…` of `seccomp(2)` (Linux 3.17).
///
/// # Errors
/// EACCES without both `no_new_privs` and CAP_SYS_ADMIN, EINVAL for a malformed program,
/// `ResourceBusy` if it is for all threads and one has a filter of its own.
pub fn install_seccomp_filter(program: &[libc::sock_filter], flags: u64) -> io::Result<()> {
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let program = libc::sock_fprog {
        len: program.len().try_into().map_err(too_long)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies `len` instructions and writes none; both live across the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    match result {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        _thread => Err(io::ErrorKind::ResourceBusy.into()),
    }
}

/// Runs `live` in a process of its own, a copy of this one, and ends that with it. Returns the
/// process.
///
/// To be called while this process has a single thread.
pub fn fork(live: impl FnOnce()) -> io::Result<Pid> {
    match fork_here()? {
        Some(process) => Ok(process),
        None => live_and_end(live),
    }
}

/// Makes a copy of this process that goes on from here as this one does, and gets `None`.
///
/// To be called while this process has a single thread.
pub fn fork_here() -> io::Result<Option<Pid>> {
    // SAFETY: with one thread there is no lock that another one holds in the copy for ever.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// As [`fork`], with the copy in new namespaces: `namespaces` are `CLONE_NEW…` of clone(2).
/// Linux 5.3.
///
/// EPERM, ENOSPC and EUSERS tell of limits on user namespaces (user_namespaces(7)).
pub fn fork_into(namespaces: c_int, live: impl FnOnce()) -> io::Result<Pid> {
    // SAFETY: `clone_args` is plain data for which all-zeroes means "not asked for".
    let mut args: libc::clone_args = unsafe { mem::zeroed() };
    args.flags = namespaces as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM and a stack this is fork(2), for which see `fork_here`; `args` lives
    // across the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => live_and_end(live),
        pid => Ok(Pid::from_raw(pid as i32).expect("a process that was made has a number")),
    }
}

/// The whole life of a process that was forked.
fn live_and_end(live: impl FnOnce()) -> ! {
    // The frames below belong to the original.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(live));
    // SAFETY: ends the process; nothing that the original registered for its end runs.
    unsafe { libc::_exit(outcome.is_err().into()) }
}

/// Closes every descriptor but the standard three: what the caller has left open. To be called
/// before this process opens any.
pub fn close_inherited() {
    // SAFETY: no number is read from memory, and nobody in this process owns one of these yet.
    unsafe { libc::syscall(libc::SYS_close_range, 3, RawFd::MAX, 0) };
}

/// Puts `file` in the place of the standard input, output and error output.
pub fn replace_standard_streams(file: BorrowedFd<'_>) -> io::Result<()> {
    for stream in [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: these three are nobody's own: they stay open for the life of the process.
        cvt(unsafe { libc::dup2(file.as_raw_fd(), stream) })?;
    }
    Ok(())
}

/// Closes every descriptor from `first` on but `kept`.
pub fn close_descriptors(first: RawFd, kept: BorrowedFd<'_>) {
    let kept = kept.as_raw_fd();
    let ranges = [(first, kept - 1), (kept + 1, RawFd::MAX)];
    for (from, to) in ranges.into_iter().filter(|(from, to)| from <= to) {
        // SAFETY: no number is read from memory. Whoever owns one of these descriptors is in the
        // original of this process, or does not use it again.
        unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
    }
}

fn cvt(result: c_int) -> io::Result<()> {
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// The bytes of an `int` option.
pub fn int_option(value: c_int) -> [u8; size_of::<c_int>()] {
    value.to_ne_bytes()
}

/// Makes `command` start as root of new user and network namespaces.
#[cfg(test)]
pub fn start_in_namespaces(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;

    use nix::sched::{CloneFlags, unshare};

    let uid_map = format!("0 {} 1", nix::unistd::getuid());
    let gid_map = format!("0 {} 1", nix::unistd::getgid());
    let enter = move || {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", &uid_map)?;
        std::fs::write("/proc/self/gid_map", &gid_map)
    };
    // SAFETY: between fork and exec only system calls are made; the strings exist already and the
    // short paths are turned into C strings on the stack.
    unsafe { command.pre_exec(enter) };
}

/// Whether `signal` is ignored.
pub fn is_ignored(signal: nix::sys::signal::Signal) -> bool {
    // SAFETY: `sigaction` is plain data for which all-zeroes is a valid value.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: with no new action given this only stores the present one; `action` lives across the
    // call.
    let result = unsafe { libc::sigaction(signal as i32, std::ptr::null(), &raw mut action) };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn inherited_fd_must_be_open_and_not_a_standard_one() {
        let error = |fd| adopt_inherited_fd(fd).unwrap_err().raw_os_error();
        assert_eq!(error(1), Some(libc::EBADF));
        assert_eq!(error(-1), Some(libc::EBADF));
        assert_eq!(error(1 << 20), Some(libc::EBADF));
    }

    #[test]
    fn whole_pages_are_discarded() {
        const PAGE: usize = 64 << 10;
        let mut bytes = vec![7; 8 * PAGE];
        discard(&mut bytes[1..8 * PAGE - 1]);
        assert_eq!((bytes[0], bytes[8 * PAGE - 1]), (7, 7));
        assert!(bytes[PAGE..7 * PAGE].iter().all(|byte| *byte == 0));
        discard(&mut bytes[..1]);
        discard(&mut []);
        assert_eq!(bytes[0], 7);
    }

    #[test]
    fn only_a_thread_of_the_default_policy_changes_it() {
        // Field 41 of proc_pid_stat(5), counted from the state, which follows the name in brackets.
        let policy = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let fields = stat.rsplit(')').next().unwrap();
            fields.split_whitespace().nth(38).unwrap().parse::<c_int>()
        };
        assert_eq!(policy(), Ok(libc::SCHED_OTHER));
        for _ in 0..2 {
            wait_for_turn_when_woken().unwrap();
            assert_eq!(policy(), Ok(libc::SCHED_BATCH));
        }
    }

    #[test]
    fn socket_options_round_trip() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        set_socket_option(
            socket.as_fd(),
            libc::SOL_SOCKET,
            libc::SO_PASSCRED,
            &int_option(1),
        )
        .unwrap();
        let mut value = [0; 4];
        let len = socket_option(
            socket.as_fd(),
            libc::SOL_SOCKET,
            libc::SO_PASSCRED,
            &mut value,
        )
        .unwrap();
        assert_eq!((len, i32::from_ne_bytes(value)), (4, 1));
    }

    #[test]
    fn interface_names_are_checked_before_the_kernel_cuts_them() {
        let (socket, _peer) = UnixStream::pair().unwrap();
        for name in ["", "a-name-of-16-byt", "nul\0"] {
            let error = tun_attach(socket.as_fd(), name, libc::IFF_TAP).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
    }
}
