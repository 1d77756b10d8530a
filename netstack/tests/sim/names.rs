//! Names that the engine hands over: the forwarder answers for them itself, to whom may see them.

use netstack::core::CoreConfig;
use netstack::core::addresses::{Addresses, Prefix};
use netstack::core::dns::HostNames;
use netstack::core::egress::Egress;
use netstack::core::policy::Policy;
use testbed::core_config;

use crate::peer::Peer;
use crate::world::{World, address};

const FORWARDER: &str = "10.0.2.3:53";

/// A question for the IPv4 address of `name`, a single label.
fn question(name: &str) -> Vec<u8> {
    let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() as u8];
    question.extend(name.as_bytes());
    question.extend([0, 0, 1, 0, 1]);
    question
}

fn world(names: &[&str]) -> World {
    world_with(names, |_| {})
}

fn world_with(names: &[&str], change: impl FnOnce(&mut CoreConfig)) -> World {
    let mut config = core_config();
    config.addresses = Addresses {
        behind: vec![Prefix::around(address("10.89.0.0"), 24)],
        ..config.addresses
    };
    change(&mut config);
    let mut world = World::new(config);
    let names = names.iter().map(|name| name.parse().expect("a name"));
    world
        .core
        .set_names(HostNames::new(names).expect("few names"));
    world.core.set_resolvers(vec![address("192.0.2.53:53")]);
    world
}

#[test]
fn the_forwarder_answers_for_names_and_asks_for_all_else() {
    let mut world = world(&["db=10.89.0.5@10.89.0.0/24"]);
    world.send_udp("10.89.0.7:4000", FORWARDER, &question("db"));
    let answer = world.datagram();
    assert_eq!(answer.source, address(FORWARDER));
    assert_eq!(answer.destination, address("10.89.0.7:4000"));
    assert!(answer.payload.ends_with(&[10, 89, 0, 5]));
    assert!(world.datagrams.is_empty());
    assert_eq!(world.core.counters().names_answered, 1);
    assert_eq!(world.core.mappings().count(), 0, "nothing is kept");

    for (asker, name) in [("10.89.0.7:4000", "other"), ("10.0.2.100:4000", "db")] {
        world.send_udp(asker, FORWARDER, &question(name));
        assert_eq!(world.sent().to, address("192.0.2.53:53"));
        world.assert_quiet();
    }
    // A port that has asked the resolver is answered by names all the same.
    world.send_udp("10.89.0.7:4000", FORWARDER, &question("db"));
    assert!(world.datagrams.is_empty());
    world.datagram();

    assert!(world.core.remove_name(1));
    world.send_udp("10.89.0.7:4000", FORWARDER, &question("db"));
    assert_eq!(world.sent().payload, question("db"));
}

#[test]
fn names_need_no_resolver() {
    let mut world = world(&["db=10.89.0.5"]);
    world.core.set_resolvers(Vec::new());
    world.send_udp("10.0.2.100:4000", FORWARDER, &question("db"));
    world.datagram();
}

#[test]
fn a_connection_to_the_forwarder_knows_the_names() {
    let mut world = world(&["db=10.89.0.5"]);
    world.send(Peer::new(FORWARDER).syn());
    let (flow, to) = world.dialled();
    assert_eq!(to, address("192.0.2.53:53"));
    let queries = world.core.named_queries(flow).expect("names");
    assert_eq!(queries.asker, address::<std::net::IpAddr>("10.0.2.100"));
    let mut other = Peer::new("198.51.100.7:53");
    other.guest.set_port(50_000);
    world.send(other.syn());
    let (flow, _) = world.dialled();
    assert!(world.core.named_queries(flow).is_none());
}

#[test]
fn rules_and_other_ports_are_heeded() {
    let mut world = world_with(&["db=10.89.0.5"], |config| {
        config.policy = Policy {
            egress: Egress::new(vec!["deny:dns".parse().unwrap()]).unwrap(),
            ..Policy::default()
        };
    });
    world.send_udp("10.0.2.100:4000", FORWARDER, &question("db"));
    assert_eq!(world.core.counters().prohibited, 1);
    assert_eq!(world.core.counters().names_answered, 0);
    let mut world = self::world(&["db=10.89.0.5"]);
    world.send_udp("10.0.2.100:4000", "198.51.100.7:53", &question("db"));
    assert_eq!(world.sent().to, address("198.51.100.7:53"));
}
