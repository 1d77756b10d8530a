//! The little statistics a comparison needs: order statistics, no means, since one disturbed run
//! must not move a result.

use serde::{Deserialize, Serialize};

/// Median and extremes of the rounds of one figure, in the unit of its samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub rounds: usize,
}

impl Summary {
    /// `None` without samples. NaN samples are not expected and would sort last.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            (sorted[middle - 1] + sorted[middle]) / 2.0
        };
        Some(Self {
            median,
            min,
            max,
            rounds: sorted.len(),
        })
    }

    /// Half the distance between the extremes, as a share of the median: how far one round may be
    /// off.
    pub fn relative_spread(&self) -> f64 {
        if self.median == 0.0 {
            0.0
        } else {
            (self.max - self.min) / (2.0 * self.median.abs())
        }
    }
}

/// Latencies of one measurement: every single one is kept, so percentiles are exact.
#[derive(Default)]
pub struct Latencies {
    nanos: Vec<u64>,
}

/// Order statistics of [`Latencies`], in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencySummary {
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    /// The latency at each of [`CURVE`] that this many samples can support, for plots.
    pub curve: Vec<Quantile>,
}

/// A point of a latency distribution.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantile {
    pub share: f64,
    pub us: f64,
}

/// Where a distribution is sampled: ever closer to its tail.
const CURVE: [f64; 13] = [
    0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999,
];

impl Latencies {
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            nanos: Vec::with_capacity(capacity),
        }
    }

    pub fn record(&mut self, latency: std::time::Duration) {
        self.nanos
            .push(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    pub fn len(&self) -> usize {
        self.nanos.len()
    }

    /// All zero, and no curve, when nothing was recorded.
    pub fn summary(&mut self) -> LatencySummary {
        self.nanos.sort_unstable();
        let at = |share: f64| nearest_rank(&self.nanos, share) as f64 / 1_000.0;
        // A quantile is worth showing when at least one sample lies beyond it.
        let supported = |share: &f64| (1.0 - share) * self.nanos.len() as f64 >= 1.0;
        LatencySummary {
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: at(1.0),
            curve: CURVE
                .into_iter()
                .filter(supported)
                .map(|share| Quantile {
                    share,
                    us: at(share),
                })
                .collect(),
        }
    }
}

/// The nearest-rank quantile of a sorted slice: the smallest sample that at least `quantile` of all
/// do not exceed.
fn nearest_rank(sorted: &[u64], quantile: f64) -> u64 {
    let rank = (quantile * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn summary_of_odd_even_and_no_samples() {
        let odd = Summary::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!(
            (odd.median, odd.min, odd.max, odd.rounds),
            (2.0, 1.0, 3.0, 3)
        );
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn spread_is_relative_to_the_median() {
        assert_eq!(
            Summary::of(&[8.0, 10.0, 12.0]).unwrap().relative_spread(),
            0.2
        );
        assert_eq!(Summary::of(&[0.0]).unwrap().relative_spread(), 0.0);
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let mut latencies = Latencies::default();
        for micros in (1..=1000).rev() {
            latencies.record(Duration::from_micros(micros));
        }
        let summary = latencies.summary();
        let LatencySummary {
            p50_us,
            p99_us,
            p999_us,
            max_us,
            ..
        } = summary;
        assert_eq!(
            [p50_us, p99_us, p999_us, max_us],
            [500.0, 990.0, 999.0, 1000.0]
        );
        assert_eq!(
            summary.curve.last(),
            Some(&Quantile {
                share: 0.999,
                us: 999.0
            }),
            "1000 samples say no more"
        );
    }

    #[test]
    fn one_latency_is_every_percentile_and_none_is_zero() {
        let mut one = Latencies::default();
        one.record(Duration::from_micros(7));
        let LatencySummary {
            p50_us,
            p99_us,
            p999_us,
            max_us,
            ..
        } = one.summary();
        assert_eq!([p50_us, p99_us, p999_us, max_us], [7.0; 4]);
        assert_eq!(Latencies::default().summary(), LatencySummary::default());
    }
}
