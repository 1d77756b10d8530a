//! The DNS forwarder: what counts as a query to it, and which of the host's resolvers gets that.
//! Names that the engine has handed over (`names`) it answers itself (`answer`).
//!
//! Any other query is passed on as it is; all that is read of it is its ID (RFC 1035 4.1.1), over
//! UDP. A guest that asks the same again has had no answer, so the next resolver gets it; one that
//! cannot be reached comes last from then on. Over TCP a repeated question is a new connection,
//! which nothing tells from the first one: there only a failed dial brings the next resolver. A
//! resolver may serve UDP and not TCP, so each has an order of its own.

mod answer;
mod local;
pub mod names;

use std::net::SocketAddr;

pub use self::answer::{Carrier, answer, failure};
pub use self::local::NamedQueries;
pub use self::names::{HostName, HostNameError, HostNames};
use super::flow::Protocol;

/// Port of DNS (RFC 1035 4.2).
pub const DNS_PORT: u16 = 53;

/// Whether what is sent to this port of the forwarder's address is for a resolver.
pub fn is_query(protocol: Protocol, port: u16) -> bool {
    matches!(protocol, Protocol::Tcp | Protocol::Udp) && port == DNS_PORT
}

/// Port of DNS over TLS and over QUIC (RFC 7858 3.1, RFC 9250 4.1.1).
pub const ENCRYPTED_DNS_PORT: u16 = 853;

/// Whether what is sent to this port of the forwarder's address is an encrypted query.
pub fn is_encrypted(protocol: Protocol, port: u16) -> bool {
    matches!(protocol, Protocol::Tcp | Protocol::Udp) && port == ENCRYPTED_DNS_PORT
}

/// The host's resolvers, the one to be asked first in front.
#[derive(Debug, Default)]
pub struct Forwarder {
    over_udp: Vec<SocketAddr>,
    over_tcp: Vec<SocketAddr>,
}

impl Forwarder {
    /// Forwards to `resolvers`, most preferred first.
    pub fn new(resolvers: Vec<SocketAddr>) -> Self {
        Self {
            over_udp: resolvers.clone(),
            over_tcp: resolvers,
        }
    }

    /// Where a connection of the guest leads. `None` when there is no resolver.
    pub fn dial(&self) -> Option<SocketAddr> {
        self.over_tcp.first().copied()
    }

    /// Where encrypted queries lead. Whether the resolver takes any is between the two: it is not
    /// put last for a failure.
    pub fn encrypted(&self) -> Option<SocketAddr> {
        let resolver = self.over_udp.first()?;
        Some(SocketAddr::new(resolver.ip(), ENCRYPTED_DNS_PORT))
    }

    /// `resolver` could not be connected to.
    pub fn dial_failed(&mut self, resolver: SocketAddr) {
        put_last(&mut self.over_tcp, resolver);
    }
}

/// The next one moves up, unless that has happened already.
fn put_last(resolvers: &mut [SocketAddr], failed: SocketAddr) {
    if resolvers.first() == Some(&failed) {
        resolvers.rotate_left(1);
    }
}

/// What one UDP port of the guest has asked.
#[derive(Debug, Default)]
pub struct Questions {
    asked: Vec<SocketAddr>,
    /// ID of the last question, and how often it was repeated.
    last: Option<(u16, usize)>,
}

impl Questions {
    /// The resolver that `query` goes to. `None` when there is none.
    pub fn ask(&mut self, query: &[u8], forwarder: &Forwarder) -> Option<SocketAddr> {
        let id = query
            .first_chunk::<2>()
            .map_or(0, |id| u16::from_be_bytes(*id));
        let attempt = match self.last {
            Some((last, attempt)) if last == id => attempt.wrapping_add(1),
            _ => 0,
        };
        self.last = Some((id, attempt));
        let resolvers = &forwarder.over_udp;
        let resolver = *resolvers.get(attempt % resolvers.len().max(1))?;
        if !self.asked.contains(&resolver) {
            self.asked.push(resolver);
        }
        Some(resolver)
    }

    /// Whether an answer of `resolver` may be one to us.
    pub fn were_put_to(&self, resolver: SocketAddr) -> bool {
        self.asked.contains(&resolver)
    }

    /// A question did not reach `resolver`. The guest, which is told, asks again at once, and then
    /// it is the next one's turn.
    pub fn failed(&mut self, resolver: SocketAddr, forwarder: &mut Forwarder) {
        self.last = None;
        put_last(&mut forwarder.over_udp, resolver);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolvers() -> [SocketAddr; 2] {
        ["192.0.2.1:53", "192.0.2.2:53"].map(|text| text.parse().unwrap())
    }

    #[test]
    fn a_repeated_question_goes_to_the_next_resolver() {
        let [first, second] = resolvers();
        let forwarder = Forwarder::new(vec![first, second]);
        let mut questions = Questions::default();
        let mut ask = |id: u8| questions.ask(&[0, id], &forwarder);
        assert_eq!(ask(1), Some(first));
        assert_eq!(ask(1), Some(second));
        assert_eq!(ask(1), Some(first));
        assert_eq!(ask(2), Some(first));
        assert!(questions.were_put_to(second));
        assert_eq!(questions.ask(&[0, 3], &Forwarder::default()), None);
    }

    #[test]
    fn a_resolver_that_fails_comes_last_over_the_protocol_that_failed() {
        let [first, second] = resolvers();
        let mut forwarder = Forwarder::new(vec![first, second]);
        forwarder.dial_failed(first);
        // Another connection that was made to it at the same time.
        forwarder.dial_failed(first);
        assert_eq!(forwarder.dial(), Some(second));
        let mut questions = Questions::default();
        assert_eq!(questions.ask(&[0, 1], &forwarder), Some(first));
        assert!(!questions.were_put_to(second));
        questions.failed(first, &mut forwarder);
        assert_eq!(questions.ask(&[0, 1], &forwarder), Some(second));
        assert_eq!(forwarder.dial(), Some(second));
    }

    #[test]
    fn only_its_port_takes_queries() {
        assert!(is_query(Protocol::Tcp, 53) && is_query(Protocol::Udp, 53));
        assert!(!is_query(Protocol::Udp, 54) && !is_query(Protocol::Echo, 53));
        assert!(is_encrypted(Protocol::Tcp, 853) && is_encrypted(Protocol::Udp, 853));
        assert!(!is_encrypted(Protocol::Tcp, 53) && !is_encrypted(Protocol::Echo, 853));
    }

    #[test]
    fn encrypted_queries_go_to_the_first_resolver() {
        let [first, second] = resolvers();
        let to = Forwarder::new(vec![first, second]).encrypted();
        assert_eq!(to, Some("192.0.2.1:853".parse().unwrap()));
        assert_eq!(Forwarder::default().encrypted(), None);
    }
}
