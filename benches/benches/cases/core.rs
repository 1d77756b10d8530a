//! The core between a guest and a host that are both in this process: parsing, lookup, TCP and what
//! is written in answer.

use std::hint::black_box;
use std::io;
use std::ops::Range;

use etherparse::TcpHeader;
use netstack::core::flow::FlowId;
use netstack::core::link::Link;
use netstack::core::tcp::{HostStream, Readiness};
use netstack::core::vnet::VNET_HEADER_LEN;
use netstack::core::{Action, Core, CoreConfig, Duration, Instant};
use testbed::core_config;

use super::{Case, case, packets};

pub fn cases() -> Vec<Case> {
    vec![
        arp(),
        malformed(),
        datagram("core/udp-datagram", 1),
        datagram("core/udp-datagram-10k-mappings", 10_000),
        segments("core/tcp-100-bytes", 100),
        segments("core/tcp-64-kilobytes", 64_000),
    ]
}

fn arp() -> Case {
    let (mut core, mut wire) = (core(), Wire::default());
    let frame = packets::arp_request();
    case("core/arp-request", move || {
        core.handle_frame(black_box(&frame), START, &mut wire);
    })
}

fn malformed() -> Case {
    let (mut core, mut wire) = (core(), Wire::default());
    let mut frame = packets::udp(40_000, 100);
    // The length of the IP header, less than there can be.
    frame[VNET_HEADER_LEN + 14] = 0x41;
    case("core/malformed-frame", move || {
        core.handle_frame(black_box(&frame), START, &mut wire);
    })
}

/// A datagram of a flow that exists, among `mappings`.
fn datagram(name: &'static str, mappings: u16) -> Case {
    let (mut core, mut wire) = (core(), Wire::default());
    for port in 0..mappings {
        core.handle_frame(&packets::udp(10_000 + port, 100), START, &mut wire);
    }
    let frame = packets::udp(10_000 + mappings / 2, 100);
    case(name, move || {
        let action = core.handle_frame(black_box(&frame), START, &mut wire);
        assert!(matches!(
            black_box(action),
            Some(Action::SendDatagram { .. })
        ));
    })
}

/// A segment of a connection, passed on to the host and acknowledged.
fn segments(name: &'static str, len: u32) -> Case {
    let mut connection = Connection::open();
    let mut frame = connection.frame(&vec![0x5a; len as usize]);
    case(name, move || {
        connection.put_sequence(&mut frame);
        connection.send(&frame, len);
    })
}

const START: Instant = Instant::from_millis_const(1);
const GUEST_PORT: u16 = 40_000;
const GUEST_ISN: u32 = 1_000;
/// Where a TCP segment over IPv4 has its sequence number, behind the virtio and Ethernet headers.
const SEQUENCE: Range<usize> = VNET_HEADER_LEN + 14 + 20 + 4..VNET_HEADER_LEN + 14 + 20 + 8;

/// An established connection of the guest.
struct Connection {
    core: Core,
    wire: Wire,
    flow: FlowId,
    now: Instant,
    /// Of the next segment, as the guest counts.
    sequence: u32,
    acknowledged: u32,
}

impl Connection {
    fn open() -> Self {
        let (mut core, mut wire) = (core(), Wire::default());
        let mut syn = TcpHeader::new(GUEST_PORT, 443, GUEST_ISN, u16::MAX);
        syn.syn = true;
        let frame = packets::tcp(syn, &[]);
        let dial = core.handle_frame(&frame, START, &mut wire);
        let Some(Action::Dial { flow, .. }) = dial else {
            panic!("a SYN is a request to dial, not {dial:?}");
        };
        assert!(core.begin_dial(flow, START), "just asked for");
        core.handle_dialled(flow, Ok(()), START, &mut wire);
        let writable = Readiness {
            writable: true,
            ..Readiness::default()
        };
        core.host_ready(flow, writable);
        let mut connection = Self {
            core,
            wire,
            flow,
            now: START,
            sequence: GUEST_ISN + 1,
            acknowledged: 0,
        };
        connection.serve();
        connection.acknowledged = connection.wire.sequence().wrapping_add(1);
        let ack = connection.frame(&[]);
        connection.send(&ack, 0);
        connection
    }

    /// The next segment.
    fn frame(&self, payload: &[u8]) -> Vec<u8> {
        let mut header = TcpHeader::new(GUEST_PORT, 443, self.sequence, u16::MAX);
        header.ack = true;
        header.acknowledgment_number = self.acknowledged;
        packets::tcp(header, payload)
    }

    /// Makes an earlier segment the next one. Its checksum is nobody's business yet.
    fn put_sequence(&self, frame: &mut [u8]) {
        frame[SEQUENCE].copy_from_slice(&self.sequence.to_be_bytes());
    }

    /// Hands a segment of `len` bytes to the core and lets it pass them on.
    fn send(&mut self, frame: &[u8], len: u32) {
        self.now += Duration::from_micros(10);
        self.core
            .handle_frame(black_box(frame), self.now, &mut self.wire);
        self.serve();
        self.sequence = self.sequence.wrapping_add(len);
    }

    fn serve(&mut self) {
        let mut host = Sink { taken: 0 };
        while let Some(flow) = self.core.poll_touched() {
            assert_eq!(flow, self.flow);
            self.core.serve(flow, self.now, &mut host, &mut self.wire);
        }
        black_box(host.taken);
    }
}

fn core() -> Core {
    let config = CoreConfig {
        mtu: 65520,
        ..core_config()
    };
    Core::new(config, START)
}

/// Takes every frame and keeps the head of the last one.
#[derive(Default)]
struct Wire {
    last: Vec<u8>,
}

impl Wire {
    /// Of the last frame, a TCP segment over IPv4.
    fn sequence(&self) -> u32 {
        let bytes = self.last[SEQUENCE].try_into();
        u32::from_be_bytes(bytes.expect("four bytes"))
    }
}

impl Link for Wire {
    fn has_room(&self) -> bool {
        true
    }

    fn transmit(&mut self, head: &[u8], payload: &[u8]) {
        self.last.clear();
        self.last.extend_from_slice(head);
        black_box(payload);
    }
}

/// Takes all that the guest sends, and says nothing.
struct Sink {
    taken: usize,
}

impl HostStream for Sink {
    fn receive(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.taken += bytes.len();
        Ok(bytes.len())
    }

    fn finish(&mut self) {}
}
