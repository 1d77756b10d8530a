//! A core with everything around it under the test's control: the link, the clock, dials and host
//! streams. It calls the core in the order that the core's description asks for, and fails when
//! there is no end to what the core wants.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU16};

use netstack::core::addresses::Addresses;
use netstack::core::datagram::Visit;
use netstack::core::flow::{Cause, FlowId};
use netstack::core::link::Link;
use netstack::core::tcp::{NotPromoted, Snapshot, Stragglers};
use netstack::core::{Action, Core, CoreConfig, DialError, Duration, Instant};
use netstack::network::Network;
use smoltcp::socket::tcp::State;
use testbed::core_config;

use crate::host::Host;
use crate::packet::{Datagram, Frame, Packet, Segment};

/// Turns that one event may cause: a full buffer takes far fewer.
const MAX_TURNS: usize = 1_000;
/// How often the core may want to be woken in a second of silence: delayed ACKs take 10 ms.
const MAX_WAKES_PER_SECOND: u64 = 200;

/// See the module's description.
pub struct World {
    pub core: Core,
    pub now: Instant,
    pub wire: Wire,
    /// Dials that the core asked for and the test has not looked at.
    pub dials: VecDeque<(FlowId, SocketAddr)>,
    /// Datagrams and echo requests to the host's network, not looked at yet.
    pub datagrams: VecDeque<Sent>,
    /// Flows that are to talk through the socket of another one.
    pub shared: Vec<(FlowId, FlowId)>,
    pub hosts: HashMap<FlowId, Host>,
    pub closed: Vec<(FlowId, Cause)>,
    /// Flows that wanted to leave for the kernel, with their numbers.
    pub promotions: Vec<(FlowId, Snapshot)>,
    /// The kernel takes over what wants to leave, instead of refusing it.
    pub takes_over: Option<Stragglers>,
}

/// A datagram that the core wants sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub flow: FlowId,
    pub to: SocketAddr,
    pub payload: Vec<u8>,
    pub segment: Option<NonZeroU16>,
    /// The hop limit, if it is another than the host's default.
    pub hops: Option<NonZeroU8>,
    /// Sequence number of an echo request.
    pub echo: Option<u16>,
}

/// The link to the guest.
#[derive(Default)]
pub struct Wire {
    pub frames: VecDeque<Vec<u8>>,
    /// The device takes nothing now; it keeps what comes all the same.
    pub full: bool,
}

impl Link for Wire {
    fn has_room(&self) -> bool {
        !self.full
    }

    fn transmit(&mut self, head: &[u8], payload: &[u8]) {
        self.frames.push_back([head, payload].concat());
    }
}

/// The usual network with one of its families, which `is_kept` tells from the other.
pub fn config_of(is_kept: fn(&IpAddr) -> bool) -> CoreConfig {
    let mut config = core_config();
    let Addresses {
        guest,
        gateways,
        dns,
        on_link,
        ..
    } = &mut config.addresses;
    guest.retain(is_kept);
    gateways.retain(is_kept);
    dns.retain(is_kept);
    on_link.retain(|prefix| is_kept(&prefix.network));
    config
}

/// The usual network, with gateways that lead to the host's loopback.
pub fn config_with_gateway_as_host() -> CoreConfig {
    CoreConfig {
        addresses: Network::default().with_gateway_as_host().addresses(),
        ..core_config()
    }
}

/// `client` asks the host's one address.
pub fn visit(client: SocketAddr) -> Visit {
    Visit {
        client,
        asked: address("198.51.100.1:5300"),
    }
}

/// An address as the tests write it.
pub fn address<A: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> A {
    text.parse().expect("an address")
}

impl Default for World {
    fn default() -> Self {
        Self::new(core_config())
    }
}

impl World {
    pub fn new(config: CoreConfig) -> Self {
        let now = Instant::from_secs(1);
        Self {
            core: Core::new(config, now),
            now,
            wire: Wire::default(),
            dials: VecDeque::new(),
            datagrams: VecDeque::new(),
            shared: Vec::new(),
            hosts: HashMap::new(),
            closed: Vec::new(),
            promotions: Vec::new(),
            takes_over: None,
        }
    }

    /// The guest sends a segment.
    pub fn send(&mut self, segment: Segment) {
        self.send_frame(&segment.frame());
    }

    /// The guest sends a frame, virtio header first.
    pub fn send_frame(&mut self, frame: &[u8]) {
        self.ingest(frame);
        self.turn();
    }

    /// Like `send_frame`, but the core's turn is still to come: frames of one batch.
    pub fn ingest(&mut self, frame: &[u8]) {
        let action = self.core.handle_frame(frame, self.now, &mut self.wire);
        match action {
            None => {}
            Some(Action::Dial { flow, to }) => {
                assert!(self.core.begin_dial(flow, self.now), "nothing is between");
                self.dials.push_back((flow, to));
            }
            Some(Action::ShareSocket { flow, with }) => self.shared.push((flow, with)),
            Some(Action::SendDatagram {
                flow,
                to,
                hops,
                payload,
                segment,
            }) => self.datagrams.push_back(Sent {
                flow,
                to,
                hops,
                payload: payload.into_owned(),
                segment,
                echo: None,
            }),
            Some(Action::SendEcho {
                flow,
                to,
                hops,
                sequence,
                payload,
            }) => self.datagrams.push_back(Sent {
                flow,
                hops,
                to: SocketAddr::new(to, 0),
                payload: payload.into_owned(),
                segment: None,
                echo: Some(sequence),
            }),
        }
    }

    /// The one dial that the core has asked for.
    pub fn dialled(&mut self) -> (FlowId, SocketAddr) {
        let dial = self.dials.pop_front().expect("the core dials");
        assert_eq!(self.dials, [], "one dial only");
        dial
    }

    /// The one datagram or echo request that the core has sent to the host's network.
    pub fn sent(&mut self) -> Sent {
        let sent = self.datagrams.pop_front().expect("the core sends");
        assert_eq!(self.datagrams, [], "one datagram only");
        sent
    }

    /// A dial ends.
    pub fn dial_ends(&mut self, flow: FlowId, result: Result<(), DialError>) {
        self.dial_ends_with(flow, result, Host::default());
    }

    /// A dial ends, and `host` is the stream if it was a success.
    pub fn dial_ends_with(&mut self, flow: FlowId, result: Result<(), DialError>, host: Host) {
        if result.is_ok() {
            self.hosts.insert(flow, host);
        }
        self.core
            .handle_dialled(flow, result, self.now, &mut self.wire);
        self.turn();
    }

    /// A client connects to a published port.
    pub fn client_connects(&mut self, client: &str, guest_port: u16) -> Option<FlowId> {
        let flow = self
            .core
            .handle_accepted(address(client), guest_port, self.now)?;
        self.hosts.insert(flow, Host::default());
        self.turn();
        Some(flow)
    }

    pub fn host(&mut self, flow: FlowId) -> &mut Host {
        self.hosts.get_mut(&flow).expect("the flow has a stream")
    }

    /// The remote sends all of `bytes`.
    pub fn host_sends(&mut self, flow: FlowId, bytes: &[u8]) {
        assert_eq!(self.host(flow).write(bytes), bytes.len(), "it fits");
        self.turn();
    }

    /// The remote sends FIN.
    pub fn host_finishes(&mut self, flow: FlowId) {
        self.host(flow).finish_remote();
        self.turn();
    }

    /// The remote sends RST.
    pub fn host_resets(&mut self, flow: FlowId) {
        self.host(flow).reset_remote();
        self.turn();
    }

    /// The remote reads what has arrived.
    pub fn host_reads(&mut self, flow: FlowId) -> Vec<u8> {
        let bytes = self.host(flow).read(usize::MAX);
        self.turn();
        bytes
    }

    /// Serves the core until it rests: what a driver does after a batch.
    pub fn turn(&mut self) {
        self.core.handle_deadline(self.now, &mut self.wire);
        for _ in 0..MAX_TURNS {
            for (flow, host) in &mut self.hosts {
                if let Some(edge) = host.take_edge()
                    && host.closed.is_none()
                {
                    self.core.host_ready(*flow, edge);
                }
            }
            if !self.wire.full {
                self.serve();
            }
            while let Some((flow, snapshot)) = self.core.poll_promotion() {
                match self.takes_over {
                    Some(stragglers) => {
                        self.core
                            .promoted(flow, &snapshot, stragglers, self.now, &mut self.wire);
                        // A relay's from here on.
                        self.hosts.remove(&flow);
                    }
                    None => {
                        let why = NotPromoted::NoRest;
                        self.core
                            .promotion_failed(flow, &snapshot, why, &mut self.wire);
                    }
                }
                self.promotions.push((flow, snapshot));
            }
            while let Some((flow, cause)) = self.core.poll_closed() {
                self.closed.push((flow, cause));
                if let Some(host) = self.hosts.get_mut(&flow) {
                    assert_eq!(host.closed.replace(cause), None, "a flow ends once");
                }
            }
            if self.core.touched_len() == 0 || self.wire.full {
                let deadline = self.core.poll_deadline();
                assert!(
                    deadline.is_none_or(|deadline| deadline > self.now),
                    "at rest, but due {deadline:?} at {}",
                    self.now
                );
                return;
            }
        }
        panic!("no end to what the core wants");
    }

    /// One turn for each flow that was touched.
    pub fn serve(&mut self) {
        for _ in 0..self.core.touched_len() {
            let Some(flow) = self.core.poll_touched() else {
                return;
            };
            if let Some(host) = self.hosts.get_mut(&flow) {
                self.core.serve(flow, self.now, host, &mut self.wire);
            }
        }
    }

    /// Time passes and nothing happens but what the core does by itself.
    pub fn wait(&mut self, duration: Duration) {
        let end = self.now + duration;
        let limit = MAX_WAKES_PER_SECOND * (duration.total_millis() / 1000 + 1);
        let mut wakes = 0;
        while let Some(deadline) = self.core.poll_deadline()
            && deadline <= end
        {
            self.now = self.now.max(deadline);
            self.turn();
            wakes += 1;
            assert!(wakes <= limit, "woken {wakes} times in {duration}");
        }
        self.now = end;
    }

    /// The frames that the guest has received since it last looked.
    pub fn frames(&mut self) -> Vec<Frame> {
        let frames = self.wire.frames.drain(..);
        frames.map(|frame| Frame::parse(&frame)).collect()
    }

    /// The one frame that the guest has received.
    pub fn frame(&mut self) -> Frame {
        let mut frames = self.frames();
        assert_eq!(frames.len(), 1, "one frame only: {frames:#?}");
        frames.remove(0)
    }

    /// The TCP segments that the guest has received, and nothing else.
    pub fn segments(&mut self) -> Vec<Segment> {
        let segment = |frame: Frame| match frame.packet {
            Packet::Tcp(segment) => segment,
            other => panic!("TCP is expected, not {other:?}"),
        };
        self.frames().into_iter().map(segment).collect()
    }

    /// The one segment that the guest has received.
    pub fn segment(&mut self) -> Segment {
        let mut segments = self.segments();
        assert_eq!(segments.len(), 1, "one segment only: {segments:#?}");
        segments.remove(0)
    }

    /// The one datagram that the guest has received.
    pub fn datagram(&mut self) -> Datagram {
        match self.frame().packet {
            Packet::Udp(datagram) => datagram,
            other => panic!("UDP is expected, not {other:?}"),
        }
    }

    /// The guest has received nothing.
    pub fn assert_quiet(&mut self) {
        assert_eq!(self.frames(), []);
    }

    /// The one flow that has ended, and why.
    pub fn ended(&mut self) -> (FlowId, Cause) {
        let ended = self.closed.pop().expect("a flow has ended");
        assert_eq!(self.closed, [], "one flow only");
        ended
    }

    /// The states of all TCP flows.
    pub fn states(&self) -> Vec<State> {
        self.core
            .tcp_flows()
            .map(|(_, flow)| flow.state())
            .collect()
    }
}

/// The guest's address of the family of `remote`.
pub fn guest_address(remote: SocketAddr) -> IpAddr {
    match remote {
        SocketAddr::V4(_) => address("10.0.2.100"),
        SocketAddr::V6(_) => address("fd00::100"),
    }
}
