//! The `virtio_net_hdr` in front of every frame of a tap opened with IFF_VNET_HDR: what is left for
//! the other side to do (finish a checksum, cut a super-frame into segments).
//!
//! Layout, native byte order (linux/virtio_net.h, kernel 2.6.26; UDP_L4 since 6.2):
//!
//! ```text
//! 0      1         2        4         6           8            10
//! flags  gso_type  hdr_len  gso_size  csum_start  csum_offset
//! ```

use std::num::NonZeroU16;

/// Length of the header in bytes (TUNSETVNETHDRSZ default).
pub const VNET_HEADER_LEN: usize = 10;

const NEEDS_CHECKSUM: u8 = 1;
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
/// The segments carry CWR on the first one only (RFC 3168); a flag on top of the GSO type.
const GSO_ECN: u8 = 0x80;

/// Who answers for the transport checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// The field is complete and nobody has checked it.
    Unchecked,
    /// The sender vouches for the data.
    Valid,
    /// The field holds the pseudo-header sum; whoever puts the frame on a wire sums from byte
    /// `start` of the frame to its end and stores the result at `start + offset`.
    Partial { start: u16, offset: u16 },
}

/// What a super-frame is to be cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segmentation {
    Tcp4,
    Tcp6,
    Udp,
}

/// A super-frame: payload of `size` bytes per segment behind `header_len` bytes of headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuperFrame {
    pub kind: Segmentation,
    pub size: NonZeroU16,
    pub header_len: u16,
}

/// The decoded header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offload {
    pub checksum: Checksum,
    pub super_frame: Option<SuperFrame>,
}

impl Offload {
    /// Splits a frame as read from the tap. `None` when it is too short or asks for a segmentation
    /// nobody offered.
    pub fn split(frame: &[u8]) -> Option<(Self, &[u8])> {
        let (header, frame) = frame.split_at_checked(VNET_HEADER_LEN)?;
        let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let checksum = match header[0] {
            flags if flags & NEEDS_CHECKSUM != 0 => Checksum::Partial {
                start: word(6),
                offset: word(8),
            },
            flags if flags & DATA_VALID != 0 => Checksum::Valid,
            _ => Checksum::Unchecked,
        };
        let kind = match header[1] & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCP4 => Some(Segmentation::Tcp4),
            GSO_TCP6 => Some(Segmentation::Tcp6),
            GSO_UDP => Some(Segmentation::Udp),
            _ => return None,
        };
        let super_frame = match kind {
            Some(kind) => Some(SuperFrame {
                kind,
                size: NonZeroU16::new(word(4))?,
                header_len: word(2),
            }),
            None => None,
        };
        Some((
            Self {
                checksum,
                super_frame,
            },
            frame,
        ))
    }

    /// Writes the header into the first [`VNET_HEADER_LEN`] bytes of `frame`.
    pub fn write(&self, frame: &mut [u8]) {
        let mut header = [0; VNET_HEADER_LEN];
        match self.checksum {
            Checksum::Unchecked => {}
            Checksum::Valid => header[0] = DATA_VALID,
            Checksum::Partial { start, offset } => {
                header[0] = NEEDS_CHECKSUM;
                header[6..8].copy_from_slice(&start.to_ne_bytes());
                header[8..10].copy_from_slice(&offset.to_ne_bytes());
            }
        }
        if let Some(super_frame) = self.super_frame {
            header[1] = match super_frame.kind {
                Segmentation::Tcp4 => GSO_TCP4,
                Segmentation::Tcp6 => GSO_TCP6,
                Segmentation::Udp => GSO_UDP,
            };
            header[2..4].copy_from_slice(&super_frame.header_len.to_ne_bytes());
            header[4..6].copy_from_slice(&super_frame.size.get().to_ne_bytes());
        }
        frame[..VNET_HEADER_LEN].copy_from_slice(&header);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn offloads() -> impl Strategy<Value = Offload> {
        let checksum = prop_oneof![
            Just(Checksum::Unchecked),
            Just(Checksum::Valid),
            (any::<u16>(), any::<u16>())
                .prop_map(|(start, offset)| Checksum::Partial { start, offset }),
        ];
        let kind = prop_oneof![
            Just(Segmentation::Tcp4),
            Just(Segmentation::Tcp6),
            Just(Segmentation::Udp)
        ];
        let super_frame = proptest::option::of((kind, 1u16.., any::<u16>()).prop_map(
            |(kind, size, header_len)| SuperFrame {
                kind,
                size: NonZeroU16::new(size).expect("the range starts at 1"),
                header_len,
            },
        ));
        (checksum, super_frame).prop_map(|(checksum, super_frame)| Offload {
            checksum,
            super_frame,
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(offload in offloads(), payload: Vec<u8>) {
            let mut frame = vec![0xaa; VNET_HEADER_LEN];
            frame.extend(&payload);
            offload.write(&mut frame);
            prop_assert_eq!(Offload::split(&frame), Some((offload, &payload[..])));
        }

        #[test]
        fn any_bytes_are_split_or_refused(frame: Vec<u8>) {
            if let Some((_, rest)) = Offload::split(&frame) {
                prop_assert_eq!(rest.len() + VNET_HEADER_LEN, frame.len());
            }
        }
    }

    #[test]
    fn a_super_frame_without_a_size_is_refused() {
        let mut frame = [0; 20];
        frame[1] = GSO_TCP4;
        assert_eq!(Offload::split(&frame), None);
    }
}
