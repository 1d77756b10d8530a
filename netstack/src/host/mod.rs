//! The host's side of the network: connecting streams, UDP and ping sockets, the resolvers.

pub mod dial;
mod ping;
mod resolv;
mod udp;

pub use ping::PingSocket;
pub use resolv::{RESOLV_CONF, Resolvers};
pub use udp::{Received, UdpSocket};
