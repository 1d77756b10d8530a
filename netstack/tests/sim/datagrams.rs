//! UDP and echo: which mapping a datagram belongs to, whom it lets in, how long it lives; the DNS
//! forwarder; errors that come back.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use netstack::core::flow::{Cause, FlowId};
use netstack::core::icmp::{DeliveryError, Unreachable};
use netstack::core::vnet::Segmentation;
use netstack::core::{CoreConfig, DialError, Duration, MAX_MAPPINGS};
use testbed::core_config;

use crate::packet::{ACK, Datagram, Icmp, Packet, RST, SYN, echo};
use crate::peer::Peer;
use crate::world::{World, address, config_with_gateway_as_host, visit};

const GUESTS: [&str; 2] = ["10.0.2.100:5000", "[fd00::100]:5000"];
const REMOTES: [&str; 2] = ["198.51.100.7:7000", "[2001:db8::7]:7000"];
const RESOLVERS: [&str; 2] = ["192.0.2.53:53", "192.0.2.54:53"];

fn datagram(source: &str, destination: &str, payload: &[u8]) -> Datagram {
    Datagram {
        source: address(source),
        destination: address(destination),
        payload: payload.to_vec(),
    }
}

impl World {
    /// The guest sends a datagram.
    pub fn send_udp(&mut self, source: &str, destination: &str, payload: &[u8]) {
        self.send_frame(&datagram(source, destination, payload).frame());
    }

    /// A datagram arrives on the flow's socket.
    fn receive(&mut self, flow: FlowId, from: &str, payload: &[u8]) {
        let (now, wire) = (self.now, &mut self.wire);
        self.core
            .handle_datagram(flow, address(from), payload, None, now, wire);
        self.turn();
    }

    /// The host hears that a datagram to `to` did not arrive.
    fn fail(&mut self, flow: FlowId, to: SocketAddr, why: Unreachable) {
        let error = DeliveryError::of_host(to, why);
        self.core.handle_datagram_error(flow, error, &mut self.wire);
    }

    pub fn icmp(&mut self) -> Icmp {
        match self.frame().packet {
            Packet::Icmp(icmp) => icmp,
            other => panic!("ICMP is expected, not {other:?}"),
        }
    }
}

#[test]
fn a_datagram_goes_out_and_the_answer_comes_back() {
    for (guest, remote) in GUESTS.into_iter().zip(REMOTES) {
        for length in [0, 1, 1472, 65_500] {
            let mut world = World::default();
            let payload = vec![7; length.min(1472)];
            world.send_udp(guest, remote, &payload);
            let sent = world.sent();
            assert_eq!((sent.to, sent.payload), (address(remote), payload));
            assert_eq!(sent.segment, None);
            let answer = vec![8; length.min(65_487)];
            world.receive(sent.flow, remote, &answer);
            assert_eq!(world.datagram(), datagram(remote, guest, &answer));
        }
    }
}

/// RFC 4787 REQ-1 and REQ-8: one mapping for all remotes, and only those are let in that were sent
/// to.
#[test]
fn one_port_is_one_mapping() {
    let mut world = World::default();
    world.send_udp(GUESTS[0], REMOTES[0], b"1");
    let first = world.sent();
    world.receive(first.flow, "203.0.113.1:7000", b"who are you?");
    world.assert_quiet();
    world.send_udp(GUESTS[0], "203.0.113.1:7001", b"2");
    let second = world.sent();
    assert_eq!(second.flow, first.flow);
    assert_eq!(second.to, address("203.0.113.1:7001"));
    world.receive(first.flow, "203.0.113.1:9999", b"another port");
    assert_eq!(world.datagram().source, address("203.0.113.1:9999"));
    world.send_udp("10.0.2.100:5001", REMOTES[0], b"3");
    assert_ne!(world.sent().flow, first.flow);
    assert_eq!(world.core.mappings().count(), 2);
}

#[test]
fn a_mapping_lives_five_minutes_after_its_last_use() {
    let mut world = World::default();
    world.send_udp(GUESTS[0], REMOTES[0], b"1");
    let flow = world.sent().flow;
    world.wait(Duration::from_secs(290));
    world.receive(flow, REMOTES[0], b"2");
    world.wait(Duration::from_secs(290));
    world.send_udp(GUESTS[0], REMOTES[0], b"3");
    assert_eq!(world.sent().flow, flow);
    world.wait(Duration::from_secs(299));
    assert_eq!(world.closed, []);
    world.wait(Duration::from_secs(2));
    assert_eq!(world.ended(), (flow, Cause::Finished));
    world.frames();
    // Late news of the socket are nobody's.
    world.receive(flow, REMOTES[0], b"4");
    world.assert_quiet();
    world.send_udp(GUESTS[0], REMOTES[0], b"5");
    assert_ne!(world.sent().flow, flow);
}

#[test]
fn the_mapping_that_was_not_used_for_longest_makes_way_and_is_counted() {
    let mut world = World::default();
    let mut flows = Vec::new();
    for index in 0..MAX_MAPPINGS {
        let guest = format!("10.0.2.100:{}", 1024 + index);
        world.send_udp(&guest, REMOTES[0], b"x");
        flows.push(world.sent().flow);
    }
    assert_eq!(world.core.limit_reached(), 0);
    world.wait(Duration::from_secs(1));
    world.send_udp("10.0.2.100:1024", REMOTES[0], b"still in use");
    assert_eq!(world.sent().flow, flows[0]);
    world.send_udp("10.0.2.100:60000", REMOTES[0], b"one more");
    world.sent();
    assert_eq!(world.core.limit_reached(), 1);
    assert_eq!(world.core.mappings().count(), MAX_MAPPINGS);
    let (ended, cause) = world.ended();
    assert_eq!(cause, Cause::Finished);
    assert_ne!(ended, flows[0], "the one that is in use stays");
}

#[test]
fn errors_come_back_with_the_ports_they_are_about() {
    let cases = [
        (Unreachable::Port, (3, 3), (1, 4), true),
        (Unreachable::Host, (3, 1), (1, 3), false),
        (Unreachable::TooBig { mtu: 1300 }, (3, 4), (2, 0), false),
    ];
    for (why, v4, v6, from_remote) in cases {
        for (index, expected) in [v4, v6].into_iter().enumerate() {
            let mut world = World::default();
            world.send_udp(GUESTS[index], REMOTES[index], b"anyone?");
            let sent = world.sent();
            world.fail(sent.flow, sent.to, why);
            let icmp = world.icmp();
            assert_eq!((icmp.message[0], icmp.message[1]), expected, "{why:?}");
            let remote: SocketAddr = address(REMOTES[index]);
            assert_eq!(icmp.source == remote.ip(), from_remote, "{why:?}");
            // The quote: an IP header, then source and destination port.
            let ip_header = if remote.is_ipv4() { 20 } else { 40 };
            let ports = &icmp.message[8 + ip_header..][..4];
            assert_eq!(ports, [0x13, 0x88, 0x1b, 0x58]);
            // Of a remote that the mapping never spoke to: nothing.
            let other = address("203.0.113.1:7000");
            world.fail(sent.flow, other, why);
            world.assert_quiet();
        }
    }
}

#[test]
fn the_forwarder_asks_the_next_resolver_when_a_question_is_repeated() {
    for (guest, forwarder) in [(GUESTS[0], "10.0.2.3:53"), (GUESTS[1], "[fd00::3]:53")] {
        let mut world = World::default();
        let resolvers = RESOLVERS.map(address::<SocketAddr>);
        world.core.set_resolvers(resolvers.to_vec());
        world.send_udp(guest, forwarder, b"\0\x01question");
        let sent = world.sent();
        assert_eq!(sent.to, resolvers[0]);
        world.receive(sent.flow, RESOLVERS[1], b"\0\x01too early");
        world.assert_quiet();
        world.send_udp(guest, forwarder, b"\0\x01question");
        assert_eq!(world.sent().to, resolvers[1]);
        for resolver in RESOLVERS {
            world.receive(sent.flow, resolver, b"\0\x01answer");
            let answer = world.datagram();
            assert_eq!(answer, datagram(forwarder, guest, b"\0\x01answer"));
        }
        world.send_udp(guest, forwarder, b"\0\x02another");
        assert_eq!(world.sent().to, resolvers[0]);
    }
}

#[test]
fn a_dead_resolver_gives_way_to_the_next() {
    let mut world = World::default();
    let resolvers = RESOLVERS.map(address::<SocketAddr>);
    world.core.set_resolvers(resolvers.to_vec());
    world.send_udp(GUESTS[0], "10.0.2.3:53", b"\0\x01question");
    let sent = world.sent();
    world.fail(sent.flow, sent.to, Unreachable::Port);
    world.frames();
    world.send_udp(GUESTS[0], "10.0.2.3:53", b"\0\x01question");
    assert_eq!(world.sent().to, resolvers[1]);
}

/// A resolver that does not serve TCP is still the first choice for UDP.
#[test]
fn a_resolver_that_refuses_connections_gives_way_to_the_next() {
    let mut world = World::default();
    let resolvers = RESOLVERS.map(address::<SocketAddr>);
    world.core.set_resolvers(resolvers.to_vec());
    let mut dial = |port: u16, result| {
        let mut guest = Peer::new("10.0.2.3:53");
        guest.guest.set_port(port);
        world.send(guest.syn());
        let (flow, to) = world.dialled();
        world.dial_ends(flow, result);
        world.frames();
        to
    };
    let unreachable = DialError::Unreachable(Unreachable::Host);
    assert_eq!(dial(2000, Err(DialError::Silent)), resolvers[0]);
    assert_eq!(dial(2001, Err(DialError::Refused)), resolvers[0]);
    assert_eq!(dial(2002, Err(unreachable)), resolvers[1]);
    assert_eq!(dial(2003, Ok(())), resolvers[0]);
    world.send_udp(GUESTS[0], "10.0.2.3:53", b"\0\x01question");
    assert_eq!(world.sent().to, resolvers[0]);
}

#[test]
fn without_resolvers_nothing_leaves() {
    let mut world = World::default();
    world.send_udp(GUESTS[0], "10.0.2.3:53", b"\0\x01question");
    assert!(world.datagrams.is_empty());
    let mut guest = Peer::new("10.0.2.3:53");
    world.send(guest.syn());
    assert_eq!(world.dials, []);
}

#[test]
fn the_forwarder_takes_tcp_too_and_nothing_else() {
    let mut world = World::default();
    world.core.set_resolvers(vec![address(RESOLVERS[0])]);
    let mut guest = Peer::new("10.0.2.3:53");
    world.send(guest.syn());
    let (flow, to) = world.dialled();
    assert_eq!(to, address(RESOLVERS[0]));
    world.dial_ends(flow, Ok(()));
    assert_eq!(guest.hear(&world.segment()), SYN | ACK);
    let mut other = Peer::new("10.0.2.3:80");
    world.send(other.syn());
    assert_eq!(world.segment().flags, RST | ACK);
    world.send_udp(GUESTS[0], "10.0.2.3:80", b"?");
    let icmp = world.icmp();
    assert_eq!((icmp.message[0], icmp.message[1]), (3, 3));
}

#[test]
fn host_loopback_answers_as_the_gateway_when_allowed() {
    for (guest, gateway, host) in [
        (GUESTS[0], "10.0.2.2:7000", "127.0.0.1:7000"),
        (GUESTS[1], "[fd00::2]:7000", "[::1]:7000"),
    ] {
        let mut world = World::new(config_with_gateway_as_host());
        world.send_udp(guest, gateway, b"ping");
        let sent = world.sent();
        assert_eq!(sent.to, address(host));
        world.receive(sent.flow, host, b"pong");
        assert_eq!(world.datagram(), datagram(gateway, guest, b"pong"));
        // Another service there is not the one that was asked.
        let other = format!("{}9", &host[..host.len() - 1]);
        world.receive(sent.flow, &other, b"pong");
        world.assert_quiet();
    }
}

#[test]
fn a_client_of_a_published_port_has_a_mapping_of_its_own() {
    let mut world = World::default();
    let deliver = |world: &mut World, client: &str, payload: &[u8]| {
        let (now, client) = (world.now, visit(address(client)));
        let wire = &mut world.wire;
        let core = &mut world.core;
        core.handle_published_datagram(client, 53, payload, None, now, wire)
    };
    let first = deliver(&mut world, "203.0.113.9:4000", b"q1").expect("a mapping");
    let service = "10.0.2.100:53";
    assert_eq!(
        world.datagram(),
        datagram("203.0.113.9:4000", service, b"q1")
    );
    assert_eq!(deliver(&mut world, "203.0.113.9:4000", b"q2"), Some(first));
    let second = deliver(&mut world, "127.0.0.1:4000", b"q3").expect("a mapping");
    assert_ne!(second, first);
    assert_eq!(
        world.frames().len(),
        2,
        "one for each, the last from the gateway"
    );
    world.send_udp(service, "203.0.113.9:4000", b"a1");
    let answer = world.sent();
    assert_eq!(
        (answer.flow, answer.to),
        (first, address("203.0.113.9:4000"))
    );
    world.send_udp(service, "10.0.2.2:4000", b"a2");
    let answer = world.sent();
    assert_eq!(
        (answer.flow, answer.to),
        (second, address("127.0.0.1:4000"))
    );
}

#[test]
fn super_frames_of_the_guest_leave_in_one_piece() {
    let mut world = World::default();
    let mut frame = datagram(GUESTS[0], REMOTES[0], &[1; 6000]).frame();
    // NEEDS_CSUM, UDP_L4, headers of 42 bytes, 1200 bytes per datagram, sum from byte 34 at 6.
    frame[0] = 1;
    frame[1] = 5;
    frame[2..4].copy_from_slice(&42u16.to_ne_bytes());
    frame[4..6].copy_from_slice(&1200u16.to_ne_bytes());
    frame[6..8].copy_from_slice(&34u16.to_ne_bytes());
    frame[8..10].copy_from_slice(&6u16.to_ne_bytes());
    world.send_frame(&frame);
    let sent = world.sent();
    assert_eq!(sent.payload.len(), 6000);
    assert_eq!(sent.segment, NonZeroU16::new(1200));
}

#[test]
fn many_datagrams_reach_the_guest_as_one_super_frame_if_its_kernel_cuts_them() {
    for (udp_segmentation, guest, remote) in [
        (true, GUESTS[0], REMOTES[0]),
        (true, GUESTS[1], REMOTES[1]),
        (false, GUESTS[0], REMOTES[0]),
    ] {
        let mut world = World::new(CoreConfig {
            udp_segmentation,
            ..core_config()
        });
        world.send_udp(guest, remote, b"go");
        let flow = world.sent().flow;
        let payload: Vec<u8> = (0..5000u16).map(|index| index as u8).collect();
        let size = NonZeroU16::new(1200);
        let (now, from) = (world.now, address(remote));
        world
            .core
            .handle_datagram(flow, from, &payload, size, now, &mut world.wire);
        let frames = world.frames();
        if udp_segmentation {
            let super_frame = frames[0].offload.super_frame.expect("cut by the guest");
            assert_eq!(super_frame.kind, Segmentation::Udp);
            assert_eq!(Some(super_frame.size), size);
            assert_eq!(frames.len(), 1);
        } else {
            assert_eq!(frames.len(), 5);
            assert!(frames.iter().all(|f| f.offload.super_frame.is_none()));
        }
        let arrived: Vec<u8> = frames
            .into_iter()
            .flat_map(|frame| match frame.packet {
                Packet::Udp(datagram) => datagram.payload,
                other => panic!("UDP is expected, not {other:?}"),
            })
            .collect();
        assert_eq!(arrived, payload);
    }
}

const ECHO_REPLIES: [u8; 2] = [0, 129];

#[test]
fn gateway_and_forwarder_answer_echo_themselves() {
    for (guest, ours, reply) in [
        ("10.0.2.100", "10.0.2.2", ECHO_REPLIES[0]),
        ("10.0.2.100", "10.0.2.3", ECHO_REPLIES[0]),
        ("fd00::100", "fd00::2", ECHO_REPLIES[1]),
        ("fd00::100", "fd00::3", ECHO_REPLIES[1]),
    ] {
        let mut world = World::default();
        world.send_frame(&echo(guest, ours, 7, 9, b"payload"));
        let icmp = world.icmp();
        assert_eq!(
            (icmp.source, icmp.destination),
            (address(ours), address(guest))
        );
        assert_eq!(icmp.message[0], reply);
        assert_eq!(icmp.message[4..], *b"\0\x07\0\x09payload");
        assert!(world.datagrams.is_empty());
    }
}

#[test]
fn echo_to_others_goes_through_a_socket_per_identifier() {
    for (index, (guest, remote)) in [("10.0.2.100", "198.51.100.7"), ("fd00::100", "2001:db8::7")]
        .into_iter()
        .enumerate()
    {
        let mut world = World::default();
        world.send_frame(&echo(guest, remote, 7, 1, b"one"));
        let first = world.sent();
        assert_eq!((first.to.ip(), first.echo), (address(remote), Some(1)));
        world.send_frame(&echo(guest, remote, 7, 2, b"two"));
        let second = world.sent();
        assert_eq!((second.flow, second.echo), (first.flow, Some(2)));
        world.send_frame(&echo(guest, remote, 8, 1, b"other"));
        let other = world.sent();
        assert_ne!(other.flow, first.flow);
        let (now, wire) = (world.now, &mut world.wire);
        world
            .core
            .handle_echo_reply(first.flow, 2, b"two", now, wire);
        let icmp = world.icmp();
        assert_eq!(icmp.source, address::<IpAddr>(remote));
        assert_eq!(icmp.message[0], ECHO_REPLIES[index]);
        assert_eq!(icmp.message[4..], *b"\0\x07\0\x02two");
        world.wait(Duration::from_secs(40));
        assert_eq!(world.core.mappings().count(), 0);
    }
}
