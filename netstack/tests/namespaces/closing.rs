//! Ends of connections: half-close, reset, reuse of a port, and a reader that stops reading.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use netstack::host::KEEPALIVE;
use nix::errno::Errno;

use crate::harness::sys::unacknowledged;
use crate::harness::traffic::{
    EchoServer, Pattern, STALL, accept, assert_echo, assert_end, connect, connect_from, listen,
    pass, reset,
};
use crate::harness::{Case, Family, World, case, eventually, tcp_sockets};
use crate::outbound::errno;

pub const CASES: &[Case] = &[
    case("closing::half_close_outbound_v4", |world| {
        both_half_closes(outbound(world, Family::V4))
    }),
    case("closing::half_close_outbound_v6", |world| {
        both_half_closes(outbound(world, Family::V6))
    }),
    case("closing::half_close_published_v4", |world| {
        both_half_closes(published(world, Family::V4))
    }),
    case("closing::half_close_published_v6", |world| {
        both_half_closes(published(world, Family::V6))
    }),
    case("closing::reset_outbound", |world| {
        both_resets(outbound(world, Family::V4))
    }),
    case("closing::reset_published", |world| {
        both_resets(published(world, Family::V4))
    }),
    case("closing::last_bytes_before_close", |world| {
        last_bytes_before_close(outbound(world, Family::V4))
    }),
    case("closing::last_bytes_before_close_published", |world| {
        last_bytes_before_close(published(world, Family::V4))
    }),
    case("closing::data_before_reset", data_before_reset),
    case(
        "closing::reset_behind_closed_window",
        reset_behind_closed_window,
    ),
    case("closing::half_close_after_haul", |world| {
        both_half_closes(hauled(outbound(world, Family::V4)))
    }),
    case("closing::half_close_after_haul_published", |world| {
        both_half_closes(hauled(published(world, Family::V6)))
    }),
    case("closing::reset_after_haul", |world| {
        both_resets(hauled(outbound(world, Family::V6)))
    }),
    case("closing::reset_after_haul_published", |world| {
        both_resets(hauled(published(world, Family::V4)))
    }),
    case("closing::talk_after_haul", |world| {
        talk(hauled(outbound(world, Family::V4)))
    }),
    case("closing::slow_reader_outbound", |world| {
        both_slow_readers(outbound(world, Family::V4))
    }),
    case("closing::slow_reader_published", |world| {
        both_slow_readers(published(world, Family::V4))
    }),
    case(
        "closing::silent_remotes_are_probed",
        silent_remotes_are_probed,
    ),
    case("closing::guest_port_reused_after_reset", |world| {
        guest_port_reused(world, true)
    }),
    case("closing::guest_port_reused_after_close", |world| {
        guest_port_reused(world, false)
    }),
];

/// Makes connections through one running helper: each is (the end in the guest, the end elsewhere).
type Connector<'w> = Box<dyn Fn() -> (TcpStream, TcpStream) + 'w>;

fn outbound(world: &World, family: Family) -> Connector<'_> {
    let helper = world.helper().start();
    let listener = listen(&world.elsewhere, family.elsewhere(), 0);
    Box::new(move || {
        let _running = &helper;
        let guest = connect(&world.guest.net, listener.local_addr().unwrap());
        (guest, accept(&listener).0)
    })
}

fn published(world: &World, family: Family) -> Connector<'_> {
    let helper = world.helper().publish("8080:80").start();
    let service = listen(&world.guest.net, family.guest(), 80);
    Box::new(move || {
        let _running = &helper;
        let client = connect(&world.elsewhere, (family.host(), 8080).into());
        (accept(&service).0, client)
    })
}

/// The same connections after they have moved enough, both ways, for a helper to treat them as
/// hauling.
fn hauled(connector: Connector<'_>) -> Connector<'_> {
    const HAUL: usize = 16 << 20;
    Box::new(move || {
        let (guest, remote) = connector();
        for (sender, receiver) in [(&guest, &remote), (&remote, &guest)] {
            let mut patterns = [Pattern::new(11), Pattern::new(11)];
            pass(sender, receiver, &mut patterns, HAUL);
        }
        (guest, remote)
    })
}

/// Small questions and answers, each side being the first to speak.
fn talk(connector: Connector) {
    let (guest, remote) = connector();
    let mut heard = [0; 100];
    for round in 0u8..200 {
        for (mut first, mut second) in [(&guest, &remote), (&remote, &guest)] {
            first.write_all(&[round; 100]).unwrap();
            second.read_exact(&mut heard).expect("the message arrives");
            assert_eq!(heard, [round; 100]);
        }
    }
}

/// The guest's own keepalive ends at the helper, so the helper's sockets need one.
fn silent_remotes_are_probed(world: &mut World) {
    for connector in [outbound, published] {
        let connector = connector(world, Family::V4);
        let (_guest, remote) = connector();
        let (host, elsewhere) = (remote.peer_addr().unwrap(), remote.local_addr().unwrap());
        let due = || {
            let sockets = tcp_sockets(&world.host);
            let mut sockets = sockets.into_iter();
            let socket = sockets.find(|socket| (socket.local, socket.remote) == (host, elsewhere));
            socket?.keepalive_due
        };
        eventually("the next probe has a time", STALL, || due().is_some());
        let due = due().expect("it had one");
        assert!(due <= KEEPALIVE.idle, "{due:?}");
    }
}

fn both_half_closes(connector: Connector) {
    let (guest, remote) = connector();
    half_close(guest, remote);
    let (guest, remote) = connector();
    half_close(remote, guest);
}

/// `first` says all it has and closes its side; only then does `second` answer, at length, and
/// close.
fn half_close(mut first: TcpStream, mut second: TcpStream) {
    first.write_all(b"all I have to say").unwrap();
    first.shutdown(Shutdown::Write).unwrap();
    let mut heard = Vec::new();
    second
        .read_to_end(&mut heard)
        .expect("the end arrives after the data");
    assert_eq!(heard, b"all I have to say");

    let answer = std::thread::spawn(move || {
        Pattern::new(7)
            .send(&mut second, ANSWER)
            .expect("the other side is still open");
    });
    Pattern::new(7).expect(&mut first, ANSWER);
    assert_end(&mut first);
    answer.join().unwrap();
}

fn both_resets(connector: Connector) {
    let (guest, remote) = connector();
    reset_is_seen(guest, remote);
    let (guest, remote) = connector();
    reset_is_seen(remote, guest);
}

/// `first` resets the connection after some talk; `second` sees a reset, not an orderly end.
fn reset_is_seen(mut first: TcpStream, mut second: TcpStream) {
    first.write_all(b"!").unwrap();
    second.read_exact(&mut [0]).unwrap();
    reset(first);
    let error = second.read(&mut [0]).expect_err("a reset is not an end");
    assert_eq!(errno(&error), Some(Errno::ECONNRESET), "{error}");
}

/// What the remote's kernel had delivered before a reset is not taken back by the reset.
fn data_before_reset(world: &mut World) {
    let helper = world.helper().start();
    let listener = listen(&world.elsewhere, Family::V4.elsewhere(), 0);
    for _ in 0..20 {
        let mut guest = connect(&world.guest.net, listener.local_addr().unwrap());
        let (mut remote, _) = accept(&listener);
        remote.write_all(b"response").unwrap();
        eventually("the response is acknowledged", STALL, || {
            unacknowledged(&remote) == 0
        });
        reset(remote);
        let mut heard = [0; 8];
        guest
            .read_exact(&mut heard)
            .expect("the response comes before the reset");
        assert_eq!(&heard, b"response");
        let error = guest.read(&mut [0]).expect_err("a reset is not an end");
        assert_eq!(errno(&error), Some(Errno::ECONNRESET), "{error}");
    }
    drop(helper);
}

/// A remote that resets while the guest does not read: the guest learns it although its window is
/// closed.
fn reset_behind_closed_window(world: &mut World) {
    let helper = world.helper().start();
    let baseline = helper.resting_fd_count();
    let listener = listen(&world.elsewhere, Family::V4.elsewhere(), 0);
    let guest = connect(&world.guest.net, listener.local_addr().unwrap());
    let (mut remote, _) = accept(&listener);
    remote.set_nonblocking(true).unwrap();
    let mut quiet_since = Instant::now();
    while quiet_since.elapsed() < Duration::from_millis(500) {
        if remote.write(&[0; 65_536]).is_ok() {
            quiet_since = Instant::now();
        }
    }
    reset(remote);
    helper.expect_fds_back_to(baseline);
    let error = eventually_error(&guest);
    assert_eq!(error, Some(Errno::ECONNRESET));
}

/// The pending error of a socket whose data nobody reads.
fn eventually_error(stream: &TcpStream) -> Option<Errno> {
    let mut error = None;
    eventually("the socket has an error", STALL, || {
        error = stream
            .take_error()
            .expect("SO_ERROR")
            .and_then(|error| errno(&error));
        error.is_some()
    });
    error
}

/// Data written right before an orderly close all arrives, whoever sent it.
fn last_bytes_before_close(connector: Connector) {
    for guest_sends in [true, false] {
        let (guest, remote) = connector();
        let (mut sender, mut receiver) = if guest_sends {
            (guest, remote)
        } else {
            (remote, guest)
        };
        let sending = std::thread::spawn(move || {
            Pattern::new(3).send(&mut sender, ANSWER).expect("send");
        });
        Pattern::new(3).expect(&mut receiver, ANSWER);
        assert_end(&mut receiver);
        sending.join().unwrap();
    }
}

fn both_slow_readers(connector: Connector) {
    let (guest, remote) = connector();
    slow_reader(guest, remote);
    let (guest, remote) = connector();
    slow_reader(remote, guest);
}

/// A reader that does not read holds the writer back before all is sent; once it reads, everything
/// arrives.
fn slow_reader(mut writer: TcpStream, mut reader: TcpStream) {
    const TOTAL: usize = 96 << 20;
    let sent = Arc::new(AtomicUsize::new(0));
    let writing = {
        let sent = sent.clone();
        std::thread::spawn(move || {
            Pattern::new(5)
                .send_counted(&mut writer, TOTAL, &sent)
                .expect("send")
        })
    };
    let mut before = 0;
    let mut unchanged = 0;
    eventually("the writer is held back", STALL / 2, || {
        let now = sent.load(Ordering::Relaxed);
        unchanged = if now == before { unchanged + 1 } else { 0 };
        before = now;
        now > 0 && unchanged >= 25
    });
    assert!(before < TOTAL, "somebody buffered all {TOTAL} bytes");
    Pattern::new(5).expect(&mut reader, TOTAL);
    writing.join().unwrap();
    assert_end(&mut reader);
}

/// A client may bind the same source port again at once: after a reset, or when the remote closed
/// first and so keeps the TIME-WAIT. The helper's memory of the old connection must not swallow the
/// new one.
fn guest_port_reused(world: &mut World, by_reset: bool) {
    let helper = world.helper().start();
    let baseline = helper.resting_fd_count();
    for family in Family::BOTH {
        let server = EchoServer::start(&world.elsewhere, family.elsewhere(), 7);
        let one_shot = EchoServer::start_one_shot(&world.elsewhere, family.elsewhere(), 8);
        for round in 0u8..20 {
            let remote = if by_reset {
                server.address
            } else {
                one_shot.address
            };
            let source = (family.guest(), 40000).into();
            let mut stream = connect_from(&world.guest.net, source, remote);
            assert_echo(&mut stream, &[round; 32]);
            if by_reset {
                reset(stream);
            } else {
                assert_end(&mut stream);
            }
        }
    }
    helper.expect_fds_back_to(baseline);
}

/// How much an answer holds: more than all socket buffers on the way hold at first.
const ANSWER: usize = 4 << 20;
