//! What happens to a system call that a filter has decided about.

/// The actions of `seccomp(2)` that need nobody who listens. In order of the kernel's precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    KillProcess,
    KillThread,
    /// SIGSYS.
    Trap,
    /// Fails with this errno, of which the kernel takes 0 to 4095.
    Errno(u16),
    /// Carried out, and written to the audit log.
    Log,
    Allow,
}

impl Action {
    /// The filter's return value, `linux/seccomp.h`.
    pub fn to_kernel(self) -> u32 {
        match self {
            Self::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
            Self::KillThread => libc::SECCOMP_RET_KILL_THREAD,
            Self::Trap => libc::SECCOMP_RET_TRAP,
            Self::Errno(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
            Self::Log => libc::SECCOMP_RET_LOG,
            Self::Allow => libc::SECCOMP_RET_ALLOW,
        }
    }
}
