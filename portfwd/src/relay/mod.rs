//! One relay joins two kernel TCP sockets: what either peer sends, half-closes or resets, the other
//! peer sees.
//!
//! Sans-loop: the caller owns epoll. It registers both sockets once with [`INTEREST`], reports
//! events to [`Relay::handle_ready`], and then calls [`Relay::drive`], again for as long as that
//! asks for another turn, until it is done. Relays of one loop share a [`PipePool`].
//!
//! A relay that is dropped before both directions have ended resets both connections, also when the
//! process is killed: a peer never takes a cut stream for a whole one. `direction` moves the bytes,
//! `pool` lends the pipes.
//!
//! [`SYSTEM_CALLS`] is for a sandbox; ioctl(FIONBIO) besides.

mod direction;
mod pool;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use libc::c_long;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::sockopt;

use direction::{Direction, Fault, Turn};
pub use pool::PipePool;

/// The epoll events that both sockets are registered for, once, edge-triggered.
pub const INTEREST: u32 = EventFlags::IN
    .union(EventFlags::OUT)
    .union(EventFlags::RDHUP)
    .union(EventFlags::PRI)
    .union(EventFlags::ET)
    .bits();

/// What a relay calls, for a sandbox. `libc::SYS_…`.
pub const SYSTEM_CALLS: &[c_long] = &[
    libc::SYS_splice,
    libc::SYS_pipe2,
    libc::SYS_fcntl,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_close,
];

/// Two TCP sockets, joined.
#[derive(Debug)]
pub struct Relay {
    legs: [Endpoint; 2],
    /// By the side that the bytes come from.
    directions: [Direction; 2],
    end: Option<End>,
}

impl Relay {
    /// Joins two connected TCP sockets. Both are taken for ready, so the first [`Relay::drive`]
    /// needs no event; a FIN whose EPOLLRDHUP was consumed before is to be reported with
    /// [`Relay::handle_ready`].
    ///
    /// Sets O_NONBLOCK, TCP_NODELAY, SO_OOBINLINE and, until both directions have ended, SO_LINGER
    /// 0 on both.
    ///
    /// # Errors
    /// When an option cannot be set, as on what is no TCP socket. Both sockets are closed then.
    pub fn new(a: Leg, b: Leg) -> io::Result<Self> {
        let (owed_a, owed_b) = (a.owed, b.owed);
        let legs = [Endpoint::new(a.socket)?, Endpoint::new(b.socket)?];
        Ok(Self {
            legs,
            directions: [Direction::new(owed_b), Direction::new(owed_a)],
            end: None,
        })
    }

    /// Takes note of an event on the socket of `side`; [`Relay::drive`] acts on it.
    pub fn handle_ready(&mut self, side: Side, ready: Ready) {
        let leg = &mut self.legs[side as usize];
        leg.readable |= ready.readable || ready.urgent || ready.read_closed || ready.error;
        leg.writable |= ready.writable || ready.error;
        leg.read_closed |= ready.read_closed;
        leg.urgent |= ready.urgent;
        leg.error |= ready.error;
    }

    /// Does one turn of bounded work, and tells whether there is more.
    pub fn drive(&mut self, pool: &mut PipePool) -> Progress {
        if let Some(end) = self.end {
            return Progress::Done(end);
        }
        let turns = [self.pump(Side::A, pool), self.pump(Side::B, pool)];
        let fault = turns
            .iter()
            .find_map(|turn| turn.err())
            .or_else(|| self.pending_error());
        if let Some((by, errno)) = fault {
            // What the broken leg received before its RST still goes out, as far as the other takes
            // it at once: a peer that reads it before the RST arrives would have got it without us,
            // too.
            let _ = self.pump(by, pool);
            return self.finish(
                End::Aborted {
                    by,
                    kind: io::Error::from(errno).kind(),
                },
                pool,
            );
        }
        // Only now: with an error pending, a read of 0 bytes is no FIN.
        for source in Side::BOTH {
            if let Err(fault) =
                self.directions[source as usize].pass_fin(&self.legs[source.other() as usize])
            {
                let (by, errno) = fault.on(source);
                return self.finish(
                    End::Aborted {
                        by,
                        kind: io::Error::from(errno).kind(),
                    },
                    pool,
                );
            }
        }
        if self.directions.iter().all(Direction::has_ended) {
            for leg in &self.legs {
                // Closing must no longer discard what the peer has not acknowledged yet. Taking
                // back an option that was set cannot fail.
                let _ = sockopt::set_socket_linger(&leg.socket, None);
            }
            return self.finish(End::Finished, pool);
        }
        match turns.contains(&Ok(Turn::Unfinished)) {
            true => Progress::Again,
            false => Progress::Idle,
        }
    }

    /// Bytes that came from `side` and were taken by the other side's socket. Owed bytes count too.
    pub fn bytes_from(&self, side: Side) -> u64 {
        self.directions[side as usize].moved()
    }

    pub fn socket(&self, side: Side) -> BorrowedFd<'_> {
        self.legs[side as usize].socket.as_fd()
    }

    /// The two sockets, of A and of B; for a caller that must know when TCP itself is through with
    /// them. Closing them resets the connections unless the relay has [finished](End::Finished).
    pub fn into_sockets(self) -> (OwnedFd, OwnedFd) {
        let [a, b] = self.legs;
        (a.socket, b.socket)
    }

    fn pump(&mut self, source: Side, pool: &mut PipePool) -> Result<Turn, (Side, Errno)> {
        let [a, b] = &mut self.legs;
        let (source_leg, sink_leg) = match source {
            Side::A => (a, b),
            Side::B => (b, a),
        };
        self.directions[source as usize]
            .pump(source_leg, sink_leg, pool)
            .map_err(|fault| fault.on(source))
    }

    /// The error behind an EPOLLERR that no read or write has met, as when the only thing left to
    /// wait for was the other leg.
    fn pending_error(&mut self) -> Option<(Side, Errno)> {
        Side::BOTH.into_iter().find_map(|side| {
            let leg = &mut self.legs[side as usize];
            let reported = std::mem::take(&mut leg.error);
            let error = reported.then(|| sockopt::socket_error(&leg.socket))?;
            error
                .and_then(|pending| pending)
                .err()
                .map(|errno| (side, errno))
        })
    }

    fn finish(&mut self, end: End, pool: &mut PipePool) -> Progress {
        for direction in &mut self.directions {
            direction.release(pool);
        }
        self.end = Some(end);
        Progress::Done(end)
    }
}

/// One socket of a relay, and what to do with it from the start.
#[derive(Debug)]
pub struct Leg {
    /// A connected TCP socket.
    pub socket: OwnedFd,
    /// Bytes to send on this socket before anything that the other one receives.
    pub owed: Vec<u8>,
}

impl Leg {
    pub fn new(socket: impl Into<OwnedFd>) -> Self {
        Self {
            socket: socket.into(),
            owed: Vec::new(),
        }
    }
}

/// Names a socket of a relay; which is which is the caller's choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    A,
    B,
}

impl Side {
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// What an event says about a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    pub readable: bool,
    pub writable: bool,
    /// The peer's FIN has arrived, behind whatever is still to be read.
    pub read_closed: bool,
    /// Urgent data has arrived. It is passed on in its place in the stream, no longer urgent (RFC
    /// 6093 section 6).
    pub urgent: bool,
    pub error: bool,
}

impl Ready {
    /// Reads the `events` of a `struct epoll_event`.
    pub fn from_epoll(events: u32) -> Self {
        let any = |flags: EventFlags| events & flags.bits() != 0;
        Self {
            readable: any(EventFlags::IN),
            writable: any(EventFlags::OUT),
            read_closed: any(EventFlags::RDHUP | EventFlags::HUP),
            urgent: any(EventFlags::PRI),
            error: any(EventFlags::ERR),
        }
    }
}

/// What [`Relay::drive`] wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// The next event.
    Idle,
    /// Another turn, without an event; after the turns of other relays.
    Again,
    /// To be dropped, or taken apart with [`Relay::into_sockets`].
    Done(End),
}

/// How a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Each side's FIN was passed to the other.
    Finished,
    /// The connection of side `by` broke, by a RST or because its peer is gone. The other
    /// connection is reset when its socket is closed.
    Aborted { by: Side, kind: io::ErrorKind },
}

/// A leg as the relay sees it: what edge-triggered events have said and no system call has
/// disproved since.
#[derive(Debug)]
struct Endpoint {
    socket: OwnedFd,
    readable: bool,
    writable: bool,
    read_closed: bool,
    urgent: bool,
    error: bool,
}

impl Endpoint {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        sockopt::set_socket_oobinline(&socket, true)?;
        sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
        Ok(Self {
            socket,
            readable: true,
            writable: true,
            read_closed: false,
            urgent: false,
            error: false,
        })
    }
}

impl Fault {
    /// The fault of the direction that comes from `source`, by side.
    fn on(self, source: Side) -> (Side, Errno) {
        match self {
            Self::Source(errno) => (source, errno),
            Self::Sink(errno) => (source.other(), errno),
        }
    }
}
