//! Who has which address on the guest's Ethernet: ARP (RFC 826) and neighbour discovery (RFC 4861
//! 7.2).
//!
//! We own the addresses of gateway, forwarder and host, and answer for every other one except the
//! guest's own and those behind it: it may be that of a host outside, which is reached through us;
//! a client of a published port may come from there; and one that does not exist is better refused
//! by ICMP at once than by ARP after seconds. Duplicate address detection (RFC 5227, RFC 4862 5.4)
//! is only answered for what is ours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::icmpv6::{Icmpv6PayloadSlice, NeighborAdvertisementHeader};
use etherparse::{ArpOperation, ArpPacketSlice, Icmpv6Slice, Icmpv6Type};

use super::addresses::Addresses;
use super::link::{Hardware, Link};
use super::packet::{MacAddr, Packet};

/// Neighbour discovery is only believed, by both sides, with this hop limit (RFC 4861 7.1).
pub const NDP_HOP_LIMIT: u8 = 255;
const OPTION_TARGET_LINK_LAYER_ADDRESS: u8 = 2;
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// 33:33 and the low bytes of ff02::1 (RFC 2464 7).
pub const ALL_NODES_MAC: MacAddr = [0x33, 0x33, 0, 0, 0, 1];

/// Answers an ARP request of the guest.
pub fn handle_arp(
    arp: &ArpPacketSlice,
    addresses: &Addresses,
    ours: MacAddr,
    link: &mut impl Link,
) {
    if arp.operation() != ArpOperation::REQUEST {
        return;
    }
    let (Ok(guests), Ok(sender), Ok(target)) = (
        MacAddr::try_from(arp.sender_hw_addr()),
        <[u8; 4]>::try_from(arp.sender_protocol_addr()),
        <[u8; 4]>::try_from(arp.target_protocol_addr()),
    ) else {
        return;
    };
    let (sender, target) = (Ipv4Addr::from(sender), Ipv4Addr::from(target));
    if should_answer(addresses, target.into(), sender.is_unspecified()) {
        Hardware { ours, guests }.send_arp_reply(link, target, sender);
    }
}

/// Whose address the sender of an ARP message says it is, if it has one.
pub fn claimed_by_arp(arp: &ArpPacketSlice) -> Option<IpAddr> {
    let sender = <[u8; 4]>::try_from(arp.sender_protocol_addr()).ok()?;
    Some(Ipv4Addr::from(sender).into()).filter(|ip: &IpAddr| !ip.is_unspecified())
}

/// The same for a neighbour solicitation. Who looks for duplicates is about to have the address,
/// and hardly says so again (RFC 4862 5.4.2).
pub fn claimed_by_ndp(packet: &Packet, icmp: &Icmpv6Slice) -> Option<IpAddr> {
    if packet.hop_limit() != Some(NDP_HOP_LIMIT) {
        return None;
    }
    match icmp.payload_slice() {
        Ok(Icmpv6PayloadSlice::NeighborSolicitation(solicitation))
            if packet.source.is_unspecified() =>
        {
            Some(solicitation.target_address().into())
        }
        _ => Some(packet.source),
    }
}

/// Answers a neighbour solicitation of the guest.
pub fn handle_ndp(
    packet: &Packet,
    icmp: &Icmpv6Slice,
    addresses: &Addresses,
    ours: MacAddr,
    link: &mut impl Link,
) {
    let (Ok(Icmpv6PayloadSlice::NeighborSolicitation(solicitation)), IpAddr::V6(source)) =
        (icmp.payload_slice(), packet.source)
    else {
        return;
    };
    if packet.hop_limit() != Some(NDP_HOP_LIMIT) {
        return;
    }
    let target = solicitation.target_address();
    let detecting_duplicates = source.is_unspecified();
    if !should_answer(addresses, target.into(), detecting_duplicates) {
        return;
    }
    let (destination, guests) = if detecting_duplicates {
        (ALL_NODES, ALL_NODES_MAC)
    } else {
        (source, packet.source_mac)
    };
    let mut payload = target.octets().to_vec();
    payload.extend([OPTION_TARGET_LINK_LAYER_ADDRESS, 1]);
    payload.extend(ours);
    Hardware { ours, guests }.send_icmpv6(
        link,
        target,
        destination,
        NDP_HOP_LIMIT,
        Icmpv6Type::NeighborAdvertisement(NeighborAdvertisementHeader {
            router: true,
            solicited: !detecting_duplicates,
            r#override: true,
        }),
        &payload,
    );
}

fn should_answer(addresses: &Addresses, target: IpAddr, detecting_duplicates: bool) -> bool {
    addresses.is_ours(target)
        || addresses.is_gateway(target)
        || (!detecting_duplicates && !addresses.is_guest(target) && !addresses.is_behind(target))
}
