//! One relay, one stimulus: no loop, events are reported by hand, so that each case is the one
//! meant.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use portfwd::Keepalive;
use portfwd::relay::{End, Leg, PipePool, Progress, Ready, Relay, Side};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, sockopt};

use crate::harness::{DEADLINE, Stream, connection, joined, read_until_reset, reset};

const READABLE: Ready = Ready {
    readable: true,
    writable: false,
    read_closed: false,
    urgent: false,
    error: false,
};

/// Waits until the relay's socket of `side` has one of `events`, whose report the test then makes
/// or withholds.
fn await_events(relay: &Relay, side: Side, events: PollFlags) {
    let mut socket = [PollFd::from_borrowed_fd(relay.socket(side), events)];
    poll(&mut socket, Some(&Timespec::try_from(DEADLINE).unwrap())).unwrap();
    assert!(
        socket[0].revents().intersects(events),
        "{:?}",
        socket[0].revents()
    );
}

/// Waits until the relay's socket of `side` has `count` bytes to be read.
fn await_bytes(relay: &Relay, side: Side, count: u64) {
    let start = Instant::now();
    while rustix::io::ioctl_fionread(relay.socket(side)).unwrap() < count {
        assert!(start.elapsed() < DEADLINE);
        thread::yield_now();
    }
}

#[test]
fn idle_until_something_happens() {
    let (_peer_a, _peer_b, mut relay) = joined();
    assert_eq!(relay.drive(&mut PipePool::default()), Progress::Idle);
}

#[test]
fn owed_bytes_go_first() {
    let ((mut peer_a, leg_a), (mut peer_b, leg_b)) = (connection(), connection());
    peer_a.write_all(b" and more").unwrap();
    let owed = |bytes: &[u8], leg| Leg {
        owed: bytes.to_vec(),
        ..Leg::new(leg)
    };
    let mut relay = Relay::new(owed(b"for a", leg_a), owed(b"for b", leg_b)).unwrap();
    await_events(&relay, Side::A, PollFlags::IN);
    assert_eq!(relay.drive(&mut PipePool::default()), Progress::Idle);
    let mut for_b = [0; 14];
    peer_b.read_exact(&mut for_b).unwrap();
    assert_eq!(&for_b, b"for b and more");
    let mut for_a = [0; 5];
    peer_a.read_exact(&mut for_a).unwrap();
    assert_eq!(&for_a, b"for a");
    assert_eq!(
        (relay.bytes_from(Side::A), relay.bytes_from(Side::B)),
        (14, 5)
    );
}

#[test]
fn fin_whose_event_was_consumed_before_is_passed_on() {
    let (mut peer_a, mut peer_b, mut relay) = joined();
    peer_a.write_all(b"all there is").unwrap();
    peer_a.shutdown(Shutdown::Write).unwrap();
    await_events(&relay, Side::A, PollFlags::RDHUP);
    // Without this report the short read would be taken for an empty socket, and no event would
    // ever come.
    relay.handle_ready(
        Side::A,
        Ready {
            read_closed: true,
            ..Ready::default()
        },
    );
    assert_eq!(relay.drive(&mut PipePool::default()), Progress::Idle);
    let mut got = String::new();
    peer_b.read_to_string(&mut got).unwrap();
    assert_eq!(got, "all there is");
}

#[test]
fn bytes_behind_the_urgent_mark_are_read() {
    let (mut peer_a, mut peer_b, mut relay) = joined();
    peer_a.write_all(b"before").unwrap();
    rustix::net::send(&peer_a, b"!", SendFlags::OOB).unwrap();
    peer_a.write_all(b"after").unwrap();
    await_bytes(&relay, Side::A, 12);
    // The kernel ends one read at the mark; no further event comes for what is behind it.
    relay.handle_ready(
        Side::A,
        Ready {
            urgent: true,
            ..READABLE
        },
    );
    assert_eq!(relay.drive(&mut PipePool::default()), Progress::Idle);
    let mut got = [0; 12];
    peer_b.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"before!after");
}

#[test]
fn reset_met_by_a_write_is_no_end_of_stream() {
    let (peer_a, mut peer_b, mut relay) = joined();
    let mut pool = PipePool::default();
    assert_eq!(relay.drive(&mut pool), Progress::Idle);
    reset(peer_a);
    await_events(&relay, Side::A, PollFlags::ERR);
    peer_b.write_all(b"hello?").unwrap();
    await_events(&relay, Side::B, PollFlags::IN);
    // Only B's event is reported: the write to A takes the error, and the read from A that follows
    // returns 0.
    relay.handle_ready(Side::B, READABLE);
    let Progress::Done(End::Aborted { by: Side::A, .. }) = relay.drive(&mut pool) else {
        panic!("{relay:?}")
    };
    drop(relay);
    assert_eq!(read_until_reset(&peer_b), b"");
}

#[test]
fn reset_after_fin_is_passed_on() {
    let (peer_a, peer_b, mut relay) = joined();
    let mut pool = PipePool::default();
    peer_a.shutdown(Shutdown::Write).unwrap();
    await_events(&relay, Side::A, PollFlags::RDHUP);
    relay.handle_ready(
        Side::A,
        Ready {
            read_closed: true,
            ..Ready::default()
        },
    );
    assert_eq!(relay.drive(&mut pool), Progress::Idle);
    assert_eq!((&peer_b).read(&mut [0]).unwrap(), 0);
    reset(peer_a);
    await_events(&relay, Side::A, PollFlags::ERR);
    // Reads have ended and nothing is to be written: only the event tells.
    relay.handle_ready(
        Side::A,
        Ready {
            error: true,
            ..Ready::default()
        },
    );
    let aborted = Progress::Done(End::Aborted {
        by: Side::A,
        kind: ErrorKind::BrokenPipe,
    });
    let reset = Progress::Done(End::Aborted {
        by: Side::A,
        kind: ErrorKind::ConnectionReset,
    });
    let progress = relay.drive(&mut pool);
    assert!([aborted, reset].contains(&progress), "{progress:?}");
    assert_eq!(relay.drive(&mut pool), progress, "an end is final");
    drop(relay);
    let error = sockopt::socket_error(&peer_b).unwrap();
    assert!(
        error.is_err(),
        "the other peer still takes its connection for whole"
    );
}

#[test]
fn unfinished_relay_resets_both_peers() {
    let (peer_a, peer_b, mut relay) = joined();
    peer_a.shutdown(Shutdown::Write).unwrap();
    assert_eq!(relay.drive(&mut PipePool::default()), Progress::Idle);
    drop(relay);
    read_until_reset(&peer_a);
    assert!(sockopt::socket_error(&peer_b).unwrap().is_err());
}

#[test]
fn finished_relay_delivers_what_is_under_way() {
    let (peer_a, peer_b, mut relay) = joined();
    let stream = Stream { seed: 7 };
    stream.send(&peer_a, 100_000, 100_000);
    peer_b.shutdown(Shutdown::Write).unwrap();
    await_events(&relay, Side::A, PollFlags::RDHUP);
    await_events(&relay, Side::B, PollFlags::RDHUP);
    for side in Side::BOTH {
        relay.handle_ready(
            side,
            Ready {
                read_closed: true,
                ..Ready::default()
            },
        );
    }
    let mut pool = PipePool::default();
    while relay.drive(&mut pool) != Progress::Done(End::Finished) {}
    let sockets = relay.into_sockets();
    assert!(sockopt::socket_linger(sockets.1.as_fd()).unwrap().is_none());
    drop(sockets);
    stream.receive(&peer_b, 100_000, 1000);
}

#[test]
fn turn_is_bounded() {
    // Copies: 24 reads of 16 KiB after what one left over. Splices: 1 MiB, and as much again for
    // the read that passes it.
    for (budget, most) in [(0, 25 * (16 << 10)), (PipePool::DEFAULT_BUDGET, 2 << 20)] {
        let (peer_a, peer_b, mut relay) = joined();
        let mut pool = PipePool::new(budget);
        let stream = Stream { seed: 9 };
        thread::scope(|scope| {
            scope.spawn(|| stream.send(&peer_a, 32 << 20, 1 << 20));
            scope.spawn(|| stream.receive(&peer_b, 32 << 20, 1 << 20));
            let mut before = 0;
            while before < 32 << 20 {
                let any = Ready {
                    readable: true,
                    writable: true,
                    ..Ready::default()
                };
                Side::BOTH
                    .into_iter()
                    .for_each(|side| relay.handle_ready(side, any));
                let _ = relay.drive(&mut pool);
                let now = relay.bytes_from(Side::A);
                assert!(now - before <= most, "{} bytes in one turn", now - before);
                before = now;
            }
            // The last byte may be here before its sender has had the time to close.
            await_events(&relay, Side::A, PollFlags::RDHUP);
            relay.handle_ready(
                Side::A,
                Ready {
                    read_closed: true,
                    ..Ready::default()
                },
            );
            let _ = relay.drive(&mut pool);
        });
    }
}

#[test]
fn keepalive_survives() {
    let ((_peer_a, leg_a), (_peer_b, leg_b)) = (connection(), connection());
    let keepalive = Keepalive {
        idle: Duration::from_secs(75),
        interval: Duration::from_secs(15),
        probes: 4,
    };
    keepalive.set(&leg_b).unwrap();
    let relay = Relay::new(Leg::new(leg_a), Leg::new(leg_b)).unwrap();
    let host = relay.socket(Side::B);
    assert!(sockopt::socket_keepalive(host).unwrap());
    assert_eq!(sockopt::tcp_keepidle(host).unwrap(), keepalive.idle);
    assert_eq!(sockopt::tcp_keepintvl(host).unwrap(), keepalive.interval);
    assert_eq!(sockopt::tcp_keepcnt(host).unwrap(), keepalive.probes);
    assert!(!sockopt::socket_keepalive(relay.socket(Side::A)).unwrap());
}

#[test]
fn only_tcp_sockets_are_joined() {
    let (_peer, leg) = connection();
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    assert!(Relay::new(Leg::new(leg), Leg::new(udp)).is_err());
}
