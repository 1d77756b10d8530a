//! What events of the host set off: dials that end, clients that connect, datagrams and errors that
//! arrive.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use smoltcp::socket::tcp::State;
use tracing::debug;

use super::datagram::{Role, Visit};
use super::dns::Forwarder;
use super::flow::{Cause, FlowId, Protocol};
use super::icmp::{self, DeliveryError, Unreachable};
use super::link::{Hardware, Link};
use super::policy::Verdict;
use super::shares::Share;
use super::tcp::{Phase, Readiness, TcpFlow};
use super::{Core, DialError, Instant, Kind, Service};

impl Core {
    /// The dial that an [`Action::Dial`](super::Action::Dial) asked for is about to begin. False if
    /// nobody waits for it any more.
    pub fn begin_dial(&mut self, id: FlowId, now: Instant) -> bool {
        let flow = self.flows.tcp(id);
        if !flow.is_some_and(|flow| matches!(flow.phase(), Phase::Dialling { .. })) {
            return false;
        }
        self.advance(id, Share::Dials, now, TcpFlow::dial_begins);
        true
    }

    /// The dial that an [`Action::Dial`](super::Action::Dial) asked for has ended. Late news of a
    /// flow that is gone are ignored.
    pub fn handle_dialled(
        &mut self,
        id: FlowId,
        result: Result<(), DialError>,
        now: Instant,
        link: &mut impl Link,
    ) {
        let hardware = self.hardware(id);
        let (Some(tuple), Some(flow)) = (self.flows.tuple(id), self.flows.tcp(id)) else {
            return;
        };
        let (Phase::Dialling { syn, to, .. }, Some(remote)) = (flow.phase(), tuple.remote) else {
            return;
        };
        let to = *to;
        tuple.span().in_scope(|| debug!(%to, ?result, "is dialled"));
        match result {
            Ok(()) => {
                let connection = self.engine.accept(remote, syn, hardware, now, link);
                let taken = connection.state() != State::Listen;
                self.advance(id, Share::HalfOpen, now, |flow| flow.answered(connection));
                if !taken {
                    // Its addresses or checksum are none that TCP answers, so nobody waits for one.
                    self.close(id, Cause::GuestSilent);
                    return;
                }
                self.counters.connections += 1;
                self.host_ready(id, Readiness::WRITABLE);
                return;
            }
            Err(DialError::Refused) => self.engine.refuse(syn, hardware, now, link),
            Err(DialError::Unreachable(why)) => {
                let guest = tuple.guest.ip();
                if let Some(gateway) = self.config.addresses.gateway(guest) {
                    icmp::send_unreachable(hardware, link, gateway, guest, why, syn);
                }
            }
            Err(DialError::Silent) => {}
        }
        let was_query = self.judge(Protocol::Tcp, remote) == Verdict::Resolve;
        if was_query && result != Err(DialError::Silent) {
            self.forwarder.dial_failed(to);
        }
        self.close(id, Cause::DialFailed);
    }

    /// A client has connected to a published port. `None` when the guest cannot be reached (yet) or
    /// a limit is reached; the caller resets the client then.
    pub fn handle_accepted(
        &mut self,
        client: SocketAddr,
        service: impl Into<Service>,
        now: Instant,
    ) -> Option<FlowId> {
        let (guest, appears) = self.published_addresses(client, service.into())?;
        let guest_mac = self.guest_mac?;
        if !self.admits_stream(guest.ip()) {
            return None;
        }
        self.make_room(Share::HalfOpen);
        let Some(tuple) = self.free_tuple(Protocol::Tcp, guest, appears) else {
            self.counters.out_of_ports += 1;
            return None;
        };
        let hardware = Hardware {
            ours: self.config.mac,
            guests: guest_mac,
        };
        let connection = self.engine.connect(tuple.remote?, guest, hardware)?;
        self.counters.connections += 1;
        let flow = TcpFlow::published(connection, self.may_promote(&tuple), now);
        let id = self.insert(tuple, guest_mac, Kind::Tcp(Box::new(flow)))?;
        self.begin(id, Share::HalfOpen, now);
        self.host_ready(id, Readiness::WRITABLE);
        Some(id)
    }

    /// The flow's host stream could not be kept: the guest is told by RST.
    pub fn abandon(&mut self, id: FlowId, now: Instant, link: &mut impl Link) {
        if let Some(flow) = self.flows.tcp_mut(id) {
            flow.abort(&mut self.engine, now, link);
            self.close(id, Cause::ResetByHost);
        }
    }

    /// The flow's host stream has changed.
    pub fn host_ready(&mut self, id: FlowId, readiness: Readiness) {
        if let Some(flow) = self.flows.tcp_mut(id) {
            flow.host_ready(readiness);
            self.touch(id);
        }
    }

    /// A datagram has arrived on the socket of mapping `id`; cut into datagrams of `segment` bytes
    /// if given.
    pub fn handle_datagram(
        &mut self,
        id: FlowId,
        from: SocketAddr,
        payload: &[u8],
        segment: Option<NonZeroU16>,
        now: Instant,
        link: &mut impl Link,
    ) {
        let hardware = self.hardware(id);
        let Some(mapping) = self.flows.mapping_mut(id) else {
            return;
        };
        let Some(appears) = mapping.appearance(from) else {
            return;
        };
        mapping.last_used = now;
        mapping.bytes_to_guest += payload.len() as u64;
        self.counters.bytes_to_guest += payload.len() as u64;
        let guest = mapping.guest;
        match segment {
            Some(size) if !self.config.udp_segmentation => {
                for datagram in payload.chunks(usize::from(size.get())) {
                    hardware.send_udp(link, appears, guest, datagram, None);
                }
            }
            segment => hardware.send_udp(link, appears, guest, payload, segment),
        }
    }

    /// A datagram of a client of a published UDP port. Returns the mapping it belongs to, which is
    /// new or known.
    pub fn handle_published_datagram(
        &mut self,
        visit: Visit,
        service: impl Into<Service>,
        payload: &[u8],
        segment: Option<NonZeroU16>,
        now: Instant,
        link: &mut impl Link,
    ) -> Option<FlowId> {
        let (guest, appears) = self.published_addresses(visit.client, service.into())?;
        let id = match self.visits.get(&(visit, guest)) {
            Some(id) => self.detour_of(*id, now),
            None => {
                let Some(tuple) = self.free_tuple(Protocol::Udp, guest, appears) else {
                    self.counters.out_of_ports += 1;
                    return None;
                };
                let role = Role::Published {
                    appears: tuple.remote?,
                    visit,
                    detour: None,
                    is_detour: false,
                };
                let id = self.insert_mapping(tuple, self.guest_mac?, role, now)?;
                self.visits.insert((visit, guest), id);
                id
            }
        };
        self.handle_datagram(id, visit.client, payload, segment, now, link);
        Some(id)
    }

    /// An echo reply has arrived on the socket of flow `id`.
    pub fn handle_echo_reply(
        &mut self,
        id: FlowId,
        sequence: u16,
        payload: &[u8],
        now: Instant,
        link: &mut impl Link,
    ) {
        let hardware = self.hardware(id);
        let Some(mapping) = self.flows.mapping_mut(id) else {
            return;
        };
        let Role::Echo { remote } = mapping.role else {
            return;
        };
        mapping.last_used = now;
        let identifier = mapping.guest.port();
        icmp::send_echo_reply(
            hardware,
            link,
            remote,
            mapping.guest.ip(),
            identifier,
            sequence,
            payload,
        );
    }

    /// A datagram of flow `id` did not arrive.
    pub fn handle_datagram_error(
        &mut self,
        id: FlowId,
        error: DeliveryError,
        link: &mut impl Link,
    ) {
        let Some(mapping) = self.flows.mapping_mut(id) else {
            return;
        };
        if let Role::Dns { questions, .. } = &mut mapping.role {
            questions.failed(error.to, &mut self.forwarder);
        }
        let guest = mapping.guest;
        if let Some(remote) = mapping.appearance(error.to)
            && let Some(quote) = icmp::quoted_datagram(guest, remote)
        {
            self.pass_error_on(id, guest.ip(), remote.ip(), error, &quote, link);
        }
    }

    /// The echo request `sequence` of flow `id` did not arrive.
    pub fn handle_echo_error(
        &mut self,
        id: FlowId,
        sequence: u16,
        error: DeliveryError,
        link: &mut impl Link,
    ) {
        let Some(mapping) = self.flows.mapping_mut(id) else {
            return;
        };
        let guest = mapping.guest;
        if let Role::Echo { remote } = mapping.role
            && let Some(quote) = icmp::quoted_echo(guest.ip(), remote, guest.port(), sequence)
        {
            self.pass_error_on(id, guest.ip(), remote, error, &quote, link);
        }
    }

    /// Tells `guest` of `error`, which the packet quoted in `quote` met on its way to `remote`.
    fn pass_error_on(
        &self,
        id: FlowId,
        guest: IpAddr,
        remote: IpAddr,
        error: DeliveryError,
        quote: &[u8],
        link: &mut impl Link,
    ) {
        let reporter = match error.why {
            Unreachable::Port => Some(remote),
            // A router of the path: the guest may be looking for it.
            Unreachable::TimeExceeded => error
                .reporter
                .and_then(|router| self.config.addresses.appearance(router)),
            _ => None,
        };
        let Some(reporter) = reporter.or_else(|| self.config.addresses.gateway(guest)) else {
            return;
        };
        let hardware = self.hardware(id);
        icmp::send_unreachable(hardware, link, reporter, guest, error.why, quote);
    }

    /// The host's resolvers, most preferred first.
    pub fn set_resolvers(&mut self, resolvers: Vec<SocketAddr>) {
        self.forwarder = Forwarder::new(resolvers);
    }

    /// Where in the guest a client of a published port goes, and who it appears to be. A client of
    /// a family that the guest lacks appears as the gateway of the other one.
    fn published_addresses(
        &self,
        client: SocketAddr,
        service: Service,
    ) -> Option<(SocketAddr, SocketAddr)> {
        let addresses = &self.config.addresses;
        let appearance = addresses.appearance(client.ip());
        let (guest, appears) = match (service.address, appearance) {
            (Some(guest), Some(appears)) if guest.is_ipv4() == appears.is_ipv4() => {
                (guest, appears)
            }
            (Some(guest), _) => (guest, addresses.gateway(guest)?),
            (None, Some(appears)) => (addresses.guest(appears)?, appears),
            (None, None) => addresses.in_other_family(client.ip())?,
        };
        Some((
            SocketAddr::new(guest, service.port),
            SocketAddr::new(appears, client.port()),
        ))
    }
}
