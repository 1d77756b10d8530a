//! The flags about a container's log, and those of the command that shows it.

use clap::Args;

use super::values::{self, TailLines, text};
use crate::engine::{LogConfig, LogDriver};
use crate::logs::MAX_SIZE_MIN;
use crate::units;

/// What becomes of what a container writes: flags of `run` and `create`.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// What keeps what the container writes: k8s-file, which json-file is another name of, or none
    #[arg(long, value_parser = text(str::parse::<LogDriver>), default_value = "k8s-file", value_name = "DRIVER")]
    pub log_driver: LogDriver,

    /// max-size=SIZE: how much is kept at most, as 10m; half of it is kept at least [default: 32m]
    #[arg(long, value_parser = text(parse_option), value_name = "OPTION=VALUE")]
    pub log_opt: Vec<u64>,
}

impl LogArgs {
    pub fn config(&self) -> Result<LogConfig, &'static str> {
        let max_size = self.log_opt.last().copied();
        if self.log_driver == LogDriver::None && max_size.is_some() {
            return Err("--log-opt max-size goes with a log, and there is to be none");
        }
        Ok(LogConfig {
            driver: self.log_driver,
            max_size,
        })
    }
}

/// The one option that there is.
fn parse_option(text: &str) -> Result<u64, String> {
    match text.split_once('=') {
        Some(("max-size", size)) => {
            let size = units::size(size)?;
            match size >= MAX_SIZE_MIN {
                true => Ok(size),
                false => Err(format!("a log has {MAX_SIZE_MIN} bytes at least")),
            }
        }
        Some(("path", _)) => Err(
            "a log is kept with its container: `coracle inspect -f '{{.LogPath}}'` shows where"
                .to_owned(),
        ),
        Some(("tag", _)) => {
            Err("tags go with the system's journal, to which coracle does not write".to_owned())
        }
        _ => Err("there is max-size=SIZE".to_owned()),
    }
}

#[derive(Debug, Args)]
#[command(
    after_help = "The last 16 MiB are kept at least, and 32 MiB at most, unless --log-opt says otherwise; older lines are gone. Times are as \
2026-11-21T23:59:59Z, seconds since 1970, or how long ago, as 1h30m."
)]
pub struct LogsArgs {
    /// Go on until the container ends
    #[arg(short, long)]
    pub follow: bool,

    /// Begin with the last N lines
    #[arg(
        long,
        value_parser = text(values::parse_tail),
        default_value = "all",
        allow_negative_numbers = true,
        value_name = "N|all"
    )]
    pub tail: TailLines,

    /// Show when each line was written
    #[arg(short, long)]
    pub timestamps: bool,

    /// Begin with what was written since
    #[arg(long, value_parser = text(str::parse::<String>), value_name = "TIME")]
    pub since: Option<String>,

    /// End with what is written until then
    #[arg(long, value_parser = text(str::parse::<String>), value_name = "TIME")]
    pub until: Option<String>,

    /// The container that was made last
    #[arg(short, long)]
    pub latest: bool,

    /// Name or id of the container
    #[arg(value_parser = text(str::parse::<String>))]
    pub container: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_has_one_option() {
        assert_eq!(parse_option("max-size=10k"), Ok(10 << 10));
        for text in [
            "max-size=1",
            "max-size=x",
            "path=/x",
            "tag=x",
            "max-size",
            "x=y",
        ] {
            parse_option(text).expect_err(text);
        }
    }
}
