//! The report as one self-contained page: plots first, all numbers below them. No script, no
//! external file; readable on a phone.
//!
//! What is plotted is in [`plots`]; here is the page around it.

#[cfg(test)]
mod browser;
mod plots;

use std::fmt::Write;

use super::svg::{self, Bar, Group, escape};
use super::{Report, table};
use crate::cell::Cell;
use crate::metric::Metric;
use crate::stats::Summary;

/// The whole page.
pub fn render(report: &Report) -> String {
    let mut page = Page {
        report,
        html: String::new(),
    };
    page.head();
    page.plots();
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
             whiskers from the lowest to the highest round. <b>host</b> is the kernel alone: what no helper can beat. <b>veth</b> is what \
             root could have.</p>\n\
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::{self, Timing};
    use crate::metric::Outcome;
    use crate::peers::{Kind, Peer, loopback};
    use crate::report::{Figure, Round};
    use crate::stats::Quantile;

    /// Every cell of the full matrix, with round numbers.
    pub(super) fn report() -> Report {
        let peer = Peer {
            name: "<helper>".into(),
            kind: Kind::Coracle,
            ..loopback::peer()
        };
        let longest = Peer {
            name: "rk-slirp4netns".into(),
            kind: Kind::RootlesskitSlirp4netns,
            ..loopback::peer()
        };
        let peers = vec![loopback::peer(), peer, longest];
        let mut report = Report::new(peers, Timing::QUICK, 1);
        for cell in matrix::full() {
            for peer in report.peers.iter().filter(|peer| peer.answers(&cell)) {
                let mut outcome = Outcome::default();
                for metric in [
                    Metric::GbitPerS,
                    Metric::LosslessGbitPerS,
                    Metric::HelperCpuSPerGb,
                    Metric::HelperCpuUsPerOp,
                    Metric::PerS,
                    Metric::P99Us,
                    Metric::RssStartMb,
                    Metric::RssLoadedMb,
                    Metric::RssPerConnectionKb,
                    Metric::ReadyMs,
                ] {
                    outcome.values.insert(metric, 123.0);
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
            "UDP",
            "Latency distribution",
            "Cost per connection",
            "Processor time per gigabyte",
            "Time to start",
        ] {
            let section = page
                .split("<section>")
                .find(|section| section.contains(&format!("<h2>{heading}</h2>")));
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
