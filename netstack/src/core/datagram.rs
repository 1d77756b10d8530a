//! Mappings without a connection: UDP and ICMP echo. Each has one host socket and an idle timer.
//!
//! UDP of the guest has one mapping per source port for all remotes (endpoint-independent mapping,
//! RFC 4787 REQ-1) and lets in only what comes from an address that it sent to (address-dependent
//! filtering, REQ-8). Packets to an address that stands for another one (DNS forwarder, gateway)
//! have a mapping of their own, so that the answer comes from the address that was asked. A
//! published UDP client has a mapping with its real address as the remote.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use smoltcp::time::{Duration, Instant};

use super::flow::FlowId;

/// How long an unused mapping lives: RFC 4787 REQ-5 wants two minutes at least and recommends five.
const UDP_IDLE: Duration = Duration::from_secs(300);
/// A question to a resolver is answered or repeated within this.
const DNS_IDLE: Duration = Duration::from_secs(20);
/// An echo that takes longer is lost.
const ECHO_IDLE: Duration = Duration::from_secs(30);
/// Remote addresses that one mapping remembers as let in; beyond that it starts over.
const MAX_PEERS: usize = 4096;

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
        asked: Vec<SocketAddr>,
        /// ID of the last question and how often it was repeated: a repetition goes to the next
        /// resolver.
        question: Option<(u16, usize)>,
    },
    /// `client` of a published port, which the guest sees as `appears`.
    Published {
        appears: SocketAddr,
        client: SocketAddr,
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
    pub fn new(guest: SocketAddr, role: Role, now: Instant) -> Mapping {
        Mapping {
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
        resolvers: &[SocketAddr],
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
            Role::Published { client, .. } => Some(*client),
            Role::Dns {
                asked, question, ..
            } => {
                let id = payload
                    .first_chunk::<2>()
                    .map_or(0, |id| u16::from_be_bytes(*id));
                let attempt = match question {
                    Some((last, attempt)) if *last == id => attempt.wrapping_add(1),
                    _ => 0,
                };
                *question = Some((id, attempt));
                let resolver = *resolvers.get(attempt % resolvers.len().max(1))?;
                if !asked.contains(&resolver) {
                    asked.push(resolver);
                }
                Some(resolver)
            }
            Role::Echo { .. } => None,
        }
    }

    /// How a datagram from the host address `from` appears to the guest. `None` when it is not let
    /// in.
    pub fn appearance(&self, from: SocketAddr) -> Option<SocketAddr> {
        match &self.role {
            Role::Direct { peers } => peers.contains(&from.ip()).then_some(from),
            Role::Translated { appears, host } => (from == *host).then_some(*appears),
            Role::Published {
                appears, client, ..
            } => (from == *client).then_some(*appears),
            Role::Dns { appears, asked, .. } => asked.contains(&from).then_some(*appears),
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
        assert_eq!(mapping.route(remote, b"", &[]), Some(remote));
        assert_eq!(mapping.appearance(remote), Some(remote));
        // The port may differ (address-dependent), the address may not.
        let other_port = addr("198.51.100.7:54");
        assert_eq!(mapping.appearance(other_port), Some(other_port));
        assert_eq!(mapping.appearance(addr("198.51.100.8:53")), None);
    }

    #[test]
    fn a_repeated_question_goes_to_the_next_resolver() {
        let resolvers = [addr("192.0.2.1:53"), addr("192.0.2.2:53")];
        let forwarder = addr("10.0.2.3:53");
        let mut mapping = mapping(Role::Dns {
            appears: forwarder,
            asked: Vec::new(),
            question: None,
        });
        let ask = |mapping: &mut Mapping, id: u8| mapping.route(forwarder, &[0, id], &resolvers);
        assert_eq!(ask(&mut mapping, 1), Some(resolvers[0]));
        assert_eq!(mapping.appearance(resolvers[1]), None);
        assert_eq!(ask(&mut mapping, 1), Some(resolvers[1]));
        assert_eq!(ask(&mut mapping, 1), Some(resolvers[0]));
        assert_eq!(ask(&mut mapping, 2), Some(resolvers[0]));
        assert_eq!(mapping.appearance(resolvers[1]), Some(forwarder));
        assert_eq!(mapping.route(forwarder, &[0, 3], &[]), None);
    }
}
