//! The user's own rules of where the guest may go, and what becomes of flows when they change.

use netstack::core::CoreConfig;
use netstack::core::egress::Egress;
use netstack::core::flow::{Cause, FlowId};
use netstack::core::policy::Policy;
use netstack::core::tcp::Stragglers;
use testbed::core_config;

use crate::packet::{RST, echo};
use crate::peer::Peer;
use crate::promoted;
use crate::world::World;

const REMOTE: &str = "198.51.100.7:443";
const OTHER: &str = "203.0.113.9:443";
const GUEST: &str = "10.0.2.100:5000";

fn rules(rules: &[&str]) -> Egress {
    let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    Egress::new(rules).unwrap()
}

fn world(egress: &[&str]) -> World {
    World::new(CoreConfig {
        policy: Policy {
            egress: rules(egress),
            ..Policy::default()
        },
        ..core_config()
    })
}

/// Returns what the kernel carries and may not carry any more.
fn set(world: &mut World, egress: &[&str]) -> Vec<FlowId> {
    let promoted = world
        .core
        .set_egress(rules(egress), world.now, &mut world.wire);
    world.turn();
    promoted
}

#[test]
fn what_is_denied_is_prohibited_by_every_protocol() {
    let mut world = world(&["allow:dns", "allow:203.0.113.0/24", "deny"]);
    world.send(Peer::new(REMOTE).syn());
    world.send_udp(GUEST, REMOTE, b"?");
    world.send_frame(&echo("10.0.2.100", "198.51.100.7", 1, 1, b"?"));
    assert!(world.dials.is_empty() && world.datagrams.is_empty());
    assert_eq!(world.core.counters().prohibited, 3);
    assert_eq!(world.frames().len(), 3, "the guest is told of each");

    world.send(Peer::new(OTHER).syn());
    world.dialled();
    world.send_udp(GUEST, OTHER, b"?");
    world.sent();
    world.send_frame(&echo("10.0.2.100", "203.0.113.9", 1, 1, b"?"));
    world.sent();
    assert_eq!(world.core.counters().prohibited, 3);
}

#[test]
fn new_rules_end_what_they_prohibit_and_nothing_else() {
    let mut world = world(&[]);
    let mut prohibited = Peer::new(REMOTE);
    let mut allowed = Peer::new(OTHER);
    allowed.guest.set_port(40_001);
    let first = prohibited.open(&mut world);
    let second = allowed.open(&mut world);
    let client = world.client_connects("198.51.100.7:50123", 80);
    let client = client.expect("a published port");
    world.segments();

    assert_eq!(set(&mut world, &["deny:198.51.100.0/24"]), []);
    let reset = world.segment();
    assert_eq!(prohibited.hear(&reset) & RST, RST);
    assert_eq!(world.ended(), (first, Cause::Prohibited));
    world.send(allowed.data(b"still here"));
    assert_eq!(world.host_reads(second), b"still here");
    let flows = world.core.tcp_flows().count();
    assert_eq!(flows, 2, "{client:?} is no matter of these rules");

    world.send(Peer::new(REMOTE).syn());
    assert!(world.dials.is_empty());
    set(&mut world, &[]);
    world.send(Peer::new(REMOTE).syn());
    world.dialled();
}

#[test]
fn a_dial_that_is_prohibited_meanwhile_ends() {
    let mut world = world(&[]);
    world.send(Peer::new(REMOTE).syn());
    let (flow, _) = world.dialled();
    set(&mut world, &["deny"]);
    assert_eq!(world.ended(), (flow, Cause::Prohibited));
}

/// One mapping serves all remotes, so it stays; but who may not be talked to is not let in.
#[test]
fn answers_that_were_asked_for_by_the_old_rules_are_not_let_in() {
    let mut world = world(&[]);
    world.send_udp(GUEST, REMOTE, b"?");
    let flow = world.sent().flow;
    world.send_udp(GUEST, OTHER, b"?");
    assert_eq!(world.sent().flow, flow);
    set(&mut world, &["deny:198.51.100.7"]);
    assert_eq!(world.closed, []);
    world.send_udp(GUEST, OTHER, b"?");
    assert_eq!(world.sent().flow, flow);
    world.frames();

    for (remote, frames) in [(REMOTE, 0), (OTHER, 1)] {
        let remote = remote.parse().unwrap();
        world
            .core
            .handle_datagram(flow, remote, b"!", None, world.now, &mut world.wire);
        assert_eq!(world.frames().len(), frames, "{remote}");
    }
}

#[test]
fn queries_and_pings_end_with_their_right() {
    let mut world = world(&[]);
    world.send_udp(GUEST, "10.0.2.3:53", b"query");
    world.send_frame(&echo("10.0.2.100", "198.51.100.7", 1, 1, b"?"));
    set(&mut world, &["deny"]);
    let mut causes = world.closed.drain(..).map(|(_, cause)| cause);
    assert_eq!(causes.next(), Some(Cause::Prohibited));
    assert_eq!(causes.next(), Some(Cause::Prohibited));
    assert_eq!(causes.next(), None);
}

#[test]
fn a_flow_of_the_kernels_is_left_to_the_driver() {
    let mut world = promoted::world(Stragglers::Return);
    let (_, flow) = promoted::promoted(&mut world, REMOTE);
    assert_eq!(set(&mut world, &["deny:198.51.100.7"]), [flow]);
    assert_eq!(world.closed, []);
    world.core.handle_relay_ended(flow, Cause::Prohibited);
    world.turn();
    assert_eq!(world.ended(), (flow, Cause::Prohibited));
}
