//! Packets as the tests write and read them: TCP segments with the fields that matter, datagrams,
//! ICMP and ARP messages, and the frames around them. What is written has complete checksums; what
//! is read is first checked by `kernel`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{
    ArpPacket, Icmpv4Type, Icmpv6Type, Ipv4HeaderSlice, NetSlice, PacketBuilder, PacketBuilderStep,
    SlicedPacket, TcpHeader, TcpOptionElement, TransportSlice,
};
use netstack::core::MacAddr;
use netstack::core::vnet::{Offload, VNET_HEADER_LEN};

use crate::kernel;

pub const GUEST_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
pub const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100);
pub const GUEST_MAC: MacAddr = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
pub const GATEWAY_MAC: MacAddr = [0x52, 0x55, 0x0a, 0, 2, 2];

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

/// A TCP segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub flags: u8,
    pub seq: u32,
    pub ack: u32,
    pub window: u16,
    pub mss: Option<u16>,
    pub scale: Option<u8>,
    pub payload: Vec<u8>,
}

/// A UDP datagram, or several of one super-frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub payload: Vec<u8>,
}

/// An ICMP or ICMPv6 message, from its type byte on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Icmp {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub hop_limit: u8,
    pub message: Vec<u8>,
}

/// What a frame to the guest carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    Tcp(Segment),
    Udp(Datagram),
    Icmp(Icmp),
    Arp(Box<ArpPacket>),
}

/// A frame to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub offload: Offload,
    pub ethernet_source: MacAddr,
    pub ethernet_destination: MacAddr,
    /// Length of the IP packet.
    pub ip_len: usize,
    pub packet: Packet,
}

impl Segment {
    /// SEG.LEN: payload, SYN and FIN (RFC 9293 3.4).
    pub fn seg_len(&self) -> u32 {
        let control = u32::from(self.flags & SYN != 0) + u32::from(self.flags & FIN != 0);
        self.payload.len() as u32 + control
    }

    /// The frame around it, virtio header first.
    pub fn frame(&self) -> Vec<u8> {
        let mut tcp = TcpHeader::new(
            self.source.port(),
            self.destination.port(),
            self.seq,
            self.window,
        );
        tcp.acknowledgment_number = self.ack;
        tcp.fin = self.flags & FIN != 0;
        tcp.syn = self.flags & SYN != 0;
        tcp.rst = self.flags & RST != 0;
        tcp.psh = self.flags & PSH != 0;
        tcp.ack = self.flags & ACK != 0;
        let mss = self.mss.map(TcpOptionElement::MaximumSegmentSize);
        let scale = self.scale.map(TcpOptionElement::WindowScale);
        let options: Vec<_> = mss.into_iter().chain(scale).collect();
        tcp.set_options(&options).expect("two options fit");
        let builder = ip(self.source.ip(), self.destination.ip()).tcp_header(tcp);
        let mut frame = vec![0; VNET_HEADER_LEN];
        builder
            .write(&mut frame, &self.payload)
            .expect("the test's lengths fit");
        frame
    }
}

impl Datagram {
    /// The frame around it, virtio header first.
    pub fn frame(&self) -> Vec<u8> {
        let builder = ip(self.source.ip(), self.destination.ip())
            .udp(self.source.port(), self.destination.port());
        let mut frame = vec![0; VNET_HEADER_LEN];
        builder
            .write(&mut frame, &self.payload)
            .expect("the test's lengths fit");
        frame
    }
}

impl Frame {
    /// Reads a frame as the core wrote it. Panics unless a kernel would take it.
    pub fn parse(bytes: &[u8]) -> Self {
        kernel::deliver(bytes);
        let (offload, ethernet) = Offload::split(bytes).expect("a virtio header comes first");
        let sliced = SlicedPacket::from_ethernet(ethernet).expect("the kernel has taken it");
        let ip_len = ethernet.len() - 14;
        let packet = match (&sliced.net, &sliced.transport) {
            (Some(NetSlice::Arp(arp)), _) => Packet::Arp(Box::new(arp.to_packet())),
            (Some(NetSlice::Ipv4(ip)), Some(transport)) => Packet::of(
                ip.header().source_addr().into(),
                ip.header().destination_addr().into(),
                ip.header().ttl(),
                transport,
            ),
            (Some(NetSlice::Ipv6(ip)), Some(transport)) => Packet::of(
                ip.header().source_addr().into(),
                ip.header().destination_addr().into(),
                ip.header().hop_limit(),
                transport,
            ),
            _ => panic!("a frame of no known kind: {ethernet:02x?}"),
        };
        Self {
            offload,
            ethernet_destination: ethernet[..6].try_into().expect("six bytes"),
            ethernet_source: ethernet[6..12].try_into().expect("six bytes"),
            ip_len,
            packet,
        }
    }
}

impl Packet {
    fn of(
        source: IpAddr,
        destination: IpAddr,
        hop_limit: u8,
        transport: &TransportSlice<'_>,
    ) -> Self {
        match transport {
            TransportSlice::Tcp(tcp) => {
                let (mut mss, mut scale) = (None, None);
                for option in tcp.options_iterator() {
                    match option.expect("the core writes sound options") {
                        TcpOptionElement::MaximumSegmentSize(value) => mss = Some(value),
                        TcpOptionElement::WindowScale(value) => scale = Some(value),
                        _ => {}
                    }
                }
                let flag = |set, flag| if set { flag } else { 0 };
                Self::Tcp(Segment {
                    source: SocketAddr::new(source, tcp.source_port()),
                    destination: SocketAddr::new(destination, tcp.destination_port()),
                    flags: flag(tcp.fin(), FIN)
                        | flag(tcp.syn(), SYN)
                        | flag(tcp.rst(), RST)
                        | flag(tcp.psh(), PSH)
                        | flag(tcp.ack(), ACK),
                    seq: tcp.sequence_number(),
                    ack: tcp.acknowledgment_number(),
                    window: tcp.window_size(),
                    mss,
                    scale,
                    payload: tcp.payload().to_vec(),
                })
            }
            TransportSlice::Udp(udp) => Self::Udp(Datagram {
                source: SocketAddr::new(source, udp.source_port()),
                destination: SocketAddr::new(destination, udp.destination_port()),
                payload: udp.payload().to_vec(),
            }),
            TransportSlice::Icmpv4(icmp) => Self::Icmp(Icmp {
                source,
                destination,
                hop_limit,
                message: icmp.slice().to_vec(),
            }),
            TransportSlice::Icmpv6(icmp) => Self::Icmp(Icmp {
                source,
                destination,
                hop_limit,
                message: icmp.slice().to_vec(),
            }),
            TransportSlice::Igmp(_) => panic!("the core never sends IGMP"),
        }
    }
}

/// The frame of an echo request of the guest, virtio header first.
pub fn echo(source: &str, destination: &str, id: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let source: IpAddr = source.parse().expect("an address");
    let builder = ip(source, destination.parse().expect("an address"));
    let mut frame = vec![0; VNET_HEADER_LEN];
    let written = match source {
        IpAddr::V4(_) => builder
            .icmpv4_echo_request(id, sequence)
            .write(&mut frame, payload),
        IpAddr::V6(_) => builder
            .icmpv6_echo_request(id, sequence)
            .write(&mut frame, payload),
    };
    written.expect("the test's lengths fit");
    frame
}

/// Gives the packet in `frame`, virtio header first, a hop limit.
pub fn limit_hops(frame: &mut [u8], hops: u8) {
    let ip = &mut frame[VNET_HEADER_LEN + 14..];
    if ip[0] >> 4 == 6 {
        ip[7] = hops;
        return;
    }
    ip[8] = hops;
    ip[10..12].fill(0);
    let header = Ipv4HeaderSlice::from_slice(ip).expect("an IPv4 header");
    let checksum = header.to_header().calc_header_checksum();
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// The frame by which the guest says that nobody listens where `frame` was to go (port
/// unreachable), of which it quotes all that is given.
pub fn unreachable(frame: &[u8]) -> Vec<u8> {
    let quote = &frame[VNET_HEADER_LEN + 14..];
    let address = |at: usize, len: usize| quote[at..at + len].to_vec();
    let mut frame = vec![0; VNET_HEADER_LEN];
    let ethernet = PacketBuilder::ethernet2(GUEST_MAC, GATEWAY_MAC);
    let written = if quote[0] >> 4 == 4 {
        let from = address(16, 4).try_into().expect("four bytes");
        let to = address(12, 4).try_into().expect("four bytes");
        let why = etherparse::icmpv4::DestUnreachableHeader::Port;
        ethernet
            .ipv4(from, to, 64)
            .icmpv4(Icmpv4Type::DestinationUnreachable(why))
            .write(&mut frame, quote)
    } else {
        let from = address(24, 16).try_into().expect("sixteen bytes");
        let to = address(8, 16).try_into().expect("sixteen bytes");
        let why = etherparse::icmpv6::DestUnreachableCode::Port;
        ethernet
            .ipv6(from, to, 64)
            .icmpv6(Icmpv6Type::DestinationUnreachable(why))
            .write(&mut frame, quote)
    };
    written.expect("the test's lengths fit");
    frame
}

/// Ethernet and IP headers of a packet from the guest.
pub fn ip(source: IpAddr, destination: IpAddr) -> PacketBuilderStep<etherparse::IpHeaders> {
    let ethernet = PacketBuilder::ethernet2(GUEST_MAC, GATEWAY_MAC);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ethernet.ipv4(source.octets(), destination.octets(), 64)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            ethernet.ipv6(source.octets(), destination.octets(), 64)
        }
        _ => panic!("one family per packet: {source} {destination}"),
    }
}
