//! The numbers a figure can have, with unit, direction and how they are printed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::stats::Quantile;

/// A measured quantity. The serialised name carries the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Payload per second, 10^9 bits.
    GbitPerS,
    /// The slowest tenth of a second of a bulk transfer; far below the mean when transfers stall.
    SlowestGbitPerS,
    /// Payload per second, 10^9 bits, of the fastest datagrams of which at most one in a thousand
    /// was lost.
    LosslessGbitPerS,
    /// Datagrams that did not arrive, per million sent, when the sender did not pace itself.
    LostPpm,
    /// What iperf3 measured for the same cell, when asked to cross-check.
    Iperf3GbitPerS,
    /// What wrk measured for the same cell, when asked to cross-check.
    WrkPerS,
    /// The same with nginx as the service.
    NginxPerS,
    /// Requests or connections completed per second.
    PerS,
    P50Us,
    P99Us,
    P999Us,
    MaxUs,
    /// Operations that failed, per million completed.
    FailedPpm,
    /// CPU seconds, user and system, of the helper's processes per 10^9 payload bytes.
    HelperCpuSPerGb,
    /// CPU seconds of the whole machine per 10^9 payload bytes: includes generators and whatever
    /// else runs.
    MachineCpuSPerGb,
    /// CPU microseconds of the helper's processes per request or connection.
    HelperCpuUsPerOp,
    /// CPU microseconds of the whole machine per request or connection.
    MachineCpuUsPerOp,
    /// Resident memory of the helper's processes, 10^6 bytes: right after start, at the end of the
    /// load, after it closed.
    RssStartMb,
    RssLoadedMb,
    RssAfterMb,
    /// What resident memory grew by for each open connection, 10^3 bytes.
    RssPerConnectionKb,
    /// Open descriptors of the helper's processes.
    FdsStart,
    FdsLoaded,
    FdsAfter,
    /// From spawning the helper until it said that the guest's network is up.
    ReadyMs,
}

impl Metric {
    /// Short heading; the unit is in it, or else in the formatted value.
    pub fn label(self) -> &'static str {
        match self {
            Self::GbitPerS => "Gbit/s",
            Self::SlowestGbitPerS => "slowest 100 ms, Gbit/s",
            Self::LosslessGbitPerS => "Gbit/s at <= 0.1 % loss",
            Self::LostPpm => "lost, ppm",
            Self::Iperf3GbitPerS => "iperf3, Gbit/s",
            Self::WrkPerS => "wrk, 1/s",
            Self::NginxPerS => "wrk and nginx, 1/s",
            Self::PerS => "1/s",
            Self::P50Us => "p50",
            Self::P99Us => "p99",
            Self::P999Us => "p99.9",
            Self::MaxUs => "max",
            Self::FailedPpm => "failed, ppm",
            Self::HelperCpuSPerGb => "helper CPU, s/GB",
            Self::MachineCpuSPerGb => "machine CPU, s/GB",
            Self::HelperCpuUsPerOp => "helper CPU, us/op",
            Self::MachineCpuUsPerOp => "machine CPU, us/op",
            Self::RssStartMb => "RSS at start, MB",
            Self::RssLoadedMb => "RSS loaded, MB",
            Self::RssAfterMb => "RSS after, MB",
            Self::RssPerConnectionKb => "RSS per connection, kB",
            Self::FdsStart => "fds at start",
            Self::FdsLoaded => "fds loaded",
            Self::FdsAfter => "fds after",
            Self::ReadyMs => "ready, ms",
        }
    }

    /// Whether the metric is the rate by which peers are ranked, the only thing a ratio to the host
    /// says much about.
    pub fn is_rate(self) -> bool {
        matches!(self, Self::GbitPerS | Self::LosslessGbitPerS | Self::PerS)
    }

    /// The value with as many digits as carry meaning.
    pub fn format(self, value: f64) -> String {
        match self {
            Self::FdsStart | Self::FdsLoaded | Self::FdsAfter | Self::FailedPpm | Self::LostPpm => {
                format!("{value:.0}")
            }
            Self::P50Us | Self::P99Us | Self::P999Us | Self::MaxUs => match value {
                micros if micros < 999.5 => format!("{}us", significant(micros)),
                micros if micros < 999_500.0 => format!("{}ms", significant(micros / 1e3)),
                micros => format!("{}s", significant(micros / 1e6)),
            },
            _ => significant(value),
        }
    }
}

/// What one run of a cell with one peer gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub values: BTreeMap<Metric, f64>,
    /// The distribution of latencies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub curve: Vec<Quantile>,
    /// Failed operations by cause.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub errors: BTreeMap<String, u64>,
    /// What the reader must know about this run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Three significant digits, thousands as `k`.
pub fn significant(value: f64) -> String {
    match value.abs() {
        v if v >= 99_950.0 => format!("{:.0}k", value / 1_000.0),
        v if v >= 9_995.0 => format!("{:.1}k", value / 1_000.0),
        v if v >= 99.95 => format!("{value:.0}"),
        v if v >= 9.995 => format!("{value:.1}"),
        v if v >= 0.9995 => format!("{value:.2}"),
        0.0 => "0".into(),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_significant_digits() {
        let printed: Vec<String> = [
            0.0, 0.0421, 1.2345, 12.345, 123.45, 1234.5, 12345.0, 123450.0,
        ]
        .map(significant)
        .into();
        assert_eq!(
            printed,
            ["0", "0.042", "1.23", "12.3", "123", "1234", "12.3k", "123k"]
        );
    }

    #[test]
    fn rounding_does_not_add_a_digit() {
        assert_eq!(significant(9.999), "10.0");
        assert_eq!(significant(99.96), "100");
        assert_eq!(significant(0.9999), "1.00");
    }

    #[test]
    fn latencies_choose_their_unit() {
        let printed =
            [42.0, 999.4, 999.6, 28_650.0, 1_200_000.0].map(|micros| Metric::P99Us.format(micros));
        assert_eq!(printed, ["42.0us", "999us", "1.00ms", "28.6ms", "1.20s"]);
    }

    #[test]
    fn an_outcome_survives_json() {
        let mut outcome = Outcome::default();
        outcome.values.insert(Metric::HelperCpuSPerGb, 0.25);
        outcome.errors.insert("refused".into(), 2);
        let text = serde_json::to_string(&outcome).unwrap();
        assert!(text.contains("helper_cpu_s_per_gb"), "{text}");
        assert_eq!(serde_json::from_str::<Outcome>(&text).unwrap(), outcome);
    }
}
