//! `coracle stats`: what containers take of the machine, once or again and again.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::{Value, json};

use super::human::size_in_digits;
use super::rows::print_list;
use super::table::table;
use super::{human, latest, open_engine, output_result};
use crate::cli::StatsArgs;
use crate::engine::{Engine, ErrorKind, Stats};
use crate::failure::Failure;
use crate::printable::escape;
use crate::state::{Container, Status};

pub fn stats(args: &StatsArgs) -> Result<u8, Failure> {
    let engine = open_engine()?;
    let names = match args.latest {
        true => vec![latest(&engine)?],
        false => args.containers.clone(),
    };
    // Before the first look, so that a slip of the finger is told of at once.
    for name in &names {
        engine.find(name)?;
    }
    let mut before = BTreeMap::new();
    loop {
        let rows = look(&engine, &names, args, &mut before)?;
        if !args.no_stream && !args.no_reset && args.format.is_none() {
            clear()?;
        }
        print(&rows, args)?;
        if args.no_stream {
            return Ok(0);
        }
        thread::sleep(Duration::from_secs(args.interval.into()));
    }
}

/// Looks at each container that is meant; `before` are the last looks, by ids.
fn look(
    engine: &Engine,
    names: &[String],
    args: &StatsArgs,
    before: &mut BTreeMap<String, Stats>,
) -> Result<Vec<Row>, Failure> {
    let containers = match names {
        [] => {
            let mut containers = engine.list()?.containers;
            containers.retain(|container| args.all || container.status == Status::Running);
            containers
        }
        names => {
            // One that was there before may have gone.
            let found = names.iter().filter_map(|name| engine.find(name).ok());
            found.collect()
        }
    };
    let mut rows = Vec::new();
    for container in containers {
        let stats = match engine.stats(&container) {
            Ok(stats) => Some(stats),
            Err(error) if error.kind() == ErrorKind::NotRunning => None,
            Err(error) => return Err(error.into()),
        };
        let last = match &stats {
            Some(stats) => before.insert(container.id.to_string(), stats.clone()),
            None => before.remove(container.id.as_str()),
        };
        rows.push(Row::of(&container, stats.as_ref(), last.as_ref(), args));
    }
    Ok(rows)
}

fn clear() -> Result<(), Failure> {
    let mut stdout = std::io::stdout();
    match stdout.is_terminal() {
        // Home, and all that follows is gone.
        true => output_result(stdout.write_all(b"\x1b[H\x1b[2J")),
        false => Ok(()),
    }
}

/// As Podman has it: texts, and two dashes for what is not known.
#[derive(Serialize)]
struct Row {
    id: String,
    name: String,
    cpu_time: String,
    cpu_percent: String,
    avg_cpu: String,
    mem_usage: String,
    mem_percent: String,
    net_io: String,
    block_io: String,
    pids: String,
}

const UNKNOWN: &str = "--";

impl Row {
    fn of(
        container: &Container,
        stats: Option<&Stats>,
        last: Option<&Stats>,
        args: &StatsArgs,
    ) -> Self {
        let or = |text: Option<String>| text.unwrap_or_else(|| UNKNOWN.to_owned());
        let percent = |share: f64| format!("{share:.2}%");
        let cpu_time = stats.and_then(|stats| stats.cpu_time);
        let since_start = container.started.map(|started| {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            now.saturating_sub(Duration::from_secs(started))
        });
        let average = cpu_time
            .zip(since_start)
            .map(|(used, age)| share(used, age));
        let now = match (stats, last) {
            (Some(now), Some(last)) => now.cpu_time.zip(last.cpu_time).map(|(used, before)| {
                share(used.saturating_sub(before), now.at.duration_since(last.at))
            }),
            _ => average,
        };
        let pair = |pair: Option<[u64; 2]>| match pair {
            Some([one, other]) => format!("{} / {}", size_in_digits(one), size_in_digits(other)),
            None => format!("{UNKNOWN} / {UNKNOWN}"),
        };
        let memory = stats.and_then(|stats| stats.memory);
        let limit = stats.and_then(|stats| stats.memory_limit);
        Self {
            id: match args.no_trunc {
                true => container.id.to_string(),
                false => container.id.short().to_owned(),
            },
            name: container.name.clone(),
            cpu_time: or(cpu_time.map(human::go_duration)),
            cpu_percent: or(now.map(percent)),
            avg_cpu: or(average.map(percent)),
            mem_usage: format!(
                "{} / {}",
                or(memory.map(size_in_digits)),
                or(limit.map(size_in_digits))
            ),
            mem_percent: or(memory
                .zip(limit)
                .map(|(used, all)| percent(100.0 * used as f64 / all.max(1) as f64))),
            net_io: pair(stats.and_then(|stats| stats.network)),
            block_io: pair(stats.and_then(|stats| stats.block)),
            pids: or(stats
                .and_then(|stats| stats.processes)
                .map(|count| count.to_string())),
        }
    }

    fn fields(&self) -> Value {
        json!({
            "ID": self.id, "ContainerID": self.id, "Name": self.name, "CPUPerc": self.cpu_percent,
            "CPU": self.cpu_percent, "AVGCPU": self.avg_cpu, "CPUNano": self.cpu_time,
            "UpTime": self.cpu_time, "MemUsage": self.mem_usage, "MemPerc": self.mem_percent,
            "NetIO": self.net_io, "BlockIO": self.block_io, "PIDS": self.pids, "PIDs": self.pids,
        })
    }

    fn cells(&self) -> [String; 10] {
        [
            &self.id,
            &self.name,
            &self.cpu_percent,
            &self.mem_usage,
            &self.mem_percent,
            &self.net_io,
            &self.block_io,
            &self.pids,
            &self.cpu_time,
            &self.avg_cpu,
        ]
        .map(|cell| escape(cell))
    }
}

fn share(used: Duration, of: Duration) -> f64 {
    100.0 * used.as_secs_f64() / of.as_secs_f64().max(f64::EPSILON)
}

/// The fields of a template, and what stands over their columns.
const HEADERS: [(&str, &str); 14] = [
    ("ID", "ID"),
    ("ContainerID", "ID"),
    ("Name", "NAME"),
    ("CPUPerc", "CPU %"),
    ("CPU", "CPU %"),
    ("AVGCPU", "AVG CPU %"),
    ("CPUNano", "CPU TIME"),
    ("UpTime", "CPU TIME"),
    ("MemUsage", "MEM USAGE / LIMIT"),
    ("MemPerc", "MEM %"),
    ("NetIO", "NET IO"),
    ("BlockIO", "BLOCK IO"),
    ("PIDS", "PIDS"),
    ("PIDs", "PIDS"),
];

const HEADER: [&str; 10] = [
    "ID",
    "NAME",
    "CPU %",
    "MEM USAGE / LIMIT",
    "MEM %",
    "NET IO",
    "BLOCK IO",
    "PIDS",
    "CPU TIME",
    "AVG CPU %",
];

fn print(rows: &[Row], args: &StatsArgs) -> Result<(), Failure> {
    /// As wide as Podman's columns are at least.
    const WIDTH_MIN: usize = 10;
    print_list(
        args.format.as_ref(),
        true,
        &HEADERS,
        || Ok(rows),
        || Ok(rows.iter().map(Row::fields).collect()),
        || {
            let cells: Vec<_> = rows.iter().map(Row::cells).collect();
            table(Some(HEADER), &cells, WIDTH_MIN)
        },
    )
}
