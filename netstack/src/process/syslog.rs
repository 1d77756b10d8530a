//! The system's log, as `syslog(3)` writes to it: datagrams to a socket of a known name, each a
//! priority and a line (RFC 3164 4.1).

use std::io;
use std::os::unix::net::UnixDatagram;

use tracing::Level;

/// `_PATH_LOG` of syslog.h.
const SOCKET: &str = "/dev/log";

/// LOG_DAEMON of syslog.h.
const FACILITY: u8 = 3 << 3;

/// A connection to it.
#[derive(Debug)]
pub struct Syslog(UnixDatagram);

impl Syslog {
    /// `None` where there is no such log.
    pub fn connect() -> Option<Self> {
        let socket = UnixDatagram::unbound().ok()?;
        socket.connect(SOCKET).ok()?;
        // A log that does not keep up loses lines, instead of stopping the network.
        socket.set_nonblocking(true).ok()?;
        Some(Self(socket))
    }

    /// Writes `line`; one that cannot be written is lost.
    pub fn write(&self, level: Level, name: &str, line: &str) {
        let process = std::process::id();
        let priority = FACILITY | severity(level);
        let message = format!("<{priority}>{name}[{process}]: {}", line.trim());
        let _: io::Result<()> = rustix::io::write(&self.0, message.as_bytes())
            .map(drop)
            .map_err(Into::into);
    }
}

/// LOG_ERR to LOG_DEBUG of syslog.h.
fn severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}
