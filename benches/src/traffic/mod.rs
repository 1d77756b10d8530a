//! The traffic generator: small single-threaded processes that the stage starts in the namespaces
//! of a figure.
//!
//! A process gets one [`Task`] as JSON in its argument and reports [`Event`]s, one JSON document a
//! line, on its standard output; results therefore never travel through the helper under test. All
//! sockets are non-blocking and served by one epoll loop per process. Only datagrams take orders
//! while they run, on standard input. The processes keep the capabilities of their namespace so
//! that they may choose a congestion control.

pub mod bulk;
pub mod connect;
pub mod datagrams;
pub mod exchange;
pub mod memory;
pub mod request;
pub mod serve;
mod tally;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{
    self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, sockopt,
};
use serde::{Deserialize, Serialize};

use crate::namespaces;
use crate::stats::LatencySummary;

/// Length of a request head in bytes, as a small API call has.
pub const REQUEST_BYTES: usize = 100;
/// Length of a response in bytes, head included.
pub const RESPONSE_BYTES: usize = 600;

/// What one process does, and where.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// Join the user and network namespaces of this process first.
    pub enter: Option<i32>,
    /// TCP congestion control of every socket.
    pub congestion: String,
    pub job: Job,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Job {
    /// Accept `flows` connections, then send or receive.
    BulkListen {
        listen: SocketAddr,
        bulk: bulk::Bulk,
    },
    /// Make `flows` connections, then send or receive.
    BulkConnect {
        connect: SocketAddr,
        bulk: bulk::Bulk,
    },
    /// Answer HTTP requests until killed.
    Serve { listen: SocketAddr },
    /// Keep-alive requests.
    Request {
        connect: SocketAddr,
        connections: u32,
        warm_ms: u64,
        measure_ms: u64,
    },
    /// One connection per request.
    Connect {
        connect: SocketAddr,
        at_once: u32,
        end: connect::End,
    },
    /// Send or receive datagrams as the stage commands, and be greeted first.
    DatagramsServe {
        listen: SocketAddr,
        datagrams: datagrams::Datagrams,
    },
    /// The same, and greet first.
    DatagramsConnect {
        connect: SocketAddr,
        datagrams: datagrams::Datagrams,
    },
    /// Answer datagrams until killed.
    ExchangeServe { listen: SocketAddr },
    /// One question in flight per socket.
    Exchange {
        connect: SocketAddr,
        sockets: u32,
        warm_ms: u64,
        measure_ms: u64,
    },
    /// Open connections, use each once, hold them until standard input ends.
    Hold {
        connect: SocketAddr,
        connections: u32,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Event {
    /// Listening.
    Ready,
    /// The measured part begins.
    Begin,
    /// The measured part is over.
    Done(Report),
}

/// What a generator saw in the measured part.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub seconds: f64,
    pub bytes: u64,
    /// Bytes in the slowest full 100 ms.
    pub slowest_100ms_bytes: u64,
    /// Completed requests or connections; datagrams.
    pub operations: u64,
    pub latency: LatencySummary,
    /// Failures by cause.
    pub errors: BTreeMap<String, u64>,
}

/// Runs the process side of a task. The caller is a fresh single-threaded process.
pub fn run(task: Task) -> Result<()> {
    if let Some(pid) = task.enter {
        namespaces::enter(pid)?;
    }
    let sockets = Sockets {
        congestion: task.congestion,
    };
    match task.job {
        Job::BulkListen { listen, bulk } => bulk::listen(&sockets, listen, bulk),
        Job::BulkConnect { connect, bulk } => bulk::connect(&sockets, connect, bulk),
        Job::Serve { listen } => serve::run(&sockets, listen),
        Job::DatagramsServe { listen, datagrams } => datagrams::serve(&sockets, listen, datagrams),
        Job::DatagramsConnect { connect, datagrams } => {
            datagrams::connect(&sockets, connect, datagrams)
        }
        Job::ExchangeServe { listen } => exchange::serve(&sockets, listen),
        Job::Exchange {
            connect,
            sockets: count,
            warm_ms,
            measure_ms,
        } => {
            let warm = Duration::from_millis(warm_ms);
            let measure = Duration::from_millis(measure_ms);
            exchange::run(&sockets, connect, count, warm, measure)
        }
        Job::Request {
            connect,
            connections,
            warm_ms,
            measure_ms,
        } => {
            let warm = Duration::from_millis(warm_ms);
            request::run(
                &sockets,
                connect,
                connections,
                warm,
                Duration::from_millis(measure_ms),
            )
        }
        Job::Connect {
            connect,
            at_once,
            end,
        } => connect::run(&sockets, connect, at_once, end),
        Job::Hold {
            connect,
            connections,
        } => memory::run(&sockets, connect, connections),
    }
}

/// Writes one event for the stage.
pub fn emit(event: Event) -> Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &event)?;
    out.write_all(b"\n")?;
    out.flush().context("failed to report to the stage")
}

/// How long connecting may take before it counts as failed: longer than two SYN retransmissions.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for many at once, some of which may meet a short accept queue and wait for a third
/// retransmission, after 7 s.
pub const CONNECT_ALL_TIMEOUT: Duration = Duration::from_secs(8);

/// Makes the sockets of a task.
pub struct Sockets {
    congestion: String,
}

impl Sockets {
    /// A listener whose accept queue does not overflow under any load here.
    pub fn listen(&self, address: SocketAddr) -> Result<TcpListener> {
        let socket = self.socket(address)?;
        socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        let storage = SockaddrStorage::from(address);
        socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &storage)
            .with_context(|| format!("failed to bind {address}"))?;
        socket::listen(&socket, Backlog::new(4096)?)
            .with_context(|| format!("failed to listen on {address}"))?;
        Ok(TcpListener::from(socket))
    }

    /// A socket whose connection attempt is under way; it becomes writable when it is decided.
    pub fn start_connect(&self, address: SocketAddr) -> Result<TcpStream, Errno> {
        let socket = self.socket(address)?;
        socket::setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
        let storage = SockaddrStorage::from(address);
        match socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &storage) {
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(TcpStream::from(socket)),
            Err(errno) => Err(errno),
        }
    }

    /// `count` established connections, attempted all at once, non-blocking.
    pub fn connect_all(&self, address: SocketAddr, count: u32) -> Result<Vec<TcpStream>> {
        let poller = Poller::new()?;
        let mut streams = Vec::new();
        for index in 0..count {
            let stream = self
                .start_connect(address)
                .with_context(|| format!("failed to connect to {address}"))?;
            poller.add(&stream, EpollFlags::EPOLLOUT, u64::from(index))?;
            streams.push(stream);
        }
        let deadline = Instant::now() + CONNECT_ALL_TIMEOUT;
        let mut events = [EpollEvent::empty(); 64];
        let mut undecided = streams.len();
        while undecided > 0 {
            let decided = poller.wait(&mut events, left(deadline))?;
            if decided == 0 && left(deadline).is_zero() {
                bail!(
                    "{undecided} of {count} connections to {address} not made in {CONNECT_ALL_TIMEOUT:?}"
                );
            }
            for event in &events[..decided] {
                let stream = &streams[event.data() as usize];
                if let Some(error) = stream.take_error()? {
                    return Err(error).with_context(|| format!("failed to connect to {address}"));
                }
                poller.remove(stream)?;
                undecided -= 1;
            }
        }
        Ok(streams)
    }

    /// A UDP socket at `address`, non-blocking, with a receive buffer that a short pause does not
    /// fill.
    pub fn datagram(&self, address: SocketAddr) -> Result<UdpSocket> {
        let socket =
            UdpSocket::bind(address).with_context(|| format!("failed to bind {address}"))?;
        socket.set_nonblocking(true)?;
        socket::setsockopt(&socket, sockopt::RcvBuf, &datagrams::RECEIVE_BUFFER)?;
        Ok(socket)
    }

    /// The same, at a port that the kernel chooses, for datagrams to and from `address`.
    pub fn datagram_to(&self, address: SocketAddr) -> Result<UdpSocket> {
        let own = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = self.datagram(own)?;
        socket
            .connect(address)
            .with_context(|| format!("failed to aim a socket at {address}"))?;
        Ok(socket)
    }

    fn socket(&self, address: SocketAddr) -> Result<OwnedFd, Errno> {
        let family = if address.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket::socket(family, SockType::Stream, flags, None)?;
        // Accepted sockets inherit it from the listener.
        socket::setsockopt(
            &socket,
            sockopt::TcpCongestion,
            &self.congestion.clone().into(),
        )?;
        Ok(socket)
    }
}

/// Accepts one connection if one is waiting.
pub fn accept(listener: &TcpListener) -> io::Result<Option<TcpStream>> {
    match listener.accept() {
        Ok((stream, _)) => {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            Ok(Some(stream))
        }
        // A client that gave up while it was queued is no error of the listener.
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// Level-triggered epoll with a token per descriptor.
pub struct Poller(Epoll);

impl Poller {
    pub fn new() -> Result<Self> {
        Ok(Self(
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
                .context("failed to create an epoll instance")?,
        ))
    }

    pub fn add(&self, fd: impl AsFd, flags: EpollFlags, token: u64) -> Result<()> {
        self.0
            .add(fd, EpollEvent::new(flags, token))
            .context("failed to watch a socket")
    }

    pub fn modify(&self, fd: impl AsFd, flags: EpollFlags, token: u64) -> Result<()> {
        self.0
            .modify(fd, &mut EpollEvent::new(flags, token))
            .context("failed to watch a socket")
    }

    pub fn remove(&self, fd: impl AsFd) -> Result<()> {
        self.0
            .delete(fd)
            .context("failed to stop watching a socket")
    }

    /// Number of events; zero after `timeout`, which is rounded up so that a short wait cannot
    /// spin.
    pub fn wait(&self, events: &mut [EpollEvent], timeout: Duration) -> Result<usize> {
        let millis = u16::try_from(timeout.as_micros().div_ceil(1_000)).unwrap_or(u16::MAX);
        match self.0.wait(events, millis) {
            Ok(count) => Ok(count),
            Err(Errno::EINTR) => Ok(0),
            Err(errno) => Err(errno).context("failed to wait for sockets"),
        }
    }
}

/// The head of a request of [`REQUEST_BYTES`]; the server closes after a `last` one, as HTTP/1.1
/// asks.
pub fn request_head(address: SocketAddr, last: bool) -> Vec<u8> {
    let connection = if last { "close" } else { "keep-alive" };
    let mut head =
        format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: {connection}\r\nX-Pad: ");
    let padding = REQUEST_BYTES.saturating_sub(head.len() + 4);
    head.extend(std::iter::repeat_n('x', padding));
    head.push_str("\r\n\r\n");
    head.into_bytes()
}

/// The time left until `deadline`.
pub fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_their_length_for_both_families() {
        for address in ["127.0.0.1:8080", "[2001:db8:1::2]:8080"] {
            for last in [false, true] {
                let head = request_head(address.parse().unwrap(), last);
                assert_eq!(head.len(), REQUEST_BYTES);
                assert!(head.ends_with(b"\r\n\r\n"));
            }
        }
    }
}
