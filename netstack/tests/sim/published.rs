//! Clients of published ports: the connection to the guest, who the client appears to be, and what
//! becomes of it when the guest refuses or says nothing.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use netstack::core::datagram::Visit;
use netstack::core::flow::{Cause, FlowId};
use netstack::core::{CoreConfig, Duration, MAX_CLASHES};
use smoltcp::socket::tcp::State;
use testbed::core_config;

use crate::packet::{ACK, Datagram, FIN, RST, SYN, Segment, unreachable};
use crate::peer::Peer;
use crate::world::{World, address, config_of, guest_address, visit};

const CLIENT: &str = "203.0.113.9:50123";

impl World {
    /// A client sends a datagram to the published port 53. Returns the mapping by which it reached
    /// the guest.
    fn client_sends(&mut self, client: &str, payload: &[u8]) -> FlowId {
        let (now, wire) = (self.now, &mut self.wire);
        self.core
            .handle_published_datagram(visit(address(client)), 53, payload, None, now, wire)
            .expect("a mapping")
    }

    /// The same, of a client that asks the host's end `asked`.
    fn client_asks(&mut self, client: &str, asked: &str) -> Option<FlowId> {
        let visit = Visit {
            client: address(client),
            asked: address(asked),
        };
        let (now, wire) = (self.now, &mut self.wire);
        self.core
            .handle_published_datagram(visit, 53, b"?", None, now, wire)
    }
}

/// The guest's end of a connection from `client` to its port 80, which has heard the SYN.
fn service(world: &mut World, client: &str) -> (Peer, Segment) {
    let mut service = Peer::new(client);
    service.guest.set_port(80);
    let syn = world.segment();
    service.rcv_nxt = syn.seq;
    assert_eq!(service.hear(&syn), SYN);
    (service, syn)
}

/// A client that asks two addresses of the host's, or two ports that lead to one service, has a
/// flow with each; the service tells them apart by the client's port.
#[test]
fn each_end_that_a_client_asks_answers_by_itself() {
    let mut world = World::default();
    let asked = ["198.51.100.1:53", "198.51.100.2:53", "198.51.100.1:54"];
    let mut sources = HashSet::new();
    let flows: HashSet<_> = asked
        .iter()
        .map(|asked| {
            let flow = world.client_asks(CLIENT, asked).expect("a mapping");
            let question = world.datagram();
            assert_eq!(question.source.ip(), address::<SocketAddr>(CLIENT).ip());
            assert!(sources.insert(question.source), "{question:?}");
            assert_eq!(world.client_asks(CLIENT, asked), Some(flow));
            assert_eq!(world.datagram().source, question.source);
            world.send_udp("10.0.2.100:53", &question.source.to_string(), b"!");
            let answer = world.sent();
            assert_eq!((answer.flow, answer.to), (flow, address(CLIENT)));
            flow
        })
        .collect();
    assert_eq!(flows.len(), 3);
    assert!(
        sources.contains(&address(CLIENT)),
        "its own port comes first"
    );
    // Once forgotten, it is the first again.
    world.wait(Duration::from_secs(301));
    assert_eq!(world.closed.len(), 3);
    world.client_asks(CLIENT, asked[1]).expect("a mapping");
    assert_eq!(world.datagram().source, address(CLIENT));
}

/// Clients on the host's loopback all appear as the gateway, with their own ports or others.
#[test]
fn clients_that_look_alike_are_told_apart() {
    let mut world = World::default();
    let clients = ["127.0.0.1:4000", "127.0.0.2:4000"];
    let [first, second] = clients.map(|client| {
        world
            .client_asks(client, "127.0.0.1:53")
            .expect("a mapping");
        world.datagram().source
    });
    assert_eq!(first.ip(), second.ip());
    assert_ne!(first, second);
    for (client, source) in clients.iter().zip([first, second]) {
        world.send_udp("10.0.2.100:53", &source.to_string(), b"!");
        assert_eq!(world.sent().to, address(client));
    }
}

#[test]
fn a_client_reaches_the_service_as_itself() {
    for (client, mss) in [(CLIENT, 1460), ("[2001:db8::9]:50123", 1440)] {
        let mut world = World::default();
        let flow = world.client_connects(client, 80).expect("accepted");
        let (mut service, syn) = service(&mut world, client);
        assert_eq!(syn.mss, Some(mss));
        world.send(service.syn());
        assert_eq!(service.hear(&world.segment()), ACK);
        world.host_sends(flow, b"GET /");
        let request = world.segment();
        service.hear(&request);
        assert_eq!(request.payload, b"GET /");
        world.send(service.data(b"200"));
        assert_eq!(world.host_reads(flow), b"200");
        world.send(service.fin());
        world.host_finishes(flow);
        for segment in world.segments() {
            service.hear(&segment);
        }
        world.send(service.ack());
        assert_eq!(world.ended(), (flow, Cause::Finished));
        assert_eq!(world.core.counters().connections, 1);
    }
}

#[test]
fn what_the_client_says_before_the_service_answers_waits() {
    let mut world = World::default();
    let flow = world.client_connects(CLIENT, 80).expect("accepted");
    let (mut service, _) = service(&mut world, CLIENT);
    world.host_sends(flow, b"early");
    world.host_finishes(flow);
    world.assert_quiet();
    world.send(service.syn());
    let mut heard = Vec::new();
    let mut flags = 0;
    for segment in world.segments() {
        flags |= service.hear(&segment);
        heard.extend(segment.payload);
    }
    assert_eq!(heard, b"early");
    assert_eq!(flags & FIN, FIN);
}

#[test]
fn a_service_that_is_not_there_resets_the_client() {
    let mut world = World::new(config_of(IpAddr::is_ipv4));
    let flow = world.client_connects(CLIENT, 80).expect("accepted");
    let (service, _) = service(&mut world, CLIENT);
    world.send(Segment {
        seq: 0,
        ..service.rst()
    });
    assert_eq!(world.ended(), (flow, Cause::ResetByGuest));
    world.wait(Duration::from_secs(60));
    world.assert_quiet();
}

/// A service that listens in one family only serves the clients of the other one too, as the
/// gateway's.
#[test]
fn a_refused_client_is_served_by_the_other_family() {
    for (client, other) in [
        ("[2001:db8::9]:50123", "10.0.2.2:50123"),
        (CLIENT, "[fd00::2]:50123"),
    ] {
        let mut world = World::default();
        let flow = world.client_connects(client, 80).expect("accepted");
        let (refusing, _) = service(&mut world, client);
        world.host_sends(flow, b"GET /");
        world.send(Segment {
            seq: 0,
            ..refusing.rst()
        });
        assert_eq!(world.closed, []);
        let (mut service, _) = service(&mut world, other);
        assert_eq!(service.guest.ip(), guest_address(service.remote));
        world.send(service.syn());
        let request = world.segment();
        service.hear(&request);
        assert_eq!(request.payload, b"GET /");
        world.send(service.data(b"200"));
        assert_eq!(world.host_reads(flow), b"200");
        // The first attempt has left nothing behind.
        world.send(refusing.ack());
        assert_eq!(world.segment().flags & RST, RST);
        world.send(service.rst());
        assert_eq!(world.ended(), (flow, Cause::ResetByGuest));
        assert_eq!(world.core.counters().connections, 1);
    }
}

#[test]
fn a_client_that_both_families_refuse_is_reset_and_no_third_attempt_made() {
    let mut world = World::default();
    let flow = world.client_connects("[2001:db8::9]:50123", 80);
    for client in ["[2001:db8::9]:50123", "10.0.2.2:50123"] {
        assert_eq!(world.closed, []);
        let (refusing, _) = service(&mut world, client);
        world.send(Segment {
            seq: 0,
            ..refusing.rst()
        });
    }
    assert_eq!(
        world.ended(),
        (flow.expect("accepted"), Cause::ResetByGuest)
    );
    world.wait(Duration::from_secs(60));
    world.assert_quiet();
    assert_eq!(world.states(), []);
}

/// Only a refusal of the SYN is one: a service that resets an open connection has served the
/// client.
#[test]
fn an_open_connection_that_is_reset_is_not_begun_again() {
    let mut world = World::default();
    let flow = world.client_connects(CLIENT, 80).expect("accepted");
    let (mut service, _) = service(&mut world, CLIENT);
    world.send(service.syn());
    service.hear(&world.segment());
    world.send(service.rst());
    assert_eq!(world.ended(), (flow, Cause::ResetByGuest));
    world.assert_quiet();
}

/// The other family's port may be taken by a client whom it is the own one of.
#[test]
fn refused_clients_that_clash_get_other_ports() {
    let mut world = World::default();
    world
        .client_connects("127.0.0.1:50123", 80)
        .expect("accepted");
    world.frames();
    world.client_connects("[::1]:50123", 80).expect("accepted");
    let (refusing, _) = service(&mut world, "[fd00::2]:50123");
    world.send(Segment {
        seq: 0,
        ..refusing.rst()
    });
    assert_eq!(world.segment().source, address("10.0.2.2:50124"));
}

/// A firewall of the guest refuses by ICMP; only what quotes our SYN counts.
#[test]
fn an_icmp_error_about_the_syn_refuses_too() {
    for (client, other) in [
        ("[2001:db8::9]:50123", "10.0.2.2:50123"),
        (CLIENT, "[fd00::2]:50123"),
    ] {
        let mut world = World::default();
        let flow = world.client_connects(client, 80).expect("accepted");
        let syn = world.segment();
        let forged = Segment {
            seq: syn.seq.wrapping_add(1),
            ..syn.clone()
        };
        world.send_frame(&unreachable(&forged.frame()));
        world.assert_quiet();
        world.send_frame(&unreachable(&syn.frame()));
        let again = world.segment();
        assert_eq!((again.flags, again.source), (SYN, address(other)));
        world.send_frame(&unreachable(&again.frame()));
        assert_eq!(world.ended(), (flow, Cause::ResetByGuest));
        world.assert_quiet();
    }
}

#[test]
fn a_datagram_that_is_refused_goes_to_the_other_family() {
    for (client, own, other) in [
        (
            "[2001:db8::9]:50123",
            "[2001:db8::9]:50123",
            "10.0.2.2:50123",
        ),
        (CLIENT, CLIENT, "[fd00::2]:50123"),
        ("127.0.0.1:50123", "10.0.2.2:50123", "[fd00::2]:50123"),
    ] {
        let mut world = World::default();
        let first = world.client_sends(client, b"query");
        let refused = world.datagram();
        assert_eq!(refused.source, address(own));
        world.send_frame(&unreachable(&refused.frame()));
        let again = world.datagram();
        assert_eq!(
            (again.source, &again.payload[..]),
            (address(other), &b"query"[..])
        );
        assert_eq!(again.destination.ip(), guest_address(again.source));
        let (detour, with) = world.shared.pop().expect("it has a socket");
        assert_eq!(with, first);

        let answer = Datagram {
            source: again.destination,
            destination: again.source,
            payload: b"answer".to_vec(),
        };
        world.send_frame(&answer.frame());
        let sent = world.sent();
        assert_eq!((sent.flow, sent.to), (detour, address(client)));
        // Later ones take the detour at once.
        assert_eq!(world.client_sends(client, b"another"), detour);
        assert_eq!(world.datagram().source, address(other));

        // The service has moved: the detour ends, and the way is looked for anew.
        world.send_frame(&unreachable(&again.frame()));
        assert_eq!(world.ended(), (detour, Cause::Finished));
        world.assert_quiet();
        assert_eq!(world.client_sends(client, b"once more"), first);
        assert_eq!(world.datagram().source, address(own));
    }
}

/// What the guest quotes in part cannot be sent again, and where it lacks the other family there is
/// no detour.
#[test]
fn a_datagram_that_cannot_be_sent_again_is_lost() {
    let mut world = World::default();
    world.client_sends(CLIENT, &[7; 2000]);
    let refused = world.datagram();
    let frame = refused.frame();
    // As much as Linux quotes of IPv4.
    world.send_frame(&unreachable(&frame[..10 + 14 + 548]));
    world.assert_quiet();
    world.client_sends(CLIENT, b"next");
    assert_eq!(world.datagram().source, address("[fd00::2]:50123"));

    let mut world = World::new(config_of(IpAddr::is_ipv4));
    world.client_sends(CLIENT, b"query");
    let refused = world.datagram();
    world.send_frame(&unreachable(&refused.frame()));
    world.assert_quiet();
    assert_eq!(world.core.mappings().count(), 1);
}

#[test]
fn a_reset_that_does_not_acknowledge_the_syn_is_ignored() {
    let mut world = World::default();
    world.client_connects(CLIENT, 80).expect("accepted");
    let (mut service, _) = service(&mut world, CLIENT);
    world.send(Segment {
        ack: service.rcv_nxt + 1,
        ..service.rst()
    });
    assert_eq!(world.states(), [State::SynSent]);
    world.send(service.syn());
    assert_eq!(service.hear(&world.segment()), ACK);
}

#[test]
fn a_silent_guest_ends_the_client_after_thirty_seconds() {
    let mut world = World::default();
    let flow = world.client_connects(CLIENT, 80).expect("accepted");
    world.wait(Duration::from_millis(29_900));
    let syns = world.segments();
    assert!((4..=7).contains(&syns.len()), "{} SYNs", syns.len());
    assert!(syns.iter().all(|syn| syn.flags == SYN && *syn == syns[0]));
    assert_eq!(world.closed, []);
    world.wait(Duration::from_millis(200));
    assert_eq!(world.ended(), (flow, Cause::GuestSilent));
    world.frames();
    world.wait(Duration::from_secs(60));
    world.assert_quiet();
    assert_eq!(world.states(), []);
}

#[test]
fn a_client_that_resets_before_the_answer_resets_the_service() {
    let mut world = World::default();
    let flow = world.client_connects(CLIENT, 80).expect("accepted");
    let (mut service, _) = service(&mut world, CLIENT);
    world.host_resets(flow);
    if world.closed.is_empty() {
        world.send(service.syn());
    }
    let rst = world.segments().pop().expect("an answer");
    assert_eq!(rst.flags & RST, RST);
    assert_eq!(world.ended(), (flow, Cause::ResetByHost));
}

#[test]
fn both_may_open_at_once() {
    let mut world = World::default();
    let flow = world.client_connects(CLIENT, 80).expect("accepted");
    let (mut service, syn) = service(&mut world, CLIENT);
    // RFC 9293 3.5, figure 7: the guest's own SYN crosses ours.
    service.rcv_nxt = 0;
    world.send(service.syn());
    service.rcv_nxt = syn.seq + 1;
    let answer = world.segment();
    assert_eq!(answer.flags, SYN | ACK);
    assert_eq!((answer.seq, answer.ack), (syn.seq, service.snd_nxt));
    world.send(service.ack());
    world.send(service.data(b"hello"));
    assert_eq!(world.host_reads(flow), b"hello");
}

#[test]
fn clients_that_would_mislead_the_guest_appear_as_the_gateway() {
    for (client, appears) in [
        ("127.0.0.1:50123", "10.0.2.2:50123"),
        ("10.0.2.100:50123", "10.0.2.2:50123"),
        ("10.0.2.77:50123", "10.0.2.2:50123"),
        ("[::1]:50123", "[fd00::2]:50123"),
        ("[fe80::5]:50123", "[fd00::2]:50123"),
        ("192.168.1.5:50123", "192.168.1.5:50123"),
    ] {
        let mut world = World::default();
        world.client_connects(client, 80).expect("accepted");
        let appears: SocketAddr = address(appears);
        let syn = world.segment();
        assert_eq!(syn.source, appears, "{client}");
        assert_eq!(syn.destination.ip(), guest_address(appears), "{client}");
    }
}

#[test]
fn a_guest_without_ipv6_sees_the_gateway() {
    let mut world = World::new(config_of(IpAddr::is_ipv4));
    world
        .client_connects("[2001:db8::9]:50123", 80)
        .expect("accepted");
    let syn = world.segment();
    assert_eq!(syn.source, address("10.0.2.2:50123"));
    assert_eq!(syn.destination, address("10.0.2.100:80"));
}

/// Many clients behind the gateway's address may have the same port.
#[test]
fn clients_that_clash_get_other_ports() {
    let mut world = World::default();
    let mut seen = HashSet::new();
    for client in [
        "127.0.0.1:65534",
        "127.0.0.2:65534",
        "10.0.2.9:65534",
        "127.0.0.1:65535",
        "127.0.0.3:65535",
    ] {
        world.client_connects(client, 80).expect("accepted");
        let syn = world.segment();
        assert_eq!(syn.source.ip(), address::<IpAddr>("10.0.2.2"));
        assert!(syn.source.port() >= 1024);
        assert!(seen.insert(syn.source), "{} twice", syn.source);
    }
    // Another service is another tuple.
    world
        .client_connects("127.0.0.1:65534", 81)
        .expect("accepted");
    assert_eq!(world.segment().source, address("10.0.2.2:65534"));
}

/// Another port is looked for in bounded time: past the privileged ones, around the end, and then
/// no more.
#[test]
fn when_many_ports_clash_the_client_is_turned_away() {
    for own in [500, 65_000] {
        let mut world = World::default();
        let client = SocketAddr::new(address("127.0.0.1"), own);
        let accept = |world: &mut World| world.core.handle_accepted(client, 80, world.now);
        for _ in 0..MAX_CLASHES {
            assert!(accept(&mut world).is_some());
        }
        assert!(accept(&mut world).is_none());
        assert_eq!(world.core.counters().out_of_ports, 1);
        assert_eq!(world.core.limit_reached(), 1);
        let ports = world.core.tcp_flows().filter_map(|(tuple, _)| tuple.remote);
        let ports: HashSet<u16> = ports.map(|remote| remote.port()).collect();
        assert_eq!(ports.len(), MAX_CLASHES);
    }
}

#[test]
fn a_guest_that_was_never_heard_of_cannot_be_reached_yet() {
    let mut world = World::new(CoreConfig {
        guest_mac: None,
        ..core_config()
    });
    assert_eq!(world.client_connects(CLIENT, 80), None);
    let mut guest = Peer::new("198.51.100.7:443");
    world.send(guest.syn());
    assert!(world.client_connects(CLIENT, 80).is_some());
}

#[test]
fn ports_that_no_client_has_are_turned_away() {
    let mut world = World::default();
    assert_eq!(world.client_connects("203.0.113.9:0", 80), None);
    assert_eq!(world.client_connects(CLIENT, 0), None);
    assert_eq!(world.states(), []);
}
