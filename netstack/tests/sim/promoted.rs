//! Flows that the kernel carries: what the core still says and hears of them. The kernel's own part
//! is in the namespace tests.

use netstack::core::flow::{Cause, FlowId};
use netstack::core::tcp::{Promote, Stragglers};
use netstack::core::{CoreConfig, Duration};
use testbed::core_config;

use crate::host::Host;
use crate::packet::{ACK, FIN, GATEWAY_MAC, GUEST_MAC, Packet, RST, SYN, Segment};
use crate::peer::Peer;
use crate::world::World;

const REMOTES: [&str; 2] = ["198.51.100.7:443", "[2001:db8::7]:443"];
const REMOTE: &str = REMOTES[0];
const CLIENT: &str = "203.0.113.9:50123";
/// Longer than it takes a flow to come to rest.
const REST: Duration = Duration::from_millis(2);
/// Longer than any frame is in flight.
const LATER: Duration = Duration::from_millis(150);

/// A world in which every flow is promoted as soon as it rests.
pub fn world(stragglers: Stragglers) -> World {
    let mut world = World::new(CoreConfig {
        promote: Promote::Always,
        ..core_config()
    });
    world.takes_over = Some(stragglers);
    world
}

/// A connection of the guest's that the kernel carries.
pub fn promoted(world: &mut World, remote: &str) -> (Peer, FlowId) {
    let mut guest = Peer::new(remote);
    let flow = guest.open(world);
    world.wait(REST);
    let told = world.segment();
    assert_eq!(guest.hear(&told), ACK);
    assert_eq!(world.core.counters().promotions, 1);
    (guest, flow)
}

/// All that the guest may still say on a connection.
fn segments_of(guest: &Peer) -> Vec<Segment> {
    let mut guest = guest.clone();
    vec![
        guest.ack(),
        guest.data(b"late"),
        guest.fin(),
        guest.rst(),
        // A process that dies resets without an ACK.
        Segment {
            flags: RST,
            ack: 0,
            ..guest.rst()
        },
    ]
}

#[test]
fn the_guest_is_told_once_how_far_the_engine_is_and_then_nothing() {
    for remote in REMOTES {
        let mut world = world(Stragglers::Return);
        let mut guest = Peer::new(remote);
        guest.open(&mut world);
        // Its acknowledgement is held back.
        world.send(guest.data(b"first words"));
        world.assert_quiet();
        world.wait(REST);
        let told = world.segment();
        assert_eq!(guest.hear(&told), ACK);
        let (_, snapshot) = &world.promotions[0];
        assert_eq!(snapshot.rcv_nxt, guest.snd_nxt);
        assert_eq!(snapshot.wire.snd_nxt, guest.rcv_nxt);
        assert!(snapshot.window_from_kernel() >= 64 * 1024);
        world.wait(Duration::from_secs(600));
        world.assert_quiet();
        assert_eq!(world.closed, []);
    }
}

#[test]
fn stragglers_go_back_to_the_guest_as_they_are() {
    for remote in REMOTES {
        let mut world = world(Stragglers::Return);
        let (guest, _) = promoted(&mut world, remote);
        for segment in segments_of(&guest) {
            world.send(segment.clone());
            let frame = world.frame();
            assert_eq!(frame.ethernet_source, GATEWAY_MAC);
            assert_eq!(frame.ethernet_destination, GUEST_MAC);
            assert_eq!(frame.packet, Packet::Tcp(segment));
        }
        assert_eq!(world.closed, []);
    }
}

#[test]
fn stragglers_that_nobody_would_know_again_are_dropped() {
    for remote in REMOTES {
        let mut world = world(Stragglers::Drop);
        let (guest, _) = promoted(&mut world, remote);
        for segment in segments_of(&guest) {
            world.send(segment);
            world.assert_quiet();
        }
        assert_eq!(world.closed, []);
    }
}

/// What arrives long after the hand-over was not in flight then: the way round the tap is broken.
#[test]
fn a_late_straggler_is_a_sign_that_nothing_diverts_it() {
    for stragglers in [Stragglers::Return, Stragglers::Drop] {
        let mut world = world(stragglers);
        let (guest, _) = promoted(&mut world, REMOTE);
        world.send(guest.ack());
        assert!(!world.core.take_stray_seen());
        world.wait(LATER);
        world.send(guest.ack());
        assert!(world.core.take_stray_seen());
        assert!(!world.core.take_stray_seen(), "it is told once");
    }
}

/// The gate diverts no SYN: written back it would come again for ever. One of another connection
/// tells that this one has nobody any more.
#[test]
fn a_syn_on_its_tuple_goes_nowhere() {
    let mut world = world(Stragglers::Return);
    let (guest, flow) = promoted(&mut world, REMOTE);
    world.send(Peer::new(REMOTE).syn());
    assert_eq!(world.core.poll_superseded(), None, "its own, repeated");
    for isn in [guest.snd_nxt, guest.snd_nxt + 1_000_000] {
        let mut again = Peer::new(REMOTE);
        again.snd_nxt = isn;
        world.send(again.syn());
        // And what answers a SYN of ours.
        world.send(Segment {
            flags: SYN | ACK,
            ..guest.ack()
        });
        assert_eq!(world.core.poll_superseded(), Some(flow));
        assert_eq!(world.core.poll_superseded(), None);
    }
    world.wait(LATER);
    world.send(Peer::new(REMOTE).syn());
    world.assert_quiet();
    assert!(!world.core.take_stray_seen());
    assert!(world.dials.is_empty());
    assert_eq!(world.closed, []);
}

/// Segments of other connections are none of its.
#[test]
fn its_neighbours_stay_in_the_engine() {
    let mut world = world(Stragglers::Return);
    let (_, first) = promoted(&mut world, REMOTE);
    world.takes_over = None;
    let mut other = Peer::new(REMOTE);
    other.guest.set_port(40_001);
    let second = other.open(&mut world);
    world.wait(REST);
    world.frames();
    world.send(other.data(b"hello"));
    assert_eq!(world.host_reads(second), b"hello");
    world.core.handle_relay_ended(first, Cause::Finished);
    world.host_sends(second, b"and back");
    let payloads = world.segments().into_iter().map(|segment| segment.payload);
    assert_eq!(payloads.collect::<Vec<_>>().concat(), b"and back");
}

#[test]
fn what_the_relay_moves_is_counted_both_ways() {
    let mut world = world(Stragglers::Return);
    let (_, flow) = promoted(&mut world, REMOTE);
    world.core.handle_relayed(flow, 700, 30);
    world.core.handle_relayed(flow, 0, 12);
    let counters = world.core.counters();
    assert_eq!(
        (counters.bytes_to_guest, counters.bytes_from_guest),
        (700, 42)
    );
    let (_, shown) = world.core.tcp_flows().next().expect("the flow");
    assert_eq!((shown.bytes_to_guest, shown.bytes_from_guest), (700, 42));
}

/// What the engine has acknowledged and the host has not taken goes along, and counts as buffered
/// until the relay has passed it on.
#[test]
fn bytes_that_the_host_has_not_taken_go_along() {
    const ROOM: usize = 1_000;
    let mut world = world(Stragglers::Return);
    let mut guest = Peer::new(REMOTE);
    let (flow, _) = guest.dial(&mut world, Host::with_capacity(ROOM));
    let bytes: Vec<u8> = (0..1_400).map(|at| at as u8).collect();
    world.send(guest.data(&bytes));
    world.wait(REST);
    let (_, snapshot) = &world.promotions[0];
    assert_eq!(snapshot.unread, bytes[ROOM..]);
    assert_eq!(snapshot.rcv_nxt, guest.snd_nxt);
    assert_eq!(world.core.memory().owed, 400);
    assert_eq!(world.core.counters().bytes_from_guest, ROOM as u64);
    world.core.handle_relayed(flow, 0, 399);
    assert_eq!(world.core.memory().owed, 400);
    world.core.handle_relayed(flow, 0, 1);
    assert_eq!(world.core.memory().owed, 0);
    assert_eq!(world.core.counters().bytes_from_guest, 1_400);
}

#[test]
fn a_relay_that_has_ended_leaves_nothing_behind() {
    for cause in [Cause::Finished, Cause::ResetByGuest, Cause::ResetByHost] {
        let mut world = world(Stragglers::Return);
        let (mut guest, flow) = promoted(&mut world, REMOTE);
        world.core.handle_relay_ended(flow, cause);
        world.turn();
        assert_eq!(world.ended(), (flow, cause));
        assert_eq!(world.core.flow_count(), 0);
        world.assert_quiet();

        // A guest that has missed the end is told, as for any connection that there is not.
        world.send(guest.data(b"still there?"));
        let answer = world.segment();
        assert_eq!(answer.flags & RST, RST, "{cause:?}");
        assert_eq!(answer.seq, guest.rcv_nxt, "{cause:?}");

        // The port is free for the same remote, by any number.
        let mut next = Peer::new(REMOTE);
        next.snd_nxt = guest.snd_nxt;
        let again = next.open(&mut world);
        assert_ne!(again, flow);
        // Late news of the first one are not the second one's.
        world.core.handle_relayed(flow, 5, 5);
        world.core.handle_relay_ended(flow, Cause::ResetByHost);
        world.turn();
        assert_eq!(world.closed, []);
    }
}

#[test]
fn a_published_connection_is_promoted_as_well() {
    let mut world = world(Stragglers::Return);
    let flow = world.client_connects(CLIENT, 80).expect("accepted");
    let mut service = Peer::new(CLIENT);
    service.guest.set_port(80);
    let syn = world.segment();
    service.rcv_nxt = syn.seq;
    service.hear(&syn);
    let answer = service.syn();
    world.send(answer.clone());
    assert_eq!(service.hear(&world.segment()), ACK);
    world.host_sends(flow, b"GET /");
    service.hear(&world.segment());
    world.send(service.ack());
    world.wait(REST);
    assert_eq!(service.hear(&world.segment()), ACK);
    assert_eq!(world.core.counters().promotions, 1);

    // Its service has not heard the ACK of its SYN, and repeats it.
    world.send(answer);
    world.assert_quiet();
    let late = service.data(b"200");
    world.send(late.clone());
    assert_eq!(world.segment(), late);
    // Another client is not mistaken for this one.
    let other = world
        .client_connects("203.0.113.9:50124", 80)
        .expect("accepted");
    assert_eq!(world.segment().flags, SYN);
    world.core.handle_relay_ended(flow, Cause::Finished);
    world.turn();
    assert_eq!(world.ended(), (flow, Cause::Finished));
    assert_ne!(other, flow);
    let fin = service.fin();
    world.send(fin);
    assert_eq!(world.segment().flags & (RST | FIN), RST);
}
