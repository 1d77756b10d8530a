//! Three kinds of plots as inline SVG: horizontal bars, lines over a few categories, and latency
//! distributions.
//!
//! Every plot is drawn for a width of [`WIDTH`] units and scales with its card, so one drawing
//! serves phone and desk. Colours and fonts come from the page's style sheet through the classes
//! `s0`, `s1`, … of the series. Nothing here runs a script.

use std::fmt::Write;

use crate::stats::{Quantile, Summary};

/// Width of a plot in its own units; text is 11 units high.
const WIDTH: f64 = 360.0;
/// Left of the plot area in bar plots: the names.
const NAMES: f64 = 92.0;
/// Right of the bars: the numbers.
const NUMBERS: f64 = 74.0;
const BAR: f64 = 15.0;

/// One bar.
pub struct Bar {
    /// Which of the page's series colours.
    pub series: usize,
    pub name: String,
    pub summary: Summary,
    /// What is written behind the bar.
    pub text: String,
}

/// Bars under a common heading.
pub struct Group {
    pub heading: String,
    pub bars: Vec<Bar>,
}

/// Horizontal bars from zero, grouped, all on one scale, with a whisker over the rounds.
pub fn bars(title: &str, groups: &[Group]) -> String {
    let all = || groups.iter().flat_map(|group| &group.bars);
    let top = all().map(|bar| bar.summary.max).fold(0.0, f64::max);
    let scale = if top > 0.0 {
        (WIDTH - NAMES - NUMBERS) / top
    } else {
        0.0
    };
    let mut body = String::new();
    let mut y = 4.0;
    for group in groups {
        let _ = write!(
            body,
            r#"<text class="group" x="0" y="{:.1}">{}</text>"#,
            y + 11.0,
            escape(&group.heading)
        );
        y += 18.0;
        for bar in &group.bars {
            let Bar {
                series,
                name,
                summary,
                text,
            } = bar;
            let (width, middle) = (summary.median * scale, y + BAR / 2.0);
            let (name, text) = (escape(name), escape(text));
            let tip = format!("{name}: {text}");
            let _ = write!(
                body,
                r#"<text class="name" x="{:.1}" y="{:.1}">{name}</text><rect class="s{series}" x="{NAMES}" y="{y:.1}" width="{width:.1}" height="{:.1}" rx="2"><title>{tip}</title></rect>"#,
                NAMES - 6.0,
                middle + 4.0,
                BAR - 3.0,
            );
            let mut end = width;
            if summary.max > summary.min {
                let (from, to) = (NAMES + summary.min * scale, NAMES + summary.max * scale);
                let at = middle - 1.5;
                let _ = write!(
                    body,
                    r#"<path class="whisker" d="M{from:.1} {at:.1}H{to:.1}"/>"#
                );
                end = end.max(to - NAMES);
            }
            let _ = write!(
                body,
                r#"<text x="{:.1}" y="{:.1}">{text}</text>"#,
                NAMES + end + 5.0,
                middle + 4.0
            );
            y += BAR;
        }
        y += 8.0;
    }
    frame(title, y, &body)
}

/// One line, a value for each category that has one.
pub struct Line {
    pub series: usize,
    pub name: String,
    pub values: Vec<Option<f64>>,
}

/// Lines over evenly spaced categories, from zero.
pub fn lines(
    title: &str,
    categories: &[String],
    lines: &[Line],
    format: fn(f64) -> String,
) -> String {
    const HEIGHT: f64 = 190.0;
    const LEFT: f64 = 40.0;
    let top = lines
        .iter()
        .flat_map(|line| line.values.iter().flatten())
        .fold(0.0_f64, |a, b| a.max(*b));
    let top = if top > 0.0 { top * 1.05 } else { 1.0 };
    let step = (WIDTH - LEFT - 20.0) / (categories.len().max(2) - 1) as f64;
    let x = |index: usize| LEFT + 10.0 + step * index as f64;
    let y = |value: f64| 10.0 + (HEIGHT - 40.0) * (1.0 - value / top);
    let mut body = String::new();
    for part in 0..=4 {
        let value = top * f64::from(part) / 4.0;
        grid_line(&mut body, LEFT, y(value), &format(value));
    }
    for (index, category) in categories.iter().enumerate() {
        let name = escape(category);
        let _ = write!(
            body,
            r#"<text class="tick" x="{:.1}" y="{:.1}">{name}</text>"#,
            x(index),
            HEIGHT - 12.0
        );
    }
    for line in lines {
        let points: Vec<(f64, f64)> = line
            .values
            .iter()
            .enumerate()
            .filter_map(|(index, value)| Some((x(index), y((*value)?))))
            .collect();
        polyline(&mut body, line.series, &line.name, &points);
    }
    frame(title, HEIGHT, &body)
}

/// The latency distribution of one series.
pub struct Distribution {
    pub series: usize,
    pub name: String,
    pub curve: Vec<Quantile>,
}

/// Latency over the share of operations that are faster, both logarithmic, so that the tail has as
/// much room as the rest.
pub fn distributions(title: &str, all: &[Distribution]) -> String {
    const HEIGHT: f64 = 210.0;
    const LEFT: f64 = 44.0;
    const SHARES: [(f64, &str); 5] = [
        (0.0, "0"),
        (0.9, "90 %"),
        (0.99, "99 %"),
        (0.999, "99.9 %"),
        (0.9999, "99.99 %"),
    ];
    // 0 -> 0, 0.9 -> 1, 0.99 -> 2: one unit per nine.
    let nines = |share: f64| -(1.0 - share).log10();
    let latencies = || {
        all.iter()
            .flat_map(|one| one.curve.iter().map(|point| point.us.max(1.0)))
    };
    let low = latencies().fold(f64::INFINITY, f64::min);
    let high = latencies().fold(1.0, f64::max);
    let (low, high) = (low.min(high).log10().floor(), high.log10().ceil());
    let x = |share: f64| LEFT + nines(share) / 4.0 * (WIDTH - LEFT - 24.0);
    let y = |us: f64| 10.0 + (HEIGHT - 40.0) * (high - us.max(1.0).log10()) / (high - low).max(1.0);
    let mut body = String::new();
    let mut decade = low;
    while decade <= high {
        let us = 10_f64.powf(decade);
        grid_line(&mut body, LEFT, y(us), &duration(us));
        decade += 1.0;
    }
    for (share, label) in SHARES {
        let _ = write!(
            body,
            r#"<text class="tick" x="{:.1}" y="{:.1}">{label}</text>"#,
            x(share),
            HEIGHT - 12.0
        );
    }
    for one in all {
        let points: Vec<(f64, f64)> = one
            .curve
            .iter()
            .map(|point| (x(point.share), y(point.us)))
            .collect();
        polyline(&mut body, one.series, &one.name, &points);
    }
    frame(title, HEIGHT, &body)
}

/// Text for use in HTML and SVG.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

fn grid_line(body: &mut String, left: f64, y: f64, label: &str) {
    let _ = write!(
        body,
        r#"<path class="grid" d="M{left} {y:.1}H{WIDTH}"/><text class="axis" x="{:.1}" y="{:.1}">{}</text>"#,
        left - 5.0,
        y + 4.0,
        escape(label),
    );
}

fn polyline(body: &mut String, series: usize, name: &str, points: &[(f64, f64)]) {
    let name = escape(name);
    let path: Vec<String> = points
        .iter()
        .map(|(x, y)| format!("{x:.1},{y:.1}"))
        .collect();
    let _ = write!(
        body,
        r#"<polyline class="l{series}" points="{}"><title>{name}</title></polyline>"#,
        path.join(" ")
    );
    for (x, y) in points {
        let _ = write!(
            body,
            r#"<circle class="s{series}" cx="{x:.1}" cy="{y:.1}" r="3"><title>{name}</title></circle>"#
        );
    }
}

/// Microseconds as an axis label.
fn duration(us: f64) -> String {
    match us {
        us if us < 1_000.0 => format!("{us:.0} µs"),
        us if us < 1_000_000.0 => format!("{:.0} ms", us / 1e3),
        us => format!("{:.0} s", us / 1e6),
    }
}

fn frame(title: &str, height: f64, body: &str) -> String {
    let title = escape(title);
    format!(
        r#"<svg role="img" aria-label="{title}" viewBox="0 0 {WIDTH} {height:.0}">{body}</svg>"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(median: f64, min: f64, max: f64) -> Bar {
        let summary = Summary {
            median,
            min,
            max,
            rounds: 3,
        };
        Bar {
            series: 0,
            name: "a<b".into(),
            summary,
            text: "x".into(),
        }
    }

    #[test]
    fn the_longest_bar_fills_its_room_and_names_are_escaped() {
        let group = Group {
            heading: "g".into(),
            bars: vec![bar(10.0, 10.0, 10.0), bar(5.0, 4.0, 6.0)],
        };
        let svg = bars("t", &[group]);
        assert!(
            svg.contains(r#"width="194.0""#) && svg.contains(r#"width="97.0""#),
            "{svg}"
        );
        assert_eq!(
            svg.matches("whisker").count(),
            1,
            "a single value has no spread"
        );
        assert!(svg.contains("a&lt;b") && !svg.contains("a<b"));
    }

    #[test]
    fn nothing_measured_is_drawn_without_nonsense() {
        let group = Group {
            heading: "g".into(),
            bars: vec![bar(0.0, 0.0, 0.0)],
        };
        let line = Line {
            series: 1,
            name: "l".into(),
            values: vec![None],
        };
        let empty = Distribution {
            series: 2,
            name: "d".into(),
            curve: Vec::new(),
        };
        let drawn = [
            bars("t", &[group]),
            lines("t", &["1".into()], &[line], |v| v.to_string()),
            distributions("t", &[empty]),
        ];
        for svg in drawn {
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn each_nine_has_the_same_room() {
        let curve = [0.0, 0.9, 0.99]
            .map(|share| Quantile { share, us: 100.0 })
            .to_vec();
        let svg = distributions(
            "t",
            &[Distribution {
                series: 0,
                name: "d".into(),
                curve,
            }],
        );
        let points = svg
            .split("points=\"")
            .nth(1)
            .and_then(|rest| rest.split('"').next())
            .unwrap();
        let xs: Vec<f64> = points
            .split(' ')
            .map(|point| point.split(',').next().unwrap().parse().unwrap())
            .collect();
        assert!((xs[1] - xs[0] - (xs[2] - xs[1])).abs() < 0.2, "{xs:?}");
    }
}
