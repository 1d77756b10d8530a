//! The host's half of a flow in memory: what the core sees as a [`HostStream`], and the remote
//! behind it, which the test plays. Readiness is told as epoll tells it with EPOLLET: an edge when
//! data arrive, when room appears after a refusal, at the end.

use std::collections::VecDeque;
use std::io;

use netstack::core::flow::Cause;
use netstack::core::tcp::{HostStream, Readiness};

/// Bytes that a socket buffer holds unless a test wants it smaller.
const CAPACITY: usize = 256 * 1024;

/// A connected stream of the host.
pub struct Host {
    /// Sent by the remote, not yet read by the core.
    to_core: VecDeque<u8>,
    /// Sent by the core, not yet read by the remote.
    from_core: VecDeque<u8>,
    capacity: usize,
    remote_finished: bool,
    core_finished: bool,
    reset: bool,
    /// The core met a full buffer and waits for room.
    wants_room: bool,
    edge: Option<Readiness>,
    /// How the core ended the flow; the stream is closed from then on.
    pub closed: Option<Cause>,
}

impl Default for Host {
    fn default() -> Self {
        Self::with_capacity(CAPACITY)
    }
}

impl Host {
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            to_core: VecDeque::new(),
            from_core: VecDeque::new(),
            capacity,
            remote_finished: false,
            core_finished: false,
            reset: false,
            wants_room: false,
            edge: None,
            closed: None,
        }
    }

    /// The remote sends; returns how much fits.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        assert!(!self.remote_finished, "the test sends after its FIN");
        let room = self.capacity - self.to_core.len().min(self.capacity);
        let taken = bytes.len().min(room);
        self.to_core.extend(&bytes[..taken]);
        if taken > 0 {
            self.edge().readable = true;
        }
        taken
    }

    /// The remote sends FIN.
    pub fn finish_remote(&mut self) {
        self.remote_finished = true;
        *self.edge() = Readiness {
            readable: true,
            hung_up: true,
            ..*self.edge()
        };
    }

    /// The remote sends RST.
    pub fn reset_remote(&mut self) {
        self.reset = true;
        *self.edge() = Readiness {
            readable: true,
            writable: true,
            hung_up: true,
            failed: true,
        };
    }

    /// The remote reads.
    pub fn read(&mut self, max: usize) -> Vec<u8> {
        let count = max.min(self.from_core.len());
        if count > 0 && self.wants_room {
            self.wants_room = false;
            self.edge().writable = true;
        }
        self.from_core.drain(..count).collect()
    }

    /// The remote makes more room for what it is sent.
    pub fn widen(&mut self, capacity: usize) {
        self.capacity = capacity;
        if std::mem::take(&mut self.wants_room) {
            self.edge().writable = true;
        }
    }

    /// The remote has read everything, and the guest's FIN after it.
    pub fn is_at_end(&self) -> bool {
        self.from_core.is_empty() && (self.core_finished || self.closed == Some(Cause::Finished))
    }

    /// The FIN of the guest has been passed on, or the stream is closed, which says the same.
    pub fn has_guest_fin(&self) -> bool {
        self.core_finished
    }

    /// What epoll would report now.
    pub fn take_edge(&mut self) -> Option<Readiness> {
        self.edge.take()
    }

    fn edge(&mut self) -> &mut Readiness {
        self.edge.get_or_insert_default()
    }
}

impl HostStream for Host {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(!buffer.is_empty(), "nothing read reads as the end");
        assert!(self.closed.is_none(), "the flow is over");
        let count = buffer.len().min(self.to_core.len());
        for (slot, byte) in buffer.iter_mut().zip(self.to_core.drain(..count)) {
            *slot = byte;
        }
        match count {
            0 if self.reset => Err(io::ErrorKind::ConnectionReset.into()),
            0 if self.remote_finished => Ok(0),
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert!(!self.core_finished, "data after the guest's FIN");
        assert!(self.closed.is_none(), "the flow is over");
        if self.reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let room = self.capacity - self.from_core.len();
        match room.min(bytes.len()) {
            0 => {
                self.wants_room = true;
                Err(io::ErrorKind::WouldBlock.into())
            }
            count => {
                self.from_core.extend(&bytes[..count]);
                Ok(count)
            }
        }
    }

    fn finish(&mut self) {
        assert!(!self.core_finished, "the guest's FIN is passed on once");
        self.core_finished = true;
    }
}
