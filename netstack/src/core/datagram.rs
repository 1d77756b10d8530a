//! Mappings without a connection: UDP and ICMP echo. Each has one host socket and an idle timer.
//!
//! UDP of the guest has one mapping per source port for all remotes (endpoint-independent mapping,
//! RFC 4787 REQ-1) and lets in only what comes from an address that it sent to (address-dependent
//! filtering, REQ-8). Packets to an address that stands for another one (DNS forwarder, gateway)
//! have a mapping of their own, so that the answer comes from the address that was asked. A
//! published UDP client has a mapping with its real address as the remote, or another port of that
//! where it has one already.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use super::dns::{Forwarder, Questions};
use super::flow::FlowId;
use super::{Duration, Instant};

/// How long an unused mapping lives: RFC 4787 REQ-5 wants two minutes at least and recommends five.
const UDP_IDLE: Duration = Duration::from_secs(300);
/// A question to a resolver is answered or repeated within this.
const DNS_IDLE: Duration = Duration::from_secs(20);
/// An echo that takes longer is lost.
const ECHO_IDLE: Duration = Duration::from_secs(30);
/// Remote addresses that one mapping remembers as let in; beyond that it starts over.
const MAX_PEERS: usize = 4096;

/// Who sends datagrams to a published port, and which of the host's ends has been asked. A client
/// that asks two of them has a mapping with each, so that each answers by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Visit {
    pub client: SocketAddr,
    pub asked: SocketAddr,
}

/// A UDP or echo flow.
pub struct Mapping {
    pub guest: SocketAddr,
    pub role: Role,
    pub born: Instant,
    pub last_used: Instant,
    pub bytes_to_guest: u64,
    pub bytes_from_guest: u64,
}

pub enum Role {
    /// The guest talks to whom it likes; replies from `peers` are let in.
    Direct { peers: HashSet<IpAddr> },
    /// The guest talks to `appears`, which stands for `host`.
    Translated {
        appears: SocketAddr,
        host: SocketAddr,
    },
    /// The guest asks the forwarder at `appears`.
    Dns {
        appears: SocketAddr,
        questions: Questions,
    },
    /// A client of a published port, which the guest sees as `appears`.
    Published {
        appears: SocketAddr,
        visit: Visit,
        /// The mapping that reaches the guest in the other family, since the guest refused in this
        /// one.
        detour: Option<FlowId>,
        /// It is another one's detour.
        is_detour: bool,
    },
    /// Echo requests to `remote`.
    Echo { remote: IpAddr },
}

impl Mapping {
    pub fn new(guest: SocketAddr, role: Role, now: Instant) -> Self {
        Self {
            guest,
            role,
            born: now,
            last_used: now,
            bytes_to_guest: 0,
            bytes_from_guest: 0,
        }
    }

    /// When the mapping ends unless it is used.
    pub fn expiry(&self) -> Instant {
        self.last_used
            + match self.role {
                Role::Direct { .. } | Role::Translated { .. } | Role::Published { .. } => UDP_IDLE,
                Role::Dns { .. } => DNS_IDLE,
                Role::Echo { .. } => ECHO_IDLE,
            }
    }

    /// Where on the host a datagram of the guest to `remote` goes. `None` when there is no
    /// resolver.
    pub fn route(
        &mut self,
        remote: SocketAddr,
        payload: &[u8],
        forwarder: &Forwarder,
    ) -> Option<SocketAddr> {
        match &mut self.role {
            Role::Direct { peers } => {
                if peers.len() >= MAX_PEERS {
                    peers.clear();
                }
                peers.insert(remote.ip());
                Some(remote)
            }
            Role::Translated { host, .. } => Some(*host),
            Role::Published { visit, .. } => Some(visit.client),
            Role::Dns { questions, .. } => questions.ask(payload, forwarder),
            Role::Echo { .. } => None,
        }
    }

    /// How a datagram from the host address `from` appears to the guest. `None` when it is not let
    /// in.
    pub fn appearance(&self, from: SocketAddr) -> Option<SocketAddr> {
        match &self.role {
            Role::Direct { peers } => peers.contains(&from.ip()).then_some(from),
            Role::Translated { appears, host } => (from == *host).then_some(*appears),
            Role::Published { appears, visit, .. } => (from == visit.client).then_some(*appears),
            Role::Dns { appears, questions } => questions.were_put_to(from).then_some(*appears),
            Role::Echo { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn mapping(role: Role) -> Mapping {
        Mapping::new(addr("10.0.2.100:5000"), role, Instant::ZERO)
    }

    #[test]
    fn only_addresses_that_were_sent_to_are_let_in() {
        let mut mapping = mapping(Role::Direct {
            peers: HashSet::new(),
        });
        let remote = addr("198.51.100.7:53");
        assert_eq!(mapping.appearance(remote), None);
        assert_eq!(
            mapping.route(remote, b"", &Forwarder::default()),
            Some(remote)
        );
        assert_eq!(mapping.appearance(remote), Some(remote));
        // The port may differ (address-dependent), the address may not.
        let other_port = addr("198.51.100.7:54");
        assert_eq!(mapping.appearance(other_port), Some(other_port));
        assert_eq!(mapping.appearance(addr("198.51.100.8:53")), None);
    }

    #[test]
    fn the_forwarder_answers_for_the_resolvers_that_were_asked() {
        let [first, second] = [addr("192.0.2.1:53"), addr("192.0.2.2:53")];
        let forwarder = Forwarder::new(vec![first, second]);
        let asked = addr("10.0.2.3:53");
        let mut mapping = mapping(Role::Dns {
            appears: asked,
            questions: Questions::default(),
        });
        assert_eq!(mapping.route(asked, &[0, 1], &forwarder), Some(first));
        assert_eq!(mapping.appearance(first), Some(asked));
        assert_eq!(mapping.appearance(second), None);
    }
}
