//! The comparison itself: which figures, in which order, how often; progress while it runs and the
//! report at the end.
//!
//! Rounds are the outermost loop and peers the innermost, so that all peers answer one question
//! within seconds of each other and a machine that drifts drifts for all alike.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cell::Cell;
use crate::cli::Compare;
use crate::matrix::{self, Timing};
use crate::metric::{Metric, Outcome};
use crate::peers::{self, Kind, Peer};
use crate::report::{self, Figure, Report, against};
use crate::stage::{self, Order};
use crate::startup;

/// Runs the comparison that the command line asks for.
pub fn run(args: Compare) -> Result<()> {
    let (startup, cells) = choose_cells(&args)?;
    let mut timing = if args.quick {
        Timing::QUICK
    } else {
        Timing::FULL
    };
    if let Some(seconds) = args.seconds {
        timing.measure_ms = u64::from(seconds) * 1_000;
    }
    let rounds = args
        .rounds
        .unwrap_or(if args.quick { 1 } else { FULL_ROUNDS });
    peers::coracle::build_if_run_by_cargo()?;
    let (found, missing) = peers::detect(&args.programs)?;
    let peers = choose_peers(found, &args.peer)?;
    let baseline = args.against.as_deref().map(Report::load).transpose()?;

    for peer in &peers {
        let program = peer.program.display();
        eprintln!("{:<14} {:<28} {program}", peer.name, peer.version);
    }
    for line in &missing {
        eprintln!("left out: {line}");
    }
    if args.list {
        let words = cells
            .iter()
            .map(Cell::to_string)
            .chain(startup.then(|| STARTUP.to_string()));
        words.for_each(|name| println!("{name}"));
        return Ok(());
    }

    let mut report = Report::new(peers, timing, rounds);
    report.missing = missing;
    let plan = Plan {
        cells,
        peers: report.peers.clone(),
        timing,
        rounds,
        cross_check: args.cross_check,
    };
    report.figures = plan.run();
    if startup {
        let starts = if args.quick { 5 } else { 20 };
        eprintln!("starting containers, {starts} times each");
        report.startups = startup::measure(starts, &mut report.missing)?;
    }

    print!("{}", report::table::render(&report));
    if let Some(path) = &args.json {
        report.store(path)?;
    }
    if let Some(path) = &args.html {
        let page = report::html::render(&report);
        std::fs::write(path, page)
            .with_context(|| format!("failed to write {}", path.display()))?;
    }
    let verdict = baseline.map(|baseline| against::compare(&report, &baseline));
    if let Some(verdict) = &verdict {
        print!("{}", verdict.render());
    }
    let failed = report
        .failures()
        .filter(|(figure, _)| report.is_ours(&figure.peer))
        .count();
    if failed > 0 {
        bail!("{failed} measurements of coracle or the host failed");
    }
    match verdict.map_or(0, |verdict| verdict.worse()) {
        0 => Ok(()),
        worse => bail!("{worse} figures are worse than the baseline beyond the noise"),
    }
}

/// Enough for a median that one disturbed round does not move.
const FULL_ROUNDS: u32 = 3;

/// Besides the cells' words, the one that `--only` knows for timing the start of containers.
const STARTUP: &str = "startup";

/// Whether to time the start of containers, and the cells to measure.
fn choose_cells(args: &Compare) -> Result<(bool, Vec<Cell>)> {
    let all = if args.quick {
        matrix::quick()
    } else {
        matrix::full()
    };
    let (startup, patterns): (Vec<String>, Vec<String>) =
        args.only.iter().cloned().partition(|word| word == STARTUP);
    match (startup.is_empty(), patterns.is_empty()) {
        (true, true) => Ok((true, all)),
        (false, true) => Ok((true, Vec::new())),
        (no_startup, false) => Ok((!no_startup, matrix::select(all, &patterns)?)),
    }
}

/// The peers with these names and the host reference; all of them when no name is given.
fn choose_peers(found: Vec<Peer>, names: &[String]) -> Result<Vec<Peer>> {
    for name in names {
        if !found.iter().any(|peer| peer.name == *name) {
            let known: Vec<&str> = found.iter().map(|peer| peer.name.as_str()).collect();
            bail!("--peer {name} is not one of: {}", known.join(" "));
        }
    }
    Ok(found
        .into_iter()
        .filter(|peer| peer.kind == Kind::Host || names.is_empty() || names.contains(&peer.name))
        .collect())
}

struct Plan {
    cells: Vec<Cell>,
    peers: Vec<Peer>,
    timing: Timing,
    rounds: u32,
    cross_check: bool,
}

impl Plan {
    /// The figures of one round, in order.
    fn questions(&self) -> Vec<(Cell, &Peer)> {
        let peers = &self.peers;
        self.cells
            .iter()
            .flat_map(|cell| {
                peers
                    .iter()
                    .filter(|peer| peer.answers(cell))
                    .map(|peer| (*cell, peer))
            })
            .collect()
    }

    fn run(&self) -> Vec<Figure> {
        let questions = self.questions();
        let mut figures: Vec<Figure> = questions
            .iter()
            .map(|(cell, peer)| Figure::new(*cell, peer.name.clone()))
            .collect();
        let mut progress = Progress::new(questions.len() * self.rounds as usize);
        for _ in 0..self.rounds {
            for (index, (cell, peer)) in questions.iter().enumerate() {
                let rest = self.rest_ms(&questions, progress.done);
                progress.begin(cell, peer, Duration::from_millis(rest));
                let estimate = self.timing.estimate_ms(cell.work);
                let order = Order {
                    cell: *cell,
                    peer: (*peer).clone(),
                    timing: self.timing,
                    cross_check: self.cross_check,
                    limit_ms: 3 * estimate + 60_000,
                };
                let result = stage::run_in_world(&order);
                progress.end(cell, peer, &result);
                figures[index]
                    .rounds
                    .push(result.map_err(|e| format!("{e:#}")).into());
            }
        }
        progress.finish();
        figures
    }

    /// How long everything after the first `done` figures will take, roughly.
    fn rest_ms(&self, questions: &[(Cell, &Peer)], done: usize) -> u64 {
        let all = questions
            .iter()
            .cycle()
            .take(questions.len() * self.rounds as usize);
        all.skip(done)
            .map(|(cell, _)| self.timing.estimate_ms(cell.work))
            .sum()
    }
}

/// One line per figure on standard error, and on a terminal a bar below it.
struct Progress {
    total: usize,
    done: usize,
    started: Instant,
    terminal: bool,
}

impl Progress {
    fn new(total: usize) -> Self {
        Self {
            total,
            done: 0,
            started: Instant::now(),
            terminal: std::io::stderr().is_terminal(),
        }
    }

    fn begin(&self, cell: &Cell, peer: &Peer, rest: Duration) {
        if self.done == 0 {
            eprintln!("{} figures, about {}", self.total, minutes(rest));
        }
        if self.terminal {
            let bar = bar(self.done, self.total, 24);
            eprint!(
                "\r\x1b[K{bar} {}/{} {} left  {cell} {}",
                self.done,
                self.total,
                minutes(rest),
                peer.name
            );
            let _ = std::io::stderr().flush();
        }
    }

    fn end(&mut self, cell: &Cell, peer: &Peer, result: &Result<Outcome>) {
        self.done += 1;
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        let said = match result {
            Ok(outcome) => headline(outcome),
            Err(e) => format!("failed: {e:#}"),
        };
        eprintln!(
            "{clear}{cell:<58} {:<13} {said}",
            peer.name,
            cell = cell.to_string()
        );
    }

    fn finish(&self) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        eprintln!(
            "{clear}{} figures in {}",
            self.done,
            minutes(self.started.elapsed())
        );
    }
}

/// The most telling numbers of an outcome.
fn headline(outcome: &Outcome) -> String {
    const TELLING: [Metric; 9] = [
        Metric::LosslessGbitPerS,
        Metric::GbitPerS,
        Metric::HelperCpuSPerGb,
        Metric::PerS,
        Metric::P50Us,
        Metric::P99Us,
        Metric::FailedPpm,
        Metric::RssLoadedMb,
        Metric::RssAfterMb,
    ];
    let shown = TELLING
        .iter()
        .filter_map(|metric| Some((metric, outcome.values.get(metric)?)));
    shown
        .map(|(metric, value)| format!("{} {}", metric.format(*value), metric.label()))
        .collect::<Vec<_>>()
        .join("; ")
}

fn bar(done: usize, total: usize, width: usize) -> String {
    let full = done * width / total.max(1);
    format!("[{}{}]", "#".repeat(full), ".".repeat(width - full))
}

fn minutes(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::loopback;

    #[test]
    fn the_bar_fills() {
        assert_eq!(bar(0, 4, 8), "[........]");
        assert_eq!(bar(2, 4, 8), "[####....]");
        assert_eq!(bar(4, 4, 8), "[########]");
        assert_eq!(bar(0, 0, 2), "[..]");
    }

    #[test]
    fn peers_answer_one_question_next_to_each_other() {
        let peer = |name: &str, kind| Peer {
            name: name.into(),
            kind,
            ..loopback::peer()
        };
        let peers = vec![
            loopback::peer(),
            peer("slirp4netns", Kind::Slirp4netns),
            peer("rootlesskit", Kind::Rootlesskit),
        ];
        let plan = Plan {
            cells: matrix::quick(),
            peers,
            timing: Timing::QUICK,
            rounds: 1,
            cross_check: false,
        };
        let questions = plan.questions();
        let cells: Vec<Cell> = questions.iter().map(|(cell, _)| *cell).collect();
        let mut distinct = cells.clone();
        distinct.dedup();
        assert_eq!(
            distinct,
            matrix::quick(),
            "every cell once, its peers together"
        );
        assert!(plan.rest_ms(&questions, 0) > plan.rest_ms(&questions, 1));
        assert_eq!(plan.rest_ms(&questions, questions.len()), 0);
    }

    /// Every peer that distributions have, with one build each.
    fn all_peers() -> Vec<Peer> {
        let kinds = [
            Kind::Host,
            Kind::Veth,
            Kind::Coracle,
            Kind::Slirp4netns,
            Kind::Pasta,
            Kind::Rootlesskit,
            Kind::RootlesskitSlirp4netns,
        ];
        let peer = |kind| Peer {
            kind,
            ..loopback::peer()
        };
        kinds.map(peer).into()
    }

    #[test]
    fn the_full_matrix_is_forecast_to_take_half_an_hour_and_quick_two_minutes() {
        let forecast = |cells, timing, rounds| {
            let plan = Plan {
                cells,
                peers: all_peers(),
                timing,
                rounds,
                cross_check: false,
            };
            plan.rest_ms(&plan.questions(), 0) / 1_000
        };
        // Less the time in which containers are started, and in which silent peers are waited for.
        let full = forecast(matrix::full(), Timing::FULL, FULL_ROUNDS);
        assert!(full < 26 * 60, "{full} s");
        let quick = forecast(matrix::quick(), Timing::QUICK, 1);
        assert!(quick < 105, "{quick} s");
    }

    #[test]
    fn an_unknown_peer_is_refused_by_name() {
        let error = choose_peers(vec![loopback::peer()], &["vpnkit".into()])
            .unwrap_err()
            .to_string();
        assert_eq!(error, "--peer vpnkit is not one of: host");
    }
}
