//! The record of one container, as kept in its `config.json`, and the names that identify it. What
//! earlier versions kept is read by `version`, which has to know of each field that is added.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{ProcessRef, RestartPolicy, StateError};
use crate::health::HealthStatus;
use crate::isolation::idmap::IdMaps;
use crate::logs::LogConfig;
use crate::network::bridge::Attachment;
use crate::path_text;

/// Everything that other commands need to know of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    pub id: ContainerId,
    pub name: String,
    /// Seconds since 1970.
    pub created: u64,
    /// And nanoseconds, which put containers of one second in order.
    pub created_nanos: u32,
    /// When its command was last started, in seconds since 1970. `None` where that was never, or
    /// was not kept.
    pub started: Option<u64>,
    pub hostname: String,
    /// Whatever its maker wants to be told of it again.
    pub labels: BTreeMap<String, String>,
    /// The image's name, or `--rootfs DIR`.
    pub image: String,
    /// The id of an image in the store, 64 digits.
    pub image_id: Option<String>,
    /// Entry point and arguments as they are executed.
    pub command: Vec<String>,
    /// The networks that it is in, or will be when it is started; the first is its way out.
    pub networks: Vec<Attachment>,
    /// The `-p` rules, as [`portfwd::spec::Publish`] prints them.
    pub publish: Vec<String>,
    /// Whether the container is forgotten when it ends (`--rm`).
    pub remove: bool,
    /// Whether it has a terminal (`-t`).
    pub tty: bool,
    /// PID 1 of the container, from when it is there to be signalled.
    pub init: Option<ProcessRef>,
    /// The process that answers for this record: whoever makes or starts the container, then its
    /// monitor. `None` while it is [`Status::Created`].
    pub monitor: Option<ProcessRef>,
    pub status: Status,
    /// What follows its end.
    pub restart: RestartPolicy,
    /// How often it has been started again for that since somebody started it.
    pub restart_count: u32,
    /// Whether somebody has ended it for good: then nothing follows.
    pub stopped: bool,
    /// Number of the signal that asks its command to end.
    pub stop_signal: i32,
    /// Seconds that its command has for that.
    pub stop_timeout: u32,
    /// Seconds that it may run at the most; `None` for ever.
    pub time_limit: Option<u32>,
    /// What its last health check has come to; `None` where it has none.
    pub health: Option<HealthStatus>,
    /// What becomes of what it writes.
    pub log: LogConfig,
    /// Directories of its own control groups.
    pub cgroups: Vec<PathBuf>,
    /// Those of its user namespace, to whose IDs its files belong. `None` where they were not kept.
    pub id_maps: Option<IdMaps>,
    /// Its directory in the run directory of the session that created it.
    #[serde(with = "path_text")]
    pub run_dir: PathBuf,
}

/// What a container is created from; the store adds the rest.
#[derive(Debug, Clone, Default)]
pub struct NewContainer {
    /// Made up when not given.
    pub name: Option<String>,
    /// The short id when not given.
    pub hostname: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub image: String,
    pub image_id: Option<String>,
    pub command: Vec<String>,
    pub networks: Vec<Attachment>,
    pub publish: Vec<String>,
    pub remove: bool,
    pub tty: bool,
    pub restart: RestartPolicy,
    /// SIGTERM when not given.
    pub stop_signal: Option<i32>,
    /// [`STOP_TIMEOUT`] when not given.
    pub stop_timeout: Option<u32>,
    pub time_limit: Option<u32>,
    pub log: LogConfig,
    pub id_maps: Option<IdMaps>,
}

/// Seconds that a container has for its end, as with Podman and Docker.
pub const STOP_TIMEOUT: u32 = 10;

/// Where a container is in its life.
///
/// ```text
/// Starting <-> Created
///   |  ^
///   |  +------------- Exited
///   +-> Running -------^  ^ ^
///   |   | ^ ^ |           | |
///   |   v | | +-> Restarting|
///   |   Paused -----+-------+
///   +-----------------------+
/// ```
/// Whoever makes a container starts it in one go, or leaves it created for a later start. One that
/// has ended can be started again. A start that fails leaves it as it was. What is starting or
/// running needs a process to answer for it: with that gone, the container has been lost, and has
/// exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "state")]
pub enum Status {
    /// Complete, and at rest.
    Created,
    /// Being made or started.
    Starting,
    Running,
    /// Its processes are frozen.
    Paused,
    /// It has ended as in [`Status::Exited`], and its monitor is about to start it again.
    Restarting {
        code: i32,
        at: u64,
    },
    /// `code` as the shell would see it, `at` in seconds since 1970.
    Exited {
        code: i32,
        at: u64,
    },
}

impl Status {
    /// Ended just now.
    pub fn exited_now(code: i32) -> Self {
        Self::Exited { code, at: now() }
    }

    fn may_become(self, next: Self) -> bool {
        use Status::{Created, Exited, Paused, Restarting, Running, Starting};
        match (self, next) {
            (Created | Exited { .. }, Starting) | (Starting, Created | Running) => true,
            // Its monitor's word on the end is the last, also for one that somebody took for lost.
            (Starting | Running | Paused | Restarting { .. } | Exited { .. }, Exited { .. }) => {
                true
            }
            (Running, Paused) | (Paused, Running) => true,
            // Again, where a start has failed.
            (Running | Paused | Restarting { .. }, Restarting { .. })
            | (Restarting { .. }, Running) => true,
            _ => false,
        }
    }

    /// Whether it can be started.
    pub fn can_start(self) -> bool {
        self.may_become(Self::Starting)
    }

    /// Whether it has come to its end, by itself or by a crash.
    pub fn has_ended(self) -> bool {
        matches!(self, Self::Exited { .. })
    }

    /// Whether there is a first process that signals can be sent to.
    pub fn can_kill(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }

    /// Whether it can be forgotten without ending it first.
    pub fn can_remove(self) -> bool {
        self.has_ended() || self == Self::Created
    }

    /// Whether a process has to answer for it.
    fn needs_process(self) -> bool {
        !self.can_remove()
    }
}

/// What is said of a container: "container web ...".
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "has not been started",
            Self::Starting => "is just starting",
            Self::Running => "is running",
            Self::Paused => "is paused",
            Self::Restarting { .. } => "has ended and is about to be started again",
            Self::Exited { .. } => "has ended",
        })
    }
}

impl Container {
    /// Goes on to the next point of its life.
    ///
    /// # Errors
    /// [`StateError::WrongState`] when that does not come next.
    pub fn enter(&mut self, next: Status) -> Result<(), StateError> {
        self.check(next)?;
        self.status = next;
        Ok(())
    }

    /// Has ended with `code`: for good, or to be started again.
    ///
    /// # Errors
    /// As [`Container::enter`].
    pub fn end(&mut self, code: i32, may_restart: bool) -> Result<(), StateError> {
        let follows = self.restart.follows(code, self.restart_count);
        self.enter(match may_restart && !self.stopped && follows {
            true => Status::Restarting { code, at: now() },
            false => Status::exited_now(code),
        })
    }

    /// Whether [`Container::enter`] succeeds.
    pub(super) fn check(&self, next: Status) -> Result<(), StateError> {
        match self.status.may_become(next) {
            true => Ok(()),
            false => Err(self.wrong_state(next)),
        }
    }

    /// Why it does not go on to `next`.
    pub(super) fn wrong_state(&self, next: Status) -> StateError {
        StateError::WrongState {
            name: self.name.clone(),
            status: self.status,
            next,
        }
    }

    /// Whether it is starting, and one of these answers for that.
    pub(super) fn is_started_by(&self, starters: &[ProcessRef]) -> bool {
        let monitor = self.monitor.as_ref();
        self.status == Status::Starting && monitor.is_some_and(|monitor| starters.contains(monitor))
    }

    /// Whether the container needs a process and no process is left that could end it: a crash, or
    /// a reboot.
    pub(super) fn is_lost(&self) -> bool {
        self.status.needs_process() && !is_alive(&self.monitor) && !is_alive(&self.init)
    }

    /// Whether the container has ended and should have been removed by a monitor that is no more.
    pub(super) fn is_left_over(&self) -> bool {
        self.remove && self.status.has_ended() && !is_alive(&self.monitor)
    }

    /// When it was created, to the nanosecond, for sorting.
    pub(super) fn age_key(&self) -> (u64, u32, &ContainerId) {
        (self.created, self.created_nanos, &self.id)
    }

    /// Whether something may still be running in it.
    pub fn is_alive(&self) -> bool {
        is_alive(&self.init)
    }
}

fn is_alive(process: &Option<ProcessRef>) -> bool {
    process.as_ref().is_some_and(ProcessRef::is_alive)
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    now_precisely().as_secs()
}

/// Since 1970.
pub(super) fn now_precisely() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Identifies a container for good: 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a container id has 64 hexadecimal digits")]
pub struct InvalidId;

impl ContainerId {
    const DIGITS: usize = 64;

    /// One that nobody else has.
    pub fn random() -> Result<Self, StateError> {
        Ok(Self::from_random(super::store::random()?))
    }

    pub(super) fn from_random(bytes: [u8; Self::DIGITS / 2]) -> Self {
        Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 12 digits, which tables show and which are the default hostname.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for ContainerId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() == Self::DIGITS && text.bytes().all(is_digit) {
            Ok(Self(text))
        } else {
            Err(InvalidId)
        }
    }
}

impl FromStr for ContainerId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Self::try_from(text.to_owned())
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

/// Whether a user may give a container this name. Names go into paths of messages and scripts,
/// never into file names.
pub fn is_valid_name(name: &str) -> bool {
    const MAX_LEN: usize = 128;
    name.len() <= MAX_LEN
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// A readable name, chosen by 2 random bytes.
pub(super) fn made_up_name([first, second]: [u8; 2]) -> String {
    let adjective = ADJECTIVES[usize::from(first) % ADJECTIVES.len()];
    let noun = NOUNS[usize::from(second) % NOUNS.len()];
    format!("{adjective}-{noun}")
}

const ADJECTIVES: [&str; 32] = [
    "amber", "bold", "brisk", "bright", "calm", "clear", "copper", "crisp", "drifting", "early",
    "fair", "gentle", "golden", "green", "hardy", "hazel", "keen", "light", "little", "merry",
    "misty", "northern", "nimble", "patient", "quick", "quiet", "round", "silver", "steady",
    "swift", "tidal", "warm",
];

const NOUNS: [&str; 32] = [
    "anchor",
    "avocet",
    "beacon",
    "cove",
    "creek",
    "curlew",
    "current",
    "dipper",
    "eddy",
    "estuary",
    "ferry",
    "fjord",
    "heron",
    "island",
    "kingfisher",
    "lagoon",
    "mallard",
    "mooring",
    "oar",
    "osprey",
    "otter",
    "paddle",
    "pike",
    "plover",
    "reed",
    "river",
    "salmon",
    "shoal",
    "tern",
    "trout",
    "wharf",
    "willow",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_64_hexadecimal_digits_are_an_id() {
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(id.parse::<ContainerId>().unwrap().short(), "0123456789ab");
        for wrong in [
            "",
            "abc",
            &id[1..],
            &id.to_uppercase(),
            &format!("../{}", &id[3..]),
            &format!("{id}0"),
        ] {
            assert_eq!(wrong.parse::<ContainerId>(), Err(InvalidId), "{wrong:?}");
        }
    }

    #[test]
    fn a_life_goes_forward_or_back_to_rest() {
        use Status::{Created, Paused, Restarting, Running, Starting};
        let exited = Status::exited_now(0);
        let restarting = Restarting { code: 0, at: 0 };
        let steps = [
            (Created, Starting),
            (Starting, Created),
            (Starting, Running),
            (Starting, exited),
            (Running, exited),
            (exited, exited),
            (exited, Starting),
            (Running, Paused),
            (Paused, Running),
            (Paused, exited),
            (Running, restarting),
            (Paused, restarting),
            (restarting, restarting),
            (restarting, Running),
            (restarting, exited),
        ];
        let all = [Created, Starting, Running, Paused, restarting, exited];
        for (from, to) in all.into_iter().flat_map(|from| all.map(|to| (from, to))) {
            assert_eq!(
                from.may_become(to),
                steps.contains(&(from, to)),
                "{from:?} {to:?}"
            );
        }
    }

    #[test]
    fn names_are_plain_words() {
        for name in ["a", "web-1", "Web.site_2", "0", &made_up_name([0, 255])] {
            assert!(is_valid_name(name), "{name:?}");
        }
        for name in [
            "",
            "-a",
            ".a",
            "_a",
            "a b",
            "a/b",
            "a\n",
            "é",
            &"a".repeat(129),
        ] {
            assert!(!is_valid_name(name), "{name:?}");
        }
    }
}
