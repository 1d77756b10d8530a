//! The network as a machine without input or output: frames of the guest and events of the host go
//! in with the time, frames to the guest and actions for the host come out. No socket, no clock, no
//! thread, nothing random inside.
//!
//! Order of calls, by the driver, in each of its turns:
//! 1. [`Core::handle_frame`] for each frame, carrying out the [`Action`] it returns at once;
//!    `handle_*` for host events;
//! 2. [`Core::handle_deadline`] when the time of [`Core::poll_deadline`] has come;
//! 3. [`Core::poll_touched`] until `None`, calling [`Core::serve`] with the host stream of each
//!    flow;
//! 4. [`Core::poll_promotion`] until `None`, handing each flow over to the kernel, and then
//!    [`Core::handle_frame`] for the frames that were on their way;
//! 5. [`Core::poll_closed`] until `None`, closing what belonged to the flow.
//!
//! A frame's way: `packet` takes it apart, `handle_frame` finds its flow in the table, `tcp` or
//! `datagram` acts on it. Hostile input is counted and dropped; every table has a limit (`shares`).

// No clock: the methods that read one are listed in clippy.toml.
#![deny(clippy::disallowed_methods)]

pub mod addresses;
pub mod autoconf;
pub mod datagram;
pub mod dns;
pub mod egress;
mod enforce;
mod eviction;
pub mod flow;
mod from_guest;
mod from_host;
pub mod icmp;
pub mod link;
mod neighbour;
mod packet;
pub mod policy;
mod promotion;
mod reassembly;
mod refusal;
mod shares;
pub mod special_purpose;
mod spliced;
pub mod tcp;
mod timers;
pub mod vnet;

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU16};
use std::sync::Arc;

pub use self::packet::MacAddr;
pub use self::shares::{
    Limits, MAX_DIALS, MAX_FLOWS, MAX_HALF_OPEN, MAX_MAPPINGS, MAX_WAITING, Share, Usage,
};
pub use smoltcp::time::{Duration, Instant};

use tracing::{Span, debug};

use self::addresses::Addresses;
use self::autoconf::{Autoconf, Servers};
use self::datagram::{Mapping, Role, Visit};
use self::dns::{Forwarder, HostNames};
use self::eviction::Holder;
use self::flow::{Cause, FlowId, FlowTable, HashKey, Protocol, Tuple};
use self::icmp::Unreachable;
use self::link::{Hardware, Link};
use self::packet::{Frame, Packet, Transport};
use self::policy::{Policy, Verdict};
use self::reassembly::Reassembly;
use self::shares::Shares;
use self::tcp::{Engine, HostStream, MemoryUse, Phase, Promote, Served, TcpFlow};
use self::timers::Timers;

/// Most ports that are tried for the client of a published port whose own is taken.
pub const MAX_CLASHES: usize = 1_024;

/// Longest time that a frame is under way between the guest and us.
const IN_FLIGHT: Duration = Duration::from_millis(100);

/// What a core is made from.
pub struct CoreConfig {
    pub addresses: Addresses,
    pub autoconf: Autoconf,
    pub policy: Policy,
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
    pub limits: Limits,
    pub random_seed: u64,
    pub hash_key: HashKey,
}

/// What of the guest's a published port leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// `None` is the guest's own address, of the family that its client comes over.
    pub address: Option<IpAddr>,
    pub port: u16,
}

/// At the guest's own address.
impl From<u16> for Service {
    fn from(port: u16) -> Self {
        Self {
            address: None,
            port,
        }
    }
}

/// What the driver has to do for a frame; at once, unless said otherwise.
#[derive(Debug, PartialEq, Eq)]
pub enum Action<'f> {
    /// When [`Core::may_dial`] says so, call [`Core::begin_dial`]; if that agrees, connect a stream
    /// to `to`, and call [`Core::handle_dialled`].
    Dial { flow: FlowId, to: SocketAddr },
    /// Send `payload` to `to` from the flow's socket, made at its first datagram; cut into
    /// datagrams of `segment` bytes if that is given, and with the hop limit `hops` if that is.
    SendDatagram {
        flow: FlowId,
        to: SocketAddr,
        hops: Option<NonZeroU8>,
        payload: Cow<'f, [u8]>,
        segment: Option<NonZeroU16>,
    },
    /// Send an echo request from the flow's ping socket, with the hop limit `hops` if that is
    /// given.
    SendEcho {
        flow: FlowId,
        to: IpAddr,
        hops: Option<NonZeroU8>,
        sequence: u16,
        payload: Cow<'f, [u8]>,
    },
    /// Let `flow` talk through the socket of the published port that `with` has.
    ShareSocket { flow: FlowId, with: FlowId },
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
    /// Frames that were malformed, of a kind that this network does not carry, or from an address
    /// that nobody on it may have.
    pub frames_dropped: u64,
    /// How often the system had no descriptor left for a socket.
    pub out_of_descriptors: u64,
    /// How often a client of a published port was turned away because too many others share its
    /// address and port as the guest sees them ([`MAX_CLASHES`]).
    pub out_of_ports: u64,
    /// Packets to addresses that the guest may not reach.
    pub prohibited: u64,
    /// Queries that were answered by names of the engine.
    pub names_answered: u64,
    /// Flows that the kernel has taken over, and attempts that failed.
    pub promotions: u64,
    pub promotions_failed: u64,
}

/// See the module's description.
pub struct Core {
    config: CoreConfig,
    guest_mac: Option<MacAddr>,
    engine: Engine,
    flows: FlowTable<Entry>,
    /// The mappings of clients of published UDP ports, each with the guest's end.
    visits: HashMap<(Visit, SocketAddr), FlowId, HashKey>,
    shares: Shares,
    timers: Timers,
    touched: VecDeque<FlowId>,
    closed: VecDeque<(FlowId, Cause)>,
    promotions: VecDeque<FlowId>,
    stray_seen: bool,
    superseded: VecDeque<FlowId>,
    servers: Servers,
    forwarder: Forwarder,
    /// Connections that ask keep those that there were when they began.
    names: Arc<HostNames>,
    reassembly: Reassembly,
    counters: Counters,
}

/// A flow in the table, with what all kinds have.
struct Entry {
    guest_mac: MacAddr,
    holder: Holder,
    scheduled: Option<Instant>,
    touched: bool,
    kind: Kind,
}

enum Kind {
    Tcp(Box<TcpFlow>),
    Mapping(Mapping),
}

impl FlowTable<Entry> {
    fn tcp(&self, id: FlowId) -> Option<&TcpFlow> {
        match &self.get(id)?.kind {
            Kind::Tcp(flow) => Some(flow),
            Kind::Mapping(_) => None,
        }
    }

    fn tcp_mut(&mut self, id: FlowId) -> Option<&mut TcpFlow> {
        match &mut self.get_mut(id)?.kind {
            Kind::Tcp(flow) => Some(flow),
            Kind::Mapping(_) => None,
        }
    }

    fn mapping_mut(&mut self, id: FlowId) -> Option<&mut Mapping> {
        match &mut self.get_mut(id)?.kind {
            Kind::Mapping(mapping) => Some(mapping),
            Kind::Tcp(_) => None,
        }
    }
}

impl Core {
    pub fn new(mut config: CoreConfig, now: Instant) -> Self {
        let servers = Servers::new(std::mem::take(&mut config.autoconf), &mut config.addresses);
        Self {
            guest_mac: config.guest_mac,
            engine: Engine::new(config.mtu, config.random_seed, now),
            flows: FlowTable::new(config.hash_key),
            visits: HashMap::with_hasher(config.hash_key),
            shares: Shares::new(&config.limits, !config.addresses.behind.is_empty()),
            timers: Timers::default(),
            touched: VecDeque::new(),
            closed: VecDeque::new(),
            promotions: VecDeque::new(),
            stray_seen: false,
            superseded: VecDeque::new(),
            servers,
            forwarder: Forwarder::default(),
            names: Arc::default(),
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
                if let Some(ip) = neighbour::claimed_by_arp(&arp) {
                    self.note_claim(ip);
                }
                let addresses = &self.config.addresses;
                neighbour::handle_arp(&arp, addresses, self.config.mac, link);
                None
            }
            Some(Frame::Ip(packet)) if self.may_be_source(packet.source) => {
                self.handle_packet(packet, now, link)
            }
            Some(Frame::Fragment {
                source_mac,
                source,
                destination,
                sliced,
            }) if self.may_be_source(source) => {
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
            Some(Frame::Ip(_) | Frame::Fragment { .. }) | None => {
                self.counters.frames_dropped += 1;
                None
            }
        }
    }

    fn may_be_source(&self, ip: IpAddr) -> bool {
        self.config.addresses.may_be_source(ip)
    }

    /// Wakes the flows whose time has come, ends idle mappings, and tells the guest of its router.
    pub fn handle_deadline(&mut self, now: Instant, link: &mut impl Link) {
        if self.servers.deadline().is_some_and(|at| at <= now) {
            self.advertise_router(now, link);
        }
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

    /// Moves bytes of a TCP flow both ways. Call it for each flow of [`Core::poll_touched`] that
    /// has a host stream.
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
            holder,
            ..
        }) = self.flows.get_mut(id)
        else {
            return;
        };
        let before = (flow.bytes_to_guest, flow.bytes_from_guest);
        let served = flow.serve(&mut self.engine, now, host, link);
        self.counters.bytes_to_guest += flow.bytes_to_guest - before.0;
        self.counters.bytes_from_guest += flow.bytes_from_guest - before.1;
        if flow.completes_handshake() {
            self.shares.open(*holder);
        }
        match served {
            Served::Waiting => {
                if let Some(deadline) = flow.deadline(&mut self.engine, now) {
                    self.timers.schedule(id, deadline, scheduled);
                }
            }
            Served::More => self.touch(id),
            Served::Promote => self.promotions.push_back(id),
            Served::Closed(cause) => self.close(id, cause),
        }
        if self.engine.memory().take_became_tight() {
            self.touch_idle();
        }
    }

    /// Lets every connection give back what it does not need.
    fn touch_idle(&mut self) {
        let open = |entry: &Entry| matches!(&entry.kind, Kind::Tcp(flow) if matches!(flow.phase(), Phase::Open(_)));
        let ids: Vec<FlowId> = self
            .flows
            .iter()
            .filter_map(|(id, _, entry)| open(entry).then_some(id))
            .collect();
        ids.into_iter().for_each(|id| self.touch(id));
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

    /// When to call [`Core::handle_deadline`].
    pub fn poll_deadline(&self) -> Option<Instant> {
        let deadlines = [self.timers.next(), self.servers.deadline()];
        deadlines.into_iter().flatten().min()
    }

    pub fn addresses(&self) -> &Addresses {
        &self.config.addresses
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What connections buffer, of [`MAX_BUFFERED`](tcp::MAX_BUFFERED).
    pub fn memory(&self) -> MemoryUse {
        self.engine.memory_use()
    }

    /// How many flows of all kinds there are.
    pub fn flow_count(&self) -> usize {
        self.flows.count()
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

    fn judge(&self, protocol: Protocol, remote: SocketAddr) -> Verdict {
        let CoreConfig {
            addresses, policy, ..
        } = &self.config;
        match policy.judge(addresses, protocol, remote) {
            Verdict::ResolveEncrypted => match self.forwarder.encrypted() {
                Some(resolver) => Verdict::Dial(resolver),
                None => Verdict::Refuse,
            },
            verdict => verdict,
        }
    }

    /// No connection that begins from now on is handed over.
    pub fn promote_nothing(&mut self) {
        self.config.promote = Promote::Off;
    }

    /// Whether a connection of these ends may be handed over. The guest's sockets know a link-local
    /// address by the interface that it is on, and would not take segments that come by another.
    /// Queries are to be looked at.
    fn may_promote(&self, tuple: &Tuple) -> Promote {
        let is_link_local = |end: SocketAddr| match end.ip() {
            IpAddr::V4(_) => false,
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        let asks = |remote| self.is_forwarder(tuple.protocol, remote);
        let stays = |remote| is_link_local(remote) || asks(remote);
        match is_link_local(tuple.guest) || tuple.remote.is_some_and(stays) {
            true => Promote::Off,
            false => self.config.promote,
        }
    }

    fn insert_mapping(
        &mut self,
        tuple: Tuple,
        guest_mac: MacAddr,
        role: Role,
        now: Instant,
    ) -> Option<FlowId> {
        let share = role.share();
        self.make_room(share);
        let mapping = Mapping::new(tuple.guest, role, now);
        let expiry = mapping.expiry();
        let id = self.insert(tuple, guest_mac, Kind::Mapping(mapping))?;
        self.begin(id, share, now);
        let entry = self.flows.get_mut(id)?;
        self.timers.schedule(id, expiry, &mut entry.scheduled);
        Some(id)
    }

    fn insert(&mut self, tuple: Tuple, guest_mac: MacAddr, kind: Kind) -> Option<FlowId> {
        tuple.span().in_scope(|| debug!("begins"));
        let holder = self.holder(tuple.guest.ip());
        self.flows.insert(
            tuple,
            Entry {
                guest_mac,
                holder,
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
        let span = self.span(id);
        let Some(entry) = self.flows.remove(id) else {
            return;
        };
        if let Kind::Mapping(mapping) = &entry.kind
            && let Role::Published { visit, .. } = mapping.role
        {
            let key = (visit, mapping.guest);
            if self.visits.get(&key) == Some(&id) {
                self.visits.remove(&key);
            }
        }
        span.in_scope(|| debug!(?cause, "ends"));
        self.timers.cancel(id, entry.scheduled);
        self.shares.end(&entry);
        if let Kind::Tcp(flow) = entry.kind {
            flow.end(&mut self.engine);
        }
        self.closed.push_back((id, cause));
    }

    fn span(&self, id: FlowId) -> Span {
        self.flows
            .tuple(id)
            .map_or_else(Span::none, |tuple| tuple.span())
    }

    fn hardware(&self, id: FlowId) -> Hardware {
        Hardware {
            ours: self.config.mac,
            guests: self.flows.get(id).map_or([0; 6], |entry| entry.guest_mac),
        }
    }
}

impl Action<'_> {
    fn into_owned(self) -> Action<'static> {
        match self {
            Action::Dial { flow, to } => Action::Dial { flow, to },
            Action::ShareSocket { flow, with } => Action::ShareSocket { flow, with },
            Action::SendDatagram {
                flow,
                to,
                hops,
                payload,
                segment,
            } => Action::SendDatagram {
                flow,
                to,
                hops,
                payload: Cow::Owned(payload.into_owned()),
                segment,
            },
            Action::SendEcho {
                flow,
                to,
                hops,
                sequence,
                payload,
            } => Action::SendEcho {
                flow,
                to,
                hops,
                sequence,
                payload: Cow::Owned(payload.into_owned()),
            },
        }
    }
}
