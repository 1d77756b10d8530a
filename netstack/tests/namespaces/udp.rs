//! Datagrams from the guest: echoes, large and segmented ones, and the errors that come back.

use std::collections::HashSet;
use std::io;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use rustix::process::Signal;

use crate::harness::traffic::{udp, udp_echo};
use crate::harness::{Case, Family, World, case};
use crate::outbound::errno;

pub const CASES: &[Case] = &[
    case("udp::echo", echo),
    case(
        "udp::one_source_port_for_all_remotes",
        one_source_port_for_all_remotes,
    ),
    case(
        "udp::answers_only_from_whom_was_asked",
        answers_only_from_whom_was_asked,
    ),
    case("udp::many_source_ports", many_source_ports),
    case("udp::large_datagram", large_datagram),
    case("udp::segmented_burst_65520", |world| {
        segmented_burst(world, 65520)
    }),
    case("udp::segmented_burst_1500", |world| {
        segmented_burst(world, 1500)
    }),
    case("udp::burst_of_single_datagrams", burst_of_single_datagrams),
    case("udp::port_unreachable", port_unreachable),
];

fn echo(world: &mut World) {
    let _helper = world.helper().start();
    for family in Family::BOTH {
        let server = udp_echo(&world.elsewhere, family.elsewhere(), 7);
        let client = udp(&world.guest.net, family.guest(), 0);
        client.connect(server.address).unwrap();
        for length in [1, 100, 1400] {
            assert_datagram_echo(&client, length);
        }
    }
}

/// RFC 4787 REQ-1: one guest port appears as one host port, whomever it talks to.
fn one_source_port_for_all_remotes(world: &mut World) {
    let _helper = world.helper().start();
    for family in Family::BOTH {
        let servers = [
            udp(&world.elsewhere, family.elsewhere(), 0),
            udp(&world.elsewhere, family.elsewhere(), 0),
        ];
        let client = udp(&world.guest.net, family.guest(), 0);
        let mut sources = HashSet::new();
        for server in &servers {
            client
                .send_to(b"hello", server.local_addr().unwrap())
                .unwrap();
            sources.insert(
                server
                    .recv_from(&mut [0; 8])
                    .expect("the datagram arrives")
                    .1,
            );
        }
        assert_eq!(sources.len(), 1, "{sources:?}");
    }
}

/// A third party that guesses the host port does not reach the guest (RFC 4787 section 5,
/// address-dependent filtering).
fn answers_only_from_whom_was_asked(world: &mut World) {
    let _helper = world.helper().start();
    let server = udp(&world.elsewhere, Family::V4.elsewhere(), 0);
    let client = udp(&world.guest.net, Family::V4.guest(), 0);
    client
        .send_to(b"hello", server.local_addr().unwrap())
        .unwrap();
    let (_, mapped) = server.recv_from(&mut [0; 8]).unwrap();
    let stranger = udp(&world.host, Family::V4.host(), 0);
    stranger.send_to(b"intruder", mapped).unwrap();
    server.send_to(b"answer", mapped).unwrap();
    let mut buffer = [0; 16];
    let (count, source) = client.recv_from(&mut buffer).unwrap();
    assert_eq!(
        (&buffer[..count], source),
        (&b"answer"[..], server.local_addr().unwrap())
    );
}

/// A program that uses each source port once (a resolver, a scanner) runs into no limit: mappings
/// that are not used any more make way. One that is in use stays, and the sockets are bounded.
fn many_source_ports(world: &mut World) {
    const PORTS: usize = 10_000;
    const MAPPINGS_LIMIT: usize = 4096 + 64;
    let helper = world.helper().start();
    let baseline = helper.resting_fd_count();
    let server = udp_echo(&world.elsewhere, Family::V4.elsewhere(), 7);
    let in_use = udp(&world.guest.net, Family::V4.guest(), 0);
    in_use.connect(server.address).unwrap();
    for number in 0..PORTS {
        let client = udp(&world.guest.net, Family::V4.guest(), 0);
        client.connect(server.address).unwrap();
        assert_datagram_echo(&client, 64 + number % 64);
        if number % 100 == 0 {
            assert_datagram_echo(&in_use, 10);
        }
    }
    assert!(helper.fd_count() <= baseline + MAPPINGS_LIMIT);
}

/// At MTU 65520 almost the largest UDP datagram fits into one frame.
fn large_datagram(world: &mut World) {
    let _helper = world.helper().start();
    for family in Family::BOTH {
        let server = udp_echo(&world.elsewhere, family.elsewhere(), 7);
        let client = udp(&world.guest.net, family.guest(), 0);
        client.connect(server.address).unwrap();
        assert_datagram_echo(&client, 60_000);
    }
}

/// One `send` with UDP_SEGMENT becomes many datagrams, each of which arrives whole and alone, there
/// and back.
fn segmented_burst(world: &mut World, mtu: u32) {
    const SEGMENT: usize = 1200;
    const SEGMENTS: usize = 40;
    let _helper = world.helper().mtu(mtu).start();
    for family in Family::BOTH {
        let server = udp(&world.elsewhere, family.elsewhere(), 7);
        let client = udp(&world.guest.net, family.guest(), 0);
        client.connect(server.local_addr().unwrap()).unwrap();
        setsockopt(&client, sockopt::UdpGsoSegment, &(SEGMENT as i32)).expect("UDP_SEGMENT");
        let burst: Vec<u8> = (0..SEGMENTS)
            .flat_map(|index| vec![index as u8; SEGMENT])
            .collect();
        client.send(&burst).expect("send a burst");

        let mut buffer = [0; 65536];
        for index in 0..SEGMENTS {
            let (count, source) = server
                .recv_from(&mut buffer)
                .unwrap_or_else(|e| panic!("datagram {index}: {e}"));
            assert_eq!(
                &buffer[..count],
                &[index as u8; SEGMENT],
                "datagram {index}"
            );
            server.send_to(&buffer[..count], source).unwrap();
        }
        for index in 0..SEGMENTS {
            let count = client
                .recv(&mut buffer)
                .unwrap_or_else(|e| panic!("answer {index}: {e}"));
            assert_eq!(&buffer[..count], &[index as u8; SEGMENT], "answer {index}");
        }
    }
}

/// Datagrams that wait while the helper stands still go on together, and arrive as they were sent:
/// each alone, whole, and in order, there and back.
fn burst_of_single_datagrams(world: &mut World) {
    const ROUNDS: usize = 10;
    let helper = world.helper().start();
    let standing_still = |send: &dyn Fn()| {
        helper.signal(Signal::STOP);
        send();
        helper.signal(Signal::CONT);
    };
    for family in Family::BOTH {
        let server = udp(&world.elsewhere, family.elsewhere(), 7);
        let client = udp(&world.guest.net, family.guest(), 0);
        client.connect(server.local_addr().unwrap()).unwrap();
        client.send(b"first").unwrap();
        let mut buffer = [0; 65536];
        let (_, source) = server.recv_from(&mut buffer).expect("the first datagram");

        // Rows of one size with a shorter end, empty ones, and a large one.
        let lengths = [1200, 1200, 1200, 700, 1200, 0, 1200, 33, 33, 9000, 33].repeat(4);
        let burst: Vec<Vec<u8>> = lengths
            .iter()
            .enumerate()
            .map(|(index, length)| vec![index as u8; *length])
            .collect();
        for round in 0..ROUNDS {
            standing_still(&|| {
                for datagram in &burst {
                    client.send(datagram).expect("send to the server");
                }
            });
            for datagram in &burst {
                let count = server.recv(&mut buffer).expect("a datagram for the server");
                assert_same(&buffer[..count], datagram, round);
            }
            standing_still(&|| {
                for datagram in &burst {
                    server.send_to(datagram, source).expect("answer");
                }
            });
            for datagram in &burst {
                let count = client.recv(&mut buffer).expect("a datagram for the client");
                assert_same(&buffer[..count], datagram, round);
            }
        }
    }
}

fn assert_same(found: &[u8], sent: &[u8], round: usize) {
    let head = |datagram: &[u8]| (datagram.len(), datagram.first().copied());
    assert_eq!(head(found), head(sent), "round {round}");
    assert!(found == sent, "round {round}");
}

/// The remote's ICMP port unreachable reaches the guest's socket.
fn port_unreachable(world: &mut World) {
    let _helper = world.helper().start();
    for family in Family::BOTH {
        let client = udp(&world.guest.net, family.guest(), 0);
        client.connect((family.elsewhere(), 9)).unwrap();
        client.send(b"anybody?").unwrap();
        let error = client.recv(&mut [0; 8]).expect_err("nobody is there");
        assert_eq!(
            errno(&error),
            Some(Errno::ECONNREFUSED),
            "{family:?}: {error}"
        );
    }
}

/// UDP may lose a datagram, so it is sent again each second, a few times.
fn assert_datagram_echo(client: &UdpSocket, length: usize) {
    let message: Vec<u8> = (0..length)
        .map(|index| (index * 31 + length) as u8)
        .collect();
    let mut buffer = vec![0; 65536];
    client
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        client.send(&message).expect("send a datagram");
        match client.recv(&mut buffer) {
            Ok(count) => {
                assert!(
                    buffer[..count] == message,
                    "{count} bytes came back for {length}"
                );
                return;
            }
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline =>
            {
                continue;
            }
            Err(error) => panic!("a datagram of {length} bytes: {error}"),
        }
    }
}
