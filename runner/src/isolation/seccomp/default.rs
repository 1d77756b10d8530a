//! The profile of a container that names none: equal in effect to Podman's.
//!
//! An allow-list. What it leaves out does not exist for the container (ENOSYS), so that programs
//! fall back to what there was before; what every kernel has and a container must not use is
//! refused (EPERM). Calls that only a capability makes dangerous are there with the capability.
//! User namespaces and mounts are allowed, as with Podman: nested containers and browsers'
//! sandboxes need them, and the kernel holds them within the container's own namespaces.

use std::borrow::Cow;

use super::profile::{ActionName, ArgumentText, Operator, Profile, RuleText, When};

/// Allowed whatever the arguments and capabilities.
const ALLOWED: &[&str] = &[
    // Files: opening, reading, writing.
    "open openat openat2 creat close close_range read write readv writev pread64 pwrite64 \
     preadv preadv2 pwritev pwritev2 lseek _llseek sendfile sendfile64 copy_file_range splice \
     tee readahead fadvise64 fadvise64_64 fallocate ftruncate ftruncate64 truncate truncate64 \
     fsync fdatasync sync syncfs sync_file_range cachestat dup dup2 dup3 fcntl fcntl64 flock \
     ioctl pipe pipe2 memfd_create memfd_secret name_to_handle_at",
    // Files: names, owners, modes, attributes.
    "access faccessat faccessat2 chdir fchdir getcwd mkdir mkdirat rmdir mknod mknodat link \
     linkat symlink symlinkat unlink unlinkat rename renameat renameat2 readlink readlinkat \
     readdir getdents getdents64 chmod fchmod fchmodat fchmodat2 chown chown32 fchown \
     fchown32 fchownat lchown lchown32 umask stat stat64 fstat fstat64 fstatat64 newfstatat \
     lstat lstat64 statx statfs statfs64 fstatfs fstatfs64 utime utimes utimensat \
     utimensat_time64 futimesat getxattr fgetxattr lgetxattr getxattrat setxattr fsetxattr \
     lsetxattr setxattrat listxattr flistxattr llistxattr listxattrat removexattr \
     fremovexattr lremovexattr removexattrat file_getattr file_setattr inotify_init \
     inotify_init1 inotify_add_watch inotify_rm_watch fanotify_mark",
    // Mounts, within what the container's own namespaces allow.
    "mount umount umount2 pivot_root fsopen fsconfig fsmount fspick open_tree open_tree_attr \
     move_mount mount_setattr statmount listmount",
    // Memory.
    "brk mmap mmap2 munmap mremap mprotect msync madvise mincore mlock mlock2 mlockall \
     munlock munlockall remap_file_pages membarrier mbind get_mempolicy set_mempolicy \
     set_mempolicy_home_node pkey_alloc pkey_free pkey_mprotect map_shadow_stack mseal \
     process_vm_readv process_vm_writev process_mrelease",
    // Processes and threads.
    "fork vfork clone clone3 execve execveat exit exit_group wait4 waitid waitpid unshare \
     getpid getppid gettid getpgid getpgrp setpgid getsid setsid set_tid_address \
     set_robust_list get_robust_list set_thread_area get_thread_area rseq futex futex_time64 \
     futex_wait futex_wake futex_requeue futex_waitv restart_syscall syscall prctl ptrace \
     seccomp pidfd_open pidfd_getfd pidfd_send_signal landlock_create_ruleset \
     landlock_add_rule landlock_restrict_self lsm_get_self_attr lsm_set_self_attr \
     lsm_list_modules",
    // Identity and capabilities.
    "getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 getresuid \
     getresuid32 getresgid getresgid32 getgroups getgroups32 setuid setuid32 setgid setgid32 \
     setreuid setreuid32 setregid setregid32 setresuid setresuid32 setresgid setresgid32 \
     setfsuid setfsuid32 setfsgid setfsgid32 setgroups setgroups32 capget capset keyctl",
    // Scheduling and limits.
    "sched_yield sched_getaffinity sched_setaffinity sched_getattr sched_setattr \
     sched_getparam sched_setparam sched_getscheduler sched_setscheduler \
     sched_get_priority_max sched_get_priority_min sched_rr_get_interval \
     sched_rr_get_interval_time64 getpriority setpriority ioprio_get ioprio_set getcpu \
     getrlimit setrlimit ugetrlimit prlimit64 getrusage times sysinfo uname syslog reboot \
     getrandom",
    // Signals.
    "kill tkill tgkill pause alarm signal sigaction sigaltstack sigpending sigprocmask \
     sigreturn sigsuspend rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo \
     rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo \
     signalfd signalfd4",
    // Time.
    "time gettimeofday clock_gettime clock_gettime64 clock_getres clock_getres_time64 \
     clock_nanosleep clock_nanosleep_time64 nanosleep adjtimex clock_adjtime clock_adjtime64 \
     getitimer setitimer timer_create timer_delete timer_getoverrun timer_gettime \
     timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime \
     timerfd_gettime64 timerfd_settime timerfd_settime64",
    // Waiting for descriptors, asynchronous input and output.
    "select _newselect pselect6 pselect6_time64 poll ppoll ppoll_time64 epoll_create \
     epoll_create1 epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2 \
     eventfd eventfd2 io_setup io_destroy io_submit io_cancel io_getevents",
    // Sockets, but for `socket` itself.
    "socketcall socketpair bind connect listen accept accept4 shutdown getsockname \
     getpeername getsockopt setsockopt send sendto sendmsg sendmmsg recv recvfrom recvmsg \
     recvmmsg recvmmsg_time64",
    // System V and POSIX IPC.
    "ipc shmget shmat shmdt shmctl semget semop semctl semtimedop semtimedop_time64 msgget \
     msgsnd msgrcv msgctl mq_open mq_unlink mq_notify mq_getsetattr mq_timedsend \
     mq_timedsend_time64 mq_timedreceive mq_timedreceive_time64",
];

/// Refused with EPERM. Some are harmless and obsolete: a program that asks for them should hear a
/// "no" that it knows.
const REFUSED: &str = "bdflush io_pgetevents kexec_file_load kexec_load migrate_pages move_pages \
     nfsservctl nice oldfstat oldlstat oldolduname oldstat olduname sgetmask ssetmask swapoff \
     swapon sysfs uselib userfaultfd ustat vm86 vm86old vmsplice";

/// Allowed with the capability, else refused with EPERM.
const WITH_CAPABILITY: &[(&str, &str)] = &[
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf fanotify_init lookup_dcookie perf_event_open quotactl setdomainname sethostname setns",
    ),
    ("CAP_SYS_CHROOT", "chroot"),
    (
        "CAP_SYS_MODULE",
        "delete_module finit_module init_module query_module",
    ),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp process_madvise"),
    ("CAP_SYS_RAWIO", "ioperm iopl"),
    (
        "CAP_SYS_TIME",
        "clock_settime clock_settime64 settimeofday stime",
    ),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
];

/// Allowed on one architecture, as `arches` names it.
const WITH_ARCHITECTURE: &[(&str, &str)] = &[
    ("amd64", "arch_prctl modify_ldt"),
    (
        "arm64",
        "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
    ),
];

/// Execution domains that change nothing about what the kernel checks: PER_LINUX, PER_LINUX32, both
/// with UNAME26, and the question which one it is (`personality(2)`).
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

pub fn profile() -> Profile {
    let mut rules = vec![rule(ActionName::Errno, REFUSED)];
    rules.extend(ALLOWED.iter().map(|names| rule(ActionName::Allow, names)));
    for (capability, names) in WITH_CAPABILITY {
        let with = When {
            caps: vec![(*capability).into()],
            ..When::default()
        };
        rules.push(RuleText {
            includes: with.clone(),
            ..rule(ActionName::Allow, names)
        });
        rules.push(RuleText {
            excludes: with,
            ..rule(ActionName::Errno, names)
        });
    }
    for (architecture, names) in WITH_ARCHITECTURE {
        rules.push(RuleText {
            includes: When {
                arches: vec![(*architecture).into()],
                ..When::default()
            },
            ..rule(ActionName::Allow, names)
        });
    }
    for personality in PERSONALITIES {
        rules.push(RuleText {
            args: Some(vec![equal(0, personality)]),
            ..rule(ActionName::Allow, "personality")
        });
    }
    rules.extend(sockets());
    Profile::new(ActionName::Errno, libc::ENOSYS as u32, rules)
}

/// Every socket, but the kernel's audit only with the capability to write to it: without, the
/// kernel's own answer makes PAM give up, and EINVAL makes it go on as on a kernel without audit.
fn sockets() -> [RuleText; 2] {
    const AF_NETLINK: u64 = libc::AF_NETLINK as u64;
    const NETLINK_AUDIT: u64 = libc::NETLINK_AUDIT as u64;
    [
        rule(ActionName::Allow, "socket"),
        RuleText {
            args: Some(vec![equal(0, AF_NETLINK), equal(2, NETLINK_AUDIT)]),
            errno_ret: Some(libc::EINVAL as u32),
            excludes: When {
                caps: vec!["CAP_AUDIT_WRITE".into()],
                ..When::default()
            },
            ..rule(ActionName::Errno, "socket")
        },
    ]
}

fn rule(action: ActionName, names: &'static str) -> RuleText {
    RuleText {
        names: names.split_whitespace().map(Cow::Borrowed).collect(),
        ..RuleText::new(action)
    }
}

fn equal(index: u8, value: u64) -> ArgumentText {
    ArgumentText {
        index,
        value,
        value_two: 0,
        op: Operator::Equal,
    }
}
