//! The flags of `run`, `create` and `update` about what the container may use of the host's.

use clap::{Args, ValueEnum};

use super::values::text;
use crate::engine::RestartPolicy;
use crate::isolation::resources::{Amount, CPU_PERIOD, Resources};
use crate::units;

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits, where the caller may make control groups that have them")]
pub struct LimitArgs {
    /// Memory: bytes, or with k, m or g
    #[arg(short, long, value_parser = text(units::size), value_name = "SIZE")]
    pub memory: Option<u64>,

    /// Memory and swap together; -1 for as much swap as there is [default: twice the memory]
    #[arg(long, value_parser = text(parse_swap), allow_hyphen_values = true, value_name = "SIZE")]
    pub memory_swap: Option<Amount>,

    /// Memory that is not taken from the container while others have more
    #[arg(long, value_parser = text(units::size), value_name = "SIZE")]
    pub memory_reservation: Option<u64>,

    /// How many processors' time it may use, as 1.5
    #[arg(long, value_parser = text(parse_cpus), value_name = "NUMBER")]
    pub cpus: Option<u64>,

    /// Processor time in each period, in microseconds
    #[arg(
        long,
        value_parser = text(parse_micros),
        conflicts_with = "cpus",
        value_name = "MICROSECONDS"
    )]
    pub cpu_quota: Option<u64>,

    /// The length of a period, in microseconds
    #[arg(
        long,
        value_parser = text(parse_micros),
        conflicts_with = "cpus",
        value_name = "MICROSECONDS"
    )]
    pub cpu_period: Option<u64>,

    /// Its share of processor time while others want some; 1024 is the usual one
    #[arg(short, long, value_parser = text(parse_shares), value_name = "NUMBER")]
    pub cpu_shares: Option<u64>,

    /// The processors that it may use, as 0-2,4
    #[arg(long, value_parser = text(parse_list), value_name = "LIST")]
    pub cpuset_cpus: Option<String>,

    /// The memory nodes that it may use
    #[arg(long, value_parser = text(parse_list), value_name = "LIST")]
    pub cpuset_mems: Option<String>,

    /// How many processes and threads it may have; -1 or 0 for any number [default: 2048]
    #[arg(long, value_parser = text(parse_pids), allow_hyphen_values = true, value_name = "NUMBER")]
    pub pids_limit: Option<Amount>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Cgroups {
    Enabled,
    Disabled,
}

#[derive(Debug, Args)]
#[command(after_help = "\
What is not said stays as it is. Limits are changed at once where the container runs, and hold for its later lives as well.")]
pub struct UpdateArgs {
    #[command(flatten)]
    pub limits: LimitArgs,

    /// Start the container again when it ends: no, always, `on-failure[:N]` or unless-stopped
    #[arg(long, value_parser = text(str::parse::<RestartPolicy>), value_name = "POLICY")]
    pub restart: Option<RestartPolicy>,

    /// Name or id of the container, or the beginning of its id
    #[arg(value_parser = text(str::parse::<String>))]
    pub container: String,
}

impl UpdateArgs {
    /// Refuses what says nothing, or contradicts itself.
    pub fn check(&self) -> Result<(), String> {
        match self.restart.is_none() && self.limits.resources() == Resources::default() {
            true => Err("update needs a limit or --restart to change".to_owned()),
            false => self.limits.check(),
        }
    }
}

impl LimitArgs {
    pub fn resources(&self) -> Resources {
        Resources {
            memory: self.memory.filter(|bytes| *bytes > 0),
            memory_swap: self.memory_swap,
            memory_reservation: self.memory_reservation,
            cpu_quota: self.cpus.or(self.cpu_quota),
            cpu_period: self.cpu_period,
            cpu_shares: self.cpu_shares,
            cpuset_cpus: self.cpuset_cpus.clone(),
            cpuset_mems: self.cpuset_mems.clone(),
            pids: self.pids_limit,
        }
    }

    /// Refuses what contradicts itself.
    pub fn check(&self) -> Result<(), String> {
        match (self.memory_swap, self.memory) {
            (Some(Amount::Max(both)), Some(memory)) if both < memory => Err(
                "--memory-swap is memory and swap together, and cannot be below --memory"
                    .to_owned(),
            ),
            (Some(Amount::Max(_)), None) => {
                Err("--memory-swap goes with --memory, which it includes".to_owned())
            }
            _ => Ok(()),
        }
    }
}

fn parse_swap(text: &str) -> Result<Amount, String> {
    match text {
        "-1" => Ok(Amount::Unlimited),
        text => units::size(text).map(Amount::Max),
    }
}

/// Processors as a quota for the usual period.
fn parse_cpus(text: &str) -> Result<u64, String> {
    let number: Option<f64> = text.parse().ok();
    let quota = number.map(|number| number * CPU_PERIOD as f64);
    // The kernel takes 1 ms at least.
    let quota = quota.filter(|quota| (1000.0..1e12).contains(quota));
    quota
        .map(|quota| quota.round() as u64)
        .ok_or_else(|| "expected a number of processors of 0.01 or more, as 1.5".to_owned())
}

fn parse_micros(text: &str) -> Result<u64, &'static str> {
    let number = text.parse().ok().filter(|micros| *micros >= 1000);
    number.ok_or("expected microseconds, 1000 or more")
}

fn parse_shares(text: &str) -> Result<u64, &'static str> {
    let number = text.parse().ok();
    let number = number.filter(|shares| (2..=262_144).contains(shares));
    number.ok_or("expected a number of 2 to 262144")
}

fn parse_list(text: &str) -> Result<String, &'static str> {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let is_range = |part: &str| match part.split_once('-') {
        Some((first, last)) => is_number(first) && is_number(last),
        None => is_number(part),
    };
    match text.split(',').all(is_range) {
        true => Ok(text.to_owned()),
        false => Err("expected numbers and ranges, as 0-2,4"),
    }
}

fn parse_pids(text: &str) -> Result<Amount, &'static str> {
    match text.parse() {
        Ok(-1 | 0) => Ok(Amount::Unlimited),
        Ok(number @ 1..) => Ok(Amount::Max(number as u64)),
        Ok(i64::MIN..=-2) | Err(_) => Err("expected a number of processes, or -1"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_a_quota() {
        assert_eq!(parse_cpus("1.5"), Ok(150_000));
        assert_eq!(parse_cpus(".01"), Ok(1000));
        for text in ["", "0", "0.001", "-1", "x", "inf", "nan", "1e300"] {
            parse_cpus(text).expect_err(text);
        }
    }

    #[test]
    fn lists_are_numbers_and_ranges() {
        assert_eq!(parse_list("0-2,4"), Ok("0-2,4".to_owned()));
        for text in ["", "a", "1-", "1,,2", "0-1-2", "-1"] {
            parse_list(text).expect_err(text);
        }
    }

    #[test]
    fn amounts_may_be_without_end() {
        assert_eq!(parse_swap("-1"), Ok(Amount::Unlimited));
        assert_eq!(parse_swap("1m"), Ok(Amount::Max(1 << 20)));
        assert_eq!(parse_pids("-1"), Ok(Amount::Unlimited));
        assert_eq!(parse_pids("0"), Ok(Amount::Unlimited));
        assert_eq!(parse_pids("20"), Ok(Amount::Max(20)));
        for text in ["", "-2", "x", "1.5"] {
            parse_pids(text).expect_err(text);
        }
    }
}
