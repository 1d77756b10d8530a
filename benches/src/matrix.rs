//! Which cells are measured, and how long each runs.
//!
//! Every combination of [`all`] can be asked for by name. [`full`] is the choice that runs unasked:
//! a base line for each kind of work, and from there one property varied at a time, because the
//! whole cross product would take half a day and repeat itself. docs/PERFORMANCE.md gives the
//! reasons.

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::cell::{Cell, Congestion, Family, Route, Way, Work};

/// How long the parts of one figure take, in milliseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Timing {
    /// Traffic before the clock starts, so that slow start and first-touch costs are not counted.
    pub warm_ms: u64,
    /// Bulk, request and exchange cells.
    pub measure_ms: u64,
    /// Connect cells, which must last long enough to meet reused ports and TIME-WAIT.
    pub connect_ms: u64,
    /// Each rate that the search for the highest one without loss tries.
    #[serde(default)]
    pub probe_ms: u64,
}

impl Timing {
    pub const FULL: Self = Self {
        warm_ms: 300,
        measure_ms: 1_000,
        connect_ms: 4_000,
        probe_ms: 150,
    };
    pub const QUICK: Self = Self {
        warm_ms: 200,
        measure_ms: 500,
        connect_ms: 2_000,
        probe_ms: 100,
    };

    /// Datagrams before the search, which takes the longer part.
    pub fn unpaced_ms(&self) -> u64 {
        self.measure_ms / 2
    }

    /// Roughly how long one figure takes, set-up included; used for the forecast only.
    pub fn estimate_ms(&self, work: Work) -> u64 {
        const SETUP_MS: u64 = 150;
        SETUP_MS
            + match work {
                Work::Bulk { .. } | Work::Request { .. } | Work::Exchange { .. } => {
                    self.warm_ms + self.measure_ms
                }
                // Some probes are repeated, and each ends with a moment of silence.
                Work::Datagrams { .. } => self.unpaced_ms() + 9 * (self.probe_ms + 30),
                Work::Connect { .. } => self.connect_ms,
                // At a few thousand a second.
                Work::Soak { connections } => u64::from(connections) / 3,
                Work::Memory { connections } => 800 + u64::from(connections) * 2 / 5,
            }
    }
}

const ROUTES: [Route; 3] = [Route::Outbound, Route::Published, Route::PublishedRemote];
const WAYS: [Way; 2] = [Way::FromGuest, Way::ToGuest];
const MTUS: [u16; 2] = [65520, 1500];
const FLOWS: [u32; 3] = [1, 8, 64];
const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

/// The full matrix.
pub fn full() -> Vec<Cell> {
    let mut cells = bulk();
    cells.extend(datagrams());
    for route in [Route::Outbound, Route::Published] {
        for connections in [1, 64] {
            cells.push(Cell::new(Work::Request { connections }, route));
        }
    }
    cells.push(ipv6(Cell::new(
        Work::Request { connections: 64 },
        Route::Outbound,
    )));
    cells.push(Cell::new(Work::Exchange { sockets: 1 }, Route::Outbound));
    for route in [Route::Outbound, Route::PublishedRemote] {
        cells.push(Cell::new(Work::Exchange { sockets: 64 }, route));
    }
    for route in [Route::Outbound, Route::Published] {
        cells.push(Cell::new(Work::Connect { at_once: 64 }, route));
    }
    let memory = |connections, route| Cell::new(Work::Memory { connections }, route);
    cells.extend([Route::Outbound, Route::Published].map(|route| memory(1_000, route)));
    cells.push(memory(10_000, Route::Outbound));
    cells
}

/// TCP bulk: a base line of one flow on every route, then MTU, flows, congestion control and
/// family, each where it can matter.
fn bulk() -> Vec<Cell> {
    let cell = |route, way, flows| Cell::new(Work::Bulk { way, flows }, route);
    let mut cells = Vec::new();
    for way in WAYS {
        cells.extend(ROUTES.map(|route| cell(route, way, 1)));
        // A client on the host's loopback reaches most helpers' guests past the tap, whatever its
        // MTU.
        for route in [Route::Outbound, Route::PublishedRemote] {
            cells.push(at_1500(cell(route, way, 1)));
            cells.push(cell(route, way, 64));
        }
        cells.push(cell(Route::Outbound, way, 8));
        cells.push(at_1500(cell(Route::Outbound, way, 64)));
        cells.extend(
            [Route::Outbound, Route::PublishedRemote].map(|route| ipv6(cell(route, way, 1))),
        );
    }
    // Only the sender's congestion control decides.
    let sends = cell(Route::Outbound, Way::FromGuest, 1);
    cells.extend([bbr(sends), bbr(at_1500(sends))]);
    cells.push(at_1500(ipv6(sends)));
    let published = cell(Route::Published, Way::FromGuest, 1);
    cells.extend([sends, published].map(on_bbr_host));
    cells
}

/// UDP: datagrams of 1400 bytes, one and many per system call, then flows and family; datagrams of
/// 32 KiB where the MTU allows.
fn datagrams() -> Vec<Cell> {
    let cell = |route, way, flows, segmented| {
        at_1500(Cell::new(
            Work::Datagrams {
                way,
                flows,
                segmented,
            },
            route,
        ))
    };
    let mut cells = Vec::new();
    for way in WAYS {
        for route in [Route::Outbound, Route::PublishedRemote] {
            cells.extend([false, true].map(|segmented| cell(route, way, 1, segmented)));
        }
        cells.push(Cell {
            mtu: 65520,
            ..cell(Route::Outbound, way, 1, false)
        });
    }
    cells.push(cell(Route::Outbound, Way::FromGuest, 64, false));
    cells.push(ipv6(cell(Route::Outbound, Way::FromGuest, 1, false)));
    cells
}

/// The cells of `--quick`: one of each kind, so that a change of any path shows.
pub fn quick() -> Vec<Cell> {
    let mut cells = Vec::new();
    for way in WAYS {
        let work = Work::Bulk { way, flows: 1 };
        for route in [Route::Outbound, Route::PublishedRemote] {
            cells.push(Cell::new(work, route));
        }
        cells.push(at_1500(Cell::new(work, Route::Outbound)));
    }
    let way = Way::FromGuest;
    let scaled = Work::Bulk { way, flows: 64 };
    cells.push(Cell::new(scaled, Route::Outbound));
    let base = Cell::new(Work::Bulk { way, flows: 1 }, Route::Outbound);
    cells.push(ipv6(base));
    for segmented in [false, true] {
        let flows = 1;
        let work = Work::Datagrams {
            way,
            flows,
            segmented,
        };
        cells.push(at_1500(Cell::new(work, Route::Outbound)));
    }
    for route in [Route::Outbound, Route::Published] {
        cells.push(Cell::new(Work::Request { connections: 64 }, route));
    }
    cells.push(Cell::new(Work::Exchange { sockets: 64 }, Route::Outbound));
    cells.push(Cell::new(Work::Connect { at_once: 64 }, Route::Outbound));
    let connections = 1_000;
    cells.push(Cell::new(Work::Memory { connections }, Route::Outbound));
    cells
}

/// Every cell that has a name: what can be combined, whether or not it is worth the time.
pub fn all() -> Vec<Cell> {
    let mut works = Vec::new();
    for flows in FLOWS {
        for way in WAYS {
            works.push(Work::Bulk { way, flows });
            works.extend([false, true].map(|segmented| Work::Datagrams {
                way,
                flows,
                segmented,
            }));
        }
        let (connections, sockets) = (flows, flows);
        works.extend([Work::Request { connections }, Work::Exchange { sockets }]);
    }
    works.push(Work::Connect { at_once: 64 });
    works.extend([1_000, 5_000, 10_000].map(|connections| Work::Memory { connections }));
    let connections = 500_000;
    works.push(Work::Soak { connections });

    let mut cells = Vec::new();
    for work in works {
        for route in ROUTES {
            for mtu in MTUS {
                for family in FAMILIES {
                    let cell = Cell {
                        mtu,
                        family,
                        ..Cell::new(work, route)
                    };
                    cells.push(cell);
                    if matches!(
                        work,
                        Work::Bulk { .. } | Work::Request { .. } | Work::Connect { .. }
                    ) {
                        cells.extend([bbr(cell), on_bbr_host(cell)]);
                    }
                }
            }
        }
    }
    cells.retain(|cell| match cell.work {
        // Datagrams of 32 KiB: one send has no room for two, and the link to the machine elsewhere
        // would fragment them.
        Work::Datagrams { segmented, .. } if cell.mtu == 65520 => {
            !segmented && cell.route != Route::PublishedRemote
        }
        // Minutes each; what leaks does so at any MTU.
        Work::Soak { .. } => *cell == Cell::new(cell.work, cell.route),
        _ => true,
    });
    cells
}

/// The cells that match at least one pattern: those of `chosen`, or, for a pattern that matches
/// none of them, those of [`all`]. Everything chosen when there is no pattern.
///
/// A pattern is words joined by `/`, each of which must be a word of the cell's name, in any order.
/// Fails when a pattern matches nothing, naming the words that exist.
pub fn select(chosen: Vec<Cell>, patterns: &[String]) -> Result<Vec<Cell>> {
    if patterns.is_empty() {
        return Ok(chosen);
    }
    let mut selected: Vec<Cell> = Vec::new();
    for pattern in patterns {
        let named = [chosen.clone(), all()]
            .map(|cells| -> Vec<Cell> {
                let fits = |cell: &Cell| matches(cell, pattern);
                cells.into_iter().filter(fits).collect()
            })
            .into_iter()
            .find(|cells| !cells.is_empty());
        let Some(named) = named else {
            let mut words: Vec<String> = all().iter().flat_map(Cell::words).collect();
            words.sort();
            words.dedup();
            bail!(
                "--only {pattern} matches no cell; the words are: {}",
                words.join(" ")
            );
        };
        for cell in named {
            if !selected.contains(&cell) {
                selected.push(cell);
            }
        }
    }
    Ok(selected)
}

fn matches(cell: &Cell, pattern: &str) -> bool {
    let words = cell.words();
    pattern
        .split('/')
        .filter(|word| !word.is_empty())
        .all(|word| words.iter().any(|own| own == word))
}

fn at_1500(cell: Cell) -> Cell {
    Cell { mtu: 1500, ..cell }
}

fn ipv6(cell: Cell) -> Cell {
    let family = Family::Ipv6;
    Cell { family, ..cell }
}

fn bbr(cell: Cell) -> Cell {
    let congestion = Congestion::Bbr;
    Cell { congestion, ..cell }
}

fn on_bbr_host(cell: Cell) -> Cell {
    let host_congestion = Congestion::Bbr;
    Cell {
        host_congestion,
        ..cell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_is_asked_twice_and_every_chosen_one_can_be_named() {
        let all = all();
        for cells in [full(), quick(), all.clone()] {
            let mut names: Vec<String> = cells.iter().map(Cell::to_string).collect();
            let count = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), count);
            for cell in cells {
                assert!(all.contains(&cell), "{cell}");
            }
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
        assert_eq!(either.len(), 5);
    }

    #[test]
    fn what_is_not_chosen_runs_by_name_only() {
        assert!(
            full()
                .iter()
                .all(|cell| !matches!(cell.work, Work::Soak { .. }))
        );
        let soak = select(quick(), &["soak/outbound/mtu-65520/ipv4".into()]).unwrap();
        let connections = 500_000;
        assert_eq!(
            soak,
            [Cell::new(Work::Soak { connections }, Route::Outbound)]
        );
        let bulk = Work::Bulk {
            way: Way::ToGuest,
            flows: 8,
        };
        let unusual = bbr(ipv6(at_1500(Cell::new(bulk, Route::Published))));
        assert!(!full().contains(&unusual));
        assert_eq!(select(full(), &[unusual.to_string()]).unwrap(), [unusual]);
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
