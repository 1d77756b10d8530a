//! The network as a machine without input or output: frames of the guest and events of the host go in with the time,
//! frames to the guest and actions for the host come out. No socket, no clock, no thread, nothing random inside.
//!
//! Order of calls, by the driver, in each of its turns:
//! 1. [`Core::handle_frame`] for each frame, carrying out the [`Action`] it returns at once; `handle_*` for host events;
//! 2. [`Core::handle_deadline`] when the time of [`Core::poll_deadline`] has come;
//! 3. [`Core::poll_touched`] until `None`, calling [`Core::serve`] with the host stream of each flow;
//! 4. [`Core::poll_promotion`] until `None`, handing each flow over to the kernel;
//! 5. [`Core::poll_closed`] until `None`, closing what belonged to the flow.
//!
//! A frame's way: `packet` takes it apart, `handle_frame` finds its flow in the table, `tcp` or `datagram` acts on it.
//! Hostile input is counted and dropped; every table has a limit.

pub mod datagram;
pub mod flow;
pub mod icmp;
pub mod link;
mod neighbour;
mod packet;
pub mod policy;
mod reassembly;
mod seniority;
pub mod tcp;
mod timers;
pub mod vnet;

use std::borrow::Cow;
use std::collections::{HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use etherparse::{Icmpv4Slice, Icmpv4Type, Icmpv6Slice, Icmpv6Type, TcpSlice, UdpSlice};

pub use self::packet::MacAddr;
use smoltcp::socket::tcp::State;
pub use smoltcp::time::{Duration, Instant};

use self::datagram::{Mapping, Role};
use self::flow::{FlowId, FlowTable, HashKey, Protocol, Tuple};
use self::icmp::Unreachable;
use self::link::{HOP_LIMIT, Hardware, Link};
use self::packet::{Frame, Packet, Transport};
use self::policy::{Network, Verdict};
use self::reassembly::Reassembly;
use self::seniority::Seniority;
use self::tcp::{Cause, Engine, HostStream, Phase, Promote, Readiness, Served, Snapshot, TcpFlow};
use self::timers::Timers;
use self::vnet::Segmentation;

/// Most flows of all kinds at a time.
pub const MAX_FLOWS: usize = 65_536;
/// Most dials under way. One more, and the oldest is given up unsaid: if the guest still wants it, it repeats its SYN.
/// So dials that nobody answers cannot keep out those that somebody would.
pub const MAX_DIALS: usize = 4_096;
/// Most UDP and echo mappings, each of which holds a descriptor. One more, and one that was not used lately goes.
pub const MAX_MAPPINGS: usize = 4_096;
/// Most ports that are tried for the client of a published port whose own is taken.
pub const MAX_CLASHES: usize = 1_024;

/// Longest time that a frame is under way between the guest and us.
const IN_FLIGHT: Duration = Duration::from_millis(100);

/// What a core is made from.
pub struct Config {
    pub network: Network,
    /// Largest IP packet on the guest's link, 1280 to 65520.
    pub mtu: u16,
    /// Our address on the guest's Ethernet.
    pub mac: MacAddr,
    /// The guest's, if known; otherwise learnt from its first frame.
    pub guest_mac: Option<MacAddr>,
    /// The guest's kernel cuts UDP super-frames (kernel 6.2).
    pub udp_segmentation: bool,
    /// Whether flows may be handed over to the kernel.
    pub promote: Promote,
    pub random_seed: u64,
    pub hash_key: HashKey,
}

/// What the driver has to do for a frame, at once.
#[derive(Debug, PartialEq, Eq)]
pub enum Action<'f> {
    /// Connect a stream to `to`, then call [`Core::handle_dialled`].
    Dial { flow: FlowId, to: SocketAddr },
    /// Send `payload` to `to` from the flow's socket, made at its first datagram; cut into datagrams of `segment`
    /// bytes if that is given.
    SendDatagram {
        flow: FlowId,
        to: SocketAddr,
        payload: Cow<'f, [u8]>,
        segment: Option<NonZeroU16>,
    },
    /// Send an echo request from the flow's ping socket.
    SendEcho {
        flow: FlowId,
        to: IpAddr,
        sequence: u16,
        payload: Cow<'f, [u8]>,
    },
}

/// How a dial ended if it did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DialError {
    /// RST came back.
    Refused,
    Unreachable(Unreachable),
    /// Nobody answered, or the host is out of sockets: the guest hears nothing and tries again.
    Silent,
}

/// What has happened so far, for status and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub connections: u64,
    pub bytes_to_guest: u64,
    pub bytes_from_guest: u64,
    /// Frames that were malformed or of a kind this network does not carry.
    pub frames_dropped: u64,
    /// Flows that were not made because of a limit.
    pub limit_reached: u64,
    /// Packets to addresses that the guest may not reach.
    pub prohibited: u64,
    /// Flows that the kernel has taken over, and attempts that failed.
    pub promotions: u64,
    pub promotions_failed: u64,
}

/// See the module's description.
pub struct Core {
    config: Config,
    guest_mac: Option<MacAddr>,
    engine: Engine,
    flows: FlowTable<Entry>,
    dials: usize,
    dial_order: Seniority,
    mappings: usize,
    mapping_order: Seniority,
    timers: Timers,
    touched: VecDeque<FlowId>,
    closed: VecDeque<(FlowId, Cause)>,
    promotions: VecDeque<FlowId>,
    promote: Promote,
    stray_seen: bool,
    resolvers: Vec<SocketAddr>,
    reassembly: Reassembly,
    counters: Counters,
}

/// A flow in the table, with what all kinds have.
struct Entry {
    tuple: Tuple,
    guest_mac: MacAddr,
    scheduled: Option<Instant>,
    touched: bool,
    kind: Kind,
}

enum Kind {
    Tcp(Box<TcpFlow>),
    Mapping(Mapping),
}

impl Core {
    pub fn new(config: Config, now: Instant) -> Core {
        Core {
            guest_mac: config.guest_mac,
            engine: Engine::new(config.mtu, config.random_seed, now),
            flows: FlowTable::new(config.hash_key),
            dials: 0,
            dial_order: Seniority::new(MAX_DIALS),
            mappings: 0,
            mapping_order: Seniority::new(MAX_MAPPINGS),
            timers: Timers::default(),
            touched: VecDeque::new(),
            closed: VecDeque::new(),
            promotions: VecDeque::new(),
            promote: config.promote,
            stray_seen: false,
            resolvers: Vec::new(),
            reassembly: Reassembly::default(),
            counters: Counters::default(),
            config,
        }
    }

    /// Takes a frame of the guest, virtio header first.
    pub fn handle_frame<'f>(
        &mut self,
        frame: &'f [u8],
        now: Instant,
        link: &mut impl Link,
    ) -> Option<Action<'f>> {
        match Frame::parse(frame) {
            Some(Frame::Arp(arp)) => {
                let network = &self.config.network;
                neighbour::handle_arp(&arp, network, self.config.mac, link);
                None
            }
            Some(Frame::Ip(packet)) => self.handle_packet(packet, now, link),
            Some(Frame::Fragment {
                source_mac,
                source,
                destination,
                sliced,
            }) => {
                let (protocol, payload) = self.reassembly.add(&sliced, now)?;
                let packet = Packet {
                    source_mac,
                    source,
                    destination,
                    offload: Reassembly::OFFLOAD,
                    ip: &[],
                    transport: Transport::parse(protocol, &payload)?,
                };
                self.handle_packet(packet, now, link)
                    .map(Action::into_owned)
            }
            None => {
                self.counters.frames_dropped += 1;
                None
            }
        }
    }

    /// The dial that an [`Action::Dial`] asked for has ended. Late news of a flow that is gone are ignored.
    pub fn handle_dialled(
        &mut self,
        id: FlowId,
        result: Result<(), DialError>,
        now: Instant,
        link: &mut impl Link,
    ) {
        let hardware = self.hardware(id);
        let Some(Entry {
            tuple,
            kind: Kind::Tcp(flow),
            ..
        }) = self.flows.get_mut(id)
        else {
            return;
        };
        let (Phase::Dialling { syn }, Some(remote)) = (&flow.phase, tuple.remote) else {
            return;
        };
        self.dials -= 1;
        match result {
            Ok(()) => {
                let connection = self.engine.accept(remote, syn, hardware, now, link);
                let taken = connection.state() != State::Listen;
                flow.phase = Phase::Open(connection);
                if !taken {
                    // Its addresses or checksum are none that TCP answers, so nobody waits for one.
                    self.close(id, Cause::GuestSilent);
                    return;
                }
                flow.host_ready(Readiness {
                    writable: true,
                    ..Readiness::default()
                });
                self.counters.connections += 1;
                self.touch(id);
                return;
            }
            Err(DialError::Refused) => self.engine.refuse(syn, hardware, now, link),
            Err(DialError::Unreachable(why)) => {
                let guest = tuple.guest.ip();
                if let Some(gateway) = self.config.network.gateway(guest) {
                    icmp::send_unreachable(hardware, link, gateway, guest, why, syn);
                }
            }
            Err(DialError::Silent) => {}
        }
        self.close(id, Cause::DialFailed);
    }

    /// A client has connected to a published port. `None` when the guest cannot be reached (yet) or a limit is
    /// reached; the caller resets the client then.
    pub fn handle_accepted(
        &mut self,
        client: SocketAddr,
        guest_port: u16,
        now: Instant,
    ) -> Option<FlowId> {
        let (guest, appears) = self.published_addresses(client, guest_port)?;
        let guest_mac = self.guest_mac?;
        if self.flows.count() >= MAX_FLOWS {
            self.counters.limit_reached += 1;
            return None;
        }
        // Many clients may share the gateway's address; their own ports then may clash.
        let own = appears.port();
        let tuples = (own..=u16::MAX).chain(1024..own).map(|port| Tuple {
            protocol: Protocol::Tcp,
            guest,
            remote: Some(SocketAddr::new(appears.ip(), port)),
        });
        let free = |tuple: &Tuple| self.flows.find(tuple).is_none();
        let Some(tuple) = tuples.take(MAX_CLASHES).find(free) else {
            self.counters.limit_reached += 1;
            return None;
        };
        let hardware = Hardware {
            ours: self.config.mac,
            guests: guest_mac,
        };
        let connection = self.engine.connect(tuple.remote?, guest, hardware)?;
        self.counters.connections += 1;
        let flow = TcpFlow::published(connection, self.promote, now);
        let id = self.insert(tuple, guest_mac, Kind::Tcp(Box::new(flow)))?;
        self.host_ready(
            id,
            Readiness {
                writable: true,
                ..Readiness::default()
            },
        );
        Some(id)
    }

    /// The flow's host stream could not be kept: the guest is told by RST.
    pub fn abandon(&mut self, id: FlowId, now: Instant, link: &mut impl Link) {
        if let Some(Entry {
            kind: Kind::Tcp(flow),
            ..
        }) = self.flows.get_mut(id)
        {
            flow.abort(&mut self.engine, now, link);
            self.close(id, Cause::ResetByHost);
        }
    }

    /// The flow's host stream has changed.
    pub fn host_ready(&mut self, id: FlowId, readiness: Readiness) {
        if let Some(Entry {
            kind: Kind::Tcp(flow),
            ..
        }) = self.flows.get_mut(id)
        {
            flow.host_ready(readiness);
            self.touch(id);
        }
    }

    /// A datagram has arrived on the socket of mapping `id`; cut into datagrams of `segment` bytes if given.
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
        let Some(Entry {
            kind: Kind::Mapping(mapping),
            ..
        }) = self.flows.get_mut(id)
        else {
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

    /// A datagram of a client of a published UDP port. Returns the mapping it belongs to, which is new or known.
    pub fn handle_published_datagram(
        &mut self,
        client: SocketAddr,
        guest_port: u16,
        payload: &[u8],
        segment: Option<NonZeroU16>,
        now: Instant,
        link: &mut impl Link,
    ) -> Option<FlowId> {
        let (guest, appears) = self.published_addresses(client, guest_port)?;
        let tuple = Tuple {
            protocol: Protocol::Udp,
            guest,
            remote: Some(appears),
        };
        let id = match self.flows.find(&tuple) {
            Some(id) => id,
            None => {
                let role = Role::Published { appears, client };
                self.insert_mapping(tuple, self.guest_mac?, role, now)?
            }
        };
        self.handle_datagram(id, client, payload, segment, now, link);
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
        let Some(Entry {
            kind: Kind::Mapping(mapping),
            ..
        }) = self.flows.get_mut(id)
        else {
            return;
        };
        let Role::Echo { remote } = mapping.role else {
            return;
        };
        mapping.last_used = now;
        let identifier = mapping.guest.port();
        send_echo_reply(
            hardware,
            link,
            remote,
            mapping.guest.ip(),
            identifier,
            sequence,
            payload,
        );
    }

    /// A datagram or echo request of flow `id` to the host address `to` did not arrive.
    pub fn handle_datagram_error(
        &mut self,
        id: FlowId,
        to: SocketAddr,
        why: Unreachable,
        link: &mut impl Link,
    ) {
        let hardware = self.hardware(id);
        let Some(Entry {
            kind: Kind::Mapping(mapping),
            ..
        }) = self.flows.get_mut(id)
        else {
            return;
        };
        if let Role::Dns { question, .. } = &mut mapping.role {
            // The guest asks again at once; then it is the next resolver's turn.
            *question = None;
            if self.resolvers.first() == Some(&to) {
                self.resolvers.rotate_left(1);
            }
        }
        let guest = mapping.guest;
        let (reporter, remote) = match mapping.role {
            // Echo has no ports to quote; ping reports the loss by itself.
            Role::Echo { .. } => return,
            _ => match mapping.appearance(to) {
                Some(remote) if why == Unreachable::Port => (remote.ip(), remote),
                Some(remote) => match self.config.network.gateway(guest.ip()) {
                    Some(gateway) => (gateway, remote),
                    None => return,
                },
                None => return,
            },
        };
        if let Some(quote) = icmp::quoted_datagram(guest, remote) {
            icmp::send_unreachable(hardware, link, reporter, guest.ip(), why, &quote);
        }
    }

    /// The host's resolvers, most preferred first.
    pub fn set_resolvers(&mut self, resolvers: Vec<SocketAddr>) {
        self.resolvers = resolvers;
    }

    /// Wakes the flows whose time has come and ends idle mappings.
    pub fn handle_deadline(&mut self, now: Instant) {
        while let Some(id) = self.timers.pop(now) {
            let Some(entry) = self.flows.get_mut(id) else {
                continue;
            };
            entry.scheduled = None;
            match &entry.kind {
                Kind::Tcp(_) => self.touch(id),
                Kind::Mapping(mapping) => {
                    let expiry = mapping.expiry();
                    if expiry <= now {
                        self.close(id, Cause::Finished);
                    } else {
                        self.timers.schedule(id, expiry, &mut entry.scheduled);
                    }
                }
            }
        }
    }

    /// Moves bytes of a TCP flow both ways. Call it for each flow of [`Core::poll_touched`] that has a host stream.
    pub fn serve(
        &mut self,
        id: FlowId,
        now: Instant,
        host: &mut impl HostStream,
        link: &mut impl Link,
    ) {
        let Some(Entry {
            kind: Kind::Tcp(flow),
            scheduled,
            ..
        }) = self.flows.get_mut(id)
        else {
            return;
        };
        let before = (flow.bytes_to_guest, flow.bytes_from_guest);
        let served = flow.serve(&mut self.engine, now, host, link);
        self.counters.bytes_to_guest += flow.bytes_to_guest - before.0;
        self.counters.bytes_from_guest += flow.bytes_from_guest - before.1;
        match served {
            Served::Waiting => {
                if let Some(deadline) = flow.deadline(&mut self.engine, now) {
                    // A deadline in the past would be served again at once, and for ever if nothing comes of it. A muted
                    // flow is exempt, for a millisecond.
                    let deadline = if flow.haul.may_speak() {
                        deadline.max(now + Duration::from_millis(1))
                    } else {
                        deadline
                    };
                    self.timers.schedule(id, deadline, scheduled);
                }
            }
            Served::More => self.touch(id),
            Served::Promote => self.promotions.push_back(id),
            Served::Closed(cause) => self.close(id, cause),
        }
    }

    /// The next TCP flow that wants to be served.
    pub fn poll_touched(&mut self) -> Option<FlowId> {
        loop {
            let id = self.touched.pop_front()?;
            if let Some(entry) = self.flows.get_mut(id) {
                entry.touched = false;
                return Some(id);
            }
        }
    }

    /// How many flows [`Core::poll_touched`] holds now: a bound for one turn of the driver.
    pub fn touched_len(&self) -> usize {
        self.touched.len()
    }

    /// The next flow that has ended.
    pub fn poll_closed(&mut self) -> Option<(FlowId, Cause)> {
        self.closed.pop_front()
    }

    /// The next flow that rests and wants to be handed over to the kernel. Take its [`Core::snapshot`], and answer with
    /// [`Core::promoted`] or [`Core::promotion_failed`] before any other call.
    pub fn poll_promotion(&mut self) -> Option<FlowId> {
        self.promotions.pop_front()
    }

    /// The numbers of a resting flow. `None` if it is gone or rests no more.
    pub fn snapshot(&mut self, id: FlowId) -> Option<Snapshot> {
        match self.flows.get_mut(id)? {
            Entry {
                tuple:
                    Tuple {
                        guest,
                        remote: Some(remote),
                        ..
                    },
                kind: Kind::Tcp(flow),
                ..
            } => flow.snapshot(*guest, *remote),
            _ => None,
        }
    }

    /// The kernel has taken the flow over. Frames of it that still arrive go back into the guest.
    pub fn promoted(
        &mut self,
        id: FlowId,
        snapshot: &Snapshot,
        now: Instant,
        link: &mut impl Link,
    ) {
        if let Some(Entry {
            kind: Kind::Tcp(flow),
            ..
        }) = self.flows.get_mut(id)
        {
            flow.promoted(&mut self.engine, snapshot, now, link);
            self.counters.promotions += 1;
        }
    }

    /// The kernel has not taken the flow over; the engine goes on.
    pub fn promotion_failed(
        &mut self,
        id: FlowId,
        snapshot: Option<&Snapshot>,
        link: &mut impl Link,
    ) {
        if let Some(Entry {
            kind: Kind::Tcp(flow),
            ..
        }) = self.flows.get_mut(id)
        {
            flow.promotion_failed(&mut self.engine, snapshot, link);
            self.counters.promotions_failed += 1;
            self.touch(id);
        }
    }

    /// Whether frames of promoted flows have arrived since the last call that cannot have been in flight at the
    /// hand-over: nothing diverts them any more.
    pub fn take_stray_seen(&mut self) -> bool {
        std::mem::take(&mut self.stray_seen)
    }

    /// No flow is to be promoted from now on: this system lacks what it takes.
    pub fn stop_promoting(&mut self) {
        self.promote = Promote::Off;
    }

    /// A promoted flow has moved so many bytes more.
    pub fn handle_relayed(&mut self, id: FlowId, to_guest: u64, from_guest: u64) {
        if let Some(Entry {
            kind: Kind::Tcp(flow),
            ..
        }) = self.flows.get_mut(id)
        {
            flow.bytes_to_guest += to_guest;
            flow.bytes_from_guest += from_guest;
            self.counters.bytes_to_guest += to_guest;
            self.counters.bytes_from_guest += from_guest;
        }
    }

    /// A promoted flow has ended.
    pub fn handle_relay_ended(&mut self, id: FlowId, cause: Cause) {
        self.close(id, cause);
    }

    /// When to call [`Core::handle_deadline`].
    pub fn poll_deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    pub fn network(&self) -> &Network {
        &self.config.network
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// All TCP flows, for status.
    pub fn tcp_flows(&self) -> impl Iterator<Item = (&Tuple, &TcpFlow)> {
        self.flows
            .iter()
            .filter_map(|(_, tuple, entry)| match &entry.kind {
                Kind::Tcp(flow) => Some((tuple, &**flow)),
                Kind::Mapping(_) => None,
            })
    }

    /// All UDP and echo mappings, for status.
    pub fn mappings(&self) -> impl Iterator<Item = (&Tuple, &Mapping)> {
        self.flows
            .iter()
            .filter_map(|(_, tuple, entry)| match &entry.kind {
                Kind::Mapping(mapping) => Some((tuple, mapping)),
                Kind::Tcp(_) => None,
            })
    }

    fn handle_packet<'f>(
        &mut self,
        packet: Packet<'f>,
        now: Instant,
        link: &mut impl Link,
    ) -> Option<Action<'f>> {
        if self.guest_mac.is_none()
            || self.config.network.guest(packet.source) == Some(packet.source)
        {
            self.guest_mac = Some(packet.source_mac);
        }
        match &packet.transport {
            Transport::Tcp(tcp) => self.handle_tcp(&packet, tcp, now, link),
            Transport::Udp(udp) => self.handle_udp(&packet, udp, now, link),
            Transport::Icmpv4(icmp) => self.handle_icmpv4(&packet, icmp, now, link),
            Transport::Icmpv6(icmp) => self.handle_icmpv6(&packet, icmp, now, link),
        }
    }

    fn handle_tcp<'f>(
        &mut self,
        packet: &Packet<'f>,
        tcp: &TcpSlice<'f>,
        now: Instant,
        link: &mut impl Link,
    ) -> Option<Action<'f>> {
        let remote = packet.remote_addr(tcp.destination_port());
        let tuple = Tuple {
            protocol: Protocol::Tcp,
            guest: packet.guest_addr(tcp.source_port()),
            remote: Some(remote),
        };
        let opens = tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin();
        if opens {
            self.make_way(&tuple, tcp.sequence_number());
        }
        if let Some(id) = self.flows.find(&tuple) {
            let Some(Entry {
                kind: Kind::Tcp(flow),
                ..
            }) = self.flows.get_mut(id)
            else {
                return None;
            };
            match &mut flow.phase {
                // A guest that reuses the port starts over with another sequence number; the dial serves both.
                Phase::Dialling { syn } if opens => *syn = packet.ip.into(),
                Phase::Dialling { .. } if tcp.rst() => self.close(id, Cause::Cancelled),
                Phase::Dialling { .. } => {}
                // It was in flight at the hand-over, or the mark that diverts it is gone: back in. A SYN is never diverted
                // and would come back for ever.
                Phase::Promoted { since } if !tcp.syn() => {
                    self.stray_seen |= now >= *since + IN_FLIGHT;
                    let hardware = self.hardware_of(packet);
                    hardware.send_packet(link, packet.offload, packet.ip);
                }
                Phase::Promoted { .. } => {}
                Phase::Open(_) => {
                    flow.ingest(&mut self.engine, packet.ip, tcp, now, link);
                    self.touch(id);
                }
            }
            return None;
        }
        let hardware = self.hardware_of(packet);
        if !opens || tcp.destination_port() == 0 || tcp.source_port() == 0 {
            self.engine.refuse(packet.ip, hardware, now, link);
            return None;
        }
        let to = match self.config.network.judge(Protocol::Tcp, remote) {
            Verdict::Dial(to) => to,
            // Over TCP a repeated question is a new connection: nothing tells it from the first one.
            Verdict::Resolve => *self.resolvers.first()?,
            Verdict::Refuse => {
                self.engine.refuse(packet.ip, hardware, now, link);
                return None;
            }
            verdict => {
                self.reject(packet, verdict, link);
                return None;
            }
        };
        if self.dials >= MAX_DIALS {
            self.counters.limit_reached += 1;
            if let Some(oldest) = self.dial_order.pop(|id| dialled_at(&self.flows, id)) {
                self.close(oldest, Cause::Cancelled);
            }
        }
        if self.flows.count() >= MAX_FLOWS {
            self.counters.limit_reached += 1;
            return None;
        }
        let flow = TcpFlow::dialling(packet.ip, self.promote, now);
        let flow = self.insert(tuple, packet.source_mac, Kind::Tcp(Box::new(flow)))?;
        self.dials += 1;
        self.dial_order
            .push(flow, now, |id| dialled_at(&self.flows, id));
        Some(Action::Dial { flow, to })
    }

    /// A guest may use a port again as soon as its own half is closed: what is left of ours must not take the new SYN,
    /// whose number is `isn`.
    fn make_way(&mut self, tuple: &Tuple, isn: u32) {
        if let Some(id) = self.flows.find(tuple)
            && let Some(entry) = self.flows.get(id)
            && let Kind::Tcp(flow) = &entry.kind
            && let Some(cause) = flow.makes_way(isn)
        {
            self.close(id, cause);
        }
    }

    fn handle_udp<'f>(
        &mut self,
        packet: &Packet<'f>,
        udp: &UdpSlice<'f>,
        now: Instant,
        link: &mut impl Link,
    ) -> Option<Action<'f>> {
        let guest = packet.guest_addr(udp.source_port());
        let remote = packet.remote_addr(udp.destination_port());
        if remote.port() == 0 || remote.ip().is_multicast() {
            return None;
        }
        let with = |remote| Tuple {
            protocol: Protocol::Udp,
            guest,
            remote,
        };
        let flow = match self.flows.find(&with(Some(remote))) {
            Some(flow) => flow,
            None => {
                let (tuple, role) = match self.config.network.judge(Protocol::Udp, remote) {
                    Verdict::Dial(to) if to == remote => (
                        with(None),
                        Role::Direct {
                            peers: HashSet::new(),
                        },
                    ),
                    Verdict::Dial(host) => (
                        with(Some(remote)),
                        Role::Translated {
                            appears: remote,
                            host,
                        },
                    ),
                    Verdict::Resolve => (
                        with(Some(remote)),
                        Role::Dns {
                            appears: remote,
                            asked: Vec::new(),
                            question: None,
                        },
                    ),
                    verdict => {
                        self.reject(packet, verdict, link);
                        return None;
                    }
                };
                match self.flows.find(&tuple) {
                    Some(flow) => flow,
                    None => self.insert_mapping(tuple, packet.source_mac, role, now)?,
                }
            }
        };
        let payload = udp.payload();
        let Some(Entry {
            kind: Kind::Mapping(mapping),
            ..
        }) = self.flows.get_mut(flow)
        else {
            return None;
        };
        let to = mapping.route(remote, payload, &self.resolvers)?;
        mapping.last_used = now;
        mapping.bytes_from_guest += payload.len() as u64;
        self.counters.bytes_from_guest += payload.len() as u64;
        let segment = packet
            .offload
            .super_frame
            .filter(|super_frame| super_frame.kind == Segmentation::Udp)
            .map(|super_frame| super_frame.size);
        Some(Action::SendDatagram {
            flow,
            to,
            payload: Cow::Borrowed(payload),
            segment,
        })
    }

    fn handle_icmpv4<'f>(
        &mut self,
        packet: &Packet<'f>,
        icmp: &Icmpv4Slice<'f>,
        now: Instant,
        link: &mut impl Link,
    ) -> Option<Action<'f>> {
        match icmp.icmp_type() {
            Icmpv4Type::EchoRequest(echo) => {
                self.handle_echo(packet, echo.id, echo.seq, icmp.payload(), now, link)
            }
            _ => None,
        }
    }

    fn handle_icmpv6<'f>(
        &mut self,
        packet: &Packet<'f>,
        icmp: &Icmpv6Slice<'f>,
        now: Instant,
        link: &mut impl Link,
    ) -> Option<Action<'f>> {
        match icmp.icmp_type() {
            Icmpv6Type::EchoRequest(echo) => {
                self.handle_echo(packet, echo.id, echo.seq, icmp.payload(), now, link)
            }
            Icmpv6Type::NeighborSolicitation => {
                let network = &self.config.network;
                neighbour::handle_ndp(packet, icmp, network, self.config.mac, link);
                None
            }
            _ => None,
        }
    }

    fn handle_echo<'f>(
        &mut self,
        packet: &Packet<'f>,
        identifier: u16,
        sequence: u16,
        payload: &'f [u8],
        now: Instant,
        link: &mut impl Link,
    ) -> Option<Action<'f>> {
        let remote = packet.destination;
        if self.config.network.is_ours(remote) {
            let hardware = self.hardware_of(packet);
            send_echo_reply(
                hardware,
                link,
                remote,
                packet.source,
                identifier,
                sequence,
                payload,
            );
            return None;
        }
        let verdict = self
            .config
            .network
            .judge(Protocol::Echo, SocketAddr::new(remote, 0));
        let Verdict::Dial(to) = verdict else {
            self.reject(packet, verdict, link);
            return None;
        };
        let tuple = Tuple {
            protocol: Protocol::Echo,
            guest: packet.guest_addr(identifier),
            remote: Some(SocketAddr::new(remote, 0)),
        };
        let flow = match self.flows.find(&tuple) {
            Some(flow) => flow,
            None => self.insert_mapping(tuple, packet.source_mac, Role::Echo { remote }, now)?,
        };
        if let Some(Entry {
            kind: Kind::Mapping(mapping),
            ..
        }) = self.flows.get_mut(flow)
        {
            mapping.last_used = now;
        }
        Some(Action::SendEcho {
            flow,
            to: to.ip(),
            sequence,
            payload: Cow::Borrowed(payload),
        })
    }

    /// Tells the guest why a packet of it goes nowhere. Silent for packets that were not meant for one host.
    fn reject(&mut self, packet: &Packet, verdict: Verdict, link: &mut impl Link) {
        let why = match verdict {
            Verdict::Prohibit => {
                self.counters.prohibited += 1;
                Unreachable::Prohibited
            }
            Verdict::Refuse => Unreachable::Port,
            _ => Unreachable::Host,
        };
        let network = &self.config.network;
        let reporter = match why {
            Unreachable::Port => Some(packet.destination),
            _ => network.gateway(packet.source),
        };
        let is_broadcast = matches!(packet.destination, IpAddr::V4(ip) if ip.is_broadcast());
        if let Some(reporter) = reporter
            && !packet.ip.is_empty()
            && !packet.destination.is_multicast()
            && !is_broadcast
            && !packet.source.is_unspecified()
        {
            let hardware = self.hardware_of(packet);
            icmp::send_unreachable(hardware, link, reporter, packet.source, why, packet.ip);
        }
    }

    /// Where in the guest a client of a published port goes, and who it appears to be. A client of a family that the
    /// guest lacks appears as the gateway of the other one.
    fn published_addresses(
        &self,
        client: SocketAddr,
        guest_port: u16,
    ) -> Option<(SocketAddr, SocketAddr)> {
        let network = &self.config.network;
        let appears = match network.appearance(client.ip()) {
            Some(appears) => appears,
            None => network.v4.gateway.into(),
        };
        let guest = network.guest(appears)?;
        Some((
            SocketAddr::new(guest, guest_port),
            SocketAddr::new(appears, client.port()),
        ))
    }

    fn insert_mapping(
        &mut self,
        tuple: Tuple,
        guest_mac: MacAddr,
        role: Role,
        now: Instant,
    ) -> Option<FlowId> {
        if self.mappings >= MAX_MAPPINGS {
            self.counters.limit_reached += 1;
            if let Some(oldest) = self
                .mapping_order
                .pop(|id| mapping_used_at(&self.flows, id))
            {
                self.close(oldest, Cause::Finished);
            }
        }
        if self.flows.count() >= MAX_FLOWS {
            self.counters.limit_reached += 1;
            return None;
        }
        let mapping = Mapping::new(tuple.guest, role, now);
        let expiry = mapping.expiry();
        let id = self.insert(tuple, guest_mac, Kind::Mapping(mapping))?;
        self.mappings += 1;
        self.mapping_order
            .push(id, now, |id| mapping_used_at(&self.flows, id));
        let entry = self.flows.get_mut(id)?;
        self.timers.schedule(id, expiry, &mut entry.scheduled);
        Some(id)
    }

    fn insert(&mut self, tuple: Tuple, guest_mac: MacAddr, kind: Kind) -> Option<FlowId> {
        self.flows.insert(
            tuple,
            Entry {
                tuple,
                guest_mac,
                scheduled: None,
                touched: false,
                kind,
            },
        )
    }

    fn touch(&mut self, id: FlowId) {
        if let Some(entry) = self.flows.get_mut(id)
            && !entry.touched
        {
            entry.touched = true;
            self.touched.push_back(id);
        }
    }

    fn close(&mut self, id: FlowId, cause: Cause) {
        let Some(entry) = self.flows.remove(id) else {
            return;
        };
        self.timers.cancel(id, entry.scheduled);
        match entry.kind {
            Kind::Tcp(flow) => {
                let carried = flow.bytes_to_guest.max(flow.bytes_from_guest);
                match flow.phase {
                    Phase::Open(connection) => self.engine.recycle(connection, carried),
                    Phase::Dialling { .. } if cause == Cause::Cancelled => self.dials -= 1,
                    Phase::Dialling { .. } | Phase::Promoted { .. } => {}
                }
            }
            Kind::Mapping(_) => self.mappings -= 1,
        }
        self.closed.push_back((id, cause));
    }

    fn hardware(&self, id: FlowId) -> Hardware {
        Hardware {
            ours: self.config.mac,
            guests: self.flows.get(id).map_or([0; 6], |entry| entry.guest_mac),
        }
    }

    fn hardware_of(&self, packet: &Packet) -> Hardware {
        Hardware {
            ours: self.config.mac,
            guests: packet.source_mac,
        }
    }
}

impl Action<'_> {
    fn into_owned(self) -> Action<'static> {
        match self {
            Action::Dial { flow, to } => Action::Dial { flow, to },
            Action::SendDatagram {
                flow,
                to,
                payload,
                segment,
            } => Action::SendDatagram {
                flow,
                to,
                payload: Cow::Owned(payload.into_owned()),
                segment,
            },
            Action::SendEcho {
                flow,
                to,
                sequence,
                payload,
            } => Action::SendEcho {
                flow,
                to,
                sequence,
                payload: Cow::Owned(payload.into_owned()),
            },
        }
    }
}

/// When the dial of a flow began, if it is still under way.
fn dialled_at(flows: &FlowTable<Entry>, id: FlowId) -> Option<Instant> {
    match &flows.get(id)?.kind {
        Kind::Tcp(flow) => matches!(flow.phase, Phase::Dialling { .. }).then_some(flow.born),
        Kind::Mapping(_) => None,
    }
}

/// When a mapping was last used, if it still exists.
fn mapping_used_at(flows: &FlowTable<Entry>, id: FlowId) -> Option<Instant> {
    match &flows.get(id)?.kind {
        Kind::Mapping(mapping) => Some(mapping.last_used),
        Kind::Tcp(_) => None,
    }
}

fn send_echo_reply(
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
