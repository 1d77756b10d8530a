//! The sections of the page, each a title, a line of explanation and cards with one plot each.

use super::Page;
use crate::cell::{Cell, Congestion, Family, Route, Way, Work};
use crate::metric::{Metric, significant};
use crate::peers::Kind;
use crate::report::svg::{self, Bar, Distribution, Group, Line};
use crate::stats::Summary;

const ROUTES: [Route; 3] = [Route::Outbound, Route::Published, Route::PublishedRemote];
const WAYS: [Way; 2] = [Way::FromGuest, Way::ToGuest];

impl Page<'_> {
    pub(super) fn plots(&mut self) {
        self.throughput();
        self.scaling();
        self.datagrams();
        self.distributions();
        self.rates();
        self.connections();
        self.cost_per_gigabyte();
        self.starts();
    }

    /// Bulk throughput of one flow, by MTU.
    fn throughput(&mut self) {
        let cards = self.ways(Metric::GbitPerS, |cell, way| {
            (cell.work == Work::Bulk { way, flows: 1 }).then(|| variant(cell))
        });
        self.bar_section(
            "Throughput by MTU",
            "One TCP connection, Gbit/s. Longer is better.",
            cards,
        );
    }

    /// Bulk throughput over the number of flows.
    fn scaling(&mut self) {
        let mut plots = Vec::new();
        for route in ROUTES {
            for way in WAYS {
                for mtu in [65520, 1500] {
                    let title = format!("{}, {}, MTU {mtu}", route_name(route), way_name(way));
                    if let Some(plot) = self.scaling_plot(&title, route, way, mtu) {
                        plots.push((title, plot));
                    }
                }
            }
        }
        self.section(
            "Scaling by flows",
            "Gbit/s in total over the number of simultaneous TCP connections. Higher is better.",
            &plots,
        );
    }

    /// Nothing when fewer than two numbers of flows were measured.
    fn scaling_plot(&self, title: &str, route: Route, way: Way, mtu: u16) -> Option<String> {
        let flows_of = |cell: &Cell| match cell.work {
            Work::Bulk { flows, .. } => Some(flows),
            _ => None,
        };
        let mut chosen: Vec<(u32, Cell)> = self
            .report
            .cells()
            .into_iter()
            .filter_map(|cell| {
                let flows = flows_of(&cell)?;
                let plain = Cell {
                    mtu,
                    ..Cell::new(Work::Bulk { way, flows }, route)
                };
                (cell == plain).then_some((flows, cell))
            })
            .collect();
        chosen.sort();
        if chosen.len() < 2 {
            return None;
        }
        let categories: Vec<String> = chosen.iter().map(|(flows, _)| flows.to_string()).collect();
        let lines: Vec<Line> = self.each_peer(|series, name| {
            let value =
                |(_, cell): &(u32, Cell)| Some(self.summary(cell, name, Metric::GbitPerS)?.median);
            let values: Vec<Option<f64>> = chosen.iter().map(value).collect();
            values.iter().any(Option::is_some).then(|| Line {
                series,
                name: name.into(),
                values,
            })
        });
        Some(svg::lines(title, &categories, &lines, significant))
    }

    fn datagrams(&mut self) {
        let mut cards = self.ways(Metric::LosslessGbitPerS, datagrams_variant);
        for (title, _) in &mut cards {
            title.push_str(", at most 0.1 % lost");
        }
        let unpaced = self.ways(Metric::GbitPerS, datagrams_variant);
        cards.extend(
            unpaced
                .into_iter()
                .map(|(title, groups)| (title + ", sender unpaced", groups)),
        );
        self.bar_section(
            "UDP",
            "Gbit/s of payload that arrive: at the highest rate of which at most one datagram in a thousand is lost, and from a \
             sender that sends as fast as it can. UDP_SEGMENT hands the kernel 46 datagrams at once. Longer is better.",
            cards,
        );
    }

    fn distributions(&mut self) {
        let mut plots = Vec::new();
        for cell in self.report.cells() {
            let what = match cell.work {
                Work::Request { connections } => counted("TCP requests", connections, "connection"),
                Work::Exchange { sockets } => counted("UDP requests", sockets, "socket"),
                Work::Connect { at_once } => format!("New connections, {at_once} at once"),
                _ => continue,
            };
            let title = format!("{what}, {}{}", route_name(cell.route), family_suffix(&cell));
            let all = self.each_peer(|series, name| {
                let figure = self.report.figure(&cell, name)?;
                Some(Distribution {
                    series,
                    name: name.into(),
                    curve: figure.middle_curve(Metric::P99Us)?.to_vec(),
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
        let with_route = |cell: &Cell, load: String| {
            format!("{}, {load}{}", route_name(cell.route), family_suffix(cell))
        };
        let requests = self.groups(Metric::PerS, |cell| match cell.work {
            Work::Request { connections } => Some(with_route(cell, format!("{connections} open"))),
            _ => None,
        });
        let exchanges = self.groups(Metric::PerS, |cell| match cell.work {
            Work::Exchange { sockets } => Some(with_route(cell, format!("{sockets} in flight"))),
            _ => None,
        });
        let connects = self.groups(Metric::PerS, |cell| match cell.work {
            Work::Connect { at_once } => Some(with_route(cell, format!("{at_once} at once"))),
            _ => None,
        });
        let cards = vec![
            ("Requests over open TCP connections".into(), requests),
            ("Requests over UDP".into(), exchanges),
            ("New connections".into(), connects),
        ];
        self.bar_section(
            "Requests and connections per second",
            "100 bytes asked, 600 answered. Longer is better.",
            cards,
        );
    }

    fn connections(&mut self) {
        let open = |cell: &Cell| match cell.work {
            Work::Memory { connections } => {
                Some(format!("{}, {connections} open", route_name(cell.route)))
            }
            _ => None,
        };
        let new = |cell: &Cell| {
            matches!(cell.work, Work::Connect { .. }).then(|| route_name(cell.route).to_string())
        };
        let cards = vec![
            (
                "Memory per open connection, kB".into(),
                self.groups(Metric::RssPerConnectionKb, open),
            ),
            (
                "CPU microseconds per new connection".into(),
                self.groups(Metric::HelperCpuUsPerOp, new),
            ),
            (
                "Memory of the loaded helper, MB".into(),
                self.groups(Metric::RssLoadedMb, open),
            ),
            (
                "Memory of the idle helper, MB".into(),
                self.groups(Metric::RssStartMb, open),
            ),
        ];
        self.bar_section(
            "Cost per connection",
            "Of the helper's processes. Shorter is better.",
            cards,
        );
    }

    fn cost_per_gigabyte(&mut self) {
        let cards = self.ways(Metric::HelperCpuSPerGb, |cell, way| match cell.work {
            Work::Bulk { flows: 1, .. } if cell.work == (Work::Bulk { way, flows: 1 }) => {
                Some(format!("TCP, {}", variant(cell)))
            }
            Work::Datagrams { .. } => {
                datagrams_variant(cell, way).map(|variant| format!("UDP, {variant}"))
            }
            _ => None,
        });
        self.bar_section(
            "Processor time per gigabyte",
            "CPU seconds of the helper's processes per 10<sup>9</sup> bytes that arrive. Shorter is better.",
            cards,
        );
    }

    fn starts(&mut self) {
        let ready = self.each_peer(|series, name| {
            let samples = self.report.ready_millis(name);
            let summary = Summary::of(&samples)?;
            Some(Bar {
                series,
                name: name.into(),
                text: format!("{} ms", significant(summary.median)),
                // The extremes of dozens of starts are outliers, which would only shrink the bars.
                summary: Summary {
                    min: summary.median,
                    max: summary.median,
                    ..summary
                },
            })
        });
        let helpers = vec![Group {
            heading: "until the guest's network is up".into(),
            bars: ready,
        }];
        let cards = vec![
            ("Helper".into(), helpers),
            ("Container that runs true".into(), self.container_starts()),
        ];
        self.bar_section("Time to start", "Shorter is better.", cards);
    }

    fn container_starts(&self) -> Vec<Group> {
        let mut peers = self.report.peers.iter();
        let coracle = peers.position(|peer| peer.kind == Kind::Coracle);
        let group = |startup: &crate::startup::Startup| {
            let ours = coracle.filter(|_| startup.name.starts_with("coracle"));
            let summary = startup.summary()?;
            let bar = Bar {
                series: ours.unwrap_or(0),
                name: String::new(),
                summary,
                text: format!("{} ms", significant(summary.median)),
            };
            Some(Group {
                heading: startup.name.clone(),
                bars: vec![bar],
            })
        };
        self.report.startups.iter().filter_map(group).collect()
    }

    /// A card for each route and way, with the bars of one metric for the cells that `heading`
    /// names.
    fn ways(
        &self,
        metric: Metric,
        heading: impl Fn(&Cell, Way) -> Option<String>,
    ) -> Vec<(String, Vec<Group>)> {
        let mut cards = Vec::new();
        for route in ROUTES {
            for way in WAYS {
                let of_route = |cell: &Cell| {
                    let here = cell.route == route;
                    here.then(|| heading(cell, way)).flatten()
                };
                let title = format!("{}, {}", route_name(route), way_name(way));
                cards.push((title, self.groups(metric, of_route)));
            }
        }
        cards
    }
}

/// What sets a bulk cell apart from others of its route and way.
fn variant(cell: &Cell) -> String {
    let congestion = match (cell.congestion, cell.host_congestion) {
        (Congestion::Cubic, Congestion::Cubic) => "",
        (Congestion::Bbr, Congestion::Cubic) => ", guest uses BBR",
        (Congestion::Cubic, Congestion::Bbr) => ", host uses BBR",
        (Congestion::Bbr, Congestion::Bbr) => ", guest and host use BBR",
    };
    format!("MTU {}{congestion}{}", cell.mtu, family_suffix(cell))
}

/// The same of a datagram cell that goes `way`.
fn datagrams_variant(cell: &Cell, way: Way) -> Option<String> {
    let Work::Datagrams {
        way: own,
        flows,
        segmented,
    } = cell.work
    else {
        return None;
    };
    let size = if cell.mtu == 1500 { "1400 B" } else { "32 KiB" };
    let calls = if segmented { ", UDP_SEGMENT" } else { "" };
    let flows = if flows == 1 {
        String::new()
    } else {
        format!(", {flows} flows")
    };
    (own == way).then(|| format!("{size}{calls}{flows}{}", family_suffix(cell)))
}

fn family_suffix(cell: &Cell) -> &'static str {
    match cell.family {
        Family::Ipv4 => "",
        Family::Ipv6 => ", IPv6",
    }
}

fn counted(what: &str, count: u32, thing: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{what}, {count} {thing}{plural}")
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
