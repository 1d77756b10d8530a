//! The rest of the world around a core under attack: the link, the host's streams and dials, and a
//! driver that calls the core as the real one does, and that notices when there is no end to what
//! the core wants.

pub mod frames;
mod guest;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use netstack::core::addresses::Addresses;
use netstack::core::autoconf::Autoconf;
use netstack::core::datagram::Visit;
use netstack::core::flow::{Cause, FlowId, HashKey};
use netstack::core::icmp::{DeliveryError, Unreachable};
use netstack::core::link::Link;
use netstack::core::policy::Policy;
use netstack::core::tcp::{
    HostStream, MAX_BUFFERED, NotPromoted, Promote, Readiness, Snapshot, Stragglers,
};
use netstack::core::{
    Action, Core, CoreConfig, Counters, DialError, Duration, Instant, Limits, MAX_FLOWS, Share,
    Usage,
};
use netstack::network::Network;

use crate::entropy::Entropy;
use crate::packet::GATEWAY_MAC;
use guest::Guest;

/// A core with a hostile guest on one side and a moody host on the other.
pub struct World {
    core: Core,
    guest: Guest,
    wire: Wire,
    now: Instant,
    streams: HashMap<FlowId, Stream>,
    dials: Vec<FlowId>,
    /// Flows that the kernel carries.
    relayed: Vec<FlowId>,
    /// Flows that have ended, whose identifiers a late event may still carry.
    ended: Vec<FlowId>,
}

impl World {
    pub fn new(entropy: &mut Entropy) -> Self {
        let now = Instant::from_millis(1);
        let config = CoreConfig {
            addresses: addresses(entropy),
            autoconf: match entropy.chance(50) {
                true => Network::default().autoconf(Some(1500)),
                false => Autoconf::default(),
            },
            policy: Policy {
                gateway_is_no_host: entropy.chance(50),
                encrypted_dns: entropy.chance(50),
                ..Policy::default()
            },
            mtu: entropy.choose(&[65_520, 1500, 1280]),
            mac: GATEWAY_MAC,
            guest_mac: None,
            udp_segmentation: entropy.chance(50),
            promote: entropy.choose(&[Promote::Auto, Promote::Off, Promote::Always]),
            limits: entropy.choose(&[Limits::default(), Limits::share_out(120)]),
            random_seed: entropy.u32().into(),
            hash_key: HashKey(entropy.u32().into(), entropy.u32().into()),
        };
        let mut core = Core::new(config, now);
        core.set_resolvers(vec![
            "192.0.2.53:53".parse().expect("address"),
            "[2001:db8::53]:53".parse().expect("address"),
        ]);
        let (wire, streams) = (
            Wire {
                heard: Vec::new(),
                full: false,
            },
            HashMap::new(),
        );
        Self {
            core,
            guest: Guest::default(),
            wire,
            now,
            streams,
            dials: Vec::new(),
            relayed: Vec::new(),
            ended: Vec::new(),
        }
    }

    /// One thing happens, and the core is served until it rests.
    pub fn step(&mut self, entropy: &mut Entropy) {
        self.wire.full = entropy.chance(3);
        match entropy.below(100) {
            0..70 => {
                let frame = self.guest.speak(entropy);
                if let Some(action) = self.core.handle_frame(&frame, self.now, &mut self.wire) {
                    match action {
                        Action::Dial { flow, .. } => {
                            assert!(self.core.begin_dial(flow, self.now), "just asked for");
                            self.dials.push(flow);
                        }
                        Action::SendDatagram { to, .. } => assert_allowed(to),
                        Action::SendEcho { .. } | Action::ShareSocket { .. } => {}
                    }
                }
            }
            70..80 => self.end_a_dial(entropy),
            80..88 => self.change_a_stream(entropy),
            88..95 => self.host_event(entropy),
            _ => self.let_time_pass(entropy),
        }
        self.turn(entropy);
        let status = self.core.tcp_flows().count() + self.core.mappings().count();
        assert!(status <= MAX_FLOWS);
        self.assert_limits();
        let memory = self.core.memory();
        assert!(memory.receive + memory.send + memory.owed <= MAX_BUFFERED);
    }

    /// A frame of the guest, whatever comes of it.
    pub fn send(&mut self, frame: &[u8], entropy: &mut Entropy) {
        let action = self.core.handle_frame(frame, self.now, &mut self.wire);
        if let Some(Action::Dial { flow, .. }) = action {
            assert!(self.core.begin_dial(flow, self.now), "just asked for");
            self.dials.push(flow);
        }
        self.turn(entropy);
    }

    pub fn limits(&self) -> Limits {
        *self.core.limits()
    }

    /// No kind has more than its share, and the account of them is right.
    fn assert_limits(&self) {
        let limits = self.core.limits();
        let mut counts = [0; Share::ALL.len()];
        for share in Share::ALL {
            let Usage { count, limit, .. } = self.core.usage(share);
            assert!(count <= limit, "{share:?}: {count} of {limit}");
            counts[share as usize] = count;
        }
        let [waiting, dials, half_open, ..] = counts;
        assert_eq!((waiting, dials), (0, self.dials.len()));
        let streams = self.core.stream_usage().count;
        assert!(streams <= limits.streams + limits.dials + limits.half_open);
        let tcp = self.core.tcp_flows().count();
        assert_eq!(dials + half_open + streams, tcp + self.relayed.len());
        let mappings = counts[3..].iter().sum::<usize>();
        assert_eq!(mappings, self.core.mappings().count());
    }

    /// TCP flows (all of them dials, if none was ended) and mappings.
    pub fn flows(&self) -> (usize, usize) {
        (self.core.tcp_flows().count(), self.core.mappings().count())
    }

    /// The guest falls silent and the host breaks everything: within a virtual hour nothing may be
    /// left.
    pub fn wind_down(&mut self) {
        self.wire.full = false;
        let mut entropy = Entropy::Bytes(&[]);
        for flow in std::mem::take(&mut self.dials) {
            self.core
                .handle_dialled(flow, Err(DialError::Silent), self.now, &mut self.wire);
        }
        for flow in std::mem::take(&mut self.relayed) {
            self.core.handle_relay_ended(flow, Cause::Finished);
        }
        for (&flow, stream) in &mut self.streams {
            stream.broken = true;
            self.core.host_ready(
                flow,
                Readiness {
                    readable: true,
                    writable: true,
                    hung_up: true,
                    failed: true,
                },
            );
        }
        self.turn(&mut entropy);
        let end = self.now + Duration::from_secs(3600);
        let mut wakes = 0;
        while let Some(deadline) = self.core.poll_deadline() {
            self.now = self.now.max(deadline);
            if self.now > end {
                break;
            }
            self.core.handle_deadline(self.now, &mut self.wire);
            self.turn(&mut entropy);
            wakes += 1;
            assert!(wakes < 100_000, "woken {wakes} times for nothing");
        }
        let left: Vec<_> = self
            .core
            .tcp_flows()
            .map(|(tuple, flow)| (*tuple, flow.state()))
            .collect();
        assert!(left.is_empty(), "TCP flows for ever: {left:?}");
        assert_eq!(self.core.mappings().count(), 0, "mappings for ever");
        let memory = self.core.memory();
        assert_eq!(
            (memory.receive, memory.send, memory.owed),
            (0, 0, 0),
            "memory for ever"
        );
        assert!(
            self.streams.is_empty(),
            "{} host streams were never closed",
            self.streams.len()
        );
    }

    /// How far the scenario got.
    pub fn counters(&self) -> Counters {
        self.core.counters()
    }

    /// What the driver does after a batch of events, repeated until the core wants nothing more at
    /// this moment.
    fn turn(&mut self, entropy: &mut Entropy) {
        let mut served = 0;
        self.core.handle_deadline(self.now, &mut self.wire);
        loop {
            for _ in 0..self.core.touched_len() {
                let Some(flow) = self.core.poll_touched() else {
                    break;
                };
                served += 1;
                if let Some(stream) = self.streams.get_mut(&flow) {
                    self.core.serve(flow, self.now, stream, &mut self.wire);
                }
            }
            while let Some((flow, snapshot)) = self.core.poll_promotion() {
                self.promote(flow, &snapshot, entropy);
            }
            while let Some(flow) = self.core.poll_superseded() {
                if self.relayed.contains(&flow) {
                    self.core.handle_relay_ended(flow, Cause::ResetByGuest);
                }
            }
            while let Some((flow, _cause)) = self.core.poll_closed() {
                self.streams.remove(&flow);
                self.relayed.retain(|relayed| *relayed != flow);
                self.dials.retain(|dial| *dial != flow);
                self.ended.push(flow);
            }
            for frame in std::mem::take(&mut self.wire.heard) {
                self.guest.hear(&frame);
            }
            // A full link gets one pass; the driver then waits for room.
            if self.core.touched_len() == 0 || self.wire.full {
                break;
            }
            assert!(
                served < SERVED_LIMIT,
                "the core wants to be served without end"
            );
        }
        for stream in self.streams.values_mut() {
            stream.refill(entropy);
        }
    }

    /// The kernel takes a flow over, or does not.
    fn promote(&mut self, flow: FlowId, snapshot: &Snapshot, entropy: &mut Entropy) {
        if entropy.chance(50) {
            let stragglers = if entropy.chance(50) {
                Stragglers::Return
            } else {
                Stragglers::Drop
            };
            self.core
                .promoted(flow, snapshot, stragglers, self.now, &mut self.wire);
            self.streams.remove(&flow);
            self.relayed.push(flow);
        } else {
            self.core
                .promotion_failed(flow, snapshot, NotPromoted::NoRest, &mut self.wire);
        }
    }

    fn end_a_dial(&mut self, entropy: &mut Entropy) {
        if self.dials.is_empty() {
            return;
        }
        let flow = self.dials.swap_remove(entropy.below(self.dials.len()));
        let result = match entropy.below(10) {
            0 => Err(DialError::Refused),
            1 => Err(DialError::Unreachable(
                entropy.choose(&[Unreachable::Host, Unreachable::Network]),
            )),
            2 => Err(DialError::Unreachable(Unreachable::TooBig {
                mtu: entropy.u16(),
            })),
            3 => Err(DialError::Silent),
            _ => Ok(()),
        };
        if result.is_ok() {
            self.streams.insert(flow, Stream::default());
        }
        self.core
            .handle_dialled(flow, result, self.now, &mut self.wire);
    }

    fn change_a_stream(&mut self, entropy: &mut Entropy) {
        if self.streams.is_empty() {
            return;
        }
        let mut flows: Vec<FlowId> = self.streams.keys().copied().collect();
        flows.sort_by_key(|flow| (flow.index, flow.generation));
        let flow = entropy.choose(&flows);
        let stream = self.streams.get_mut(&flow).expect("just listed");
        match entropy.below(8) {
            0 => stream.broken = true,
            1 => stream.finished = true,
            2 => stream.takes = 0,
            3 => stream.takes = 1,
            _ => {
                stream.offers += entropy.choose(&[1, 100, 65_536, 1 << 20]);
                stream.takes = 1 << 20;
            }
        }
        let hung_up = stream.broken || stream.finished;
        self.core.host_ready(
            flow,
            Readiness {
                readable: true,
                writable: stream.takes > 0,
                hung_up,
                failed: stream.broken,
            },
        );
    }

    fn host_event(&mut self, entropy: &mut Entropy) {
        let client: SocketAddr = entropy
            .choose(&[
                "198.51.100.7:5555",
                "127.0.0.1:5555",
                "[2001:db8::7]:5555",
                "[::1]:5555",
                "10.0.2.100:5555",
            ])
            .parse()
            .expect("address");
        let flow = self.any_flow(entropy);
        let payload = vec![3; entropy.choose(&[0, 1, 1200, 60_000])];
        let segment = std::num::NonZeroU16::new(entropy.choose(&[0, 1, 1200]));
        let (now, wire) = (self.now, &mut self.wire);
        match entropy.below(7) {
            6 => {
                if let Some(flow) = self.relayed.pop() {
                    self.core.handle_relayed(flow, 1000, 10);
                    self.core.handle_relay_ended(flow, Cause::ResetByHost);
                }
            }
            0 | 1 => {
                if let Some(flow) = self.core.handle_accepted(client, 80, now) {
                    let previous = self.streams.insert(flow, Stream::default());
                    assert!(previous.is_none(), "two flows share an identifier");
                }
            }
            2 => self
                .core
                .handle_datagram(flow, client, &payload, segment, now, wire),
            3 => {
                let asked = entropy.choose(&["198.51.100.1:53", "198.51.100.2:53"]);
                let asked = asked.parse().expect("address");
                let visit = Visit { client, asked };
                self.core
                    .handle_published_datagram(visit, 53, &payload, segment, now, wire);
            }
            4 => self.core.handle_echo_reply(flow, 1, &payload, now, wire),
            _ => {
                let why = entropy.choose(&[
                    Unreachable::Port,
                    Unreachable::Host,
                    Unreachable::Prohibited,
                    Unreachable::TimeExceeded,
                ]);
                let error = DeliveryError {
                    to: client,
                    why,
                    reporter: Some(client.ip()),
                };
                match entropy.chance(50) {
                    true => self.core.handle_datagram_error(flow, error, wire),
                    false => self.core.handle_echo_error(flow, 1, error, wire),
                }
            }
        }
    }

    fn let_time_pass(&mut self, entropy: &mut Entropy) {
        self.now = match entropy.below(8) {
            0 => self.now + Duration::from_secs(entropy.u8().into()),
            1 | 2 => self.core.poll_deadline().unwrap_or(self.now).max(self.now),
            _ => self.now + Duration::from_micros(entropy.u16().into()),
        };
    }

    /// A flow that is, or was.
    fn any_flow(&mut self, entropy: &mut Entropy) -> FlowId {
        match self.ended.len() {
            0 => FlowId {
                index: entropy.u8().into(),
                generation: entropy.u8().into(),
            },
            count if entropy.chance(20) => self.ended[entropy.below(count)],
            _ => FlowId {
                index: entropy.u8().into(),
                generation: entropy.u8() as u32 % 4,
            },
        }
    }
}

/// The default network, or one family of it. Its gateways may lead to the host.
fn addresses(entropy: &mut Entropy) -> Addresses {
    let network = match entropy.chance(50) {
        true => Network::default().with_gateway_as_host(),
        false => Network::default(),
    };
    let mut addresses = network.addresses();
    let both: fn(&IpAddr) -> bool = |_| true;
    let is_kept = entropy.choose(&[both, both, IpAddr::is_ipv4, IpAddr::is_ipv6]);
    addresses.guest.retain(is_kept);
    addresses.gateways.retain(is_kept);
    addresses.dns.retain(is_kept);
    addresses.aliases.retain(|alias| is_kept(&alias.shown));
    addresses.on_link.retain(|prefix| is_kept(&prefix.network));
    if entropy.chance(30) {
        // All that the guest says is somebody's behind it.
        addresses.behind = addresses.on_link.clone();
    }
    addresses
}

/// The guest must not be able to send datagrams to the host's own services.
fn assert_allowed(to: SocketAddr) {
    let metadata = to.ip() == Ipv4Addr::new(169, 254, 169, 254);
    assert!(
        !metadata && !to.ip().is_multicast() && !to.ip().is_unspecified(),
        "a datagram to {to}"
    );
}

/// The link to the guest. It keeps what it is given even when it is full, as the tap's driver does.
struct Wire {
    heard: Vec<Vec<u8>>,
    full: bool,
}

impl Link for Wire {
    fn has_room(&self) -> bool {
        !self.full
    }

    fn transmit(&mut self, head: &[u8], payload: &[u8]) {
        self.heard.push([head, payload].concat());
        assert!(
            self.heard.len() < FRAMES_LIMIT,
            "{FRAMES_LIMIT} frames in answer to one event"
        );
    }
}

/// A host socket with moods.
#[derive(Default)]
struct Stream {
    /// Bytes that the remote has sent and the core has not read.
    offers: usize,
    /// Bytes that the socket still takes.
    takes: usize,
    finished: bool,
    broken: bool,
    fin_received: bool,
}

impl Stream {
    /// A socket that takes data drains it in time.
    fn refill(&mut self, entropy: &mut Entropy) {
        if self.takes > 1 && entropy.chance(50) {
            self.takes = 1 << 20;
        }
    }
}

impl HostStream for Stream {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(!buffer.is_empty(), "an empty buffer reads as the end");
        if self.broken {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        match self.offers.min(buffer.len()) {
            0 if self.finished => Ok(0),
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => {
                buffer[..count].fill(0xaa);
                self.offers -= count;
                Ok(count)
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // smoltcp takes data behind a FIN (RFC 9293 3.10.7.4 wants it ignored); a kernel's socket
        // then says EPIPE.
        if self.broken || self.fin_received {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        match self.takes.min(bytes.len()) {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => {
                self.takes -= count;
                Ok(count)
            }
        }
    }

    fn finish(&mut self) {
        assert!(!self.fin_received, "the guest's FIN passed on twice");
        self.fin_received = true;
    }
}

/// Turns that one event may cause in all flows together.
const SERVED_LIMIT: usize = 200_000;
/// Frames that one pass over all flows may send. A flow's buffer of 1 MiB in the smallest segments
/// is far below it.
const FRAMES_LIMIT: usize = 200_000;
