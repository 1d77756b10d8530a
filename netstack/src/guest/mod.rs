//! Everything that happens inside the guest's namespaces: entering them, and the thread that lives in its network
//! namespace, where links are set up and sockets are made.

mod link;
mod namespace;
pub mod netlink;
pub mod nft;
pub mod repair;
pub mod route;
mod thread;

pub use link::{LinkError, LinkSettings, configure};
pub use namespace::{NamespaceError, Target, TargetName};
pub use thread::{GuestThread, GuestThreadEnded};
