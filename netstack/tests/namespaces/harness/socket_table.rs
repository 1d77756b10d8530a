//! The kernel's table of TCP sockets over IPv4, TIME-WAIT included (Linux, proc_net_tcp.rst).

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::Netns;

/// A socket. `local` is its own end.
pub struct Socket {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// When it sends its next keepalive probe, unless another timer comes first.
    pub keepalive_due: Option<Duration>,
}

/// The sockets of a network namespace.
pub fn tcp_sockets(netns: &Netns) -> Vec<Socket> {
    let table = netns.run(|| fs::read_to_string("/proc/thread-self/net/tcp"));
    let table = table.expect("the socket table");
    let rows = table.lines().skip(1);
    rows.map(|row| Socket::parse(row).unwrap_or_else(|| panic!("not a socket: {row}")))
        .collect()
}

impl Socket {
    fn parse(row: &str) -> Option<Self> {
        const KEEPALIVE: &str = "02";
        const TICKS_PER_SECOND: u64 = 100;
        let mut columns = row.split_whitespace().skip(1);
        let (local, remote) = (address(columns.next()?)?, address(columns.next()?)?);
        let (timer, ticks) = columns.nth(2)?.split_once(':')?;
        let ticks = u64::from_str_radix(ticks, 16).ok()?;
        let due = Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND);
        Some(Self {
            local,
            remote,
            keepalive_due: (timer == KEEPALIVE).then_some(due),
        })
    }
}

fn address(column: &str) -> Option<SocketAddr> {
    let (address, port) = column.split_once(':')?;
    let address = u32::from_str_radix(address, 16).ok()?.to_ne_bytes();
    let port = u16::from_str_radix(port, 16).ok()?;
    Some((Ipv4Addr::from(address), port).into())
}
