//! Ports in pasta's words while the loop runs: the rules, the sockets that are open for them, and
//! what changes both.
//!
//! Rules are replaced as a whole (`pesto`), and automatic ones follow who listens on the other
//! side. Either way the sockets that there should be are worked out anew, and only the difference
//! is opened and closed: a port that stays keeps its queue, and connections outlive their port.
//!
//! Sockets of ours are told from those of services by their cookies, so that no port that is open
//! for a rule is ever taken for a service. That keeps `-t auto` and `-T auto` from passing a port
//! back and forth.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use portfwd::forward::wire::Tables;
use portfwd::{Direction, Endpoint, Forward, Protocol};
use rustix::net::sockopt::socket_cookie;
use tracing::{debug, warn};

use super::Driver;
use super::listeners::{Lead, Listeners};
use super::pause::Pause;
use super::poller::{Interest, ListenerId, Poller, Token};
use super::shard::Shard;
use super::splice_table::Ways;
use crate::broker::Broker;
use crate::control::{Forwarder, PortControl};
use crate::core::{Duration, Instant, Service};
use crate::device::Device;
use crate::forwards::{Need, OpenPort, Wanted, wanted};
use crate::guest::GuestThread;
use crate::netlink::{Listening, ListeningSockets};

/// How often it is looked who listens. A port is followed within a second.
const LOOK_EVERY: Duration = Duration::from_millis(900);

/// What the loop is told to begin with.
pub struct ForwardParts {
    pub tables: Tables,
    pub open: Vec<(Direction, OpenPort)>,
    /// Opens ports on the host; `None` if none may come.
    pub broker: Option<Broker>,
    /// Opens ports in the guest, and makes sockets there.
    pub guest: Arc<GuestThread>,
    pub from_loopback_to_loopback: bool,
    /// The guest's sockets, then the host's, as far as they are looked at.
    pub listening: [Option<ListeningSockets>; 2],
    pub control: Option<PortControl>,
    /// Most sockets that may be open at a time.
    pub limit: usize,
}

/// See the module's description.
pub struct Forwarding {
    ports: Ports,
    control: Option<PortControl>,
    /// No client is served for a moment.
    pause: Pause,
}

struct Ports {
    tables: Tables,
    open: BTreeMap<(Direction, Endpoint), Open>,
    opener: Opener,
    listening: [Option<ListeningSockets>; 2],
    next_look: Instant,
    limit: usize,
    limit_was_told: bool,
}

/// What opens sockets by its rights.
struct Opener {
    broker: Option<Broker>,
    guest: Arc<GuestThread>,
}

/// A socket that is open for a rule.
struct Open {
    id: ListenerId,
    to: Service,
    cookie: u64,
}

/// What ports are opened and looked for with.
struct Surroundings<'a, D> {
    listeners: &'a mut Listeners,
    shard: &'a Shard<D>,
}

impl Forwarding {
    /// Listens at the ports that are open already. The splices' ways come with it.
    pub fn new(
        parts: ForwardParts,
        listeners: &mut Listeners,
        poller: &Poller,
    ) -> io::Result<(Self, Ways)> {
        let ways = Ways::new(parts.guest.clone(), parts.from_loopback_to_loopback);
        let mut ports = Ports {
            tables: parts.tables,
            open: BTreeMap::new(),
            opener: Opener {
                broker: parts.broker,
                guest: parts.guest,
            },
            listening: parts.listening,
            next_look: Instant::ZERO,
            limit: parts.limit,
            limit_was_told: false,
        };
        for (direction, port) in parts.open {
            let OpenPort {
                endpoint,
                to,
                socket,
            } = port;
            ports.listen(direction, endpoint, to, socket, listeners, poller)?;
        }
        if let Some(control) = &parts.control {
            poller.add(control, Token::PortControl, Interest::Readable)?;
        }
        let forwarding = Self {
            ports,
            control: parts.control,
            pause: Pause::default(),
        };
        Ok((forwarding, ways))
    }

    /// When there is something to do without an event.
    pub fn deadline(&self) -> Option<Instant> {
        let control = self.control.as_ref().and_then(PortControl::deadline);
        let served = self.pause.until().or(control);
        let look = self.ports.looks().then_some(self.ports.next_look);
        served.into_iter().chain(look).min()
    }
}

impl<D: Device> Driver<D> {
    /// Serves clients of the control socket that have come, sent something, or kept us waiting too
    /// long.
    pub(super) fn handle_port_control(&mut self, now: Instant) {
        let Some(Forwarding {
            ports,
            control: Some(control),
            pause,
        }) = &mut self.forwarding
        else {
            return;
        };
        let mut update = Update {
            ports,
            around: Surroundings {
                listeners: &mut self.listeners,
                shard: &self.shard,
            },
        };
        if let Err(error) = control.serve(&mut update, now) {
            debug!(%error, "a client of the control socket waits");
            pause.silence(&self.shard.poller, control, Token::PortControl, now);
        }
    }

    /// Does what is due without an event.
    pub(super) fn resume_forwarding(&mut self, now: Instant) {
        self.follow_ports(now);
        let Some(Forwarding {
            control: Some(control),
            pause,
            ..
        }) = &mut self.forwarding
        else {
            return;
        };
        pause.wake(&self.shard.poller, control, Token::PortControl, now);
        if control.deadline().is_some_and(|deadline| deadline <= now) {
            self.handle_port_control(now);
        }
    }

    /// Looks who listens, when that is due.
    pub(super) fn follow_ports(&mut self, now: Instant) {
        let Some(forwarding) = &mut self.forwarding else {
            return;
        };
        let ports = &mut forwarding.ports;
        if now < ports.next_look || !ports.looks() {
            return;
        }
        ports.next_look = now + LOOK_EVERY;
        let mut around = Surroundings {
            listeners: &mut self.listeners,
            shard: &self.shard,
        };
        for direction in Direction::BOTH {
            if ports.tables.of(direction).has_auto()
                && let Err(error) = ports.adjust(direction, &mut around)
            {
                debug!(%error, "a port that was open cannot be opened again");
            }
        }
    }
}

/// Carries out what clients of the control socket ask for.
struct Update<'a, D> {
    ports: &'a mut Ports,
    around: Surroundings<'a, D>,
}

impl<D: Device> Forwarder for Update<'_, D> {
    fn tables(&self) -> &Tables {
        &self.ports.tables
    }

    /// All of it or nothing.
    fn replace(&mut self, tables: Tables) -> Result<(), String> {
        let before = std::mem::replace(&mut self.ports.tables, tables);
        let adjusted = Direction::BOTH
            .into_iter()
            .try_for_each(|direction| self.ports.adjust(direction, &mut self.around));
        if adjusted.is_err() {
            self.ports.tables = before;
            for direction in Direction::BOTH {
                if let Err(error) = self.ports.adjust(direction, &mut self.around) {
                    warn!("a forwarded port was lost: {error}");
                }
            }
        }
        adjusted
    }
}

impl Ports {
    /// Whether an automatic rule is followed.
    fn looks(&self) -> bool {
        Direction::BOTH
            .into_iter()
            .any(|direction| self.tables.of(direction).has_auto())
    }

    /// Closes what should not be open, and opens what should, of one direction.
    fn adjust<D: Device>(
        &mut self,
        direction: Direction,
        around: &mut Surroundings<'_, D>,
    ) -> Result<(), String> {
        let listening = self.look(direction, around.shard);
        let table = self.tables.of(direction);
        let wanted = wanted(table, |rule| targets(rule, &listening));
        let gone = |(of, endpoint): &(Direction, Endpoint)| {
            *of == direction && !wanted.contains_key(endpoint)
        };
        let closed: Vec<_> = self.open.keys().copied().filter(gone).collect();
        for key in closed {
            if let Some(open) = self.open.remove(&key) {
                debug!(port = %key.1, "is forwarded no more");
                around.listeners.remove(open.id);
            }
        }
        let mut missing = Vec::new();
        for (endpoint, Wanted { to, need }) in wanted {
            match self.open.get_mut(&(direction, endpoint)) {
                Some(open) => {
                    if open.to != to {
                        open.to = to;
                        around.listeners.redirect(open.id, lead(direction, to));
                    }
                }
                None => missing.push((endpoint, to, need)),
            }
        }
        self.open_all(direction, &missing, around)
    }

    fn open_all<D: Device>(
        &mut self,
        direction: Direction,
        missing: &[(Endpoint, Service, Need)],
        around: &mut Surroundings<'_, D>,
    ) -> Result<(), String> {
        let room = self.limit.saturating_sub(self.open.len());
        if missing.len() > room {
            if missing.iter().any(|(.., need)| *need == Need::Required) {
                return Err(format!("no more than {} ports can be open", self.limit));
            }
            if !std::mem::replace(&mut self.limit_was_told, true) {
                warn!("not every port is forwarded: {} are the limit", self.limit);
            }
        }
        let missing = &missing[..missing.len().min(room)];
        let endpoints = missing.iter().map(|(endpoint, ..)| *endpoint).collect();
        let sockets = self.opener.open(direction, endpoints);
        let mut failed = None;
        for ((endpoint, to, need), socket) in missing.iter().zip(sockets) {
            let opened = socket.and_then(|socket| {
                let (listeners, poller) = (&mut *around.listeners, &around.shard.poller);
                self.listen(direction, *endpoint, *to, socket, listeners, poller)
                    .map_err(|error| format!("cannot watch {endpoint}: {error}"))
            });
            match (opened, need) {
                (Ok(()), _) => debug!(port = %endpoint, "is forwarded"),
                (Err(error), Need::Required) => failed = failed.or(Some(error)),
                (Err(error), _) => debug!(%error, "a port is left out"),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn listen(
        &mut self,
        direction: Direction,
        endpoint: Endpoint,
        to: Service,
        socket: OwnedFd,
        listeners: &mut Listeners,
        poller: &Poller,
    ) -> io::Result<()> {
        let cookie = socket_cookie(&socket)?;
        let id = listeners.add_leading(poller, &endpoint, socket, lead(direction, to))?;
        self.open
            .insert((direction, endpoint), Open { id, to, cookie });
        Ok(())
    }

    /// Services on the side that `direction` leads to, which clients of ours can reach.
    fn look<D: Device>(
        &mut self,
        direction: Direction,
        around: &Shard<D>,
    ) -> Vec<(Protocol, Listening)> {
        let table = self.tables.of(direction);
        let Some(sockets) = &mut self.listening[direction as usize] else {
            return Vec::new();
        };
        if !table.has_auto() {
            return Vec::new();
        }
        let has_udp = |rule: &Forward| rule.auto && rule.protocol == Protocol::Udp;
        let protocols: &[Protocol] = match table.rules().iter().any(has_udp) {
            true => &[Protocol::Tcp, Protocol::Udp],
            false => &[Protocol::Tcp],
        };
        let mut own: HashSet<u64> = self.open.values().map(|open| open.cookie).collect();
        if protocols.len() > 1 {
            own.extend(around.own_datagram_cookies());
        }
        let is_reached = |listening: &Listening| {
            let loopbacks = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            let by_loopback =
                direction == Direction::Outbound || around.splices.ways.joins_loopbacks();
            let by_address = match direction {
                Direction::Inbound => &around.core.addresses().guest[..],
                Direction::Outbound => &[],
            };
            let mut ips = loopbacks
                .iter()
                .filter(|_| by_loopback)
                .chain(by_address)
                .chain(table.rules().iter().filter_map(|rule| rule.target.as_ref()));
            ips.any(|ip| listening.hears(*ip))
        };
        let mut found = Vec::new();
        for protocol in protocols {
            match sockets.list(*protocol) {
                Ok(list) => found.extend(
                    list.into_iter()
                        .filter(|listening| !own.contains(&listening.cookie))
                        .filter(is_reached)
                        .map(|listening| (*protocol, listening)),
                ),
                Err(error) => {
                    warn!("automatic ports are not followed: {error}");
                    self.listening[direction as usize] = None;
                    return found;
                }
            }
        }
        found
    }
}

/// The target ports of an automatic rule at which somebody listens. UDP follows TCP, too: a program
/// that talks both, as iperf3 does, opens its UDP port only when it is needed.
fn targets(rule: &Forward, listening: &[(Protocol, Listening)]) -> Vec<u16> {
    let fits = |(protocol, listening): &(Protocol, Listening)| {
        let follows = *protocol == rule.protocol || *protocol == Protocol::Tcp;
        follows && rule.target.is_none_or(|target| listening.hears(target))
    };
    let fitting = listening.iter().filter(|found| fits(found));
    fitting.map(|(_, found)| found.addr.port()).collect()
}

fn lead(direction: Direction, to: Service) -> Lead {
    match direction {
        Direction::Inbound => Lead::Guest(to),
        Direction::Outbound => Lead::Host(to),
    }
}

impl Opener {
    /// The sockets in order, or why one cannot be.
    fn open(&self, direction: Direction, endpoints: Vec<Endpoint>) -> Vec<Result<OwnedFd, String>> {
        match (direction, &self.broker) {
            (Direction::Outbound, _) => self.open_in_guest(endpoints),
            (Direction::Inbound, Some(broker)) => endpoints
                .iter()
                .map(|endpoint| broker.open(endpoint).map_err(|error| error.to_string()))
                .collect(),
            (Direction::Inbound, None) => endpoints
                .iter()
                .map(|endpoint| Err(format!("nobody can open {endpoint} any more")))
                .collect(),
        }
    }

    fn open_in_guest(&self, endpoints: Vec<Endpoint>) -> Vec<Result<OwnedFd, String>> {
        if endpoints.is_empty() {
            return Vec::new();
        }
        let count = endpoints.len();
        let open = move || {
            let listen = |endpoint: &Endpoint| {
                endpoint
                    .listen()
                    .map_err(|error| format!("in the namespace: {error}"))
            };
            endpoints.iter().map(listen).collect()
        };
        let opened: Result<Vec<_>, _> = self.guest.run(open);
        opened.unwrap_or_else(|error| (0..count).map(|_| Err(error.to_string())).collect())
    }
}
