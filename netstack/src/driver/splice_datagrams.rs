//! UDP that is passed on from socket to socket, where TCP is spliced (`splice`): a mapping for each
//! client of such a port, with a socket of its own in the other namespace.

use std::sync::Arc;

use tracing::debug;

use super::datagrams::Arrived;
use super::poller::{Interest, ListenerId, SpliceId, Token};
use super::shard::Shard;
use super::splice_table::{Joined, Mapping, Way};
use crate::core::datagram::Visit;
use crate::core::{Duration, Instant};
use crate::device::Device;
use crate::host::{Outbound, UdpSocket};

/// Most mappings. One more, and the one that was not used for longest goes.
const MAX_MAPPINGS: usize = 1024;
/// How long an unused mapping lives, as any other (RFC 4787 REQ-5).
const IDLE: Duration = Duration::from_secs(300);
/// How often those are looked for.
const SWEEP: Duration = Duration::from_secs(10);

impl<D: Device> Shard<D> {
    /// Passes on what has `arrived` from a client of the port that `back` is the socket of.
    pub(super) fn pass_on(
        &mut self,
        port: ListenerId,
        back: &Arc<UdpSocket>,
        way: Way,
        arrived: Arrived<'_>,
        now: Instant,
    ) {
        let Arrived {
            visit,
            payload,
            segment,
        } = arrived;
        let known = self.splices.datagrams.by_client.get(&(port, visit));
        let id = match known {
            Some(id) => *id,
            None => match self.begin_mapping(port, back, way, visit, now) {
                Some(id) => id,
                None => return,
            },
        };
        let Some(mapping) = self.splices.datagrams.mappings.get_mut(&id) else {
            return;
        };
        mapping.last_used = now;
        mapping.joined.moved[0] += payload.len() as u64;
        let (place, to) = (mapping.joined.way.place, mapping.joined.way.to);
        // An earlier datagram's error says that nobody listens, which the client cannot be told.
        if mapping.socket.send(payload, segment, None, to).is_err() {
            while mapping.socket.take_error().is_some() {}
            let _ = mapping.socket.send(payload, segment, None, to);
        }
        let (to_guest, from_guest) = place.to_and_from_guest([payload.len() as u64, 0]);
        self.core.splice_moved(to_guest, from_guest);
    }

    fn begin_mapping(
        &mut self,
        port: ListenerId,
        back: &Arc<UdpSocket>,
        way: Way,
        visit: Visit,
        now: Instant,
    ) -> Option<SpliceId> {
        if self.splices.datagrams.mappings.len() >= MAX_MAPPINGS || !self.core.admits_any() {
            self.end_longest_unused()?;
        }
        let open = move || UdpSocket::open(way.to, Outbound::default());
        let ways = self.splices.ways.clone();
        let socket = match self.open_for(None, || ways.open(way.place, open)) {
            Ok(socket) => socket,
            Err(error) => {
                debug!(%error, "cannot make a UDP socket");
                return None;
            }
        };
        let id = SpliceId(self.splices.datagrams.begun);
        let token = Token::SplicedDatagrams(id);
        self.poller.add(&socket, token, Interest::Readable).ok()?;
        self.core.splice_begins(1);
        let datagrams = &mut self.splices.datagrams;
        datagrams.begun += 1;
        datagrams.next_sweep.get_or_insert(now + SWEEP);
        datagrams.by_client.insert((port, visit), id);
        let mapping = Mapping {
            port,
            joined: Joined::new(visit.client, way, now),
            asked: visit.asked,
            socket,
            back: Arc::downgrade(back),
            last_used: now,
        };
        datagrams.mappings.insert(id, mapping);
        Some(id)
    }

    /// Answers of a service.
    pub(super) fn pass_back(&mut self, id: SpliceId, now: Instant) {
        let Some(mapping) = self.splices.datagrams.mappings.get_mut(&id) else {
            return;
        };
        let Some(back) = mapping.back.upgrade() else {
            return self.end_mapping(id);
        };
        let way = mapping.joined.way;
        let mut moved = 0;
        match mapping.socket.receive(&mut self.datagrams) {
            Ok(datagrams) => {
                for one in datagrams.filter(|one| one.from == way.to) {
                    let (from, to) = (Some(mapping.asked), mapping.joined.client);
                    let _ = back.send(one.payload, one.segment, from, to);
                    moved += one.payload.len() as u64;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(_) => while mapping.socket.take_error().is_some() {},
        }
        if moved > 0 {
            mapping.last_used = now;
            mapping.joined.moved[1] += moved;
            let (to_guest, from_guest) = way.place.to_and_from_guest([0, moved]);
            self.core.splice_moved(to_guest, from_guest);
        }
    }

    /// Ends mappings that are idle, or whose port is gone.
    pub(super) fn sweep_spliced(&mut self, now: Instant) {
        let datagrams = &mut self.splices.datagrams;
        if datagrams.next_sweep.is_none_or(|sweep| now < sweep) {
            return;
        }
        let is_over =
            |mapping: &Mapping| now >= mapping.last_used + IDLE || mapping.back.strong_count() == 0;
        let over: Vec<SpliceId> = datagrams
            .mappings
            .iter()
            .filter_map(|(id, mapping)| is_over(mapping).then_some(*id))
            .collect();
        over.into_iter().for_each(|id| self.end_mapping(id));
        let datagrams = &mut self.splices.datagrams;
        datagrams.next_sweep = (!datagrams.mappings.is_empty()).then_some(now + SWEEP);
    }

    fn end_longest_unused(&mut self) -> Option<()> {
        let mappings = self.splices.datagrams.mappings.iter();
        let (id, _) = mappings.min_by_key(|(_, mapping)| mapping.last_used)?;
        self.end_mapping(*id);
        Some(())
    }

    fn end_mapping(&mut self, id: SpliceId) {
        let datagrams = &mut self.splices.datagrams;
        if let Some(mapping) = datagrams.mappings.remove(&id) {
            datagrams.by_client.remove(&(mapping.port, mapping.visit()));
            self.core.splice_ends(1);
        }
    }
}
