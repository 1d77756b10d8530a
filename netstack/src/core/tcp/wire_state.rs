//! What the wire has shown of a connection: the numbers that a kernel socket needs to carry on from
//! here, none of which smoltcp tells. Names are those of RFC 9293 3.3.1, seen from our side: SND is
//! towards the guest.

use std::num::NonZeroU16;

use etherparse::{TcpOptionElement, TcpOptionsIterator, TcpSlice};

/// MSS of a peer that announced none (RFC 9293 3.7.1).
const DEFAULT_MSS: NonZeroU16 = NonZeroU16::new(536).expect("not zero");
/// smoltcp takes no smaller MSS from a peer either.
const MIN_MSS: u16 = 48;
/// Where the options begin in a TCP header (RFC 9293 3.1).
const OPTIONS_OFFSET: usize = 20;
/// Where the flags are in a TCP header, and which of them is FIN (RFC 9293 3.1).
const FLAGS_OFFSET: usize = 13;
const FLAG_FIN: u8 = 0x01;
/// Largest window shift (RFC 7323 2.3).
const MAX_SHIFT: u8 = 14;

/// The numbers. Meaningless before both SYNs have been seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireState {
    /// SMSS: what the guest announced (RFC 5681).
    pub smss: NonZeroU16,
    /// Shift of the guest's windows, if it announced one.
    pub guest_shift: Option<u8>,
    /// Shift of our windows, if we announced one.
    pub our_shift: Option<u8>,
    pub sack_permitted: bool,
    /// Our initial sequence number.
    pub iss: u32,
    /// The guest's.
    pub irs: u32,
    pub snd_una: u32,
    pub snd_nxt: u32,
    /// In bytes, after scaling.
    pub snd_wnd: u32,
    /// The largest that the guest ever had.
    pub max_snd_wnd: u32,
    /// What we last acknowledged, if anything yet, and how much from there on we offered to take,
    /// in bytes.
    pub last_ack: Option<u32>,
    pub last_window: u32,
}

impl Default for WireState {
    fn default() -> Self {
        Self {
            smss: DEFAULT_MSS,
            guest_shift: None,
            our_shift: None,
            sack_permitted: false,
            iss: 0,
            irs: 0,
            snd_una: 0,
            snd_nxt: 0,
            snd_wnd: 0,
            max_snd_wnd: 0,
            last_ack: None,
            last_window: 0,
        }
    }
}

impl WireState {
    /// Takes note of a segment of the guest.
    pub fn from_guest(&mut self, tcp: &TcpSlice) {
        let window = u32::from(tcp.window_size());
        if tcp.syn() {
            *self = Self {
                irs: tcp.sequence_number(),
                snd_wnd: window,
                max_snd_wnd: window,
                // A SYN-ACK answers our SYN.
                iss: self.iss,
                snd_una: self.snd_una,
                snd_nxt: self.snd_nxt,
                our_shift: self.our_shift,
                last_ack: self.last_ack,
                last_window: self.last_window,
                ..Self::default()
            };
            for option in tcp.options_iterator() {
                match option {
                    Ok(TcpOptionElement::MaximumSegmentSize(mss)) if mss != 0 => {
                        self.smss = NonZeroU16::new(mss.max(MIN_MSS)).unwrap_or(DEFAULT_MSS);
                    }
                    Ok(TcpOptionElement::WindowScale(shift)) => {
                        self.guest_shift = Some(shift.min(MAX_SHIFT));
                    }
                    Ok(TcpOptionElement::SelectiveAcknowledgementPermitted) => {
                        self.sack_permitted = true;
                    }
                    _ => {}
                }
            }
            if self.guest_shift.unwrap_or(0) == 0 {
                self.smss = self.smss.min(half_of(tcp.window_size()));
            }
        } else {
            self.snd_wnd = window << self.guest_shift.unwrap_or(0);
            self.max_snd_wnd = self.max_snd_wnd.max(self.snd_wnd);
        }
        let ack = tcp.acknowledgment_number();
        let is_news = ack.wrapping_sub(self.snd_una) as i32 > 0;
        let is_sound = self.snd_nxt.wrapping_sub(ack) as i32 >= 0;
        if tcp.ack() && is_news && is_sound {
            self.snd_una = ack;
        }
    }

    /// A window of ours in bytes, as a header carries it.
    pub fn our_window(&self, bytes: u32) -> u16 {
        u16::try_from(bytes >> self.our_shift.unwrap_or(0)).unwrap_or(u16::MAX)
    }

    /// A window of the guest in bytes, as a header carries it.
    pub fn guest_window(&self, bytes: u32) -> u16 {
        u16::try_from(bytes >> self.guest_shift.unwrap_or(0)).unwrap_or(u16::MAX)
    }

    /// A copy of `packet`, which carries `tcp`, without its FIN, if it has one and reaches beyond
    /// the window that we offered. A correct guest sends such a thing when the window's right edge
    /// has moved back by less than a unit of its scale while the segment was on its way; it repeats
    /// what is not acknowledged, the FIN with it.
    pub fn hold_back_fin(&self, packet: &[u8], tcp: &TcpSlice) -> Option<Vec<u8>> {
        let end = tcp
            .sequence_number()
            .wrapping_add(tcp.payload().len() as u32);
        let right_edge = self.right_edge()?;
        let is_early = tcp.fin() && end.wrapping_sub(right_edge) as i32 > 0;
        is_early.then(|| {
            let mut copy = packet.to_vec();
            copy[header_len(packet) + FLAGS_OFFSET] &= !FLAG_FIN;
            copy
        })
    }

    /// A copy of `packet`, a SYN of the guest of which note was taken, with the MSS that it is
    /// sent, if it announced a larger one.
    pub fn bound_mss(&self, packet: &[u8], tcp: &TcpSlice) -> Option<Vec<u8>> {
        if !tcp.syn() {
            return None;
        }
        let value = mss_value(tcp.options())?;
        let announced = u16::from_be_bytes([tcp.options()[value], tcp.options()[value + 1]]);
        (announced > self.smss.get()).then(|| {
            let mut copy = packet.to_vec();
            let at = header_len(packet) + OPTIONS_OFFSET + value;
            copy[at..at + 2].copy_from_slice(&self.smss.get().to_be_bytes());
            copy
        })
    }

    /// The sequence number that the guest may not pass. `None` before we have acknowledged
    /// anything.
    pub fn right_edge(&self) -> Option<u32> {
        Some(self.last_ack?.wrapping_add(self.last_window))
    }

    /// Takes note of a segment that we send, from its TCP header on.
    pub fn from_us(&mut self, segment: &[u8]) {
        let Ok(tcp) = TcpSlice::from_slice(segment) else {
            return;
        };
        let mut window = u32::from(tcp.window_size());
        let mut end = tcp
            .sequence_number()
            .wrapping_add(tcp.payload().len() as u32)
            .wrapping_add(u32::from(tcp.fin()));
        if tcp.syn() {
            end = end.wrapping_add(1);
            self.iss = tcp.sequence_number();
            self.snd_una = self.iss;
            self.snd_nxt = end;
            self.our_shift = tcp.options_iterator().find_map(|option| match option {
                Ok(TcpOptionElement::WindowScale(shift)) => Some(shift),
                _ => None,
            });
        } else {
            if end.wrapping_sub(self.snd_nxt) as i32 > 0 {
                self.snd_nxt = end;
            }
            window <<= self.our_shift.unwrap_or(0);
        }
        if tcp.ack() {
            self.last_ack = Some(tcp.acknowledgment_number());
            self.last_window = window;
        }
    }
}

/// Largest segment for a peer whose windows are not scaled and who offers `window` bytes when it
/// opens: half of them, unless they are few (RFC 9293 3.8.6.2.1; Linux, tcp_bound_to_half_wnd).
/// Once it was sent all of its window in one segment, Linux comes to offer a few bytes and no more,
/// for ever, since what is left of the window and another such segment do not fit.
fn half_of(window: u16) -> NonZeroU16 {
    let half = match window {
        0..=536 => window,
        _ => window / 2,
    };
    NonZeroU16::new(half.max(MIN_MSS)).unwrap_or(DEFAULT_MSS)
}

/// The segment in a whole IP packet.
pub fn transport(packet: &[u8]) -> Option<TcpSlice<'_>> {
    TcpSlice::from_slice(packet.get(header_len(packet)..)?).ok()
}

/// Where the value of the MSS is among a segment's options.
fn mss_value(options: &[u8]) -> Option<usize> {
    let mut elements = TcpOptionsIterator::from_slice(options);
    elements.position(|element| matches!(element, Ok(TcpOptionElement::MaximumSegmentSize(_))))?;
    Some(options.len() - elements.rest().len() - size_of::<u16>())
}

/// Length of the IP header of `packet`.
fn header_len(packet: &[u8]) -> usize {
    match packet.first() {
        Some(first) if first >> 4 == 4 => usize::from(first & 0xf) * 4,
        _ => 40,
    }
}

#[cfg(test)]
mod tests {
    use etherparse::{PacketBuilder, TcpOptionElement};

    use super::*;

    fn syn(options: &[TcpOptionElement], window: u16) -> Vec<u8> {
        let builder = PacketBuilder::ipv4([10, 0, 2, 100], [198, 51, 100, 7], 64)
            .tcp(40000, 80, 1, window)
            .syn()
            .options(options)
            .unwrap();
        let mut packet = Vec::new();
        builder.write(&mut packet, &[]).unwrap();
        packet
    }

    fn announced(packet: &[u8]) -> Option<u16> {
        let tcp = transport(packet)?;
        tcp.options_iterator().find_map(|option| match option {
            Ok(TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
            _ => None,
        })
    }

    #[test]
    fn segments_are_half_an_unscaled_window_at_most() {
        use TcpOptionElement::{MaximumSegmentSize, Noop, WindowScale};
        let cases: [(&[TcpOptionElement], u16, u16, Option<u16>); 9] = [
            (&[MaximumSegmentSize(65480)], 65535, 32767, Some(32767)),
            (
                &[Noop, Noop, MaximumSegmentSize(65480)],
                65535,
                32767,
                Some(32767),
            ),
            (
                &[MaximumSegmentSize(65480), WindowScale(1)],
                65535,
                65480,
                None,
            ),
            // A small receive buffer needs no scale.
            (
                &[MaximumSegmentSize(1440), WindowScale(0)],
                1152,
                576,
                Some(576),
            ),
            (&[MaximumSegmentSize(1440)], 500, 500, Some(500)),
            (&[MaximumSegmentSize(1440)], 0, 48, Some(48)),
            (&[MaximumSegmentSize(1460)], 64240, 1460, None),
            (&[], 64240, 536, None),
            (&[], 600, 300, None),
        ];
        for (options, window, smss, bounded) in cases {
            let packet = syn(options, window);
            let tcp = transport(&packet).unwrap();
            let mut wire = WireState::default();
            wire.from_guest(&tcp);
            assert_eq!(wire.smss.get(), smss, "{options:?}");
            let copy = wire.bound_mss(&packet, &tcp);
            let told = copy.as_deref().map(|copy| announced(copy).unwrap());
            assert_eq!(told, bounded, "{options:?}");
        }
    }

    #[test]
    fn options_that_are_none_have_no_mss() {
        for options in [
            &[][..],
            &[2],
            &[2, 4, 1],
            &[2, 3, 1, 1],
            &[8, 0, 0],
            &[1, 0, 2, 4, 1, 1],
        ] {
            assert_eq!(mss_value(options), None, "{options:?}");
        }
        assert_eq!(mss_value(&[1, 3, 3, 7, 2, 4, 1, 1]), Some(6));
    }
}
