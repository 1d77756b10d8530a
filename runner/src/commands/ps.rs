//! `coracle ps`: the caller's containers as a table, as ids or as JSON.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::{open_store, print_line};
use crate::cli::{PsArgs, PsFormat};
use crate::failure::Failure;
use crate::state::{Container, Status};

pub fn ps(args: PsArgs) -> Result<u8, Failure> {
    let listing = open_store()?.list()?;
    for damaged in &listing.damaged {
        eprintln!("coracle: warning: {damaged}");
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
        PsFormat::Json => {
            let rows: Vec<JsonRow> = shown.map(JsonRow::from).collect();
            print_line(&serde_json::to_string_pretty(&rows)?)?;
        }
        PsFormat::Table => {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs());
            let rows: Vec<_> = shown.map(|container| row(container, now)).collect();
            table(&rows).lines().try_for_each(print_line)?;
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
}

impl<'a> From<&'a Container> for JsonRow<'a> {
    fn from(container: &'a Container) -> Self {
        let (status, exit_code) = match container.status {
            Status::Created => ("created", None),
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
    /// Characters of a command in the table.
    const COMMAND_MAX: usize = 30;
    let status = match container.status {
        Status::Created => "Created".to_owned(),
        Status::Running => format!("Up {}", ago(now.saturating_sub(container.created))),
        Status::Exited { code, at } => {
            format!("Exited ({code}) {} ago", ago(now.saturating_sub(at)))
        }
    };
    let mut command = printable(&container.command.join(" "));
    if let Some((end, _)) = command.char_indices().nth(COMMAND_MAX) {
        command.replace_range(end.., "…");
    }
    [
        container.id.short().to_owned(),
        printable(&container.image),
        command,
        format!("{} ago", ago(now.saturating_sub(container.created))),
        status,
        printable(&container.publish.join(", ")),
        printable(&container.name),
    ]
}

fn table(rows: &[[String; 7]]) -> String {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .chain([HEADER[column].len()])
            .max()
    };
    let widths: Vec<usize> = (0..HEADER.len()).filter_map(width).collect();
    let mut text = String::new();
    let header = HEADER.map(str::to_owned);
    for row in std::iter::once(&header).chain(rows) {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        // Cannot fail: the target is memory.
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
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

/// Commands come from anywhere: what would act on the terminal is shown as it is written.
fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect()
            } else {
                vec![c]
            }
        })
        .collect()
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
    fn nothing_in_a_table_acts_on_the_terminal() {
        assert_eq!(printable("\x1b[2J\nä\u{9b}"), "\\u{1b}[2J\\nä\\u{9b}");
    }

    #[test]
    fn columns_line_up() {
        let row = |id: &str, name: &str| [id, "i", "c", "t", "s", "", name].map(str::to_owned);
        let text = table(&[row("0123456789ab", "a"), row("x", "ä")]);
        let columns: Vec<_> = text.lines().map(|line| line.chars().count()).collect();
        assert_eq!(columns[1], columns[2]);
        assert!(text.starts_with("CONTAINER ID  IMAGE  COMMAND"));
    }
}
