//! What is spliced, and where to: the tables of `splice` and `splice_datagrams`.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use portfwd::relay::Relay;

use super::listeners::Lead;
use super::poller::{ListenerId, SpliceId};
use crate::core::datagram::Visit;
use crate::core::{Instant, Service};
use crate::guest::GuestThread;
use crate::host::UdpSocket;

/// Whose loopback is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Guest,
    Host,
}

impl Place {
    /// Bytes to the guest and from it, of those from the client and from the service.
    pub fn to_and_from_guest(self, [from_client, from_service]: [u64; 2]) -> (u64, u64) {
        match self {
            Self::Guest => (from_client, from_service),
            Self::Host => (from_service, from_client),
        }
    }
}

/// Where a client is joined to.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub place: Place,
    pub to: SocketAddr,
    /// Where to if that refuses.
    pub otherwise: Option<SocketAddr>,
}

/// What is in the guest's namespace and what is not.
#[derive(Clone, Default)]
pub struct Ways {
    /// Makes sockets in the guest; `None` if nothing is spliced.
    guest: Option<Arc<GuestThread>>,
    from_loopback_to_loopback: bool,
}

impl Ways {
    pub fn new(guest: Arc<GuestThread>, from_loopback_to_loopback: bool) -> Self {
        Self {
            guest: Some(guest),
            from_loopback_to_loopback,
        }
    }

    /// Whether, and where to, a client of a port with this `lead` is joined; `None` for one that is
    /// the tap's.
    pub fn of(&self, lead: Lead, client: IpAddr) -> Option<Way> {
        let (place, service) = match lead {
            Lead::Guest(service) => {
                let joined = self.from_loopback_to_loopback && client.is_loopback();
                (Place::Guest, joined.then_some(service)?)
            }
            Lead::Host(service) => (Place::Host, service),
        };
        let Service { address, port } = service;
        let loopbacks = [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::from(Ipv6Addr::LOCALHOST),
        ];
        let [to, otherwise] = match (address, client.is_ipv4()) {
            (Some(address), _) => [Some(address), None],
            (None, true) => loopbacks.map(Some),
            (None, false) => [Some(loopbacks[1]), Some(loopbacks[0])],
        }
        .map(|ip| ip.map(|ip| SocketAddr::new(ip, port)));
        Some(Way {
            place,
            to: to?,
            otherwise,
        })
    }

    pub fn joins_loopbacks(&self) -> bool {
        self.from_loopback_to_loopback
    }

    /// Makes a socket in the namespace of `place`.
    pub fn open<T: Send + 'static>(
        &self,
        place: Place,
        open: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        match (place, &self.guest) {
            (Place::Host, _) => open(),
            (Place::Guest, Some(guest)) => guest.run(open).map_err(io::Error::other)?,
            (Place::Guest, None) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// All spliced connections. A number is given out once.
#[derive(Default)]
pub struct Splices {
    pub ways: Ways,
    pub datagrams: SplicedDatagrams,
    pub connections: BTreeMap<SpliceId, Splice>,
    /// How many there have ever been.
    pub begun: u64,
    /// Those that want another turn without an event.
    pub unfinished: Vec<SpliceId>,
}

/// A client that is joined to a service.
pub struct Joined {
    pub client: SocketAddr,
    pub way: Way,
    pub born: Instant,
    /// Bytes from the client and from the service that were counted.
    pub moved: [u64; 2],
}

/// A spliced connection.
pub struct Splice {
    pub joined: Joined,
    pub stage: Stage,
}

impl Joined {
    pub fn new(client: SocketAddr, way: Way, born: Instant) -> Self {
        Self {
            client,
            way,
            born,
            moved: [0; 2],
        }
    }
}

impl Splice {
    /// As RFC 9293 3.3.2 has it, of the service's side.
    pub fn state_name(&self) -> &'static str {
        match self.stage {
            Stage::Dialling { .. } => "SYN-SENT",
            Stage::Relaying(_) => "ESTABLISHED",
        }
    }
}

/// How far it has come.
pub enum Stage {
    Dialling { client: OwnedFd, service: OwnedFd },
    Relaying(Box<Relay>),
}

impl Splices {
    pub fn has_work(&self) -> bool {
        !self.unfinished.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Splice> {
        self.connections.values()
    }
}

/// All mappings. A number is given out once.
#[derive(Default)]
pub struct SplicedDatagrams {
    pub mappings: BTreeMap<SpliceId, Mapping>,
    pub by_client: HashMap<(ListenerId, Visit), SpliceId>,
    /// How many there have ever been.
    pub begun: u64,
    pub next_sweep: Option<Instant>,
}

/// A client of a port, and what it talks through.
pub struct Mapping {
    pub port: ListenerId,
    pub joined: Joined,
    /// The port's end that the client has asked.
    pub asked: SocketAddr,
    /// In the other namespace.
    pub socket: UdpSocket,
    /// The port's, as long as that is there.
    pub back: Weak<UdpSocket>,
    pub last_used: Instant,
}

impl Mapping {
    pub fn visit(&self) -> Visit {
        Visit {
            client: self.joined.client,
            asked: self.asked,
        }
    }
}

impl SplicedDatagrams {
    pub fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.mappings.values()
    }

    /// The sockets of mappings, which are ours although they look like services.
    pub fn sockets(&self) -> impl Iterator<Item = &UdpSocket> {
        self.mappings.values().map(|mapping| &mapping.socket)
    }

    /// When to look for idle ones.
    pub fn deadline(&self) -> Option<Instant> {
        self.next_sweep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(address: Option<&str>) -> Service {
        Service {
            address: address.map(|ip| ip.parse().unwrap()),
            port: 80,
        }
    }

    /// Where a client from `client` goes, and where else.
    fn way(ways: &Ways, lead: Lead, client: &str) -> Option<(Place, String, Option<String>)> {
        let way = ways.of(lead, client.parse().unwrap())?;
        let otherwise = way.otherwise.map(|to| to.to_string());
        Some((way.place, way.to.to_string(), otherwise))
    }

    #[test]
    fn loopback_is_dialled_in_the_clients_family_first() {
        let ways = Ways::default();
        let lead = Lead::Host(service(None));
        let (v4, v6) = ("127.0.0.1:80".to_owned(), "[::1]:80".to_owned());
        let expected = Some((Place::Host, v4.clone(), Some(v6.clone())));
        assert_eq!(way(&ways, lead, "127.0.0.1"), expected);
        assert_eq!(way(&ways, lead, "::1"), Some((Place::Host, v6, Some(v4))));
        let lead = Lead::Host(service(Some("127.0.0.9")));
        let expected = Some((Place::Host, "127.0.0.9:80".to_owned(), None));
        assert_eq!(way(&ways, lead, "127.0.0.1"), expected);
    }

    #[test]
    fn only_who_comes_from_loopback_goes_to_loopback_and_only_if_asked_for() {
        let lead = Lead::Guest(service(None));
        let mut ways = Ways::default();
        assert_eq!(way(&ways, lead, "127.0.0.1"), None);
        ways.from_loopback_to_loopback = true;
        let place = |client| way(&ways, lead, client).map(|(place, ..)| place);
        assert_eq!(place("127.0.0.1"), Some(Place::Guest));
        assert_eq!(place("::1"), Some(Place::Guest));
        assert_eq!(place("198.51.100.7"), None);
    }
}
