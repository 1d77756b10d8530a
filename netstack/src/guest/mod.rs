//! Everything that happens inside the guest's namespaces: entering them, and the thread that lives
//! in its network namespace, where links are set up and sockets are made.

mod bridge;
mod interface;
mod mount;
mod namespace;
pub mod promotion;
mod thread;

use libc::c_long;

pub use bridge::{BridgeError, End, Links};
pub use interface::{InterfaceError, InterfaceSettings, RING_FRAMES, configure, forward, prepare};
pub use mount::NamespaceMount;
pub use namespace::{Holders, NamespaceError, Target, TargetName, UserNamespace};
pub use thread::{GuestThread, GuestThreadEnded, Pending};

/// What hand-overs call once everything is set up, for the sandbox; `socket` for IP besides.
pub const SYSTEM_CALLS: &[c_long] = &[
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
];

/// What opening ports in the guest takes besides, on the thread that is there.
pub const LISTENING_CALLS: &[c_long] = &[libc::SYS_listen];
