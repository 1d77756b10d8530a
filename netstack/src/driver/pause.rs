//! Waiting a moment with what there is no descriptor for (`scarcity`).

use std::os::fd::AsFd;

use super::RETRY;
use super::poller::{Interest, Poller, Token};
use crate::core::Instant;

/// A source of work that is not looked at for a moment: it is ready, but there is no descriptor for
/// what it would bring, so that the loop would spin.
#[derive(Debug, Default)]
pub struct Pause {
    until: Option<Instant>,
}

impl Pause {
    /// Begins, for the one `source` that the poller knows by `token`: only its end is told.
    pub fn silence(&mut self, poller: &Poller, source: &impl AsFd, token: Token, now: Instant) {
        self.begin(now);
        let _ = poller.change(source, token, Interest::HangUp);
    }

    /// Ends, for the same, if it is over.
    pub fn wake(&mut self, poller: &Poller, source: &impl AsFd, token: Token, now: Instant) {
        if self.is_over(now) {
            match poller.change(source, token, Interest::Readable) {
                Ok(()) => self.end(),
                Err(_) => self.begin(now),
            }
        }
    }

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
