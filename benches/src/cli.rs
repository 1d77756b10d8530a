//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::namespaces::Held;
use crate::peers::Programs;

#[derive(Debug, Parser)]
#[command(
    name = "coracle-benches",
    version,
    about = "Measures rootless network helpers beside each other"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the same matrix over coracle-net, slirp4netns, pasta, RootlessKit and host loopback,
    /// interleaved
    Compare(Box<Compare>),
    #[command(flatten)]
    Role(Role),
}

/// What the program starts itself as during a measurement.
#[derive(Debug, Subcommand)]
pub enum Role {
    #[command(name = "__world", hide = true)]
    World { order: String },
    #[command(name = "__stage", hide = true)]
    Stage { order: String },
    #[command(name = "__traffic", hide = true)]
    Traffic { task: String },
    #[command(name = "__hold", hide = true)]
    Hold { held: Held },
    #[command(name = "__report-pid", hide = true)]
    ReportPid { file: PathBuf },
    #[command(name = "__exec", hide = true)]
    Exec {
        #[arg(long)]
        enter: Option<i32>,
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        program: Vec<OsString>,
    },
}

/// Each round asks every peer every question once, peer after peer, in fresh namespaces for each
/// figure; results are medians over the rounds. No root is needed; peers that are not installed are
/// left out and named.
#[derive(Debug, Args)]
pub struct Compare {
    /// A small matrix with short runs: about two minutes
    #[arg(long)]
    pub quick: bool,
    /// How often everything is measured [default: 3, quick: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: Option<u32>,
    /// Only cells with these words in their name, such as bulk/outbound or mtu-1500; also names a
    /// cell that does not run unasked (repeatable: any of them)
    #[arg(long, value_name = "WORDS")]
    pub only: Vec<String>,
    /// Only these peers, besides the host reference (repeatable)
    #[arg(long, value_name = "NAME")]
    pub peer: Vec<String>,
    /// Seconds that transfers and requests are measured for [default: 1, quick: 0.5]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=600))]
    pub seconds: Option<u32>,
    /// Write everything measured to this file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a page with plots to this file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Say what got worse than in this earlier JSON file, by ratio to the host, and fail if
    /// anything of coracle did
    #[arg(long, value_name = "FILE")]
    pub against: Option<PathBuf>,
    /// Ask iperf3 and wrk the same questions, wrk with nginx as the service, too, where they are
    /// installed (takes twice as long)
    #[arg(long)]
    pub cross_check: bool,
    /// Print the cells and peers, measure nothing
    #[arg(long)]
    pub list: bool,
    #[command(flatten)]
    pub programs: Programs,
}
