//! Where a scenario's decisions come from: a seeded generator, or the bytes that a fuzzer made up.

/// A source of decisions. The same source gives the same scenario.
pub enum Entropy<'a> {
    /// State of an xorshift64* generator (G. Marsaglia, S. Vigna); never runs out.
    Seeded(u64),
    /// Runs out with the bytes, after which every decision is 0.
    Bytes(&'a [u8]),
}

impl Entropy<'_> {
    pub fn seeded(seed: u64) -> Entropy<'static> {
        // Seeds that differ in one bit start far apart (the finalizer of MurmurHash3, A. Appleby).
        let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
        state = (state ^ (state >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        Entropy::Seeded((state ^ (state >> 33)) | 1)
    }

    pub fn is_exhausted(&self) -> bool {
        matches!(self, Entropy::Bytes([]))
    }

    pub fn u8(&mut self) -> u8 {
        match self {
            Entropy::Seeded(state) => {
                *state ^= *state >> 12;
                *state ^= *state << 25;
                *state ^= *state >> 27;
                (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
            }
            Entropy::Bytes(bytes) => match bytes.split_first() {
                Some((first, rest)) => {
                    *bytes = rest;
                    *first
                }
                None => 0,
            },
        }
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.u8(), self.u8()])
    }

    pub fn u32(&mut self) -> u32 {
        u32::from(self.u16()) << 16 | u32::from(self.u16())
    }

    /// A number below `bound`, which must not be 0.
    pub fn below(&mut self, bound: usize) -> usize {
        if bound <= 256 {
            usize::from(self.u8()) % bound
        } else {
            self.u32() as usize % bound
        }
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn choose<T: Clone>(&mut self, options: &[T]) -> T {
        options[self.below(options.len())].clone()
    }
}
