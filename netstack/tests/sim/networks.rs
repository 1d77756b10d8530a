//! Containers in a network behind the guest: they talk under their own addresses, nobody else's are
//! taken, and one who takes all he can get leaves something to the others.

use std::net::IpAddr;

use netstack::core::addresses::{Addresses, Prefix};
use netstack::core::flow::FlowId;
use netstack::core::{CoreConfig, Limits, Service, Share};
use testbed::core_config;

use crate::packet::{ACK, Packet, SYN, echo};
use crate::peer::Peer;
use crate::world::{World, address};

const REMOTES: [&str; 2] = ["198.51.100.7:443", "[2001:db8::7]:443"];
const CLIENTS: [&str; 2] = ["203.0.113.9:50123", "[2001:db8::9]:50123"];
const CONTAINERS: [&str; 2] = ["10.89.0.5", "fd89::5"];

fn config() -> CoreConfig {
    let config = core_config();
    let behind = CONTAINERS.map(address).into_iter().zip([24, 64]);
    CoreConfig {
        addresses: Addresses {
            behind: behind.map(|(ip, len)| Prefix::around(ip, len)).collect(),
            ..config.addresses
        },
        ..config
    }
}

fn limited(change: impl FnOnce(&mut Limits)) -> World {
    let mut limits = Limits::share_out(100);
    change(&mut limits);
    World::new(CoreConfig { limits, ..config() })
}

/// An end in a container that will talk to `remote`.
fn peer(container: &str, port: u16, remote: &str) -> Peer {
    let mut peer = Peer::new(remote);
    peer.guest = (address::<IpAddr>(container), port).into();
    peer
}

impl World {
    fn client_connects_to(&mut self, client: &str, container: &str) -> Option<FlowId> {
        let service = Service {
            address: Some(address(container)),
            port: 80,
        };
        let flow = self
            .core
            .handle_accepted(address(client), service, self.now)?;
        self.hosts.insert(flow, Default::default());
        self.turn();
        Some(flow)
    }
}

#[test]
fn a_container_talks_under_its_own_address() {
    for (container, remote) in CONTAINERS.into_iter().zip(REMOTES) {
        let mut world = World::new(config());
        let mut own = peer(container, 40_000, remote);
        let flow = own.open(&mut world);
        world.send(own.data(b"out"));
        assert_eq!(world.host_reads(flow), b"out");
        world.host_sends(flow, b"back");
        let heard = world.segments();
        let heard = heard.iter().filter(|segment| !segment.payload.is_empty());
        for segment in heard {
            assert_eq!(segment.payload, b"back");
            own.hear(segment);
        }

        let from = own.guest;
        world.send_udp(&from.to_string(), remote, b"?");
        let sent = world.sent();
        let (now, wire) = (world.now, &mut world.wire);
        world
            .core
            .handle_datagram(sent.flow, address(remote), b"!", None, now, wire);
        assert_eq!(world.datagram().destination, from);
        let to = own.remote.ip().to_string();
        world.send_frame(&echo(container, &to, 7, 1, b"?"));
        assert_eq!(world.sent().echo, Some(1));
    }
}

/// Not the guest's, not of its networks: it would be answered by way of the guest, which could be
/// made to send to others.
#[test]
fn a_foreign_source_is_dropped_and_counted() {
    let mut world = World::new(config());
    for (number, foreign) in (1..).zip(["10.89.1.5", "203.0.113.9", "127.0.0.1", "10.0.3.100"]) {
        world.send(peer(foreign, 40_000, REMOTES[0]).syn());
        world.send_udp(&format!("{foreign}:40000"), REMOTES[0], b"?");
        world.send_frame(&echo(foreign, "10.0.2.2", 7, 1, b"?"));
        world.assert_quiet();
        assert!(world.dials.is_empty() && world.datagrams.is_empty());
        assert_eq!(world.core.counters().frames_dropped, 3 * number);
    }
    Peer::new(REMOTES[0]).open(&mut world);
}

#[test]
fn an_address_of_the_network_is_not_looked_for_outside() {
    let mut world = World::new(config());
    world.send(peer("10.89.0.5", 40_000, "10.89.0.77:80").syn());
    assert!(world.dials.is_empty());
    let frame = world.frame();
    assert!(matches!(frame.packet, Packet::Icmp(_)), "{frame:?}");
}

#[test]
fn clients_reach_a_container_as_themselves() {
    for (container, client) in CONTAINERS.into_iter().zip(CLIENTS) {
        let mut world = World::new(config());
        world.client_connects_to(client, container).expect("taken");
        let mut service = peer(container, 80, client);
        assert_eq!(service.hear(&world.segment()), SYN);
        world.send(service.syn());
        assert_eq!(service.hear(&world.segment()), ACK);
    }
    // A client of the other family, one on the host, and one who has a container's address.
    for (container, client, appears) in [
        ("10.89.0.5", CLIENTS[1], "10.0.2.2"),
        ("fd89::5", CLIENTS[0], "fd00::2"),
        ("10.89.0.5", "127.0.0.1:5000", "10.0.2.2"),
        ("10.89.0.5", "10.89.0.6:5000", "10.0.2.2"),
    ] {
        let mut world = World::new(config());
        world.client_connects_to(client, container).expect("taken");
        let syn = world.segment();
        assert_eq!(syn.destination, (address::<IpAddr>(container), 80).into());
        assert_eq!(syn.source.ip(), address::<IpAddr>(appears), "{client}");
    }
}

/// The guest's own address of the other family is somebody else's.
#[test]
fn what_a_container_refuses_is_not_tried_elsewhere() {
    let mut world = World::new(config());
    let flow = world.client_connects_to(CLIENTS[0], "10.89.0.5").unwrap();
    let mut service = peer("10.89.0.5", 80, CLIENTS[0]);
    service.hear(&world.segment());
    world.send(service.rst());
    assert_eq!(world.segments().len(), 0);
    assert_eq!(world.ended().0, flow);
}

#[test]
fn a_flood_of_one_container_leaves_the_mappings_of_others() {
    let mut world = limited(|_| {});
    world.send_udp("10.89.0.6:5000", REMOTES[0], b"mine");
    world.send_udp("10.0.2.100:5000", REMOTES[0], b"the guest's");
    let kept: Vec<FlowId> = world.datagrams.drain(..).map(|sent| sent.flow).collect();
    for port in 1024..2048 {
        world.send_udp(&format!("10.89.0.5:{port}"), REMOTES[0], b"x");
    }
    let usage = world.core.usage(Share::Udp);
    assert_eq!(usage.count, usage.limit);
    assert!(world.closed.iter().all(|(flow, _)| !kept.contains(flow)));
}

#[test]
fn nobody_has_more_connections_than_are_left() {
    let mut world = limited(|limits| limits.streams = 12);
    let mut opened = |container: &str| {
        let ports = 40_000..40_020;
        let admits = |world: &mut World, port| {
            world.send(peer(container, port, REMOTES[0]).syn());
            world.dials.pop_front()
        };
        let mut count = 0;
        for port in ports {
            if let Some((flow, _)) = admits(&mut world, port) {
                world.dial_ends(flow, Ok(()));
                let mut own = peer(container, port, REMOTES[0]);
                own.syn();
                own.hear(&world.segment());
                world.send(own.ack());
                count += 1;
            }
        }
        count
    };
    assert_eq!([opened("10.89.0.5"), opened("10.89.0.6")], [6, 3]);
    assert_eq!(opened("10.0.2.100"), 2);
    assert!(world.core.limit_reached() > 0);
}
