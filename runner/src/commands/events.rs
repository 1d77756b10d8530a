//! `coracle events`: what has happened to containers, images, volumes and networks, and what
//! happens.

use std::io::{self, Write};
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::filter::{admits, check, has_label, time_option, wrong};
use super::rows::print_filled;
use super::{open_engine, output_result};
use crate::cli::{EventsArgs, Filter};
use crate::events::{Event, EventKind};
use crate::failure::Failure;
use crate::logs;
use crate::printable::{escape, escape_json};
use crate::template::{Format, Template};

pub fn events(args: &EventsArgs) -> Result<u8, Failure> {
    check(&args.filters, "events", FILTERS)?;
    if let Some(filter) = args.filters.iter().find(|filter| !is_known(filter)) {
        return Err(wrong(
            filter,
            "there are container, image, network and volume",
        ));
    }
    let shown = Shown::read(args.format.as_ref())?;
    let since = time_option("since", args.since.as_deref())?;
    let until = time_option("until", args.until.as_deref())?;
    let journal = open_engine()?.store().journal();
    // Without a word about time it is about what is to come.
    let only_new = args.stream && since.is_none() && until.is_none();
    let dir = journal.dir().display();
    let reading = || Failure::context(format!("cannot read the journal of events in {dir}"));
    let mut reader = journal.read(only_new).map_err(reading())?;
    loop {
        while let Some((time, event)) = reader.next_event().map_err(reading())? {
            if since.is_some_and(|since| time.as_second() < since) {
                continue;
            }
            if until.is_some_and(|until| time.as_second() >= until) {
                return Ok(0);
            }
            if admits(&args.filters, |filter| Ok(has(&event, filter)))?
                && !shown.print(time, &event, args.no_trunc)?
            {
                return Ok(0);
            }
        }
        let left = match until {
            // The time has come, or had before.
            Some(until) => match u64::try_from(until - Timestamp::now().as_second()) {
                Ok(left @ 1..) => Duration::from_secs(left),
                _ => return Ok(0),
            },
            None => Duration::from_secs(3600),
        };
        if !args.stream {
            return Ok(0);
        }
        reader.wait(left).map_err(reading())?;
    }
}

const FILTERS: &[&str] = &[
    "container",
    "event",
    "image",
    "label",
    "network",
    "status",
    "type",
    "volume",
];

/// Whether there can be such a thing.
fn is_known(filter: &Filter) -> bool {
    filter.key != "type" || matches!(&*filter.value, "container" | "image" | "network" | "volume")
}

fn has(event: &Event, filter: &Filter) -> bool {
    let value = &*filter.value;
    let is = |kind: EventKind| {
        let by_id = event.id.as_ref().is_some_and(|id| id.starts_with(value));
        event.kind == kind && (event.name == value || by_id)
    };
    match &*filter.key {
        "container" => is(EventKind::Container),
        "event" | "status" => event.status == value,
        "image" => is(EventKind::Image) || event.image.as_deref() == Some(value),
        "label" => has_label(event.attributes.iter(), value),
        "network" => event.network.as_deref() == Some(value),
        "type" => event.kind.name() == value,
        "volume" => is(EventKind::Volume),
        other => unreachable!("{other} is not among those that were checked"),
    }
}

/// How events are printed.
enum Shown {
    Line,
    Json,
    Template(Box<Template>),
}

impl Shown {
    fn read(format: Option<&Format>) -> Result<Self, Failure> {
        Ok(match format {
            None => Self::Line,
            Some(Format::Json) => Self::Json,
            Some(Format::Template(template)) => {
                Self::Template(Box::new(Template::parse(template)?))
            }
            Some(Format::Table(_)) => {
                return Err(Failure::runner(
                    "events come one by one, and make no table: --format takes json, or a template",
                ));
            }
        })
    }

    /// False when nobody reads any more.
    fn print(&self, time: logs::Timestamp, event: &Event, whole: bool) -> Result<bool, Failure> {
        let text = match self {
            Self::Line => line(time, event, whole),
            Self::Json => escape_json(&as_json(time, event).to_string()),
            Self::Template(template) => {
                return print_filled(&template.fill(&fields(time, event))?).map(|()| true);
            }
        };
        let mut stdout = io::stdout();
        let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
        let is_read = written.is_ok();
        output_result(written).map(|()| is_read)
    }
}

fn as_json(time: logs::Timestamp, event: &Event) -> Value {
    let mut value = json!(event);
    value["Time"] = time.to_string().into();
    // As with Podman, which has no code of 0 there.
    if event.container_exit_code == Some(0)
        && let Some(fields) = value.as_object_mut()
    {
        fields.remove("ContainerExitCode");
    }
    value
}

/// What a template has.
fn fields(time: logs::Timestamp, event: &Event) -> Value {
    json!({
        "Attributes": event.attributes,
        "ContainerExitCode": event.container_exit_code.unwrap_or(0),
        "HealthStatus": event.health_status.map(|status| status.to_string()).unwrap_or_default(),
        "ID": event.id.clone().unwrap_or_default(),
        "Image": event.image.clone().unwrap_or_default(),
        "Name": event.name,
        "Network": event.network.clone().unwrap_or_default(),
        "Status": event.status,
        "Time": time.to_string(),
        "Type": event.kind.name(),
    })
}

/// As Podman prints it.
fn line(time: logs::Timestamp, event: &Event, whole: bool) -> String {
    let at: Timestamp = time.to_string().parse().unwrap_or_default();
    let at = at.to_zoned(TimeZone::system());
    let time = at.strftime("%Y-%m-%d %H:%M:%S%.f %z %Z");
    let id = event.id.as_deref().unwrap_or_default();
    let id = match whole {
        true => id,
        false => id.get(..12).unwrap_or(id),
    };
    let (kind, status, name) = (event.kind.name(), &event.status, &event.name);
    let head = format!("{time} {kind} {status}");
    escape(&match event.kind {
        EventKind::Container => {
            let image = event.image.as_deref().unwrap_or_default();
            let health = event.health_status.iter();
            let health = health.map(|status| format!(", health_status={status}"));
            let labels = event.attributes.iter();
            let labels = labels.map(|(key, value)| format!(", {key}={value}"));
            let more: String = health.chain(labels).collect();
            format!("{head} {id} (image={image}, name={name}{more})")
        }
        EventKind::Image => format!("{head} {id} {name}"),
        EventKind::Network if id.is_empty() => format!("{head} {name}"),
        EventKind::Network => format!("{head} {id} (container={id}, name={name})"),
        EventKind::Volume => format!("{head} {name}"),
    })
}
