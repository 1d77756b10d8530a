//! The device that smoltcp talks to: one received IP packet in, TCP segments out as frames for the
//! tap.
//!
//! smoltcp is told a link of 64 KiB and hands over super-frames; here they get their Ethernet and
//! virtio headers, the pseudo-header sum in place of a checksum, and the segment size that the
//! guest asked for. The size is ours to set because smoltcp 0.14 passes it on for IPv4 only. The
//! MSS option of a SYN is rewritten to what the guest's link holds.

use std::num::NonZeroUsize;

use smoltcp::phy::{Checksum as Verify, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::phy::{RxToken, TxToken};

use super::wire_state::WireState;
use crate::core::Instant;
use crate::core::link::{Hardware, Link, pseudo_header_sum};
use crate::core::packet::ETHERNET_HEADER_LEN;
use crate::core::vnet::{Checksum, Offload, Segmentation, SuperFrame, VNET_HEADER_LEN};

/// Longest IP packet, by the width of its length field (RFC 791 3.1).
const MAX_IP_LEN: usize = 65535;
/// Bytes in front of the IP header.
pub const HEAD_LEN: usize = VNET_HEADER_LEN + ETHERNET_HEADER_LEN;
/// A buffer of this size holds any frame that smoltcp makes.
pub const SCRATCH_LEN: usize = HEAD_LEN + MAX_IP_LEN;

const IPV4_HEADER_LEN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;
const TCP_HEADER_LEN: usize = 20;
const TCP_PROTOCOL: u8 = 6;
/// Where the checksum is in a TCP header (RFC 9293 3.1).
const TCP_CHECKSUM_OFFSET: usize = 16;
const TCP_FLAG_SYN: u8 = 0x02;
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;

/// What the MTU of the guest's link makes of segments and super-frames.
#[derive(Clone, Copy, Debug)]
pub struct SegmentSizes {
    mtu: u16,
}

impl SegmentSizes {
    /// `mtu` is the largest IP packet of the guest's link, at least 1280 bytes (RFC 8200 5).
    pub fn new(mtu: u16) -> Self {
        Self { mtu }
    }

    /// The MSS to announce (RFC 6691).
    fn mss(self, ip_header_len: usize) -> u16 {
        self.mtu - (ip_header_len + TCP_HEADER_LEN) as u16
    }

    /// Largest super-frame: a whole number of segments, since a short last one costs the guest as
    /// much as a full one.
    fn super_frame(self, ip_header_len: usize) -> Option<NonZeroUsize> {
        let headers = ip_header_len + TCP_HEADER_LEN;
        let mss = usize::from(self.mss(ip_header_len));
        NonZeroUsize::new(headers + (MAX_IP_LEN - headers) / mss * mss)
    }
}

/// The device for one turn of the engine: at most one packet in, any number of segments out.
pub struct SmoltcpDevice<'a, L> {
    pub inbound: Option<&'a [u8]>,
    pub link: &'a mut L,
    /// At least [`SCRATCH_LEN`] bytes.
    pub scratch: &'a mut [u8],
    pub hardware: Hardware,
    /// Takes note of what is sent, and knows the segment size that the guest asked for.
    pub wire: &'a mut WireState,
    pub segment_sizes: SegmentSizes,
}

impl<L: Link> Device for SmoltcpDevice<'_, L> {
    type RxToken<'t>
        = Received<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Outgoing<'t, L>
    where
        Self: 't;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, Outgoing<'_, L>)> {
        let packet = self.inbound.take()?;
        Some((Received(packet), self.outgoing()))
    }

    /// Refuses while the device is full: smoltcp then keeps the segment and nothing is lost.
    fn transmit(&mut self, _now: Instant) -> Option<Outgoing<'_, L>> {
        self.link.has_room().then(|| self.outgoing())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::ignored();
        checksum.ipv4 = Verify::Tx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MAX_IP_LEN;
        capabilities.checksum = checksum;
        capabilities.segmentation.tcpv4 = self.segment_sizes.super_frame(IPV4_HEADER_LEN);
        capabilities.segmentation.tcpv6 = self.segment_sizes.super_frame(IPV6_HEADER_LEN);
        capabilities
    }
}

impl<'a, L> SmoltcpDevice<'a, L> {
    fn outgoing(&mut self) -> Outgoing<'_, L> {
        Outgoing {
            link: self.link,
            scratch: self.scratch,
            hardware: self.hardware,
            wire: self.wire,
            segment_sizes: self.segment_sizes,
        }
    }
}

pub struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, parse: F) -> R {
        parse(self.0)
    }
}

pub struct Outgoing<'a, L> {
    link: &'a mut L,
    scratch: &'a mut [u8],
    hardware: Hardware,
    wire: &'a mut WireState,
    segment_sizes: SegmentSizes,
}

impl<L: Link> TxToken for Outgoing<'_, L> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, emit: F) -> R {
        let frame = &mut self.scratch[..HEAD_LEN + len];
        let result = emit(&mut frame[HEAD_LEN..]);
        if finish(frame, self.hardware, self.wire, self.segment_sizes).is_some() {
            self.link.transmit(frame, &[]);
        }
        result
    }
}

/// Writes everything around the IP packet in `frame[HEAD_LEN..]`. `None` when it is no TCP segment.
pub fn finish(
    frame: &mut [u8],
    hardware: Hardware,
    wire: &mut WireState,
    segment_sizes: SegmentSizes,
) -> Option<()> {
    let (head, ip) = frame.split_at_mut(HEAD_LEN);
    let (ip_header_len, protocol, addresses, kind, ether_type) = match ip.first()? >> 4 {
        4 => (IPV4_HEADER_LEN, ip[9], 12..20, Segmentation::Tcp4, [8, 0]),
        _ => (
            IPV6_HEADER_LEN,
            ip[6],
            8..40,
            Segmentation::Tcp6,
            [0x86, 0xdd],
        ),
    };
    if protocol != TCP_PROTOCOL {
        return None;
    }
    let (ip_header, segment) = ip.split_at_mut(ip_header_len);
    wire.from_us(segment);
    let smss = wire.smss;
    let tcp_header_len = usize::from(segment[12] >> 4) * 4;
    if segment[13] & TCP_FLAG_SYN != 0 {
        rewrite_mss(
            &mut segment[TCP_HEADER_LEN..tcp_header_len],
            segment_sizes.mss(ip_header_len),
        );
    }
    let (source, destination) =
        ip_header[addresses].split_at(if ip_header_len == 20 { 4 } else { 16 });
    let sum = pseudo_header_sum(source, destination, segment.len() as u32, TCP_PROTOCOL);
    segment[TCP_CHECKSUM_OFFSET..TCP_CHECKSUM_OFFSET + 2].copy_from_slice(&sum.to_be_bytes());

    let payload_len = segment.len() - tcp_header_len;
    let start = ETHERNET_HEADER_LEN + ip_header_len;
    let offload = Offload {
        checksum: Checksum::Partial {
            start: start as u16,
            offset: TCP_CHECKSUM_OFFSET as u16,
        },
        super_frame: (payload_len > usize::from(smss.get())).then_some(SuperFrame {
            kind,
            size: smss,
            header_len: (start + tcp_header_len) as u16,
        }),
    };
    offload.write(head);
    let ethernet = &mut head[VNET_HEADER_LEN..];
    ethernet[..6].copy_from_slice(&hardware.guests);
    ethernet[6..12].copy_from_slice(&hardware.ours);
    ethernet[12..].copy_from_slice(&ether_type);
    Some(())
}

/// Sets the MSS option in the options of a SYN that smoltcp wrote.
fn rewrite_mss(mut options: &mut [u8], mss: u16) {
    loop {
        match options {
            [OPTION_END, ..] | [] => return,
            [OPTION_NOP, rest @ ..] => options = rest,
            [OPTION_MSS, 4, high, low, ..] => {
                [*high, *low] = mss.to_be_bytes();
                return;
            }
            [_, len, ..] => {
                let len = usize::from(*len).max(2);
                let Some((_, rest)) = options.split_at_mut_checked(len) else {
                    return;
                };
                options = rest;
            }
            [_] => return,
        }
    }
}
