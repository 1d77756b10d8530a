//! When a flow leaves the engine for the kernel, and how the engine comes to rest for it.
//!
//! A flow *hauls* when it has moved much and is moving fast. It is then brought to rest in two
//! steps, neither of which loses or repeats a byte: first nothing more is taken from the host until
//! the guest has acknowledged all it was sent (`Resting`; what it holds back it is asked for); then
//! nothing more is said to the guest until it falls silent, so that hardly a frame is in flight at
//! the hand-over (`Muted`). Data of the guest goes on to be passed to the host all the while. If
//! rest does not come in time the flow goes on as before, and has to haul twice as much before the
//! next attempt.

use crate::core::{Duration, Instant};

/// Bytes a flow has moved, both ways, before it is worth handing over. Flows of less than 1 MiB
/// gain nothing from it and this many are not known to be more; below 256 KiB it costs requests.
const THRESHOLD: u64 = 256 * 1024;
/// Bytes within [`RATE_WINDOW`] that tell a hauling flow from a long-lived talker: about 50 Mbit/s.
const RATE_BYTES: u64 = 64 * 1024;
const RATE_WINDOW: Duration = Duration::from_millis(10);
/// How long to wait for the guest's acknowledgements.
const REST_PATIENCE: Duration = Duration::from_millis(200);
/// How long to wait before asking for them. Linux holds the last one back for 40 ms
/// (TCP_DELACK_MIN) now and then, as it expects more; others take up to 500 ms (RFC 9293 3.8.6.3).
const ACK_PATIENCE: Duration = Duration::from_millis(1);
/// A guest that has been silent for this long has nothing in flight: a round trip through the tap
/// takes less.
const SILENCE: Duration = Duration::from_micros(40);
/// Most that a muted guest is kept waiting; what is in flight then is written back by the driver.
const MUTE_PATIENCE: Duration = Duration::from_millis(1);

/// Whether flows are handed over at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Promote {
    /// When they haul.
    #[default]
    Auto,
    Off,
    /// As soon as they are established. For tests.
    Always,
}

/// Why a flow is not in the kernel (yet), for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotPromoted {
    /// It talks.
    Talking,
    /// Promotion is off or this system cannot do it.
    Off,
    /// It hauls, and is on its way.
    Leaving,
    /// The guest did not come to rest in time; more bytes are waited for.
    NoRest,
    /// The kernel refused a step, in these words; more bytes are waited for.
    Refused(String),
}

/// Why a flow was handed over, for status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Motive {
    /// It hauls.
    Hauling,
    /// Every flow is to be.
    Asked,
}

/// One flow's way towards promotion.
#[derive(Clone, Debug)]
pub struct PromotionPolicy {
    promote: Promote,
    threshold: u64,
    window_start: Instant,
    bytes_at_window_start: u64,
    stage: Stage,
    /// When it last began to rest.
    rested: Instant,
    not_promoted: NotPromoted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The engine serves the flow.
    Serving,
    /// Nothing is taken from the host. The guest is asked once for its acknowledgement.
    Resting {
        until: Instant,
        ask_at: Option<Instant>,
    },
    /// Nothing is said to the guest either.
    Muted {
        until: Instant,
        silent_since: Instant,
    },
}

impl PromotionPolicy {
    pub fn new(promote: Promote, now: Instant) -> Self {
        Self {
            promote,
            threshold: THRESHOLD,
            window_start: now,
            bytes_at_window_start: 0,
            stage: Stage::Serving,
            rested: now,
            not_promoted: match promote {
                Promote::Off => NotPromoted::Off,
                _ => NotPromoted::Talking,
            },
        }
    }

    pub fn stage(&self) -> Stage {
        self.stage
    }

    pub fn not_promoted(&self) -> NotPromoted {
        match self.stage {
            Stage::Serving => self.not_promoted.clone(),
            Stage::Resting { .. } | Stage::Muted { .. } => NotPromoted::Leaving,
        }
    }

    /// When it began the rest from which it leaves.
    pub fn rested(&self) -> Instant {
        self.rested
    }

    /// Why it leaves, if it does.
    pub fn motive(&self) -> Motive {
        match self.promote {
            Promote::Always => Motive::Asked,
            Promote::Auto | Promote::Off => Motive::Hauling,
        }
    }

    pub fn takes_from_host(&self) -> bool {
        self.stage == Stage::Serving
    }

    pub fn may_speak(&self) -> bool {
        !matches!(self.stage, Stage::Muted { .. })
    }

    /// Counts, and starts to rest when the flow hauls and is `able` to leave. `bytes` is all it
    /// ever moved.
    pub fn note(&mut self, bytes: u64, able: bool, now: Instant) {
        if self.promote == Promote::Off || self.stage != Stage::Serving {
            return;
        }
        let hauls = match self.promote {
            Promote::Always => true,
            _ => {
                if now >= self.window_start + RATE_WINDOW {
                    self.window_start = now;
                    self.bytes_at_window_start = bytes;
                }
                bytes >= self.threshold && bytes - self.bytes_at_window_start >= RATE_BYTES
            }
        };
        if hauls && able {
            self.rested = now;
            self.stage = Stage::Resting {
                until: now + REST_PATIENCE,
                ask_at: Some(now + ACK_PATIENCE),
            };
        }
    }

    /// Goes a step further if it can: `acknowledged` says that the guest has acknowledged
    /// everything, `able` that the flow can still leave. True when it is time to hand over.
    pub fn advance(&mut self, acknowledged: bool, able: bool, now: Instant) -> bool {
        match self.stage {
            Stage::Serving => false,
            _ if !able => {
                self.give_up(NotPromoted::NoRest);
                false
            }
            Stage::Resting { .. } if acknowledged => {
                self.stage = Stage::Muted {
                    until: now + MUTE_PATIENCE,
                    silent_since: now,
                };
                false
            }
            Stage::Resting { until, .. } => {
                if now >= until {
                    self.give_up(NotPromoted::NoRest);
                }
                false
            }
            Stage::Muted {
                until,
                silent_since,
            } => now >= until || now >= silent_since + SILENCE,
        }
    }

    /// Whether it is time to ask the guest for the acknowledgement that the flow waits for, once
    /// `all_sent` says that none of the engine's bytes is missing from it.
    pub fn asks_for_ack(&mut self, all_sent: impl FnOnce() -> bool, now: Instant) -> bool {
        match &mut self.stage {
            Stage::Resting { ask_at, .. } if ask_at.is_some_and(|at| now >= at) => {
                let all_sent = all_sent();
                *ask_at = (!all_sent).then_some(now + ACK_PATIENCE);
                all_sent
            }
            _ => false,
        }
    }

    /// A frame of the guest has arrived.
    pub fn heard(&mut self, now: Instant) {
        if let Stage::Muted { silent_since, .. } = &mut self.stage {
            *silent_since = now;
        }
    }

    /// When [`PromotionPolicy::advance`] is to be asked again at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        match self.stage {
            Stage::Serving => None,
            Stage::Resting { until, ask_at } => ask_at.or(Some(until)),
            Stage::Muted {
                until,
                silent_since,
            } => Some(until.min(silent_since + SILENCE)),
        }
    }

    /// The engine goes on; the next attempt comes later.
    pub fn give_up(&mut self, why: NotPromoted) {
        self.stage = Stage::Serving;
        self.not_promoted = why;
        self.threshold = self.threshold.saturating_mul(2);
        if self.promote == Promote::Always {
            self.promote = Promote::Auto;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_talker_stays_however_long_it_talks() {
        let mut now = Instant::ZERO;
        let mut policy = PromotionPolicy::new(Promote::Auto, now);
        for request in 1..100_000 {
            policy.note(request * 1_000, true, now);
            assert_eq!(policy.stage(), Stage::Serving);
            now += MS;
        }
    }

    #[test]
    fn a_download_rests_and_leaves() {
        let mut now = Instant::ZERO;
        let mut policy = PromotionPolicy::new(Promote::Auto, now);
        policy.note(THRESHOLD - 1, true, now);
        assert_eq!(policy.stage(), Stage::Serving);
        policy.note(THRESHOLD, true, now);
        assert!(!policy.takes_from_host() && policy.may_speak());
        assert!(!policy.advance(false, true, now + MS));
        assert!(!policy.advance(true, true, now + MS));
        assert!(!policy.may_speak());
        now += MS;
        policy.heard(now + SILENCE);
        assert!(!policy.advance(true, true, now + SILENCE));
        assert!(policy.advance(true, true, now + SILENCE + SILENCE));
    }

    #[test]
    fn a_guest_that_never_falls_silent_is_not_kept_waiting() {
        let mut now = Instant::ZERO;
        let mut policy = PromotionPolicy::new(Promote::Always, now);
        policy.note(0, true, now);
        assert!(!policy.advance(true, true, now));
        let muted = now;
        while !policy.advance(true, true, now) {
            now += Duration::from_micros(10);
            policy.heard(now);
        }
        assert_eq!(now - muted, MUTE_PATIENCE);
    }

    #[test]
    fn without_rest_the_next_attempt_needs_twice_as_much() {
        let now = Instant::ZERO;
        let mut policy = PromotionPolicy::new(Promote::Auto, now);
        policy.note(THRESHOLD, true, now);
        assert_eq!(policy.deadline(), Some(now + ACK_PATIENCE));
        assert!(!policy.asks_for_ack(|| false, now + ACK_PATIENCE));
        assert!(policy.asks_for_ack(|| true, now + ACK_PATIENCE * 2));
        assert!(!policy.asks_for_ack(|| true, now + ACK_PATIENCE * 3));
        assert_eq!(policy.deadline(), Some(now + REST_PATIENCE));
        assert!(!policy.advance(false, true, now + REST_PATIENCE));
        assert!(policy.takes_from_host());
        let later = now + REST_PATIENCE;
        policy.note(THRESHOLD + RATE_BYTES, true, later);
        policy.note(2 * THRESHOLD - 1, true, later);
        assert_eq!(policy.stage(), Stage::Serving);
        policy.note(2 * THRESHOLD, true, later);
        assert_ne!(policy.stage(), Stage::Serving);
        assert_eq!(policy.not_promoted(), NotPromoted::Leaving);
        policy.give_up(NotPromoted::NoRest);
        assert_eq!(policy.not_promoted(), NotPromoted::NoRest);
    }
}
