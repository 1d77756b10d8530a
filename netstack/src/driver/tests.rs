//! The driver's own turn in memory: a shard on a device that the test holds the other end of, with
//! real sockets on the host's loopback, which the guest sees as its gateway. Time is the test's, so
//! that a retransmission costs no waiting.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};

use portfwd::{Endpoint, Protocol};
use testbed::packet::{
    ACK, Datagram, FIN, Frame, GATEWAY_MAC, GUEST_MAC, GUEST_V4, PSH, Packet, RST, SYN, Segment,
};

use super::listeners::{Lead, Listeners, Published};
use super::poller::Token;
use super::promotion::{Promotion, PromotionUnavailable};
use super::shard::Shard;
use super::{Duration, Instant, RETRY};
use crate::control::{DeviceStatus, FlowInitiator, FlowPath, Reason};
use crate::core::autoconf::Autoconf;
use crate::core::flow::HashKey;
use crate::core::policy::Policy;
use crate::core::tcp::Promote;
use crate::core::{Core, CoreConfig, Limits};
use crate::host::{LocalLeg, Outbound};
use crate::network::Network;
use crate::testing::{FaultInjector, Faults, MemoryDevice, MemoryGuest};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Most of the guest's bytes in one segment.
const MSS: usize = 1_000;
/// Rounds without an event before what waits for an answer is said again.
const PATIENCE: u32 = 20;
/// A test that needs more rounds will not come to an end.
const MAX_ROUNDS: u32 = 100_000;

/// The shard and the guest's end of its device.
struct World {
    shard: Shard<FaultInjector<MemoryDevice>>,
    promotion: Promotion,
    listeners: Listeners,
    guest: MemoryGuest,
    now: Instant,
    idle: u32,
}

impl World {
    fn new(faults: Faults, seed: u64) -> Self {
        let config = CoreConfig {
            addresses: Network::default().with_gateway_as_host().addresses(),
            autoconf: Autoconf::default(),
            policy: Policy::default(),
            mtu: 1500,
            mac: GATEWAY_MAC,
            guest_mac: Some(GUEST_MAC),
            udp_segmentation: true,
            promote: Promote::Off,
            limits: Limits::default(),
            random_seed: seed,
            hash_key: HashKey(seed, 2),
        };
        let now = Instant::from_secs(1);
        let (device, guest) = MemoryDevice::pair();
        let device = FaultInjector::new(device, faults, seed);
        Self {
            shard: Shard::new(
                Core::new(config, now),
                device,
                Outbound::default(),
                LocalLeg::default(),
            )
            .unwrap(),
            promotion: Promotion::new(Err(PromotionUnavailable::Off)),
            listeners: Listeners::default(),
            guest,
            now,
            idle: 0,
        }
    }

    /// What the loop does at a wake-up. False when the device is gone.
    fn turn(&mut self) -> bool {
        let mut events = Vec::new();
        // The host's loopback answers in time of its own.
        let wait = match self.idle {
            0 => Duration::ZERO,
            _ => Duration::from_millis(1),
        };
        self.shard.poller.wait(Some(wait), &mut events).unwrap();
        self.idle = if events.is_empty() { self.idle + 1 } else { 0 };
        if events.is_empty() {
            self.now += Duration::from_millis(10);
        }
        for event in events {
            match event.token {
                Token::Listener(port) => match self.listeners.get(port) {
                    Some(Published::Tcp { lead, socket }) => {
                        assert!(self.shard.accept(socket, *lead, self.now));
                    }
                    Some(Published::Udp { lead, socket }) => {
                        self.shard.read_published(port, socket, *lead, self.now);
                    }
                    None => panic!("nobody else listens"),
                },
                _ => self
                    .shard
                    .handle_event(event, self.now, &mut self.promotion),
            }
        }
        self.shard.turn(self.now, &mut self.promotion)
    }

    /// Turns until `result` has one.
    fn until<T>(&mut self, what: &str, mut result: impl FnMut(&mut Self) -> Option<T>) -> T {
        for _ in 0..MAX_ROUNDS {
            if let Some(result) = result(self) {
                return result;
            }
            assert!(self.turn(), "the device is there");
        }
        panic!("no end in sight: {what}");
    }

    /// The next packet to the guest.
    fn packet(&mut self) -> Packet {
        let frame = self.until("a packet", |world| world.guest.receive());
        Frame::parse(&frame).packet
    }

    fn segment(&mut self) -> Segment {
        match self.packet() {
            Packet::Tcp(segment) => segment,
            other => panic!("TCP is expected, not {other:?}"),
        }
    }
}

/// A guest's end of a connection: it sends one segment at a time until that is acknowledged, and
/// takes what comes in order.
struct Peer {
    local: SocketAddr,
    remote: SocketAddr,
    /// All that it has to say, and the number of the first byte.
    text: Vec<u8>,
    iss: u32,
    /// SND.UNA; `iss` until the handshake is done.
    snd_una: u32,
    rcv_nxt: u32,
    heard: Vec<u8>,
    /// Payload bytes that came once more.
    repeated: usize,
    finished: bool,
    reset: bool,
}

impl Peer {
    fn new(remote_port: u16, text: Vec<u8>) -> Self {
        Self {
            local: (GUEST_V4, 40_000).into(),
            remote: (GATEWAY, remote_port).into(),
            text,
            iss: 7_000,
            snd_una: 7_000,
            rcv_nxt: 0,
            heard: Vec::new(),
            repeated: 0,
            finished: false,
            reset: false,
        }
    }

    /// How much of the text has arrived.
    fn acknowledged(&self) -> usize {
        self.snd_una.wrapping_sub(self.iss + 1) as usize
    }

    fn has_said_all(&self) -> bool {
        self.snd_una != self.iss && self.acknowledged() > self.text.len()
    }

    /// The segment that waits for an acknowledgement, or a bare ACK.
    fn says(&self) -> Segment {
        let segment = Segment {
            source: self.local,
            destination: self.remote,
            flags: ACK,
            seq: self.snd_una,
            ack: self.rcv_nxt,
            window: u16::MAX,
            mss: None,
            scale: None,
            payload: Vec::new(),
        };
        if self.snd_una == self.iss {
            return Segment {
                flags: SYN,
                mss: Some(1460),
                scale: Some(4),
                ..segment
            };
        }
        match self.text.get(self.acknowledged()..) {
            None => segment,
            Some([]) => Segment {
                flags: FIN | ACK,
                ..segment
            },
            Some(rest) => Segment {
                flags: PSH | ACK,
                payload: rest[..rest.len().min(MSS)].to_vec(),
                ..segment
            },
        }
    }

    /// Takes a segment, and answers if it has something to say.
    fn hears(&mut self, segment: &Segment) -> Option<Segment> {
        self.reset |= segment.flags & RST != 0;
        let unheard = self.snd_una;
        if segment.flags & SYN != 0 && self.rcv_nxt == 0 {
            self.rcv_nxt = segment.seq.wrapping_add(1);
        } else if segment.seq == self.rcv_nxt {
            self.heard.extend(&segment.payload);
            self.rcv_nxt = self.rcv_nxt.wrapping_add(segment.seg_len());
            self.finished |= segment.flags & FIN != 0;
        } else {
            self.repeated += segment.payload.len();
        }
        if segment.ack.wrapping_sub(self.snd_una).cast_signed() > 0 {
            self.snd_una = segment.ack;
        }
        (segment.seg_len() > 0 || self.snd_una != unheard).then(|| self.says())
    }

    /// Takes its part in a round: hears all that has come, and repeats itself when nothing does.
    fn act(&mut self, world: &mut World) {
        while let Some(frame) = world.guest.receive() {
            let Packet::Tcp(segment) = Frame::parse(&frame).packet else {
                panic!("only TCP is spoken here");
            };
            if let Some(answer) = self.hears(&segment) {
                world.guest.send(&answer.frame());
            }
        }
        if world.idle >= PATIENCE {
            world.idle = 0;
            world.guest.send(&self.says().frame());
        }
    }
}

/// A remote on the host's loopback that says again what it hears, and ends when that does.
struct Echo {
    listener: TcpListener,
    stream: Option<TcpStream>,
    unsent: Vec<u8>,
    finished: bool,
}

impl Echo {
    fn listen() -> (Self, u16) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let echo = Self {
            listener,
            stream: None,
            unsent: Vec::new(),
            finished: false,
        };
        (echo, port)
    }

    fn act(&mut self) {
        if self.stream.is_none()
            && let Ok((stream, _)) = self.listener.accept()
        {
            stream.set_nonblocking(true).unwrap();
            self.stream = Some(stream);
        }
        let Some(stream) = &mut self.stream else {
            return;
        };
        let mut buffer = [0; 16_384];
        match stream.read(&mut buffer) {
            Ok(0) => self.finished = true,
            Ok(count) => self.unsent.extend(&buffer[..count]),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        if let Ok(count) = stream.write(&self.unsent) {
            self.unsent.drain(..count);
        }
        if self.finished && self.unsent.is_empty() {
            self.stream = None;
        }
    }
}

/// Lets a guest say `text` to an echo until both have finished.
fn converse(world: &mut World, text: Vec<u8>) -> Peer {
    let (mut echo, port) = Echo::listen();
    let mut peer = Peer::new(port, text);
    world.guest.send(&peer.says().frame());
    world.until("both have finished", |world| {
        peer.act(world);
        echo.act();
        (peer.finished && peer.has_said_all()).then_some(())
    });
    assert_eq!(peer.heard, peer.text);
    assert!(!peer.reset);
    peer
}

fn text(len: usize) -> Vec<u8> {
    (0..len).map(|at| ((at * 31) >> 3) as u8).collect()
}

#[test]
fn a_conversation_from_syn_to_fin() {
    let mut world = World::new(Faults::default(), 1);
    let peer = converse(&mut world, text(50_000));
    assert_eq!(peer.repeated, 0);
    // Nothing is left of it once the last ACK has been heard.
    world.until("the flow ends", |world| {
        (world.shard.core.flow_count() == 0).then_some(())
    });
    let counters = world.shard.core.counters();
    assert_eq!(counters.bytes_from_guest, 50_000);
    assert_eq!(counters.bytes_to_guest, 50_000);
}

#[test]
fn a_device_that_blocks_loses_and_repeats_nothing() {
    let blocked = Faults {
        blocked: 50,
        ..Faults::default()
    };
    let mut world = World::new(blocked, 1);
    let peer = converse(&mut world, text(200_000));
    assert_eq!(peer.repeated, 0);
    assert_eq!(world.shard.link.frames_lost, 0);
}

#[test]
fn what_a_full_device_did_not_take_is_tried_again_soon() {
    let mut world = World::new(Faults::default(), 1);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let mut peer = Peer::new(listener.local_addr().unwrap().port(), Vec::new());
    world.guest.send(&peer.says().frame());
    let answer = world.segment();
    assert_eq!(answer.flags, SYN | ACK);
    peer.hears(&answer);
    let ack = Segment {
        flags: ACK,
        ..peer.says()
    };
    world.guest.send(&ack.frame());

    world.shard.link.device().faults.blocked = 100;
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(b"news").unwrap();
    world.until("it is kept", |world| {
        (world.shard.timeout(world.now) == Some(RETRY)).then_some(())
    });
    assert!(world.guest.receive().is_none());
    world.shard.link.device().faults.blocked = 0;
    assert_eq!(world.segment().payload, b"news");
    assert_ne!(world.shard.timeout(world.now), Some(RETRY));
}

/// Loss costs time and nothing else, whichever frames it meets.
#[test]
fn a_bad_link_delays_and_changes_nothing() {
    for seed in 1..=10 {
        println!("seed {seed}");
        let bad = Faults {
            lost: 5,
            repeated: 5,
            delayed: 5,
            blocked: 10,
        };
        converse(&mut World::new(bad, seed), text(20_000));
    }
}

#[test]
fn a_refused_dial_is_a_reset() {
    let mut world = World::new(Faults::default(), 1);
    // A port that was free a moment ago.
    let (echo, port) = Echo::listen();
    drop(echo);
    let peer = Peer::new(port, Vec::new());
    world.guest.send(&peer.says().frame());
    let answer = world.segment();
    assert_eq!(answer.flags, RST | ACK);
    assert_eq!(answer.ack, peer.iss + 1);
    assert_eq!(world.shard.core.flow_count(), 0);
}

#[test]
fn datagrams_go_both_ways() {
    let mut world = World::new(Faults::default(), 1);
    let remote = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    remote.set_nonblocking(true).unwrap();
    let port = remote.local_addr().unwrap().port();
    let question = Datagram {
        source: (GUEST_V4, 5_353).into(),
        destination: (GATEWAY, port).into(),
        payload: b"question".to_vec(),
    };
    world.guest.send(&question.frame());
    let mut buffer = [0; 100];
    let (len, client) = world.until("the question", |_| remote.recv_from(&mut buffer).ok());
    assert_eq!(&buffer[..len], b"question");
    remote.send_to(b"answer", client).unwrap();
    let answer = Datagram {
        source: question.destination,
        destination: question.source,
        payload: b"answer".to_vec(),
    };
    assert_eq!(world.packet(), Packet::Udp(answer));
}

#[test]
fn clients_of_published_ports_reach_the_guest() {
    let mut world = World::new(Faults::default(), 1);
    let mut publish = |protocol: &str| {
        let rule = format!("127.0.0.1:0:80/{protocol}").parse().unwrap();
        let listener = portfwd::publish::bind(&rule).unwrap().remove(0);
        let address = listener.host;
        world
            .listeners
            .add(&world.shard.poller, listener.into())
            .unwrap();
        address
    };
    let (tcp, udp) = (publish("tcp"), publish("udp"));
    let _client = TcpStream::connect(tcp).unwrap();
    let syn = world.segment();
    assert_eq!((syn.flags, syn.destination.port()), (SYN, 80));
    assert_eq!(syn.source.ip(), GATEWAY);

    let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    client.set_nonblocking(true).unwrap();
    client.send_to(b"question", udp).unwrap();
    let question = world.until("the question", |world| {
        let frame = world.guest.receive()?;
        match Frame::parse(&frame).packet {
            Packet::Udp(datagram) => Some(datagram),
            // Nobody has answered the SYN.
            _ => None,
        }
    });
    assert_eq!(question.payload, b"question");
    let answer = Datagram {
        source: question.destination,
        destination: question.source,
        payload: b"answer".to_vec(),
    };
    world.guest.send(&answer.frame());
    let mut buffer = [0; 100];
    let (len, from) = world.until("the answer", |_| client.recv_from(&mut buffer).ok());
    assert_eq!((&buffer[..len], from), (&b"answer"[..], udp));
}

#[test]
fn the_end_of_the_device_is_the_end_of_the_loop() {
    let mut world = World::new(Faults::default(), 1);
    assert!(world.turn());
    drop(std::mem::replace(&mut world.guest, MemoryDevice::pair().1));
    assert!(!world.turn());
}

/// A port of this protocol on loopback that leads to `service` of the host's.
fn leading_to(world: &mut World, protocol: Protocol, service: u16) -> SocketAddr {
    let rule = format!("127.0.0.1:0:80/{protocol}").parse().unwrap();
    let listener = portfwd::publish::bind(&rule).unwrap().remove(0);
    let endpoint = Endpoint {
        protocol,
        addr: listener.host,
        interface: None,
    };
    let (listeners, poller) = (&mut world.listeners, &world.shard.poller);
    let lead = Lead::Host(service.into());
    listeners
        .add_leading(poller, &endpoint, listener.socket, lead)
        .unwrap();
    listener.host
}

#[test]
fn spliced_connections_are_relayed_counted_and_closed() {
    let mut world = World::new(Faults::default(), 1);
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    service.set_nonblocking(true).unwrap();
    let port = service.local_addr().unwrap().port();
    let entry = leading_to(&mut world, Protocol::Tcp, port);
    let mut client = TcpStream::connect(entry).unwrap();
    let (mut served, _) = world.until("a client", |_| service.accept().ok());
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    client.set_nonblocking(true).unwrap();
    served.set_nonblocking(true).unwrap();
    let mut heard = Vec::new();
    world.until("the question", |_| served.read_to_end(&mut heard).ok());
    assert_eq!(heard, b"question");

    let status = world.shard.status(DeviceStatus::TAP, None, world.now);
    assert_eq!(status.limits.connections.used, 2);
    let [flow] = &status.flows[..] else {
        panic!("{:?}", status.flows);
    };
    assert_eq!(
        (flow.initiator, flow.path),
        (FlowInitiator::Guest, FlowPath::Kernel)
    );
    assert_eq!(flow.reason, Some(Reason::Spliced));
    assert_eq!(
        (flow.bytes_from_guest, flow.remote.unwrap().port()),
        (8, port)
    );

    served.write_all(b"answer").unwrap();
    drop(served);
    let mut heard = Vec::new();
    world.until("the answer", |_| client.read_to_end(&mut heard).ok());
    assert_eq!(heard, b"answer");
    let status = world.shard.status(DeviceStatus::TAP, None, world.now);
    assert_eq!((status.flows.len(), status.limits.connections.used), (0, 0));
    assert_eq!((status.bytes_from_guest, status.bytes_to_guest), (8, 6));
}

/// The client's family is tried first.
#[test]
fn a_service_of_the_other_family_is_found_and_none_resets_the_client() {
    let mut world = World::new(Faults::default(), 1);
    let Ok(service) = TcpListener::bind("[::1]:0") else {
        return println!("skipped: no IPv6 here");
    };
    service.set_nonblocking(true).unwrap();
    let port = service.local_addr().unwrap().port();
    let entry = leading_to(&mut world, Protocol::Tcp, port);
    let client = TcpStream::connect(entry).unwrap();
    world.until("a client", |_| service.accept().ok());
    drop((client, service));

    let mut client = TcpStream::connect(entry).unwrap();
    client.set_nonblocking(true).unwrap();
    let error = world.until("a reset", |_| match client.read(&mut [0]) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        read => Some(read.unwrap_err()),
    });
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    world.until("their end", |world| {
        let status = world.shard.status(DeviceStatus::TAP, None, world.now);
        (status.limits.connections.used == 0).then_some(())
    });
}

#[test]
fn datagrams_are_passed_on_to_each_client_its_own_and_forgotten_when_idle() {
    let mut world = World::new(Faults::default(), 1);
    let service = UdpSocket::bind("127.0.0.1:0").unwrap();
    service.set_nonblocking(true).unwrap();
    let port = service.local_addr().unwrap().port();
    let entry = leading_to(&mut world, Protocol::Udp, port);
    let clients = [1, 2].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
    let mut buffer = [0; 16];
    for (nth, client) in (0u8..).zip(&clients) {
        client.set_nonblocking(true).unwrap();
        client.send_to(&[nth], entry).unwrap();
        let (_, from) = world.until("it", |_| service.recv_from(&mut buffer).ok());
        assert_eq!(buffer[0], nth);
        service.send_to(&[nth + 10], from).unwrap();
        let answer = world.until("an answer", |_| client.recv_from(&mut buffer).ok());
        assert_eq!((answer, buffer[0]), ((1, entry), nth + 10));
    }
    let status = world.shard.status(DeviceStatus::TAP, None, world.now);
    assert_eq!((status.flows.len(), status.limits.connections.used), (2, 2));
    world.now += Duration::from_secs(600);
    world.until("their end", |world| {
        let status = world.shard.status(DeviceStatus::TAP, None, world.now);
        (status.flows.is_empty() && status.limits.connections.used == 0).then_some(())
    });
}
