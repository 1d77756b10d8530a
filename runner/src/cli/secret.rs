//! The flags of `secret`.

use std::ffi::OsString;

use clap::{Args, Subcommand};

use super::container::parse_label;
use super::filter::Filter;
use super::groups::ExistsArgs;
use super::values::text;
use crate::template::Format;

#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Keep a secret
    Create(SecretCreateArgs),
    /// Say by the exit code whether a secret is there: 0 or 1
    Exists(ExistsArgs),
    /// Tell all that is known of secrets, but not what they say
    Inspect(SecretInspectArgs),
    /// List secrets
    #[command(visible_alias = "list")]
    Ls(SecretLsArgs),
    /// Remove secrets; containers that have them keep them
    Rm(SecretRmArgs),
}

#[derive(Debug, Args)]
pub struct SecretCreateArgs {
    /// Read the secret from an environment variable of this name, not from a file
    #[arg(long)]
    pub env: bool,

    /// Keep this with the secret: KEY[=VALUE]; may be repeated
    #[arg(short, long = "label", value_parser = text(parse_label), value_name = "KEY[=VALUE]")]
    pub labels: Vec<(String, String)>,

    /// Replace the secret of that name, if there is one
    #[arg(long)]
    pub replace: bool,

    #[arg(value_parser = text(str::parse::<String>))]
    pub name: String,

    /// What holds it: a file, or - for standard input
    #[arg(value_name = "FILE|-")]
    pub source: OsString,
}

#[derive(Debug, Args)]
pub struct SecretInspectArgs {
    /// How to print: json, or a template of Go's
    #[arg(short, long, value_parser = text(str::parse::<Format>))]
    pub format: Option<Format>,

    /// Print it for people
    #[arg(long, conflicts_with = "format")]
    pub pretty: bool,

    /// Names or ids
    #[arg(value_parser = text(str::parse::<String>), required = true, value_name = "SECRET")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct SecretLsArgs {
    /// Ids only
    #[arg(short, long)]
    pub quiet: bool,

    /// Leave out the names of the columns
    #[arg(long)]
    pub noheading: bool,

    /// How to print: json, table, or a template of Go's with .ID, .Name, .Driver, .CreatedAt,
    /// .UpdatedAt and .Labels; `table TEMPLATE` makes columns
    #[arg(long, value_parser = text(str::parse::<Format>))]
    pub format: Option<Format>,

    /// Only what has this: id=ID, name=PATTERN; may be repeated
    #[arg(short, long = "filter", value_parser = text(str::parse::<Filter>), value_name = "KEY=VALUE")]
    pub filters: Vec<Filter>,
}

#[derive(Debug, Args)]
pub struct SecretRmArgs {
    /// All secrets
    #[arg(short, long)]
    pub all: bool,

    /// Names or ids
    #[arg(value_parser = text(str::parse::<String>), value_name = "SECRET")]
    pub names: Vec<String>,
}
