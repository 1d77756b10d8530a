//! Waiting a moment with what there is no descriptor for (`scarcity`).

use super::RETRY;
use crate::core::Instant;

/// A source of work that is not looked at for a moment: it is ready, but there is no descriptor for
/// what it would bring, so that the loop would spin.
#[derive(Debug, Default)]
pub struct Pause {
    until: Option<Instant>,
}

impl Pause {
    pub fn begin(&mut self, now: Instant) {
        self.until = Some(now + RETRY);
    }

    pub fn end(&mut self) {
        self.until = None;
    }

    pub fn is_on(&self) -> bool {
        self.until.is_some()
    }

    /// When it is over, if it is on.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    pub fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now >= until)
    }
}
