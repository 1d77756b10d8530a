//! The host's side of the network: connecting streams, UDP and ping sockets, the resolvers.

pub mod dial;
mod errno;
mod ping;
mod resolv;
pub mod udp;

use std::time::Duration;

use portfwd::Keepalive;

pub use ping::PingSocket;
pub use resolv::{RESOLV_CONF, Resolvers};
pub use udp::UdpSocket;

/// Finds out that a remote has gone without a word, within four minutes. The guest cannot:
/// keepalive probes of its own are answered by us.
pub const KEEPALIVE: Keepalive = Keepalive {
    idle: Duration::from_secs(120),
    interval: Duration::from_secs(30),
    probes: 4,
};
