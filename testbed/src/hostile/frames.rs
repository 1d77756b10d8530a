//! What the hostile guest says: frames whose every field is right, nearly right, or anything.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{
    ArpHardwareId, ArpOperation, ArpPacket, EtherType, Ethernet2Header, IcmpEchoHeader, Icmpv4Type,
    Icmpv6Type, IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, PacketBuilder,
    TcpOptionElement, icmpv4, icmpv6,
};
use netstack::core::vnet::VNET_HEADER_LEN;

use crate::clients;
use crate::entropy::Entropy;
use crate::packet::{GATEWAY_MAC, GUEST_MAC, GUEST_V4, GUEST_V6, ip};

pub(super) const FIN: u8 = 1;
pub(super) const SYN: u8 = 2;
pub(super) const RST: u8 = 4;
pub(super) const ACK: u8 = 16;

/// A frame around one TCP segment. The virtio header asks for the offloads that a guest's kernel
/// would ask for, or for wrong ones.
#[allow(clippy::too_many_arguments, reason = "one per field of the header")]
pub(super) fn segment(
    guest: SocketAddr,
    remote: SocketAddr,
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    options: &[u8],
    payload: usize,
    entropy: &mut Entropy,
) -> Vec<u8> {
    let mut tcp = etherparse::TcpHeader::new(guest.port(), remote.port(), seq, window);
    tcp.acknowledgment_number = ack;
    (tcp.fin, tcp.syn, tcp.rst) = (flags & FIN != 0, flags & SYN != 0, flags & RST != 0);
    (tcp.psh, tcp.ack, tcp.urg) = (flags & 8 != 0, flags & ACK != 0, flags & 32 != 0);
    let _ = tcp.set_options_raw(options);
    let header_length = tcp.header_len();
    let payload = vec![flags; payload];
    let builder = ip(guest.ip(), remote.ip()).tcp_header(tcp);
    let mut frame = vec![0; VNET_HEADER_LEN];
    builder.write(&mut frame, &payload).expect("lengths fit");
    let ip_length = if guest.is_ipv4() { 20 } else { 40 };
    let gso_size = entropy.choose(&[1460, 1460, 536, 1, 0, 65_535]);
    let gso_type = if guest.is_ipv4() { 1 } else { 4 };
    if payload.len() > 1460 || entropy.chance(5) {
        let gso_type = if entropy.chance(5) {
            entropy.u8()
        } else {
            gso_type
        };
        offload(
            &mut frame,
            gso_type,
            14 + ip_length + header_length,
            gso_size,
            14 + ip_length,
            16,
        );
    } else if entropy.chance(50) {
        offload(&mut frame, 0, 0, 0, 14 + ip_length, 16);
    }
    frame
}

/// The first segment of a connection that nothing is wrong with.
pub fn syn(guest_port: u16, remote: SocketAddr) -> Vec<u8> {
    let mut frame = vec![0; VNET_HEADER_LEN];
    let builder = ip(GUEST_V4.into(), remote.ip())
        .tcp(guest_port, remote.port(), 1, 65_535)
        .syn();
    builder.write(&mut frame, &[]).expect("lengths fit");
    frame
}

/// A datagram that nothing is wrong with.
pub fn datagram(guest_port: u16, remote: SocketAddr) -> Vec<u8> {
    let mut frame = vec![0; VNET_HEADER_LEN];
    let builder = ip(GUEST_V4.into(), remote.ip()).udp(guest_port, remote.port());
    builder.write(&mut frame, b"hello").expect("lengths fit");
    frame
}

/// Fills in the virtio header: the checksum is partial, and `gso_type` other than 0 asks for
/// segmentation.
pub(super) fn offload(
    frame: &mut [u8],
    gso_type: u8,
    header_length: usize,
    gso_size: u16,
    checksum_start: usize,
    checksum_offset: u16,
) {
    frame[0] = 1;
    frame[1] = gso_type;
    frame[2..4].copy_from_slice(&(header_length as u16).to_ne_bytes());
    frame[4..6].copy_from_slice(&gso_size.to_ne_bytes());
    frame[6..8].copy_from_slice(&(checksum_start as u16).to_ne_bytes());
    frame[8..10].copy_from_slice(&checksum_offset.to_ne_bytes());
}

pub(super) fn udp(entropy: &mut Entropy) -> Vec<u8> {
    let remote = remote(entropy);
    let source = source(entropy, remote.is_ipv4());
    let port = entropy.choose(&[0, 53, 5000, 5001, 65_535]);
    let payload = vec![7; entropy.choose(&[0, 1, 12, 512, 1472, 20_000, 65_000])];
    let mut frame = vec![0; VNET_HEADER_LEN];
    ip(source, remote.ip())
        .udp(port, remote.port())
        .write(&mut frame, &payload)
        .expect("lengths fit");
    if payload.len() > 1472 || entropy.chance(20) {
        let ip_length = if remote.is_ipv4() { 20 } else { 40 };
        let size = entropy.choose(&[1200, 1, 0, 65_535]);
        offload(&mut frame, 5, 14 + ip_length + 8, size, 14 + ip_length, 6);
    }
    frame
}

pub(super) fn icmp(payload: &[u8], entropy: &mut Entropy) -> Vec<u8> {
    let remote = remote(entropy).ip();
    let source = source(entropy, remote.is_ipv4());
    let echo = IcmpEchoHeader {
        id: entropy.u16() % 8,
        seq: entropy.u16(),
    };
    let mut frame = vec![0; VNET_HEADER_LEN];
    let builder = ip(source, remote);
    let written = if remote.is_ipv4() {
        let message = match entropy.below(4) {
            0 => Icmpv4Type::EchoReply(echo),
            1 => Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port),
            _ => Icmpv4Type::EchoRequest(echo),
        };
        builder.icmpv4(message).write(&mut frame, payload)
    } else {
        let message = match entropy.below(4) {
            0 => Icmpv6Type::EchoReply(echo),
            1 => Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port),
            _ => Icmpv6Type::EchoRequest(echo),
        };
        builder.icmpv6(message).write(&mut frame, payload)
    };
    written.expect("lengths fit");
    frame
}

pub(super) fn arp_or_ndp(entropy: &mut Entropy) -> Vec<u8> {
    let mut frame = vec![0; VNET_HEADER_LEN];
    if entropy.chance(50) {
        let ether_type = EtherType::ARP;
        let ethernet = Ethernet2Header {
            source: GUEST_MAC,
            destination: [0xff; 6],
            ether_type,
        };
        let target = entropy.choose(&[
            [10, 0, 2, 2],
            [10, 0, 2, 3],
            [10, 0, 2, 100],
            [10, 0, 2, 77],
            [8, 8, 8, 8],
        ]);
        let operation = if entropy.chance(80) {
            ArpOperation::REQUEST
        } else {
            ArpOperation(entropy.u16())
        };
        let sender = entropy.choose(&[GUEST_V4.octets(), [0; 4], [10, 0, 2, 2]]);
        let (hardware, protocol) = (ArpHardwareId::ETHERNET, EtherType::IPV4);
        let arp = ArpPacket::new(
            hardware, protocol, operation, &GUEST_MAC, &sender, &[0; 6], &target,
        );
        frame.extend_from_slice(&ethernet.to_bytes());
        frame.extend_from_slice(&arp.expect("lengths fit").to_bytes());
    } else {
        let target: Ipv6Addr = entropy
            .choose(&["fd00::2", "fd00::3", "fd00::100", "fe80::2", "::"])
            .parse()
            .expect("address");
        let destination = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, target.segments()[7]);
        // Neighbour solicitation with an option, which may claim any length.
        let mut body = target.octets().to_vec();
        body.extend([1, entropy.choose(&[1, 1, 0, 255])]);
        body.extend(GUEST_MAC);
        let source = entropy.choose(&[GUEST_V6, Ipv6Addr::UNSPECIFIED]);
        let hop_limit = entropy.choose(&[255, 255, 64]);
        PacketBuilder::ethernet2(GUEST_MAC, GATEWAY_MAC)
            .ipv6(source.octets(), destination.octets(), hop_limit)
            .icmpv6_raw(entropy.choose(&[135, 135, 133, 136]), 0, [0; 4])
            .write(&mut frame, &body)
            .expect("lengths fit");
    }
    frame
}

/// A message of a client that wants an address, with noise for its last options.
pub(super) fn configuration(entropy: &mut Entropy) -> Vec<u8> {
    let noise: Vec<u8> = (0..entropy.below(60)).map(|_| entropy.u8()).collect();
    let kind = entropy.choose(&[1, 3, 8, 3, 1, 5, 11, 4]);
    if entropy.chance(50) {
        let client = [2, 0, 0, 0, 0, entropy.u8()];
        let has = entropy.choose(&[[0; 4], [10, 0, 2, 15], [10, 0, 2, 2]]);
        let wants = [50, 4, 10, 0, 2, 15].as_slice();
        let options = [entropy.choose(&[wants, &[]]), &noise].concat();
        clients::dhcpv4_frame(clients::dhcpv4(client, kind, has.into(), &options))
    } else {
        let association = [0, 3, 0, 12, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0].as_slice();
        let options = [entropy.choose(&[association, &[]]), &noise].concat();
        match entropy.chance(30) {
            true => clients::router_solicitation(entropy.choose(&[255, 64])),
            false => clients::dhcpv6_frame(clients::dhcpv6(kind, &options)),
        }
    }
}

/// A piece of a datagram: offsets and lengths that overlap, leave holes, or reach beyond 64 KiB.
pub(super) fn fragment(entropy: &mut Entropy) -> Vec<u8> {
    let length = entropy.choose(&[0, 8, 16, 1480, 1477, 65_400]);
    let offset = entropy.choose(&[0, 0, 1, 2, 185, 370, 8191]);
    let more = entropy.chance(60);
    let id = entropy.u16() % 4;
    let mut frame = vec![0; VNET_HEADER_LEN];
    let ether_type = if entropy.chance(50) {
        EtherType::IPV4
    } else {
        EtherType::IPV6
    };
    let ethernet = Ethernet2Header {
        source: GUEST_MAC,
        destination: GATEWAY_MAC,
        ether_type,
    };
    frame.extend_from_slice(&ethernet.to_bytes());
    let protocol = entropy.choose(&[IpNumber::UDP, IpNumber::UDP, IpNumber::TCP, IpNumber::ICMP]);
    let offset = IpFragOffset::try_new(offset).expect("13 bits");
    if ether_type == EtherType::IPV4 {
        let remote = [198, 51, 100, 7];
        let mut ip =
            Ipv4Header::new(length, 64, protocol, GUEST_V4.octets(), remote).expect("length fits");
        ip.identification = id;
        ip.more_fragments = more;
        ip.dont_fragment = false;
        ip.fragment_offset = offset;
        ip.header_checksum = ip.calc_header_checksum();
        frame.extend_from_slice(&ip.to_bytes());
    } else {
        let ip = etherparse::Ipv6Header {
            payload_length: length + 8,
            next_header: IpNumber::IPV6_FRAGMENTATION_HEADER,
            hop_limit: 64,
            source: GUEST_V6.octets(),
            destination: "2001:db8::7".parse::<Ipv6Addr>().expect("address").octets(),
            ..Default::default()
        };
        frame.extend_from_slice(&ip.to_bytes());
        frame.extend_from_slice(
            &Ipv6FragmentHeader::new(protocol, offset, more, id.into()).to_bytes(),
        );
    }
    // Reads as a UDP header from port 2056 to port 2056, so that some datagrams become complete.
    frame.extend(std::iter::repeat_n(8, length.into()));
    frame
}

pub(super) fn source(entropy: &mut Entropy, v4: bool) -> IpAddr {
    let odd = entropy.chance(4);
    match (v4, odd) {
        (true, false) => GUEST_V4.into(),
        (false, false) => GUEST_V6.into(),
        (true, true) => {
            let odd = [
                [0, 0, 0, 0],
                [127, 0, 0, 1],
                [10, 0, 2, 2],
                [224, 0, 0, 1],
                [255, 255, 255, 255],
                [10, 0, 2, 7],
            ];
            Ipv4Addr::from(entropy.choose(&odd)).into()
        }
        (false, true) => {
            let odd = [
                "::",
                "::1",
                "fd00::2",
                "ff02::1",
                "fe80::9",
                "::ffff:127.0.0.1",
            ];
            IpAddr::V6(entropy.choose(&odd).parse().expect("address"))
        }
    }
}

pub(super) fn remote(entropy: &mut Entropy) -> SocketAddr {
    let address = match entropy.below(10) {
        0..4 => "198.51.100.7",
        4..7 => "2001:db8::7",
        _ => entropy.choose(&[
            "10.0.2.2",
            "10.0.2.3",
            "10.0.2.100",
            "10.0.2.255",
            "127.0.0.1",
            "169.254.169.254",
            "224.0.0.251",
            "255.255.255.255",
            "0.0.0.0",
            "fd00::2",
            "fd00::3",
            "fd00::100",
            "::1",
            "::",
            "fe80::2",
            "ff02::1",
            "::ffff:127.0.0.1",
        ]),
    };
    SocketAddr::new(
        address.parse().expect("address"),
        entropy.choose(&[80, 80, 80, 443, 53, 0, 65_535]),
    )
}

/// A sequence or acknowledgement number that is right, slightly wrong, or anything.
pub(super) fn near(number: u32, entropy: &mut Entropy) -> u32 {
    match entropy.below(8) {
        0 => number.wrapping_add(entropy.u16().into()),
        1 => number.wrapping_sub(entropy.u16().into()),
        2 => number.wrapping_add(1),
        3 => number.wrapping_sub(1),
        4 => entropy.u32(),
        5 => number.wrapping_add(1 << 31),
        _ => number,
    }
}

/// TCP options: the usual ones with odd values, or noise.
pub(super) fn options(entropy: &mut Entropy) -> Vec<u8> {
    if entropy.chance(10) {
        return (0..4 * entropy.below(11)).map(|_| entropy.u8()).collect();
    }
    let mut options = Vec::new();
    if entropy.chance(70) {
        let mss = entropy.choose(&[0, 1, 16, 536, 1460, 65_480, 65_535]);
        options.push(TcpOptionElement::MaximumSegmentSize(mss));
    }
    if entropy.chance(70) {
        options.push(TcpOptionElement::WindowScale(
            entropy.choose(&[0, 7, 14, 15, 255]),
        ));
    }
    if entropy.chance(50) {
        options.push(TcpOptionElement::SelectiveAcknowledgementPermitted);
    }
    if entropy.chance(20) {
        let (left, right) = (entropy.u32(), entropy.u32());
        options.push(TcpOptionElement::SelectiveAcknowledgement(
            (left, right),
            [None; 3],
        ));
    }
    if entropy.chance(30) {
        options.push(TcpOptionElement::Timestamp(entropy.u32(), entropy.u32()));
    }
    let mut tcp = etherparse::TcpHeader::default();
    match tcp.set_options(&options) {
        Ok(()) => tcp.options.as_slice().to_vec(),
        Err(_) => Vec::new(),
    }
}
