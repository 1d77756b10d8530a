//! What the outside world may ask of a running helper: to end, and to tell how it is.

mod exit;
mod status;

pub use exit::{ExitWatch, ReadySignal};
pub use status::{
    FlowPath, FlowProtocol, FlowStatus, Initiator, LimitStatus, LimitsStatus, MemoryStatus,
    Promoted, PromotionStatus, Reason, Status, StatusError, StatusSocket,
};
