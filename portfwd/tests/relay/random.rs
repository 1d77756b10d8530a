//! Random operations on both peers of a relay, compared with two byte counters per direction.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use portfwd::relay::{End, PipePool};
use proptest::prelude::*;

use crate::harness::{DEADLINE, Loop, Stream, joined};

#[derive(Clone, Copy, Debug)]
enum Op {
    Send { len: usize },
    Receive { len: usize },
    HalfClose,
}

fn ops() -> impl Strategy<Value = Vec<(usize, Op)>> {
    let len = prop_oneof![1..100usize, 1..20_000usize, 1..2_000_000usize];
    let op = prop_oneof![
        4 => len.clone().prop_map(|len| Op::Send { len }),
        4 => len.prop_map(|len| Op::Receive { len }),
        1 => Just(Op::HalfClose),
    ];
    prop::collection::vec((0..2usize, op), 1..40)
}

/// One end of the connection and what the model knows of it.
struct Peer {
    socket: TcpStream,
    sends: Stream,
    sent: u64,
    received: u64,
    half_closed: bool,
}

impl Peer {
    fn send(&mut self, len: usize) {
        let mut bytes = vec![0; len];
        self.sends.fill(self.sent, &mut bytes);
        match self.socket.write(&bytes) {
            Ok(written) => self.sent += written as u64,
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }

    /// Reads at most `len` bytes; returns whether the FIN was met.
    fn receive(&mut self, len: usize, from: Stream) -> bool {
        let mut bytes = vec![0; len];
        match self.socket.read(&mut bytes) {
            Ok(read) => {
                from.check(self.received, &bytes[..read]);
                self.received += read as u64;
                read == 0
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                false
            }
        }
    }

    fn half_close(&mut self) {
        if !self.half_closed {
            self.socket.shutdown(Shutdown::Write).unwrap();
            self.half_closed = true;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn streams_arrive_whole_and_in_order(ops in ops(), budget in prop_oneof![Just(0), Just(128 << 10), Just(16 << 20)]) {
        let (socket_a, socket_b, relay) = joined();
        let mut caller = Loop::new(PipePool::new(budget), vec![relay]);
        let mut peers = [(socket_a, 1), (socket_b, 2)].map(|(socket, seed)| {
            socket.set_nonblocking(true).unwrap();
            Peer { socket, sends: Stream { seed }, sent: 0, received: 0, half_closed: false }
        });
        for (at, op) in ops {
            let other = peers[1 - at].sends;
            match op {
                Op::Send { len } if !peers[at].half_closed => peers[at].send(len),
                Op::Send { .. } => {}
                Op::Receive { len } => {
                    let met_fin = peers[at].receive(len, other);
                    prop_assert!(!met_fin || peers[1 - at].half_closed, "a FIN that nobody sent");
                }
                Op::HalfClose => peers[at].half_close(),
            }
            let ends = caller.settle();
            prop_assert!(ends[0].is_none() || peers.iter().all(|peer| peer.half_closed), "{ends:?}");
        }

        // Both close now and read to the end: everything sent must arrive.
        peers.iter_mut().for_each(Peer::half_close);
        let start = Instant::now();
        let mut ended = [false; 2];
        while ended != [true; 2] {
            prop_assert!(start.elapsed() < DEADLINE, "stuck: {:?}", caller.relay(0));
            caller.settle();
            for at in 0..2 {
                let other = peers[1 - at].sends;
                ended[at] |= peers[at].receive(256 << 10, other);
            }
            thread::sleep(Duration::from_micros(20));
        }
        prop_assert_eq!(peers[0].received, peers[1].sent);
        prop_assert_eq!(peers[1].received, peers[0].sent);
        prop_assert_eq!(caller.settle(), &[Some(End::Finished)]);
    }
}
