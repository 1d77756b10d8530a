//! The way out to the guest: what a device must offer, and the frames that are not TCP (ARP, NDP,
//! ICMP, UDP). TCP segments are written by `tcp::smoltcp_device`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;

use etherparse::{
    ArpOperation, ArpPacket, EtherType, Ethernet2Header, Icmpv4Header, Icmpv4Type, Icmpv6Header,
    Icmpv6Type, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, UdpHeader,
};

use super::packet::{ETHERNET_HEADER_LEN, MacAddr};
use super::vnet::{Checksum, Offload, Segmentation, SuperFrame, VNET_HEADER_LEN};

/// Hop limit of the packets that we originate (RFC 1700's default).
pub const HOP_LIMIT: u8 = 64;

/// Where frames to the guest go.
pub trait Link {
    /// Whether the device would take a frame now. Large transfers ask first; small answers are sent
    /// regardless, and the device keeps what it cannot pass on at once: no frame is lost unsaid.
    fn has_room(&self) -> bool;

    /// Sends the frame `head ++ payload`; `head` begins with the virtio header.
    fn transmit(&mut self, head: &[u8], payload: &[u8]);
}

/// Both ends of the Ethernet that the guest is on, as seen when writing to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hardware {
    /// The address of the gateway and of everything behind it.
    pub ours: MacAddr,
    pub guests: MacAddr,
}

impl Hardware {
    fn ethernet(&self, ether_type: EtherType) -> [u8; ETHERNET_HEADER_LEN] {
        Ethernet2Header {
            source: self.ours,
            destination: self.guests,
            ether_type,
        }
        .to_bytes()
    }

    /// Answers an ARP request or tells the guest our address.
    pub fn send_arp_reply(&self, link: &mut impl Link, sender: Ipv4Addr, target: Ipv4Addr) {
        let Ok(arp) = ArpPacket::new(
            etherparse::ArpHardwareId::ETHERNET,
            EtherType::IPV4,
            ArpOperation::REPLY,
            &self.ours,
            &sender.octets(),
            &self.guests,
            &target.octets(),
        ) else {
            return;
        };
        let mut head = self.plain_head(EtherType::ARP);
        head.extend_from_slice(&arp.to_bytes());
        link.transmit(&head, &[]);
    }

    /// Sends an ICMPv4 message with a complete checksum.
    pub fn send_icmpv4(
        &self,
        link: &mut impl Link,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        message: Icmpv4Type,
        payload: &[u8],
    ) {
        let header = Icmpv4Header::with_checksum(message, payload);
        let mut head = self.plain_head(EtherType::IPV4);
        let ip_payload = header.header_len() + payload.len();
        let Some(ip) = ipv4_header(source, destination, IpNumber::ICMP, ip_payload) else {
            return;
        };
        head.extend_from_slice(&ip.to_bytes());
        head.extend_from_slice(&header.to_bytes());
        link.transmit(&head, payload);
    }

    /// Sends an ICMPv6 message. `hop_limit` is 255 for neighbour discovery (RFC 4861 7.1).
    pub fn send_icmpv6(
        &self,
        link: &mut impl Link,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        hop_limit: u8,
        message: Icmpv6Type,
        payload: &[u8],
    ) {
        let Ok(header) =
            Icmpv6Header::with_checksum(message, source.octets(), destination.octets(), payload)
        else {
            return;
        };
        let mut head = self.plain_head(EtherType::IPV6);
        let ip_payload = header.header_len() + payload.len();
        let Some(ip) = ipv6_header(
            source,
            destination,
            IpNumber::IPV6_ICMP,
            hop_limit,
            ip_payload,
        ) else {
            return;
        };
        head.extend_from_slice(&ip.to_bytes());
        head.extend_from_slice(&header.to_bytes());
        link.transmit(&head, payload);
    }

    /// Sends `payload` as one UDP datagram, or as datagrams of `segment` bytes (the last may be
    /// shorter) that the guest's kernel cuts itself. The checksum is left to the guest's kernel
    /// too, which never needs it.
    pub fn send_udp(
        &self,
        link: &mut impl Link,
        source: SocketAddr,
        destination: SocketAddr,
        payload: &[u8],
        segment: Option<NonZeroU16>,
    ) {
        let length = UdpHeader::LEN + payload.len();
        let (ether_type, ip, pseudo) = match (source.ip(), destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let Some(ip) = ipv4_header(from, to, IpNumber::UDP, length) else {
                    return;
                };
                let pseudo = pseudo_header_sum(
                    &from.octets(),
                    &to.octets(),
                    u32::from(ip.payload_len().unwrap_or(0)),
                    17,
                );
                (EtherType::IPV4, ip.to_bytes().to_vec(), pseudo)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let Some(ip) = ipv6_header(from, to, IpNumber::UDP, HOP_LIMIT, length) else {
                    return;
                };
                let pseudo = pseudo_header_sum(
                    &from.octets(),
                    &to.octets(),
                    u32::from(ip.payload_length),
                    17,
                );
                (EtherType::IPV6, ip.to_bytes().to_vec(), pseudo)
            }
            _ => return,
        };
        let Ok(udp_length) = u16::try_from(length) else {
            return;
        };
        let start = ETHERNET_HEADER_LEN + ip.len();
        let offload = Offload {
            checksum: Checksum::Partial {
                start: start as u16,
                offset: 6,
            },
            super_frame: segment
                .filter(|size| usize::from(size.get()) < payload.len())
                .map(|size| SuperFrame {
                    kind: Segmentation::Udp,
                    size,
                    header_len: (start + UdpHeader::LEN) as u16,
                }),
        };
        let mut head = vec![0; VNET_HEADER_LEN];
        offload.write(&mut head);
        head.extend_from_slice(&self.ethernet(ether_type));
        head.extend_from_slice(&ip);
        head.extend_from_slice(
            &UdpHeader {
                source_port: source.port(),
                destination_port: destination.port(),
                length: udp_length,
                checksum: pseudo,
            }
            .to_bytes(),
        );
        link.transmit(&head, payload);
    }

    /// Sends a whole IP packet as it is, offloads included: one that the guest has sent, back to
    /// where it came from.
    pub fn send_packet(&self, link: &mut impl Link, offload: Offload, packet: &[u8]) {
        let ether_type = match packet.first().map(|byte| byte >> 4) {
            Some(4) => EtherType::IPV4,
            _ => EtherType::IPV6,
        };
        let mut head = self.plain_head(ether_type);
        offload.write(&mut head);
        link.transmit(&head, packet);
    }

    /// Virtio and Ethernet header of a frame that leaves nothing to offload.
    fn plain_head(&self, ether_type: EtherType) -> Vec<u8> {
        let mut head = vec![0; VNET_HEADER_LEN];
        head.extend_from_slice(&self.ethernet(ether_type));
        head
    }
}

/// The folded sum over a pseudo-header (RFC 9293 3.1, RFC 8200 8.1), as a partial checksum wants
/// it: not complemented.
pub fn pseudo_header_sum(source: &[u8], destination: &[u8], length: u32, protocol: u8) -> u16 {
    let words = source.chunks_exact(2).chain(destination.chunks_exact(2));
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    sum += (length >> 16) + (length & 0xffff) + u32::from(protocol);
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A header without fragmentation: a packet above the link's MTU reaches the guest whole, because
/// nothing on the receiving side of a tap enforces the MTU. DF stays clear so that the guest can
/// forward it in fragments.
fn ipv4_header(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: IpNumber,
    payload: usize,
) -> Option<Ipv4Header> {
    let mut header = Ipv4Header::new(
        u16::try_from(payload).ok()?,
        HOP_LIMIT,
        protocol,
        source.octets(),
        destination.octets(),
    )
    .ok()?;
    header.dont_fragment = false;
    header.header_checksum = header.calc_header_checksum();
    Some(header)
}

fn ipv6_header(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    next_header: IpNumber,
    hop_limit: u8,
    payload: usize,
) -> Option<Ipv6Header> {
    Some(Ipv6Header {
        traffic_class: 0,
        flow_label: Ipv6FlowLabel::ZERO,
        payload_length: u16::try_from(payload).ok()?,
        next_header,
        hop_limit,
        source: source.octets(),
        destination: destination.octets(),
    })
}
