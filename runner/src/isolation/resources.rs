//! What a container may use of memory, processors and processes, and how control groups are told,
//! `cgroups(7)`.
//!
//! A limit holds where the caller may make control groups that have its controller: by delegation
//! of the unified hierarchy, or as root. Elsewhere the container goes without, and that is said.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::failure::Explained;
use crate::isolation::cgroup::is_unified;

/// Limits. What is `None` has none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Bytes.
    pub memory: Option<u64>,
    /// Bytes of memory and swap together; twice the memory when not given.
    pub memory_swap: Option<Amount>,
    /// Bytes that are not taken from it while others have more.
    pub memory_reservation: Option<u64>,
    /// Processor time in each period, in microseconds.
    pub cpu_quota: Option<u64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    /// The share of processor time while others want some: 2 to 262,144, 1,024 for the usual one.
    pub cpu_shares: Option<u64>,
    /// Processors and memory nodes, as `0-2,4`.
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    /// Processes and threads; [`PIDS`] when not given.
    pub pids: Option<Amount>,
}

/// As much as is wanted, or so much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Amount {
    Unlimited,
    Max(u64),
}

/// How many processes and threads a container may have when nothing is said, as with Podman.
const PIDS: u64 = 2048;

/// Period of the processor's quota when nothing is said, in microseconds, as the kernel has it.
pub const CPU_PERIOD: u64 = 100_000;

#[derive(Debug, thiserror::Error)]
#[error("cannot limit the container's {what} to {value}: {} says {source}", file.display())]
pub struct ResourcesError {
    what: &'static str,
    value: String,
    file: PathBuf,
    source: io::Error,
}

impl Explained for ResourcesError {}

/// What one limit comes to in one kind of hierarchy.
struct Setting {
    /// What is limited, for people.
    what: &'static str,
    file: &'static str,
    value: String,
    /// Whether the caller has asked for it, and is told when it does not hold.
    asked: bool,
}

impl Setting {
    /// None where there is no value.
    fn new(
        what: &'static str,
        file: &'static str,
        value: Option<String>,
        asked: bool,
    ) -> Option<Self> {
        value.map(|value| Self {
            what,
            file,
            value,
            asked,
        })
    }
}

impl Resources {
    /// These, and `more` in their place where that says something.
    pub fn with(&self, more: &Self) -> Self {
        Self {
            memory: more.memory.or(self.memory),
            memory_swap: more.memory_swap.or(self.memory_swap),
            memory_reservation: more.memory_reservation.or(self.memory_reservation),
            cpu_quota: more.cpu_quota.or(self.cpu_quota),
            cpu_period: more.cpu_period.or(self.cpu_period),
            cpu_shares: more.cpu_shares.or(self.cpu_shares),
            cpuset_cpus: more.cpuset_cpus.clone().or(self.cpuset_cpus.clone()),
            cpuset_mems: more.cpuset_mems.clone().or(self.cpuset_mems.clone()),
            pids: more.pids.or(self.pids),
        }
    }

    /// The controllers that the limits asked for need.
    pub fn controllers(&self) -> Vec<&'static str> {
        let needs = [
            (
                "memory",
                self.memory.is_some()
                    || self.memory_swap.is_some()
                    || self.memory_reservation.is_some(),
            ),
            (
                "cpu",
                self.cpu_quota.is_some() || self.cpu_shares.is_some() || self.cpu_period.is_some(),
            ),
            (
                "cpuset",
                self.cpuset_cpus.is_some() || self.cpuset_mems.is_some(),
            ),
            ("pids", matches!(self.pids, Some(Amount::Max(_)))),
        ];
        let needed = needs.into_iter().filter(|(_, is_needed)| *is_needed);
        needed.map(|(controller, _)| controller).collect()
    }

    /// Sets the limits on the groups of a container, and returns what of it cannot be limited here.
    pub fn apply(&self, groups: &[PathBuf]) -> Result<Vec<&'static str>, ResourcesError> {
        let (unified, others) = (self.unified(), self.version_1());
        let mut met = Vec::new();
        for group in groups {
            let settings = match is_unified(group) {
                true => &unified,
                false => &others,
            };
            let mut refused = Vec::new();
            for setting in settings {
                let file = group.join(setting.file);
                if file.exists() {
                    met.push(setting.file);
                    if set(&file, setting).is_err() {
                        refused.push((file, setting));
                    }
                }
            }
            // A limit of memory may not be above that of memory and swap together, nor that below
            // this: which of them has to be changed first depends on what they are.
            for (file, setting) in refused {
                set(&file, setting)?;
            }
        }
        let is_unmet = |setting: &&Setting| setting.asked && !met.contains(&setting.file);
        // What is met in one hierarchy is unmet in the other.
        let unmet_in = |settings: &[Setting]| -> Vec<_> {
            let unmet = settings.iter().filter(is_unmet);
            unmet.map(|setting| setting.what).collect()
        };
        let in_others = unmet_in(&others);
        let mut unmet = unmet_in(&unified);
        unmet.retain(|what| in_others.contains(what));
        unmet.dedup();
        Ok(unmet)
    }

    /// For the unified hierarchy.
    fn unified(&self) -> Vec<Setting> {
        // Swap alone is counted there.
        let swap = match (self.memory_swap, self.memory) {
            (Some(Amount::Unlimited), _) => Some("max".to_owned()),
            (Some(Amount::Max(both)), memory) => {
                Some(both.saturating_sub(memory.unwrap_or(0)).to_string())
            }
            (None, memory) => text(memory),
        };
        let quota = match (self.cpu_quota, self.cpu_period) {
            (None, None) => None,
            (quota, period) => {
                let quota = text(quota).unwrap_or_else(|| "max".to_owned());
                Some(format!("{quota} {}", period.unwrap_or(CPU_PERIOD)))
            }
        };
        let weight = text(self.cpu_shares.map(weight_of_shares));
        let (low, asks_for_swap) = (text(self.memory_reservation), self.memory_swap.is_some());
        let settings = [
            Setting::new("memory", "memory.max", text(self.memory), true),
            Setting::new("swap", "memory.swap.max", swap, asks_for_swap),
            Setting::new("memory reservation", "memory.low", low, true),
            Setting::new("processor time", "cpu.max", quota, true),
            Setting::new("processor share", "cpu.weight", weight, true),
        ];
        settings
            .into_iter()
            .flatten()
            .chain(self.everywhere())
            .collect()
    }

    /// For hierarchies of version 1.
    fn version_1(&self) -> Vec<Setting> {
        let swap = match (self.memory_swap, self.memory) {
            (Some(Amount::Unlimited), _) => Some("-1".to_owned()),
            (Some(Amount::Max(both)), _) => Some(both.to_string()),
            (None, memory) => text(memory.map(|memory| memory.saturating_mul(2))),
        };
        let (memory, soft) = (text(self.memory), text(self.memory_reservation));
        let (period, quota) = (text(self.cpu_period), text(self.cpu_quota));
        let (shares, asks_for_swap) = (text(self.cpu_shares), self.memory_swap.is_some());
        let settings = [
            Setting::new("memory", "memory.limit_in_bytes", memory, true),
            Setting::new("swap", "memory.memsw.limit_in_bytes", swap, asks_for_swap),
            Setting::new(
                "memory reservation",
                "memory.soft_limit_in_bytes",
                soft,
                true,
            ),
            Setting::new("processor time", "cpu.cfs_period_us", period, true),
            Setting::new("processor time", "cpu.cfs_quota_us", quota, true),
            Setting::new("processor share", "cpu.shares", shares, true),
        ];
        settings
            .into_iter()
            .flatten()
            .chain(self.everywhere())
            .collect()
    }

    /// What both have under the same names.
    fn everywhere(&self) -> impl Iterator<Item = Setting> {
        let (cpus, mems) = (self.cpuset_cpus.clone(), self.cpuset_mems.clone());
        let pids = Some(self.pids_max());
        let settings = [
            Setting::new("processors", "cpuset.cpus", cpus, true),
            Setting::new("memory nodes", "cpuset.mems", mems, true),
            Setting::new("processes", "pids.max", pids, self.pids.is_some()),
        ];
        settings.into_iter().flatten()
    }

    fn pids_max(&self) -> String {
        match self.pids() {
            Amount::Max(max) => max.to_string(),
            Amount::Unlimited => "max".to_owned(),
        }
    }

    /// How many processes and threads there may be.
    pub fn pids(&self) -> Amount {
        self.pids.unwrap_or(Amount::Max(PIDS))
    }

    /// A billionth of a processor's time is one; 0 for all.
    pub fn nano_cpus(&self) -> u64 {
        let period = self.cpu_period.unwrap_or(CPU_PERIOD);
        let quota = u128::from(self.cpu_quota.unwrap_or(0));
        let nanos = quota * 1_000_000_000 / u128::from(period);
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }
}

fn text(value: Option<u64>) -> Option<String> {
    value.map(|value| value.to_string())
}

fn set(file: &Path, setting: &Setting) -> Result<(), ResourcesError> {
    match fs::write(file, &setting.value) {
        Err(source) if setting.asked => Err(ResourcesError {
            what: setting.what,
            value: setting.value.clone(),
            file: file.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// 2 to 262,144 of version 1 as 1 to 10,000 of the unified hierarchy, as all engines convert them.
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// What is said when limits cannot be set.
pub fn warning(unmet: &[&str]) -> String {
    format!(
        "the container's {} cannot be limited: there is no control group with the controllers for it that the caller may make; a \
         session of systemd that delegates them has one (`coracle info` tells more)",
        unmet.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(settings: Vec<Setting>) -> Vec<String> {
        let text = |setting: Setting| format!("{}={}", setting.file, setting.value);
        settings.into_iter().map(text).collect()
    }

    #[test]
    fn limits_are_written_as_each_hierarchy_has_them() {
        let all = Resources {
            memory: Some(1 << 20),
            memory_swap: Some(Amount::Max(3 << 20)),
            memory_reservation: Some(4096),
            cpu_quota: Some(50_000),
            cpu_period: None,
            cpu_shares: Some(1024),
            cpuset_cpus: Some("0-1".to_owned()),
            cpuset_mems: None,
            pids: Some(Amount::Max(7)),
        };
        assert_eq!(
            texts(all.unified()),
            [
                "memory.max=1048576",
                "memory.swap.max=2097152",
                "memory.low=4096",
                "cpu.max=50000 100000",
                "cpu.weight=39",
                "cpuset.cpus=0-1",
                "pids.max=7",
            ]
        );
        assert_eq!(
            texts(all.version_1()),
            [
                "memory.limit_in_bytes=1048576",
                "memory.memsw.limit_in_bytes=3145728",
                "memory.soft_limit_in_bytes=4096",
                "cpu.cfs_quota_us=50000",
                "cpu.shares=1024",
                "cpuset.cpus=0-1",
                "pids.max=7",
            ]
        );
        assert_eq!(all.controllers(), ["memory", "cpu", "cpuset", "pids"]);
        let none = Resources::default();
        assert_eq!(texts(none.unified()), ["pids.max=2048"]);
        assert!(none.controllers().is_empty());
        assert_eq!(
            (weight_of_shares(2), weight_of_shares(262_144)),
            (1, 10_000)
        );
    }

    #[test]
    fn what_cannot_be_limited_is_told() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("memory.limit_in_bytes"), "").unwrap();
        let wanted = Resources {
            memory: Some(1 << 20),
            cpu_quota: Some(1000),
            ..Resources::default()
        };
        let groups = [dir.path().to_owned()];
        assert_eq!(wanted.apply(&groups).unwrap(), ["processor time"]);
        let written = fs::read_to_string(dir.path().join("memory.limit_in_bytes")).unwrap();
        assert_eq!(written, "1048576");
        assert_eq!(wanted.apply(&[]).unwrap(), ["memory", "processor time"]);
        assert!(Resources::default().apply(&[]).unwrap().is_empty());
    }
}
