//! The host's side of the network: connecting streams, UDP and ping sockets, the resolvers.

pub mod dial;
mod ping;
mod udp;

pub use ping::PingSocket;
pub use udp::{Received, UdpSocket};
