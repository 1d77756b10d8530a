//! What hands flows over to the kernel in a helper, or why nothing does. The hand-over itself is
//! told in `hand_over`.

use tracing::{debug, info};

use crate::core::{Duration, Instant};
use crate::guest::NamespaceError;
use crate::guest::promotion::{Promoter, PromoterError};

/// The gate is not looked after more often than this, whatever the guest does to its firewall.
const HEAL_PAUSE: Duration = Duration::from_secs(1);

/// What hands flows over in the guest, if anything does, and what keeps it so. There is one in a
/// helper, lent to the shard whose flow it is about.
pub struct Promotion {
    pub promoter: Result<Promoter, PromotionUnavailable>,
    healed: Instant,
}

/// Why there is no promotion at all.
#[derive(Debug, thiserror::Error)]
pub enum PromotionUnavailable {
    #[error("--promote off")]
    Off,
    #[error(
        "it needs CAP_NET_ADMIN over the host, to which this network namespace belongs; --keep-host-net-admin keeps that"
    )]
    NeedsHost,
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error(transparent)]
    Failed(#[from] PromoterError),
}

impl Promotion {
    pub fn new(promoter: Result<Promoter, PromotionUnavailable>) -> Self {
        Self {
            promoter,
            healed: Instant::ZERO,
        }
    }

    /// Prepares the guest. Returns whether flows can be handed over.
    pub fn prepare(&mut self) -> bool {
        if let Ok(promoter) = &mut self.promoter
            && let Err(why) = promoter.prepare()
        {
            info!("connections stay in user space: {why}");
            self.promoter = Err(why.into());
        }
        self.promoter.is_ok()
    }

    /// Why no flow is handed over at all, if that is so.
    pub fn unavailable(&self) -> Option<&PromotionUnavailable> {
        self.promoter.as_ref().err()
    }

    /// Segments of promoted flows come out of the tap again: somebody has flushed the guest's
    /// firewall.
    pub fn heal(&mut self, now: Instant) {
        if let Ok(promoter) = &mut self.promoter
            && now >= self.healed + HEAL_PAUSE
        {
            self.healed = now;
            if let Err(error) = promoter.heal() {
                debug!(%error, "promoted connections stall");
            }
        }
    }
}
