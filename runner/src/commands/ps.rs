//! `coracle ps`: the caller's containers as a table, as ids, as JSON or as a template has them.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use portfwd::spec::Publish;
use serde::Serialize;
use serde_json::{Value, json};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::filter::{admits, check, has_label, moment, pattern, wrong};
use super::rows::print_list;
use super::table::table;
use super::{human, open_engine, print_line};
use crate::cli::{Filter, PsArgs};
use crate::engine::{Engine, HealthStatus};
use crate::failure::Failure;
use crate::printable::escape;
use crate::process::foreground::warn;
use crate::state::{Container, Status};

pub fn ps(args: PsArgs) -> Result<u8, Failure> {
    check(&args.filters, "ps", FILTERS)?;
    let engine = open_engine()?;
    let listing = engine.list()?;
    for damaged in &listing.damaged {
        warn(&damaged.to_string());
    }
    let last = match args.latest {
        true => Some(1),
        false => args.last,
    };
    // A state that is asked for need not be that of running.
    let of_states = args.filters.iter().any(|filter| filter.key == "status");
    let all = args.all || last.is_some() || of_states;
    let mut shown = Vec::new();
    for container in &listing.containers {
        let is_up = matches!(
            container.status,
            Status::Running | Status::Restarting { .. }
        );
        let is_in = all || is_up;
        if is_in && admits_container(&args.filters, container, &engine)? {
            shown.push(container);
        }
    }
    shown.truncate(last.unwrap_or(usize::MAX));
    if args.quiet {
        return shown
            .into_iter()
            .try_for_each(|container| print_line(id(container, &args)))
            .map(|()| 0);
    }
    print_list(
        args.format.as_ref(),
        !args.noheading,
        &HEADERS,
        || Ok(shown.iter().copied().map(JsonRow::from).collect::<Vec<_>>()),
        || Ok(shown.iter().map(|c| fields(c, &args)).collect()),
        || {
            let rows: Vec<_> = shown.iter().map(|c| row(c, &args)).collect();
            table((!args.noheading).then_some(HEADER), &rows, 0)
        },
    )?;
    Ok(0)
}

/// Whether a container satisfies all filters, whose keys have been checked to be [`FILTERS`].
pub fn admits_container(
    filters: &[Filter],
    container: &Container,
    engine: &Engine,
) -> Result<bool, Failure> {
    admits(filters, |filter| has(container, filter, engine))
}

pub const FILTERS: &[&str] = &[
    "ancestor",
    "before",
    "exited",
    "health",
    "id",
    "label",
    "name",
    "network",
    "restart-policy",
    "since",
    "status",
    "until",
    "volume",
];

/// Whether a container has the value of a filter.
fn has(container: &Container, filter: &Filter, engine: &Engine) -> Result<bool, Failure> {
    let value = &filter.value;
    let made = |container: &Container| (container.created, container.created_nanos);
    Ok(match &*filter.key {
        "ancestor" => {
            let is_named = container.image == *value;
            let image = engine.images()?.find(value).ok();
            let id = image.map(|(image, _)| image.id.hex().to_owned());
            is_named || (id.is_some() && container.image_id == id)
        }
        "before" => made(container) < made(&engine.find(value)?),
        "since" => made(container) > made(&engine.find(value)?),
        "exited" => {
            let wanted = value.parse::<i32>();
            let wanted = wanted.map_err(|_| wrong(filter, "expected an exit code"))?;
            matches!(container.status, Status::Exited { code, .. } if code == wanted)
        }
        "health" => match &**value {
            "starting" | "healthy" | "unhealthy" => {
                health(container).is_some_and(|status| status.to_string() == *value)
            }
            "none" => health(container).is_none(),
            _ => {
                return Err(wrong(
                    filter,
                    "there are starting, healthy, unhealthy and none",
                ));
            }
        },
        "id" => container.id.as_str().starts_with(&**value),
        "label" => has_label(container.labels.iter(), value),
        "name" => pattern(filter)?.is_match(&container.name),
        "network" => {
            let network = engine.networks().find(value).ok();
            let name = network.map_or_else(|| value.clone(), |network| network.name);
            container.networks.iter().any(|own| own.network == name)
        }
        "restart-policy" => container.restart.name() == value,
        "status" => match &**value {
            "created" | "running" | "paused" | "restarting" | "exited" => state(container) == value,
            // These come to nothing here.
            "stopped" | "removing" | "unknown" => false,
            _ => {
                return Err(wrong(
                    filter,
                    "there are created, running, paused, restarting and exited",
                ));
            }
        },
        "until" => human::signed(container.created) < moment(filter)?,
        "volume" => {
            let spec = engine.spec(container)?;
            let is_place = spec.tree.binds.iter().any(|bind| {
                let places = [&bind.source, &bind.target];
                places.iter().any(|place| place.as_os_str() == &**value)
            });
            is_place || engine.volumes().used_by(&spec).contains(value)
        }
        other => unreachable!("{other} is not among those that were checked"),
    })
}

fn state(container: &Container) -> &'static str {
    match container.status {
        Status::Created | Status::Starting => "created",
        Status::Running => "running",
        Status::Paused => "paused",
        Status::Restarting { .. } => "restarting",
        Status::Exited { .. } => "exited",
    }
}

fn id<'a>(container: &'a Container, args: &PsArgs) -> &'a str {
    match args.no_trunc {
        true => container.id.as_str(),
        false => container.id.short(),
    }
}

/// What scripts get. Field names as Podman's.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct JsonRow<'a> {
    id: &'a str,
    names: [&'a str; 1],
    image: &'a str,
    #[serde(rename = "ImageID")]
    image_id: &'a str,
    command: &'a [String],
    /// Seconds since 1970.
    created: u64,
    created_at: String,
    state: &'static str,
    status: String,
    exited: bool,
    /// 0 until it has one.
    exit_code: i32,
    /// Seconds since 1970; 0 while it runs.
    exited_at: u64,
    /// Seconds since 1970; 0 until it has been started.
    started_at: u64,
    /// PID 1 of the container as the host sees it; 0 where there is none.
    pid: i32,
    ports: Vec<JsonPort>,
    labels: &'a BTreeMap<String, String>,
    networks: Vec<&'a str>,
    auto_remove: bool,
    /// How often it has been started again by its policy.
    restarts: u32,
}

/// As Podman has it: a range of ports.
#[derive(Serialize)]
struct JsonPort {
    host_ip: String,
    container_port: u16,
    host_port: u16,
    range: u16,
    protocol: String,
}

impl<'a> From<&'a Container> for JsonRow<'a> {
    fn from(container: &'a Container) -> Self {
        let (exit_code, exited_at) = match container.status {
            Status::Exited { code, at } | Status::Restarting { code, at } => (code, at),
            _ => (0, 0),
        };
        let rules = container.publish.iter();
        let rules = rules.filter_map(|rule| rule.parse::<Publish>().ok());
        Self {
            id: container.id.as_str(),
            names: [&container.name],
            image: &container.image,
            image_id: container.image_id.as_deref().unwrap_or_default(),
            command: &container.command,
            created: container.created,
            created_at: made_ago(container),
            state: state(container),
            status: status(container),
            exited: container.status.has_ended(),
            exit_code,
            exited_at,
            started_at: container.started.unwrap_or(0),
            pid: pid(container),
            ports: rules.filter_map(|rule| JsonPort::of(&rule)).collect(),
            labels: &container.labels,
            networks: container
                .networks
                .iter()
                .map(|own| own.network.as_str())
                .collect(),
            auto_remove: container.remove,
            restarts: container.restart_count,
        }
    }
}

impl JsonPort {
    /// `None` for a rule of no ports.
    pub fn of(rule: &Publish) -> Option<Self> {
        let mut pairs = rule.pairs();
        let (host_port, container_port) = pairs.next()?;
        Some(Self {
            host_ip: rule.host_addr.map(|ip| ip.to_string()).unwrap_or_default(),
            container_port,
            host_port,
            range: u16::try_from(1 + pairs.count()).unwrap_or(u16::MAX),
            protocol: rule.protocol.to_string(),
        })
    }
}

fn pid(container: &Container) -> i32 {
    let init = container.init.as_ref();
    let running = init.filter(|_| container.status.can_kill());
    running.map_or(0, |init| init.pid)
}

/// The fields of a template, and what stands over their columns.
const HEADERS: [(&str, &str); 21] = [
    ("ID", "CONTAINER ID"),
    ("Id", "CONTAINER ID"),
    ("Names", "NAMES"),
    ("Image", "IMAGE"),
    ("ImageID", "IMAGE ID"),
    ("Command", "COMMAND"),
    ("Created", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedHuman", "CREATED"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("State", "STATE"),
    ("ExitCode", "EXIT CODE"),
    ("ExitedAt", "EXITED AT"),
    ("StartedAt", "STARTED AT"),
    ("Pid", "PID"),
    ("Ports", "PORTS"),
    ("Labels", "LABELS"),
    ("Networks", "NETWORKS"),
    ("AutoRemove", "AUTO REMOVE"),
    ("Restarts", "RESTARTS"),
];

fn fields(container: &Container, args: &PsArgs) -> Value {
    let row = JsonRow::from(container);
    json!({
        "ID": id(container, args), "Id": row.id, "Names": container.name, "Image": row.image,
        "ImageID": row.image_id, "Command": row.command.join(" "), "Created": row.created,
        "CreatedAt": human::moment(human::signed(row.created)), "CreatedHuman": row.created_at,
        "RunningFor": row.created_at, "Status": row.status, "State": row.state,
        "ExitCode": row.exit_code, "ExitedAt": row.exited_at, "StartedAt": row.started_at, "Pid": row.pid,
        "Ports": container.publish.join(", "), "Labels": row.labels,
        "Networks": row.networks.join(","),
        "AutoRemove": row.auto_remove, "Restarts": row.restarts,
    })
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

fn row(container: &Container, args: &PsArgs) -> [String; 7] {
    /// Columns of a command in the table.
    const COMMAND_MAX: usize = 30;
    let command = escape(&container.command.join(" "));
    let command = match args.no_trunc {
        true => command,
        false => shortened(&command, COMMAND_MAX),
    };
    [
        id(container, args).to_owned(),
        escape(&container.image),
        command,
        made_ago(container),
        status(container),
        escape(&container.publish.join(", ")),
        escape(&container.name),
    ]
}

fn status(container: &Container) -> String {
    match container.status {
        Status::Created | Status::Starting => "Created".to_owned(),
        Status::Paused => "Paused".to_owned(),
        Status::Running => {
            let age = ago(since(container.started.unwrap_or(container.created)));
            match health(container) {
                Some(status) => format!("Up {age} ({status})"),
                None => format!("Up {age}"),
            }
        }
        Status::Restarting { code, at } => {
            format!("Restarting ({code}) {} ago", ago(since(at)))
        }
        Status::Exited { code, at } => format!("Exited ({code}) {} ago", ago(since(at))),
    }
}

/// What is known of the health of one that runs.
fn health(container: &Container) -> Option<HealthStatus> {
    container
        .health
        .filter(|_| container.status == Status::Running)
}

fn made_ago(container: &Container) -> String {
    format!("{} ago", ago(since(container.created)))
}

/// Seconds from a moment until now.
fn since(moment: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs()).saturating_sub(moment)
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
