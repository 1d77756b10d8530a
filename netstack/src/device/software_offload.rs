//! What the kernel does behind a virtio-net header, done here for a tap that has none: checksums
//! are finished, and super-frames of TCP are cut into segments, each with headers of its own
//! (RFC 9293 3.1, RFC 791 3.1, RFC 8200 3). Super-frames of UDP are not for such a device.

use std::io;

use etherparse::Ethernet2Header;
use etherparse::checksum::Sum16BitWords;

use crate::core::link::pseudo_header_sum;
use crate::core::vnet::{Checksum, Offload, Segmentation, SuperFrame};

/// Takes frames with a virtio-net header, and makes those without one of them. Holds the memory
/// that this takes.
#[derive(Debug, Default)]
pub struct SoftwareOffload {
    frame: Vec<u8>,
    segment: Vec<u8>,
}

impl SoftwareOffload {
    /// Has `write` write what the frame `head ++ payload` becomes. Its first error ends it:
    /// segments that were written already will be twice there if the frame is tried again, which
    /// TCP does not mind. `InvalidInput` for a frame that cannot be cut.
    pub fn frames(
        &mut self,
        head: &[u8],
        payload: &[u8],
        mut write: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.frame.clear();
        self.frame.extend_from_slice(head);
        self.frame.extend_from_slice(payload);
        let (offload, frame) = Offload::split(&self.frame).ok_or_else(invalid)?;
        let Some(super_frame) = offload.super_frame else {
            self.segment.clear();
            self.segment.extend_from_slice(frame);
            if let Checksum::Partial { start, offset } = offload.checksum {
                finish_checksum(&mut self.segment, start.into(), offset.into())
                    .ok_or_else(invalid)?;
            }
            return write(&self.segment);
        };
        let cut = Cut::new(frame, super_frame, offload.checksum).ok_or_else(invalid)?;
        for nth in 0..cut.count() {
            cut.make(nth, &mut self.segment).ok_or_else(invalid)?;
            write(&self.segment)?;
        }
        Ok(())
    }
}

fn invalid() -> io::Error {
    io::ErrorKind::InvalidInput.into()
}

/// A super-frame of TCP, about to be cut.
struct Cut<'f> {
    headers: &'f [u8],
    payload: &'f [u8],
    size: usize,
    is_ipv4: bool,
    /// Where the TCP header begins.
    start: usize,
}

impl<'f> Cut<'f> {
    fn new(frame: &'f [u8], super_frame: SuperFrame, checksum: Checksum) -> Option<Self> {
        let is_ipv4 = match super_frame.kind {
            Segmentation::Tcp4 => true,
            Segmentation::Tcp6 => false,
            Segmentation::Udp => return None,
        };
        let Checksum::Partial { start, .. } = checksum else {
            return None;
        };
        let (headers, payload) = frame.split_at_checked(super_frame.header_len.into())?;
        let start = usize::from(start);
        let ip_header_len = if is_ipv4 {
            IPV4_HEADER_LEN
        } else {
            IPV6_HEADER_LEN
        };
        let fits =
            start >= ETHERNET_HEADER_LEN + ip_header_len && headers.len() >= start + TCP_HEADER_LEN;
        fits.then_some(Self {
            headers,
            payload,
            size: super_frame.size.get().into(),
            is_ipv4,
            start,
        })
    }

    fn count(&self) -> usize {
        self.payload.len().div_ceil(self.size).max(1)
    }

    /// Makes the `nth` segment.
    fn make(&self, nth: usize, segment: &mut Vec<u8>) -> Option<()> {
        let from = nth * self.size;
        let to = (from + self.size).min(self.payload.len());
        segment.clear();
        segment.extend_from_slice(self.headers);
        segment.extend_from_slice(&self.payload[from..to]);
        let len = segment.len();
        let (ip, tcp) = segment.split_at_mut(self.start);
        let ip = &mut ip[ETHERNET_HEADER_LEN..];
        let tcp_len = u32::try_from(len - self.start).ok()?;
        let addresses = if self.is_ipv4 {
            put(ip, 2, u16::try_from(len - ETHERNET_HEADER_LEN).ok()?);
            put(ip, 4, word(ip, 4).wrapping_add(nth as u16));
            put(ip, 10, 0);
            let checksum = Sum16BitWords::new().add_slice(ip).ones_complement();
            ip[10..12].copy_from_slice(&checksum.to_ne_bytes());
            &ip[12..20]
        } else {
            let headers = ETHERNET_HEADER_LEN + IPV6_HEADER_LEN;
            put(ip, 4, u16::try_from(len - headers).ok()?);
            &ip[8..40]
        };
        let (source, destination) = addresses.split_at(addresses.len() / 2);
        let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
        tcp[4..8].copy_from_slice(&seq.wrapping_add(from as u32).to_be_bytes());
        if nth > 0 {
            tcp[13] &= !CWR;
        }
        if to < self.payload.len() {
            tcp[13] &= !(FIN | PSH);
        }
        let pseudo = pseudo_header_sum(source, destination, tcp_len, TCP_PROTOCOL);
        put(tcp, TCP_CHECKSUM_OFFSET, pseudo);
        finish_checksum(segment, self.start, TCP_CHECKSUM_OFFSET)
    }
}

const ETHERNET_HEADER_LEN: usize = Ethernet2Header::LEN;
const IPV4_HEADER_LEN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;
const TCP_HEADER_LEN: usize = 20;
const TCP_PROTOCOL: u8 = 6;
const TCP_CHECKSUM_OFFSET: usize = 16;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Sums `frame` from `start` to its end, with what the field at `offset` behind `start` holds, and
/// stores the result there (RFC 1071). `None` if there is no such field.
fn finish_checksum(frame: &mut [u8], start: usize, offset: usize) -> Option<()> {
    let summed = frame.get_mut(start..)?;
    // Zero means "none" in UDP, and the same as its complement in every protocol (RFC 768).
    let checksum = Sum16BitWords::new()
        .add_slice(summed)
        .to_ones_complement_with_no_zero();
    let field = summed.get_mut(offset..offset + 2)?;
    field.copy_from_slice(&checksum.to_ne_bytes());
    Some(())
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    use super::*;
    use crate::core::vnet::VNET_HEADER_LEN;

    /// A frame of TCP whose checksum and segments are left to others.
    fn super_frame(is_ipv4: bool, payload: &[u8], size: u16) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([1; 6], [2; 6]);
        let builder = match is_ipv4 {
            true => builder.ipv4([10, 0, 2, 2], [10, 0, 2, 100], 64),
            false => builder.ipv6([0xfd; 16], [0xfe; 16], 64),
        };
        let tcp = builder
            .tcp(80, 4711, u32::MAX - 1000, 8192)
            .ack(7)
            .psh()
            .fin();
        let mut frame = vec![0; VNET_HEADER_LEN];
        tcp.write(&mut frame, payload).unwrap();
        let start = ETHERNET_HEADER_LEN + if is_ipv4 { 20 } else { 40 };
        let (kind, addresses) = match is_ipv4 {
            true => (Segmentation::Tcp4, start - 8..start),
            false => (Segmentation::Tcp6, start - 32..start),
        };
        let ip = &frame[VNET_HEADER_LEN..][addresses];
        let (source, destination) = ip.split_at(ip.len() / 2);
        let len = 20 + payload.len() as u32;
        let pseudo = pseudo_header_sum(source, destination, len, TCP_PROTOCOL);
        let at = VNET_HEADER_LEN + start + TCP_CHECKSUM_OFFSET;
        frame[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
        let checksum = Checksum::Partial {
            start: start as u16,
            offset: TCP_CHECKSUM_OFFSET as u16,
        };
        let is_cut = payload.len() > usize::from(size);
        let super_frame = is_cut.then_some(SuperFrame {
            kind,
            size: NonZeroU16::new(size).unwrap(),
            header_len: (start + 20) as u16,
        });
        Offload {
            checksum,
            super_frame,
        }
        .write(&mut frame);
        frame
    }

    fn frames_of(frame: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        let (head, payload) = frame.split_at(frame.len().min(40));
        SoftwareOffload::default().frames(head, payload, |frame| {
            frames.push(frame.to_vec());
            Ok(())
        })?;
        Ok(frames)
    }

    proptest! {
        #[test]
        fn segments_are_whole_and_add_up(
            is_ipv4: bool,
            payload in prop::collection::vec(any::<u8>(), 1..5000),
            size in 1u16..2000,
        ) {
            let frames = frames_of(&super_frame(is_ipv4, &payload, size)).unwrap();
            prop_assert_eq!(frames.len(), payload.len().div_ceil(size.into()));
            let mut together = Vec::new();
            for (nth, frame) in frames.iter().enumerate() {
                let packet = SlicedPacket::from_ethernet(frame).unwrap();
                let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { panic!("no TCP") };
                let expected = match packet.net.as_ref().unwrap() {
                    NetSlice::Ipv4(ip) => {
                        let header = ip.header().to_header();
                        prop_assert_eq!(header.calc_header_checksum(), header.header_checksum);
                        let header = ip.header();
                        tcp.calc_checksum_ipv4(header.source(), header.destination()).unwrap()
                    }
                    NetSlice::Ipv6(ip) => {
                        let header = ip.header();
                        tcp.calc_checksum_ipv6(header.source(), header.destination()).unwrap()
                    }
                    NetSlice::Arp(_) => panic!("no IP"),
                };
                prop_assert!(tcp.checksum() == expected || (tcp.checksum(), expected) == (u16::MAX, 0));
                let seq = (u32::MAX - 1000).wrapping_add(together.len() as u32);
                prop_assert_eq!(tcp.sequence_number(), seq);
                let is_last = nth + 1 == frames.len();
                prop_assert_eq!((tcp.psh(), tcp.fin(), tcp.ack()), (is_last, is_last, true));
                together.extend_from_slice(tcp.payload());
            }
            prop_assert_eq!(together, payload);
        }

        #[test]
        fn any_bytes_are_written_or_refused(frame in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = frames_of(&frame);
        }
    }

    #[test]
    fn other_frames_stay_as_they_are() {
        let mut frame = vec![0; VNET_HEADER_LEN];
        frame.extend(1..100);
        assert_eq!(
            frames_of(&frame).unwrap(),
            [frame[VNET_HEADER_LEN..].to_vec()]
        );
    }

    #[test]
    fn an_error_ends_it() {
        let frame = super_frame(true, &[7; 3000], 1000);
        let mut written = 0;
        let error = SoftwareOffload::default().frames(&frame, &[], |_| {
            written += 1;
            Err(io::ErrorKind::WouldBlock.into())
        });
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(written, 1);
    }
}
