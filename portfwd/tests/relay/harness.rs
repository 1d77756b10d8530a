//! Real TCP connections around relays, a small epoll loop, and a byte stream that tells every lost,
//! repeated or swapped byte.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use portfwd::relay::{End, INTEREST, Leg, PipePool, Progress, Ready, Relay, Side};
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;

/// No step of a test takes nearly this long; one that does is stuck.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A loopback connection: the end that the test plays, and the one that goes into a relay.
pub fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (leg, _) = listener.accept().unwrap();
    peer.set_nodelay(true).unwrap();
    peer.set_read_timeout(Some(DEADLINE)).unwrap();
    peer.set_write_timeout(Some(DEADLINE)).unwrap();
    (peer, leg)
}

/// Two peers and the relay between them.
pub fn joined() -> (TcpStream, TcpStream, Relay) {
    let ((peer_a, leg_a), (peer_b, leg_b)) = (connection(), connection());
    (
        peer_a,
        peer_b,
        Relay::new(Leg::new(leg_a), Leg::new(leg_b)).unwrap(),
    )
}

/// The caller of relays: owns epoll, reports events, gives turns.
pub struct Loop {
    epoll: OwnedFd,
    relays: Vec<Relay>,
    ends: Vec<Option<End>>,
    /// Relays that want a turn.
    due: Vec<usize>,
    pub pool: PipePool,
}

impl Loop {
    pub fn new(pool: PipePool, relays: Vec<Relay>) -> Self {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        for (index, relay) in relays.iter().enumerate() {
            for side in Side::BOTH {
                let token = epoll::EventData::new_u64((index * 2 + side as usize) as u64);
                let interest = epoll::EventFlags::from_bits_retain(INTEREST);
                epoll::add(&epoll, relay.socket(side), token, interest).unwrap();
            }
        }
        Self {
            epoll,
            ends: vec![None; relays.len()],
            due: (0..relays.len()).collect(),
            relays,
            pool,
        }
    }

    /// Runs until every relay is done. A reset is passed on by dropping the relay, as a caller
    /// would.
    pub fn run(mut self) -> Vec<End> {
        let start = Instant::now();
        let mut relays: Vec<Option<Relay>> = self.relays.drain(..).map(Some).collect();
        while self.ends.iter().any(Option::is_none) {
            assert!(start.elapsed() < DEADLINE, "stuck: {relays:?}");
            let timeout = if self.due.is_empty() {
                Duration::from_secs(1)
            } else {
                Duration::ZERO
            };
            for (index, side, ready) in self.events(timeout) {
                if let Some(relay) = &mut relays[index] {
                    relay.handle_ready(side, ready);
                    self.due.push(index);
                }
            }
            self.due.sort_unstable();
            self.due.dedup();
            for index in std::mem::take(&mut self.due) {
                let Some(relay) = &mut relays[index] else {
                    continue;
                };
                match relay.drive(&mut self.pool) {
                    Progress::Idle => {}
                    Progress::Again => self.due.push(index),
                    Progress::Done(end) => {
                        self.ends[index] = Some(end);
                        relays[index] = None;
                    }
                }
            }
        }
        self.ends.into_iter().flatten().collect()
    }

    /// Handles what has happened by now and gives turns until none is wanted; returns the ends so
    /// far.
    pub fn settle(&mut self) -> &[Option<End>] {
        loop {
            for (index, side, ready) in self.events(Duration::ZERO) {
                self.relays[index].handle_ready(side, ready);
                self.due.push(index);
            }
            if self.due.is_empty() {
                return &self.ends;
            }
            for index in std::mem::take(&mut self.due) {
                match self.relays[index].drive(&mut self.pool) {
                    Progress::Idle => {}
                    Progress::Again => self.due.push(index),
                    Progress::Done(end) => self.ends[index] = Some(end),
                }
            }
        }
    }

    pub fn relay(&self, index: usize) -> &Relay {
        &self.relays[index]
    }

    fn events(&self, timeout: Duration) -> Vec<(usize, Side, Ready)> {
        let mut events = Vec::with_capacity(256);
        let timeout = Timespec::try_from(timeout).unwrap();
        epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            Some(&timeout),
        )
        .unwrap();
        let decode = |event: epoll::Event| {
            // `epoll::Event` is packed: copy the fields out.
            let (data, flags) = (event.data, event.flags);
            let token = data.u64() as usize;
            (
                token / 2,
                Side::BOTH[token % 2],
                Ready::from_epoll(flags.bits()),
            )
        };
        events.into_iter().map(decode).collect()
    }
}

/// An endless byte sequence, different for each seed, that can be read from any offset.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    pub seed: u64,
}

impl Stream {
    pub fn fill(self, offset: u64, buffer: &mut [u8]) {
        for (at, byte) in (offset..).zip(buffer) {
            // SplitMix64's finaliser over the 8-byte word's number; cheap, and no word repeats
            // within reach.
            let mut word = (at / 8)
                .wrapping_add(self.seed << 40)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15);
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word ^= word >> 27;
            *byte = word.to_le_bytes()[(at % 8) as usize];
        }
    }

    pub fn check(self, offset: u64, bytes: &[u8]) {
        let mut expected = vec![0; bytes.len()];
        self.fill(offset, &mut expected);
        if let Some(at) = bytes
            .iter()
            .zip(&expected)
            .position(|(got, want)| got != want)
        {
            panic!(
                "byte {} of stream {} differs",
                offset + at as u64,
                self.seed
            );
        }
    }

    /// The first `len` bytes.
    pub fn bytes(self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(0, &mut bytes);
        bytes
    }

    /// Writes `len` bytes of the stream in chunks of `chunk`, then half-closes.
    pub fn send(self, peer: &TcpStream, len: u64, chunk: usize) {
        let mut buffer = vec![0; chunk];
        let mut offset = 0;
        while offset < len {
            let size = chunk.min((len - offset) as usize);
            self.fill(offset, &mut buffer[..size]);
            (&mut &*peer).write_all(&buffer[..size]).unwrap();
            offset += size as u64;
        }
        peer.shutdown(Shutdown::Write).unwrap();
    }

    /// Reads the stream up to the FIN, which must come after `len` bytes.
    pub fn receive(self, peer: &TcpStream, len: u64, chunk: usize) {
        let mut buffer = vec![0; chunk];
        let mut offset = 0;
        loop {
            let read = (&mut &*peer).read(&mut buffer).unwrap();
            if read == 0 {
                break;
            }
            self.check(offset, &buffer[..read]);
            offset += read as u64;
        }
        assert_eq!(offset, len);
    }
}

/// Reads until the connection is reset and returns what came before; a FIN is a failure.
pub fn read_until_reset(peer: &TcpStream) -> Vec<u8> {
    let mut got = Vec::new();
    let error = (&mut &*peer)
        .read_to_end(&mut got)
        .expect_err("the stream ended like a whole one");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    got
}

/// Closes with a RST.
pub fn reset(peer: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
}
