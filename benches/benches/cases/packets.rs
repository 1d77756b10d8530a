//! Frames as the guest's kernel writes them to the tap: virtio header, Ethernet, and so on.

use std::net::Ipv4Addr;

use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder, TcpHeader};
use netstack::core::vnet::VNET_HEADER_LEN;
use testbed::packet::{GUEST_MAC, ip};

pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub const REMOTE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// VIRTIO_NET_HDR_F_NEEDS_CSUM, as on every TCP segment of an offloaded tap: nobody has computed
/// the checksum.
const NEEDS_CHECKSUM: u8 = 1;

/// A datagram of `len` bytes to a remote.
pub fn udp(port: u16, len: usize) -> Vec<u8> {
    let mut frame = vec![0; VNET_HEADER_LEN];
    ip(GUEST.into(), REMOTE.into())
        .udp(port, 443)
        .write(&mut frame, &vec![0x5a; len])
        .expect("a vector takes everything");
    frame
}

/// A TCP segment to a remote.
pub fn tcp(header: TcpHeader, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; VNET_HEADER_LEN];
    frame[0] = NEEDS_CHECKSUM;
    ip(GUEST.into(), REMOTE.into())
        .tcp_header(header)
        .write(&mut frame, payload)
        .expect("a vector takes everything");
    frame
}

/// The question for the gateway's hardware address.
pub fn arp_request() -> Vec<u8> {
    let arp = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REQUEST,
        &GUEST_MAC,
        &GUEST.octets(),
        &[0; 6],
        &GATEWAY.octets(),
    )
    .expect("addresses have their lengths");
    let mut frame = vec![0; VNET_HEADER_LEN];
    PacketBuilder::ethernet2(GUEST_MAC, [0xff; 6])
        .arp(arp)
        .write(&mut frame)
        .expect("a vector takes everything");
    frame
}
