//! The life of the helper's process under the names that promise one: a command that is started in
//! namespaces of its own ([`guest`]), the background ([`background`]), how a process there is found
//! again ([`claim`]), and what is left on disk of them ([`PidFile`], [`log`]).
//!
//! Processes are forked while this one has a single thread, that is before `start`. Files are
//! opened with the caller's rights, before the sandbox takes paths and rights away; what has to be
//! done with them afterwards needs the calls in [`SYSTEM_CALLS`] and no others.

pub mod background;
pub mod claim;
pub mod guest;
pub mod log;
pub mod log_file;
mod pid_file;
mod syslog;

use libc::c_long;

pub use guest::{Guest, GuestError, Program};
pub use log::Log;
pub use log_file::{LogFile, LogFileError};
pub use pid_file::{PidFile, PidFileError};

/// What this module calls once the helper is up, for the sandbox.
pub const SYSTEM_CALLS: &[c_long] = &[
    // The log.
    libc::SYS_write,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_ftruncate,
    // How the command ended.
    libc::SYS_waitid,
];
