//! What the guest can reach, and what it is told about the rest: no frame makes the core point a
//! host socket at the host itself or at its neighbours on the link.

use std::net::{IpAddr, SocketAddr};

use netstack::core::Counters;
use testbed::core_config;

use crate::packet::{Datagram, Icmp, Packet, RST, echo};
use crate::peer::Peer;
use crate::world::{World, address, config_of, config_with_gateway_as_host};

/// Addresses that lead to the host, to its link, or to nobody.
const PROHIBITED: [&str; 26] = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "0.0.0.1",
    "169.254.169.254",
    "169.254.0.1",
    "240.0.0.1",
    "255.255.255.254",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:198.51.100.7",
    "::127.0.0.1",
    "::",
    "fe80::1",
    "febf::1",
    "100.100.100.200",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd20:ce::254",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "2002:7f00:1::",
    "2001:0:c633:6407:0:0:5601:5601",
    "2001:db8::5efe:127.0.0.1",
];

/// Everything that the guest may try with an address: TCP, UDP, echo.
fn try_everything(world: &mut World, destination: &str) -> Vec<Packet> {
    let destination: IpAddr = address(destination);
    let remote = SocketAddr::new(destination, 80);
    let mut guest = Peer::new(&remote.to_string());
    world.send(guest.syn());
    let datagram = Datagram {
        source: guest.guest,
        destination: remote,
        payload: b"?".to_vec(),
    };
    world.send_frame(&datagram.frame());
    let source = guest.guest.ip().to_string();
    world.send_frame(&echo(&source, &destination.to_string(), 1, 1, b"?"));
    world
        .frames()
        .into_iter()
        .map(|frame| frame.packet)
        .collect()
}

#[test]
fn the_host_itself_and_its_link_are_prohibited() {
    for config in [core_config, config_with_gateway_as_host] {
        for destination in PROHIBITED {
            let mut world = World::new(config());
            let answers = try_everything(&mut world, destination);
            assert_eq!(world.dials, [], "{destination}");
            assert!(world.datagrams.is_empty(), "{destination}");
            assert_eq!(world.core.counters().prohibited, 3, "{destination}");
            let is_v4 = address::<IpAddr>(destination).is_ipv4();
            let (gateway, expected) = match is_v4 {
                true => ("10.0.2.2", (3, 13)),
                false => ("fd00::2", (1, 1)),
            };
            assert_eq!(answers.len(), 3, "{destination}: {answers:?}");
            for answer in answers {
                let Packet::Icmp(icmp) = answer else {
                    panic!("{destination}: {answer:?}");
                };
                assert_eq!(icmp.source, address::<IpAddr>(gateway));
                assert_eq!((icmp.message[0], icmp.message[1]), expected);
            }
        }
    }
}

/// RFC 1122 3.2.2, RFC 4443 2.4(e): no error about what was sent to many.
#[test]
fn what_is_meant_for_many_is_dropped_in_silence() {
    for destination in [
        "224.0.0.251",
        "239.1.2.3",
        "255.255.255.255",
        "ff02::1",
        "ff05::fb",
    ] {
        let mut world = World::default();
        let answers = try_everything(&mut world, destination);
        assert_eq!(answers, [], "{destination}");
        assert_eq!(world.dials, [], "{destination}");
        assert!(world.datagrams.is_empty(), "{destination}");
    }
}

#[test]
fn the_gateway_refuses_unless_host_loopback_is_allowed() {
    for (gateway, loopback) in [("10.0.2.2", "127.0.0.1:80"), ("fd00::2", "[::1]:80")] {
        let mut world = World::default();
        let answers = try_everything(&mut world, gateway);
        assert_eq!(world.dials, []);
        assert!(world.datagrams.is_empty());
        let [Packet::Tcp(rst), Packet::Icmp(port), Packet::Icmp(reply)] = &answers[..] else {
            panic!("{answers:?}");
        };
        assert_eq!(rst.flags & RST, RST);
        assert!(matches!(
            (port.message[0], port.message[1]),
            (3, 3) | (1, 4)
        ));
        assert_eq!(port.source, address::<IpAddr>(gateway));
        assert!(matches!(reply.message[0], 0 | 129));

        let mut world = World::new(config_with_gateway_as_host());
        try_everything(&mut world, gateway);
        assert_eq!(world.dialled().1, address(loopback));
        assert_eq!(world.sent().to, address(loopback));
    }
}

/// Spelled as NAT64 would have it, the guest's own network is where it always is.
#[test]
fn another_spelling_of_the_gateway_is_the_gateway() {
    let mut world = World::default();
    let answers = try_everything(&mut world, "64:ff9b::10.0.2.2");
    assert_eq!(world.dials, []);
    assert!(world.datagrams.is_empty());
    assert!(matches!(&answers[0], Packet::Tcp(rst) if rst.flags & RST != 0));

    let mut world = World::new(config_with_gateway_as_host());
    try_everything(&mut world, "64:ff9b::10.0.2.2");
    assert_eq!(world.dialled().1, address("127.0.0.1:80"));
}

#[test]
fn other_addresses_of_the_guests_subnet_do_not_exist() {
    for destination in [
        "10.0.2.77",
        "10.0.2.100",
        "10.0.2.0",
        "fd00::77",
        "fd00::100",
    ] {
        let mut world = World::default();
        let answers = try_everything(&mut world, destination);
        assert_eq!(world.dials, [], "{destination}");
        assert!(world.datagrams.is_empty(), "{destination}");
        for answer in &answers {
            let Packet::Icmp(Icmp { message, .. }) = answer else {
                panic!("{destination}: {answer:?}");
            };
            assert!(
                matches!((message[0], message[1]), (3, 1) | (1, 3)),
                "{destination}"
            );
        }
        assert_eq!(answers.len(), 3, "{destination}");
    }
}

#[test]
fn without_ipv6_the_guest_reaches_none() {
    let mut world = World::new(config_of(IpAddr::is_ipv4));
    // A frame of IPv6 all the same; whatever becomes of it, the core stays sound.
    try_everything(&mut world, "::1");
    assert_eq!(world.dials, []);
    assert!(world.datagrams.is_empty());
}

#[test]
fn all_else_is_dialled_as_it_is() {
    for destination in [
        "198.51.100.7",
        "192.168.1.1",
        "10.0.3.1",
        "2001:db8::7",
        "fd01::1",
        "64:ff9b::198.51.100.7",
    ] {
        let mut world = World::default();
        assert_eq!(try_everything(&mut world, destination), [], "{destination}");
        let to = SocketAddr::new(address(destination), 80);
        assert_eq!(world.dialled().1, to);
        let sent: Vec<_> = world.datagrams.iter().map(|sent| sent.to.ip()).collect();
        assert_eq!(sent, [to.ip(), to.ip()]);
        let Counters {
            prohibited,
            frames_dropped,
            ..
        } = world.core.counters();
        assert_eq!((prohibited, frames_dropped), (0, 0));
    }
}
