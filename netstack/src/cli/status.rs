//! `coracle-net status`: what a running helper tells at its status socket, as tables for people, as
//! JSON, or as metrics.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::control::{FlowStatus, LimitStatus, Reason, Status, metrics_text};

/// Shows what a running coracle-net carries, and on which path.
///
/// The helper was given the socket by --status-socket; that of a container is in its run directory.
#[derive(Debug, Parser)]
#[command(name = "status", version, max_term_width = 110)]
pub struct Args {
    /// The status socket
    #[arg(value_name = "PATH")]
    socket: PathBuf,

    /// What to show it as
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    #[default]
    Table,
    /// The document, which docs/STATUS.md describes
    Json,
    /// The text form of Prometheus
    Metrics,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    #[error("cannot connect to the status socket {path}: {source}")]
    Connect { path: PathBuf, source: io::Error },
    #[error("cannot read the status from {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("what {path} tells is no status of coracle-net: {source}")]
    Document {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("cannot write the status: {0}")]
    Write(#[from] io::Error),
}

/// A helper answers at once.
const PATIENCE: Duration = Duration::from_secs(10);

impl Args {
    /// Asks, and writes the answer to `out`.
    pub fn carry_out(&self, out: &mut impl Write) -> Result<(), StatusError> {
        let path = || self.socket.clone();
        let mut stream = UnixStream::connect(&self.socket).map_err(|source| {
            let path = path();
            StatusError::Connect { path, source }
        })?;
        let mut text = String::new();
        stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.read_to_string(&mut text))
            .map_err(|source| StatusError::Read {
                path: path(),
                source,
            })?;
        let status: Status =
            serde_json::from_str(&text).map_err(|source| StatusError::Document {
                path: path(),
                source,
            })?;
        let text = match self.format {
            Format::Table => tables(&status),
            // As the helper tells it, which may be newer and know more.
            Format::Json => text + "\n",
            Format::Metrics => metrics_text(&status),
        };
        match out.write_all(text.as_bytes()) {
            // Who has seen enough of it has closed the pipe.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn tables(status: &Status) -> String {
    let mut text = summary(status);
    text += "\n";
    text += &table(&limits(status));
    if !status.flows.is_empty() {
        text += "\n";
        text += &table(&flows(status));
    }
    text
}

fn summary(status: &Status) -> String {
    let guest: Vec<String> = status.guest.iter().map(ToString::to_string).collect();
    let reason = |reason: &Option<String>| match reason {
        Some(reason) => format!(": {reason}"),
        None => String::new(),
    };
    let promotion = &status.promotion;
    let promoted = match &promotion.unavailable {
        Some(why) => format!("off: {why}"),
        None => format!(
            "{} promoted, {} failed",
            promotion.promoted, promotion.failed
        ),
    };
    let memory = &status.memory;
    let used = memory.receive + memory.send + memory.owed;
    let device = &status.device;
    let networks = (
        "networks behind",
        match &status.guest_networks[..] {
            [] => "none".to_owned(),
            networks => networks.join(", "),
        },
    );
    let rows = [
        ("version", status.version.to_string()),
        ("guest", guest.join(", ")),
        networks,
        (
            "names",
            format!(
                "{}, {} queries answered",
                status.names.len(),
                status.names_answered
            ),
        ),
        (
            "device",
            format!("{}{}", device.kind, reason(&device.reason)),
        ),
        ("connections", format!("{} ever", status.connections_total)),
        ("to the guest", bytes(status.bytes_to_guest)),
        ("from the guest", bytes(status.bytes_from_guest)),
        ("hand-over", promoted),
        (
            "buffers",
            format!("{} of {}", bytes(used as u64), bytes(memory.limit as u64)),
        ),
        (
            "dropped",
            format!(
                "{} not understood, {} not taken by the guest, {} prohibited, {} by limits",
                status.frames_dropped, status.frames_lost, status.prohibited, status.limit_reached
            ),
        ),
    ];
    rows.map(|(name, value)| format!("{name:<16}{value}\n"))
        .concat()
}

fn limits(status: &Status) -> Vec<Vec<String>> {
    let limits = &status.limits;
    let row = |name: &str, limit: &LimitStatus| {
        let numbers = [limit.used as u64, limit.limit as u64, limit.reached];
        let numbers = numbers.map(|number| number.to_string());
        [vec![name.to_owned()], numbers.to_vec()].concat()
    };
    vec![
        ["LIMIT", "USED", "MOST", "REACHED"]
            .map(str::to_owned)
            .to_vec(),
        row("connections", &limits.connections),
        row("waiting", &limits.waiting),
        row("dials", &limits.dials),
        row("half open", &limits.half_open),
        row("udp", &limits.udp),
        row("published udp", &limits.published_udp),
        row("icmp", &limits.icmp),
    ]
}

fn flows(status: &Status) -> Vec<Vec<String>> {
    const HEADER: [&str; 9] = [
        "PROTOCOL",
        "FROM",
        "GUEST",
        "REMOTE",
        "STATE",
        "PATH",
        "TO GUEST",
        "FROM GUEST",
        "AGE",
    ];
    let row = |flow: &FlowStatus| {
        let path = match flow.reason.as_ref().map(Reason::name) {
            Some(reason) => format!("{} ({reason})", flow.path),
            None => flow.path.to_string(),
        };
        let remote = flow
            .remote
            .map_or("any".to_owned(), |remote| remote.to_string());
        vec![
            flow.protocol.to_string(),
            flow.initiator.to_string(),
            flow.guest.to_string(),
            remote,
            flow.state.clone(),
            path,
            bytes(flow.bytes_to_guest),
            bytes(flow.bytes_from_guest),
            age(flow.age_ms),
        ]
    };
    let header = HEADER.map(str::to_owned).to_vec();
    std::iter::once(header)
        .chain(status.flows.iter().map(row))
        .collect()
}

/// Rows of plain words, each column as wide as its widest.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths);
        let cells: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

/// In the largest unit that leaves a whole number before the point.
fn bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let size = |power: i32| bytes as f64 / 1024_f64.powi(power);
    let named = (1..)
        .zip(units)
        .take_while(|(power, _)| size(*power) >= 1.0)
        .last();
    match named {
        Some((power, unit)) => format!("{:.1} {unit}", size(power)),
        None => format!("{bytes} B"),
    }
}

fn age(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0..60 => format!("{}.{} s", seconds, millis % 1000 / 100),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// What is shown when a helper says `told`.
    fn shown(told: &str, words: &[&str]) -> Result<String, StatusError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let words = [&["status"], words, &[path.to_str().unwrap()]].concat();
        let args = Args::try_parse_from(words).unwrap();
        let mut out = Vec::new();
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(told.as_bytes()).unwrap();
            });
            args.carry_out(&mut out)
        });
        outcome.map(|()| String::from_utf8(out).unwrap())
    }

    fn document() -> String {
        serde_json::to_string(&Status::of_the_tests(1)).unwrap()
    }

    #[test]
    fn tables_have_a_line_for_each_flow() {
        let text = shown(&document(), &[]).unwrap();
        for line in [
            "guest           10.0.2.100, fd00::100",
            "networks behind 10.89.0.0/24",
            "names           1, 23 queries answered",
            "device          tap",
            "hand-over       8 promoted, 9 failed",
            "udp            17    100   2",
            "tcp       guest  10.0.2.100:43210  198.51.100.7:443  ESTABLISHED  kernel (hauls)  1 B       2 B         0.0 s",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?}:\n{text}");
        }
    }

    #[test]
    fn json_is_what_the_helper_told() {
        let told = document().replace("\"kind\"", "\"yet_to_come\":1,\"kind\"");
        assert_eq!(shown(&told, &["--format", "json"]).unwrap(), told + "\n");
    }

    #[test]
    fn metrics_are_those_of_the_metrics_socket() {
        let text = shown(&document(), &["--format", "metrics"]).unwrap();
        assert_eq!(text, metrics_text(&Status::of_the_tests(1)));
    }

    #[test]
    fn what_is_no_status_is_named() {
        let error = shown("hello", &[]).unwrap_err().to_string();
        assert!(error.contains("is no status of coracle-net"), "{error}");
        let args = Args::try_parse_from(["status", "/nowhere/net.sock"]).unwrap();
        let error = args.carry_out(&mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("/nowhere/net.sock"), "{error}");
    }

    #[test]
    fn sizes_and_ages_are_for_people() {
        for (number, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_572_864, "1.5 MiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
        for (millis, text) in [
            (0, "0.0 s"),
            (59_999, "59.9 s"),
            (60_000, "1 min"),
            (7_200_000, "2 h"),
            (172_800_000, "2 d"),
        ] {
            assert_eq!(age(millis), text);
        }
    }
}
