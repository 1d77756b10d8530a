//! The options of `coracle system`.

use clap::{Args, Subcommand};

use super::filter::Filter;
use super::values::text;
use crate::template::Format;

#[derive(Debug, Args)]
pub struct SystemArgs {
    #[command(subcommand)]
    pub command: SystemCommand,
}

#[derive(Debug, Subcommand)]
pub enum SystemCommand {
    /// End the namespaces of `coracle unshare`, so that the next command has new ones: after a
    /// change of /etc/subuid or /etc/subgid
    Migrate,
    /// Tell what takes room on the disk
    Df(DfArgs),
    /// Remove containers that do not run, and images and volumes that nobody needs
    Prune(SystemPruneArgs),
    /// Look for damage in the storage of images, and mend it
    Check(CheckArgs),
    /// Tell what this host allows containers, and how to get more of it
    Info(FormatArgs),
}

#[derive(Debug, Args)]
pub struct FormatArgs {
    /// How to print: json, or a template of Go's with the names of Podman's fields, such as
    /// {{.Host.Kernel}} or {{.Client.Version}}
    #[arg(short, long, value_parser = text(str::parse::<Format>))]
    pub format: Option<Format>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Without --repair nothing is changed, and the exit code is 125 where there is something to mend.
Blobs and layers that are damaged are removed, and images that lack a part forgotten: pull or load them again.")]
pub struct CheckArgs {
    /// Do not read the content of blobs
    #[arg(short, long)]
    pub quick: bool,

    /// Mend what is found
    #[arg(short, long)]
    pub repair: bool,

    /// With --repair, remove containers of images that lack a part
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Images are counted as they lie on the disk: packed, as they came, and unpacked.")]
pub struct DfArgs {
    /// Each image, container and volume
    #[arg(short, long)]
    pub verbose: bool,

    /// How to print: json, table, or a template of Go's with .Type, .Total, .Active, .Size and
    /// .Reclaimable; `table TEMPLATE` makes columns
    #[arg(long, value_parser = text(str::parse::<Format>))]
    pub format: Option<Format>,
}

#[derive(Debug, Args)]
pub struct SystemPruneArgs {
    /// All images that no container uses, whatever names they have
    #[arg(short, long)]
    pub all: bool,

    /// Volumes that no container uses as well
    #[arg(long)]
    pub volumes: bool,

    /// Do not ask
    #[arg(short, long)]
    pub force: bool,

    /// Only what has this: label=KEY[=VALUE], until=TIME; may be repeated
    #[arg(long = "filter", value_parser = text(str::parse::<Filter>), value_name = "KEY=VALUE")]
    pub filters: Vec<Filter>,
}
