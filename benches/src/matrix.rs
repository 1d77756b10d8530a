//! What is measured: the cells of the comparison and how long each runs.
//!
//! A [`Cell`] is one question ("TCP bulk, outbound, guest sends, one flow, MTU 1500, cubic"); every peer answers it in every
//! round. A cell's name is its words joined by `/`, and `--only` picks cells by those words, so names are part of the interface
//! and of stored baselines.

use std::fmt;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// One question put to every peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cell {
    pub work: Work,
    pub route: Route,
    /// MTU of the guest's tap in bytes. The host reference has no tap and ignores it.
    pub mtu: u16,
    /// Congestion control in the guest; the host side always uses cubic.
    pub congestion: Congestion,
}

/// What the traffic looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// `flows` TCP connections at full speed in one direction.
    Bulk { way: Way, flows: u32 },
    /// Keep-alive HTTP: one request of 100 bytes in flight per connection, answered by 600 bytes.
    Request { connections: u32 },
    /// New connections, `at_once` at any time: connect, request, response, close.
    Connect { at_once: u32 },
    /// As `Connect`, until `connections` are through; then memory and descriptors must be what they were.
    Soak { connections: u32 },
    /// Memory and descriptors of the helper while `connections` are open, and after they closed.
    Memory { connections: u32 },
}

/// Which end connects to which, and where the helper stands in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Route {
    /// The guest connects to a service on the host's uplink address.
    Outbound,
    /// A client on the host's 127.0.0.1 connects to a published port of the guest.
    Published,
    /// A client on another machine (a namespace behind a veth pair) connects to a published port of the guest.
    PublishedRemote,
}

/// Where bulk bytes flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    FromGuest,
    ToGuest,
}

/// TCP congestion control of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Congestion {
    Cubic,
    Bbr,
}

impl Congestion {
    /// The kernel's name of the algorithm.
    pub fn name(self) -> &'static str {
        match self {
            Congestion::Cubic => "cubic",
            Congestion::Bbr => "bbr",
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words().join("/"))
    }
}

impl Cell {
    /// The words of the cell's name, in order.
    pub fn words(&self) -> Vec<String> {
        let route = match self.route {
            Route::Outbound => "outbound",
            Route::Published => "published",
            Route::PublishedRemote => "published-remote",
        };
        let mut words = match self.work {
            Work::Bulk { way, flows } => {
                let way = match way {
                    Way::FromGuest => "from-guest",
                    Way::ToGuest => "to-guest",
                };
                vec![
                    "bulk".into(),
                    route.into(),
                    way.into(),
                    format!("flows-{flows}"),
                ]
            }
            Work::Request { connections } => {
                vec![
                    "request".into(),
                    route.into(),
                    format!("connections-{connections}"),
                ]
            }
            Work::Connect { at_once } => {
                vec!["connect".into(), route.into(), format!("at-once-{at_once}")]
            }
            Work::Soak { connections } => {
                vec![
                    "soak".into(),
                    route.into(),
                    format!("connections-{connections}"),
                ]
            }
            Work::Memory { connections } => {
                vec![
                    "memory".into(),
                    route.into(),
                    format!("connections-{connections}"),
                ]
            }
        };
        words.push(format!("mtu-{}", self.mtu));
        words.push(self.congestion.name().into());
        words
    }
}

/// How long the parts of one figure take, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Timing {
    /// Traffic before the clock starts, so that slow start and first-touch costs are not counted.
    pub warm_ms: u64,
    /// Bulk and request cells.
    pub measure_ms: u64,
    /// Connect cells, which must last long enough to meet reused ports and TIME-WAIT.
    pub connect_ms: u64,
}

impl Timing {
    pub const FULL: Timing = Timing {
        warm_ms: 500,
        measure_ms: 3_000,
        connect_ms: 20_000,
    };
    pub const QUICK: Timing = Timing {
        warm_ms: 300,
        measure_ms: 1_000,
        connect_ms: 3_000,
    };

    /// Roughly how long one figure takes, set-up included; used for the forecast only.
    pub fn estimate_ms(&self, work: Work) -> u64 {
        const SETUP_MS: u64 = 350;
        SETUP_MS
            + match work {
                Work::Bulk { .. } | Work::Request { .. } => self.warm_ms + self.measure_ms,
                Work::Connect { .. } => self.connect_ms,
                // At a few thousand a second.
                Work::Soak { connections } => u64::from(connections) / 3,
                Work::Memory { connections } => 800 + u64::from(connections) * 3 / 5,
            }
    }
}

/// The full matrix.
pub fn full() -> Vec<Cell> {
    let mut cells = Vec::new();
    for route in [Route::Outbound, Route::Published, Route::PublishedRemote] {
        for mtu in [65520, 1500] {
            for flows in [1, 8] {
                for way in [Way::FromGuest, Way::ToGuest] {
                    cells.push(Cell {
                        work: Work::Bulk { way, flows },
                        route,
                        mtu,
                        congestion: Congestion::Cubic,
                    });
                }
            }
        }
    }
    for mtu in [65520, 1500] {
        let work = Work::Bulk {
            way: Way::FromGuest,
            flows: 1,
        };
        cells.push(Cell {
            work,
            route: Route::Outbound,
            mtu,
            congestion: Congestion::Bbr,
        });
    }
    for route in [Route::Outbound, Route::Published] {
        for connections in [1, 64] {
            cells.push(cell(Work::Request { connections }, route));
        }
    }
    for route in [Route::Outbound, Route::Published] {
        cells.push(cell(Work::Connect { at_once: 64 }, route));
    }
    for route in [Route::Outbound, Route::Published] {
        cells.push(cell(Work::Memory { connections: 5_000 }, route));
    }
    cells
}

/// The cells of `--quick`: one of each kind, so that a change of any path shows.
pub fn quick() -> Vec<Cell> {
    let mut cells = Vec::new();
    for route in [Route::Outbound, Route::Published, Route::PublishedRemote] {
        for way in [Way::FromGuest, Way::ToGuest] {
            cells.push(cell(Work::Bulk { way, flows: 1 }, route));
        }
    }
    for way in [Way::FromGuest, Way::ToGuest] {
        let work = Work::Bulk { way, flows: 1 };
        cells.push(Cell {
            mtu: 1500,
            ..cell(work, Route::Outbound)
        });
    }
    for route in [Route::Outbound, Route::Published] {
        cells.push(cell(Work::Request { connections: 64 }, route));
    }
    cells.push(cell(Work::Connect { at_once: 64 }, Route::Outbound));
    cells.push(cell(Work::Memory { connections: 500 }, Route::Outbound));
    cells
}

/// Cells that only `--only` brings in, since they take minutes and answer one question about leaks.
pub fn on_request() -> Vec<Cell> {
    let work = Work::Soak {
        connections: 500_000,
    };
    vec![cell(work, Route::Outbound), cell(work, Route::Published)]
}

/// The cells that match at least one pattern, those on request among them; all others when there is no pattern.
///
/// A pattern is words joined by `/`, each of which must be a word of the cell's name, in any order.
/// Fails when a pattern matches nothing, naming the words that exist.
pub fn select(mut cells: Vec<Cell>, patterns: &[String]) -> Result<Vec<Cell>> {
    if !patterns.is_empty() {
        let soaks = |pattern: &String| pattern.split('/').any(|word| word == "soak");
        cells.extend(
            on_request()
                .into_iter()
                .filter(|_| patterns.iter().any(soaks)),
        );
    }
    for pattern in patterns {
        if !cells.iter().any(|cell| matches(cell, pattern)) {
            let mut words: Vec<String> = cells.iter().flat_map(Cell::words).collect();
            words.sort();
            words.dedup();
            bail!(
                "--only {pattern} matches no cell; the words are: {}",
                words.join(" ")
            );
        }
    }
    Ok(cells
        .into_iter()
        .filter(|cell| patterns.is_empty() || patterns.iter().any(|pattern| matches(cell, pattern)))
        .collect())
}

fn matches(cell: &Cell, pattern: &str) -> bool {
    let words = cell.words();
    pattern
        .split('/')
        .filter(|word| !word.is_empty())
        .all(|word| words.iter().any(|own| own == word))
}

fn cell(work: Work, route: Route) -> Cell {
    Cell {
        work,
        route,
        mtu: 65520,
        congestion: Congestion::Cubic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_stable() {
        let mut names: Vec<String> = full().iter().map(Cell::to_string).collect();
        assert!(
            names.contains(&"bulk/published-remote/to-guest/flows-8/mtu-1500/cubic".to_string())
        );
        assert!(names.contains(&"bulk/outbound/from-guest/flows-1/mtu-65520/bbr".to_string()));
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn quick_cells_are_cells_of_the_full_matrix_but_for_the_number_of_open_connections() {
        let full = full();
        for cell in quick() {
            assert!(
                full.contains(&cell) || matches!(cell.work, Work::Memory { .. }),
                "{cell}"
            );
        }
    }

    #[test]
    fn patterns_select_by_whole_words() {
        let one = select(full(), &["bulk/outbound/mtu-1500".into()]).unwrap();
        assert!(
            one.iter()
                .all(|cell| cell.route == Route::Outbound && cell.mtu == 1500)
        );
        let published = select(full(), &["published".into()]).unwrap();
        assert!(
            published.iter().all(|cell| cell.route == Route::Published),
            "published-remote is another word"
        );
        let either = select(full(), &["connect".into(), "memory".into()]).unwrap();
        assert_eq!(either.len(), 4);
    }

    #[test]
    fn a_soak_is_run_only_by_name() {
        assert!(
            select(full(), &[])
                .unwrap()
                .iter()
                .all(|cell| !matches!(cell.work, Work::Soak { .. }))
        );
        let outbound = select(full(), &["outbound".into()]).unwrap();
        assert!(
            outbound
                .iter()
                .all(|cell| !matches!(cell.work, Work::Soak { .. }))
        );
        assert_eq!(
            select(quick(), &["soak/outbound".into()]).unwrap(),
            on_request()[..1]
        );
    }

    #[test]
    fn a_pattern_without_a_match_lists_the_words() {
        let error = select(full(), &["bulk/mtu-9000".into()])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("bulk/mtu-9000") && error.contains("mtu-1500"),
            "{error}"
        );
    }
}
