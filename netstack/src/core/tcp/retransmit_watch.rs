//! A second pair of eyes on segments in flight, because smoltcp 0.14 may lose its retransmission
//! timer for good:
//! - an ACK that closes the window over segments in flight turns the timer into the zero-window
//!   probe's, and the ACK that opens it again stops that one;
//! - the timer runs out while the window is closed: it is stopped, and the probe's is not started;
//! - three duplicate ACKs meet a FIN that is in flight alone: a fast retransmission is tried from
//!   an empty buffer.
//!
//! All of them need a guest that drops what fits its window. Linux does, when its memory does not
//! suffice for what it promised (TCPRcvQDrop), and at the edge of a closed window. The remedy is
//! [`super::Engine::remind`].

use crate::core::{Duration, Instant};

/// As the lower bound of RFC 6298 2.4, and the upper one of 2.5.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// When a connection that has something in flight, and no timer for it, is to be reminded.
#[derive(Clone, Copy, Debug)]
pub struct RetransmitWatch {
    due: Option<Instant>,
    pause: Duration,
}

impl Default for RetransmitWatch {
    fn default() -> Self {
        Self {
            due: None,
            pause: FIRST_PAUSE,
        }
    }
}

impl RetransmitWatch {
    /// Takes note whether the guest owes an acknowledgement and nothing is going to ask for it.
    /// Returns when to look again.
    pub fn watch(&mut self, forgotten: bool, now: Instant) -> Option<Instant> {
        if !forgotten {
            *self = Self::default();
        } else if self.due.is_none() {
            self.due = Some(now + self.pause);
        }
        self.due
    }

    /// Whether it is time to remind the engine; the next time comes after twice the pause.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.due.is_some_and(|due| due <= now);
        if is_due {
            self.due = None;
            self.pause = (self.pause * 2).min(LAST_PAUSE);
        }
        is_due
    }
}
