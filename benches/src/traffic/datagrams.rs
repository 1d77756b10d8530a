//! UDP in one direction, commanded: the stage says at which rate the sender sends and when the
//! receiver counts.
//!
//! The serving end has one socket, as a DNS or QUIC server has; the client has one per flow. Before
//! anything is measured each client socket greets the server until the server greets back, which
//! makes the mapping that a helper needs. Greetings are one byte long and are not counted.
//!
//! Sockets ask for large receive buffers, since a helper's losses are in question and not the
//! kernel's default. A datagram per system call is sent and received the way most programs do it, a
//! segmented send the way QUIC servers do.

use std::collections::BTreeSet;
use std::io::{self, BufRead, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::bulk::End;
use super::{CONNECT_ALL_TIMEOUT, Event, Poller, Report, Sockets, emit, left};

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Datagrams {
    pub end: End,
    pub flows: u32,
    /// Payload of each datagram in bytes.
    pub bytes: u16,
    /// How many datagrams one system call sends: more than one needs UDP_SEGMENT.
    pub per_send: u16,
}

/// What the stage asks of an end, one JSON document a line on standard input.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Command {
    /// Send for this long, at so many datagrams a second or as fast as it goes. Answered by a
    /// [`Report`] of what was sent.
    Send { rate: Option<f64>, millis: u64 },
    /// Wait for silence. Answered by a [`Report`] of what has arrived since the last time.
    Count,
}

const GREETING: &[u8] = b"?";
/// How often a greeting that was not answered is repeated.
const GREETING_INTERVAL: Duration = Duration::from_millis(100);
/// No datagram for this long: those that will arrive have arrived.
const SILENCE: Duration = Duration::from_millis(25);
/// A helper that is still handing out old datagrams after this long is counted as it stands.
const SILENCE_LIMIT: Duration = Duration::from_millis(500);
/// Datagrams received per socket and wake-up, so that flows take turns.
const DATAGRAMS_PER_TURN: usize = 64;
/// The largest datagram there is, or many merged into one by UDP_GRO.
const LARGEST: usize = 65_536;
/// Asked for; the kernel gives what `net.core.rmem_max` allows.
pub const RECEIVE_BUFFER: usize = 4 << 20;
/// Between two bursts of a paced sender. Shorter would be all system call, longer would fill
/// receive buffers.
const TICK: Duration = Duration::from_micros(200);

/// The serving end: until standard input ends.
pub fn serve(sockets: &Sockets, address: SocketAddr, datagrams: Datagrams) -> Result<()> {
    let socket = sockets.datagram(address)?;
    let peers = {
        emit(Event::Ready)?;
        await_greetings(&socket, datagrams.flows)?
    };
    let mut flows = Vec::new();
    for peer in peers {
        flows.push(Flow {
            socket: socket.try_clone()?,
            peer: Some(peer),
        });
    }
    emit(Event::Begin)?;
    match datagrams.end {
        End::Send => send(&flows, datagrams),
        End::Receive => receive(&flows[..1], datagrams),
    }
}

/// The client: until standard input ends.
pub fn connect(sockets: &Sockets, address: SocketAddr, datagrams: Datagrams) -> Result<()> {
    let mut flows = Vec::new();
    for _ in 0..datagrams.flows {
        let socket = sockets.datagram_to(address)?;
        greet(&socket)?;
        flows.push(Flow { socket, peer: None });
    }
    emit(Event::Begin)?;
    match datagrams.end {
        End::Send => send(&flows, datagrams),
        End::Receive => receive(&flows, datagrams),
    }
}

/// A pair of ports that datagrams go between.
struct Flow {
    socket: UdpSocket,
    /// Where to send on a socket that is not connected.
    peer: Option<SocketAddr>,
}

impl Flow {
    fn send(&self, payload: &[u8]) -> io::Result<()> {
        match self.peer {
            Some(peer) => self.socket.send_to(payload, peer),
            None => self.socket.send(payload),
        }
        .map(drop)
    }
}

/// Greets the server until it answers.
fn greet(socket: &UdpSocket) -> Result<()> {
    let deadline = Instant::now() + CONNECT_ALL_TIMEOUT;
    let poller = Poller::new()?;
    poller.add(socket, EpollFlags::EPOLLIN, 0)?;
    let mut buffer = [0_u8; GREETING.len()];
    while !left(deadline).is_zero() {
        // Nobody may be there yet; the next greeting finds out.
        let _ = socket.send(GREETING);
        poller.wait(&mut [EpollEvent::empty(); 1], GREETING_INTERVAL)?;
        if socket.recv(&mut buffer).is_ok() {
            return Ok(());
        }
    }
    bail!("no datagram was answered in {CONNECT_ALL_TIMEOUT:?}")
}

/// Answers greetings until `count` clients have been heard.
fn await_greetings(socket: &UdpSocket, count: u32) -> Result<BTreeSet<SocketAddr>> {
    let deadline = Instant::now() + CONNECT_ALL_TIMEOUT;
    let poller = Poller::new()?;
    poller.add(socket, EpollFlags::EPOLLIN, 0)?;
    let mut peers = BTreeSet::new();
    let mut buffer = [0_u8; GREETING.len()];
    while peers.len() < count as usize {
        if left(deadline).is_zero() {
            let heard = peers.len();
            bail!("{heard} of {count} flows arrived in {CONNECT_ALL_TIMEOUT:?}");
        }
        poller.wait(&mut [EpollEvent::empty(); 1], left(deadline))?;
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            socket
                .send_to(GREETING, peer)
                .context("failed to answer a greeting")?;
            peers.insert(peer);
        }
    }
    Ok(peers)
}

fn send(flows: &[Flow], datagrams: Datagrams) -> Result<()> {
    if datagrams.per_send > 1 {
        for flow in flows {
            setsockopt(
                &flow.socket,
                sockopt::UdpGsoSegment,
                &datagrams.bytes.into(),
            )
            .context("the kernel has no UDP_SEGMENT")?;
        }
    }
    // Finer than the default of 50 µs, which is a quarter of a tick.
    nix::sys::prctl::set_timerslack(1_000).context("failed to set the timer slack")?;
    for line in io::stdin().lock().lines() {
        match serde_json::from_str(&line.context("failed to read a command")?)? {
            Command::Send { rate, millis } => {
                let report = send_for(flows, datagrams, rate, Duration::from_millis(millis))?;
                emit(Event::Done(report))?;
            }
            Command::Count => bail!("a sender has nothing to count"),
        }
    }
    Ok(())
}

fn send_for(
    flows: &[Flow],
    datagrams: Datagrams,
    rate: Option<f64>,
    duration: Duration,
) -> Result<Report> {
    let payload = vec![0x5a_u8; usize::from(datagrams.bytes) * usize::from(datagrams.per_send)];
    let poller = Poller::new()?;
    poller.add(&flows[0].socket, EpollFlags::EPOLLOUT, 0)?;
    let start = Instant::now();
    let mut sent = 0_u64;
    let mut turn = flows.iter().cycle();
    loop {
        let elapsed = start.elapsed();
        if elapsed >= duration {
            let seconds = elapsed.as_secs_f64();
            return Ok(Report {
                seconds,
                bytes: sent * u64::from(datagrams.bytes),
                operations: sent,
                ..Report::default()
            });
        }
        let due = rate.map_or(u64::MAX, |rate| (rate * elapsed.as_secs_f64()) as u64);
        if sent >= due {
            thread::sleep(TICK);
            continue;
        }
        let Some(flow) = turn.next() else {
            bail!("a sender without flows")
        };
        match flow.send(&payload) {
            Ok(()) => sent += u64::from(datagrams.per_send),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                poller.wait(&mut [EpollEvent::empty(); 1], Duration::from_millis(1))?;
            }
            // The receiver's queue was full, or a helper said so: the datagram is lost, which is
            // what is being measured.
            Err(e) if matches!(e.raw_os_error(), Some(ENOBUFS | ECONNREFUSED)) => {
                sent += u64::from(datagrams.per_send);
            }
            Err(e) => return Err(e).context("failed to send a datagram"),
        }
    }
}

const ENOBUFS: i32 = nix::errno::Errno::ENOBUFS as i32;
const ECONNREFUSED: i32 = nix::errno::Errno::ECONNREFUSED as i32;

fn receive(flows: &[Flow], datagrams: Datagrams) -> Result<()> {
    let poller = Poller::new()?;
    for (index, flow) in flows.iter().enumerate() {
        poller.add(&flow.socket, EpollFlags::EPOLLIN, index as u64)?;
        if datagrams.per_send > 1 {
            setsockopt(&flow.socket, sockopt::UdpGroSegment, &true)
                .context("the kernel has no UDP_GRO")?;
        }
    }
    poller.add(io::stdin(), EpollFlags::EPOLLIN, COMMAND)?;
    let mut arrived = Arrived::default();
    let mut asked: Option<Instant> = None;
    let mut buffer = vec![0_u8; LARGEST];
    let mut events = [EpollEvent::empty(); 64];
    loop {
        let count = poller.wait(&mut events, SILENCE)?;
        for event in &events[..count] {
            match event.data() {
                COMMAND => match read_command()? {
                    Some(Command::Count) => asked = Some(Instant::now()),
                    Some(Command::Send { .. }) => bail!("a receiver has nothing to send"),
                    None => return Ok(()),
                },
                index => arrived.drain(&flows[index as usize].socket, &mut buffer)?,
            }
        }
        let silent = |asked: Instant| arrived.silence(asked) >= SILENCE;
        if asked.is_some_and(|asked| silent(asked) || asked.elapsed() >= SILENCE_LIMIT) {
            emit(Event::Done(arrived.report(datagrams.bytes)))?;
            (arrived, asked) = (Arrived::default(), None);
        }
    }
}

const COMMAND: u64 = u64::MAX;

/// One command, or the end. The stage sends the next one only after an answer, so a line is never
/// left in the buffer.
fn read_command() -> Result<Option<Command>> {
    let mut line = String::new();
    match io::stdin()
        .read_line(&mut line)
        .context("failed to read a command")?
    {
        0 => Ok(None),
        _ => Ok(Some(serde_json::from_str(&line)?)),
    }
}

/// What has come in since the last count.
#[derive(Default)]
struct Arrived {
    bytes: u64,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Arrived {
    fn drain(&mut self, socket: &UdpSocket, buffer: &mut [u8]) -> Result<()> {
        for _ in 0..DATAGRAMS_PER_TURN {
            match socket.recv(buffer) {
                // A greeting that was repeated.
                Ok(bytes) if bytes <= GREETING.len() => {}
                Ok(bytes) => self.bytes += bytes as u64,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::ConnectionRefused => {}
                Err(e) => return Err(e).context("failed to receive a datagram"),
            }
        }
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
        Ok(())
    }

    /// How long nothing has come in, at most since `asked`.
    fn silence(&self, asked: Instant) -> Duration {
        self.last.map_or(asked, |last| last.max(asked)).elapsed()
    }

    fn report(&self, datagram_bytes: u16) -> Report {
        let span = self.first.zip(self.last);
        Report {
            seconds: span.map_or(0.0, |(first, last)| (last - first).as_secs_f64()),
            bytes: self.bytes,
            operations: self.bytes / u64::from(datagram_bytes),
            ..Report::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_datagrams_count_each_and_greetings_do_not() {
        let here = UdpSocket::bind("127.0.0.1:0").unwrap();
        here.set_nonblocking(true).unwrap();
        let there = UdpSocket::bind("127.0.0.1:0").unwrap();
        there.connect(here.local_addr().unwrap()).unwrap();
        there.send(GREETING).unwrap();
        // As UDP_GRO would hand over three.
        there.send(&[0; 3 * 1_400]).unwrap();
        let mut arrived = Arrived::default();
        arrived.drain(&here, &mut vec![0; LARGEST]).unwrap();
        let report = arrived.report(1_400);
        assert_eq!((report.operations, report.bytes), (3, 4_200));
    }

    #[test]
    fn silence_begins_with_the_question() {
        let arrived = Arrived::default();
        assert!(arrived.silence(Instant::now()) < SILENCE);
        let second = Duration::from_secs(1);
        assert!(arrived.silence(Instant::now() - second) >= second);
    }
}
