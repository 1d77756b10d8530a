//! One direction of a relay: from a source leg to a sink leg, at most one read ahead of what the
//! sink takes.
//!
//! A direction waits for exactly one thing at a time: while it holds bytes, for the sink to take
//! them; while it holds none, for the source to have some. That is the whole of back-pressure, and
//! what bounds memory: one pipe, or one copy buffer. Small reads are copied, since two calls on
//! warm memory beat two splices; a read that fills the buffer is the sign to splice.
//!
//! Half-close is two facts: the source's FIN was read, and the FIN was passed to the sink. Passing
//! it is left to the relay, which must know first that what looked like an end was none (after a
//! RST that a failed write has reported, reads return 0).

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use rustix::pipe::{SpliceFlags, splice};

use super::Endpoint;
use super::pool::{COPY_BYTES, Pipe, PipePool};

/// The state of one direction. Not both `owed` and `pipe` hold bytes at a time.
#[derive(Debug, Default)]
pub(super) struct Direction {
    /// Bytes in our memory for the sink, of which `owed_sent` have been sent: what the caller
    /// brought along, or the rest of a copy.
    owed: Vec<u8>,
    owed_sent: usize,
    pipe: Option<Pipe>,
    /// Reads come in bulk: splice rather than copy.
    bulk: bool,
    /// Bytes read since the source was last found empty; says whether a burst was worth a pipe.
    burst: usize,
    /// The source's FIN was read.
    source_ended: bool,
    /// The FIN was passed to the sink.
    sink_ended: bool,
    /// Bytes that the sink took.
    moved: u64,
}

/// How a turn of [`Direction::pump`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// The next step needs an event.
    Waits,
    /// The turn's work is used up; there may be more to do at once.
    Unfinished,
}

/// The leg that failed a call, and how.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    Source(Errno),
    Sink(Errno),
}

impl Direction {
    pub(super) fn new(owed: Vec<u8>) -> Self {
        Self {
            owed,
            ..Self::default()
        }
    }

    /// Moves bytes until an event is needed or the turn's work is used up. Returns the pipe to
    /// `pool` if it is empty.
    pub(super) fn pump(
        &mut self,
        source: &mut Endpoint,
        sink: &mut Endpoint,
        pool: &mut PipePool,
    ) -> Result<Turn, Fault> {
        let turn = self.move_bytes(source, sink, pool);
        if self.pipe.as_ref().is_some_and(|pipe| pipe.held == 0) {
            self.release(pool);
        }
        turn
    }

    /// Passes the source's FIN on, once. Nothing is held then: the read that met it was made with
    /// nothing held.
    pub(super) fn pass_fin(&mut self, sink: &Endpoint) -> Result<(), Fault> {
        if self.source_ended && !self.sink_ended {
            shutdown(&sink.socket, Shutdown::Write).map_err(Fault::Sink)?;
            self.sink_ended = true;
        }
        Ok(())
    }

    /// Gives the pipe up, with whatever is in it.
    pub(super) fn release(&mut self, pool: &mut PipePool) {
        if let Some(pipe) = self.pipe.take() {
            pool.give_back(pipe);
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.sink_ended
    }

    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    fn holds_bytes(&self) -> bool {
        self.owed_sent < self.owed.len() || self.pipe.as_ref().is_some_and(|pipe| pipe.held > 0)
    }

    fn move_bytes(
        &mut self,
        source: &mut Endpoint,
        sink: &mut Endpoint,
        pool: &mut PipePool,
    ) -> Result<Turn, Fault> {
        let start = self.moved;
        for _ in 0..TURN_READS {
            self.flush(sink).map_err(Fault::Sink)?;
            // Held bytes wait for the sink's EPOLLOUT, an empty source for its EPOLLIN.
            if self.holds_bytes() || self.source_ended || !source.readable {
                return Ok(Turn::Waits);
            }
            if self.moved - start >= TURN_BYTES {
                return Ok(Turn::Unfinished);
            }
            self.read(source, sink, pool)?;
        }
        Ok(Turn::Unfinished)
    }

    /// Sends what is held until none is left or the sink is full.
    fn flush(&mut self, sink: &mut Endpoint) -> Result<(), Errno> {
        while sink.writable && self.holds_bytes() {
            let sent = match &mut self.pipe {
                Some(pipe) if pipe.held > 0 => retry_on_intr(|| {
                    splice(
                        &pipe.read_end,
                        None,
                        &sink.socket,
                        None,
                        pipe.held,
                        SpliceFlags::NONBLOCK,
                    )
                })
                .inspect(|sent| pipe.held -= sent),
                _ => send_now(sink, &self.owed[self.owed_sent..])
                    .inspect(|sent| self.owed_sent += sent),
            };
            match sent {
                Ok(sent) => self.moved += sent as u64,
                Err(Errno::AGAIN) => sink.writable = false,
                Err(errno) => return Err(errno),
            }
        }
        if self.owed_sent == self.owed.len() && self.owed_sent > 0 {
            // Up to a window's worth was brought along; it is not needed again.
            self.owed = Vec::new();
            self.owed_sent = 0;
        }
        Ok(())
    }

    /// Reads once, with nothing held.
    fn read(
        &mut self,
        source: &mut Endpoint,
        sink: &mut Endpoint,
        pool: &mut PipePool,
    ) -> Result<(), Fault> {
        // A splice stops dead at the urgent mark, with EAGAIN as if there were nothing to read;
        // recv passes it.
        if self.bulk
            && !source.urgent
            && let Some(pipe) = self.pipe.take().or_else(|| pool.lend())
        {
            return self.splice_in(source, pipe).map_err(Fault::Source);
        }
        self.copy(source, sink, pool.copy_buffer())
    }

    /// Fills the empty `pipe` from the source.
    fn splice_in(&mut self, source: &mut Endpoint, mut pipe: Pipe) -> Result<(), Errno> {
        let read = retry_on_intr(|| {
            splice(
                &source.socket,
                None,
                &pipe.write_end,
                None,
                pipe.capacity,
                SpliceFlags::NONBLOCK,
            )
        });
        // A short read may also mean that the pipe's slots are full: only EAGAIN proves the source
        // empty.
        let read = self.note_read(source, read, 0);
        pipe.held = *read.as_ref().unwrap_or(&0);
        self.pipe = Some(pipe);
        read.map(drop)
    }

    /// Reads into `buffer` and sends from there; what the sink does not take is owed.
    fn copy(
        &mut self,
        source: &mut Endpoint,
        sink: &mut Endpoint,
        buffer: &mut [u8],
    ) -> Result<(), Fault> {
        let read = retry_on_intr(|| recv(&source.socket, &mut *buffer, RecvFlags::DONTWAIT))
            .map(|(_, read)| read);
        // A short read may also end at the urgent mark or just before a FIN, whose event has come
        // and will not come again.
        let empty_below = if source.urgent || source.read_closed {
            0
        } else {
            buffer.len()
        };
        let read = self
            .note_read(source, read, empty_below)
            .map_err(Fault::Source)?;
        let sent = match read {
            0 => 0,
            _ => match send_now(sink, &buffer[..read]) {
                Ok(sent) => sent,
                Err(Errno::AGAIN) => {
                    sink.writable = false;
                    0
                }
                Err(errno) => return Err(Fault::Sink(errno)),
            },
        };
        self.moved += sent as u64;
        self.owed.extend_from_slice(&buffer[sent..read]);
        Ok(())
    }

    /// Keeps the books of a read's result and returns its length, 0 also for a FIN or nothing to
    /// read. Fewer bytes than `empty_below` prove that the source is empty.
    fn note_read(
        &mut self,
        source: &mut Endpoint,
        read: Result<usize, Errno>,
        empty_below: usize,
    ) -> Result<usize, Errno> {
        let (read, source_empty) = match read {
            Ok(0) => {
                self.source_ended = true;
                (0, true)
            }
            Ok(read) => (read, read < empty_below),
            Err(Errno::AGAIN) => (0, true),
            Err(errno) => return Err(errno),
        };
        self.burst += read;
        self.bulk = self.burst >= COPY_BYTES || (self.bulk && !source_empty);
        if source_empty {
            self.burst = 0;
            source.readable = false;
            source.urgent = false;
        }
        Ok(read)
    }
}

fn send_now(sink: &Endpoint, bytes: &[u8]) -> Result<usize, Errno> {
    retry_on_intr(|| {
        send(
            &sink.socket,
            bytes,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        )
    })
}

/// A turn ends when it has moved this much: about a quarter of a millisecond at memory speed.
const TURN_BYTES: u64 = 1 << 20;

/// A turn ends after this many reads, however small.
const TURN_READS: u32 = 24;
