//! The host's side of the network: connecting streams, UDP and ping sockets, the resolvers.

pub mod dial;
mod errno;
mod error_queue;
mod local_leg;
mod outbound;
mod ping;
mod resolv;
pub mod udp;

use std::net::IpAddr;
use std::num::NonZeroU8;
use std::time::Duration;

use libc::c_long;
use nix::sys::socket::ControlMessage;
use portfwd::Keepalive;

pub use local_leg::LocalLeg;
pub use outbound::Outbound;
pub use ping::PingSocket;
pub use resolv::{RESOLV_CONF, ResolvConf, search_domains};
pub use udp::UdpSocket;

/// What the host's sockets take, for the sandbox; `socket` for IP besides.
pub const SYSTEM_CALLS: &[c_long] = &[
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
];

/// What following resolv.conf takes, for the companion's sandbox; `openat` for reading besides.
pub const FOLLOWING_CALLS: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_readlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
];

/// Finds out that a remote has gone without a word, within four minutes. The guest cannot:
/// keepalive probes of its own are answered by us.
pub const KEEPALIVE: Keepalive = Keepalive {
    idle: Duration::from_secs(120),
    interval: Duration::from_secs(30),
    probes: 4,
};

/// How many routers a datagram may pass, as sendmsg(2) wants it.
struct HopLimit(i32);

impl HopLimit {
    fn new(hops: NonZeroU8) -> Self {
        Self(hops.get().into())
    }

    /// For a datagram to `to`.
    fn message(&self, to: IpAddr) -> ControlMessage<'_> {
        match to {
            IpAddr::V4(_) => ControlMessage::Ipv4Ttl(&self.0),
            IpAddr::V6(_) => ControlMessage::Ipv6HopLimit(&self.0),
        }
    }
}
