//! Sockets made ahead of time: only the guest thread can open them in the guest's network
//! namespace, and asking it takes longer than all the rest of a hand-over.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::guest::{GuestThread, GuestThreadEnded};
use crate::sys;

/// Why a socket of the guest's network namespace is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("no socket in the guest's network namespace: {0}")]
    Open(#[source] io::Error),
    #[error(transparent)]
    Guest(#[from] GuestThreadEnded),
}

/// A TCP socket of the guest's network namespace in repair mode, with all options that do not
/// depend on the connection.
#[derive(Debug)]
pub struct FreshSocket(OwnedFd);

/// Sockets for each address family.
#[derive(Debug)]
pub struct SocketPool {
    v4: Shelf,
    v6: Shelf,
}

impl SocketPool {
    /// An empty pool. There will be `most` sockets at a time, and at least four.
    pub fn new(most: usize) -> Self {
        // A new batch comes when there is one left, for either family.
        let batch = (most / 4).clamp(1, MAX_BATCH);
        Self {
            v4: Shelf::new(AddressFamily::INET, batch),
            v6: Shelf::new(AddressFamily::INET6, batch),
        }
    }

    /// Has the guest thread make the first sockets in the background, so that the first hand-over
    /// need not wait for them.
    pub fn fill(&mut self, guest: &GuestThread) -> Result<(), GuestThreadEnded> {
        self.v4.order(guest)?;
        self.v6.order(guest)
    }

    /// Takes a socket for IPv6 or else IPv4. When half of them are gone the guest thread makes new
    /// ones in the background; only when all are gone this waits for it, some tenths of a
    /// millisecond.
    pub fn take(&mut self, guest: &GuestThread, ipv6: bool) -> Result<FreshSocket, SocketError> {
        let shelf = if ipv6 { &mut self.v6 } else { &mut self.v4 };
        shelf.take(guest)
    }
}

/// The sockets of one family.
#[derive(Debug)]
struct Shelf {
    family: AddressFamily,
    /// How many are made at once.
    batch: usize,
    ready: Vec<FreshSocket>,
    /// A batch is being made.
    is_under_way: bool,
    sender: Sender<io::Result<Vec<FreshSocket>>>,
    batches: Receiver<io::Result<Vec<FreshSocket>>>,
}

impl Shelf {
    fn new(family: AddressFamily, batch: usize) -> Self {
        let (sender, batches) = channel();
        Self {
            family,
            batch,
            ready: Vec::with_capacity(2 * batch),
            is_under_way: false,
            sender,
            batches,
        }
    }

    fn take(&mut self, guest: &GuestThread) -> Result<FreshSocket, SocketError> {
        if self.is_under_way
            && let Ok(batch) = self.batches.try_recv()
        {
            self.stock(batch)?;
        }
        if self.ready.len() <= self.batch {
            self.order(guest)?;
        }
        if self.ready.is_empty() {
            let batch = self.batches.recv().map_err(|_| GuestThreadEnded)?;
            self.stock(batch)?;
        }
        self.ready.pop().ok_or(GuestThreadEnded.into())
    }

    fn order(&mut self, guest: &GuestThread) -> Result<(), GuestThreadEnded> {
        if self.is_under_way {
            return Ok(());
        }
        let (family, batch, sender) = (self.family, self.batch, self.sender.clone());
        guest.submit(move || {
            let batch = (0..batch).map(|_| FreshSocket::open(family)).collect();
            // Nobody wants it any more at the end of the process.
            let _ = sender.send(batch);
        })?;
        self.is_under_way = true;
        Ok(())
    }

    fn stock(&mut self, batch: io::Result<Vec<FreshSocket>>) -> Result<(), SocketError> {
        self.is_under_way = false;
        self.ready.extend(batch.map_err(SocketError::Open)?);
        Ok(())
    }
}

impl FreshSocket {
    /// Opens one in the calling thread's network namespace.
    fn open(family: AddressFamily) -> io::Result<Self> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        let set = |level, option, value: &[u8]| {
            sys::set_socket_option(socket.as_fd(), level, option, value)
        };
        let on = &sys::int_option(1);
        // To have a remote's address.
        if family == AddressFamily::INET6 {
            set(libc::SOL_IPV6, libc::IPV6_TRANSPARENT, on)?;
            sockopt::set_ipv6_v6only(&socket, true)?;
        } else {
            set(libc::SOL_IP, libc::IP_TRANSPARENT, on)?;
        }
        // What comes from the host has been cut into segments by somebody else already.
        sockopt::set_tcp_nodelay(&socket, true)?;
        // The guest's default may be BBR, which paces; over lo there is nothing to pace for.
        set(libc::IPPROTO_TCP, libc::TCP_CONGESTION, b"cubic")
            .or_else(|_| set(libc::IPPROTO_TCP, libc::TCP_CONGESTION, b"reno"))?;
        // The default send buffer holds less than two of the guest's 64 KiB segments, so each waits
        // for a delayed acknowledgement of 40 ms; receiving is fastest with a window's worth.
        sockopt::set_socket_send_buffer_size(&socket, BUFFER_LEN)?;
        sockopt::set_socket_recv_buffer_size(&socket, BUFFER_LEN)?;
        // A size that was set is no longer tuned automatically. Where net.core.rmem_max and
        // wmem_max have cut it, tuning gets further (Linux 5.15; before, such a socket is only
        // slower).
        let mut lock = 0;
        if sockopt::socket_send_buffer_size(&socket)? >= 2 * BUFFER_LEN {
            lock |= SOCK_SNDBUF_LOCK;
        }
        if sockopt::socket_recv_buffer_size(&socket)? >= 2 * BUFFER_LEN {
            lock |= SOCK_RCVBUF_LOCK;
        }
        let _ = set(libc::SOL_SOCKET, libc::SO_BUF_LOCK, &sys::int_option(lock));
        set(libc::IPPROTO_TCP, libc::TCP_REPAIR, on)?;
        Ok(Self(socket))
    }
}

impl AsFd for FreshSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<FreshSocket> for OwnedFd {
    fn from(socket: FreshSocket) -> Self {
        socket.0
    }
}

/// Sockets made at once: about 0.2 ms of the guest thread.
const MAX_BATCH: usize = 32;
/// The largest window with a scale of 4 is 1 MiB. The kernel doubles the size, for its own
/// bookkeeping.
const BUFFER_LEN: usize = 1 << 20;
/// include/net/sock.h, the values of SO_BUF_LOCK.
const SOCK_SNDBUF_LOCK: libc::c_int = 1;
const SOCK_RCVBUF_LOCK: libc::c_int = 2;
