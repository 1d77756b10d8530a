//! New connections: `at_once` slots, each of which connects, asks once, reads to the end and
//! closes, again and again. The server closes first, as a web server does after
//! `Connection: close`, so TIME-WAIT stays at its end.
//!
//! A latency is the whole life of a connection, from `connect` to the end of the stream. Failures
//! are counted by cause and the slot goes on: a helper that refuses or stalls under load shows
//! here, it does not end the run.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use serde::{Deserialize, Serialize};

use super::{CONNECT_TIMEOUT, Event, Poller, RESPONSE_BYTES, Report, Sockets, emit, request_head};
use crate::stats::Latencies;

/// When the load has been long enough.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum End {
    AfterMs(u64),
    AfterConnections(u64),
}

/// Runs the load and reports it.
pub fn run(sockets: &Sockets, address: SocketAddr, at_once: u32, end: End) -> Result<()> {
    let mut load = Load {
        sockets,
        address,
        head: request_head(address, true),
        poller: Poller::new()?,
        slots: (0..at_once).map(|_| None).collect(),
        latencies: Latencies::with_capacity(1 << 20),
        errors: BTreeMap::new(),
    };
    emit(Event::Begin)?;
    let start = Instant::now();
    for index in 0..load.slots.len() {
        load.open(index)?;
    }
    let mut events = [EpollEvent::empty(); 256];
    let mut next_sweep = start + SWEEP;
    loop {
        let now = Instant::now();
        let over = match end {
            End::AfterMs(limit) => now.duration_since(start) >= Duration::from_millis(limit),
            End::AfterConnections(limit) => load.latencies.len() as u64 >= limit,
        };
        if over {
            return emit(Event::Done(Report {
                seconds: now.duration_since(start).as_secs_f64(),
                operations: load.latencies.len() as u64,
                latency: load.latencies.summary(),
                errors: load.errors,
                ..Report::default()
            }));
        }
        if now >= next_sweep {
            next_sweep = now + SWEEP;
            load.sweep(now)?;
        }
        let count = load.poller.wait(&mut events, Duration::from_millis(20))?;
        for event in &events[..count] {
            load.serve(event.data() as usize, event.events())?;
        }
    }
}

/// How often stuck slots are looked for.
const SWEEP: Duration = Duration::from_millis(100);

struct Load<'a> {
    sockets: &'a Sockets,
    address: SocketAddr,
    head: Vec<u8>,
    poller: Poller,
    slots: Vec<Option<Attempt>>,
    latencies: Latencies,
    errors: BTreeMap<String, u64>,
}

struct Attempt {
    stream: TcpStream,
    started: Instant,
    asked: bool,
    received: usize,
}

enum Step {
    Wait,
    Finished,
}

impl Load<'_> {
    /// Starts a new connection in a free slot. A slot whose attempt fails at once stays empty until
    /// the next sweep, so that exhausted ports cannot make a busy loop of errors.
    fn open(&mut self, index: usize) -> Result<()> {
        let started = Instant::now();
        match self.sockets.start_connect(self.address) {
            Ok(stream) => {
                self.poller
                    .add(&stream, EpollFlags::EPOLLOUT, index as u64)?;
                self.slots[index] = Some(Attempt {
                    stream,
                    started,
                    asked: false,
                    received: 0,
                });
            }
            Err(errno) => {
                self.slots[index] = None;
                self.fail(io::Error::from(errno).to_string());
            }
        }
        Ok(())
    }

    fn serve(&mut self, index: usize, ready: EpollFlags) -> Result<()> {
        let Some(attempt) = &mut self.slots[index] else {
            return Ok(());
        };
        let step = if attempt.asked {
            attempt.read()
        } else {
            attempt.ask(&self.head)
        };
        match step {
            Ok(Step::Wait) => {
                if attempt.asked && ready.contains(EpollFlags::EPOLLOUT) {
                    self.poller
                        .modify(&attempt.stream, EpollFlags::EPOLLIN, index as u64)?;
                }
                Ok(())
            }
            Ok(Step::Finished) => {
                self.latencies.record(attempt.started.elapsed());
                self.open(index)
            }
            Err(e) => {
                self.fail(e.to_string());
                self.open(index)
            }
        }
    }

    fn sweep(&mut self, now: Instant) -> Result<()> {
        for index in 0..self.slots.len() {
            match &self.slots[index] {
                Some(attempt) if now.duration_since(attempt.started) > CONNECT_TIMEOUT => {
                    self.fail(format!("not finished in {CONNECT_TIMEOUT:?}"));
                    self.open(index)?;
                }
                Some(_) => {}
                None => self.open(index)?,
            }
        }
        Ok(())
    }

    fn fail(&mut self, cause: String) {
        *self.errors.entry(cause).or_default() += 1;
    }
}

impl Attempt {
    fn ask(&mut self, head: &[u8]) -> io::Result<Step> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        let bytes = self.stream.write(head)?;
        if bytes != head.len() {
            return Err(io::Error::other(
                "the request did not fit into an empty socket",
            ));
        }
        self.asked = true;
        Ok(Step::Wait)
    }

    fn read(&mut self) -> io::Result<Step> {
        let mut buffer = [0_u8; 2 * RESPONSE_BYTES];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) if self.received == RESPONSE_BYTES => return Ok(Step::Finished),
                Ok(0) => return Err(io::Error::other("closed before the response was complete")),
                Ok(bytes) => self.received += bytes,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(Step::Wait),
                Err(e) => return Err(e),
            }
        }
    }
}
