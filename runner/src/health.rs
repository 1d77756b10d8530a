//! What is known of a container's health: the check that it has, and how it went.
//!
//! The check is kept with the specification, the status with the record, for lists, and the last
//! results in a file beside them. That file is a help for people only: what of it cannot be read is
//! as if it had never been.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::build::config::Healthcheck;
use crate::state::{read_regular, replace_regular};

/// The check of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// With nothing left to a default. An interval of 0 means that it is run by hand only.
    pub check: Healthcheck,
    pub on_failure: OnFailure,
}

/// What is done to a container that has become unhealthy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    #[default]
    None,
    Kill,
    Restart,
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// Neither has been found yet.
    Starting,
    Healthy,
    Unhealthy,
}

/// How the last checks went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthLog {
    /// Failures since the last success.
    pub failing_streak: u64,
    /// The oldest first.
    pub log: Vec<Probe>,
}

/// One run of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Probe {
    pub start: String,
    pub end: String,
    /// -1 where it took too long.
    pub exit_code: i32,
    pub output: String,
}

/// Runs that are remembered, and the bytes of what one has said: as many as with Podman.
const PROBES_MAX: usize = 5;
pub const OUTPUT_MAX: usize = 500;

impl HealthCheck {
    /// The command with its arguments. `None` where there is none to run.
    pub fn command(&self) -> Option<Vec<String>> {
        let (first, rest) = self.check.test.split_first()?;
        let words: Vec<String> = match &**first {
            "NONE" => return None,
            "CMD" => rest.to_vec(),
            "CMD-SHELL" => ["/bin/sh".to_owned(), "-c".to_owned()]
                .into_iter()
                .chain(rest.first().cloned())
                .collect(),
            _ => self.check.test.clone(),
        };
        (!words.is_empty()).then_some(words)
    }

    /// From the end of one run to the next. `None` where nobody but the user runs it.
    pub fn interval(&self) -> Option<Duration> {
        self.command()?;
        Some(Duration::from_nanos(self.check.interval)).filter(|interval| !interval.is_zero())
    }

    pub fn timeout(&self) -> Duration {
        Duration::from_nanos(self.check.timeout)
    }
}

impl HealthLog {
    fn path(data: &Path) -> PathBuf {
        data.join("health.json")
    }

    /// That of the container whose data directory this is.
    pub fn load(data: &Path) -> Self {
        let text = read_regular(&Self::path(data)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Keeps it in place of the last one.
    pub fn keep(&self, data: &Path) -> io::Result<()> {
        replace_regular(&Self::path(data), &serde_json::to_vec(self)?)
    }

    /// Adds a run. Returns what the container is from then on, which was `before`. What fails
    /// while the container `is_starting` does not count.
    pub fn add(
        &mut self,
        probe: Probe,
        before: HealthStatus,
        check: &Healthcheck,
        is_starting: bool,
    ) -> HealthStatus {
        let succeeded = probe.exit_code == 0;
        self.log.push(probe);
        let surplus = self.log.len().saturating_sub(PROBES_MAX);
        self.log.drain(..surplus);
        if succeeded {
            self.failing_streak = 0;
            return HealthStatus::Healthy;
        }
        if is_starting && before == HealthStatus::Starting {
            return before;
        }
        self.failing_streak += 1;
        match self.failing_streak >= check.retries {
            true => HealthStatus::Unhealthy,
            false => before,
        }
    }
}

impl fmt::Display for HealthStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        })
    }
}

impl fmt::Display for OnFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Kill => "kill",
            Self::Restart => "restart",
            Self::Stop => "stop",
        })
    }
}

impl FromStr for OnFailure {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "none" | "" => Self::None,
            "kill" => Self::Kill,
            "restart" => Self::Restart,
            "stop" => Self::Stop,
            _ => return Err("there are none, kill, restart and stop"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(exit_code: i32) -> Probe {
        Probe {
            start: String::new(),
            end: String::new(),
            exit_code,
            output: String::new(),
        }
    }

    #[test]
    fn failures_in_a_row_make_a_container_unhealthy() {
        use HealthStatus::{Healthy, Starting, Unhealthy};
        let check = Healthcheck {
            retries: 2,
            ..Healthcheck::default()
        };
        let mut log = HealthLog::default();
        let mut status = Starting;
        for (code, is_starting, expected) in [
            // What fails early says nothing.
            (1, true, Starting),
            (1, true, Starting),
            (1, false, Starting),
            (1, false, Unhealthy),
            (0, false, Healthy),
            (-1, true, Healthy),
            (0, false, Healthy),
            (1, false, Healthy),
            (7, false, Unhealthy),
        ] {
            status = log.add(probe(code), status, &check, is_starting);
            assert_eq!(status, expected, "{log:?}");
        }
        assert_eq!((log.failing_streak, log.log.len()), (2, PROBES_MAX));
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(HealthLog::load(dir.path()), HealthLog::default());
        log.keep(dir.path()).unwrap();
        assert_eq!(HealthLog::load(dir.path()), log);
        std::fs::write(HealthLog::path(dir.path()), "{").unwrap();
        assert_eq!(HealthLog::load(dir.path()), HealthLog::default());
    }

    #[test]
    fn commands_are_words_or_a_line() {
        let command = |test: &[&str]| {
            let test = test.iter().map(|word| (*word).to_owned()).collect();
            let check = Healthcheck {
                test,
                ..Healthcheck::default()
            };
            let on_failure = OnFailure::None;
            HealthCheck { check, on_failure }.command()
        };
        let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
        assert_eq!(command(&["CMD", "a", "b c"]), words(&["a", "b c"]));
        assert_eq!(
            command(&["CMD-SHELL", "a | b"]),
            words(&["/bin/sh", "-c", "a | b"])
        );
        assert_eq!(command(&["a", "b"]), words(&["a", "b"]));
        for none in [&[][..], &["NONE"], &["CMD"]] {
            assert_eq!(command(none), None, "{none:?}");
        }
    }
}
