//! What a guest's kernel does with a frame from the tap, by the virtio header: it cuts super-frames
//! into segments and finishes checksums. Everything that the core sends goes through here, and a
//! frame that a kernel would refuse or misread fails the test. Sums are made here by hand, so that
//! they are not checked by the code that wrote them.

use etherparse::{IpNumber, Ipv4Header, NetSlice, SlicedPacket};
use netstack::core::link::Link;
use netstack::core::vnet::{Checksum, Offload, Segmentation, SuperFrame};

const ETHERNET_LEN: usize = 14;
const UDP_LEN: usize = 8;
const FIN_AND_PSH: u8 = 0x09;

/// A link that takes every frame, lets the guest's kernel look at it, and counts.
#[derive(Debug, Default)]
pub struct CountingWire {
    pub frames: usize,
}

impl Link for CountingWire {
    fn has_room(&self) -> bool {
        true
    }

    fn transmit(&mut self, head: &[u8], payload: &[u8]) {
        deliver(&[head, payload].concat());
        self.frames += 1;
    }
}

/// The Ethernet frames that `frame` (virtio header first) stands for, all checksums complete.
pub fn deliver(frame: &[u8]) -> Vec<Vec<u8>> {
    let (offload, ethernet) = Offload::split(frame).expect("a virtio header comes first");
    let Some(layout) = Layout::of(ethernet) else {
        // ARP has no checksum.
        return vec![ethernet.to_vec()];
    };
    match (offload.checksum, offload.super_frame) {
        (Checksum::Unchecked, None) => {
            layout.check_sum(ethernet);
            vec![ethernet.to_vec()]
        }
        (Checksum::Partial { start, offset }, super_frame) => {
            assert_eq!(usize::from(start), layout.transport, "csum_start");
            assert_eq!(usize::from(offset), layout.sum_offset(), "csum_offset");
            let mut whole = ethernet.to_vec();
            layout.finish_sum(&mut whole);
            // Those of segments are derived from this one, so it must be right.
            layout.check_sum(&whole);
            match super_frame {
                Some(cut) => layout.cut(ethernet, cut),
                None => vec![whole],
            }
        }
        (checksum, super_frame) => panic!("a kernel refuses {checksum:?} with {super_frame:?}"),
    }
}

/// Where things are in a frame.
struct Layout {
    addresses: std::ops::Range<usize>,
    protocol: IpNumber,
    /// Where the transport header begins, and what it carries.
    transport: usize,
    payload: usize,
}

impl Layout {
    /// Checks Ethernet and IP headers and lengths. `None` for ARP.
    fn of(ethernet: &[u8]) -> Option<Self> {
        let sliced = SlicedPacket::from_ethernet(ethernet)
            .unwrap_or_else(|error| panic!("malformed: {error}: {ethernet:02x?}"));
        let (addresses, protocol, transport) = match &sliced.net {
            Some(NetSlice::Arp(_)) => return None,
            Some(NetSlice::Ipv4(ip)) => {
                let header = ip.header().to_header();
                let length = usize::from(header.total_len);
                assert_eq!(length + ETHERNET_LEN, ethernet.len(), "IPv4 length");
                let end = ETHERNET_LEN + header.header_len();
                assert_eq!(sum(&ethernet[ETHERNET_LEN..end]), 0xffff, "IPv4 header sum");
                assert!(!ip.is_payload_fragmented(), "the core never fragments");
                (26..34, header.protocol, end)
            }
            Some(NetSlice::Ipv6(ip)) => {
                let length = usize::from(ip.header().payload_length());
                assert_eq!(length + 40 + ETHERNET_LEN, ethernet.len(), "IPv6 length");
                (22..54, ip.header().next_header(), ETHERNET_LEN + 40)
            }
            None => panic!("neither ARP nor IP: {ethernet:02x?}"),
        };
        let header_len = match protocol {
            IpNumber::TCP => usize::from(ethernet[transport + 12] >> 4) * 4,
            IpNumber::UDP => UDP_LEN,
            IpNumber::ICMP | IpNumber::IPV6_ICMP => 4,
            other => panic!("the core never sends protocol {other:?}"),
        };
        Some(Self {
            addresses,
            protocol,
            transport,
            payload: transport + header_len,
        })
    }

    fn is_ipv4(&self) -> bool {
        self.addresses.len() == 8
    }

    /// Where the transport's checksum is, from the transport header on.
    fn sum_offset(&self) -> usize {
        match self.protocol {
            IpNumber::TCP => 16,
            IpNumber::UDP => 6,
            _ => 2,
        }
    }

    fn pseudo_header_sum(&self, frame: &[u8]) -> u16 {
        if self.protocol == IpNumber::ICMP {
            return 0;
        }
        let length = (frame.len() - self.transport) as u32;
        let rest = [&length.to_be_bytes()[..], &[0, self.protocol.0]].concat();
        sum(&[&frame[self.addresses.clone()], &rest].concat())
    }

    fn check_sum(&self, frame: &[u8]) {
        let pseudo = self.pseudo_header_sum(frame).to_be_bytes();
        let all = [&pseudo[..], &frame[self.transport..]].concat();
        assert_eq!(sum(&all), 0xffff, "transport checksum of {frame:02x?}");
    }

    /// What NEEDS_CSUM asks for: the field's own content takes part in the sum.
    fn finish_sum(&self, frame: &mut [u8]) {
        // Zero means "no checksum" in UDP; all ones is the same number (RFC 768).
        let complete = match !sum(&frame[self.transport..]) {
            0 => 0xffff,
            complete => complete,
        };
        self.put_sum(frame, complete);
    }

    fn put_sum(&self, frame: &mut [u8], value: u16) {
        let at = self.transport + self.sum_offset();
        frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }

    /// Generic segmentation offload.
    fn cut(&self, ethernet: &[u8], cut: SuperFrame) -> Vec<Vec<u8>> {
        assert_eq!(usize::from(cut.header_len), self.payload, "hdr_len");
        let (family, protocol) = match cut.kind {
            Segmentation::Tcp4 => (true, IpNumber::TCP),
            Segmentation::Tcp6 => (false, IpNumber::TCP),
            Segmentation::Udp => (self.is_ipv4(), IpNumber::UDP),
        };
        assert_eq!(
            (family, protocol),
            (self.is_ipv4(), self.protocol),
            "gso_type"
        );
        let size = usize::from(cut.size.get());
        let (head, payload) = ethernet.split_at(self.payload);
        assert!(payload.len() > size, "a super-frame of one segment");
        let last = payload.len().div_ceil(size) - 1;
        let segment = |(index, chunk): (usize, &[u8])| {
            let mut frame = [head, chunk].concat();
            self.set_lengths(&mut frame);
            if self.protocol == IpNumber::TCP {
                let transport = &mut frame[self.transport..];
                let seq = u32::from_be_bytes(transport[4..8].try_into().expect("four bytes"));
                let seq = seq.wrapping_add((index * size) as u32);
                transport[4..8].copy_from_slice(&seq.to_be_bytes());
                if index < last {
                    transport[13] &= !FIN_AND_PSH;
                }
            }
            let pseudo = self.pseudo_header_sum(&frame);
            self.put_sum(&mut frame, pseudo);
            self.finish_sum(&mut frame);
            frame
        };
        payload.chunks(size).enumerate().map(segment).collect()
    }

    /// Sets the lengths in the headers of a segment.
    fn set_lengths(&self, frame: &mut [u8]) {
        let length = (frame.len() - self.transport) as u16;
        if self.protocol == IpNumber::UDP {
            frame[self.transport + 4..][..2].copy_from_slice(&length.to_be_bytes());
        }
        if self.is_ipv4() {
            let ip = &frame[ETHERNET_LEN..self.transport];
            let (mut header, _) = Ipv4Header::from_slice(ip).expect("checked before");
            header.total_len = header.header_len() as u16 + length;
            header.header_checksum = header.calc_header_checksum();
            frame[ETHERNET_LEN..self.transport].copy_from_slice(&header.to_bytes());
        } else {
            frame[ETHERNET_LEN + 4..][..2].copy_from_slice(&length.to_be_bytes());
        }
    }
}

/// The ones' complement sum of RFC 1071.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| match word {
        [high, low] => u16::from_be_bytes([*high, *low]),
        odd => u16::from_be_bytes([odd[0], 0]),
    });
    let mut sum: u64 = words.map(u64::from).sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
