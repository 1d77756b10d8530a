//! The report as one self-contained page: plots first, all numbers below them. No script, no external file; readable on a phone.

use std::fmt::Write;

use super::svg::{self, Bar, Distribution, Group, Line, escape};
use super::{Report, table};
use crate::matrix::{Cell, Congestion, Route, Way, Work};
use crate::metric::{Metric, significant};
use crate::peers::Kind;
use crate::stats::Summary;

/// The whole page.
pub fn render(report: &Report) -> String {
    let mut page = Page {
        report,
        html: String::new(),
    };
    page.head();
    page.throughput();
    page.scaling();
    page.bulk_cost();
    page.distributions();
    page.rates();
    page.connections();
    page.starts();
    page.numbers();
    page.html
}

struct Page<'a> {
    report: &'a Report,
    html: String,
}

impl Page<'_> {
    fn head(&mut self) {
        let report = self.report;
        let machine = &report.machine;
        let _ = write!(
            self.html,
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>Rootless network helpers, measured</title>\n<style>{}</style>\n\
             <header><h1>Rootless network helpers, measured</h1>\n\
             <p>All peers answered every question in turn, in fresh namespaces, as an unprivileged process; {} round(s), medians, \
             whiskers from the lowest to the highest round. <b>host</b> is the kernel alone: what no helper can beat.</p>\n\
             <p class=\"machine\">{}, {} cores, {} GB, Linux {}</p>\n<ul class=\"legend\">",
            include_str!("style.css"),
            report.rounds,
            escape(&machine.processor),
            machine.cores,
            machine.memory_gb,
            escape(&machine.kernel),
        );
        for (index, peer) in report.peers.iter().enumerate() {
            let (name, version) = (escape(&peer.name), escape(&peer.version));
            let _ = write!(
                self.html,
                "<li><i class=\"c{index}\"></i><b>{name}</b> {version}</li>"
            );
        }
        self.html.push_str("</ul></header>\n");
    }

    /// Bulk throughput of one flow, by MTU.
    fn throughput(&mut self) {
        let mut cards = Vec::new();
        for route in [Route::Outbound, Route::Published, Route::PublishedRemote] {
            for way in [Way::FromGuest, Way::ToGuest] {
                let work = Work::Bulk { way, flows: 1 };
                let groups = self.groups(Metric::GbitPerS, |cell| {
                    let wanted = cell.work == work && cell.route == route;
                    wanted.then(|| match cell.congestion {
                        Congestion::Cubic => format!("MTU {}", cell.mtu),
                        Congestion::Bbr => format!("MTU {}, guest uses BBR", cell.mtu),
                    })
                });
                cards.push((format!("{}, {}", route_name(route), way_name(way)), groups));
            }
        }
        self.bar_section(
            "Throughput by MTU",
            "One TCP connection, Gbit/s. Longer is better.",
            cards,
        );
    }

    /// Bulk throughput over the number of flows.
    fn scaling(&mut self) {
        let mut plots = Vec::new();
        for route in [Route::Outbound, Route::Published, Route::PublishedRemote] {
            for way in [Way::FromGuest, Way::ToGuest] {
                for mtu in [65520, 1500] {
                    let flows_of = |cell: &Cell| match cell.work {
                        Work::Bulk { way: own, flows }
                            if own == way && cell.route == route && cell.mtu == mtu =>
                        {
                            Some(flows)
                        }
                        _ => None,
                    };
                    let cells: Vec<Cell> = self.report.cells();
                    let mut chosen: Vec<(u32, Cell)> = cells
                        .into_iter()
                        .filter(|cell| cell.congestion == Congestion::Cubic)
                        .filter_map(|cell| Some((flows_of(&cell)?, cell)))
                        .collect();
                    chosen.sort();
                    if chosen.len() < 2 {
                        continue;
                    }
                    let categories: Vec<String> =
                        chosen.iter().map(|(flows, _)| flows.to_string()).collect();
                    let lines: Vec<Line> = self.each_peer(|index, name| {
                        let value = |(_, cell): &(u32, Cell)| {
                            Some(self.summary(cell, name, Metric::GbitPerS)?.median)
                        };
                        let values: Vec<Option<f64>> = chosen.iter().map(value).collect();
                        values.iter().any(Option::is_some).then(|| Line {
                            series: index,
                            name: name.into(),
                            values,
                        })
                    });
                    let title = format!("{}, {}, MTU {mtu}", route_name(route), way_name(way));
                    plots.push((
                        title.clone(),
                        svg::lines(&title, &categories, &lines, significant),
                    ));
                }
            }
        }
        self.section(
            "Scaling by flows",
            "Gbit/s in total over the number of simultaneous TCP connections.",
            &plots,
        );
    }

    fn bulk_cost(&mut self) {
        let mut cards = Vec::new();
        for route in [Route::Outbound, Route::PublishedRemote] {
            for way in [Way::FromGuest, Way::ToGuest] {
                let work = Work::Bulk { way, flows: 1 };
                let groups = self.groups(Metric::HelperCpuSPerGb, |cell| {
                    let wanted = cell.work == work
                        && cell.route == route
                        && cell.congestion == Congestion::Cubic;
                    wanted.then(|| format!("MTU {}", cell.mtu))
                });
                cards.push((format!("{}, {}", route_name(route), way_name(way)), groups));
            }
        }
        self.bar_section(
            "Processor time per gigabyte",
            "CPU seconds of the helper's processes per 10<sup>9</sup> bytes. Shorter is better.",
            cards,
        );
    }

    fn distributions(&mut self) {
        let mut plots = Vec::new();
        for cell in self.report.cells() {
            let title = match cell.work {
                Work::Request { connections: 1 } => {
                    format!("{}, one connection", route_name(cell.route))
                }
                Work::Request { connections } => {
                    format!("{}, {connections} connections", route_name(cell.route))
                }
                Work::Connect { at_once } => format!(
                    "{}, new connections, {at_once} at once",
                    route_name(cell.route)
                ),
                _ => continue,
            };
            let all = self.each_peer(|index, name| {
                let curve = self
                    .report
                    .figure(&cell, name)?
                    .middle_curve(Metric::P99Us)?
                    .to_vec();
                Some(Distribution {
                    series: index,
                    name: name.into(),
                    curve,
                })
            });
            if !all.is_empty() {
                plots.push((title.clone(), svg::distributions(&title, &all)));
            }
        }
        self.section(
            "Latency distribution",
            "How long the fastest part of all requests took: half of them, 99 %, 99.9 %. Lower is better; both axes are logarithmic.",
            &plots,
        );
    }

    fn rates(&mut self) {
        let requests = self.groups(Metric::PerS, |cell| match cell.work {
            Work::Request { connections } => Some(format!(
                "{}, {connections} connection(s)",
                route_name(cell.route)
            )),
            _ => None,
        });
        let connects = self.groups(Metric::PerS, |cell| match cell.work {
            Work::Connect { at_once } => {
                Some(format!("{}, {at_once} at once", route_name(cell.route)))
            }
            _ => None,
        });
        let cards = vec![
            ("Requests over open connections".into(), requests),
            ("New connections".into(), connects),
        ];
        self.bar_section(
            "Requests and connections per second",
            "100 bytes asked, 600 answered. Longer is better.",
            cards,
        );
    }

    fn connections(&mut self) {
        let memory = |report: &Report, cell: &Cell, peer: &str| {
            let Work::Memory { connections } = cell.work else {
                return None;
            };
            let figure = report.figure(cell, peer)?;
            let (loaded, start) = (
                figure.summary(Metric::RssLoadedMb)?,
                figure.summary(Metric::RssStartMb)?,
            );
            let each =
                |megabytes: f64| (megabytes - start.median).max(0.0) * 1e3 / f64::from(connections);
            let (median, min, max) = (each(loaded.median), each(loaded.min), each(loaded.max));
            Some(Summary {
                median,
                min,
                max,
                ..loaded
            })
        };
        let mut groups = Vec::new();
        for cell in self.report.cells() {
            let Work::Memory { connections } = cell.work else {
                continue;
            };
            let bars = self.each_peer(|series, name| {
                let summary = memory(self.report, &cell, name)?;
                let text = format!("{} kB", significant(summary.median));
                Some(Bar {
                    series,
                    name: name.into(),
                    summary,
                    text,
                })
            });
            groups.push(Group {
                heading: format!("{}, {connections} open", route_name(cell.route)),
                bars,
            });
        }
        let cpu = self.groups(Metric::HelperCpuUsPerOp, |cell| {
            matches!(cell.work, Work::Connect { .. }).then(|| route_name(cell.route).to_string())
        });
        let idle = self.groups(Metric::RssStartMb, |cell| {
            matches!(cell.work, Work::Memory { .. }).then(|| route_name(cell.route).to_string())
        });
        let cards = vec![
            ("Memory per open connection".into(), groups),
            ("CPU microseconds per new connection".into(), cpu),
            ("Memory of the idle helper, MB".into(), idle),
        ];
        self.bar_section(
            "Cost per connection",
            "Of the helper's processes. Shorter is better.",
            cards,
        );
    }

    fn starts(&mut self) {
        let ready = self.each_peer(|series, name| {
            let samples = self.report.ready_millis(name);
            let summary = Summary::of(&samples)?;
            let text = format!("{} ms", significant(summary.median));
            // The extremes of dozens of starts are outliers, which would only shrink the bars.
            let summary = Summary {
                min: summary.median,
                max: summary.median,
                ..summary
            };
            Some(Bar {
                series,
                name: name.into(),
                summary,
                text,
            })
        });
        let coracle = self
            .report
            .peers
            .iter()
            .position(|peer| peer.kind == Kind::Coracle);
        let runs = self.report.startups.iter().filter_map(|startup| {
            let ours = coracle.filter(|_| startup.name.starts_with("coracle"));
            let summary = startup.summary()?;
            let text = format!("{} ms", significant(summary.median));
            Some(Bar {
                series: ours.unwrap_or(0),
                name: String::new(),
                summary,
                text,
            })
            .map(|bar| (&startup.name, bar))
        });
        let runs = runs
            .map(|(name, bar)| Group {
                heading: name.clone(),
                bars: vec![bar],
            })
            .collect();
        let helpers = vec![Group {
            heading: "until the guest's network is up".into(),
            bars: ready,
        }];
        let cards = vec![
            ("Helper".into(), helpers),
            ("Container that runs true".into(), runs),
        ];
        self.bar_section("Time to start", "Shorter is better.", cards);
    }

    fn numbers(&mut self) {
        let text = escape(&table::render(self.report));
        let _ = writeln!(
            self.html,
            "<section><h2>All numbers</h2><pre>{text}</pre></section>\n</html>"
        );
    }

    /// The bars of one metric, grouped by what `heading` makes of a cell.
    fn groups(&self, metric: Metric, heading: impl Fn(&Cell) -> Option<String>) -> Vec<Group> {
        let group = |cell: &Cell| {
            let bars = self.each_peer(|series, name| {
                let summary = self.summary(cell, name, metric)?;
                Some(Bar {
                    series,
                    name: name.into(),
                    summary,
                    text: metric.format(summary.median),
                })
            });
            Some(Group {
                heading: heading(cell)?,
                bars,
            })
            .filter(|group| !group.bars.is_empty())
        };
        self.report.cells().iter().filter_map(group).collect()
    }

    fn summary(&self, cell: &Cell, peer: &str, metric: Metric) -> Option<Summary> {
        self.report.figure(cell, peer)?.summary(metric)
    }

    fn each_peer<T>(&self, draw: impl Fn(usize, &str) -> Option<T>) -> Vec<T> {
        self.report
            .peers
            .iter()
            .enumerate()
            .filter_map(|(index, peer)| draw(index, &peer.name))
            .collect()
    }

    fn bar_section(&mut self, title: &str, text: &str, cards: Vec<(String, Vec<Group>)>) {
        let drawn: Vec<(String, String)> = cards
            .into_iter()
            .filter(|(_, groups)| groups.iter().any(|group| !group.bars.is_empty()))
            .map(|(title, groups)| (title.clone(), svg::bars(&title, &groups)))
            .collect();
        self.section(title, text, &drawn);
    }

    /// A section of cards; nothing when there are none.
    fn section(&mut self, title: &str, text: &str, cards: &[(String, String)]) {
        if cards.is_empty() {
            return;
        }
        let _ = writeln!(
            self.html,
            "<section><h2>{title}</h2><p>{text}</p><div class=\"cards\">"
        );
        for (title, plot) in cards {
            let _ = writeln!(
                self.html,
                "<figure><figcaption>{}</figcaption>{plot}</figure>",
                escape(title)
            );
        }
        self.html.push_str("</div></section>\n");
    }
}

fn route_name(route: Route) -> &'static str {
    match route {
        Route::Outbound => "Outbound",
        Route::Published => "Published, client on the host",
        Route::PublishedRemote => "Published, client elsewhere",
    }
}

fn way_name(way: Way) -> &'static str {
    match way {
        Way::FromGuest => "guest sends",
        Way::ToGuest => "guest receives",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::{self, Timing};
    use crate::metric::Outcome;
    use crate::peers::{Peer, loopback};
    use crate::report::{Figure, Round};
    use crate::stats::Quantile;

    fn report() -> Report {
        let peer = Peer {
            name: "<helper>".into(),
            kind: Kind::Coracle,
            ..loopback::peer()
        };
        let mut report = Report::new(vec![loopback::peer(), peer], Timing::QUICK, 1);
        for cell in matrix::full() {
            for peer in report.peers.iter().filter(|peer| peer.answers(&cell)) {
                let mut outcome = Outcome::default();
                for metric in [
                    Metric::GbitPerS,
                    Metric::PerS,
                    Metric::P99Us,
                    Metric::RssStartMb,
                    Metric::RssLoadedMb,
                ] {
                    outcome.values.insert(metric, 10.0);
                }
                outcome.curve = vec![
                    Quantile {
                        share: 0.5,
                        us: 90.0,
                    },
                    Quantile {
                        share: 0.99,
                        us: 900.0,
                    },
                ];
                let mut figure = Figure::new(cell, peer.name.clone());
                figure.rounds.push(Round::Measured(outcome));
                report.figures.push(figure);
            }
        }
        report
    }

    #[test]
    fn every_kind_of_plot_is_on_the_page_and_nothing_is_a_script() {
        let page = render(&report());
        for heading in [
            "Throughput by MTU",
            "Scaling by flows",
            "Latency distribution",
            "Cost per connection",
        ] {
            let section = page
                .split("<section>")
                .find(|section| section.contains(heading));
            assert!(
                section.is_some_and(|section| section.contains("<svg")),
                "{heading}"
            );
        }
        assert!(!page.contains("<script") && !page.contains("NaN"));
        assert!(page.contains("&lt;helper&gt;") && !page.contains("<helper>"));
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    }

    #[test]
    fn an_empty_report_is_a_page_without_plots() {
        let page = render(&Report::new(vec![loopback::peer()], Timing::QUICK, 1));
        assert!(!page.contains("<svg") && page.contains("All numbers"));
    }
}
