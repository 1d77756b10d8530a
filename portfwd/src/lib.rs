//! Port publishing and byte hauling between kernel sockets.
//!
//! - [`spec`]: what a user writes after `-p`, as one [`Publish`] type.
//! - [`endpoint`]: where one socket listens.
//! - [`forward`]: forwarding rules in pasta's words, and `pesto`'s protocol.
//! - [`publish`]: the host sockets of such a rule, bound all or none.
//! - [`keepalive`]: finds out that a silent peer has gone.
//! - [`relay`]: moves bytes between two connected TCP sockets, in the kernel where that pays.
//!
//! The crate knows nothing of frames, namespaces or an event loop.

pub mod endpoint;
pub mod forward;
mod interface_name;
pub mod keepalive;
pub mod publish;
pub mod relay;
pub mod spec;

pub use endpoint::Endpoint;
pub use forward::{Direction, Forward};
pub use interface_name::{InterfaceName, InvalidInterfaceName};
pub use keepalive::Keepalive;
pub use publish::{BindError, Listener};
pub use spec::{PortRange, Protocol, Publish, SpecError};
