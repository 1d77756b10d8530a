//! The system calls that are left to the helper, to its companion and to its broker: the lists that
//! the modules keep beside what they call, which a caller hands in, and here what the language and
//! the C library need.
//!
//! The helper has none that takes a path, executes, makes a process or a namespace, or opens a
//! socket other than for IP. The companion may read files, remove one, and send to nobody but the
//! helper. The broker may open sockets for IP. Memory can be made executable by none.

use std::io;

use libc::c_long;

use super::SandboxError;
use crate::seccomp::{Call, Comparison, Condition, Program, TooLong, allow_list};

/// Which threads lose the other calls; what comes from them later does as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    Calling,
    /// All there are, none of which has a filter of its own: one is quicker made than two.
    All,
}

/// Leaves `lists` and sockets for IP.
pub fn confine_helper_calls(lists: &[&[c_long]], threads: Threads) -> Result<(), SandboxError> {
    install(&helper(lists), threads)
}

/// Leaves the calling thread `list`, and files that are only read.
pub fn confine_companion_calls(list: &[c_long]) -> Result<(), SandboxError> {
    install(&companion(list), Threads::Calling)
}

/// Leaves the calling thread `list`, and sockets for IP.
pub fn confine_broker_calls(list: &[c_long]) -> Result<(), SandboxError> {
    install(&broker(list), Threads::Calling)
}

fn install(program: &Result<Program, TooLong>, threads: Threads) -> Result<(), SandboxError> {
    let flags = match threads {
        Threads::Calling => 0,
        Threads::All => libc::SECCOMP_FILTER_FLAG_TSYNC,
    };
    let error = |source| SandboxError {
        privilege: "system calls",
        source,
    };
    match program {
        Ok(program) => program.install(flags).map_err(error),
        Err(too_long) => Err(error(io::Error::other(too_long.to_string()))),
    }
}

fn helper(lists: &[&[c_long]]) -> Result<Program, TooLong> {
    let plain = with_runtime(lists.concat());
    // std makes accepted sockets non-blocking so.
    let ioctl = equal(libc::SYS_ioctl, 1, libc::FIONBIO as i32);
    allow_list(
        plain.chain(memory()).chain(ip_sockets()).chain([ioctl]),
        DEADLY,
    )
}

fn companion(list: &[c_long]) -> Result<Program, TooLong> {
    let plain = with_runtime(list.to_vec());
    const WRITING: i32 = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;
    let read_only = Call::with(libc::SYS_openat, 2, WRITING as u64, libc::O_RDONLY as u64);
    // Without an address: to whom it is connected.
    let send = equal(libc::SYS_sendto, 4, 0);
    // Zones of addresses are named after interfaces, which if_nametoindex(3) asks of a socket.
    let zones = [
        unconnected(),
        equal(libc::SYS_ioctl, 1, libc::SIOCGIFINDEX as i32),
    ];
    allow_list(
        plain.chain(memory()).chain([read_only, send]).chain(zones),
        DEADLY,
    )
}

fn broker(list: &[c_long]) -> Result<Program, TooLong> {
    let plain = with_runtime(list.to_vec());
    allow_list(plain.chain(memory()).chain(ip_sockets()), DEADLY)
}

/// Calls with any arguments: those of `list`, and what every program needs.
fn with_runtime(list: Vec<c_long>) -> impl Iterator<Item = Call> {
    RUNTIME.iter().copied().chain(list).map(Call::any)
}

fn ip_sockets() -> [Call; 2] {
    [libc::AF_INET, libc::AF_INET6].map(|family| equal(libc::SYS_socket, 0, family))
}

/// A socket that is good for asking about interfaces: without an address to send to it reaches
/// nobody.
fn unconnected() -> Call {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
    Call {
        number: libc::SYS_socket,
        conditions: vec![is(0, libc::AF_UNIX), is(1, kind)],
    }
}

fn equal(number: c_long, argument: u8, value: i32) -> Call {
    Call {
        number,
        conditions: vec![is(argument, value)],
    }
}

fn is(argument: u8, value: i32) -> Condition {
    Condition {
        argument,
        comparison: Comparison::Equal,
        value: value as u64,
    }
}

/// Memory that cannot be executed.
fn memory() -> [Call; 2] {
    [libc::SYS_mmap, libc::SYS_mprotect]
        .map(|number| Call::with(number, 2, libc::PROT_EXEC as u64, 0))
}

/// What the allocator, threads, panics and the log need.
const RUNTIME: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_getrandom,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Calls that nothing of ours makes once it is up, and that somebody who has taken it over wants.
const DEADLY: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_by_handle_at,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
];

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use nix::sys::signal::Signal;
    use nix::sys::wait::{WaitStatus, waitpid};
    use nix::unistd::Pid;

    use super::*;
    use crate::sys;
    use crate::testing::in_namespaces;

    fn confine_helper() -> Result<(), SandboxError> {
        confine_helper_calls(crate::start::SYSTEM_CALLS, Threads::Calling)
    }

    fn confine_companion() -> Result<(), SandboxError> {
        confine_companion_calls(crate::host::FOLLOWING_CALLS)
    }

    /// What becomes of a process that makes an attempt under a filter: 0 if it comes to its end, 1
    /// if it panics.
    fn outcome(
        confine: impl Fn() -> Result<(), SandboxError>,
        attempt: impl FnOnce(),
    ) -> WaitStatus {
        let process = sys::fork(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            confine().unwrap();
            attempt();
        });
        let process = Pid::from_raw(process.unwrap().as_raw_nonzero().get());
        waitpid(process, None).unwrap()
    }

    fn assert_works(confine: impl Fn() -> Result<(), SandboxError>, attempt: impl FnOnce()) {
        let status = outcome(confine, attempt);
        assert!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
    }

    fn assert_kills(confine: impl Fn() -> Result<(), SandboxError>, attempt: impl FnOnce()) {
        let status = outcome(confine, attempt);
        let killed = matches!(status, WaitStatus::Signaled(_, Signal::SIGSYS, _));
        assert!(killed, "{status:?}");
    }

    #[track_caller]
    fn assert_refused<T>(result: io::Result<T>) {
        let errno = result.err().and_then(|error| error.raw_os_error());
        assert_eq!(errno, Some(libc::EPERM));
    }

    #[test]
    fn the_helper_has_ip_sockets_and_no_path() {
        in_namespaces(
            module_path!(),
            "the_helper_has_ip_sockets_and_no_path",
            || {
                let dir = tempfile::tempdir().unwrap();
                let file = dir.path().join("secret");
                fs::write(&file, "secret").unwrap();
                let socket = dir.path().join("socket");
                let _listener = UnixListener::bind(&socket).unwrap();
                assert_works(confine_helper, || {
                    assert_refused(File::open(&file));
                    assert_refused(fs::write(&file, ""));
                    assert_refused(fs::remove_file(&file));
                    assert_refused(fs::rename(&file, dir.path().join("other")));
                    assert_refused(fs::create_dir(dir.path().join("dir")));
                    assert_refused(fs::read_dir("/"));
                    assert_refused(fs::metadata(&file));
                    assert_refused(UnixStream::connect(&socket));
                    assert_refused(std::thread::Builder::new().spawn(|| ()));
                    assert_refused(std::process::Command::new("/bin/true").spawn());
                    UdpSocket::bind("127.0.0.1:0").unwrap();
                    let error = TcpStream::connect("127.0.0.1:9").unwrap_err();
                    assert_ne!(error.raw_os_error(), Some(libc::EPERM));
                    // Listening is over, too: ports were bound before.
                    assert_refused(TcpListener::bind("127.0.0.1:0"));
                });
                assert_eq!(fs::read(&file).unwrap(), b"secret");
            },
        );
    }

    #[test]
    fn who_takes_over_and_executes_is_killed() {
        in_namespaces(
            module_path!(),
            "who_takes_over_and_executes_is_killed",
            || {
                for confine in [confine_helper, confine_companion] {
                    assert_kills(confine, || {
                        let _ = nix::unistd::execv(c"/bin/true", &[c"true"]);
                    });
                    assert_kills(confine, || {
                        let _ = nix::sys::ptrace::traceme();
                    });
                    assert_kills(confine, || {
                        let _ = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER);
                    });
                }
            },
        );
    }

    #[test]
    fn the_companion_reads_and_removes() {
        in_namespaces(module_path!(), "the_companion_reads_and_removes", || {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("file");
            fs::write(&file, "text").unwrap();
            let socket = dir.path().join("socket");
            let _listener = UnixListener::bind(&socket).unwrap();
            let socket_of_others = dir.path().join("datagrams");
            let _receiver = UnixDatagram::bind(&socket_of_others).unwrap();
            assert_works(confine_companion, || {
                assert_eq!(fs::read(&file).unwrap(), b"text");
                assert_refused(fs::write(&file, ""));
                assert_refused(File::create(dir.path().join("other")));
                assert_refused(UnixStream::connect(&socket));
                assert_refused(TcpStream::connect("127.0.0.1:9"));
                let datagrams = UdpSocket::bind("127.0.0.1:0");
                assert_refused(datagrams);
                let socket = UnixDatagram::unbound().unwrap();
                assert_refused(socket.send_to(b"x", &socket_of_others));
                // Zones, as in fe80::1%lo.
                assert_eq!(nix::net::if_::if_nametoindex("lo").unwrap(), 1);
                fs::remove_file(&file).unwrap();
            });
        });
    }
}
