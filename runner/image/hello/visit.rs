//! What one visitor is told, in either form.

use std::net::SocketAddr;
use std::sync::Arc;

use super::network::{Carrier, Status};

/// A line of /proc/self/uid_map or gid_map (user_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapLine {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

/// All that one visitor is told.
pub struct Visit<'a> {
    pub client: SocketAddr,
    /// Whether the client is on the host itself.
    pub is_gateway: bool,
    pub hostname: &'a str,
    pub uid_map: &'a [MapLine],
    pub gid_map: &'a [MapLine],
    pub uptime_seconds: u64,
    pub connections: u64,
    pub requests: u64,
    pub bytes_sent: u64,
    /// `None` when the helper cannot be asked.
    pub network: Option<Arc<Status>>,
    /// `None` when it is not known.
    pub carrier: Option<Carrier>,
}
