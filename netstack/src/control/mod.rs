//! What the outside world may ask of a running helper: to end, to tell how it is, and to publish
//! ports.

mod clients;
mod exit;
mod metrics;
mod port_control;
mod slirp_api;
mod socket_file;
mod status;
mod status_socket;

use libc::c_long;

pub use exit::{ExitWatch, HeededSignals, ReadySignal};
pub use metrics::text as metrics_text;
pub use port_control::{Forwarder, PortControl};
pub use slirp_api::{Forward, Publisher, SlirpApi, SlirpApiError};
pub use socket_file::{PrivateSocketError, SocketFile};
pub use status::{
    DeviceStatus, FlowInitiator, FlowPath, FlowPromotion, FlowProtocol, FlowStatus, LimitStatus,
    LimitsStatus, MemoryStatus, PromotionStatus, Reason, Status,
};
pub use status_socket::{Form, StatusSocket};

/// What serving clients and watching for the end take, for the sandbox. A list of mounts is read
/// from its beginning each time.
pub const SYSTEM_CALLS: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_sendto,
    libc::SYS_lseek,
    libc::SYS_fcntl,
];
