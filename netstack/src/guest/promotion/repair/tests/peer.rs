//! The other end of the tap: a TCP of a few lines, which answers what the guest sends in capitals,
//! and knows of each connection what a snapshot needs. Promoted connections' frames go back into
//! the tap.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TcpOptionElement, TransportSlice};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::core::flow::Endpoints;
use crate::core::tcp::{Snapshot, WireState};
use crate::device::{MAX_FRAME_LEN, Tap, VNET_HEADER_LEN};

pub const REMOTE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// As the engine has it.
const WINDOW_SCALE: u8 = 4;
const WINDOW: u16 = u16::MAX;
const ISS: u32 = 0xffff_ff00;

/// One connection.
#[derive(Debug, Clone, Copy)]
pub struct Flow {
    /// Ascends from flow to flow.
    number: usize,
    snd_nxt: u32,
    snd_una: u32,
    rcv_nxt: u32,
    snd_wnd: u32,
    max_window: u32,
    smss: u16,
    guest_window_scale: Option<u8>,
    sack: bool,
    established: bool,
    /// Keeps silent, drops what the guest sends.
    pub muted: bool,
    /// How many segments it dropped because of that.
    pub ignored: usize,
    pub promoted: bool,
    /// Frames of the guest that came out of the tap all the same.
    pub written_back: usize,
    pub reset: bool,
}

impl Flow {
    fn new(iss: u32) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        Self {
            number: COUNT.fetch_add(1, Ordering::Relaxed),
            snd_nxt: iss,
            snd_una: iss,
            rcv_nxt: 0,
            snd_wnd: 0,
            max_window: 0,
            smss: 536,
            guest_window_scale: None,
            sack: false,
            established: false,
            muted: false,
            ignored: 0,
            promoted: false,
            written_back: 0,
            reset: false,
        }
    }
}

pub struct Peer {
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
}

struct Shared {
    tap: Tap,
    mtu: u32,
    flows: Mutex<HashMap<Endpoints, Flow>>,
    ended: AtomicBool,
}

struct Segment<'a> {
    endpoints: Endpoints,
    seq: u32,
    ack: u32,
    syn: bool,
    fin: bool,
    rst: bool,
    acknowledges: bool,
    window: u16,
    mss: Option<u16>,
    window_scale: Option<u8>,
    sack: bool,
    data: &'a [u8],
}

impl Peer {
    /// Serves `tap`, a link of `mtu` bytes.
    pub fn start(tap: Tap, mtu: u32) -> Self {
        let shared = Arc::new(Shared {
            tap,
            mtu,
            flows: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let serving = shared.clone();
        let server = thread::spawn(move || serving.serve());
        Self {
            shared,
            server: Some(server),
        }
    }

    /// Opens a connection to the guest's listener, as for a published port.
    pub fn connect(&self, endpoints: Endpoints) {
        let flow = Flow::new(ISS);
        self.shared.flows().insert(endpoints, flow);
        self.shared.send(&endpoints, &flow, SYN, b"");
        self.until("connected", || self.shared.flows()[&endpoints].established);
    }

    /// Brings the connection to rest: silent, everything acknowledged.
    pub fn mute(&self, endpoints: &Endpoints) {
        self.until("acknowledged", || {
            let mut flows = self.shared.flows();
            let flow = flows.get_mut(endpoints).expect("a flow");
            flow.muted = flow.snd_una == flow.snd_nxt;
            flow.muted
        });
    }

    /// Goes on as before.
    pub fn unmute(&self, endpoints: &Endpoints) {
        self.change(endpoints, |flow| flow.muted = false);
    }

    pub fn snapshot(&self, endpoints: &Endpoints) -> Snapshot {
        let flow = self.flow(endpoints);
        Snapshot {
            endpoints: *endpoints,
            rcv_nxt: flow.rcv_nxt,
            rcv_wnd: rcv_wnd(&flow),
            wire: WireState {
                smss: NonZeroU16::new(flow.smss).expect("an MSS"),
                guest_shift: flow.guest_window_scale,
                our_shift: Some(WINDOW_SCALE),
                sack_permitted: flow.sack,
                snd_una: flow.snd_una,
                snd_nxt: flow.snd_nxt,
                snd_wnd: flow.snd_wnd,
                max_snd_wnd: flow.max_window,
                ..WireState::default()
            },
            unread: Vec::new(),
        }
    }

    /// From now on frames of the connection are written back.
    pub fn hand_over(&self, endpoints: &Endpoints) {
        self.change(endpoints, |flow| flow.promoted = true);
    }

    /// The one pure ACK at the end of a hand-over.
    pub fn acknowledge(&self, endpoints: &Endpoints) {
        let flow = self.flow(endpoints);
        self.shared.send(endpoints, &flow, ACK, b"");
    }

    pub fn forget(&self, endpoints: &Endpoints) {
        self.shared.flows().remove(endpoints);
    }

    /// The connection to `remote` that was made last.
    pub fn latest(&self, remote: &SocketAddr) -> Endpoints {
        let flows = self.shared.flows();
        let of_remote = flows.iter().filter(|(ends, _)| ends.remote() == *remote);
        let latest = of_remote.max_by_key(|(_, flow)| flow.number);
        *latest.expect("a flow").0
    }

    pub fn flow(&self, endpoints: &Endpoints) -> Flow {
        self.shared.flows()[endpoints]
    }

    /// Meanwhile all frames stay in the tap.
    pub fn change(&self, endpoints: &Endpoints, change: impl FnOnce(&mut Flow)) {
        change(self.shared.flows().get_mut(endpoints).expect("a flow"));
    }

    fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(10), "not {what}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        let served = self.server.take().expect("taken only here").join();
        if !thread::panicking() {
            served.expect("the peer met nothing unexpected");
        }
    }
}

impl Shared {
    fn serve(&self) {
        let mut frame = vec![0; MAX_FRAME_LEN];
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: 20_000_000,
        };
        while !self.ended.load(Ordering::Relaxed) {
            let mut waiting = [PollFd::from_borrowed_fd(self.tap.as_fd(), PollFlags::IN)];
            poll(&mut waiting, Some(&timeout)).expect("poll the tap");
            while let Ok(len) = rustix::io::read(&self.tap, &mut frame) {
                self.handle(&mut frame[..len]);
            }
        }
    }

    fn handle(&self, frame: &mut [u8]) {
        let Some(segment) = Segment::parse(&frame[VNET_HEADER_LEN..]) else {
            return;
        };
        let endpoints = segment.endpoints;
        let mut flows = self.flows();
        let flow = flows.entry(endpoints).or_insert_with(|| Flow::new(ISS));
        if segment.syn && !segment.acknowledges {
            // The guest repeats its SYN, or uses its port again.
            *flow = Flow::new(ISS);
        }
        if flow.promoted {
            flow.written_back += 1;
            drop(flows);
            let (to, from) = (VNET_HEADER_LEN, VNET_HEADER_LEN + 6);
            frame.copy_within(from..from + 6, to);
            frame[from..from + 6].copy_from_slice(&REMOTE_MAC);
            // The interface may be gone at the end of a test.
            let _ = rustix::io::write(&self.tap, frame);
            return;
        }
        flow.reset |= segment.rst;
        if segment.syn {
            flow.rcv_nxt = segment.seq.wrapping_add(1);
            flow.smss = segment.mss.unwrap_or(flow.smss);
            flow.guest_window_scale = segment.window_scale;
            flow.sack = segment.sack;
            flow.snd_wnd = segment.window.into();
            if segment.acknowledges {
                // The answer to our own.
                flow.snd_nxt = ISS.wrapping_add(1);
                flow.snd_una = flow.snd_nxt;
                flow.established = true;
                self.send(&endpoints, flow, ACK, b"");
            } else {
                self.send(&endpoints, flow, SYN | ACK, b"");
                flow.snd_nxt = ISS.wrapping_add(1);
            }
            return;
        }
        let scale = flow.guest_window_scale.unwrap_or(0);
        flow.snd_una = segment.ack;
        flow.established = true;
        flow.snd_wnd = u32::from(segment.window) << scale;
        flow.max_window = flow.max_window.max(flow.snd_wnd);
        if flow.muted || segment.seq != flow.rcv_nxt {
            flow.ignored += usize::from(flow.muted);
            return;
        }
        if !segment.data.is_empty() {
            flow.rcv_nxt = flow.rcv_nxt.wrapping_add(segment.data.len() as u32);
            let capitals = segment.data.to_ascii_uppercase();
            self.send(&endpoints, flow, ACK | PSH, &capitals);
            flow.snd_nxt = flow.snd_nxt.wrapping_add(capitals.len() as u32);
        }
        if segment.fin {
            flow.rcv_nxt = flow.rcv_nxt.wrapping_add(1);
            self.send(&endpoints, flow, ACK | FIN, b"");
            flow.snd_nxt = flow.snd_nxt.wrapping_add(1);
        }
    }

    fn send(&self, endpoints: &Endpoints, flow: &Flow, flags: u8, data: &[u8]) {
        let (from, to) = (endpoints.remote(), endpoints.guest());
        let guest_mac = self.tap.mac().expect("the tap has an address");
        let frame = PacketBuilder::ethernet2(REMOTE_MAC, guest_mac);
        let (packet, headers) = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => (frame.ipv4(from.octets(), to.octets(), 64), 40),
            (IpAddr::V6(from), IpAddr::V6(to)) => (frame.ipv6(from.octets(), to.octets(), 64), 60),
            _ => unreachable!("endpoints are of one family"),
        };
        let mut segment = packet.tcp(from.port(), to.port(), flow.snd_nxt, WINDOW);
        if flags & ACK != 0 {
            segment = segment.ack(flow.rcv_nxt);
        }
        if flags & PSH != 0 {
            segment = segment.psh();
        }
        if flags & FIN != 0 {
            segment = segment.fin();
        }
        if flags & SYN != 0 {
            let mut options = vec![TcpOptionElement::MaximumSegmentSize(
                (self.mtu - headers) as u16,
            )];
            // An answer offers what it was offered.
            if flags & ACK == 0 || flow.guest_window_scale.is_some() {
                options.push(TcpOptionElement::WindowScale(WINDOW_SCALE));
            }
            if flags & ACK == 0 || flow.sack {
                options.push(TcpOptionElement::SelectiveAcknowledgementPermitted);
            }
            segment = segment.syn().options(&options).expect("they fit");
        }
        let mut bytes = vec![0; VNET_HEADER_LEN];
        segment.write(&mut bytes, data).expect("a vector grows");
        rustix::io::write(&self.tap, &bytes).expect("the tap is up");
    }

    fn flows(&self) -> MutexGuard<'_, HashMap<Endpoints, Flow>> {
        self.flows.lock().expect("nobody panicked")
    }
}

impl<'a> Segment<'a> {
    fn parse(frame: &'a [u8]) -> Option<Self> {
        let packet = SlicedPacket::from_ethernet(frame).ok()?;
        let (source, destination) = match packet.net? {
            NetSlice::Ipv4(ip) => (
                IpAddr::from(ip.header().source_addr()),
                IpAddr::from(ip.header().destination_addr()),
            ),
            NetSlice::Ipv6(ip) => (
                ip.header().source_addr().into(),
                ip.header().destination_addr().into(),
            ),
            NetSlice::Arp(_) => return None,
        };
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else {
            return None;
        };
        let guest = SocketAddr::new(source, tcp.source_port());
        let remote = SocketAddr::new(destination, tcp.destination_port());
        let mut segment = Segment {
            endpoints: Endpoints::new(guest, remote)?,
            seq: tcp.sequence_number(),
            ack: tcp.acknowledgment_number(),
            syn: tcp.syn(),
            fin: tcp.fin(),
            rst: tcp.rst(),
            acknowledges: tcp.ack(),
            window: tcp.window_size(),
            mss: None,
            window_scale: None,
            sack: false,
            data: tcp.payload(),
        };
        for option in tcp.options_iterator().flatten() {
            match option {
                TcpOptionElement::MaximumSegmentSize(mss) => segment.mss = Some(mss),
                TcpOptionElement::WindowScale(scale) => segment.window_scale = Some(scale),
                TcpOptionElement::SelectiveAcknowledgementPermitted => segment.sack = true,
                _ => {}
            }
        }
        Some(segment)
    }
}

/// What every segment of ours but the SYN announces.
fn rcv_wnd(flow: &Flow) -> u32 {
    let scale = flow.guest_window_scale.map_or(0, |_| WINDOW_SCALE);
    u32::from(WINDOW) << scale
}

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
