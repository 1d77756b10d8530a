//! Hop limits: we are a router to the guest, and those behind us answer to whoever looks for them.

use std::net::{IpAddr, SocketAddr};

use netstack::core::icmp::{DeliveryError, Unreachable};

use crate::packet::{Datagram, Icmp, Segment, echo, limit_hops};
use crate::peer::Peer;
use crate::world::{World, address};

/// A guest and whom it may meet, and what says that the hop limit is used up.
const SIDES: [Side; 2] = [
    Side {
        guest: "10.0.2.100",
        gateway: "10.0.2.2",
        remote: "198.51.100.7",
        router: "203.0.113.1",
        metadata: "169.254.169.254",
        time_exceeded: [11, 0],
    },
    Side {
        guest: "fd00::100",
        gateway: "fd00::2",
        remote: "2001:db8::7",
        router: "2001:db8:1::1",
        metadata: "fd00:ec2::254",
        time_exceeded: [3, 0],
    },
];

struct Side {
    guest: &'static str,
    gateway: &'static str,
    remote: &'static str,
    router: &'static str,
    metadata: &'static str,
    time_exceeded: [u8; 2],
}

impl Side {
    fn datagram(&self, to: &str, hops: u8) -> Vec<u8> {
        let datagram = Datagram {
            source: SocketAddr::new(address(self.guest), 5000),
            destination: SocketAddr::new(address(to), 33434),
            payload: b"who is there?".to_vec(),
        };
        let mut frame = datagram.frame();
        limit_hops(&mut frame, hops);
        frame
    }

    fn echo(&self, to: &str, hops: u8) -> Vec<u8> {
        let mut frame = echo(self.guest, to, 7, 9, b"who is there?");
        limit_hops(&mut frame, hops);
        frame
    }

    /// What is quoted behind the IP header.
    fn quote<'i>(&self, icmp: &'i Icmp) -> &'i [u8] {
        let ip_header = if self.guest.contains(':') { 40 } else { 20 };
        &icmp.message[8 + ip_header..]
    }

    #[track_caller]
    fn assert_exceeded(&self, icmp: &Icmp, reporter: &str) {
        assert_eq!(icmp.message[..2], self.time_exceeded);
        assert_eq!(icmp.source, address::<IpAddr>(reporter));
        assert_eq!(icmp.destination, address::<IpAddr>(self.guest));
    }
}

const UDP_PORTS: [u8; 4] = [0x13, 0x88, 0x82, 0x9a];

#[test]
fn we_are_the_first_router() {
    for side in SIDES {
        for frame in [side.datagram(side.remote, 1), side.echo(side.remote, 1)] {
            let mut world = World::default();
            world.send_frame(&frame);
            let icmp = world.icmp();
            side.assert_exceeded(&icmp, side.gateway);
            assert!(world.datagrams.is_empty());
            assert_eq!(world.core.mappings().count(), 0);
        }
        let mut world = World::default();
        let mut guest = Peer::new(&SocketAddr::new(address(side.remote), 80).to_string());
        let mut syn = Segment {
            source: SocketAddr::new(address(side.guest), 5000),
            ..guest.syn()
        }
        .frame();
        limit_hops(&mut syn, 1);
        world.send_frame(&syn);
        side.assert_exceeded(&world.icmp(), side.gateway);
        assert_eq!(world.dials, []);
    }
}

#[test]
fn what_is_ours_needs_no_router() {
    for side in SIDES {
        let mut world = World::default();
        world.send_frame(&side.echo(side.gateway, 1));
        let reply = world.icmp();
        assert_eq!(reply.source, address::<IpAddr>(side.gateway));
        assert_ne!(reply.message[..2], side.time_exceeded);
        // Where the guest may not go at all, no router is on the way.
        let mut world = World::default();
        world.send_frame(&side.datagram(side.metadata, 1));
        assert_ne!(world.icmp().message[..2], side.time_exceeded);
        assert!(world.datagrams.is_empty());
    }
}

#[test]
fn few_hops_are_counted_down_and_many_are_the_hosts_own() {
    for side in SIDES {
        for (given, left) in [
            (2, Some(1)),
            (30, Some(29)),
            (33, Some(32)),
            (34, None),
            (64, None),
        ] {
            for frame in [
                side.datagram(side.remote, given),
                side.echo(side.remote, given),
            ] {
                let mut world = World::default();
                world.send_frame(&frame);
                let hops = world.sent().hops.map(|hops| hops.get());
                assert_eq!(hops, left, "a hop limit of {given}");
            }
        }
    }
}

#[test]
fn a_router_that_gives_a_packet_up_shows_as_itself() {
    for side in SIDES {
        let mut world = World::default();
        world.send_frame(&side.datagram(side.remote, 3));
        let sent = world.sent();
        let error = |reporter: &str| DeliveryError {
            to: sent.to,
            why: Unreachable::TimeExceeded,
            reporter: Some(address(reporter)),
        };
        // One with an address that means another host to the guest, or nobody, is the gateway.
        for (router, shown) in [
            (side.router, side.router),
            (side.metadata, side.gateway),
            (side.guest, side.gateway),
        ] {
            let error = error(router);
            world
                .core
                .handle_datagram_error(sent.flow, error, &mut world.wire);
            let icmp = world.icmp();
            side.assert_exceeded(&icmp, shown);
            assert_eq!(side.quote(&icmp)[..4], UDP_PORTS);
        }

        world.send_frame(&side.echo(side.remote, 3));
        let sent = world.sent();
        let error = error(side.router);
        world
            .core
            .handle_echo_error(sent.flow, 9, error, &mut world.wire);
        let icmp = world.icmp();
        side.assert_exceeded(&icmp, side.router);
        // The guest's own identifier, and the sequence number that was asked about.
        assert_eq!(side.quote(&icmp)[4..8], [0, 7, 0, 9]);
    }
}
