//! IP fragments of the guest, collected until the packet is whole (RFC 791 3.2, RFC 8200 4.5).
//! etherparse does the collecting; here are the bounds, because reassembly has been the soft spot
//! of every user-space stack.

use etherparse::defrag::IpDefragPool;
use etherparse::{IpNumber, SlicedPacket};

use super::vnet::{Checksum, Offload};
use super::{Duration, Instant};

/// How long a packet may stay incomplete.
const PATIENCE: Duration = Duration::from_secs(10);
/// Fragments taken within [`PATIENCE`]; more are dropped until the oldest are forgotten. Times 64
/// KiB is the memory that a hostile guest can hold, for that long.
const MAX_PENDING: usize = 512;

/// IPv6's minimum MTU (RFC 8200 5).
const HONEST_FRAGMENT_LEN: usize = 1280;

pub struct Reassembly {
    pool: IpDefragPool<Instant, ()>,
    pending: usize,
    forget_at: Option<Instant>,
}

impl Default for Reassembly {
    fn default() -> Self {
        Self {
            pool: IpDefragPool::new(),
            pending: 0,
            forget_at: None,
        }
    }
}

impl Reassembly {
    /// A reassembled packet has no offloads; fragments carry complete checksums and the host's
    /// kernel makes new ones.
    pub const OFFLOAD: Offload = Offload {
        checksum: Checksum::Unchecked,
        super_frame: None,
    };

    /// Adds a fragment. Returns protocol and payload of the packet that it completes.
    pub fn add(&mut self, fragment: &SlicedPacket, now: Instant) -> Option<(IpNumber, Vec<u8>)> {
        if self.forget_at.is_some_and(|at| now >= at) {
            self.pool.retain(|started| now < *started + PATIENCE);
            self.pending = 0;
            self.forget_at = None;
        }
        if self.pending >= MAX_PENDING {
            return None;
        }
        self.pending += 1;
        self.forget_at.get_or_insert(now + PATIENCE);
        let whole = self
            .pool
            .process_sliced_packet(fragment, now, ())
            .ok()
            .flatten()?;
        // What was completed holds no memory any more. Fragments of an honest sender are about this
        // long.
        let fragments = whole.payload.len().div_ceil(HONEST_FRAGMENT_LEN);
        self.pending = self.pending.saturating_sub(fragments);
        Some((whole.ip_number, whole.payload))
    }
}
