//! ICMP and ICMPv6 errors: what the guest is told when a packet of it cannot go where it wanted
//! (RFC 792, RFC 1812 5.2.7, RFC 4443 3).

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, Ipv4Header,
    Ipv6FlowLabel, Ipv6Header, UdpHeader, icmpv4, icmpv6,
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
    /// Its hop limit was used up on the way.
    TimeExceeded,
}

/// A datagram or echo request that did not arrive, as the host has heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryError {
    /// Where it was sent.
    pub to: SocketAddr,
    pub why: Unreachable,
    /// The host or router that says so. `None` if this host itself does.
    pub reporter: Option<IpAddr>,
}

impl DeliveryError {
    /// What this host itself says of one that was to go to `to`.
    pub fn of_host(to: SocketAddr, why: Unreachable) -> Self {
        Self {
            to,
            why,
            reporter: None,
        }
    }
}

impl Unreachable {
    fn v4(self) -> Icmpv4Type {
        Icmpv4Type::DestinationUnreachable(match self {
            Self::TimeExceeded => {
                let code = icmpv4::TimeExceededCode::TtlExceededInTransit;
                return Icmpv4Type::TimeExceeded(code);
            }
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
            Self::TimeExceeded => {
                let code = icmpv6::TimeExceededCode::HopLimitExceeded;
                return Icmpv6Type::TimeExceeded(code);
            }
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
    let protocol = IpNumber::UDP;
    quoted_packet(guest.ip(), remote.ip(), protocol, protocol, &udp.to_bytes())
}

/// The same of an echo request.
pub fn quoted_echo(
    guest: IpAddr,
    remote: IpAddr,
    identifier: u16,
    sequence: u16,
) -> Option<Vec<u8>> {
    let echo = IcmpEchoHeader {
        id: identifier,
        seq: sequence,
    };
    let v4 = Icmpv4Header::new(Icmpv4Type::EchoRequest(echo)).to_bytes();
    let v6 = Icmpv6Header::new(Icmpv6Type::EchoRequest(echo)).to_bytes();
    let echo: &[u8] = if remote.is_ipv4() { &v4 } else { &v6 };
    quoted_packet(guest, remote, IpNumber::ICMP, IpNumber::IPV6_ICMP, echo)
}

/// An IP header, of the protocol `v4` or `v6`, before `transport`. `None` if the families differ.
fn quoted_packet(
    from: IpAddr,
    to: IpAddr,
    v4: IpNumber,
    v6: IpNumber,
    transport: &[u8],
) -> Option<Vec<u8>> {
    let len = u16::try_from(transport.len()).ok()?;
    let header = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let (from, to) = (from.octets(), to.octets());
            let mut ip = Ipv4Header::new(len, HOP_LIMIT, v4, from, to).ok()?;
            ip.header_checksum = ip.calc_header_checksum();
            ip.to_bytes().to_vec()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => Ipv6Header {
            traffic_class: 0,
            flow_label: Ipv6FlowLabel::ZERO,
            payload_length: len,
            next_header: v6,
            hop_limit: HOP_LIMIT,
            source: from.octets(),
            destination: to.octets(),
        }
        .to_bytes()
        .to_vec(),
        _ => return None,
    };
    Some([&header[..], transport].concat())
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
    let echo = IcmpEchoHeader {
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
