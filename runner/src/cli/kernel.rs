//! The flags of `run` and `create` about what the kernel gives the container's processes.

use clap::Args;

use super::values::text;
use crate::isolation::sysctl::Sysctl;
use crate::process::ulimit::{Ulimit, UlimitError};
use crate::units;

#[derive(Debug, Args)]
pub struct KernelArgs {
    /// A limit of the command and all that comes of it, as nofile=1024:4096; host for the caller's
    /// own soft limits [default: nofile as high as the caller may set it]
    #[arg(long = "ulimit", value_parser = text(UlimitArg::parse), value_name = "NAME=SOFT[:HARD]")]
    pub ulimits: Vec<UlimitArg>,

    /// A setting of the kernel's in a namespace of the container's, as net.core.somaxconn=1024
    #[arg(long = "sysctl", value_parser = text(str::parse::<Sysctl>), value_name = "NAME=VALUE")]
    pub sysctls: Vec<Sysctl>,

    /// The permissions that new files do not get, in octal digits [default: 0022]
    #[arg(long, value_parser = text(parse_umask), value_name = "MODE")]
    pub umask: Option<u32>,

    /// How ready the kernel is to kill the command when memory runs out: -1000 to 1000
    #[arg(
        long,
        value_parser = text(parse_oom_score),
        allow_hyphen_values = true,
        value_name = "SCORE"
    )]
    pub oom_score_adj: Option<i32>,

    /// Put the command into a group of the container's besides its user's, by name or number;
    /// keep-groups for those of the caller, which it sees as nogroup
    #[arg(long = "group-add", value_parser = text(str::parse::<String>), value_name = "GROUP")]
    pub groups: Vec<String>,
}

/// One `--ulimit`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UlimitArg {
    One(Ulimit),
    /// `host`: all stay as the caller has them.
    Host,
}

impl UlimitArg {
    fn parse(text: &str) -> Result<Self, UlimitError> {
        match text {
            "host" => Ok(Self::Host),
            text => text.parse().map(Self::One),
        }
    }
}

/// The group that stands for all of the caller's.
pub const KEEP_GROUPS: &str = "keep-groups";

impl KernelArgs {
    /// Those that are named.
    pub fn ulimits(&self) -> Vec<Ulimit> {
        let named = self.ulimits.iter().filter_map(|arg| match arg {
            UlimitArg::One(ulimit) => Some(ulimit.clone()),
            UlimitArg::Host => None,
        });
        named.collect()
    }

    /// Refuses what contradicts itself.
    pub fn check(&self) -> Result<(), String> {
        let keeps = self.groups.iter().any(|group| group == KEEP_GROUPS);
        match keeps && self.groups.len() > 1 {
            true => Err("--group-add keep-groups goes with no other --group-add".to_owned()),
            false => Ok(()),
        }
    }
}

fn parse_umask(text: &str) -> Result<u32, String> {
    match units::mode(text) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("expected permissions in octal digits, as 0022".to_owned()),
    }
}

fn parse_oom_score(text: &str) -> Result<i32, &'static str> {
    let score = text.parse().ok();
    let score = score.filter(|score| (-1000..=1000).contains(score));
    score.ok_or("expected a number of -1000 to 1000")
}
