//! Another TCP stack as the guest: a smoltcp of its own, with everything a guest's kernel and its
//! tap add to it. Frames to it come as its kernel would hand them to TCP (see `kernel`); it checks
//! their checksums.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use etherparse::{SlicedPacket, TcpSlice, TransportSlice};
use netstack::core::Instant;
use netstack::core::tcp::WireState;
use netstack::core::vnet::{Checksum, Offload, Segmentation, SuperFrame, VNET_HEADER_LEN};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{
    Checksum as Verify, ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta,
    RxToken, TxToken,
};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint, Ipv4Address, Ipv6Address};

use crate::kernel;
use crate::packet::{GATEWAY_MAC, GUEST_MAC};
use crate::world::address;

const ETHERNET_LEN: usize = 14;
/// Segments of one turn. smoltcp's own loop has no end in FIN-WAIT-2 with a closed window.
const EGRESS_BUDGET: usize = 200;

/// See the module's description.
pub struct Guest {
    interface: Interface,
    sockets: SocketSet<'static>,
    tap: Tap,
    /// What each port's connection has said of its window.
    wire: HashMap<u16, WireState>,
}

impl Guest {
    /// A guest on a link of `mtu` bytes; with `offload` it leaves checksums and segmentation to the
    /// link.
    pub fn new(mtu: usize, offload: bool, seed: u64, now: Instant) -> Self {
        let mut tap = Tap {
            inbound: VecDeque::new(),
            outbound: Vec::new(),
            mtu,
            offload,
        };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut tap, now);
        interface.update_ip_addrs(|addresses| {
            for cidr in ["10.0.2.100/24", "fd00::100/64"] {
                addresses
                    .push(address::<IpCidr>(cidr))
                    .expect("room for two");
            }
        });
        let routes = interface.routes_mut();
        routes
            .add_default_ipv4_route(address::<Ipv4Address>("10.0.2.2"))
            .expect("room for two");
        routes
            .add_default_ipv6_route(address::<Ipv6Address>("fd00::2"))
            .expect("room for two");
        Self {
            interface,
            sockets: SocketSet::new(Vec::new()),
            tap,
            wire: HashMap::new(),
        }
    }

    pub fn connect(
        &mut self,
        buffers: (usize, usize),
        port: u16,
        remote: SocketAddr,
    ) -> SocketHandle {
        let mut socket = socket(buffers);
        let remote = IpEndpoint::new(IpAddress::from(remote.ip()), remote.port());
        socket
            .connect(self.interface.context(), remote, port)
            .expect("both addresses are given");
        self.sockets.add(socket)
    }

    pub fn listen(&mut self, buffers: (usize, usize), port: u16) -> SocketHandle {
        let mut socket = socket(buffers);
        socket.listen(port).expect("the port is given");
        self.sockets.add(socket)
    }

    pub fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Takes a frame of the core, virtio header first. The guest's smoltcp has the fault from which
    /// `hold_back_fin` keeps the core's, and meets it often: the core's goes beyond the window when
    /// it repeats a segment early.
    pub fn receive(&mut self, frame: &[u8]) {
        for frame in kernel::deliver(frame) {
            let packet = &frame[ETHERNET_LEN..];
            let segment = tcp(&frame);
            let wire = self.wire.entry(segment.destination_port()).or_default();
            if wire.hold_back_fin(packet, &segment).is_none() {
                self.tap.inbound.push_back(packet.to_vec());
            }
        }
    }

    /// Lets TCP act, and returns the frames it sends.
    pub fn poll(&mut self, now: Instant) -> Vec<Vec<u8>> {
        while !self.tap.inbound.is_empty() {
            self.interface
                .poll_ingress_single(now, &mut self.tap, &mut self.sockets);
        }
        for _ in 0..EGRESS_BUDGET {
            let result = self
                .interface
                .poll_egress(now, &mut self.tap, &mut self.sockets);
            if result == PollResult::None {
                break;
            }
        }
        let frames = std::mem::take(&mut self.tap.outbound);
        for frame in &frames {
            let segment = tcp(&frame[VNET_HEADER_LEN..]);
            let wire = self.wire.entry(segment.source_port()).or_default();
            wire.from_us(segment.slice());
        }
        frames
    }

    /// When it wants to be polled.
    pub fn deadline(&mut self, now: Instant) -> Option<Instant> {
        self.interface.poll_at(now, &self.sockets)
    }
}

/// The segment in an Ethernet frame.
pub fn tcp(ethernet: &[u8]) -> TcpSlice<'_> {
    let packet = SlicedPacket::from_ethernet(ethernet).expect("both write sound frames");
    match packet.transport {
        Some(TransportSlice::Tcp(tcp)) => tcp,
        other => panic!("TCP is expected, not {other:?}"),
    }
}

fn socket((receive, send): (usize, usize)) -> Socket<'static> {
    Socket::new(
        SocketBuffer::new(vec![0; receive]),
        SocketBuffer::new(vec![0; send]),
    )
}

struct Tap {
    inbound: VecDeque<Vec<u8>>,
    outbound: Vec<Vec<u8>>,
    mtu: usize,
    offload: bool,
}

impl Device for Tap {
    type RxToken<'a> = Received;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received, Outgoing<'_>)> {
        let packet = self.inbound.pop_front()?;
        Some((Received(packet), self.outgoing()))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Outgoing<'_>> {
        Some(self.outgoing())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.checksum = ChecksumCapabilities::default();
        if self.offload {
            capabilities.checksum.tcp = Verify::Rx;
            // smoltcp 0.14 drops super-frames of IPv6 unless they fit the MTU.
            capabilities.segmentation.tcpv4 = std::num::NonZeroUsize::new(65_535);
        }
        capabilities
    }
}

impl Tap {
    fn outgoing(&mut self) -> Outgoing<'_> {
        Outgoing {
            outbound: &mut self.outbound,
            offload: self.offload,
            segment: None,
        }
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, parse: F) -> R {
        parse(&self.0)
    }
}

struct Outgoing<'a> {
    outbound: &'a mut Vec<Vec<u8>>,
    offload: bool,
    segment: Option<std::num::NonZeroU16>,
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, emit: F) -> R {
        let mut frame = vec![0; VNET_HEADER_LEN + ETHERNET_LEN + len];
        let ip = &mut frame[VNET_HEADER_LEN + ETHERNET_LEN..];
        let result = emit(ip);
        let is_v4 = ip[0] >> 4 == 4;
        let start = ETHERNET_LEN as u16 + if is_v4 { 20 } else { 40 };
        let ether_type = if is_v4 { [0x08, 0x00] } else { [0x86, 0xdd] };
        frame[VNET_HEADER_LEN..][..6].copy_from_slice(&GATEWAY_MAC);
        frame[VNET_HEADER_LEN + 6..][..6].copy_from_slice(&GUEST_MAC);
        frame[VNET_HEADER_LEN + 12..][..2].copy_from_slice(&ether_type);
        if self.offload {
            let kind = match is_v4 {
                true => Segmentation::Tcp4,
                false => Segmentation::Tcp6,
            };
            let offload = Offload {
                checksum: Checksum::Partial { start, offset: 16 },
                super_frame: self.segment.map(|size| SuperFrame {
                    kind,
                    size,
                    header_len: start + 20,
                }),
            };
            offload.write(&mut frame);
        }
        self.outbound.push(frame);
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size;
    }
}
