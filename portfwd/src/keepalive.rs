//! TCP keepalive: how the kernel finds out that a silent peer has gone.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt;

/// The first probe after `idle`, then one each `interval`, and a reset after `probes` without an
/// answer. The kernel counts in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    pub idle: Duration,
    pub interval: Duration,
    pub probes: u32,
}

impl Keepalive {
    /// Turns it on for a TCP socket, or for all that a listening one accepts.
    pub fn set(self, socket: impl AsFd) -> io::Result<()> {
        sockopt::set_tcp_keepidle(&socket, self.idle)?;
        sockopt::set_tcp_keepintvl(&socket, self.interval)?;
        sockopt::set_tcp_keepcnt(&socket, self.probes)?;
        sockopt::set_socket_keepalive(&socket, true)?;
        Ok(())
    }
}
