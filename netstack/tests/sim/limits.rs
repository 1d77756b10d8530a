//! More of something than there may be: each kind of flow has a share of its own, within which the
//! senior one makes way; open connections stay.

use netstack::core::flow::{Cause, FlowId};
use netstack::core::{Action, CoreConfig, DialError, Duration, Limits, Share};
use smoltcp::socket::tcp::State;
use testbed::core_config;

use crate::packet::{ACK, RST, SYN, echo};
use crate::peer::Peer;
use crate::world::{World, visit};

const REMOTE: &str = "198.51.100.7:443";
const CLIENT: &str = "203.0.113.9:50123";

fn limited(change: impl FnOnce(&mut Limits)) -> World {
    let mut limits = Limits::share_out(100);
    change(&mut limits);
    World::new(CoreConfig {
        limits,
        ..core_config()
    })
}

fn peer(port: u16) -> Peer {
    let mut peer = Peer::new(REMOTE);
    peer.guest.set_port(port);
    peer
}

/// The guest dials from `port`, hears the answer and says nothing more.
fn half_open(world: &mut World, port: u16) -> (FlowId, Peer) {
    let mut peer = peer(port);
    let (flow, _) = peer.dial(world, Default::default());
    (flow, peer)
}

#[test]
fn a_flood_of_datagrams_leaves_room_for_everything_else() {
    let mut world = limited(|_| {});
    let Limits {
        udp, echo: pings, ..
    } = *world.core.limits();
    let mut pinged = 0;
    for port in 1024..2224 {
        world.send_udp(&format!("10.0.2.100:{port}"), REMOTE, b"x");
        world.sent();
        world.send_frame(&echo("10.0.2.100", "198.51.100.7", port, 1, b"x"));
        pinged += usize::from(world.sent().echo.is_some());
    }
    assert_eq!(pinged, 1200, "each newcomer gets in");
    let count = |world: &World, share| world.core.usage(share).count;
    assert_eq!(count(&world, Share::Udp), udp);
    assert_eq!(count(&world, Share::Echo), pings);
    assert_eq!(world.closed.len(), 2400 - udp - pings);
    assert_eq!(world.core.limit_reached() as usize, 2400 - udp - pings);
    world.closed.clear();

    let mut guest = peer(40_000);
    let flow = guest.open(&mut world);
    world.send(guest.data(b"out"));
    assert_eq!(world.host_reads(flow), b"out");
    assert!(world.client_connects(CLIENT, 80).is_some());
    assert_eq!(world.closed, []);
}

/// Clients of a published UDP port hold no descriptor, and however many they are, the guest's own
/// conversations go on.
#[test]
fn clients_of_a_published_port_do_not_end_the_guests_own_mappings() {
    let mut world = limited(|limits| limits.published_udp = 10);
    world.send_udp("10.0.2.100:5000", REMOTE, b"mine");
    let mine = world.sent().flow;
    for port in 1..=100 {
        let client = format!("203.0.113.9:{port}").parse().unwrap();
        let (now, wire) = (world.now, &mut world.wire);
        let flow = world
            .core
            .handle_published_datagram(visit(client), 53, b"?", None, now, wire);
        assert!(flow.is_some());
    }
    world.turn();
    assert_eq!(world.core.usage(Share::PublishedUdp).count, 10);
    assert!(world.closed.iter().all(|(flow, _)| *flow != mine));
}

/// SYNs that come faster than they can be dialled for wait, and the oldest are given up. They hold
/// nothing.
#[test]
fn syns_wait_for_their_turn() {
    let mut world = limited(|limits| limits.waiting = 20);
    let mut asked = Vec::new();
    for port in 2000..2030 {
        let (frame, now) = (peer(port).syn().frame(), world.now);
        match world.core.handle_frame(&frame, now, &mut world.wire) {
            Some(Action::Dial { flow, .. }) => asked.push(flow),
            other => panic!("{other:?}"),
        }
    }
    world.turn();
    assert_eq!(world.core.usage(Share::Waiting).count, 20);
    let gone: Vec<_> = asked[..10]
        .iter()
        .map(|flow| (*flow, Cause::Cancelled))
        .collect();
    assert_eq!(std::mem::take(&mut world.closed), gone);
    world.send(peer(2029).rst());
    let dialled = |world: &mut World, nth: usize| world.core.begin_dial(asked[nth], world.now);
    assert!(!dialled(&mut world, 9), "given up");
    assert!(!dialled(&mut world, 29), "reset");
    let most = world.core.limits().dials;
    assert!((10..29).all(|nth| dialled(&mut world, nth)));
    let count = |world: &World, share| world.core.usage(share).count;
    assert_eq!(count(&world, Share::Waiting), 0);
    assert_eq!(count(&world, Share::Dials), most);
}

/// A dial, or an answer to the guest, is not given up for the next SYN at once, or nobody would
/// ever be answered.
#[test]
fn dials_wait_while_those_before_have_not_had_time() {
    let mut world = limited(|limits| (limits.dials, limits.half_open) = (3, 2));
    assert!(world.core.may_dial(world.now));
    let (_, first) = half_open(&mut world, 2000);
    half_open(&mut world, 2001);
    assert!(!world.core.may_dial(world.now));
    // One that answers makes room at once.
    world.send(first.ack());
    assert!(world.core.may_dial(world.now));
    half_open(&mut world, 2002);
    assert!(!world.core.may_dial(world.now));
    world.wait(Duration::from_millis(200));
    assert!(world.core.may_dial(world.now));

    let mut world = limited(|limits| limits.dials = 3);
    for port in 2000..2003 {
        assert!(world.core.may_dial(world.now));
        world.send(peer(port).syn());
    }
    assert!(!world.core.may_dial(world.now));
    world.wait(Duration::from_millis(200));
    assert!(world.core.may_dial(world.now));
}

/// Clients of a published port that come faster than the guest answers.
#[test]
fn clients_wait_while_those_before_have_not_had_time() {
    let mut world = limited(|limits| limits.half_open = 2);
    for port in [4000, 4001] {
        assert!(world.core.may_accept(world.now));
        let client = format!("203.0.113.9:{port}");
        world.client_connects(&client, 80).expect("accepted");
    }
    assert!(!world.core.may_accept(world.now));
    assert_eq!(std::mem::take(&mut world.closed), []);
    world.wait(Duration::from_millis(200));
    assert!(world.core.may_accept(world.now));
}

/// A SYN flood to a port that is open: the oldest of those whose handshake was never finished go.
#[test]
fn half_open_connections_make_way_for_others() {
    for most in [1, 8] {
        let mut world = limited(|limits| limits.half_open = most);
        let mut first = peer(1000);
        let open = first.open(&mut world);
        let mut flows = Vec::new();
        for port in 2000..2100 {
            flows.push(half_open(&mut world, port).0);
            assert!(world.core.usage(Share::HalfOpen).count <= most);
        }
        let expected: Vec<_> = flows[..100 - most]
            .iter()
            .map(|flow| (*flow, Cause::GuestSilent))
            .collect();
        assert_eq!(std::mem::take(&mut world.closed), expected);
        // One that answers at once gets through, and what is open stays.
        let mut another = peer(3000);
        let flow = another.open(&mut world);
        world.send(another.data(b"new"));
        assert_eq!(world.host_reads(flow), b"new");
        world.send(first.data(b"old"));
        assert_eq!(world.host_reads(open), b"old");
        assert_eq!(world.core.stream_usage().count, 2);
    }
}

#[test]
fn one_that_had_to_go_is_reset_when_it_answers_after_all() {
    let mut world = limited(|limits| limits.half_open = 1);
    let (_, late) = half_open(&mut world, 2000);
    half_open(&mut world, 2001);
    world.send(late.ack());
    assert_eq!(world.segment().flags & RST, RST);
}

#[test]
fn handshakes_that_were_finished_are_no_longer_half_open() {
    let mut world = limited(|limits| limits.half_open = 2);
    for port in 2000..2020 {
        peer(port).open(&mut world);
    }
    assert_eq!(world.closed, []);
    assert_eq!(world.core.usage(Share::HalfOpen).count, 0);
    assert_eq!(world.core.stream_usage().count, 20);
}

/// A guest that answers no SYN of a published port keeps no more clients waiting than that.
#[test]
fn clients_that_the_guest_does_not_answer_make_way_too() {
    let mut world = limited(|limits| limits.half_open = 3);
    let clients: Vec<_> = (0..5)
        .map(|port| world.client_connects(&format!("203.0.113.9:{}", 5000 + port), 80))
        .collect();
    let gone = clients[..2]
        .iter()
        .map(|flow| (flow.unwrap(), Cause::GuestSilent));
    assert_eq!(world.closed, gone.collect::<Vec<_>>());
    assert_eq!(world.states(), [State::SynSent; 3]);
}

#[test]
fn open_connections_stay_and_one_more_has_to_wait() {
    let mut world = limited(|limits| limits.streams = 3);
    let mut peers: Vec<_> = (2000..2003).map(peer).collect();
    let flows: Vec<_> = peers.iter_mut().map(|peer| peer.open(&mut world)).collect();
    let mut next = peer(3000);
    let syn = next.syn();
    world.send(syn.clone());
    assert_eq!(world.dials, []);
    world.assert_quiet();
    assert_eq!(world.client_connects(CLIENT, 80), None);
    assert_eq!(world.core.stream_usage().reached, 2);
    assert_eq!(world.core.limit_reached(), 2);
    for (peer, flow) in peers.iter_mut().zip(&flows) {
        world.send(peer.data(b"still here"));
        assert_eq!(world.host_reads(*flow), b"still here");
    }
    world.send(peers[0].rst());
    assert_eq!(world.ended(), (flows[0], Cause::ResetByGuest));
    world.send(syn);
    let (flow, _) = world.dialled();
    world.dial_ends(flow, Ok(()));
    assert_eq!(next.hear(&world.segment()), SYN | ACK);
}

/// Each way for a flow to end gives its place back.
#[test]
fn places_come_back() {
    let mut world = limited(|_| {});
    for round in 0..50 {
        let mut closing = peer(2000 + round);
        let flow = closing.open(&mut world);
        world.send(closing.fin());
        world.host_finishes(flow);
        for segment in world.segments() {
            closing.hear(&segment);
        }
        world.send(closing.ack());
        let mut refused = peer(3000 + round);
        world.send(refused.syn());
        let (flow, _) = world.dialled();
        world.dial_ends(flow, Err(DialError::Refused));
        world.frames();
        let (_, reset) = half_open(&mut world, 4000 + round);
        world.send(reset.rst());
        world.frames();
    }
    world.wait(Duration::from_secs(100));
    assert_eq!(world.core.limit_reached(), 0);
    assert_eq!(world.core.stream_usage().count, 0);
    for share in Share::ALL {
        assert_eq!(world.core.usage(share).count, 0, "{share:?}");
    }
}

/// The descriptors ran out before the shares did.
#[test]
fn who_needs_a_descriptor_gets_that_of_the_senior_mapping() {
    let mut world = World::default();
    let mut flows = Vec::new();
    for port in 1024..1034 {
        world.send_udp(&format!("10.0.2.100:{port}"), REMOTE, b"x");
        flows.push(world.sent().flow);
    }
    // All but the newest are in use, but that one is who asks.
    world.wait(Duration::from_secs(1));
    for port in 1024..1033 {
        world.send_udp(&format!("10.0.2.100:{port}"), REMOTE, b"x");
        world.sent();
    }
    assert!(world.core.yield_descriptor(Some(flows[9])));
    world.turn();
    assert_eq!(world.ended(), (flows[0], Cause::Finished));
    for _ in 1..9 {
        assert!(world.core.yield_descriptor(None));
    }
    assert!(!world.core.yield_descriptor(Some(flows[9])), "nobody else");
    world.turn();
    assert_eq!(world.core.mappings().count(), 1);
    world.closed.clear();

    let (half_open, _) = half_open(&mut world, 2000);
    world.send(peer(2001).syn());
    let (dial, _) = world.dialled();
    let mut open = peer(2002);
    let open = open.open(&mut world);
    world.core.yield_descriptor(Some(open));
    world.turn();
    assert_eq!(world.ended(), (flows[9], Cause::Finished));
    assert!(!world.core.yield_descriptor(None), "a client has to wait");
    for _ in 0..2 {
        assert!(world.core.yield_descriptor(Some(open)));
    }
    world.turn();
    let ended = [(half_open, Cause::GuestSilent), (dial, Cause::Cancelled)];
    assert_eq!(world.closed, ended);
    assert!(!world.core.yield_descriptor(Some(open)));
}
