//! ICMP and ICMPv6 errors: what the guest is told when a packet of it cannot go where it wanted
//! (RFC 792, RFC 1812 5.2.7, RFC 4443 3.1).

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    Icmpv4Type, Icmpv6Type, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, UdpHeader, icmpv4,
    icmpv6,
};

use super::link::{HOP_LIMIT, Hardware, Link};

/// Most bytes of an offending packet that are quoted: with our headers, within IPv6's minimum MTU
/// (RFC 4443 2.4c).
const MAX_QUOTE_LEN: usize = 512;

/// Why a packet did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    Network,
    Host,
    Port,
    Prohibited,
    /// The packet does not fit; `mtu` is what would (RFC 1191, RFC 8201).
    TooBig {
        mtu: u16,
    },
}

impl Unreachable {
    fn v4(self) -> Icmpv4Type {
        Icmpv4Type::DestinationUnreachable(match self {
            Self::Network => icmpv4::DestUnreachableHeader::Network,
            Self::Host => icmpv4::DestUnreachableHeader::Host,
            Self::Port => icmpv4::DestUnreachableHeader::Port,
            Self::Prohibited => icmpv4::DestUnreachableHeader::FilterProhibited,
            Self::TooBig { mtu } => {
                icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu }
            }
        })
    }

    fn v6(self) -> Icmpv6Type {
        Icmpv6Type::DestinationUnreachable(match self {
            Self::Network => icmpv6::DestUnreachableCode::NoRoute,
            Self::Host => icmpv6::DestUnreachableCode::Address,
            Self::Port => icmpv6::DestUnreachableCode::Port,
            Self::Prohibited => icmpv6::DestUnreachableCode::Prohibited,
            Self::TooBig { mtu } => {
                return Icmpv6Type::PacketTooBig {
                    mtu: u32::from(mtu),
                };
            }
        })
    }
}

/// Tells `guest` that `packet`, its own whole IP packet, did not arrive. `reporter` is who says so.
pub fn send_unreachable(
    hardware: Hardware,
    link: &mut impl Link,
    reporter: IpAddr,
    guest: IpAddr,
    why: Unreachable,
    packet: &[u8],
) {
    let quote = &packet[..packet.len().min(MAX_QUOTE_LEN)];
    match (reporter, guest) {
        (IpAddr::V4(reporter), IpAddr::V4(guest)) => {
            hardware.send_icmpv4(link, reporter, guest, why.v4(), quote);
        }
        (IpAddr::V6(reporter), IpAddr::V6(guest)) => {
            hardware.send_icmpv6(link, reporter, guest, HOP_LIMIT, why.v6(), quote);
        }
        _ => {}
    }
}

/// The headers of a UDP datagram of the guest, made again for an error that arrived after the
/// datagram was gone.
pub fn quoted_datagram(guest: SocketAddr, remote: SocketAddr) -> Option<Vec<u8>> {
    let udp = UdpHeader {
        source_port: guest.port(),
        destination_port: remote.port(),
        length: UdpHeader::LEN as u16,
        checksum: 0,
    };
    let mut quote = match (guest.ip(), remote.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut ip = Ipv4Header::new(
                udp.length,
                HOP_LIMIT,
                IpNumber::UDP,
                from.octets(),
                to.octets(),
            )
            .ok()?;
            ip.header_checksum = ip.calc_header_checksum();
            ip.to_bytes().to_vec()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => Ipv6Header {
            traffic_class: 0,
            flow_label: Ipv6FlowLabel::ZERO,
            payload_length: udp.length,
            next_header: IpNumber::UDP,
            hop_limit: HOP_LIMIT,
            source: from.octets(),
            destination: to.octets(),
        }
        .to_bytes()
        .to_vec(),
        _ => return None,
    };
    quote.extend(udp.to_bytes());
    Some(quote)
}

/// Answers an echo request.
pub fn send_echo_reply(
    hardware: Hardware,
    link: &mut impl Link,
    from: IpAddr,
    to: IpAddr,
    identifier: u16,
    sequence: u16,
    payload: &[u8],
) {
    let echo = etherparse::IcmpEchoHeader {
        id: identifier,
        seq: sequence,
    };
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            hardware.send_icmpv4(link, from, to, Icmpv4Type::EchoReply(echo), payload);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let reply = Icmpv6Type::EchoReply(echo);
            hardware.send_icmpv6(link, from, to, HOP_LIMIT, reply, payload);
        }
        _ => {}
    }
}
