//! Port publishing and byte hauling between kernel sockets.
//!
//! - [`spec`]: what a user writes after `-p`, as one [`Publish`] type.
//!
//! The crate knows nothing of frames, namespaces or an event loop.

pub mod spec;

pub use spec::{PortRange, Protocol, Publish, SpecError};
