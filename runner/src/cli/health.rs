//! The flags about a container's health, and the command that checks it.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::values::text;
use crate::engine::{HealthRequest, OnFailure};
use crate::units;

/// How the health of a container is looked after: flags of `run` and `create`.
#[derive(Debug, Args)]
pub struct HealthArgs {
    /// Check the container's health with this command, run as `exec` runs one: a line for /bin/sh,
    /// or a list in JSON; `none` for no check. Without, it is the image's HEALTHCHECK
    #[arg(long, value_parser = text(str::parse::<String>), value_name = "COMMAND|LIST")]
    pub health_cmd: Option<String>,

    /// How long after one check the next begins, or `disable` for `coracle healthcheck run` alone
    /// [default: 30s]
    #[arg(long, value_parser = text(parse_interval), value_name = "TIME|disable")]
    pub health_interval: Option<Duration>,

    /// How many failures in a row make the container unhealthy [default: 3]
    #[arg(long, value_parser = text(parse_retries), value_name = "N")]
    pub health_retries: Option<u32>,

    /// End a check that takes longer; that is a failure [default: 30s]
    #[arg(long, value_parser = text(parse_time), value_name = "TIME")]
    pub health_timeout: Option<Duration>,

    /// For so long after the start failures do not count [default: 0s]
    #[arg(long, value_parser = text(parse_time), value_name = "TIME")]
    pub health_start_period: Option<Duration>,

    /// What is done to the container once it is unhealthy: none, kill, restart or stop
    #[arg(long, value_parser = text(str::parse::<OnFailure>), default_value = "none", value_name = "ACTION")]
    pub health_on_failure: OnFailure,

    /// Leave the image's health check out
    #[arg(long)]
    pub no_healthcheck: bool,
}

impl HealthArgs {
    pub fn request(&self) -> Result<HealthRequest, &'static str> {
        let line = self.health_cmd.as_deref().filter(|line| !line.is_empty());
        let test = match (line, self.no_healthcheck) {
            (Some(_), true) => {
                return Err("--no-healthcheck and --health-cmd cannot be given together");
            }
            (Some(line), false) => Some(test(line)),
            (None, true) => Some(vec!["NONE".to_owned()]),
            (None, false) => None,
        };
        Ok(HealthRequest {
            test,
            interval: self.health_interval,
            timeout: self.health_timeout,
            start_period: self.health_start_period,
            retries: self.health_retries,
            on_failure: self.health_on_failure,
        })
    }
}

/// As images have a check.
fn test(line: &str) -> Vec<String> {
    let kind = |kind: &str, words: Vec<String>| {
        std::iter::once(kind.to_owned())
            .chain(words)
            .collect::<Vec<_>>()
    };
    match serde_json::from_str::<Vec<String>>(line) {
        Ok(words) => match words.first().map(String::as_str) {
            Some("CMD" | "CMD-SHELL" | "NONE") => words,
            Some("none") | None => kind("NONE", Vec::new()),
            Some(_) => kind("CMD", words),
        },
        Err(_) if line == "none" => kind("NONE", Vec::new()),
        Err(_) => kind("CMD-SHELL", vec![line.to_owned()]),
    }
}

/// As Go writes a time: `1m30s`.
fn parse_time(text: &str) -> Result<Duration, &'static str> {
    units::duration(text).map(Duration::from_nanos)
}

fn parse_interval(text: &str) -> Result<Duration, &'static str> {
    match text {
        "disable" => Ok(Duration::ZERO),
        text => parse_time(text),
    }
}

fn parse_retries(text: &str) -> Result<u32, &'static str> {
    let retries: Option<u32> = text.parse().ok();
    let retries = retries.filter(|retries| *retries > 0);
    retries.ok_or("expected a number greater than 0")
}

#[derive(Debug, Subcommand)]
pub enum HealthcheckCommand {
    /// Run the health check of a container once: 0 for a success, 1 for a failure
    Run(HealthcheckRunArgs),
}

#[derive(Debug, Args)]
pub struct HealthcheckRunArgs {
    /// Name or id of the container
    #[arg(value_parser = text(str::parse::<String>))]
    pub container: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_a_line_or_a_list() {
        assert_eq!(test("a | b"), ["CMD-SHELL", "a | b"]);
        assert_eq!(test(r#"["a", "b c"]"#), ["CMD", "a", "b c"]);
        assert_eq!(test(r#"["CMD-SHELL", "a"]"#), ["CMD-SHELL", "a"]);
        for none in ["none", "[]", r#"["none"]"#, r#"["NONE"]"#] {
            assert_eq!(test(none), ["NONE"], "{none}");
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(parse_time("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_interval("disable"), Ok(Duration::ZERO));
        for text in ["", "7", "-1s", "soon"] {
            parse_time(text).expect_err(text);
        }
        for text in ["0", "-1", "x"] {
            parse_retries(text).expect_err(text);
        }
    }
}
