//! TCP connections that are made of two kernel sockets from the start: from the guest's loopback to
//! the host's (`-T`), and the other way for who comes from the host's loopback if that was asked
//! for. Nothing of them passes the tap or the engine; a relay hauls their bytes.
//!
//! A client is accepted first and the service dialled then, as one socket per port allows no more:
//! a service that refuses resets the client. Where the rule names no address, loopback in the
//! client's family is dialled, and in the other one if it refuses: a name such as `localhost` has
//! both, and the service may have one.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use portfwd::relay::{Leg, Progress, Ready, Relay, Side};
use tracing::debug;

use super::poller::{Event, Interest, SpliceId, Token};
use super::shard::Shard;
use super::sockets::Stream;
use super::splice_table::{Joined, Splice, Stage, Way};
use crate::core::{DialError, Instant};
use crate::device::Device;
use crate::host::Outbound;
use crate::host::dial::{self, Dial};

/// The two sides of a splice's relay.
const CLIENT: Side = Side::A;
const SERVICE: Side = Side::B;
/// Descriptors of each.
const DESCRIPTORS: usize = 2;

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
            joined: Joined::new(client, way, now),
            stage: Stage::Dialling {
                client: socket,
                service,
            },
        };
        self.splices.connections.insert(id, splice);
        if is_connected {
            self.join(id, None);
        }
    }

    fn try_dial(&mut self, way: Way) -> Result<Dial, DialError> {
        let to = way.to;
        let ways = self.splices.ways.clone();
        let socket = move || dial::socket_for(to, Outbound::default());
        let socket = self.open_for(None, || ways.open(way.place, socket));
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
            joined: Joined {
                client, mut way, ..
            },
            stage: Stage::Dialling { client: socket, .. },
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
        let joined = &mut splice.joined;
        let more = [0, 1].map(|side| moved[side] - joined.moved[side]);
        joined.moved = moved;
        let (to_guest, from_guest) = joined.way.place.to_and_from_guest(more);
        self.core.splice_moved(to_guest, from_guest);
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
