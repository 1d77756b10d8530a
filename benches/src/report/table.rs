//! The report as text: one block per kind of work, a line per cell, a column per peer, medians with
//! the extremes in brackets and the ratio to the host reference of the same run.

use std::fmt::Write;

use super::Report;
use crate::cell::{Cell, Work};
use crate::metric::Metric;

/// A block: its title, the metrics it shows and whether a ratio to the host says something.
struct Block {
    title: &'static str,
    belongs: fn(&Work) -> bool,
    metrics: &'static [Metric],
}

const BLOCKS: &[Block] = &[
    Block {
        title: "TCP bulk",
        belongs: |work| matches!(work, Work::Bulk { .. }),
        metrics: &[
            Metric::GbitPerS,
            Metric::SlowestGbitPerS,
            Metric::HelperCpuSPerGb,
            Metric::MachineCpuSPerGb,
            Metric::Iperf3GbitPerS,
        ],
    },
    Block {
        title: "UDP",
        belongs: |work| matches!(work, Work::Datagrams { .. }),
        metrics: &[
            Metric::LosslessGbitPerS,
            Metric::GbitPerS,
            Metric::LostPpm,
            Metric::HelperCpuSPerGb,
            Metric::MachineCpuSPerGb,
            Metric::Iperf3GbitPerS,
        ],
    },
    Block {
        title: "UDP requests",
        belongs: |work| matches!(work, Work::Exchange { .. }),
        metrics: &[
            Metric::PerS,
            Metric::P50Us,
            Metric::P99Us,
            Metric::P999Us,
            Metric::FailedPpm,
            Metric::HelperCpuUsPerOp,
        ],
    },
    Block {
        title: "Requests over open connections",
        belongs: |work| matches!(work, Work::Request { .. }),
        metrics: &[
            Metric::PerS,
            Metric::P50Us,
            Metric::P99Us,
            Metric::P999Us,
            Metric::HelperCpuUsPerOp,
            Metric::WrkPerS,
            Metric::NginxPerS,
        ],
    },
    Block {
        title: "New connections",
        belongs: |work| matches!(work, Work::Connect { .. }),
        metrics: &[
            Metric::PerS,
            Metric::P50Us,
            Metric::P99Us,
            Metric::MaxUs,
            Metric::FailedPpm,
            Metric::WrkPerS,
            Metric::NginxPerS,
            Metric::HelperCpuUsPerOp,
            Metric::RssStartMb,
            Metric::RssLoadedMb,
        ],
    },
    Block {
        title: "Memory and descriptors",
        belongs: |work| matches!(work, Work::Memory { .. } | Work::Soak { .. }),
        metrics: &[
            Metric::RssStartMb,
            Metric::RssLoadedMb,
            Metric::RssAfterMb,
            Metric::RssPerConnectionKb,
            Metric::FdsStart,
            Metric::FdsLoaded,
            Metric::FdsAfter,
        ],
    },
];

/// The whole report.
pub fn render(report: &Report) -> String {
    let mut text = String::new();
    let machine = &report.machine;
    let _ = writeln!(
        text,
        "{}, {} cores, {} GB, Linux {}, uid {}; {} round(s); median [min-max] xratio to host",
        machine.processor,
        machine.cores,
        machine.memory_gb,
        machine.kernel,
        machine.uid,
        report.rounds
    );
    for block in BLOCKS {
        let cells: Vec<Cell> = report
            .cells()
            .into_iter()
            .filter(|cell| (block.belongs)(&cell.work))
            .collect();
        for metric in block.metrics {
            text.push_str(&grid(report, block.title, *metric, &cells));
        }
    }
    text.push_str(&ready(report));
    text.push_str(&startups(report));
    for line in &report.missing {
        let _ = writeln!(text, "left out: {line}");
    }
    for note in report.notes() {
        let _ = writeln!(text, "note: {note}");
    }
    for (figure, cause) in report.failures() {
        let _ = writeln!(
            text,
            "failed: {} with {}: {cause}",
            figure.name, figure.peer
        );
    }
    for figure in &report.figures {
        for outcome in figure
            .measured()
            .filter(|outcome| !outcome.errors.is_empty())
        {
            let causes: Vec<String> = outcome
                .errors
                .iter()
                .map(|(cause, count)| format!("{count} x {cause}"))
                .collect();
            let _ = writeln!(
                text,
                "errors: {} with {}: {}",
                figure.name,
                figure.peer,
                causes.join(", ")
            );
        }
    }
    text
}

/// One metric of one block; empty when no figure has it.
fn grid(report: &Report, title: &str, metric: Metric, cells: &[Cell]) -> String {
    let mut rows = Vec::new();
    for cell in cells {
        let values: Vec<String> = report
            .peers
            .iter()
            .map(|peer| value(report, cell, &peer.name, metric))
            .collect();
        if values.iter().any(|value| !value.is_empty()) {
            let words = cell.words();
            rows.push((words[1..].join(" "), values));
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    let names: Vec<String> = report.peers.iter().map(|peer| peer.name.clone()).collect();
    let table: Vec<(String, Vec<String>)> =
        std::iter::once((format!("{title}, {}", metric.label()), names))
            .chain(rows)
            .collect();
    align(&table)
}

/// Median, extremes when there are several rounds, ratio to the host when there is one.
fn value(report: &Report, cell: &Cell, peer: &str, metric: Metric) -> String {
    let Some(figure) = report.figure(cell, peer) else {
        return String::new();
    };
    let Some(summary) = figure.summary(metric) else {
        return String::new();
    };
    let mut text = metric.format(summary.median);
    if summary.rounds > 1 {
        let _ = write!(
            text,
            " [{}-{}]",
            metric.format(summary.min),
            metric.format(summary.max)
        );
    }
    if metric.is_rate()
        && let Some(host) = report.host().filter(|host| *host != peer)
        && let Some(reference) = report
            .figure(cell, host)
            .and_then(|figure| figure.summary(metric))
        && reference.median > 0.0
    {
        let _ = write!(text, " x{:.2}", summary.median / reference.median);
    }
    text
}

/// Start to readiness, over every figure of a peer.
fn ready(report: &Report) -> String {
    let mut rows = vec![(
        "Helper start to ready, ms".to_string(),
        vec!["median [min-max]".to_string()],
    )];
    for peer in &report.peers {
        let samples = report.ready_millis(&peer.name);
        if let Some(s) = crate::stats::Summary::of(&samples) {
            let format = |value| Metric::ReadyMs.format(value);
            rows.push((
                format!("{} {}", peer.name, peer.version),
                vec![format!(
                    "{} [{}-{}] n={}",
                    format(s.median),
                    format(s.min),
                    format(s.max),
                    s.rounds
                )],
            ));
        }
    }
    if rows.len() > 1 {
        align(&rows)
    } else {
        String::new()
    }
}

/// Containers that do nothing.
fn startups(report: &Report) -> String {
    let mut rows = vec![(
        "Container start to end, ms".to_string(),
        vec!["median [min-max]".to_string()],
    )];
    for startup in &report.startups {
        if let Some(s) = startup.summary() {
            let format = |value| Metric::ReadyMs.format(value);
            let value = format!(
                "{} [{}-{}] n={}",
                format(s.median),
                format(s.min),
                format(s.max),
                s.rounds
            );
            rows.push((
                format!("{} ({})", startup.name, startup.version),
                vec![value],
            ));
        }
    }
    if rows.len() > 1 {
        align(&rows)
    } else {
        String::new()
    }
}

/// Columns as wide as their widest entry, the first row as heading.
fn align(rows: &[(String, Vec<String>)]) -> String {
    let first = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let columns = rows
        .iter()
        .map(|(_, values)| values.len())
        .max()
        .unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|(_, values)| values.get(column))
            .map(String::len)
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::from("\n");
    for (name, values) in rows {
        let mut line = format!("{name:<first$}");
        for (value, width) in values.iter().zip(&widths) {
            let _ = write!(line, "  {value:<width$}");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Timing;
    use crate::metric::Outcome;
    use crate::peers::{Kind, Peer, loopback};
    use crate::report::{Figure, Round};

    fn figure(cell: Cell, peer: &str, gbit: &[f64]) -> Figure {
        let mut figure = Figure::new(cell, peer.into());
        for value in gbit {
            let mut outcome = Outcome::default();
            outcome.values.insert(Metric::GbitPerS, *value);
            figure.rounds.push(Round::Measured(outcome));
        }
        figure
    }

    #[test]
    fn medians_with_extremes_and_the_ratio_to_the_host() {
        let cell = crate::matrix::quick()[0];
        let helper = Peer {
            name: "helper".into(),
            kind: Kind::Pasta,
            ..loopback::peer()
        };
        let mut broken = figure(cell, "helper", &[10.0, 30.0, 20.0]);
        broken.rounds.push(Round::Failed("no byte arrived".into()));
        let figures = vec![figure(cell, "host", &[40.0]), broken];
        let mut report = Report::new(vec![loopback::peer(), helper], Timing::QUICK, 1);
        report.figures = figures;
        let text = render(&report);
        let line = text
            .lines()
            .find(|line| line.starts_with("outbound from-guest"))
            .unwrap();
        assert!(line.ends_with("20.0 [10.0-30.0] x0.50"), "{line}");
        assert!(
            text.contains(&format!("failed: {cell} with helper: no byte arrived")),
            "{text}"
        );
    }

    #[test]
    fn columns_align() {
        let row =
            |name: &str, values: [&str; 2]| (name.to_string(), values.map(String::from).to_vec());
        let text = align(&[row("", ["a", "b"]), row("name", ["long", "1"])]);
        assert_eq!(text, "\n      a     b\nname  long  1\n");
    }
}
