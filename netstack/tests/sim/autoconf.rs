//! A guest that configures itself, and what the core learns of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netstack::core::autoconf::Dhcpv6;
use netstack::core::{CoreConfig, Duration};
use testbed::clients::{
    LINK_LOCAL, core_config_for_clients, dhcpv4, dhcpv4_frame, dhcpv6, dhcpv6_frame,
    router_solicitation,
};

use crate::link_layer::{arp, solicitation};
use crate::packet::{Datagram, GATEWAY_MAC, GUEST_MAC, Icmp, Packet};
use crate::world::{World, address};

const DISCOVER: u8 = 1;
const REQUEST: u8 = 3;
const SOLICIT: u8 = 1;
const INFORMATION_REQUEST: u8 = 11;

/// The option that wants 10.0.2.15.
const WANTS_FIRST: [u8; 6] = [50, 4, 10, 0, 2, 15];

fn world() -> World {
    World::new(core_config_for_clients())
}

fn request(options: &[u8]) -> Vec<u8> {
    dhcpv4_frame(dhcpv4(GUEST_MAC, REQUEST, Ipv4Addr::UNSPECIFIED, options))
}

/// Where a client of a published port is led, which `client` says the family of.
fn published_at(world: &mut World, client: &str) -> SocketAddr {
    world.client_connects(client, 80).expect("accepted");
    world.segment().destination
}

#[test]
fn a_lease_is_where_ports_are_published_from_then_on() {
    let mut world = world();
    let nowhere = Ipv4Addr::UNSPECIFIED;
    world.send_frame(&dhcpv4_frame(dhcpv4(GUEST_MAC, DISCOVER, nowhere, &[])));
    let frame = world.frame();
    assert_eq!(frame.ethernet_destination, GUEST_MAC);
    let Packet::Udp(offer) = frame.packet else {
        panic!("UDP is expected");
    };
    assert_eq!(offer.source, address("10.0.2.2:67"));
    assert_eq!(offer.destination, address("255.255.255.255:68"));
    assert_eq!(offer.payload[16..20], [10, 0, 2, 15]);
    let before = published_at(&mut world, "198.51.100.7:443");
    assert_eq!(before, address("10.0.2.100:80"), "an offer is no lease");

    world.send_frame(&request(&WANTS_FIRST));
    assert_eq!(world.datagram().destination, address("255.255.255.255:68"));
    let after = published_at(&mut world, "198.51.100.7:444");
    assert_eq!(after, address("10.0.2.15:80"));
    // Nobody else has it: neither here nor as the appearance of a client.
    world.send_frame(&arp("10.0.2.15", "10.0.2.15"));
    world.assert_quiet();
}

#[test]
fn a_lease_is_renewed_by_a_message_to_the_gateway() {
    let mut world = world();
    let has = Ipv4Addr::new(10, 0, 2, 15);
    let renewal = Datagram {
        source: SocketAddr::new(has.into(), 68),
        destination: address("10.0.2.2:67"),
        payload: dhcpv4(GUEST_MAC, REQUEST, has, &[]),
    };
    world.send_frame(&renewal.frame());
    let ack = world.datagram();
    assert_eq!(ack.destination, SocketAddr::new(has.into(), 68));
    assert_eq!(ack.payload[16..20], has.octets());
}

/// The same messages are nobody's where addresses are given otherwise.
#[test]
fn nothing_is_served_unless_it_is_to_be() {
    let mut world = World::default();
    world.send_frame(&request(&WANTS_FIRST));
    world.send_frame(&dhcpv6_frame(dhcpv6(INFORMATION_REQUEST, &[])));
    world.send_frame(&router_solicitation(255));
    world.send_frame(&arp("10.0.2.77", "10.0.2.2"));
    world.frames();
    assert_eq!(world.core.counters().frames_dropped, 0);
    let published = published_at(&mut world, "198.51.100.7:443");
    assert_eq!(published, address("10.0.2.100:80"));
}

#[test]
fn malformed_messages_are_counted() {
    let mut world = world();
    world.send_frame(&dhcpv4_frame(vec![1; 300]));
    world.send_frame(&dhcpv6_frame(vec![1; 3]));
    world.assert_quiet();
    assert_eq!(world.core.counters().frames_dropped, 2);
}

fn advertisement(world: &mut World) -> Icmp {
    let frame = world.frame();
    assert_eq!(frame.ethernet_destination, [0x33, 0x33, 0, 0, 0, 1]);
    let Packet::Icmp(icmp) = frame.packet else {
        panic!("ICMPv6 is expected");
    };
    assert_eq!(icmp.source, address::<IpAddr>("fe80::2"));
    assert_eq!((icmp.hop_limit, icmp.message[0]), (255, 134));
    icmp
}

#[test]
fn the_router_is_advertised_when_asked_for_and_again_in_time() {
    let mut world = world();
    world.wait(Duration::from_secs(3600));
    world.assert_quiet();
    world.send_frame(&router_solicitation(64));
    world.assert_quiet();
    world.send_frame(&router_solicitation(255));
    let first = advertisement(&mut world);
    let has = |option: &[u8]| {
        first
            .message
            .windows(option.len())
            .any(|part| part == option)
    };
    assert!(has(&GATEWAY_MAC) && has(&1500_u32.to_be_bytes()));
    assert!(has(&address::<Ipv6Addr>("fd00::").octets()));
    assert!(has(&address::<Ipv6Addr>("fd00::3").octets()));
    let lifetime = u16::from_be_bytes([first.message[6], first.message[7]]);
    for _ in 0..3 {
        world.wait(Duration::from_secs(u64::from(lifetime) / 3));
        assert_eq!(advertisement(&mut world), first);
    }
}

#[test]
fn an_address_is_the_guests_when_it_looks_for_duplicates_or_speaks_from_it() {
    let mut world = world();
    let own = "fd00::5054:ff:fe12:3456";
    world.send_frame(&solicitation("::", "ff02::1:ff12:3456", own, 255));
    world.assert_quiet();
    let published = published_at(&mut world, "[2001:db8::7]:443");
    assert_eq!(published, SocketAddr::new(address(own), 80));

    let temporary = "fd00::d00d:1";
    world.send_frame(&solicitation(temporary, "ff02::1:ff00:2", "fe80::2", 255));
    world.frame();
    let published = published_at(&mut world, "[2001:db8::7]:444");
    assert_eq!(published, SocketAddr::new(address(temporary), 80));
    // What it has had is its own still.
    world.send_frame(&solicitation(temporary, "ff02::1:ff12:3456", own, 255));
    world.assert_quiet();
}

#[test]
fn an_address_that_somebody_else_gave_the_guest_is_learnt() {
    let mut world = world();
    world.send_frame(&arp("10.0.2.77", "10.0.2.2"));
    world.frame();
    let published = published_at(&mut world, "198.51.100.7:443");
    assert_eq!(published, address("10.0.2.77:80"));
}

#[test]
fn what_cannot_be_the_guests_is_not_learnt() {
    let mut world = world();
    for sender in ["0.0.0.0", "10.0.2.2", "10.0.2.3", "10.0.3.1", "127.0.0.1"] {
        world.send_frame(&arp(sender, "10.0.2.2"));
    }
    for (source, target, hop_limit) in [
        ("::", "fd00::2", 255),
        ("::", "fd01::77", 255),
        ("::", "fe80::77", 255),
        ("::", "fd00::77", 64),
        ("2001:db8::7", "fd00::2", 255),
    ] {
        world.send_frame(&solicitation(source, "ff02::1:ff00:2", target, hop_limit));
    }
    world.frames();
    let expected = ["10.0.2.100", "fd00::100"].map(address::<IpAddr>);
    assert_eq!(world.core.addresses().guest, expected);
}

/// However many addresses a guest claims.
#[test]
fn the_addresses_that_are_learnt_are_bounded() {
    let mut world = world();
    for number in 0..1000 {
        let own = format!("fd00::1:{number:x}");
        world.send_frame(&solicitation("::", "ff02::1:ff00:2", &own, 255));
    }
    let guest = &world.core.addresses().guest;
    assert_eq!(guest[0], address::<IpAddr>("fd00::1:3e7"));
    assert_eq!(guest.len(), 32);
}

#[test]
fn dhcpv6_tells_names_and_gives_an_address_where_it_has_one() {
    const ASSOCIATION: [u8; 16] = [0, 3, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    const RAPID_COMMIT: [u8; 4] = [0, 14, 0, 0];
    let solicit = dhcpv6_frame(dhcpv6(SOLICIT, &[&ASSOCIATION[..], &RAPID_COMMIT].concat()));
    let mut world = world();
    world.send_frame(&solicit);
    world.assert_quiet();
    world.send_frame(&dhcpv6_frame(dhcpv6(INFORMATION_REQUEST, &[])));
    let reply = world.datagram();
    assert_eq!(reply.source, address("[fe80::2]:547"));
    assert_eq!(reply.destination, SocketAddr::new(LINK_LOCAL.into(), 546));

    let own = address::<Ipv6Addr>("2001:db8::100");
    let mut config: CoreConfig = core_config_for_clients();
    config.autoconf.dhcpv6 = Some(Dhcpv6 { address: Some(own) });
    let mut world = World::new(config);
    world.send_frame(&solicit);
    let reply = world.datagram();
    assert!(reply.payload.windows(16).any(|part| part == own.octets()));
    let published = published_at(&mut world, "[2001:db8::7]:443");
    assert_eq!(published, SocketAddr::new(own.into(), 80));
}

#[test]
fn neighbours_are_not_found_where_that_is_not_wanted() {
    let mut config = core_config_for_clients();
    config.autoconf.ignores_ndp = true;
    let mut world = World::new(config);
    world.send_frame(&router_solicitation(255));
    world.send_frame(&solicitation("fd00::100", "ff02::1:ff00:2", "fd00::2", 255));
    world.assert_quiet();
}
