//! smoltcp, arranged for many flows: one shared `Interface`, and per connection a `SocketSet` of
//! one socket, because a shared set is scanned for every packet. Sockets are pooled: making their
//! buffers costs more than a short connection.
//!
//! What smoltcp 0.14 needs from its user is kept here:
//! - receive buffers of 65535 << k bytes or less than 64 KiB ([`TIERS`]), or a guest that fills the
//!   unscaled window of a SYN-ACK trips an assertion;
//! - no FIN behind bytes that do not fit the window, which it would drop and take the FIN all the
//!   same;
//! - never `poll()`, whose egress loop is endless in FIN-WAIT-2 with a zero-window probe armed, but
//!   a bounded number of segments per turn;
//! - buffers as large as the window scale covers, which the system maps lazily.

use std::net::SocketAddr;

use etherparse::PacketBuilder;
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, Socket, SocketBuffer};
use smoltcp::wire::{HardwareAddress, IpAddress, IpEndpoint, Ipv4Address, Ipv6Address};

use super::is_synchronized;
use super::memory::{Memory, MemoryUse, TIERS, Written};
use super::smoltcp_device::{HEAD_LEN, SCRATCH_LEN, SegmentSizes, SmoltcpDevice, finish};
use super::wire_state::{self, WireState};
use crate::core::Instant;
use crate::core::link::{HOP_LIMIT, Hardware, Link};
use crate::sys;

/// Of each tier's connections that are kept for reuse, what their buffers hold in memory. Enough
/// for more of them than may be open at once, in the tiers that matter, if they carried little.
const POOL_BYTES: usize = 1 << 20;
/// A connection that carried more than this is freed instead.
const POOL_MAX_CARRIED: usize = 64 * 1024;
/// Memory comes in pages: what the least use of a connection's two buffers costs.
const LEAST_TOUCHED: usize = 8 * 1024;
/// Segments per turn of one connection. With super-frames this is above a full buffer.
const EGRESS_BUDGET: usize = 64;

/// The shared part.
pub struct Engine {
    interface: Interface,
    segment_sizes: SegmentSizes,
    /// Connections that were taken and not recycled yet.
    open: usize,
    memory: Memory,
    pools: [Pool; TIERS.len()],
    /// Without sockets: whatever it is given is answered with RST.
    nobody: SocketSet<'static>,
    scratch: Box<[u8]>,
}

/// Connections of one tier that are kept for reuse.
#[derive(Default)]
struct Pool {
    connections: Vec<Connection>,
    /// What their buffers hold in memory.
    bytes: usize,
}

/// One connection's TCP.
pub struct Connection {
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// Index of its buffers' size in [`TIERS`].
    tier: usize,
    /// Of its send buffer.
    written: Written,
    /// At most so much of its buffers was ever in use, when it is in a pool.
    touched: usize,
    hardware: Hardware,
    wire: WireState,
}

/// Whether a turn ended because there was nothing left to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    Quiet,
    /// The budget or the device is used up; come back.
    More,
}

impl Engine {
    /// `mtu` as in `SegmentSizes::new`; `random_seed` feeds initial sequence numbers.
    pub fn new(mtu: u16, random_seed: u64, now: Instant) -> Self {
        let segment_sizes = SegmentSizes::new(mtu);
        let mut scratch = vec![0; SCRATCH_LEN].into_boxed_slice();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = random_seed;
        let mut device = SmoltcpDevice {
            inbound: None,
            link: &mut NoLink,
            scratch: &mut scratch,
            hardware: Hardware {
                ours: [0; 6],
                guests: [0; 6],
            },
            wire: &mut WireState::default(),
            segment_sizes,
        };
        let mut interface = Interface::new(config, &mut device, now);
        // Every address is ours to speak for, and every packet goes to the one neighbour there is.
        interface.set_any_ip(true);
        let routes = interface.routes_mut();
        routes
            .add_default_ipv4_route(Ipv4Address::new(10, 0, 0, 1))
            .expect("room for two routes");
        routes
            .add_default_ipv6_route(Ipv6Address::new(0xfd00, 0, 0, 0, 0, 0, 0, 1))
            .expect("room for two routes");
        Self {
            interface,
            segment_sizes,
            open: 0,
            memory: Memory::default(),
            pools: Default::default(),
            nobody: SocketSet::new(Vec::new()),
            scratch,
        }
    }

    /// A connection that answers the guest's `syn` (a whole IP packet to `remote`) with SYN-ACK.
    pub fn accept(
        &mut self,
        remote: SocketAddr,
        syn: &[u8],
        hardware: Hardware,
        now: Instant,
        link: &mut impl Link,
    ) -> Connection {
        let mut connection = self.take(hardware);
        let listening = connection.socket_mut().listen(endpoint(remote));
        debug_assert_eq!(listening, Ok(()), "a SYN to port 0 is refused earlier");
        self.ingest(&mut connection, syn, now, link);
        connection
    }

    /// A connection to the guest that appears to come from `client`; its SYN leaves with the first
    /// turn. `None` when an address or port is unspecified.
    pub fn connect(
        &mut self,
        client: SocketAddr,
        guest: SocketAddr,
        hardware: Hardware,
    ) -> Option<Connection> {
        let mut connection = self.take(hardware);
        let socket = connection.sockets.get_mut::<Socket>(connection.handle);
        match socket.connect(self.interface.context(), endpoint(guest), endpoint(client)) {
            Ok(()) => Some(connection),
            Err(_) => {
                self.recycle(connection, 0);
                None
            }
        }
    }

    /// Opens a connection once more that is in SYN-SENT, with another initial sequence number; its
    /// SYN leaves with the next turn.
    pub fn connect_again(&mut self, connection: &mut Connection) {
        let socket = connection.sockets.get_mut::<Socket>(connection.handle);
        let (Some(client), Some(guest)) = (socket.local_endpoint(), socket.remote_endpoint())
        else {
            return;
        };
        socket.abort();
        let connecting = socket.connect(self.interface.context(), guest, client);
        debug_assert_eq!(connecting, Ok(()), "these endpoints were good before");
        connection.wire = WireState::default();
    }

    /// Feeds one IP packet of the guest to its connection.
    pub fn ingest(
        &mut self,
        connection: &mut Connection,
        packet: &[u8],
        now: Instant,
        link: &mut impl Link,
    ) {
        let Some(tcp) = wire_state::transport(packet) else {
            return;
        };
        // A copy of a SYN says nothing about a connection that is past it.
        if !(is_synchronized(connection.state()) && tcp.syn()) {
            connection.wire.from_guest(&tcp);
        }
        let wire = &connection.wire;
        let changed = wire
            .hold_back_fin(packet, &tcp)
            .or_else(|| wire.bound_mss(packet, &tcp));
        let mut device = SmoltcpDevice {
            inbound: Some(changed.as_deref().unwrap_or(packet)),
            link,
            scratch: &mut self.scratch,
            hardware: connection.hardware,
            wire: &mut connection.wire,
            segment_sizes: self.segment_sizes,
        };
        self.interface
            .poll_ingress_single(now, &mut device, &mut connection.sockets);
    }

    /// Sends what the connection has to say, within the budget of a turn.
    pub fn egress(
        &mut self,
        connection: &mut Connection,
        now: Instant,
        link: &mut impl Link,
    ) -> Egress {
        let mut device = SmoltcpDevice {
            inbound: None,
            link,
            scratch: &mut self.scratch,
            hardware: connection.hardware,
            wire: &mut connection.wire,
            segment_sizes: self.segment_sizes,
        };
        for _ in 0..EGRESS_BUDGET {
            match self
                .interface
                .poll_egress(now, &mut device, &mut connection.sockets)
            {
                PollResult::None if device.link.has_room() => return Egress::Quiet,
                PollResult::None => return Egress::More,
                PollResult::SocketStateChanged => {}
            }
        }
        Egress::More
    }

    /// When the connection wants its next turn if nothing happens before.
    pub fn deadline(&mut self, connection: &Connection, now: Instant) -> Option<Instant> {
        self.interface.poll_at(now, &connection.sockets)
    }

    /// Answers a packet that belongs to no connection (RFC 9293 3.10.7.1): RST, unless it is one.
    pub fn refuse(
        &mut self,
        packet: &[u8],
        hardware: Hardware,
        now: Instant,
        link: &mut impl Link,
    ) {
        let mut device = SmoltcpDevice {
            inbound: Some(packet),
            link,
            scratch: &mut self.scratch,
            hardware,
            wire: &mut WireState::default(),
            segment_sizes: self.segment_sizes,
        };
        self.interface
            .poll_ingress_single(now, &mut device, &mut self.nobody);
    }

    /// Makes smoltcp repeat what is in flight and forgotten (see `retransmit_watch`): duplicate
    /// ACKs make it retransmit at once, or probe if the window is closed, and start its timer. A
    /// FIN alone we repeat ourselves.
    pub fn remind(&mut self, connection: &mut Connection, now: Instant, link: &mut impl Link) {
        const FAST_RETRANSMIT: usize = 3;
        let wire = connection.wire;
        let (Some((remote, guest)), Some(rcv_nxt)) = (connection.ends(), wire.last_ack) else {
            return;
        };
        if connection.socket().send_queue() == 0 {
            let fin = Numbers {
                seq: wire.snd_nxt.wrapping_sub(1),
                ack: rcv_nxt,
                window: wire.our_window(wire.last_window),
                fin: true,
            };
            return self.send(connection, fin, link);
        }
        let window = wire.guest_window(wire.snd_wnd);
        let mut duplicate = |window| {
            let numbers = Numbers {
                seq: rcv_nxt,
                ack: wire.snd_una,
                window,
                fin: false,
            };
            if let Some(packet) = numbers.packet(guest, remote) {
                self.ingest(connection, &packet, now, link);
            }
        };
        if window > 0 {
            // A window update ends the run of duplicates that there was.
            duplicate(window - 1);
            (0..FAST_RETRANSMIT).for_each(|_| duplicate(window));
        }
        duplicate(window);
    }

    /// Sends a pure acknowledgement with numbers of the caller's choice, past smoltcp: it says
    /// `window` (in bytes) even if smoltcp would not say anything.
    pub fn acknowledge(
        &mut self,
        connection: &mut Connection,
        ack: u32,
        window: u32,
        link: &mut impl Link,
    ) {
        let numbers = Numbers {
            seq: connection.wire.snd_nxt,
            ack,
            window: connection.wire.our_window(window),
            fin: false,
        };
        self.send(connection, numbers, link);
    }

    /// Makes the guest acknowledge what it has received, now and not when its delay is over: a
    /// segment without payload from before its window, as a keep-alive (RFC 9293 3.8.4).
    pub fn ask_for_ack(&mut self, connection: &mut Connection, link: &mut impl Link) {
        let wire = connection.wire;
        let numbers = Numbers {
            seq: wire.snd_una.wrapping_sub(1),
            ack: wire.last_ack.unwrap_or(0),
            window: wire.our_window(wire.last_window),
            fin: false,
        };
        self.send(connection, numbers, link);
    }

    /// Sends a segment without payload, past smoltcp.
    fn send(&mut self, connection: &mut Connection, numbers: Numbers, link: &mut impl Link) {
        let Some((remote, guest)) = connection.ends() else {
            return;
        };
        let Some(packet) = numbers.packet(remote, guest) else {
            return;
        };
        let frame = &mut self.scratch[..HEAD_LEN + packet.len()];
        frame[HEAD_LEN..].copy_from_slice(&packet);
        let (hardware, wire) = (connection.hardware, &mut connection.wire);
        if finish(frame, hardware, wire, self.segment_sizes).is_some() {
            link.transmit(frame, &[]);
        }
    }

    /// Takes a connection back that moved `carried` bytes, the more of both ways. Every connection
    /// comes back, or it would count as open for ever.
    pub fn recycle(&mut self, mut connection: Connection, carried: u64) {
        self.open -= 1;
        self.memory.close(connection.tier, &mut connection.written);
        let carried = usize::try_from(carried).unwrap_or(usize::MAX);
        let touched = carried.saturating_mul(2).saturating_add(LEAST_TOUCHED);
        connection.touched = connection.touched.max(touched);
        let pool = &mut self.pools[connection.tier];
        if carried <= POOL_MAX_CARRIED && pool.bytes + connection.touched <= POOL_BYTES {
            // CLOSED is where listen() and connect() start from; they reset the rest.
            connection.socket_mut().abort();
            pool.bytes += connection.touched;
            pool.connections.push(connection);
        }
    }

    /// The host's bytes for a connection: `receive` reads up to as many as its buffer, and the
    /// memory of all, allow, and returns how many there were. `None` if there is no room now.
    pub fn fill<E>(
        &mut self,
        connection: &mut Connection,
        receive: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Option<Result<Filled, E>> {
        let (capacity, is_empty) = {
            let socket = connection.socket();
            (socket.send_capacity(), socket.send_queue() == 0)
        };
        if !connection.socket().can_send() {
            return None;
        }
        let allowance = self
            .memory
            .allowance(connection.written, capacity, is_empty);
        if allowance == 0 {
            return None;
        }
        let filled = connection.socket_mut().send(|space| {
            let room = space.len().min(allowance);
            match receive(&mut space[..room]) {
                Ok(count) => (count, Ok(Filled { count, room })),
                Err(error) => (0, Err(error)),
            }
        });
        let filled = filled.ok()?;
        if let Ok(Filled { count, .. }) = filled {
            self.memory
                .note(&mut connection.written, count, capacity, is_empty);
        }
        Some(filled)
    }

    /// Gives a send buffer back to the system that is empty, if memory is short.
    pub fn give_back(&mut self, connection: &mut Connection) {
        if self.memory.wants_back(&connection.written) && connection.socket().send_queue() == 0 {
            let given = connection.socket_mut().send(|space| {
                sys::discard(space);
                (0, ())
            });
            if given.is_ok() {
                self.memory.release(&mut connection.written);
            }
        }
    }

    pub fn memory(&mut self) -> &mut Memory {
        &mut self.memory
    }

    pub fn memory_use(&self) -> MemoryUse {
        self.memory.in_use(self.open)
    }

    fn take(&mut self, hardware: Hardware) -> Connection {
        self.open += 1;
        let tier = self.memory.open();
        let pool = &mut self.pools[tier];
        let mut connection = match pool.connections.pop() {
            Some(connection) => {
                pool.bytes -= connection.touched;
                connection
            }
            None => Connection::new(tier, hardware),
        };
        connection.hardware = hardware;
        connection.wire = WireState::default();
        connection
    }
}

/// What one read of the host brought.
#[derive(Clone, Copy, Debug)]
pub struct Filled {
    pub count: usize,
    /// How many it could have been.
    pub room: usize,
}

impl Connection {
    fn new(tier: usize, hardware: Hardware) -> Self {
        let buffer = |len| SocketBuffer::new(vec![0; len]);
        let mut socket = Socket::new(buffer(TIERS[tier].receive), buffer(TIERS[tier].send));
        socket.set_nagle_enabled(false);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self {
            sockets,
            handle,
            tier,
            written: Written::default(),
            touched: 0,
            hardware,
            wire: WireState::default(),
        }
    }

    pub fn socket(&self) -> &Socket<'static> {
        self.sockets.get(self.handle)
    }

    pub fn socket_mut(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    pub fn state(&self) -> tcp::State {
        self.socket().state()
    }

    /// Whether everything that was given to it is on its way to the guest, or there already.
    pub fn has_sent_all(&self) -> bool {
        let in_flight = self.wire.snd_nxt.wrapping_sub(self.wire.snd_una);
        in_flight as usize == self.socket().send_queue()
    }

    /// Whether the guest has something to acknowledge, or a closed window to open.
    pub fn awaits_ack(&self) -> bool {
        let may_wait = matches!(
            self.state(),
            tcp::State::Established
                | tcp::State::CloseWait
                | tcp::State::FinWait1
                | tcp::State::Closing
                | tcp::State::LastAck
        );
        may_wait && (self.socket().send_queue() > 0 || self.wire.snd_una != self.wire.snd_nxt)
    }

    /// Whom the guest believes it talks to, and the guest.
    fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        let addr = |end: IpEndpoint| SocketAddr::new(end.addr.into(), end.port);
        let socket = self.socket();
        Some((
            addr(socket.local_endpoint()?),
            addr(socket.remote_endpoint()?),
        ))
    }

    pub fn wire(&self) -> &WireState {
        &self.wire
    }
}

/// The header fields of a segment without payload; `window` as it is in the header.
struct Numbers {
    seq: u32,
    ack: u32,
    window: u16,
    fin: bool,
}

impl Numbers {
    /// The IP packet around it. `None` when the families differ.
    fn packet(&self, source: SocketAddr, destination: SocketAddr) -> Option<Vec<u8>> {
        let packet = match (source, destination) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) => {
                PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), HOP_LIMIT)
            }
            (SocketAddr::V6(from), SocketAddr::V6(to)) => {
                PacketBuilder::ipv6(from.ip().octets(), to.ip().octets(), HOP_LIMIT)
            }
            _ => return None,
        };
        let mut packet = packet
            .tcp(source.port(), destination.port(), self.seq, self.window)
            .ack(self.ack);
        if self.fin {
            packet = packet.fin();
        }
        let mut bytes = Vec::with_capacity(packet.size(0));
        packet.write(&mut bytes, &[]).ok()?;
        Some(bytes)
    }
}

fn endpoint(addr: SocketAddr) -> IpEndpoint {
    IpEndpoint::new(IpAddress::from(addr.ip()), addr.port())
}

/// Nothing is sent while the interface is made.
struct NoLink;

impl Link for NoLink {
    fn has_room(&self) -> bool {
        false
    }

    fn transmit(&mut self, _head: &[u8], _payload: &[u8]) {}
}
