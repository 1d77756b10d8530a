//! Encodes netlink messages of the families that have no crate of their own here: netfilter's and
//! the socket table's.
//!
//! A message is a header, its family's fixed part, and attributes, which nest (RFC 3549 2.2).
//! Lengths are filled in when a message or nest ends. What is encoded here is our own and small:
//! lengths do not overflow.

use rtnetlink::packet_core::NLM_F_ACK;

/// Messages, one after another, with ascending sequence numbers.
#[derive(Debug)]
pub struct Encoder {
    bytes: Vec<u8>,
    next_sequence: u32,
    awaited: Option<u32>,
}

impl Encoder {
    /// The first message gets number `first_sequence`.
    pub fn new(first_sequence: u32) -> Self {
        Self {
            bytes: Vec::with_capacity(TYPICAL_LEN),
            next_sequence: first_sequence,
            awaited: None,
        }
    }

    /// Adds a message of type `kind` with `flags` (`NLM_F_*`); `body` adds the fixed part
    /// ([`put`](Self::put)), then the attributes.
    pub fn message(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.put(&[0; 4]);
        self.put(&kind.to_ne_bytes());
        self.put(&flags.to_ne_bytes());
        self.put(&self.next_sequence.to_ne_bytes());
        // The port: the kernel knows who is asking.
        self.put(&[0; 4]);
        if flags & NLM_F_ACK != 0 {
            self.awaited = Some(self.next_sequence);
        }
        self.next_sequence += 1;
        body(self);
        let len = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// Adds bytes as they are.
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Adds an attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.value(kind, |encoder| encoder.put(value));
    }

    /// Adds a number in network byte order, as netfilter has them.
    pub fn u32_be(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// Adds a text with its terminating NUL.
    pub fn string(&mut self, kind: u16, value: &str) {
        self.value(kind, |encoder| {
            encoder.put(value.as_bytes());
            encoder.put(&[0]);
        });
    }

    /// Adds an attribute that is made of those that `body` adds.
    pub fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        self.value(kind | NLA_F_NESTED, body);
    }

    /// Adds an attribute whose bytes `body` puts. Its length counts its header but not its padding.
    pub fn value(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.put(&[0; 2]);
        self.put(&kind.to_ne_bytes());
        body(self);
        let len = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.bytes
            .resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }

    /// The number of the last message.
    pub fn last_sequence(&self) -> u32 {
        self.next_sequence - 1
    }

    /// The number of the last message that asks for an acknowledgement.
    pub fn awaited(&self) -> Option<u32> {
        self.awaited
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A transaction that changes one set element fits.
const TYPICAL_LEN: usize = 256;
const ALIGN: usize = 4;
/// linux/netlink.h.
const NLA_F_NESTED: u16 = 1 << 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_count_headers_but_no_padding() {
        let mut encoder = Encoder::new(9);
        encoder.message(0x0a02, 5, |encoder| {
            encoder.put(&[1, 0, 0, 0]);
            encoder.nest(2, |encoder| encoder.attribute(1, &[7]));
            encoder.string(3, "abc");
        });
        let expected = [
            &40u32.to_ne_bytes()[..],
            &0x0a02u16.to_ne_bytes(),
            &5u16.to_ne_bytes(),
            &9u32.to_ne_bytes(),
            &[0; 4],
            &[1, 0, 0, 0],
            &12u16.to_ne_bytes(),
            &0x8002u16.to_ne_bytes(),
            &5u16.to_ne_bytes(),
            &1u16.to_ne_bytes(),
            &[7, 0, 0, 0],
            &8u16.to_ne_bytes(),
            &3u16.to_ne_bytes(),
            b"abc\0",
        ];
        assert_eq!(encoder.bytes(), expected.concat());
        assert_eq!((encoder.last_sequence(), encoder.awaited()), (9, Some(9)));
    }
}
