//! The flags of the commands that take containers through their lives.

use std::time::Duration;

use clap::Args;

use super::filter::Filter;
use super::run::DetachArgs;
use super::values::{self, Switch, text};
use crate::engine::Condition;

#[derive(Debug, Args)]
#[command(after_help = "\
What the container has written to its files and its log is still there. Its ports are bound anew. With -a its output is shown, \
signals go to its command, and the exit code is the command's; it ends with coracle then, as with `coracle run`.")]
pub struct StartArgs {
    /// Show the output of the one container, and end with its exit code
    #[arg(short, long)]
    pub attach: bool,

    /// Connect the caller's standard input, and the output; for a container made with -i or -t
    #[arg(short, long)]
    pub interactive: bool,

    /// Pass signals on to the command: so it is with -a or -i. Otherwise they end coracle, and the
    /// container goes on
    #[arg(long, switch(), value_name = "true|false")]
    pub sig_proxy: Option<bool>,

    #[command(flatten)]
    pub leave: DetachArgs,

    /// All that do not run
    #[arg(long)]
    pub all: bool,

    #[command(flatten)]
    pub chosen: Chosen,
}

#[derive(Debug, Args)]
#[command(after_help = "\
What the container has written before is in `coracle logs`. Its end is the end of this command, with code 0; `coracle wait` tells \
its own code. It goes on when this command is left by the keys, or killed.")]
pub struct AttachArgs {
    #[command(flatten)]
    pub leave: DetachArgs,

    /// Pass signals on to the container's command; otherwise they end coracle only
    #[arg(long, on(), value_name = "true|false")]
    pub sig_proxy: bool,

    /// Leave the standard input alone
    #[arg(long)]
    pub no_stdin: bool,

    /// The container that was made last
    #[arg(short, long)]
    pub latest: bool,

    /// Name or id of the container
    #[arg(value_parser = text(str::parse::<String>))]
    pub container: Option<String>,
}

#[derive(Debug, Args)]
pub struct RestartArgs {
    #[command(flatten)]
    pub grace: GraceArgs,

    /// All, whether they run or not
    #[arg(short, long)]
    pub all: bool,

    /// Only those that run: all of them, or those of the ones named
    #[arg(long)]
    pub running: bool,

    #[command(flatten)]
    pub chosen: Chosen,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The code of a container that is not to end first, as with --condition=running, is -1, and 0 of one that was never started.")]
pub struct WaitArgs {
    /// What to wait for: created, running, paused, exited, stopped, healthy or unhealthy; may be
    /// repeated, one of them is enough
    #[arg(long, value_parser = text(str::parse::<Condition>), value_delimiter = ',', default_value = "stopped", value_name = "STATE")]
    pub condition: Vec<Condition>,

    /// How often to look, where it takes looking: a number and ms, s, m or h. The end of a
    /// container is noticed at once
    #[arg(short, long, value_parser = text(values::parse_interval), default_value = "250ms", value_name = "TIME")]
    pub interval: Duration,

    /// The container that was made last
    #[arg(short, long)]
    pub latest: bool,

    /// Names or ids
    #[arg(value_parser = text(str::parse::<String>), value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
It takes a control group of the container's own, which coracle makes where its caller may make one: where systemd has delegated \
a group to the user, and for containers of root. `coracle stop` and `kill` reach paused containers as well.")]
pub struct PauseArgs {
    /// All that run, or to go on with, all that are paused
    #[arg(short, long)]
    pub all: bool,

    #[command(flatten)]
    pub chosen: Chosen,
}

#[derive(Debug, Args)]
#[command(
    override_usage = "coracle top [OPTIONS] CONTAINER [COLUMN]...",
    after_help = "\
Columns, with commas between them or one by one: args, capamb, capbnd, capeff, capinh, capprm, comm, etime, group, groups, \
hgroup, hgroups, hpid, huser, label, nice, pcpu, pgid, pid, ppid, rgroup, rss, ruser, seccomp, state, stime, time, tty, user, \
vsz, or the codes of ps(1), as %C. Without, it is user,pid,ppid,pcpu,etime,tty,time,args. Those that begin with h are as the \
host has them. rss and vsz are in KiB. No program of the container's is asked, so that options of ps(1) are not taken."
)]
pub struct TopArgs {
    /// The container that was made last
    #[arg(short, long)]
    pub latest: bool,

    /// Name or id of the container, without --latest; then columns
    #[arg(value_parser = text(str::parse::<String>), value_name = "CONTAINER COLUMN")]
    pub words: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RenameArgs {
    /// Name or id of the container
    #[arg(value_parser = text(str::parse::<String>))]
    pub container: String,

    /// Its new name
    #[arg(value_parser = text(str::parse::<String>))]
    pub name: String,
}

/// How long a container has for its end.
#[derive(Debug, Args)]
pub struct GraceArgs {
    /// Seconds from the stop signal, which is SIGTERM unless the image or --stop-signal says
    /// otherwise, to SIGKILL; without, what the container's --stop-timeout says, or 10
    #[arg(
        short = 't',
        long = "time",
        alias = "timeout",
        value_parser = text(values::parse_seconds),
        value_name = "SECONDS"
    )]
    pub timeout: Option<u32>,
}

impl GraceArgs {
    pub fn patience(&self) -> Option<Duration> {
        self.timeout
            .map(|seconds| Duration::from_secs(seconds.into()))
    }
}

/// Which containers are meant.
#[derive(Debug, Args)]
pub struct Chosen {
    /// Those that have this, KEY=VALUE as of `coracle ps`; may be repeated
    #[arg(short, long = "filter", value_parser = text(str::parse::<Filter>), value_name = "KEY=VALUE")]
    pub filters: Vec<Filter>,

    /// The container that was made last
    #[arg(short, long)]
    pub latest: bool,

    /// Names or ids
    #[arg(value_parser = text(str::parse::<String>), value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

impl Chosen {
    /// Whether nothing says which are meant.
    pub fn names_nothing(&self) -> bool {
        self.containers.is_empty() && self.filters.is_empty() && !self.latest
    }
}
