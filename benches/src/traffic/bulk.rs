//! TCP at full speed in one direction. The receiver measures: it starts its clock at the first byte
//! after all connections are up, lets the warm-up pass, counts bytes in buckets of 100 ms and ends
//! the transfer by closing.
//!
//! Reads and writes are 128 KiB, as iperf3's are, and the bytes are copied to and from user space
//! as a program's would be.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use serde::{Deserialize, Serialize};

use super::{CONNECT_ALL_TIMEOUT, Event, Poller, Report, Sockets, accept, emit, left};

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Bulk {
    pub end: End,
    pub flows: u32,
    pub warm_ms: u64,
    pub measure_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    Send,
    Receive,
}

/// The listening end: one result, then return.
pub fn listen(sockets: &Sockets, address: SocketAddr, bulk: Bulk) -> Result<()> {
    let listener = sockets.listen(address)?;
    emit(Event::Ready)?;
    let poller = Poller::new()?;
    poller.add(&listener, EpollFlags::EPOLLIN, 0)?;
    let deadline = Instant::now() + CONNECT_ALL_TIMEOUT;
    let mut streams = Vec::new();
    while streams.len() < bulk.flows as usize {
        if left(deadline).is_zero() {
            bail!(
                "{} of {} connections arrived in {:?}",
                streams.len(),
                bulk.flows,
                CONNECT_ALL_TIMEOUT
            );
        }
        poller.wait(&mut [EpollEvent::empty(); 1], left(deadline))?;
        streams.extend(accept(&listener)?);
    }
    transfer(streams, bulk)
}

/// The connecting end.
pub fn connect(sockets: &Sockets, address: SocketAddr, bulk: Bulk) -> Result<()> {
    transfer(sockets.connect_all(address, bulk.flows)?, bulk)
}

fn transfer(streams: Vec<TcpStream>, bulk: Bulk) -> Result<()> {
    match bulk.end {
        End::Send => send(streams),
        End::Receive => {
            let warm = Duration::from_millis(bulk.warm_ms);
            emit_report(receive(
                streams,
                warm,
                Duration::from_millis(bulk.measure_ms),
            )?)
        }
    }
}

fn emit_report(report: Report) -> Result<()> {
    emit(Event::Done(report))
}

const CHUNK: usize = 128 * 1024;
/// Chunks per connection and wake-up, so that connections take turns.
const CHUNKS_PER_TURN: usize = 4;
/// No byte for this long: the path is dead, not slow.
const SILENCE: Duration = Duration::from_secs(5);

/// Sends on all connections until the receiver closes them.
fn send(streams: Vec<TcpStream>) -> Result<()> {
    let poller = Poller::new()?;
    let mut streams: Vec<Option<TcpStream>> = streams.into_iter().map(Some).collect();
    for (index, stream) in streams.iter().flatten().enumerate() {
        poller.add(stream, EpollFlags::EPOLLOUT, index as u64)?;
    }
    let chunk = vec![0x5a_u8; CHUNK];
    let mut open = streams.len();
    let mut events = [EpollEvent::empty(); 64];
    while open > 0 {
        let count = poller.wait(&mut events, SILENCE)?;
        if count == 0 {
            bail!("could not send for {SILENCE:?}");
        }
        for event in &events[..count] {
            let slot = &mut streams[event.data() as usize];
            if let Some(stream) = slot
                && !send_some(stream, &chunk)?
            {
                *slot = None;
                open -= 1;
            }
        }
    }
    Ok(())
}

/// Whether the connection is still open.
fn send_some(mut stream: &TcpStream, chunk: &[u8]) -> io::Result<bool> {
    for _ in 0..CHUNKS_PER_TURN {
        match stream.write(chunk) {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                return Ok(false);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

fn receive(streams: Vec<TcpStream>, warm: Duration, measure: Duration) -> Result<Report> {
    let poller = Poller::new()?;
    for (index, stream) in streams.iter().enumerate() {
        poller.add(stream, EpollFlags::EPOLLIN, index as u64)?;
    }
    let mut buffer = vec![0_u8; CHUNK];
    let mut events = [EpollEvent::empty(); 64];
    if poller.wait(&mut events, SILENCE)? == 0 {
        bail!("no byte arrived in {SILENCE:?}");
    }
    let mut meter: Option<Meter> = None;
    let warm_until = Instant::now() + warm;
    loop {
        let now = Instant::now();
        match &mut meter {
            None if now >= warm_until => {
                emit(Event::Begin)?;
                meter = Some(Meter::new(Instant::now()));
            }
            Some(meter) if now.duration_since(meter.start) >= measure => {
                return Ok(meter.report(now));
            }
            _ => {}
        }
        // A wait that runs out is a stall, which the meter must see as such.
        let count = poller.wait(&mut events, Duration::from_millis(20))?;
        for event in &events[..count] {
            let mut stream = &streams[event.data() as usize];
            for _ in 0..CHUNKS_PER_TURN {
                match stream.read(&mut buffer) {
                    Ok(0) => bail!("the sender closed a connection early"),
                    Ok(bytes) => {
                        if let Some(meter) = &mut meter {
                            meter.add(Instant::now(), bytes as u64);
                        }
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(e) => return Err(e.into()),
                }
            }
        }
    }
}

/// Bytes over time.
struct Meter {
    start: Instant,
    bytes: u64,
    /// Bytes per 100 ms since the start; the last one is not full.
    buckets: Vec<u64>,
}

impl Meter {
    const BUCKET: Duration = Duration::from_millis(100);

    fn new(start: Instant) -> Self {
        Self {
            start,
            bytes: 0,
            buckets: vec![0],
        }
    }

    fn add(&mut self, now: Instant, bytes: u64) {
        self.reach(now);
        self.bytes += bytes;
        if let Some(bucket) = self.buckets.last_mut() {
            *bucket += bytes;
        }
    }

    /// Opens the bucket of `now`, leaving empty ones behind for the time without bytes.
    fn reach(&mut self, now: Instant) {
        let index = (now.duration_since(self.start).as_nanos() / Self::BUCKET.as_nanos()) as usize;
        if index >= self.buckets.len() {
            self.buckets.resize(index + 1, 0);
        }
    }

    fn report(&mut self, now: Instant) -> Report {
        self.reach(now);
        let full = &self.buckets[..self.buckets.len() - 1];
        Report {
            seconds: now.duration_since(self.start).as_secs_f64(),
            bytes: self.bytes,
            slowest_100ms_bytes: full.iter().copied().min().unwrap_or(0),
            ..Report::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meter_counts_silence_as_an_empty_bucket() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut meter = Meter::new(start);
        meter.add(at(10), 500);
        meter.add(at(150), 300);
        meter.add(at(370), 400);
        let report = meter.report(at(450));
        assert_eq!(meter.buckets, [500, 300, 0, 400, 0]);
        assert_eq!((report.bytes, report.slowest_100ms_bytes), (1200, 0));
    }

    #[test]
    fn the_unfinished_bucket_is_not_the_slowest() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut meter = Meter::new(start);
        meter.add(at(50), 500);
        meter.add(at(101), 7);
        assert_eq!(meter.report(at(110)).slowest_100ms_bytes, 500);
    }
}
