//! Datagrams that can go on in one call: those that follow each other between the same two ends,
//! all of one size but the last. The kernel cuts them again where they are used (UDP_SEGMENT
//! towards the host, a UDP super-frame towards the guest), so nobody can tell.
//!
//! Nothing waits here beyond a turn: what a turn has gathered leaves before it ends.

use std::num::NonZeroU16;

/// Datagrams in one call (UDP_MAX_SEGMENTS before Linux 6.9).
const MOST: usize = 64;
/// Bytes in one call, so that they and their headers fit in an IP packet.
const MOST_BYTES: usize = 60_000;

/// Datagrams in their order, all of which belong to `K`.
#[derive(Debug)]
pub struct Gathered<K> {
    key: Option<K>,
    bytes: Vec<u8>,
    /// Bytes of each but the last, which may be shorter.
    size: usize,
    count: usize,
}

impl<K> Default for Gathered<K> {
    fn default() -> Self {
        Self {
            key: None,
            bytes: Vec::new(),
            size: 0,
            count: 0,
        }
    }
}

impl<K: Copy + PartialEq> Gathered<K> {
    /// Takes a datagram, or several of `segment` bytes. What cannot wait together with it is sent
    /// by `send` before, and what cannot wait at all is sent, too: so the order stays.
    pub fn add(
        &mut self,
        key: K,
        payload: &[u8],
        segment: Option<NonZeroU16>,
        mut send: impl FnMut(K, &[u8], Option<NonZeroU16>),
    ) {
        let is_one = segment.is_none();
        if is_one && self.push(key, payload) {
            return;
        }
        self.flush(&mut send);
        if !is_one || !self.push(key, payload) {
            send(key, payload, segment);
        }
    }

    /// Sends what is here.
    pub fn flush(&mut self, mut send: impl FnMut(K, &[u8], Option<NonZeroU16>)) {
        if let Some(key) = self.key.take() {
            let size = u16::try_from(self.size).ok().and_then(NonZeroU16::new);
            send(key, &self.bytes, size.filter(|_| self.count > 1));
            self.bytes.clear();
            self.count = 0;
        }
    }

    /// False if `datagram` cannot go together with what is here. An empty one has no place in a row
    /// of bytes, and a large one gains nothing.
    fn push(&mut self, key: K, datagram: &[u8]) -> bool {
        let fits = match self.key {
            None => true,
            Some(own) => {
                let is_open = self.bytes.len() == self.count * self.size && self.count < MOST;
                own == key && is_open && datagram.len() <= self.size
            }
        };
        let len = self.bytes.len() + datagram.len();
        if !fits || datagram.is_empty() || len > MOST_BYTES {
            return false;
        }
        if self.key.is_none() {
            self.size = datagram.len();
        }
        self.key = Some(key);
        self.bytes.extend_from_slice(datagram);
        self.count += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Sent = (u8, Vec<u8>, Option<u16>);

    fn gather(datagrams: &[(u8, usize)]) -> Vec<Sent> {
        let mut sent = Vec::new();
        let mut send = |key, bytes: &[u8], segment: Option<NonZeroU16>| {
            sent.push((key, bytes.to_vec(), segment.map(NonZeroU16::get)));
        };
        let mut gathered = Gathered::default();
        for (number, (key, len)) in datagrams.iter().enumerate() {
            gathered.add(*key, &vec![number as u8; *len], None, &mut send);
        }
        gathered.flush(&mut send);
        gathered.flush(&mut send);
        sent
    }

    fn sizes(datagrams: &[(u8, usize)]) -> Vec<(usize, Option<u16>)> {
        let sent = gather(datagrams);
        let size = |(_, bytes, segment): Sent| (bytes.len(), segment);
        sent.into_iter().map(size).collect()
    }

    #[test]
    fn datagrams_of_one_size_go_together_and_a_shorter_one_is_the_last() {
        assert_eq!(sizes(&[(1, 100)]), [(100, None)]);
        assert_eq!(sizes(&[(1, 100), (1, 100)]), [(200, Some(100))]);
        let shorter = [(1, 100), (1, 100), (1, 40), (1, 40)];
        assert_eq!(sizes(&shorter), [(240, Some(100)), (40, None)]);
        assert_eq!(sizes(&[(1, 40), (1, 100)]), [(40, None), (100, None)]);
        assert_eq!(sizes(&[(1, 40), (2, 40)]), [(40, None), (40, None)]);
    }

    #[test]
    fn what_cannot_be_in_a_row_goes_alone_and_in_its_place() {
        assert_eq!(
            sizes(&[(1, 9), (1, 0), (1, 9)]),
            [(9, None), (0, None), (9, None)]
        );
        assert_eq!(sizes(&[(1, 65_507), (1, 9)]), [(65_507, None), (9, None)]);
        assert_eq!(sizes(&[(1, 1); 65]), [(64, Some(1)), (1, None)]);
        let large = sizes(&[(1, 32_000); 2]);
        assert_eq!(large, [(32_000, None), (32_000, None)]);
    }

    #[test]
    fn what_comes_in_segments_goes_on_in_segments_after_what_was_before() {
        let mut sent = Vec::new();
        let mut send = |(), bytes: &[u8], segment: Option<NonZeroU16>| {
            sent.push((bytes.len(), segment.map(NonZeroU16::get)));
        };
        let mut gathered = Gathered::default();
        gathered.add((), &[0; 10], None, &mut send);
        gathered.add((), &[0; 30], NonZeroU16::new(10), &mut send);
        gathered.add((), &[0; 10], None, &mut send);
        gathered.flush(&mut send);
        assert_eq!(sent, [(10, None), (30, Some(10)), (10, None)]);
    }

    proptest! {
        /// Cut again, it is what came: the same datagrams, in order, each with its key.
        #[test]
        fn nothing_is_lost_or_changed(
            datagrams in prop::collection::vec((0..3u8, prop_oneof![0..4usize, Just(1400), 0..70_000usize]), 0..100)
        ) {
            let mut cut = Vec::new();
            for (key, bytes, segment) in gather(&datagrams) {
                prop_assert!(bytes.len() <= MOST_BYTES || segment.is_none());
                match segment {
                    None => cut.push((key, bytes)),
                    Some(size) => {
                        prop_assert!(bytes.len().div_ceil(size.into()) <= MOST);
                        cut.extend(bytes.chunks(size.into()).map(|one| (key, one.to_vec())));
                    }
                }
            }
            let came = datagrams.iter().enumerate();
            let came: Vec<_> = came.map(|(number, (key, len))| (*key, vec![number as u8; *len])).collect();
            prop_assert_eq!(cut, came);
        }
    }
}
