//! TCP connections that are made of two kernel sockets from the start: from the guest's loopback to
//! the host's (`-T`), and the other way for who comes from the host's loopback if that was asked
//! for. Nothing of them passes the tap or the engine; a relay hauls their bytes.
//!
//! A client is accepted first and the service dialled then, as one socket per port allows no more:
//! a service that refuses resets the client. Where the rule names no address, loopback in the
//! client's family is dialled, and in the other one if it refuses: a name such as `localhost` has
//! both, and the service may have one.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use portfwd::relay::{Leg, Progress, Ready, Relay, Side};
use tracing::debug;

use super::listeners::Lead;
use super::poller::{Event, Interest, SpliceId, Token};
use super::scarcity::is_out_of_descriptors;
use super::shard::Shard;
use super::sockets::Stream;
use super::splice_datagrams::SplicedDatagrams;
use crate::core::{DialError, Instant, Service};
use crate::device::Device;
use crate::guest::GuestThread;
use crate::host::Outbound;
use crate::host::dial::{self, Dial};

/// The two sides of a splice's relay.
const CLIENT: Side = Side::A;
const SERVICE: Side = Side::B;
/// Descriptors of each.
const DESCRIPTORS: usize = 2;

/// Whose loopback is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Guest,
    Host,
}

/// Where a client is joined to.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub place: Place,
    pub to: SocketAddr,
    /// Where to if that refuses.
    otherwise: Option<SocketAddr>,
}

/// What is in the guest's namespace and what is not.
#[derive(Default)]
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
    connections: BTreeMap<SpliceId, Splice>,
    /// How many there have ever been.
    begun: u64,
    /// Those that want another turn without an event.
    unfinished: Vec<SpliceId>,
}

/// A spliced connection.
pub struct Splice {
    pub client: SocketAddr,
    pub way: Way,
    pub born: Instant,
    stage: Stage,
    /// Bytes from the client and from the service that were counted.
    pub moved: [u64; 2],
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

enum Stage {
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

impl<D: Device> Shard<D> {
    /// Joins a client that was accepted to its service.
    pub(super) fn splice(&mut self, socket: OwnedFd, client: SocketAddr, way: Way, now: Instant) {
        self.core.splice_begins(DESCRIPTORS);
        self.core.splice_connected();
        let id = SpliceId(self.splices.begun);
        self.splices.begun += 1;
        self.dial_service(id, socket, client, way, now);
    }

    fn dial_service(
        &mut self,
        id: SpliceId,
        socket: OwnedFd,
        client: SocketAddr,
        mut way: Way,
        now: Instant,
    ) {
        let dialled = loop {
            match self.try_dial(way) {
                Err(DialError::Refused | DialError::Unreachable(_))
                    if let Some(otherwise) = way.otherwise.take() =>
                {
                    way.to = otherwise;
                }
                dialled => break dialled,
            }
        };
        let token = Token::Splice(id, SERVICE);
        let (service, is_connected) = match dialled {
            Ok(Dial::Connected(service)) => (service, true),
            Ok(Dial::UnderWay(service)) => (service, false),
            Err(error) => {
                debug!(%client, to = %way.to, ?error, "a service cannot be reached");
                return self.end_splice(Stream(socket));
            }
        };
        if let Err(error) = self.poller.add(&service, token, Interest::Relay) {
            debug!(%error, "a service cannot be watched");
            return self.end_splice(Stream(socket));
        }
        let splice = Splice {
            client,
            way,
            born: now,
            stage: Stage::Dialling {
                client: socket,
                service,
            },
            moved: [0; 2],
        };
        self.splices.connections.insert(id, splice);
        if is_connected {
            self.join(id, None);
        }
    }

    fn try_dial(&mut self, way: Way) -> Result<Dial, DialError> {
        let to = way.to;
        let open = || {
            let socket = move || dial::socket_for(to, Outbound::default());
            self.splices.ways.open(way.place, socket)
        };
        let socket = match open() {
            Err(error) if is_out_of_descriptors(&error) && self.core.yield_descriptor(None) => {
                self.close_ended();
                let socket = move || dial::socket_for(to, Outbound::default());
                self.splices.ways.open(way.place, socket)
            }
            socket => socket,
        };
        dial::dial(socket.map_err(dial::dial_error)?, to)
    }

    /// An event on either socket.
    pub(super) fn handle_spliced(&mut self, id: SpliceId, side: Side, event: Event, now: Instant) {
        let Some(splice) = self.splices.connections.get_mut(&id) else {
            return;
        };
        match &mut splice.stage {
            Stage::Relaying(relay) => {
                relay.handle_ready(side, Ready::from_epoll(event.flags));
                self.drive_splice(id);
            }
            Stage::Dialling { service, .. } => match dial::outcome(&*service) {
                Ok(()) => self.join(id, Some(event)),
                Err(error) => self.dial_again(id, error, now),
            },
        }
    }

    /// A dial that was under way has failed.
    fn dial_again(&mut self, id: SpliceId, error: DialError, now: Instant) {
        let Some(Splice {
            client,
            mut way,
            stage: Stage::Dialling { client: socket, .. },
            ..
        }) = self.splices.connections.remove(&id)
        else {
            return;
        };
        match way.otherwise.take() {
            Some(to) if error != DialError::Silent => {
                way.to = to;
                self.dial_service(id, socket, client, way, now);
            }
            _ => self.end_splice(Stream(socket)),
        }
    }

    /// The service has answered, by `event` if not at once.
    fn join(&mut self, id: SpliceId, event: Option<Event>) {
        let Some(mut splice) = self.splices.connections.remove(&id) else {
            return;
        };
        let Stage::Dialling { client, service } = splice.stage else {
            return;
        };
        let token = Token::Splice(id, CLIENT);
        let watched = self.poller.add(&client, token, Interest::Relay);
        match watched.and_then(|()| Relay::new(Leg::new(client), Leg::new(service))) {
            Ok(mut relay) => {
                if let Some(event) = event {
                    relay.handle_ready(SERVICE, Ready::from_epoll(event.flags));
                }
                splice.stage = Stage::Relaying(Box::new(relay));
                self.splices.connections.insert(id, splice);
                self.drive_splice(id);
            }
            // Both sockets are closed by now.
            Err(error) => {
                debug!(%error, "two sockets cannot be joined");
                self.core.splice_ends(DESCRIPTORS);
            }
        }
    }

    /// Goes on with the relays that had more to do than one turn allows.
    pub(super) fn drive_unfinished_splices(&mut self) {
        for id in std::mem::take(&mut self.splices.unfinished) {
            self.drive_splice(id);
        }
    }

    fn drive_splice(&mut self, id: SpliceId) {
        let Some(splice) = self.splices.connections.get_mut(&id) else {
            return;
        };
        let Stage::Relaying(relay) = &mut splice.stage else {
            return;
        };
        let progress = relay.drive(&mut self.relays.pipes);
        let moved = [CLIENT, SERVICE].map(|side| relay.bytes_from(side));
        let [from_client, from_service] = [0, 1].map(|side| moved[side] - splice.moved[side]);
        splice.moved = moved;
        match splice.way.place {
            Place::Guest => self.core.splice_moved(from_client, from_service),
            Place::Host => self.core.splice_moved(from_service, from_client),
        }
        match progress {
            Progress::Idle => {}
            Progress::Again => self.splices.unfinished.push(id),
            // Closing the sockets, which takes them out of the poller, says what is left to say.
            Progress::Done(_) => {
                self.splices.connections.remove(&id);
                self.core.splice_ends(DESCRIPTORS);
            }
        }
    }

    fn end_splice(&mut self, client: Stream) {
        client.reset();
        self.core.splice_ends(DESCRIPTORS);
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
