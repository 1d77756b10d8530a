//! What the clients of a guest say that configures itself: DHCPv4, DHCPv6, router solicitations.
//! Written here by hand, so that it is not read by the code that wrote it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netstack::core::vnet::VNET_HEADER_LEN;
use netstack::core::{CoreConfig, MacAddr};

use crate::core_config;
use crate::packet::{Datagram, GUEST_MAC, ip};

/// The guest's link-local address.
pub const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe12, 0x3456);

/// The usual network, for a guest that nobody has configured.
pub fn core_config_for_clients() -> CoreConfig {
    CoreConfig {
        autoconf: netstack::network::Network::default().autoconf(Some(1500)),
        ..core_config()
    }
}

/// A DHCPv4 message of `client`, which has the address `has` already or none: its kind, and
/// further options as they are on the wire.
pub fn dhcpv4(client: MacAddr, kind: u8, has: Ipv4Addr, options: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..8].copy_from_slice(&[1, 1, 6, 0, 0xde, 0xad, 0xbe, 0xef]);
    message[12..16].copy_from_slice(&has.octets());
    message[28..34].copy_from_slice(&client);
    message[236..].copy_from_slice(&[99, 130, 83, 99]);
    message.extend([53, 1, kind]);
    message.extend(options);
    message.push(255);
    message
}

/// A DHCPv6 message of a client called "guest": its kind, and further options as on the wire.
pub fn dhcpv6(kind: u8, options: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0xde, 0xad, 0xbe, 0, 1, 0, 5];
    message.extend(b"guest");
    message.extend(options);
    message
}

/// The frame around a DHCPv4 message, from a client without an address.
pub fn dhcpv4_frame(message: Vec<u8>) -> Vec<u8> {
    datagram(Ipv4Addr::UNSPECIFIED, 68, Ipv4Addr::BROADCAST, 67, message)
}

/// The frame around a DHCPv6 message.
pub fn dhcpv6_frame(message: Vec<u8>) -> Vec<u8> {
    let servers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
    datagram(LINK_LOCAL, 546, servers, 547, message)
}

fn datagram(
    source: impl Into<IpAddr>,
    source_port: u16,
    destination: impl Into<IpAddr>,
    destination_port: u16,
    payload: Vec<u8>,
) -> Vec<u8> {
    let datagram = Datagram {
        source: SocketAddr::new(source.into(), source_port),
        destination: SocketAddr::new(destination.into(), destination_port),
        payload,
    };
    datagram.frame()
}

/// The frame of a router solicitation, which counts with a hop limit of 255 only.
pub fn router_solicitation(hop_limit: u8) -> Vec<u8> {
    let mut frame = vec![0; VNET_HEADER_LEN];
    let routers = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
    let headers = ip(LINK_LOCAL.into(), routers.into());
    let body = [&[1, 1], GUEST_MAC.as_slice()].concat();
    headers
        .icmpv6_raw(133, 0, [0; 4])
        .write(&mut frame, &body)
        .expect("lengths fit");
    frame[VNET_HEADER_LEN + 14 + 7] = hop_limit;
    frame
}
