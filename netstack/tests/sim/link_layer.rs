//! Ethernet and IP: who has which address, what may be fragmented, and what is not carried at all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, IpFragOffset, IpNumber,
    Ipv4Header, Ipv6FragmentHeader, Ipv6Header, PacketBuilder,
};
use netstack::core::Duration;

use crate::packet::{Datagram, GATEWAY_MAC, GUEST_MAC, Packet};
use crate::peer::Peer;
use crate::world::{World, address};

/// A request.
pub fn arp(sender: &str, target: &str) -> Vec<u8> {
    arp_of(ArpOperation::REQUEST, sender, target)
}

fn arp_of(operation: ArpOperation, sender: &str, target: &str) -> Vec<u8> {
    let (sender, target): (Ipv4Addr, Ipv4Addr) = (address(sender), address(target));
    let arp = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        operation,
        &GUEST_MAC,
        &sender.octets(),
        &[0; 6],
        &target.octets(),
    );
    let ethernet = Ethernet2Header {
        source: GUEST_MAC,
        destination: [0xff; 6],
        ether_type: EtherType::ARP,
    };
    let mut frame = vec![0; 10];
    frame.extend_from_slice(&ethernet.to_bytes());
    frame.extend_from_slice(&arp.expect("lengths fit").to_bytes());
    frame
}

#[test]
fn arp_is_answered_for_all_but_the_guest() {
    const GUEST: &str = "10.0.2.100";
    // Without a sender's address it is a probe for duplicates (RFC 5227).
    const PROBE: &str = "0.0.0.0";
    for (sender, target, answered) in [
        (GUEST, "10.0.2.2", true),
        (GUEST, "10.0.2.3", true),
        (GUEST, "10.0.2.77", true),
        (GUEST, GUEST, false),
        (PROBE, GUEST, false),
        (PROBE, "10.0.2.77", false),
        (PROBE, "10.0.2.2", true),
    ] {
        let mut world = World::default();
        world.send_frame(&arp(sender, target));
        if !answered {
            world.assert_quiet();
            continue;
        }
        let frame = world.frame();
        assert_eq!(frame.ethernet_destination, GUEST_MAC);
        assert_eq!(frame.ethernet_source, GATEWAY_MAC);
        let Packet::Arp(reply) = frame.packet else {
            panic!("ARP is expected");
        };
        assert_eq!(reply.operation, ArpOperation::REPLY);
        assert_eq!(reply.sender_hw_addr(), GATEWAY_MAC);
        assert_eq!(
            reply.sender_protocol_addr(),
            address::<Ipv4Addr>(target).octets()
        );
        assert_eq!(reply.target_hw_addr(), GUEST_MAC);
        assert_eq!(
            reply.target_protocol_addr(),
            address::<Ipv4Addr>(sender).octets()
        );
    }
}

#[test]
fn arp_replies_are_not_answered() {
    let mut world = World::default();
    world.send_frame(&arp_of(ArpOperation::REPLY, "10.0.2.100", "10.0.2.2"));
    world.assert_quiet();
}

pub fn solicitation(source: &str, destination: &str, target: &str, hop_limit: u8) -> Vec<u8> {
    let (source, destination): (Ipv6Addr, Ipv6Addr) = (address(source), address(destination));
    let target: Ipv6Addr = address(target);
    let mut body = target.octets().to_vec();
    if !source.is_unspecified() {
        body.extend([1, 1]);
        body.extend(GUEST_MAC);
    }
    let mut frame = vec![0; 10];
    PacketBuilder::ethernet2(GUEST_MAC, [0x33, 0x33, 0xff, 0, 0, 2])
        .ipv6(source.octets(), destination.octets(), hop_limit)
        .icmpv6_raw(135, 0, [0; 4])
        .write(&mut frame, &body)
        .expect("it fits");
    frame
}

#[test]
fn neighbour_solicitations_are_answered_for_all_but_the_guest() {
    const GUEST: &str = "fd00::100";
    const PROBE: &str = "::";
    const MULTICAST: &str = "ff02::1:ff00:2";
    for (source, destination, target, hop_limit, answered) in [
        (GUEST, MULTICAST, "fd00::2", 255, true),
        (GUEST, "fd00::2", "fd00::2", 255, true),
        (GUEST, MULTICAST, "fd00::3", 255, true),
        (GUEST, MULTICAST, "fd00::77", 255, true),
        (GUEST, MULTICAST, "fd00::2", 64, false),
        (PROBE, MULTICAST, GUEST, 255, false),
        (PROBE, MULTICAST, "fd00::77", 255, false),
        (PROBE, MULTICAST, "fd00::2", 255, true),
    ] {
        let mut world = World::default();
        world.send_frame(&solicitation(source, destination, target, hop_limit));
        if !answered {
            world.assert_quiet();
            continue;
        }
        let frame = world.frame();
        let Packet::Icmp(advert) = frame.packet else {
            panic!("ICMPv6 is expected");
        };
        assert_eq!((advert.message[0], advert.hop_limit), (136, 255));
        let target: Ipv6Addr = address(target);
        assert_eq!(advert.source, IpAddr::V6(target));
        assert_eq!(advert.message[8..24], target.octets());
        assert_eq!(advert.message[24..26], [2, 1]);
        assert_eq!(advert.message[26..32], GATEWAY_MAC);
        let solicited = advert.message[4] & 0x40 != 0;
        // RFC 4861 7.2.4: a probe is answered to all nodes, unsolicited.
        if source == PROBE {
            assert!(!solicited);
            assert_eq!(advert.destination, address::<IpAddr>("ff02::1"));
            assert_eq!(frame.ethernet_destination, [0x33, 0x33, 0, 0, 0, 1]);
        } else {
            assert!(solicited);
            assert_eq!(advert.destination, address::<IpAddr>(source));
            assert_eq!(frame.ethernet_destination, GUEST_MAC);
        }
    }
}

/// The frames of a datagram that was sent in fragments of `size` bytes, a multiple of 8.
fn fragments(datagram: &Datagram, size: usize, id: u16) -> Vec<Vec<u8>> {
    let whole = datagram.frame();
    let (source, destination) = (datagram.source.ip(), datagram.destination.ip());
    let header_len = if source.is_ipv4() { 20 } else { 40 };
    let payload = &whole[10 + 14 + header_len..];
    let last = payload.len().div_ceil(size) - 1;
    let fragment = |(index, chunk): (usize, &[u8])| {
        let offset = IpFragOffset::try_new((index * size / 8) as u16).expect("13 bits");
        let more = index < last;
        let mut frame = whole[..10 + 14].to_vec();
        match (source, destination) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let length = chunk.len() as u16;
                let (from, to) = (from.octets(), to.octets());
                let mut ip = Ipv4Header::new(length, 64, IpNumber::UDP, from, to).expect("fits");
                ip.dont_fragment = false;
                ip.identification = id;
                ip.more_fragments = more;
                ip.fragment_offset = offset;
                ip.header_checksum = ip.calc_header_checksum();
                frame.extend_from_slice(&ip.to_bytes());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let ip = Ipv6Header {
                    payload_length: 8 + chunk.len() as u16,
                    next_header: IpNumber::IPV6_FRAGMENTATION_HEADER,
                    hop_limit: 64,
                    source: from.octets(),
                    destination: to.octets(),
                    ..Ipv6Header::default()
                };
                let header = Ipv6FragmentHeader::new(IpNumber::UDP, offset, more, id.into());
                frame.extend_from_slice(&ip.to_bytes());
                frame.extend_from_slice(&header.to_bytes());
            }
            _ => panic!("one family per packet"),
        }
        frame.extend_from_slice(chunk);
        frame
    };
    payload.chunks(size).enumerate().map(fragment).collect()
}

fn large_datagram(family: usize) -> Datagram {
    let (source, destination) = [
        ("10.0.2.100:5000", "198.51.100.7:7000"),
        ("[fd00::100]:5000", "[2001:db8::7]:7000"),
    ][family];
    Datagram {
        source: address(source),
        destination: address(destination),
        payload: (0..20_000u32).map(|index| (index % 251) as u8).collect(),
    }
}

#[test]
fn a_fragmented_datagram_leaves_whole() {
    for family in [0, 1] {
        let datagram = large_datagram(family);
        for order in 0..4 {
            let mut world = World::default();
            let mut pieces = fragments(&datagram, 1480, 1);
            match order {
                0 => {}
                1 => pieces.reverse(),
                2 => pieces.rotate_left(3),
                // Each twice: the whole comes about once, and what is repeated after it is
                // incomplete.
                _ => pieces = pieces.iter().flat_map(|p| [p.clone(), p.clone()]).collect(),
            }
            pieces.iter().for_each(|piece| world.send_frame(piece));
            let sent = world.sent();
            assert_eq!(sent.to, datagram.destination);
            assert!(
                sent.payload == datagram.payload,
                "family {family} order {order}"
            );
            world.assert_quiet();
        }
    }
}

#[test]
fn fragments_of_different_datagrams_do_not_mix() {
    let mut world = World::default();
    let datagram = large_datagram(0);
    let mut other = datagram.clone();
    other.payload.reverse();
    let pairs = fragments(&datagram, 1480, 1)
        .into_iter()
        .zip(fragments(&other, 1480, 2));
    for (one, two) in pairs {
        world.send_frame(&one);
        world.send_frame(&two);
    }
    let payloads: Vec<_> = world.datagrams.drain(..).map(|sent| sent.payload).collect();
    assert!(payloads == [datagram.payload, other.payload]);
}

#[test]
fn an_incomplete_datagram_is_forgotten() {
    let mut world = World::default();
    let datagram = large_datagram(0);
    let pieces = fragments(&datagram, 1480, 1);
    pieces[1..].iter().for_each(|piece| world.send_frame(piece));
    world.wait(Duration::from_secs(11));
    world.send_frame(&pieces[0]);
    assert!(world.datagrams.is_empty());
}

/// A guest that starts datagrams and finishes none gets no further ones through for a while, and no
/// memory either.
#[test]
fn a_flood_of_fragments_ends() {
    let mut world = World::default();
    let datagram = large_datagram(0);
    for id in 100..5_000 {
        world.send_frame(&fragments(&datagram, 1480, id)[1]);
    }
    world.wait(Duration::from_secs(11));
    for piece in fragments(&datagram, 1480, 1) {
        world.send_frame(&piece);
    }
    assert_eq!(world.sent().payload.len(), datagram.payload.len());
}

/// Everything that is no traffic of this network is dropped and counted.
#[test]
fn what_is_not_carried_is_counted() {
    let good = Datagram {
        payload: vec![1; 100],
        ..large_datagram(0)
    }
    .frame();
    let changed = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[at] = value;
        frame
    };
    const ETHER_TYPE: usize = 10 + 12;
    const IP: usize = 10 + 14;
    let dropped = [
        Vec::new(),
        vec![0; 9],
        vec![0; 24],
        good[..40].to_vec(),
        changed(1, 2),                 // a segmentation that nobody offered
        changed(1, 1),                 // a super-frame without a size
        changed(ETHER_TYPE, 0x81),     // a VLAN tag, or what would be one
        changed(ETHER_TYPE + 1, 0x45), // an EtherType of its own
        changed(IP, 0x55),             // version 5
        changed(IP, 0x44),             // a header of 16 bytes
        changed(IP + 2, 0xff),         // longer than it is
        changed(IP + 9, 132),          // SCTP
        changed(IP + 20 + 8 + 50, 0),  // a payload that its checksum denies
    ];
    let mut world = World::default();
    for (index, frame) in dropped.iter().enumerate() {
        world.send_frame(frame);
        assert_eq!(
            world.core.counters().frames_dropped,
            index as u64 + 1,
            "{frame:02x?}"
        );
    }
    world.assert_quiet();
    assert!(world.datagrams.is_empty());
    world.send_frame(&good);
    world.sent();
}

/// A complete checksum is checked, a partial one is the guest's kernel's word.
#[test]
fn checksums_are_checked_unless_vouched_for() {
    let mut guest = Peer::new("198.51.100.7:443");
    let mut frame = guest.syn().frame();
    frame[10 + 14 + 20 + 16] ^= 0xff;
    let mut world = World::default();
    world.send_frame(&frame);
    assert_eq!(world.dials, []);
    assert_eq!(world.core.counters().frames_dropped, 1);
    for flags in [1, 2] {
        let mut world = World::default();
        frame[0] = flags;
        world.send_frame(&frame);
        assert_eq!(world.dialled().1, guest.remote);
    }
}

/// Ethernet pads short frames to 60 bytes.
#[test]
fn padding_is_no_payload() {
    let mut world = World::default();
    let mut guest = Peer::new("198.51.100.7:443");
    let flow = guest.open(&mut world);
    let mut frame = guest.data(b"x").frame();
    frame.resize(10 + 60, 0);
    world.send_frame(&frame);
    assert_eq!(world.host_reads(flow), b"x");
    let remote: SocketAddr = guest.remote;
    let short = Datagram {
        source: guest.guest,
        destination: remote,
        payload: b"y".to_vec(),
    };
    let mut frame = short.frame();
    frame.resize(10 + 60, 0);
    world.send_frame(&frame);
    assert_eq!(world.sent().payload, b"y");
}
