//! `coracle ps`: the caller's containers as a table, as ids or as JSON.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::table::table;
use super::{open_engine, print_line};
use crate::cli::{PsArgs, PsFormat};
use crate::failure::Failure;
use crate::printable::{escape, escape_json};
use crate::process::foreground::warn;
use crate::state::{Container, Status};

pub fn ps(args: PsArgs) -> Result<u8, Failure> {
    let listing = open_engine()?.list()?;
    for damaged in &listing.damaged {
        warn(&damaged.to_string());
    }
    let shown = listing
        .containers
        .iter()
        .filter(|c| args.all || c.status == Status::Running);
    if args.quiet {
        let ids: Vec<_> = shown.map(|container| container.id.short()).collect();
        ids.iter().try_for_each(|id| print_line(id))?;
        return Ok(0);
    }
    match args.format {
        Some(PsFormat::Json) => {
            let rows: Vec<JsonRow> = shown.map(JsonRow::from).collect();
            let text = serde_json::to_string_pretty(&rows);
            let text = text.expect("rows have only strings, numbers and lists");
            print_line(&escape_json(&text))?;
        }
        None | Some(PsFormat::Table) => {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs());
            let rows: Vec<_> = shown.map(|container| row(container, now)).collect();
            table(Some(HEADER), &rows, 0)
                .lines()
                .try_for_each(print_line)?;
        }
    }
    Ok(0)
}

/// What scripts get. Field names stay as they are.
#[derive(Serialize)]
struct JsonRow<'a> {
    id: &'a str,
    name: &'a str,
    image: &'a str,
    command: &'a [String],
    /// Seconds since 1970.
    created: u64,
    status: &'static str,
    exit_code: Option<i32>,
    /// PID 1 of the container as the host sees it.
    pid: Option<i32>,
    hostname: &'a str,
    ports: &'a [String],
    labels: &'a BTreeMap<String, String>,
}

impl<'a> From<&'a Container> for JsonRow<'a> {
    fn from(container: &'a Container) -> Self {
        let (status, exit_code) = match container.status {
            Status::Created | Status::Starting => ("created", None),
            Status::Running => ("running", None),
            Status::Exited { code, .. } => ("exited", Some(code)),
        };
        let running = container.status == Status::Running;
        Self {
            id: container.id.as_str(),
            name: &container.name,
            image: &container.image,
            command: &container.command,
            created: container.created,
            status,
            exit_code,
            pid: container
                .init
                .as_ref()
                .filter(|_| running)
                .map(|init| init.pid),
            hostname: &container.hostname,
            ports: &container.publish,
            labels: &container.labels,
        }
    }
}

const HEADER: [&str; 7] = [
    "CONTAINER ID",
    "IMAGE",
    "COMMAND",
    "CREATED",
    "STATUS",
    "PORTS",
    "NAMES",
];

fn row(container: &Container, now: u64) -> [String; 7] {
    /// Columns of a command in the table.
    const COMMAND_MAX: usize = 30;
    let status = match container.status {
        Status::Created | Status::Starting => "Created".to_owned(),
        Status::Running => format!("Up {}", ago(now.saturating_sub(container.created))),
        Status::Exited { code, at } => {
            format!("Exited ({code}) {} ago", ago(now.saturating_sub(at)))
        }
    };
    let command = shortened(&escape(&container.command.join(" ")), COMMAND_MAX);
    [
        container.id.short().to_owned(),
        escape(&container.image),
        command,
        format!("{} ago", ago(now.saturating_sub(container.created))),
        status,
        escape(&container.publish.join(", ")),
        escape(&container.name),
    ]
}

/// Cut to `max` columns, three dots among them. Not an ellipsis, which a terminal without UTF-8
/// cannot show.
fn shortened(text: &str, max: usize) -> String {
    const DOTS: &str = "...";
    if text.width() <= max {
        return text.to_owned();
    }
    let mut short = String::new();
    for c in text.chars() {
        if short.width() + c.width().unwrap_or(0) + DOTS.len() > max {
            break;
        }
        short.push(c);
    }
    short + DOTS
}

/// One unit is enough to find a container by its age.
fn ago(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86400 => (seconds / 3600, "hour"),
        _ => (seconds / 86400, "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_one_unit() {
        let ages = [0, 1, 59, 60, 3599, 3600, 86399, 86400, 864_000].map(ago);
        let expected = [
            "0 seconds",
            "1 second",
            "59 seconds",
            "1 minute",
            "59 minutes",
            "1 hour",
            "23 hours",
            "1 day",
            "10 days",
        ];
        assert_eq!(ages, expected);
    }

    #[test]
    fn commands_are_cut_by_columns() {
        assert_eq!(shortened("0123456789", 10), "0123456789");
        assert_eq!(shortened("0123456789a", 10), "0123456...");
        assert_eq!(shortened("日本日本日", 10), "日本日本日");
        assert_eq!(shortened("日本日本日本", 10), "日本日...");
        assert!(shortened(&"x".repeat(99), 30).is_ascii());
    }
}
