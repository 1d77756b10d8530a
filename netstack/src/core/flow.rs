//! What a flow is known by, why it ends, and the one table of all: a slab of entries with
//! generations, and a keyed hash from tuple to entry.
//!
//! A `FlowId` outlives its flow harmlessly: the generation of a reused slot differs, so a late
//! event of the host finds nothing. Lookup never scans; the hash is keyed because the guest chooses
//! the tuples.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::net::SocketAddr;

use siphasher::sip::SipHasher13;
use tracing::{Span, debug_span};

/// Names a flow in the table, in timers and in the driver's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlowId {
    pub index: u32,
    pub generation: u32,
}

impl FlowId {
    /// Generations have 24 bits, so that an id fits beside a tag into an epoll token.
    pub const MAX_GENERATION: u32 = 0xff_ffff;
}

/// What a flow carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    /// ICMP or ICMPv6 echo; the identifier takes the place of the guest's port.
    Echo,
}

/// What identifies a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    pub protocol: Protocol,
    pub guest: SocketAddr,
    /// The address the guest believes it talks to. `None` for UDP from the guest, where one mapping
    /// serves all remotes (endpoint-independent mapping, RFC 4787 REQ-1).
    pub remote: Option<SocketAddr>,
}

impl Tuple {
    /// The two ends of a TCP connection; `None` of anything else.
    pub fn endpoints(&self) -> Option<Endpoints> {
        match (self.protocol, self.remote) {
            (Protocol::Tcp, Some(remote)) => Endpoints::new(self.guest, remote),
            _ => None,
        }
    }

    /// For log lines about the flow: made where they are due, so that a flow that nobody asks about
    /// pays nothing for it.
    pub fn span(&self) -> Span {
        debug_span!(
            "flow",
            protocol = ?self.protocol,
            guest = %self.guest,
            remote = self.remote.map(tracing::field::display),
        )
    }
}

/// Both ends of a TCP connection of the guest, as its kernel sees them. They are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoints {
    guest: SocketAddr,
    remote: SocketAddr,
}

impl Endpoints {
    /// `None` if the families differ.
    pub fn new(guest: SocketAddr, remote: SocketAddr) -> Option<Self> {
        (guest.is_ipv4() == remote.is_ipv4()).then_some(Self { guest, remote })
    }

    /// The guest's own end.
    pub fn guest(&self) -> SocketAddr {
        self.guest
    }

    /// Whom the guest believes it talks to.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }
}

impl fmt::Display for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} - {}", self.guest, self.remote)
    }
}

/// Why a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Both sides finished, or nothing more is expected of a UDP or echo flow.
    Finished,
    ResetByGuest,
    /// The host stream failed; the guest was sent RST.
    ResetByHost,
    /// The dial failed; the guest was told as the failure asks.
    DialFailed,
    /// The guest left a SYN or FIN unanswered for too long, or until another flow needed the room;
    /// or its SYN was none that TCP takes.
    GuestSilent,
    /// The guest gave up while we were dialling.
    Cancelled,
    /// New rules do not let the guest talk to this remote any more.
    Prohibited,
}

/// Flows of any kind `F`, by id and by tuple.
pub struct FlowTable<F> {
    slots: Vec<Slot<F>>,
    free: Vec<u32>,
    by_tuple: HashMap<Tuple, u32, HashKey>,
}

struct Slot<F> {
    generation: u32,
    flow: Option<(Tuple, F)>,
}

impl<F> FlowTable<F> {
    pub fn new(hash_key: HashKey) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_tuple: HashMap::with_hasher(hash_key),
        }
    }

    /// How many flows there are.
    pub fn count(&self) -> usize {
        self.by_tuple.len()
    }

    pub fn find(&self, tuple: &Tuple) -> Option<FlowId> {
        let index = *self.by_tuple.get(tuple)?;
        Some(FlowId {
            index,
            generation: self.slots[index as usize].generation,
        })
    }

    /// Adds a flow; `None` when its tuple is taken.
    pub fn insert(&mut self, tuple: Tuple, flow: F) -> Option<FlowId> {
        if self.by_tuple.contains_key(&tuple) {
            return None;
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot {
                    generation: 0,
                    flow: None,
                });
                u32::try_from(self.slots.len() - 1).expect("flow limits are far below 2^32")
            }
        };
        let slot = &mut self.slots[index as usize];
        slot.flow = Some((tuple, flow));
        self.by_tuple.insert(tuple, index);
        Some(FlowId {
            index,
            generation: slot.generation,
        })
    }

    /// Gives a flow another tuple, which no other has.
    pub fn rename(&mut self, id: FlowId, tuple: Tuple) {
        if self.get(id).is_some()
            && !self.by_tuple.contains_key(&tuple)
            && let Some((old, _)) = &mut self.slots[id.index as usize].flow
        {
            self.by_tuple.remove(old);
            *old = tuple;
            self.by_tuple.insert(tuple, id.index);
        }
    }

    pub fn tuple(&self, id: FlowId) -> Option<Tuple> {
        let slot = self.slots.get(id.index as usize)?;
        let (tuple, _) = slot.flow.as_ref()?;
        (slot.generation == id.generation).then_some(*tuple)
    }

    pub fn get(&self, id: FlowId) -> Option<&F> {
        let slot = self.slots.get(id.index as usize)?;
        let (_, flow) = slot.flow.as_ref()?;
        (slot.generation == id.generation).then_some(flow)
    }

    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut F> {
        let slot = self.slots.get_mut(id.index as usize)?;
        let (_, flow) = slot.flow.as_mut()?;
        (slot.generation == id.generation).then_some(flow)
    }

    pub fn remove(&mut self, id: FlowId) -> Option<F> {
        self.get(id)?;
        let slot = &mut self.slots[id.index as usize];
        let (tuple, flow) = slot.flow.take()?;
        slot.generation = (slot.generation + 1) & FlowId::MAX_GENERATION;
        self.by_tuple.remove(&tuple);
        self.free.push(id.index);
        Some(flow)
    }

    /// All flows in no particular order. For status, never per packet.
    pub fn iter(&self) -> impl Iterator<Item = (FlowId, &Tuple, &F)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let (tuple, flow) = slot.flow.as_ref()?;
            let id = FlowId {
                index: index as u32,
                generation: slot.generation,
            };
            Some((id, tuple, flow))
        })
    }
}

impl Hash for Tuple {
    /// The address family is left out: it would only lengthen the hash.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.protocol.hash(state);
        hash_addr(self.guest, state);
        if let Some(remote) = self.remote {
            hash_addr(remote, state);
        }
    }
}

fn hash_addr<H: Hasher>(addr: SocketAddr, state: &mut H) {
    match addr {
        SocketAddr::V4(v4) => {
            state.write_u64(u64::from(v4.ip().to_bits()) << 16 | u64::from(v4.port()));
        }
        SocketAddr::V6(v6) => {
            state.write_u128(v6.ip().to_bits());
            state.write_u16(v6.port());
        }
    }
}

/// The secret of the flow hash.
#[derive(Clone, Copy)]
pub struct HashKey(pub u64, pub u64);

impl BuildHasher for HashKey {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Operation {
        Insert(u16),
        Remove(usize),
        Find(u16),
        Rename(usize, u16),
    }

    fn tuple(port: u16) -> Tuple {
        Tuple {
            protocol: Protocol::Tcp,
            guest: SocketAddr::from(([10, 0, 2, 100], port)),
            remote: Some(SocketAddr::from(([198, 51, 100, 7], 443))),
        }
    }

    proptest! {
        /// Against a plain list of (id, port).
        #[test]
        fn behaves_like_a_list(operations in proptest::collection::vec(prop_oneof![
            (0u16..40).prop_map(Operation::Insert),
            (0usize..40).prop_map(Operation::Remove),
            (0u16..40).prop_map(Operation::Find),
            (0usize..40, 0u16..40).prop_map(|(nth, port)| Operation::Rename(nth, port)),
        ], 0..200)) {
            let mut table = FlowTable::new(HashKey(1, 2));
            let mut model: Vec<(FlowId, u16)> = Vec::new();
            let mut gone: Vec<FlowId> = Vec::new();
            for operation in operations {
                match operation {
                    Operation::Insert(port) => {
                        let id = table.insert(tuple(port), port);
                        prop_assert_eq!(id.is_none(), model.iter().any(|(_, p)| *p == port));
                        model.extend(id.map(|id| (id, port)));
                    }
                    Operation::Remove(nth) if nth < model.len() => {
                        let (id, port) = model.remove(nth);
                        prop_assert_eq!(table.remove(id), Some(port));
                        gone.push(id);
                    }
                    Operation::Rename(nth, port) if nth < model.len() => {
                        table.rename(model[nth].0, tuple(port));
                        if model.iter().all(|(_, tuple)| *tuple != port) {
                            model[nth].1 = port;
                            *table.get_mut(model[nth].0).unwrap() = port;
                        }
                        prop_assert_eq!(table.tuple(model[nth].0), Some(tuple(model[nth].1)));
                    }
                    Operation::Remove(_) | Operation::Rename(..) => {}
                    Operation::Find(port) => {
                        let expected = model.iter().find(|(_, p)| *p == port).map(|(id, _)| *id);
                        prop_assert_eq!(table.find(&tuple(port)), expected);
                    }
                }
                prop_assert_eq!(table.count(), model.len());
                for (id, port) in &model {
                    prop_assert_eq!(table.get(*id), Some(port));
                    prop_assert_eq!(table.tuple(*id), Some(tuple(*port)));
                }
                for id in &gone {
                    prop_assert_eq!(table.get(*id), None);
                }
            }
        }
    }
}
