//! The page: `page.html` with its `{{placeholders}}` filled in.
//!
//! Whatever the script in it refreshes later stands in it from the start, so the page says the same
//! without a script.

use super::network::Carrier;
use super::visit::{MapLine, Visit};

const TEMPLATE: &str = include_str!("page.html");

/// Stands for a number that only the network helper knows.
const UNKNOWN: &str = "–";

pub fn render(visit: &Visit<'_>) -> String {
    let mut page = String::with_capacity(TEMPLATE.len() + 2048);
    let mut rest = TEMPLATE;
    while let Some((before, after)) = rest.split_once("{{") {
        let (key, after) = after.split_once("}}").unwrap_or((after, ""));
        page.push_str(before);
        page.push_str(&value(visit, key));
        rest = after;
    }
    page + rest
}

/// What stands for a placeholder, as HTML.
fn value(visit: &Visit<'_>, key: &str) -> String {
    let network = visit.network.as_deref();
    match key {
        "client_ip" => visit.client.ip().to_string(),
        "client_port" => visit.client.port().to_string(),
        "client_where" => (if visit.is_gateway {
            "host"
        } else {
            "elsewhere"
        })
        .to_owned(),
        "hostname" => escape(visit.hostname),
        "path" => match (network, visit.carrier) {
            (None, _) => "unavailable".to_owned(),
            (_, Some(Carrier::Engine)) => "engine".to_owned(),
            (_, Some(Carrier::Kernel)) => "kernel".to_owned(),
            (_, None) => "unknown".to_owned(),
        },
        "connections" => {
            grouped(network.map_or(visit.connections, |status| status.connections_total))
        }
        "requests" => grouped(visit.requests),
        "bytes_in" => network.map_or(UNKNOWN.to_owned(), |status| bytes(status.bytes_to_guest)),
        "bytes_out" => bytes(network.map_or(visit.bytes_sent, |status| status.bytes_from_guest)),
        "in_engine" => network.map_or(UNKNOWN.to_owned(), |status| {
            grouped(status.in_engine as u64)
        }),
        "in_kernel" => network.map_or(UNKNOWN.to_owned(), |status| {
            grouped(status.in_kernel as u64)
        }),
        "root" => root_sentence(visit.uid_map),
        "uid_rows" => rows(visit.uid_map),
        "gid_rows" => rows(visit.gid_map),
        unknown => format!("{{{{{unknown}}}}}"),
    }
}

/// Who the container's root is.
fn root_sentence(uid_map: &[MapLine]) -> String {
    match uid_map.iter().find(|line| line.inside == 0) {
        None => "This process cannot read its user ID map.".to_owned(),
        Some(MapLine {
            outside: 0,
            count: u32::MAX,
            ..
        }) => "There is no user namespace: root in here is root on the host.".to_owned(),
        Some(MapLine { outside: 0, .. }) => {
            "Started by root: root in here is root on the host, fenced in.".to_owned()
        }
        Some(MapLine { outside, .. }) => {
            format!(
                "Root in here is only user <b>{outside}</b> on the host, and may do what that user may."
            )
        }
    }
}

/// The map as table rows: first ID inside, first ID outside, how many.
fn rows(map: &[MapLine]) -> String {
    let row = |line: &MapLine| {
        format!(
            "<tr><td>{}<td>{}<td>{}",
            line.inside,
            line.outside,
            grouped(line.count.into())
        )
    };
    map.iter().map(row).collect()
}

/// With a thin space between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// Three digits and a decimal unit.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut scaled = count as f64 / 1000.0;
    let mut unit = 0;
    // 999.5 would print as 1000 of the smaller unit.
    while scaled >= 999.5 && unit + 1 < UNITS.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    let decimals = if scaled < 9.995 {
        2
    } else {
        usize::from(scaled < 99.95)
    };
    format!("{scaled:.decimals$} {}", UNITS[unit])
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::network::Status;
    use super::*;

    fn visit(uid_map: &[MapLine]) -> Visit<'_> {
        Visit {
            client: "10.0.2.2:41234".parse().unwrap(),
            is_gateway: true,
            hostname: "<b>&\"",
            uid_map,
            gid_map: &[],
            uptime_seconds: 1,
            connections: 2,
            requests: 31_234,
            bytes_sent: 4,
            network: None,
            carrier: None,
        }
    }

    #[test]
    fn fills_every_placeholder_and_escapes_what_it_fills_in() {
        let map = [
            MapLine {
                inside: 0,
                outside: 1001,
                count: 1,
            },
            MapLine {
                inside: 1,
                outside: 100_000,
                count: 65_536,
            },
        ];
        let with_helper = Visit {
            network: Some(Status::default().into()),
            carrier: Some(Carrier::Kernel),
            ..visit(&map)
        };
        for visit in [&visit(&map), &with_helper] {
            let page = render(visit);
            assert!(!page.contains("{{") && !page.contains("}}"));
            assert!(page.contains("&lt;b&gt;&amp;&quot;") && !page.contains("<b>&"));
            assert!(
                page.contains("31\u{202f}234")
                    && page.contains("<tr><td>1<td>100000<td>65\u{202f}536")
                    && page.contains("user <b>1001</b>")
            );
        }
        assert!(render(&visit(&map)).contains("data-path=\"unavailable\""));
        assert!(render(&with_helper).contains("data-path=\"kernel\""));
    }

    #[test]
    fn says_who_root_is() {
        let root = |outside, count| {
            root_sentence(&[MapLine {
                inside: 0,
                outside,
                count,
            }])
        };
        assert!(root(0, u32::MAX).contains("no user namespace"));
        assert!(root(0, 65_536).contains("Started by root"));
        assert!(root(1001, 1).contains("user <b>1001</b>"));
        assert!(root_sentence(&[]).contains("cannot read"));
    }

    #[test]
    fn prints_numbers_for_people() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(grouped),
            ["0", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]
        );
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (9_994, "9.99 kB"),
            (9_996, "10.0 kB"),
            (99_960, "100 kB"),
            (999_499, "999 kB"),
            (999_500, "1.00 MB"),
            (1_073_741_824, "1.07 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }
}
