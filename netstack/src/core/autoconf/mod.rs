//! What a guest is told that configures itself: DHCPv4, DHCPv6 and router advertisements. What it
//! makes of that is learnt from its answers, and from what it says of itself in ARP and neighbour
//! discovery.
//!
//! A message causes one answer at most, whose length depends on what the guest is told and not on
//! what it asks. Nothing is kept of a message but the Ethernet addresses of DHCPv4's clients, of
//! which there are as many as addresses to give.

pub mod dhcpv4;
pub mod dhcpv6;
pub mod names;
pub mod router;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use etherparse::UdpSlice;

pub use self::dhcpv4::Pool;
pub use self::names::{DomainName, NameError, Names, SearchList};
pub use self::router::Router;
use super::addresses::{Addresses, Prefix};
use super::link::{Hardware, Link};
use super::neighbour::{ALL_NODES, ALL_NODES_MAC, NDP_HOP_LIMIT};
use super::packet::Packet;
use super::{Core, Instant};

/// What of this a guest is offered: by default nothing, as its addresses are given otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Autoconf {
    /// By DHCPv4.
    pub pool: Option<Pool>,
    /// By DHCPv6, which tells names without an address, too.
    pub dhcpv6: Option<Dhcpv6>,
    /// By router advertisements.
    pub router: Option<Router>,
    pub names: Names,
    /// The link's, in bytes, if the guest is to have another than its own.
    pub mtu: Option<u16>,
    /// Where an address is the guest's as soon as it says so.
    pub chosen_in: Vec<Prefix>,
    /// Not even neighbours are found: the guest has to know our Ethernet address.
    pub ignores_ndp: bool,
}

/// What a DHCPv6 server has to give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dhcpv6 {
    pub address: Option<Ipv6Addr>,
}

/// The servers of a core.
#[derive(Debug)]
pub struct Servers {
    settings: Autoconf,
    dhcpv4: Option<dhcpv4::Server>,
    /// The guest listens to advertisements, and hears the next one then.
    advertise_at: Option<Instant>,
}

/// A message that is none of its protocol's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// How long an address is the guest's before it has to ask again. It is long because nobody else
/// wants it.
const LEASE_SECONDS: u32 = 24 * 60 * 60;

/// A message's bytes: what fits an Ethernet frame, which is where clients send them.
const MAX_MESSAGE_LEN: usize = 1472;
/// A message's options, of which clients send some twenty.
const MAX_OPTIONS: usize = 64;

const DHCPV4_SERVER: u16 = 67;
const DHCPV4_CLIENT: u16 = 68;
const DHCPV6_SERVER: u16 = 547;
const DHCPV6_CLIENT: u16 = 546;
/// All_DHCP_Relay_Agents_and_Servers (RFC 8415 7.1).
const DHCPV6_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// A router's address has to be such a one (RFC 4861 4.2), and it is the gateway's own if that is.
const ROUTER_ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

impl Servers {
    /// `addresses` get what the servers need to have one.
    pub fn new(settings: Autoconf, addresses: &mut Addresses) -> Self {
        let needs_address = settings.router.is_some() || settings.dhcpv6.is_some();
        if needs_address && addresses.link_local_gateway().is_none() {
            addresses.gateways.push(ROUTER_ADDRESS.into());
            addresses.on_link.push(Prefix::host(ROUTER_ADDRESS.into()));
        }
        Self {
            dhcpv4: settings.pool.map(dhcpv4::Server::new),
            advertise_at: None,
            settings,
        }
    }

    pub fn ignores_ndp(&self) -> bool {
        self.settings.ignores_ndp
    }

    /// When to call `Core::advertise_router`.
    pub fn deadline(&self) -> Option<Instant> {
        self.advertise_at
    }
}

impl Core {
    /// Whether a datagram to `to` is for a server of ours.
    pub(super) fn is_for_server(&self, to: SocketAddr) -> bool {
        let Autoconf { pool, dhcpv6, .. } = &self.servers.settings;
        match (to.ip(), to.port()) {
            (IpAddr::V4(ip), DHCPV4_SERVER) => {
                pool.is_some_and(|pool| ip.is_broadcast() || ip == pool.router)
            }
            (IpAddr::V6(ip), DHCPV6_SERVER) => dhcpv6.is_some() && ip == DHCPV6_SERVERS,
            _ => false,
        }
    }

    /// Serves such a datagram.
    pub(super) fn serve_client(&mut self, packet: &Packet, udp: &UdpSlice, link: &mut impl Link) {
        let served = match packet.source {
            IpAddr::V4(_) => self.serve_dhcpv4(packet, udp.payload(), link),
            IpAddr::V6(client) => self.serve_dhcpv6(packet, client, udp.payload(), link),
        };
        if served.is_err() {
            self.counters.frames_dropped += 1;
        }
    }

    fn serve_dhcpv4(
        &mut self,
        packet: &Packet,
        message: &[u8],
        link: &mut impl Link,
    ) -> Result<(), Malformed> {
        let Servers {
            settings, dhcpv4, ..
        } = &mut self.servers;
        let (Some(pool), Some(server)) = (settings.pool, dhcpv4) else {
            return Ok(());
        };
        let Some(answer) = server.handle(message, &settings.names, settings.mtu)? else {
            return Ok(());
        };
        let from = SocketAddr::new(pool.router.into(), DHCPV4_SERVER);
        let to = SocketAddr::new(answer.to.into(), DHCPV4_CLIENT);
        self.note_lease(packet, answer.assigned.map(IpAddr::from));
        // Even a broadcast goes to the one who asked: there may be others, on a bridge.
        let hardware = self.hardware_of(packet);
        hardware.send_udp(link, from, to, &answer.message, None);
        Ok(())
    }

    fn serve_dhcpv6(
        &mut self,
        packet: &Packet,
        client: Ipv6Addr,
        message: &[u8],
        link: &mut impl Link,
    ) -> Result<(), Malformed> {
        let Autoconf { dhcpv6, names, .. } = &self.servers.settings;
        let ours = self.config.addresses.link_local_gateway();
        let (Some(Dhcpv6 { address }), Some(ours)) = (*dhcpv6, ours) else {
            return Ok(());
        };
        // Nobody has another address as long as this is asked (RFC 8415 13.1).
        if !client.is_unicast_link_local() {
            return Err(Malformed);
        }
        let Some(answer) = dhcpv6::handle(message, address, self.config.mac, names)? else {
            return Ok(());
        };
        self.note_lease(packet, answer.assigned.map(IpAddr::from));
        let hardware = self.hardware_of(packet);
        let from = SocketAddr::new(ours.into(), DHCPV6_SERVER);
        let to = SocketAddr::new(client.into(), DHCPV6_CLIENT);
        hardware.send_udp(link, from, to, &answer.message, None);
        Ok(())
    }

    /// The client that sent `packet` has this address from now on.
    fn note_lease(&mut self, packet: &Packet, assigned: Option<IpAddr>) {
        if let Some(address) = assigned {
            self.config.addresses.prefer_guest(address);
            self.guest_mac = Some(packet.source_mac);
        }
    }

    /// The guest looks for routers.
    pub(super) fn handle_router_solicitation(
        &mut self,
        packet: &Packet,
        now: Instant,
        link: &mut impl Link,
    ) {
        if self.servers.settings.router.is_some() && packet.hop_limit() == Some(NDP_HOP_LIMIT) {
            self.advertise_router(now, link);
        }
    }

    /// Tells the guest of the router, and when to do so again. RFC 4861 6.2.6 has a solicitation
    /// wait, and others share its answer; here is one who could be meant.
    pub(super) fn advertise_router(&mut self, now: Instant, link: &mut impl Link) {
        let Autoconf {
            router,
            dhcpv6,
            names,
            mtu,
            ..
        } = &self.servers.settings;
        let source = self.config.addresses.link_local_gateway();
        let (Some(router), Some(source)) = (router, source) else {
            return;
        };
        let mac = self.config.mac;
        let has_lease = dhcpv6.is_some_and(|dhcpv6| dhcpv6.address.is_some());
        let (message, body) = router.advertisement(names, has_lease, *mtu, mac);
        let hardware = Hardware {
            ours: mac,
            guests: ALL_NODES_MAC,
        };
        hardware.send_icmpv6(link, source, ALL_NODES, NDP_HOP_LIMIT, message, &body);
        self.servers.advertise_at = Some(now + router::INTERVAL);
    }

    /// Somebody on the guest's link says that `ip` is its own.
    pub(super) fn note_claim(&mut self, ip: IpAddr) {
        let addresses = &mut self.config.addresses;
        let may_be_chosen = self
            .servers
            .settings
            .chosen_in
            .iter()
            .any(|prefix| prefix.contains(ip));
        if may_be_chosen
            && !addresses.is_guest(ip)
            && !addresses.is_ours(ip)
            && !addresses.is_gateway(ip)
        {
            addresses.prefer_guest(ip);
        }
    }
}
