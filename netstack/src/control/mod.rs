//! What the outside world may ask of a running helper: to end, and to tell how it is.

mod exit;
mod status;

use libc::c_long;

pub use exit::{ExitWatch, ReadySignal};
pub use status::{
    FlowInitiator, FlowPath, FlowPromotion, FlowProtocol, FlowStatus, LimitStatus, LimitsStatus,
    MemoryStatus, PromotionStatus, Reason, SocketFile, Status, StatusError, StatusSocket,
};

/// What serving status and watching for the end take, for the sandbox. A list of mounts is read
/// from its beginning each time.
pub const SYSTEM_CALLS: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_sendto,
    libc::SYS_lseek,
    libc::SYS_fcntl,
];
