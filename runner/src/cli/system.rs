//! The options of `coracle system`.

use clap::{Args, Subcommand};

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
    /// Look for damage in the storage of images, and mend it
    Check(CheckArgs),
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
