//! What request and exchange count: the questions that are both asked and answered within the
//! measured part of a run, which follows a warm-up.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Event, Report, emit};
use crate::stats::Latencies;

/// Latencies of the measured part.
pub struct Tally {
    warm_until: Instant,
    measure: Duration,
    /// When the measured part began, once it has.
    begun: Option<Instant>,
    latencies: Latencies,
}

impl Tally {
    /// The warm-up begins now.
    pub fn new(warm: Duration, measure: Duration) -> Self {
        Self {
            warm_until: Instant::now() + warm,
            measure,
            begun: None,
            latencies: Latencies::with_capacity(1 << 20),
        }
    }

    /// Begins the measured part when the warm-up is over. Returns when it began once it is over,
    /// too.
    pub fn advance(&mut self, now: Instant) -> Result<Option<Instant>> {
        match self.begun {
            None if now >= self.warm_until => {
                emit(Event::Begin)?;
                self.begun = Some(Instant::now());
                Ok(None)
            }
            Some(start) if now.duration_since(start) >= self.measure => Ok(Some(start)),
            _ => Ok(None),
        }
    }

    /// Whether a question asked at `sent` belongs to the measured part.
    pub fn counts(&self, sent: Instant) -> bool {
        self.begun.is_some_and(|start| sent >= start)
    }

    /// The question asked at `sent` has been answered.
    pub fn answered(&mut self, sent: Instant) {
        let latency = sent.elapsed();
        if self.counts(sent) {
            self.latencies.record(latency);
        }
    }

    /// The measured part from `start` to `now`, in which `failed` questions met `failure`.
    pub fn report(&mut self, start: Instant, now: Instant, failure: &str, failed: u64) -> Report {
        Report {
            seconds: now.duration_since(start).as_secs_f64(),
            operations: self.latencies.len() as u64,
            latency: self.latencies.summary(),
            errors: (failed > 0)
                .then(|| (failure.to_owned(), failed))
                .into_iter()
                .collect(),
            ..Report::default()
        }
    }
}
