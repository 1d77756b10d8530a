//! What a comparison found, in the form that is stored as JSON and rendered as text.

pub mod against;
pub mod html;
mod svg;
pub mod table;

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cell::Cell;
use crate::matrix::Timing;
use crate::metric::{Metric, Outcome};
use crate::peers::{Kind, Peer};
use crate::startup::Startup;
use crate::stats::{Quantile, Summary};

/// A whole comparison.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// Of this program; stored figures of different versions may mean different things.
    pub version: String,
    /// Seconds since 1970.
    pub started_at: u64,
    pub machine: Machine,
    pub timing: Timing,
    pub rounds: u32,
    pub peers: Vec<Peer>,
    /// Peers that could not take part, and why.
    pub missing: Vec<String>,
    pub figures: Vec<Figure>,
    #[serde(default)]
    pub startups: Vec<Startup>,
}

/// Where it was measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub memory_gb: f64,
    pub kernel: String,
    /// Of the user who ran it; 0 for root.
    pub uid: u32,
    /// Load average of the last minute before the start: what else the machine was doing.
    pub load_before: f64,
}

/// One cell measured with one peer, in every round.
#[derive(Debug, Serialize, Deserialize)]
pub struct Figure {
    /// The cell's name.
    pub name: String,
    pub cell: Cell,
    pub peer: String,
    pub rounds: Vec<Round>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Round {
    Measured(Outcome),
    Failed(String),
}

impl From<Result<Outcome, String>> for Round {
    fn from(result: Result<Outcome, String>) -> Self {
        match result {
            Ok(outcome) => Self::Measured(outcome),
            Err(cause) => Self::Failed(cause),
        }
    }
}

impl Figure {
    pub fn new(cell: Cell, peer: String) -> Self {
        Self {
            name: cell.to_string(),
            cell,
            peer,
            rounds: Vec::new(),
        }
    }

    pub fn measured(&self) -> impl Iterator<Item = &Outcome> {
        self.rounds.iter().filter_map(|round| match round {
            Round::Measured(outcome) => Some(outcome),
            Round::Failed(_) => None,
        })
    }

    /// `None` when no round gave this metric.
    pub fn summary(&self, metric: Metric) -> Option<Summary> {
        let samples: Vec<f64> = self
            .measured()
            .filter_map(|outcome| outcome.values.get(&metric).copied())
            .collect();
        Summary::of(&samples)
    }

    /// The latency curve of the round whose `metric` is nearest to the median of all rounds.
    pub fn middle_curve(&self, metric: Metric) -> Option<&[Quantile]> {
        let median = self.summary(metric)?.median;
        let distance = |outcome: &Outcome| {
            outcome
                .values
                .get(&metric)
                .map_or(f64::INFINITY, |value| (value - median).abs())
        };
        let with_curve = self.measured().filter(|outcome| !outcome.curve.is_empty());
        with_curve
            .min_by(|a, b| distance(a).total_cmp(&distance(b)))
            .map(|outcome| outcome.curve.as_slice())
    }

    pub fn failures(&self) -> impl Iterator<Item = &str> {
        self.rounds.iter().filter_map(|round| match round {
            Round::Measured(_) => None,
            Round::Failed(cause) => Some(cause.as_str()),
        })
    }
}

impl Report {
    /// A report with nothing in it yet.
    pub fn new(peers: Vec<Peer>, timing: Timing, rounds: u32) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            started_at: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            machine: Machine::ours(),
            timing,
            rounds,
            peers,
            missing: Vec::new(),
            figures: Vec::new(),
            startups: Vec::new(),
        }
    }

    /// Reads a report that [`Report::store`] wrote.
    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("failed to read {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is not a report of this program", path.display()))
    }

    /// Writes the report as JSON.
    pub fn store(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
    }

    /// Whether a peer is coracle or a reference, which must not fail; that another peer cannot do
    /// something is a result.
    pub fn is_ours(&self, peer: &str) -> bool {
        self.peers
            .iter()
            .any(|p| p.name == peer && matches!(p.kind, Kind::Coracle | Kind::Host | Kind::Veth))
    }

    /// The name of the host reference among the peers.
    pub fn host(&self) -> Option<&str> {
        self.peers
            .iter()
            .find(|peer| peer.kind == Kind::Host)
            .map(|host| host.name.as_str())
    }

    pub fn figure(&self, cell: &Cell, peer: &str) -> Option<&Figure> {
        self.figures
            .iter()
            .find(|figure| figure.cell == *cell && figure.peer == peer)
    }

    /// The cells in the order in which they were measured.
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells: Vec<Cell> = self.figures.iter().map(|figure| figure.cell).collect();
        cells.dedup();
        cells
    }

    /// How long each start of a helper took, over all its figures.
    pub fn ready_millis(&self, peer: &str) -> Vec<f64> {
        let figures = self
            .figures
            .iter()
            .filter(|figure| figure.peer == peer)
            .flat_map(Figure::measured);
        figures
            .filter_map(|outcome| outcome.values.get(&Metric::ReadyMs).copied())
            .collect()
    }

    /// Figure and cause of each run that gave nothing.
    pub fn failures(&self) -> impl Iterator<Item = (&Figure, &str)> {
        self.figures
            .iter()
            .flat_map(|figure| figure.failures().map(move |cause| (figure, cause)))
    }

    /// What readers must know about the machine or some of the runs, each remark once.
    pub fn notes(&self) -> Vec<String> {
        let figures = self.figures.iter().flat_map(Figure::measured);
        let mut notes: Vec<String> = figures
            .flat_map(|outcome| outcome.notes.iter().cloned())
            .collect();
        notes.sort_unstable();
        notes.dedup();
        let Machine {
            load_before, cores, ..
        } = self.machine;
        if load_before > 0.3 * cores as f64 {
            notes.push(format!(
                "the machine was busy: load {load_before} on {cores} cores before the start"
            ));
        }
        notes
    }
}

impl Machine {
    fn ours() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_once(':'))
                .map(|(_, value)| value.trim().to_string())
        };
        let kilobytes = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|value| value.strip_suffix(" kB")?.parse::<f64>().ok())
            .unwrap_or(0.0);
        Self {
            processor: field(&read("/proc/cpuinfo"), "model name")
                .unwrap_or_else(|| std::env::consts::ARCH.into()),
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get()),
            memory_gb: (kilobytes * 1024.0 / 1e8).round() / 10.0,
            kernel: read("/proc/sys/kernel/osrelease").trim().into(),
            uid: nix::unistd::getuid().as_raw(),
            load_before: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|load| load.parse().ok())
                .unwrap_or(0.0),
        }
    }
}
