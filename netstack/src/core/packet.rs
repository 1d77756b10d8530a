//! A frame from the guest, taken apart: offloads, source MAC, and an ARP message or an IP packet
//! with its transport.
//!
//! etherparse does the parsing. Here is decided what this network carries at all: untagged
//! Ethernet; IPv4 with options ignored; IPv6 without extension headers but fragments. IP fragments
//! come back as `Fragment`, for the caller to collect. Everything else is `None`: counted and
//! dropped by the caller.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU8;

use etherparse::{
    ArpPacketSlice, EtherType, Icmpv4Slice, Icmpv6Slice, IpNumber, LinkSlice, NetSlice,
    SlicedPacket, TcpSlice, TransportSlice, UdpSlice,
};

use super::vnet::{Checksum, Offload};

/// An Ethernet address.
pub type MacAddr = [u8; 6];

/// Length of an Ethernet header without tags.
pub const ETHERNET_HEADER_LEN: usize = 14;

/// What a frame carries.
pub enum Frame<'a> {
    Arp(ArpPacketSlice<'a>),
    Ip(Packet<'a>),
    /// A fragment of a larger IP packet.
    Fragment {
        source_mac: MacAddr,
        source: IpAddr,
        destination: IpAddr,
        sliced: SlicedPacket<'a>,
    },
}

/// A whole IP packet.
pub struct Packet<'a> {
    pub source_mac: MacAddr,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub offload: Offload,
    /// From the first byte of the IP header to the end of the packet; empty for a reassembled one.
    pub ip: &'a [u8],
    pub transport: Transport<'a>,
}

/// How many routers beyond us a packet may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HopsLeft {
    /// It goes no further.
    None,
    /// Its sender counts them.
    Few(NonZeroU8),
    /// As many as packets of the host's own.
    Many,
}

impl HopsLeft {
    /// `None` if nobody counts them.
    pub fn count(self) -> Option<NonZeroU8> {
        match self {
            Self::Few(hops) => Some(hops),
            Self::None | Self::Many => None,
        }
    }
}

/// The transport header and what follows it.
pub enum Transport<'a> {
    Tcp(TcpSlice<'a>),
    Udp(UdpSlice<'a>),
    Icmpv4(Icmpv4Slice<'a>),
    Icmpv6(Icmpv6Slice<'a>),
}

impl<'a> Frame<'a> {
    /// Parses a frame as read from the tap, virtio header included.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let (offload, frame) = Offload::split(frame)?;
        let sliced = SlicedPacket::from_ethernet(frame).ok()?;
        let Some(LinkSlice::Ethernet2(ethernet)) = &sliced.link else {
            return None;
        };
        if !matches!(
            ethernet.ether_type(),
            EtherType::ARP | EtherType::IPV4 | EtherType::IPV6
        ) {
            return None;
        }
        let source_mac = ethernet.source();
        let (source, destination, fragment, ip_len) = match sliced.net.as_ref()? {
            NetSlice::Arp(arp) => return Some(Frame::Arp(arp.clone())),
            NetSlice::Ipv4(ip) => (
                IpAddr::from(ip.header().source_addr()),
                IpAddr::from(ip.header().destination_addr()),
                ip.is_payload_fragmented(),
                usize::from(ip.header().total_len()),
            ),
            NetSlice::Ipv6(ip) => {
                let fragment = ip.is_payload_fragmented();
                if !fragment && !ip.extensions().is_empty() {
                    return None;
                }
                (
                    IpAddr::from(ip.header().source_addr()),
                    IpAddr::from(ip.header().destination_addr()),
                    fragment,
                    40 + usize::from(ip.header().payload_length()),
                )
            }
        };
        if fragment {
            return Some(Frame::Fragment {
                source_mac,
                source,
                destination,
                sliced,
            });
        }
        let ip = frame.get(ETHERNET_HEADER_LEN..ETHERNET_HEADER_LEN + ip_len)?;
        let transport = match sliced.transport? {
            TransportSlice::Tcp(tcp) => Transport::Tcp(tcp),
            TransportSlice::Udp(udp) => Transport::Udp(udp),
            TransportSlice::Icmpv4(icmp) => Transport::Icmpv4(icmp),
            TransportSlice::Icmpv6(icmp) => Transport::Icmpv6(icmp),
            TransportSlice::Igmp(_) => return None,
        };
        let packet = Packet {
            source_mac,
            source,
            destination,
            offload,
            ip,
            transport,
        };
        packet.checksum_holds().then_some(Frame::Ip(packet))
    }
}

impl<'a> Transport<'a> {
    /// Parses what a reassembled packet carries.
    pub fn parse(protocol: IpNumber, payload: &'a [u8]) -> Option<Self> {
        Some(match protocol {
            IpNumber::UDP => Transport::Udp(UdpSlice::from_slice(payload).ok()?),
            IpNumber::ICMP => Transport::Icmpv4(Icmpv4Slice::from_slice(payload).ok()?),
            IpNumber::IPV6_ICMP => Transport::Icmpv6(Icmpv6Slice::from_slice(payload).ok()?),
            // TCP is never fragmented: every stack of this century sets DF.
            _ => return None,
        })
    }
}

impl Packet<'_> {
    pub fn guest_addr(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.source, port)
    }

    pub fn remote_addr(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.destination, port)
    }

    /// Of a packet that came whole (RFC 791 3.1, RFC 8200 3).
    pub fn hop_limit(&self) -> Option<u8> {
        let offset = if self.source.is_ipv6() { 7 } else { 8 };
        self.ip.get(offset).copied()
    }

    /// What is left of the hop limit behind us, who are a router to the guest (RFC 1812 5.3.1).
    pub fn hops_left(&self) -> HopsLeft {
        /// Who looks for the routers of a path tries up to 30 (traceroute), and ordinary packets
        /// start with 64 or more.
        const MOST_COUNTED: u8 = 32;
        let left = self.hop_limit().map(|limit| limit.saturating_sub(1));
        match left.filter(|left| *left <= MOST_COUNTED) {
            Some(left) => NonZeroU8::new(left).map_or(HopsLeft::None, HopsLeft::Few),
            None => HopsLeft::Many,
        }
    }

    /// The guest's kernel leaves the sum to us (`Partial`); a frame with a complete one comes from
    /// a raw socket or from beyond a bridge, where it may be wrong by accident or on purpose.
    fn checksum_holds(&self) -> bool {
        if self.offload.checksum != Checksum::Unchecked {
            return true;
        }
        match (&self.transport, self.source, self.destination) {
            (Transport::Tcp(tcp), IpAddr::V4(source), IpAddr::V4(destination)) => tcp
                .calc_checksum_ipv4(source.octets(), destination.octets())
                .is_ok_and(|sum| sum == tcp.checksum()),
            (Transport::Tcp(tcp), IpAddr::V6(source), IpAddr::V6(destination)) => tcp
                .calc_checksum_ipv6(source.octets(), destination.octets())
                .is_ok_and(|sum| sum == tcp.checksum()),
            (Transport::Udp(udp), IpAddr::V4(source), IpAddr::V4(destination)) => {
                udp.checksum() == 0
                    || udp
                        .to_header()
                        .calc_checksum_ipv4_raw(
                            source.octets(),
                            destination.octets(),
                            udp.payload(),
                        )
                        .is_ok_and(|sum| sum == udp.checksum())
            }
            (Transport::Udp(udp), IpAddr::V6(source), IpAddr::V6(destination)) => udp
                .to_header()
                .calc_checksum_ipv6_raw(source.octets(), destination.octets(), udp.payload())
                .is_ok_and(|sum| sum == udp.checksum()),
            (Transport::Icmpv4(icmp), ..) => {
                etherparse::checksum::Sum16BitWords::new()
                    .add_slice(icmp.slice())
                    .ones_complement()
                    == 0
            }
            (Transport::Icmpv6(icmp), IpAddr::V6(source), IpAddr::V6(destination)) => {
                icmp.is_checksum_valid(source.octets(), destination.octets())
            }
            _ => false,
        }
    }
}
