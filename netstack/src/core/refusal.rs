//! When the guest refuses what a client of a published port wants: then the other family is tried,
//! before the client notices anything.
//!
//! A published port is open on the host in both families, and many a service listens in one.
//! Whoever comes over the other one appears as the gateway there, since its own address cannot be
//! expressed. A TCP client gets one more attempt: the refusal is a RST, or an ICMP error of the
//! guest's firewall, in answer to our SYN. A UDP client gets a *detour*, a second mapping, for as
//! long as the service there does not refuse as well.

use std::net::{IpAddr, SocketAddr};

use etherparse::{IpNumber, Ipv4HeaderSlice, Ipv6HeaderSlice};

use super::datagram::Role;
use super::flow::{Cause, FlowId, Protocol, Tuple};
use super::link::Link;
use super::{Action, Core, Instant, MAX_CLASHES};

impl Core {
    /// The guest says of a packet to it, of which `quote` is the beginning, that it will not arrive
    /// (RFC 792, RFC 4443 3.1).
    pub(super) fn handle_unreachable<'f>(
        &mut self,
        quote: &[u8],
        now: Instant,
        link: &mut impl Link,
    ) -> Option<Action<'f>> {
        let quote = Quote::parse(quote)?;
        let tuple = |protocol| Tuple {
            protocol,
            guest: quote.destination,
            remote: Some(quote.source),
        };
        match quote.protocol {
            IpNumber::TCP => {
                let id = self.flows.find(&tuple(Protocol::Tcp))?;
                if self
                    .flows
                    .tcp_mut(id)?
                    .take_refusal(quote.sequence_number()?)
                {
                    self.try_other_family(id, now);
                    self.touch(id);
                }
                None
            }
            IpNumber::UDP => {
                let id = self.flows.find(&tuple(Protocol::Udp))?;
                self.detour(id, quote.datagram(), now, link)
            }
            _ => None,
        }
    }

    /// Opens the connection of a client, which the guest has refused, over the other family. If
    /// that cannot be, the flow ends when it is served.
    pub(super) fn try_other_family(&mut self, id: FlowId, now: Instant) -> Option<()> {
        if self.flows.tcp(id)?.has_tried_other_family() {
            return None;
        }
        let refused = self.flows.tuple(id)?;
        let tuple = self.other_family(&refused)?;
        let hardware = self.hardware(id);
        let connection = self.engine.connect(tuple.remote?, tuple.guest, hardware)?;
        let promote = self.may_promote(&tuple);
        self.flows.rename(id, tuple);
        let flow = self.flows.tcp_mut(id)?;
        let refused = flow.connect_again(connection, promote, now)?;
        self.engine.recycle(refused, 0);
        Some(())
    }

    /// The mapping by which datagrams of the client of `id` reach the guest.
    pub(super) fn detour_of(&mut self, id: FlowId, now: Instant) -> FlowId {
        let Some(mapping) = self.flows.mapping_mut(id) else {
            return id;
        };
        // It may not be used itself, but knows the way.
        mapping.last_used = now;
        let Role::Published { detour, .. } = mapping.role else {
            return id;
        };
        detour
            .filter(|detour| self.flows.get(*detour).is_some())
            .unwrap_or(id)
    }

    /// The guest has refused a datagram of mapping `id`, which is `payload` if that was quoted.
    fn detour<'f>(
        &mut self,
        id: FlowId,
        payload: Option<&[u8]>,
        now: Instant,
        link: &mut impl Link,
    ) -> Option<Action<'f>> {
        let guest_mac = self.flows.get(id)?.guest_mac;
        let Role::Published {
            visit,
            detour,
            is_detour,
            ..
        } = self.flows.mapping_mut(id)?.role
        else {
            return None;
        };
        if is_detour {
            // Nobody there either. The next datagram begins anew.
            self.close(id, Cause::Finished);
            return None;
        }
        if detour.is_some_and(|detour| self.flows.get(detour).is_some()) {
            return None;
        }
        let tuple = self.other_family(&self.flows.tuple(id)?)?;
        let role = Role::Published {
            appears: tuple.remote?,
            visit,
            detour: None,
            is_detour: true,
        };
        let new = self.insert_mapping(tuple, guest_mac, role, now)?;
        // Gone, if it was the one to make room.
        if let Role::Published { detour, .. } = &mut self.flows.mapping_mut(id)?.role {
            *detour = Some(new);
        }
        if let Some(payload) = payload {
            self.handle_datagram(new, visit.client, payload, None, now, link);
        }
        Some(Action::ShareSocket {
            flow: new,
            with: id,
        })
    }

    /// The flow of a client with the ends that it has in the other family. `None` when the guest
    /// lacks that. Of whoever is behind the guest no other address is known.
    fn other_family(&self, tuple: &Tuple) -> Option<Tuple> {
        let addresses = &self.config.addresses;
        let ip = Some(tuple.guest.ip()).filter(|ip| !addresses.is_behind(*ip))?;
        let (guest, gateway) = addresses.in_other_family(ip)?;
        let guest = SocketAddr::new(guest, tuple.guest.port());
        let appears = SocketAddr::new(gateway, tuple.remote?.port());
        self.free_tuple(tuple.protocol, guest, appears)
    }

    /// Many clients may share the gateway's address, and their own ports may clash: then another
    /// one is taken.
    pub(super) fn free_tuple(
        &self,
        protocol: Protocol,
        guest: SocketAddr,
        appears: SocketAddr,
    ) -> Option<Tuple> {
        let own = appears.port();
        (own..=u16::MAX)
            .chain(1024..own)
            .map(|port| Tuple {
                protocol,
                guest,
                remote: Some(SocketAddr::new(appears.ip(), port)),
            })
            .take(MAX_CLASHES)
            .find(|tuple| self.flows.find(tuple).is_none())
    }
}

/// The beginning of a packet of ours, as the guest quotes it.
struct Quote<'q> {
    protocol: IpNumber,
    source: SocketAddr,
    destination: SocketAddr,
    transport: &'q [u8],
}

impl Quote<'_> {
    fn parse(packet: &[u8]) -> Option<Quote<'_>> {
        let (protocol, source, destination, len) = match packet.first()? >> 4 {
            4 => {
                let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
                (
                    ip.protocol(),
                    IpAddr::from(ip.source_addr()),
                    IpAddr::from(ip.destination_addr()),
                    ip.slice().len(),
                )
            }
            _ => {
                let ip = Ipv6HeaderSlice::from_slice(packet).ok()?;
                (
                    ip.next_header(),
                    ip.source_addr().into(),
                    ip.destination_addr().into(),
                    ip.slice().len(),
                )
            }
        };
        let transport = packet.get(len..)?;
        let [s0, s1, d0, d1] = *transport.first_chunk()?;
        Some(Quote {
            protocol,
            source: SocketAddr::new(source, u16::from_be_bytes([s0, s1])),
            destination: SocketAddr::new(destination, u16::from_be_bytes([d0, d1])),
            transport,
        })
    }

    /// SEG.SEQ of a TCP segment.
    fn sequence_number(&self) -> Option<u32> {
        let bytes = self.transport.get(4..8)?.try_into().ok()?;
        Some(u32::from_be_bytes(bytes))
    }

    /// What a UDP datagram carried, if all of it is quoted.
    fn datagram(&self) -> Option<&[u8]> {
        let [high, low] = *self.transport.get(4..)?.first_chunk()?;
        let len = usize::from(u16::from_be_bytes([high, low]));
        self.transport.get(..len)?.get(8..)
    }
}
