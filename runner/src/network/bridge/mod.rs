//! Networks of containers without root: a bridge in namespaces of the user's own, and a way out.
//!
//! ```text
//!   monitor ──────────> holder ──forks──> anchor      in the network's user and network namespace:
//!   monitor ──────────>   │                           bridge ── pair ── container
//!     one connection      └───spawns──> coracle-net          └─ tap ── coracle-net
//!     a container and
//!     network
//! ```
//! While containers run that are in networks, one process of the user's, the `holder`, keeps
//! those networks. Each has a `space`: namespaces, which its `anchor` keeps, and a coracle-net
//! for the way out, unless the network is internal. The holder has made the namespaces of networks
//! and the monitors, who are the same user, those of containers: that user's rights over both are
//! what it takes to lay a pair of interfaces between them. What containers of one network send each
//! other passes the kernel's bridge and nothing else.
//!
//! A container's [`membership`] is its monitor's: a connection to the holder for each network. What
//! the container has there, address, names and ports, it has as long as the connection lasts. So a
//! monitor that is killed gives everything back, and when a holder is killed, monitors come back to
//! the next one with the addresses that they had. `control` is how commands reach a monitor.
//!
//! The holder is one for all networks of a user, so that a container of two networks can ask either
//! for the names of both.

mod anchor;
mod api;
pub mod attachment;
mod client;
mod control;
mod holder;
mod leases;
pub mod membership;
mod messages;
mod space;

pub use attachment::{Address, Attachment, Lease, Mac};
pub use control::{Change, ControlError, ask as ask_monitor};
pub use holder::main;
pub use space::Place;
