//! UDP and ICMP echo on the host: sockets are made at a mapping's first packet.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU16};
use std::sync::Arc;

use tracing::{debug, warn};

use super::listeners::Lead;
use super::poller::{Interest, ListenerId, Token};
use super::shard::Shard;
use super::sockets::{HostSocket, Visited};
use crate::core::Instant;
use crate::core::datagram::Visit;
use crate::core::flow::FlowId;
use crate::core::icmp::DeliveryError;
use crate::device::Device;
use crate::host::udp::Destination;
use crate::host::{PingSocket, UdpSocket, udp};

/// Where a datagram of the guest goes, and from which flow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ToHost {
    flow: FlowId,
    to: Destination,
}

impl ToHost {
    pub(super) fn new(flow: FlowId, address: SocketAddr, hops: Option<NonZeroU8>) -> Self {
        let to = Destination { address, hops };
        Self { flow, to }
    }
}

/// Echo replies read from one socket in one turn.
const REPLIES_PER_TURN: usize = 32;

/// A datagram at a published port, or several of `segment` bytes.
#[derive(Clone, Copy)]
pub(super) struct Arrived<'b> {
    pub visit: Visit,
    pub payload: &'b [u8],
    pub segment: Option<NonZeroU16>,
}

impl<D: Device> Shard<D> {
    /// Sends what [`Shard::perform`](super::shard::Shard) has gathered of the guest's datagrams.
    pub(super) fn flush_datagrams(&mut self) {
        let mut gathered = std::mem::take(&mut self.to_host);
        gathered.flush(|to, payload, segment| self.send_datagram(to, payload, segment));
        self.to_host = gathered;
    }

    /// Sends a datagram, or several of `segment` bytes, maybe together with others of this turn.
    pub(super) fn gather_datagram(
        &mut self,
        to: ToHost,
        payload: &[u8],
        segment: Option<NonZeroU16>,
    ) {
        let mut gathered = std::mem::take(&mut self.to_host);
        gathered.add(to, payload, segment, |to, payload, segment| {
            self.send_datagram(to, payload, segment);
        });
        self.to_host = gathered;
    }

    fn send_datagram(&mut self, to: ToHost, payload: &[u8], segment: Option<NonZeroU16>) {
        let ToHost { flow: id, to } = to;
        let outbound = self.outbound;
        if self.sockets.get_mut(id).is_none() {
            match self.open_for(Some(id), || UdpSocket::open(to.address, outbound)) {
                Ok(socket) => {
                    if self
                        .poller
                        .add(&socket, Token::Flow(id), Interest::Readable)
                        .is_ok()
                    {
                        self.sockets.insert(id, HostSocket::Udp(socket));
                    }
                }
                Err(error) => debug!(%error, "cannot make a UDP socket"),
            }
        }
        let shared;
        let (socket, from) = match self.sockets.get_mut(id) {
            Some(HostSocket::Udp(socket)) => (&*socket, None),
            Some(HostSocket::PublishedUdp(Visited { port, asked })) => match port.upgrade() {
                Some(socket) => {
                    shared = socket;
                    (&*shared, Some(*asked))
                }
                // It is not published any more.
                None => return,
            },
            _ => return,
        };
        let Err(error) = socket.send(payload, segment, from, to) else {
            return;
        };
        // The kernel reports an earlier datagram's ICMP error by failing the next send; that one
        // has not been sent.
        let mut retry = false;
        while let Some(error) = socket.take_error() {
            retry = true;
            self.core.handle_datagram_error(id, error, &mut self.link);
        }
        let error = match retry {
            true => socket.send(payload, segment, from, to).err(),
            false => Some(error),
        };
        if let Some(why) = error.and_then(udp::send_error) {
            let error = DeliveryError::of_host(to.address, why);
            self.core.handle_datagram_error(id, error, &mut self.link);
        }
    }

    pub(super) fn read_datagrams(&mut self, id: FlowId, failed: bool, now: Instant) {
        let Some(HostSocket::Udp(socket)) = self.sockets.get_mut(id) else {
            return;
        };
        if failed {
            while let Some(error) = socket.take_error() {
                self.core.handle_datagram_error(id, error, &mut self.link);
            }
        }
        let Ok(datagrams) = socket.receive(&mut self.datagrams) else {
            return;
        };
        let mut send = |from, payload: &[u8], segment| {
            self.core
                .handle_datagram(id, from, payload, segment, now, &mut self.link);
        };
        for one in datagrams {
            self.to_guest
                .add(one.from, one.payload, one.segment, &mut send);
        }
        self.to_guest.flush(&mut send);
    }

    pub(super) fn send_echo(
        &mut self,
        id: FlowId,
        to: IpAddr,
        hops: Option<NonZeroU8>,
        sequence: u16,
        payload: &[u8],
    ) {
        let outbound = self.outbound;
        if self.sockets.get_mut(id).is_none() {
            match self.open_for(Some(id), || PingSocket::open(to, outbound)) {
                Ok(socket) => {
                    if self
                        .poller
                        .add(&socket, Token::Flow(id), Interest::Readable)
                        .is_ok()
                    {
                        self.sockets.insert(id, HostSocket::Ping(socket));
                    }
                }
                Err(error)
                    if error.kind() == io::ErrorKind::PermissionDenied
                        && !self.warned_about_ping =>
                {
                    self.warned_about_ping = true;
                    warn!(
                        %error,
                        "pings beyond the gateway are lost: net.ipv4.ping_group_range of the host does not hold our group"
                    );
                }
                Err(error) => debug!(%error, "cannot make a ping socket"),
            }
        }
        let Some(HostSocket::Ping(socket)) = self.sockets.get_mut(id) else {
            return;
        };
        let Err(mut error) = socket.send(to, hops, sequence, payload) else {
            return;
        };
        // As with datagrams, it may be an earlier one's.
        let mut retry = false;
        while let Some((failed, error)) = socket.take_error() {
            retry = true;
            self.core
                .handle_echo_error(id, failed, error, &mut self.link);
        }
        if retry {
            match socket.send(to, hops, sequence, payload) {
                Ok(()) => return,
                Err(again) => error = again,
            }
        }
        debug!(%to, %error, "echo request not sent");
        if let Some(why) = udp::send_error(error) {
            let error = DeliveryError::of_host(SocketAddr::new(to, 0), why);
            self.core
                .handle_echo_error(id, sequence, error, &mut self.link);
        }
    }

    pub(super) fn read_echo_replies(&mut self, id: FlowId, failed: bool, now: Instant) {
        let Some(HostSocket::Ping(socket)) = self.sockets.get_mut(id) else {
            return;
        };
        if failed {
            while let Some((sequence, error)) = socket.take_error() {
                self.core
                    .handle_echo_error(id, sequence, error, &mut self.link);
            }
        }
        for _ in 0..REPLIES_PER_TURN {
            match socket.receive(&mut self.buffer) {
                Ok(Some((sequence, payload))) => {
                    self.core
                        .handle_echo_reply(id, sequence, payload, now, &mut self.link);
                }
                Ok(None) => {}
                Err(_) => return,
            }
        }
    }

    /// Lets a mapping talk through the published port of another one.
    pub(super) fn share_socket(&mut self, id: FlowId, with: FlowId) {
        if let Some(HostSocket::PublishedUdp(visited)) = self.sockets.get_mut(with) {
            let visited = visited.clone();
            self.sockets.insert(id, HostSocket::PublishedUdp(visited));
        }
    }

    /// Datagrams of clients of the published `port`, which has this `socket`.
    pub(super) fn read_published(
        &mut self,
        port: ListenerId,
        socket: &Arc<UdpSocket>,
        lead: Lead,
        now: Instant,
    ) {
        // An error of the shared socket belongs to a client that has gone; it must only be taken
        // off the queue.
        while socket.take_error().is_some() {}
        let mut buffer = std::mem::take(&mut self.datagrams);
        if let Ok(datagrams) = socket.receive(&mut buffer) {
            let mut gathered = std::mem::take(&mut self.from_clients);
            let mut take = |visit, payload: &[u8], segment| {
                let arrived = Arrived {
                    visit,
                    payload,
                    segment,
                };
                self.take_published(port, socket, lead, arrived, now);
            };
            for one in datagrams {
                if let Some(asked) = socket.asked(&one) {
                    let client = one.from;
                    let visit = Visit { client, asked };
                    gathered.add(visit, one.payload, one.segment, &mut take);
                }
            }
            gathered.flush(&mut take);
            self.from_clients = gathered;
        }
        self.datagrams = buffer;
    }

    /// What a client has sent in a row.
    fn take_published(
        &mut self,
        port: ListenerId,
        socket: &Arc<UdpSocket>,
        lead: Lead,
        arrived: Arrived<'_>,
        now: Instant,
    ) {
        let service = match (self.splices.ways.of(lead, arrived.visit.client.ip()), lead) {
            (None, Lead::Guest(service)) => service,
            (None, Lead::Host(_)) => return,
            (Some(way), _) => return self.pass_on(port, socket, way, arrived, now),
        };
        let flow = self.core.handle_published_datagram(
            arrived.visit,
            service,
            arrived.payload,
            arrived.segment,
            now,
            &mut self.link,
        );
        if let Some(id) = flow
            && self.sockets.get_mut(id).is_none()
        {
            let visited = Visited {
                port: Arc::downgrade(socket),
                asked: arrived.visit.asked,
            };
            self.sockets.insert(id, HostSocket::PublishedUdp(visited));
        }
    }
}
