//! Whole transfers through the epoll loop, with peers that run beside it.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use portfwd::relay::{End, Leg, PipePool, Relay, Side};
use rustix::net::{SendFlags, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::harness::{Loop, Stream, connection, joined, read_until_reset, reset};

const TO_B: Stream = Stream { seed: 1 };
const TO_A: Stream = Stream { seed: 2 };

/// Sends `len` bytes each way at once, each side half-closing when it is through, and compares
/// them.
fn exchange(pool: PipePool, len: u64, chunk: usize) {
    let (peer_a, peer_b, relay) = joined();
    let ends = thread::scope(|scope| {
        scope.spawn(|| TO_B.send(&peer_a, len, chunk));
        scope.spawn(|| TO_B.receive(&peer_b, len, 256 << 10));
        scope.spawn(|| TO_A.send(&peer_b, len, chunk));
        scope.spawn(|| TO_A.receive(&peer_a, len, 256 << 10));
        Loop::new(pool, vec![relay]).run()
    });
    assert_eq!(ends, [End::Finished]);
}

#[test]
fn bulk_both_ways() {
    exchange(PipePool::default(), 64 << 20, 256 << 10);
}

#[test]
fn bulk_both_ways_without_pipes() {
    exchange(PipePool::new(0), 16 << 20, 256 << 10);
}

#[test]
fn writes_around_the_copy_buffer_size() {
    for chunk in [1, 1000, (16 << 10) - 1, 16 << 10, (16 << 10) + 1] {
        exchange(PipePool::default(), chunk as u64 * 300, chunk);
    }
}

#[test]
fn half_closed_request_gets_its_answer() {
    for asking in Side::BOTH {
        let (peer_a, peer_b, relay) = joined();
        let (client, server) = match asking {
            Side::A => (peer_a, peer_b),
            Side::B => (peer_b, peer_a),
        };
        let ends = thread::scope(|scope| {
            scope.spawn(|| {
                TO_B.send(&client, 100, 100);
                TO_A.receive(&client, 3 << 20, 64 << 10);
            });
            scope.spawn(|| {
                // The answer begins only after the request's FIN.
                TO_B.receive(&server, 100, 64 << 10);
                TO_A.send(&server, 3 << 20, 64 << 10);
            });
            Loop::new(PipePool::default(), vec![relay]).run()
        });
        assert_eq!(ends, [End::Finished]);
    }
}

#[test]
fn downloads_one_after_the_other() {
    for len in [1, 20_000, 70_000, 1 << 20, 3_000_000].repeat(20) {
        let (client, server, relay) = joined();
        let ends = thread::scope(|scope| {
            scope.spawn(|| {
                (&client).write_all(b"GET").unwrap();
                TO_A.receive(&client, len, 64 << 10);
                drop(client);
            });
            scope.spawn(|| {
                (&server).read_exact(&mut [0; 3]).unwrap();
                TO_A.send(&server, len, 256 << 10);
                assert_eq!((&server).read(&mut [0]).unwrap(), 0);
            });
            Loop::new(PipePool::default(), vec![relay]).run()
        });
        assert_eq!(ends, [End::Finished]);
    }
}

#[test]
fn reset_is_passed_on_as_reset() {
    for breaking in Side::BOTH {
        let (peer_a, peer_b, relay) = joined();
        let (breaker, other) = match breaking {
            Side::A => (peer_a, peer_b),
            Side::B => (peer_b, peer_a),
        };
        (&breaker).write_all(b"last words").unwrap();
        reset(breaker);
        let ends = Loop::new(PipePool::default(), vec![relay]).run();
        assert_eq!(
            ends,
            [End::Aborted {
                by: breaking,
                kind: ErrorKind::ConnectionReset
            }]
        );
        assert_eq!(read_until_reset(&other), b"last words");
    }
}

#[test]
fn reset_in_mid_transfer_never_looks_like_an_end() {
    for round in 0..20 {
        let (client, server, relay) = joined();
        thread::scope(|scope| {
            // Leaves with bytes unread, so the kernel resets.
            scope.spawn(move || {
                (&client)
                    .read_exact(&mut vec![0; (round + 1) << 14])
                    .unwrap()
            });
            scope.spawn(|| {
                let endless = [0; 64 << 10];
                let error = loop {
                    if let Err(error) = (&server).write_all(&endless) {
                        break error;
                    }
                };
                let broken = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
                assert!(broken.contains(&error.kind()), "{error}");
            });
            let ends = Loop::new(PipePool::default(), vec![relay]).run();
            assert!(
                matches!(ends[..], [End::Aborted { by: Side::A, .. }]),
                "{ends:?}"
            );
        });
    }
}

#[test]
fn urgent_data_stays_in_its_place() {
    let (sender, receiver, relay) = joined();
    let len = 8 << 20;
    let ends = thread::scope(|scope| {
        scope.spawn(|| {
            let bytes = TO_B.bytes(len);
            for (number, chunk) in bytes.chunks(100_003).enumerate() {
                let (urgent, rest) = chunk.split_at(number % 3);
                for byte in urgent.chunks(1) {
                    rustix::net::send(&sender, byte, SendFlags::OOB).unwrap();
                }
                (&sender).write_all(rest).unwrap();
            }
            sender.shutdown(std::net::Shutdown::Write).unwrap();
        });
        scope.spawn(|| {
            TO_B.receive(&receiver, len as u64, 64 << 10);
            receiver.shutdown(std::net::Shutdown::Write).unwrap();
        });
        Loop::new(PipePool::default(), vec![relay]).run()
    });
    assert_eq!(ends, [End::Finished]);
}

/// Peers of many connections in one thread, each sending and checking in steps of its own size.
struct Talker {
    peer: TcpStream,
    sends: Stream,
    sent: u64,
    expects: Stream,
    received: u64,
    step: usize,
    finished: bool,
}

impl Talker {
    fn new(peer: TcpStream, sends: u64, expects: u64, step: usize) -> Self {
        peer.set_nonblocking(true).unwrap();
        let (sends, expects) = (Stream { seed: sends }, Stream { seed: expects });
        Self {
            peer,
            sends,
            sent: 0,
            expects,
            received: 0,
            step,
            finished: false,
        }
    }

    /// One write and one read; returns whether either got anywhere.
    fn step(&mut self, len: u64) -> bool {
        let mut buffer = vec![0; self.step];
        let mut advanced = false;
        let size = self.step.min((len - self.sent) as usize);
        if size > 0 {
            self.sends.fill(self.sent, &mut buffer[..size]);
            match self.peer.write(&buffer[..size]) {
                Ok(written) => {
                    self.sent += written as u64;
                    advanced = true;
                    if self.sent == len {
                        self.peer.shutdown(std::net::Shutdown::Write).unwrap();
                    }
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        match self.peer.read(&mut buffer) {
            Ok(0) => {
                assert_eq!(self.received, len);
                self.finished = self.sent == len;
            }
            Ok(read) => {
                self.expects.check(self.received, &buffer[..read]);
                self.received += read as u64;
                advanced = true;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        advanced
    }
}

#[test]
fn five_hundred_pairs_share_a_small_pool() {
    const PAIRS: u64 = 500;
    const LEN: u64 = 300_000;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )
    .unwrap();

    let (mut relays, mut talkers) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        let (peer_a, peer_b, relay) = joined();
        // From request-sized steps to ones that are spliced.
        let step = 2000 << (pair % 6);
        talkers.push(Talker::new(peer_a, 2 * pair, 2 * pair + 1, step));
        talkers.push(Talker::new(peer_b, 2 * pair + 1, 2 * pair, step));
        relays.push(relay);
    }
    let ends = thread::scope(|scope| {
        scope.spawn(|| {
            while !talkers.is_empty() {
                let advanced = talkers
                    .iter_mut()
                    .filter(|talker| !talker.finished)
                    .fold(false, |any, talker| talker.step(LEN) | any);
                talkers.retain(|talker| !talker.finished);
                if !advanced {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        });
        Loop::new(PipePool::new(1 << 20), relays).run()
    });
    assert_eq!(ends, vec![End::Finished; PAIRS as usize]);
}

#[test]
fn slow_reader_holds_the_sender_back() {
    let ((sender, leg_a), (receiver, leg_b)) = (connection(), connection());
    // Small kernel buffers, so that what the relay itself would pile up shows.
    for socket in [&sender, &leg_a, &leg_b, &receiver] {
        sockopt::set_socket_send_buffer_size(socket, 32 << 10).unwrap();
        sockopt::set_socket_recv_buffer_size(socket, 32 << 10).unwrap();
    }
    let relay = Relay::new(Leg::new(leg_a), Leg::new(leg_b)).unwrap();
    let mut caller = Loop::new(PipePool::default(), vec![relay]);

    sender.set_nonblocking(true).unwrap();
    let bytes = TO_B.bytes(16 << 20);
    let mut sent = 0;
    // The sender counts as blocked when it stays so over a while in which the relay ran idle again
    // and again.
    let mut blocked = 0;
    while blocked < 50 {
        match (&sender).write(&bytes[sent..]) {
            Ok(written) => {
                sent += written;
                blocked = 0;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                blocked += 1;
                thread::sleep(Duration::from_millis(1));
            }
        }
        caller.settle();
    }
    // A pipe holds at most 1 MiB, the four socket buffers some 64 KiB each.
    assert!(
        sent < 2 << 20,
        "{sent} bytes went into a connection that nobody reads"
    );

    receiver.set_nonblocking(true).unwrap();
    let (mut got, mut buffer) = (0, vec![0; 64 << 10]);
    while got < sent as u64 {
        match (&receiver).read(&mut buffer) {
            Ok(read) => {
                TO_B.check(got, &buffer[..read]);
                got += read as u64;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        caller.settle();
    }
    assert_eq!(caller.relay(0).bytes_from(Side::A), sent as u64);
    assert_eq!(caller.relay(0).bytes_from(Side::B), 0);
}
