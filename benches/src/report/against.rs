//! A report against an earlier one: what got better or worse beyond the noise.
//!
//! Machines differ and drift, so times are never compared as such: each figure is first divided by
//! the host reference's figure of its own run. What remains is judged against the spread of the
//! rounds on both sides. Only memory is compared in absolute numbers.

use std::fmt::Write;

use super::Report;
use crate::cell::Cell;
use crate::metric::Metric;
use crate::stats::Summary;

/// A change below this share is noise however calm the rounds were.
const FLOOR: f64 = 0.10;
/// The same where fewer than three rounds leave the spread unknown.
const FLOOR_OF_FEW: f64 = 0.50;

/// What can be compared: a metric, the host's metric to divide by, and whether more is better.
const COMPARED: &[(Metric, Option<Metric>, bool)] = &[
    (Metric::GbitPerS, Some(Metric::GbitPerS), true),
    (
        Metric::LosslessGbitPerS,
        Some(Metric::LosslessGbitPerS),
        true,
    ),
    (Metric::PerS, Some(Metric::PerS), true),
    (Metric::P50Us, Some(Metric::P50Us), false),
    (Metric::P99Us, Some(Metric::P99Us), false),
    (
        Metric::HelperCpuSPerGb,
        Some(Metric::MachineCpuSPerGb),
        false,
    ),
    (
        Metric::HelperCpuUsPerOp,
        Some(Metric::MachineCpuUsPerOp),
        false,
    ),
    (Metric::RssLoadedMb, None, false),
    (Metric::RssAfterMb, None, false),
];

/// One metric of one figure, then and now.
#[derive(Debug)]
struct Change {
    figure: String,
    peer: String,
    metric: Metric,
    /// Now divided by then, turned so that above 1 is better.
    gain: f64,
    /// How far from 1 the gain may be without meaning anything.
    noise: f64,
    ours: bool,
}

/// All comparable changes.
pub struct Verdict {
    changes: Vec<Change>,
}

/// Compares every figure that both reports have.
pub fn compare(now: &Report, then: &Report) -> Verdict {
    let mut changes = Vec::new();
    for figure in now
        .figures
        .iter()
        .filter(|figure| Some(figure.peer.as_str()) != now.host())
    {
        for &(metric, divisor, higher_is_better) in COMPARED {
            let normal =
                |report: &Report| normalised(report, &figure.cell, &figure.peer, metric, divisor);
            let (Some(new), Some(old)) = (normal(now), normal(then)) else {
                continue;
            };
            let ratio = new.value / old.value;
            changes.push(Change {
                figure: figure.name.clone(),
                peer: figure.peer.clone(),
                metric,
                gain: if higher_is_better { ratio } else { 1.0 / ratio },
                noise: new.floor.max(old.floor).max(new.spread + old.spread),
                ours: now.is_ours(&figure.peer),
            });
        }
    }
    Verdict { changes }
}

/// A figure freed of its machine.
struct Normal {
    value: f64,
    spread: f64,
    /// What its noise is at least.
    floor: f64,
}

/// `None` when the report lacks the figure or its divisor, or one of them is zero.
fn normalised(
    report: &Report,
    cell: &Cell,
    peer: &str,
    metric: Metric,
    divisor: Option<Metric>,
) -> Option<Normal> {
    let positive = |summary: &Summary| summary.median > 0.0;
    let own = report
        .figure(cell, peer)?
        .summary(metric)
        .filter(positive)?;
    let floor = if own.rounds < 3 { FLOOR_OF_FEW } else { FLOOR };
    let Some(divisor) = divisor else {
        return Some(Normal {
            value: own.median,
            spread: own.relative_spread(),
            floor,
        });
    };
    let host = report
        .figure(cell, report.host()?)?
        .summary(divisor)
        .filter(positive)?;
    Some(Normal {
        value: own.median / host.median,
        spread: own.relative_spread() + host.relative_spread(),
        floor,
    })
}

impl Verdict {
    /// How many figures of coracle are worse beyond the noise.
    pub fn worse(&self) -> usize {
        self.changes
            .iter()
            .filter(|change| change.ours && change.is_worse())
            .count()
    }

    /// The changes beyond the noise, the worst first.
    pub fn render(&self) -> String {
        let mut beyond: Vec<&Change> = self
            .changes
            .iter()
            .filter(|c| c.is_worse() || c.is_better())
            .collect();
        beyond.sort_by(|a, b| a.gain.total_cmp(&b.gain));
        let mut text = format!(
            "\nAgainst the baseline: {} comparable, {} beyond the noise\n",
            self.changes.len(),
            beyond.len()
        );
        for change in beyond {
            let word = if change.is_worse() { "worse" } else { "better" };
            let Change {
                figure,
                peer,
                metric,
                gain,
                noise,
                ..
            } = change;
            let label = metric.label();
            let _ = writeln!(
                text,
                "{word:<7} x{gain:.2} (noise {noise:.2})  {peer:<13} {label:<20} {figure}"
            );
        }
        text
    }
}

impl Change {
    fn is_worse(&self) -> bool {
        self.gain < 1.0 / (1.0 + self.noise)
    }

    fn is_better(&self) -> bool {
        self.gain > 1.0 + self.noise
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::{self, Timing};
    use crate::metric::Outcome;
    use crate::peers::{Kind, Peer, loopback};
    use crate::report::{Figure, Round};

    fn report(host: &[f64], coracle: &[f64], cpu: f64) -> Report {
        let peer = Peer {
            name: "coracle".into(),
            kind: Kind::Coracle,
            ..loopback::peer()
        };
        let mut report = Report::new(vec![loopback::peer(), peer], Timing::QUICK, 3);
        for (name, samples) in [("host", host), ("coracle", coracle)] {
            let mut figure = Figure::new(matrix::quick()[0], name.into());
            for sample in samples {
                let mut outcome = Outcome::default();
                outcome.values.insert(Metric::GbitPerS, *sample);
                outcome.values.insert(Metric::MachineCpuSPerGb, 0.5);
                outcome.values.insert(Metric::HelperCpuSPerGb, cpu);
                figure.rounds.push(Round::Measured(outcome));
            }
            report.figures.push(figure);
        }
        report
    }

    #[test]
    fn a_slower_machine_is_no_change() {
        let verdict = compare(
            &report(&[20.0; 3], &[10.0; 3], 0.2),
            &report(&[40.0; 3], &[20.0; 3], 0.2),
        );
        assert_eq!(verdict.worse(), 0);
        assert!(
            verdict.render().contains("2 comparable, 0 beyond"),
            "{}",
            verdict.render()
        );
    }

    #[test]
    fn a_lower_share_of_the_same_machine_is_worse() {
        let verdict = compare(
            &report(&[40.0; 3], &[10.0; 3], 0.2),
            &report(&[40.0; 3], &[20.0; 3], 0.2),
        );
        assert_eq!(verdict.worse(), 1);
        assert!(
            verdict.render().contains("worse   x0.50"),
            "{}",
            verdict.render()
        );
    }

    #[test]
    fn more_cpu_is_worse_and_less_is_better() {
        assert_eq!(
            compare(
                &report(&[40.0; 3], &[20.0; 3], 0.4),
                &report(&[40.0; 3], &[20.0; 3], 0.2)
            )
            .worse(),
            1
        );
        let better = compare(
            &report(&[40.0; 3], &[20.0; 3], 0.1),
            &report(&[40.0; 3], &[20.0; 3], 0.2),
        );
        assert_eq!(better.worse(), 0);
        assert!(
            better.render().contains("better  x2.00"),
            "{}",
            better.render()
        );
    }

    #[test]
    fn a_change_within_the_spread_of_the_rounds_is_noise() {
        let then = report(&[40.0, 40.0, 40.0], &[30.0, 20.0, 10.0], 0.2);
        assert_eq!(
            compare(&report(&[40.0; 3], &[14.0; 3], 0.2), &then).worse(),
            0
        );
        assert_eq!(
            compare(&report(&[40.0; 3], &[9.0; 3], 0.2), &then).worse(),
            1
        );
    }

    #[test]
    fn one_round_proves_only_a_great_change() {
        let then = report(&[40.0; 3], &[20.0; 3], 0.2);
        assert_eq!(compare(&report(&[40.0], &[14.0], 0.2), &then).worse(), 0);
        assert_eq!(compare(&report(&[40.0], &[13.0], 0.2), &then).worse(), 1);
    }

    #[test]
    fn figures_missing_on_one_side_are_not_compared() {
        let verdict = compare(
            &report(&[40.0; 3], &[20.0; 3], 0.2),
            &report(&[40.0; 3], &[], 0.2),
        );
        assert!(verdict.render().contains("0 comparable"));
    }
}
