//! How many flows of each kind there may be, and which one goes when one more comes.
//!
//! All that a guest, or a client of a published port, can make us keep holds descriptors, of which
//! the system grants a process a fixed number. Each kind has its own share of them ([`Limits`]), so
//! that none can use up what another needs. Flows that nobody may miss, or that are soon repeated,
//! make way within their share, the senior one first; open connections never do: when theirs is
//! used up, a new one has to wait.
//!
//! Where there are networks behind the guest, each address there is a [`Holder`] of its own: who
//! has most makes way, and nobody has more open connections than are left over. So one who takes
//! all he can get leaves half to the others, two leave a third.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::datagram::Role;
use super::eviction::{FairQueue, Holder};
use super::flow::{Cause, FlowId, FlowTable};
use super::tcp::{Phase, TcpFlow};
use super::{Core, Duration, Entry, Instant, Kind};

/// Most open TCP connections, both ways; one that the kernel carries counts twice. One more is not
/// answered.
pub const MAX_FLOWS: usize = 65_536;
/// Most SYNs that wait to be dialled for. They hold no descriptor. One more, and the oldest is
/// given up unsaid.
pub const MAX_WAITING: usize = 4_096;
/// Most dials under way. One more, and the oldest is given up unsaid: if the guest still wants it,
/// it repeats its SYN. So dials that nobody answers cannot keep out those that somebody would.
pub const MAX_DIALS: usize = 4_096;
/// Most connections whose handshake the guest has not finished. One more, and the oldest goes: it
/// answers within microseconds unless it never will, or a flood keeps its answer from us.
pub const MAX_HALF_OPEN: usize = 4_096;
/// Most UDP, and as many echo mappings. One more, and one that was not used lately goes.
pub const MAX_MAPPINGS: usize = 4_096;
/// How long a dial, and then the guest, has for its answer before another one may have its place.
/// Longer than most round trips; and a SYN that waits for as long is not repeated yet.
const GRACE: Duration = Duration::from_millis(200);
/// Most pipes of relays, with two descriptors each. Without one a relay copies.
const MAX_PIPES: usize = 256;
/// Most sockets that are kept ready for hand-overs.
const MAX_REPAIR_SOCKETS: usize = 128;

/// The most that there may be of each kind at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Descriptors of open TCP connections: one each, two when the kernel carries it.
    pub streams: usize,
    /// SYNs that no dial has begun for.
    pub waiting: usize,
    pub dials: usize,
    pub half_open: usize,
    pub udp: usize,
    /// Clients of published UDP ports. They share the port's socket.
    pub published_udp: usize,
    pub echo: usize,
    pub pipes: usize,
    pub repair_sockets: usize,
}

impl Limits {
    /// Shares out `descriptors`. Half of them are for open connections, as long as there are not
    /// plenty.
    pub fn share_out(descriptors: usize) -> Self {
        let part = |divisor: usize, most: usize| (descriptors / divisor).clamp(1, most);
        let mut limits = Self {
            streams: 0,
            waiting: MAX_WAITING,
            dials: part(10, MAX_DIALS),
            half_open: part(10, MAX_HALF_OPEN),
            udp: part(5, MAX_MAPPINGS),
            published_udp: MAX_MAPPINGS,
            echo: part(40, MAX_MAPPINGS),
            pipes: part(80, MAX_PIPES),
            repair_sockets: part(40, MAX_REPAIR_SOCKETS).max(4),
        };
        let left = descriptors.saturating_sub(limits.descriptors());
        limits.streams = left.clamp(1, MAX_FLOWS);
        limits
    }

    /// How many descriptors are in use when every limit is reached.
    fn descriptors(&self) -> usize {
        let tcp = self.streams + self.dials + self.half_open;
        tcp + self.udp + self.echo + 2 * self.pipes + self.repair_sockets
    }
}

/// As many as are ever of use.
impl Default for Limits {
    fn default() -> Self {
        Self::share_out(usize::MAX)
    }
}

/// How many flows of a kind there are, and may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub count: usize,
    pub limit: usize,
    /// How often the limit kept one out, each time that it tried, or ended one to make room.
    pub reached: u64,
}

/// Kinds of flows of which the senior one makes way for one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    Waiting,
    Dials,
    HalfOpen,
    Udp,
    PublishedUdp,
    Echo,
}

impl Share {
    pub const ALL: [Self; 6] = [
        Self::Waiting,
        Self::Dials,
        Self::HalfOpen,
        Self::Udp,
        Self::PublishedUdp,
        Self::Echo,
    ];
}

/// Who is there of each kind.
pub struct Shares {
    by_kind: [FairQueue; Share::ALL.len()],
    /// How often each limit was reached.
    reached: [u64; Share::ALL.len()],
    streams: Streams,
}

/// Descriptors of open connections.
struct Streams {
    by_holder: BTreeMap<Holder, usize>,
    count: usize,
    limit: usize,
    /// There may be holders besides the guest.
    is_shared: bool,
    reached: u64,
}

impl Streams {
    fn take(&mut self, holder: Holder, descriptors: usize) {
        self.count += descriptors;
        *self.by_holder.entry(holder).or_default() += descriptors;
    }

    fn give_back(&mut self, holder: Holder, descriptors: usize) {
        self.count -= descriptors;
        if let Some(own) = self.by_holder.get_mut(&holder) {
            *own -= descriptors;
            if *own == 0 {
                self.by_holder.remove(&holder);
            }
        }
    }

    /// Whether there is one left, for whoever that is.
    fn has_room(&self) -> bool {
        self.count < self.limit
    }

    fn has_room_for(&self, holder: Holder) -> bool {
        let left = self.limit.saturating_sub(self.count);
        match self.is_shared {
            true => left > self.by_holder.get(&holder).copied().unwrap_or(0),
            false => left > 0,
        }
    }
}

impl Shares {
    /// `is_shared` says that there are networks behind the guest.
    pub fn new(limits: &Limits, is_shared: bool) -> Self {
        let limit = |share| match share {
            Share::Waiting => limits.waiting,
            Share::Dials => limits.dials,
            Share::HalfOpen => limits.half_open,
            Share::Udp => limits.udp,
            Share::PublishedUdp => limits.published_udp,
            Share::Echo => limits.echo,
        };
        Self {
            by_kind: Share::ALL.map(|share| FairQueue::new(limit(share))),
            reached: [0; Share::ALL.len()],
            streams: Streams {
                by_holder: BTreeMap::new(),
                count: 0,
                limit: limits.streams,
                is_shared,
                reached: 0,
            },
        }
    }

    /// A half-open connection of `holder` is open now.
    pub fn open(&mut self, holder: Holder) {
        self.by_kind[Share::HalfOpen as usize].end(holder);
        self.streams.take(holder, 1);
    }

    /// The kernel has taken an open connection over.
    pub fn promote(&mut self, holder: Holder) {
        self.streams.take(holder, 1);
    }

    /// Something that is no flow of the table holds `descriptors` of the connections'.
    pub fn take(&mut self, descriptors: usize) {
        self.streams.take(Holder::Guest, descriptors);
    }

    /// It holds them no more.
    pub fn give_back(&mut self, descriptors: usize) {
        self.streams.give_back(Holder::Guest, descriptors);
    }

    /// Takes `entry`'s flow out of the account.
    pub fn end(&mut self, entry: &Entry) {
        match entry.share() {
            Some(share) => self.by_kind[share as usize].end(entry.holder),
            None => self.streams.give_back(entry.holder, entry.streams()),
        }
    }
}

impl Entry {
    /// Which share the flow is part of. `None` for an open connection.
    fn share(&self) -> Option<Share> {
        match &self.kind {
            Kind::Tcp(flow) => match flow.phase() {
                Phase::Dialling { has_begun, .. } if *has_begun => Some(Share::Dials),
                Phase::Dialling { .. } => Some(Share::Waiting),
                Phase::Open(_) if flow.is_half_open() => Some(Share::HalfOpen),
                Phase::Open(_) | Phase::Promoted(_) => None,
            },
            Kind::Mapping(mapping) => Some(mapping.role.share()),
        }
    }

    /// How many descriptors an open connection holds.
    fn streams(&self) -> usize {
        match &self.kind {
            Kind::Tcp(flow) if matches!(flow.phase(), Phase::Promoted(_)) => 2,
            _ => 1,
        }
    }

    fn last_use(&self) -> Instant {
        match &self.kind {
            Kind::Tcp(flow) => flow.born,
            Kind::Mapping(mapping) => mapping.last_used,
        }
    }
}

impl Role {
    pub fn share(&self) -> Share {
        match self {
            Self::Direct { .. } | Self::Translated { .. } | Self::Dns { .. } => Share::Udp,
            Self::Published { .. } => Share::PublishedUdp,
            Self::Echo { .. } => Share::Echo,
        }
    }
}

/// When flow `id` was last used, if it is (still) part of `share`.
fn last_use(flows: &FlowTable<Entry>, share: Share, id: FlowId) -> Option<Instant> {
    let entry = flows.get(id)?;
    (entry.share() == Some(share)).then(|| entry.last_use())
}

impl Core {
    pub fn limits(&self) -> &Limits {
        &self.config.limits
    }

    /// How many flows there are of a kind.
    pub fn usage(&self, share: Share) -> Usage {
        let queue = &self.shares.by_kind[share as usize];
        Usage {
            count: queue.len(),
            limit: queue.limit(),
            reached: self.shares.reached[share as usize],
        }
    }

    /// How many descriptors the open connections have.
    pub fn stream_usage(&self) -> Usage {
        Usage {
            count: self.shares.streams.count,
            limit: self.shares.streams.limit,
            reached: self.shares.streams.reached,
        }
    }

    /// How often a limit kept a flow out, each time that it tried, or ended one to make room for
    /// another.
    pub fn limit_reached(&self) -> u64 {
        let shares = self.shares.reached.iter().sum::<u64>() + self.shares.streams.reached;
        shares + self.counters.out_of_descriptors + self.counters.out_of_ports
    }

    /// Whether whoever has `guest` may have one more connection, or one more in the kernel. If not,
    /// that is counted.
    ///
    /// Connections come in as dials or half-open ones and have a share of their own until they are
    /// open, so this may be exceeded by as much as there is room in those, for which there are
    /// descriptors.
    pub(super) fn admits_stream(&mut self, guest: IpAddr) -> bool {
        let holder = self.holder(guest);
        let admitted = self.shares.streams.has_room_for(holder);
        self.shares.streams.reached += u64::from(!admitted);
        admitted
    }

    /// Whether the kernel may have flow `id`, which takes one more descriptor. If not, that is
    /// counted.
    pub fn admits_promotion(&mut self, id: FlowId) -> bool {
        let guest = self.flows.tuple(id).map(|tuple| tuple.guest.ip());
        guest.is_some_and(|guest| self.admits_stream(guest))
    }

    /// Whether there may be one more connection of those that are no flow of the table, or of
    /// anybody's. If not, that is counted.
    pub fn admits_any(&mut self) -> bool {
        let admitted = self.shares.streams.has_room();
        self.shares.streams.reached += u64::from(!admitted);
        admitted
    }

    /// In whose account a flow of the guest's address `ip` is.
    pub(super) fn holder(&self, ip: IpAddr) -> Holder {
        match self.config.addresses.is_behind(ip) {
            true => Holder::Behind(ip),
            false => Holder::Guest,
        }
    }

    /// Whether a dial may begin: if there is no place for it, or for what comes of it, it can be
    /// taken from one that has had time enough. Otherwise SYNs that come faster than answers would
    /// keep all from being answered.
    pub fn may_dial(&mut self, now: Instant) -> bool {
        [Share::Dials, Share::HalfOpen]
            .into_iter()
            .all(|share| self.has_place(share, now))
    }

    /// Whether a client of a published port may be accepted, as [`Core::may_dial`] has it for what
    /// comes of it. If not, it waits in the kernel's queue: clients that come faster than the guest
    /// answers do not take each other's places.
    pub fn may_accept(&mut self, now: Instant) -> bool {
        self.admits_any() && self.has_place(Share::HalfOpen, now)
    }

    fn has_place(&mut self, share: Share, now: Instant) -> bool {
        let flows = &self.flows;
        let queue = &mut self.shares.by_kind[share as usize];
        !queue.is_full()
            || queue
                .first(|id| last_use(flows, share, id))
                .is_none_or(|since| now >= since + GRACE)
    }

    /// The system has no descriptor for a socket of flow `id`, or for a client who wants to be
    /// accepted (`None`): one that will hardly be missed goes. For a client only mappings do. False
    /// if there is none.
    pub fn yield_descriptor(&mut self, id: Option<FlowId>) -> bool {
        const ORDER: [Share; 4] = [Share::Udp, Share::Echo, Share::HalfOpen, Share::Dials];
        let candidates = if id.is_some() { 4 } else { 2 };
        self.counters.out_of_descriptors += 1;
        ORDER[..candidates]
            .iter()
            .any(|share| self.evict(*share, id))
    }

    /// Sees to it that there may be one more of `share`.
    pub(super) fn make_room(&mut self, share: Share) {
        if self.shares.by_kind[share as usize].is_full() {
            self.shares.reached[share as usize] += 1;
            self.evict(share, None);
        }
    }

    /// Flow `id` goes on from its share to `share`, for which `change` is to make it fit. Within
    /// that there is room afterwards.
    pub(super) fn advance(
        &mut self,
        id: FlowId,
        share: Share,
        now: Instant,
        change: impl FnOnce(&mut TcpFlow),
    ) {
        if let Some(entry) = self.flows.get_mut(id) {
            self.shares.end(entry);
            if let Kind::Tcp(flow) = &mut entry.kind {
                change(flow);
            }
            self.make_room(share);
            self.begin(id, share, now);
        }
    }

    /// Flow `id` has become part of `share`.
    pub(super) fn begin(&mut self, id: FlowId, share: Share, now: Instant) {
        let flows = &self.flows;
        if let Some(entry) = flows.get(id) {
            let queue = &mut self.shares.by_kind[share as usize];
            queue.begin(id, entry.holder, now, |id| last_use(flows, share, id));
        }
    }

    fn evict(&mut self, share: Share, keep: Option<FlowId>) -> bool {
        let flows = &self.flows;
        let queue = &mut self.shares.by_kind[share as usize];
        let evicted = queue.pop(keep, |id| last_use(flows, share, id));
        if let Some(id) = evicted {
            let cause = match share {
                Share::Waiting | Share::Dials => Cause::Cancelled,
                Share::HalfOpen => Cause::GuestSilent,
                Share::Udp | Share::PublishedUdp | Share::Echo => Cause::Finished,
            };
            self.close(id, cause);
        }
        evicted.is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn with_plenty_every_limit_is_the_largest() {
        let plenty = Limits::share_out(1 << 20);
        assert_eq!(plenty, Limits::default());
        assert_eq!(
            (plenty.streams, plenty.dials, plenty.udp),
            (MAX_FLOWS, MAX_DIALS, MAX_MAPPINGS)
        );
    }

    #[test]
    fn a_thousand_are_enough_for_everything() {
        let limits = Limits::share_out(960);
        assert!(limits.streams >= 400, "{limits:?}");
        assert!(limits.udp >= 150 && limits.echo >= 20, "{limits:?}");
        assert!(limits.dials >= 90 && limits.half_open >= 90, "{limits:?}");
    }

    proptest! {
        #[test]
        fn no_more_is_shared_out_than_there_is(descriptors in 50usize..200_000) {
            let limits = Limits::share_out(descriptors);
            prop_assert!(limits.descriptors() <= descriptors, "{limits:?}");
            prop_assert!(limits.streams >= descriptors.min(MAX_FLOWS) / 3);
        }
    }
}
