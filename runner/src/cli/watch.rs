//! The flags of the commands that watch.

use clap::Args;

use super::filter::Filter;
use super::values::{self, Switch, text};
use crate::template::Format;

#[derive(Debug, Args)]
#[command(after_help = "\
Control groups of the container's own tell of all that it has taken, where coracle may make some. Without, it is what the \
processes take that live; memory that they share is counted for each. What is not known is shown as --.")]
pub struct StatsArgs {
    /// All, also those that do not run
    #[arg(short, long)]
    pub all: bool,

    /// Look once
    #[arg(long)]
    pub no_stream: bool,

    /// Leave the terminal as it is between looks
    #[arg(long)]
    pub no_reset: bool,

    /// Whole ids
    #[arg(long)]
    pub no_trunc: bool,

    /// Seconds between looks
    #[arg(short, long, value_parser = text(values::parse_seconds), default_value = "5", value_name = "SECONDS")]
    pub interval: u32,

    /// How to print: json, table, or a template of Go's with .ID, .Name, .CPUPerc, .MemUsage,
    /// .MemPerc, .NetIO, .BlockIO, .PIDS and others
    #[arg(long, value_parser = text(str::parse::<Format>))]
    pub format: Option<Format>,

    /// The container that was made last
    #[arg(short, long)]
    pub latest: bool,

    /// Names or ids; without, all that run
    #[arg(value_parser = text(str::parse::<String>), value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The last megabyte of events is kept at least, and two at most. Times are as 2026-11-21T23:59:59Z, seconds since 1970, or how \
long ago, as 1h30m.")]
pub struct EventsArgs {
    /// Only what has this: container=NAME, event=WORD, image=NAME, label=KEY[=VALUE],
    /// network=NAME, type=container|image|network|volume, volume=NAME; may be repeated
    #[arg(short, long = "filter", value_parser = text(str::parse::<Filter>), value_name = "KEY=VALUE")]
    pub filters: Vec<Filter>,

    /// How to print: json, or a template of Go's with .Time, .Type, .Status, .ID, .Name, .Image
    /// and others
    #[arg(long, value_parser = text(str::parse::<Format>))]
    pub format: Option<Format>,

    /// Whole ids
    #[arg(long, on(), value_name = "true|false")]
    pub no_trunc: bool,

    /// Begin with what has happened since
    #[arg(long, value_parser = text(str::parse::<String>), value_name = "TIME")]
    pub since: Option<String>,

    /// End with what happens until then
    #[arg(long, value_parser = text(str::parse::<String>), value_name = "TIME")]
    pub until: Option<String>,

    /// Go on with what happens from now on
    #[arg(long, on(), value_name = "true|false")]
    pub stream: bool,
}
