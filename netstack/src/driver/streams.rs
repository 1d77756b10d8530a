//! TCP on the host: dialling for the guest, accepting for published ports.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::SocketFlags;
use tracing::debug;

use super::listeners::Lead;
use super::poller::{Event, Interest, Token};
use super::query_stream::QueryStream;
use super::scarcity::is_out_of_descriptors;
use super::shard::Shard;
use super::sockets::{HostSocket, Stream};
use crate::core::flow::FlowId;
use crate::core::{DialError, Instant};
use crate::device::Device;
use crate::host::dial::{self, Dial};

/// Dials begun in one turn, each of which takes as long as reading some ten frames.
const DIALS_PER_TURN: usize = 32;
/// Connections accepted from one listener in one turn.
const ACCEPTS_PER_TURN: usize = 64;

impl<D: Device> Shard<D> {
    /// Dials for the SYNs that were read, as many as one turn allows.
    pub(super) fn start_dials(&mut self, now: Instant) {
        for _ in 0..DIALS_PER_TURN {
            self.dials.is_held_up = !self.core.may_dial(now);
            if self.dials.is_held_up {
                return;
            }
            let Some((id, to)) = self.dials.pop(|id| self.core.begin_dial(id, now)) else {
                return;
            };
            // It may have taken the place of another.
            self.close_ended();
            self.dial(id, to, now);
        }
    }

    fn dial(&mut self, id: FlowId, to: SocketAddr, now: Instant) {
        let outbound = self.outbound;
        let socket = self
            .open_for(Some(id), || dial::socket_for(to, outbound))
            .map_err(dial::dial_error);
        let dialled = socket.and_then(|socket| {
            self.local_leg.begin(&socket);
            dial::dial(socket, to)
        });
        let result = match dialled {
            Ok(Dial::Connected(socket)) => {
                self.local_leg.settle(&socket);
                let queries = self.core.named_queries(id);
                self.register(id, socket, |socket| HostSocket::dialled(socket, queries))
            }
            Ok(Dial::UnderWay(socket)) => {
                if self.register(id, socket, HostSocket::Dialling).is_ok() {
                    return;
                }
                Err(DialError::Silent)
            }
            Err(error) => Err(error),
        };
        let result = result.or_else(|error| self.do_without_resolver(id).ok_or(error));
        self.core.handle_dialled(id, result, now, &mut self.link);
    }

    /// A dial of flow `id` has failed. If it is to carry queries, some may be answered by names.
    fn do_without_resolver(&mut self, id: FlowId) -> Option<()> {
        let queries = self.core.named_queries(id)?;
        self.core.resolver_failed(id);
        let stream = Box::new(QueryStream::new(queries, None));
        self.sockets.insert(id, HostSocket::Queries(stream));
        Some(())
    }

    /// The socket of a dial has become writable or failed.
    pub(super) fn finish_dial(&mut self, id: FlowId, event: Event, now: Instant) {
        let Some(HostSocket::Dialling(socket)) = self.sockets.remove(id) else {
            return;
        };
        let result = dial::outcome(&socket);
        let connected = result.is_ok();
        if connected {
            self.local_leg.settle(&socket);
            let queries = self.core.named_queries(id);
            self.sockets
                .insert(id, HostSocket::dialled(socket, queries));
        }
        let result = result.or_else(|error| self.do_without_resolver(id).ok_or(error));
        self.core.handle_dialled(id, result, now, &mut self.link);
        if connected {
            // The remote may have spoken already, and an edge is told only once.
            self.core.host_ready(id, event.readiness());
        }
    }

    /// Accepts clients at the `socket` of a published port. False when there is no room for more,
    /// or no descriptor: accepting has to pause.
    pub(super) fn accept(&mut self, socket: &OwnedFd, lead: Lead, now: Instant) -> bool {
        for _ in 0..ACCEPTS_PER_TURN {
            if !self.core.may_accept(now) {
                debug!("as many connections as may be: accepting pauses");
                return false;
            }
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let (stream, client) = match rustix::net::acceptfrom_with(socket, flags) {
                Ok((stream, Some(address))) => match SocketAddr::try_from(address) {
                    Ok(client) => (stream, client),
                    Err(_) => continue,
                },
                Ok((_, None)) => continue,
                Err(Errno::AGAIN) => return true,
                Err(errno)
                    if is_out_of_descriptors(&errno.into()) && self.core.yield_descriptor(None) =>
                {
                    self.close_ended();
                    continue;
                }
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    debug!("out of descriptors: accepting pauses");
                    return false;
                }
                // The client has gone meanwhile (accept(2) passes network errors of the new socket
                // on).
                Err(_) => continue,
            };
            let service = match (self.splices.ways.of(lead, client.ip()), lead) {
                (None, Lead::Guest(service)) => service,
                (None, Lead::Host(_)) => continue,
                (Some(way), _) => {
                    self.splice(stream, client, way, now);
                    continue;
                }
            };
            let flow = self.core.handle_accepted(client, service, now);
            // It may have taken the place of another.
            self.close_ended();
            match flow {
                Some(id) => {
                    self.local_leg.settle(&stream);
                    if self.register(id, stream, HostSocket::stream).is_err() {
                        self.core.abandon(id, now, &mut self.link);
                    }
                }
                None => Stream(stream).reset(),
            }
        }
        true
    }

    fn register(
        &mut self,
        id: FlowId,
        socket: OwnedFd,
        wrap: impl FnOnce(OwnedFd) -> HostSocket,
    ) -> Result<(), DialError> {
        self.poller
            .add(&socket, Token::Flow(id), Interest::Edges)
            .map_err(|_| DialError::Silent)?;
        self.sockets.insert(id, wrap(socket));
        Ok(())
    }
}
