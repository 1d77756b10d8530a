//! Connections that the guest opens, and what it sees when they cannot be opened.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::harness::traffic::{
    EchoServer, accept, assert_echo, assert_end, connect, listen, try_connect,
};
use crate::harness::{Case, Family, World, case};

pub const CASES: &[Case] = &[
    case("outbound::echo_v4", |world| echo(world, Family::V4)),
    case("outbound::echo_v6", |world| echo(world, Family::V6)),
    case("outbound::host_address", host_address),
    case(
        "outbound::first_packet_after_ready",
        first_packet_after_ready,
    ),
    case("outbound::remote_speaks_first", remote_speaks_first),
    case("outbound::refused", refused),
    case("outbound::unreachable", unreachable),
    case("outbound::absent_neighbour", absent_neighbour),
    case("outbound::silence_stays_silence", silence_stays_silence),
    case(
        "outbound::syn_is_held_until_accepted",
        syn_is_held_until_accepted,
    ),
];

fn echo(world: &mut World, family: Family) {
    let server = EchoServer::start(&world.elsewhere, family.elsewhere(), 7);
    let helper = world.helper().start();
    let baseline = helper.resting_fd_count();
    let mut stream = connect(&world.guest.net, server.address);
    assert_eq!(stream.local_addr().unwrap().ip(), family.guest());
    assert_echo(&mut stream, b"out and back");
    assert!(
        helper.fd_count() > baseline,
        "an open connection has a socket"
    );
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_end(&mut stream);
    helper.expect_fds_back_to(baseline);
}

/// The host's own address on a real interface is an ordinary destination.
fn host_address(world: &mut World) {
    let _helper = world.helper().start();
    for family in Family::BOTH {
        let server = EchoServer::start(&world.host, family.host(), 7);
        assert_echo(&mut connect(&world.guest.net, server.address), b"host");
    }
}

/// Ready means ready: addresses are not tentative and the first SYN needs no retransmission (which
/// takes 1 s).
fn first_packet_after_ready(world: &mut World) {
    let servers =
        Family::BOTH.map(|family| EchoServer::start(&world.elsewhere, family.elsewhere(), 7));
    let _helper = world.helper().start();
    for server in &servers {
        let connected = try_connect(&world.guest.net, server.address, Duration::from_millis(900));
        connected.unwrap_or_else(|error| {
            panic!("the first packet to {} was lost: {error}", server.address)
        });
    }
}

/// The greeting of a server, as with SSH or SMTP, may be there before the helper knows that it is
/// connected.
fn remote_speaks_first(world: &mut World) {
    let _helper = world.helper().start();
    let listener = listen(&world.elsewhere, Family::V4.elsewhere(), 0);
    let address = listener.local_addr().unwrap();
    let greeter = std::thread::spawn(move || {
        for _ in 0..200 {
            accept(&listener).0.write_all(b"greeting").unwrap();
        }
    });
    for _ in 0..200 {
        let mut greeting = Vec::new();
        connect(&world.guest.net, address)
            .read_to_end(&mut greeting)
            .expect("a greeting");
        assert_eq!(greeting, b"greeting");
    }
    greeter.join().unwrap();
}

fn refused(world: &mut World) {
    let _helper = world.helper().start();
    for family in Family::BOTH {
        for address in [family.elsewhere(), family.host()] {
            let error = try_connect(&world.guest.net, (address, 9).into(), SOON)
                .expect_err("nobody listens");
            assert_eq!(
                errno(&error),
                Some(Errno::ECONNREFUSED),
                "{address}: {error}"
            );
        }
    }
}

fn unreachable(world: &mut World) {
    let _helper = world.helper().start();
    for family in Family::BOTH {
        for address in [family.unreachable(), family.no_route()] {
            let error =
                try_connect(&world.guest.net, (address, 7).into(), SOON).expect_err("no way there");
            let expected = [Some(Errno::EHOSTUNREACH), Some(Errno::ENETUNREACH)];
            assert!(expected.contains(&errno(&error)), "{address}: {error}");
        }
    }
}

/// A neighbour that does not answer ARP or NDP: the kernel learns it late, and the guest must still
/// be told.
fn absent_neighbour(world: &mut World) {
    let _helper = world.helper().start();
    for address in ["198.51.100.99:7", "[2001:db8::99]:7"] {
        let error = try_connect(&world.guest.net, address.parse().unwrap(), SOON)
            .expect_err("nobody there");
        assert_eq!(
            errno(&error),
            Some(Errno::EHOSTUNREACH),
            "{address}: {error}"
        );
    }
}

/// A remote that drops the SYN is not answered on its behalf, neither with a RST nor with a
/// SYN-ACK.
fn silence_stays_silence(world: &mut World) {
    let _helper = world.helper().start();
    for family in Family::BOTH {
        let started = Instant::now();
        let patience = Duration::from_millis(1500);
        let error = try_connect(&world.guest.net, (family.silent(), 7).into(), patience)
            .expect_err("silence");
        assert_eq!(
            (errno(&error), error.kind()),
            (None, io::ErrorKind::TimedOut),
            "{family:?}"
        );
        assert!(started.elapsed() >= patience);
    }
}

/// The guest's `connect` must not succeed before the remote's kernel has taken the connection.
fn syn_is_held_until_accepted(world: &mut World) {
    let _helper = world.helper().start();
    let listener = listen(&world.elsewhere, Family::V4.elsewhere(), 0);
    let _stream = connect(&world.guest.net, listener.local_addr().unwrap());
    listener.set_nonblocking(true).unwrap();
    listener
        .accept()
        .expect("the connection is established at the remote when connect returns");
}

/// The errno of an error that came from the kernel.
pub fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}

/// Long enough for a busy machine and the retransmission of a lost SYN, far shorter than a connect
/// timeout.
const SOON: Duration = Duration::from_secs(5);
