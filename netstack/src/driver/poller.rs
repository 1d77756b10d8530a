//! epoll with typed tokens: what a wake-up is about is in the event, no lookup by descriptor.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use portfwd::relay::Side;
use rustix::event::{Timespec, epoll};

use crate::core::Duration;
use crate::core::flow::FlowId;
use crate::core::tcp::Readiness;

/// Events taken per wake-up.
const BATCH: usize = 256;

/// Who an event is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// The way to the guest.
    Device,
    /// A published port.
    Listener(ListenerId),
    /// The host socket of a flow.
    Flow(FlowId),
    /// The kernel socket of a promoted flow that faces the guest.
    Guest(FlowId),
    /// A socket of a spliced connection.
    Splice(SpliceId, Side),
    /// The socket of a client of a port whose datagrams are passed on.
    SplicedDatagrams(SpliceId),
    Companion,
    Status,
    SlirpApi,
    /// `pesto`'s.
    PortControl,
    /// It may be time to end.
    Exit,
}

/// Names a published port. No other one ever has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(pub u64);

/// Names a spliced connection or mapping. No other one of its kind ever has the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpliceId(pub u64);

/// What to be told about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// As long as there is something to read.
    Readable,
    /// Once per change in either direction, a FIN of the remote included.
    Edges,
    /// Hang-ups and errors only.
    HangUp,
    /// What a relay wants to know of its sockets.
    Relay,
}

/// One event.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub token: Token,
    pub readable: bool,
    pub writable: bool,
    pub hung_up: bool,
    pub error: bool,
    /// As epoll gave them.
    pub flags: u32,
}

pub struct Poller {
    epoll: OwnedFd,
    buffer: Vec<epoll::Event>,
}

impl Poller {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            buffer: Vec::with_capacity(BATCH),
        })
    }

    pub fn add(&self, source: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token.encode());
        Ok(epoll::add(&self.epoll, source, data, interest.flags())?)
    }

    pub fn change(&self, source: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token.encode());
        Ok(epoll::modify(&self.epoll, source, data, interest.flags())?)
    }

    pub fn remove(&self, source: impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, source)?)
    }

    /// Waits for events at most `timeout` (for ever if `None`) and appends them to `events`.
    pub fn wait(&mut self, timeout: Option<Duration>, events: &mut Vec<Event>) -> io::Result<()> {
        // One that is too long to be written is as good as none.
        let timeout =
            timeout.and_then(|timeout| Timespec::try_from(std::time::Duration::from(timeout)).ok());
        self.buffer.clear();
        let space = rustix::buffer::spare_capacity(&mut self.buffer);
        match epoll::wait(&self.epoll, space, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        events.extend(self.buffer.iter().map(Event::decode));
        Ok(())
    }
}

impl Interest {
    fn flags(self) -> epoll::EventFlags {
        match self {
            Self::Readable => epoll::EventFlags::IN,
            Self::Edges => {
                epoll::EventFlags::IN
                    | epoll::EventFlags::OUT
                    | epoll::EventFlags::RDHUP
                    | epoll::EventFlags::ET
            }
            Self::HangUp => epoll::EventFlags::empty(),
            Self::Relay => epoll::EventFlags::from_bits_retain(portfwd::relay::INTEREST),
        }
    }
}

impl Event {
    fn decode(event: &epoll::Event) -> Self {
        let flags = event.flags;
        let failed = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
        let hung_up = flags.intersects(failed | epoll::EventFlags::RDHUP);
        Self {
            token: Token::decode(event.data.u64()),
            // Reading is how FIN and errors are learnt.
            readable: hung_up || flags.contains(epoll::EventFlags::IN),
            writable: flags.intersects(failed | epoll::EventFlags::OUT),
            hung_up,
            error: flags.contains(epoll::EventFlags::ERR),
            flags: flags.bits(),
        }
    }

    /// What the core wants to know of it.
    pub fn readiness(&self) -> Readiness {
        Readiness {
            readable: self.readable,
            writable: self.writable,
            hung_up: self.hung_up,
            failed: self.error,
        }
    }
}

const KIND_SHIFT: u32 = 56;
const GENERATION_SHIFT: u32 = 32;

impl Token {
    /// Kind in the top byte; then the generation's 24 bits and the index, or the number of a
    /// listener or splice, which does not reach 2^56.
    fn encode(self) -> u64 {
        let (kind, value) = match self {
            Self::Device => (0, 0),
            Self::Listener(ListenerId(number)) => (1, number),
            Self::Flow(id) => (
                2,
                u64::from(id.generation) << GENERATION_SHIFT | u64::from(id.index),
            ),
            Self::Companion => (3, 0),
            Self::Status => (4, 0),
            Self::Exit => (5, 0),
            Self::SlirpApi => (7, 0),
            Self::Splice(SpliceId(number), Side::A) => (8, number),
            Self::Splice(SpliceId(number), Side::B) => (9, number),
            Self::SplicedDatagrams(SpliceId(number)) => (10, number),
            Self::PortControl => (11, 0),
            Self::Guest(id) => (
                6,
                u64::from(id.generation) << GENERATION_SHIFT | u64::from(id.index),
            ),
        };
        kind << KIND_SHIFT | value
    }

    fn decode(bits: u64) -> Self {
        let index = bits as u32;
        let flow = FlowId {
            index,
            generation: (bits >> GENERATION_SHIFT) as u32 & FlowId::MAX_GENERATION,
        };
        let number = bits & ((1 << KIND_SHIFT) - 1);
        match bits >> KIND_SHIFT {
            0 => Self::Device,
            1 => Self::Listener(ListenerId(number)),
            2 => Self::Flow(flow),
            6 => Self::Guest(flow),
            3 => Self::Companion,
            4 => Self::Status,
            7 => Self::SlirpApi,
            8 => Self::Splice(SpliceId(number), Side::A),
            9 => Self::Splice(SpliceId(number), Side::B),
            10 => Self::SplicedDatagrams(SpliceId(number)),
            11 => Self::PortControl,
            _ => Self::Exit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_the_kernel() {
        let flow = FlowId {
            index: u32::MAX,
            generation: FlowId::MAX_GENERATION,
        };
        for token in [
            Token::Device,
            Token::Listener(ListenerId(7)),
            Token::Listener(ListenerId((1 << 56) - 1)),
            Token::Flow(flow),
            Token::Guest(flow),
            Token::Flow(FlowId {
                index: 0,
                generation: 0,
            }),
            Token::Companion,
            Token::Status,
            Token::SlirpApi,
            Token::PortControl,
            Token::Splice(SpliceId((1 << 56) - 1), Side::A),
            Token::Splice(SpliceId(7), Side::B),
            Token::SplicedDatagrams(SpliceId(7)),
            Token::Exit,
        ] {
            assert_eq!(Token::decode(token.encode()), token);
        }
    }
}
