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
}
