//! Profiles as files: the JSON of `--security-opt seccomp=FILE`, as the OCI runtime specification
//! (`linux.seccomp`) and, with `includes`, `excludes` and `archMap`, Podman and Docker have it.
//!
//! Reads a profile and says what it means for one container: which rules hold for its capabilities,
//! this machine's architecture and this kernel. Names of system calls that an architecture does not
//! have are passed over, as everywhere: profiles name the calls of all of them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use netstack::seccomp::{Action, Architecture, Comparison, Condition, Rule};
use serde::{Deserialize, Serialize};

use super::syscalls::{Machine, Variant};
use crate::isolation::capabilities::{Capabilities, CapabilityName};

/// A profile as it was written. Everything in it has a meaning here: [`Profile::parse`] has refused
/// the rest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    pub(super) default_action: ActionName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) default_errno_ret: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) architectures: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) arch_map: Vec<ArchitectureMap>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    flags: Vec<Flag>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    listener_path: Option<String>,
    #[serde(default)]
    pub(super) syscalls: Vec<RuleText>,
}

/// Which other architectures' programs may run beside one.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ArchitectureMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Vec<String>,
}

/// How the filter is installed. TSYNC means nothing to the single thread that a container begins
/// with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Flag {
    #[serde(rename = "SECCOMP_FILTER_FLAG_TSYNC")]
    ThreadSync,
    #[serde(rename = "SECCOMP_FILTER_FLAG_LOG")]
    Log,
    #[serde(rename = "SECCOMP_FILTER_FLAG_SPEC_ALLOW")]
    SpeculationAllowed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ActionName {
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_KILL", alias = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    #[serde(rename = "SCMP_ACT_TRACE")]
    Trace,
    #[serde(rename = "SCMP_ACT_NOTIFY")]
    Notify,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RuleText {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) names: Vec<Cow<'static, str>>,
    /// Docker's older form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<Cow<'static, str>>,
    pub(super) action: ActionName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) errno_ret: Option<u32>,
    /// Null in Podman's own file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) args: Option<Vec<ArgumentText>>,
    #[serde(default)]
    pub(super) includes: When,
    #[serde(default)]
    pub(super) excludes: When,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ArgumentText {
    pub(super) index: u8,
    pub(super) value: u64,
    #[serde(default)]
    pub(super) value_two: u64,
    pub(super) op: Operator,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum Operator {
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    /// `value` is the mask, `valueTwo` what the masked argument is compared with.
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// The circumstances in which a rule is there, or is not.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct When {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) caps: Vec<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) arches: Vec<Cow<'static, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) min_kernel: Option<String>,
}

/// Why a profile cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("it is not a profile in JSON: {0}")]
    Syntax(#[from] serde_json::Error),
    #[error("{0} needs a process that listens, which coracle does not start")]
    Listener(&'static str),
    #[error("errno {0} is more than the 4095 that the kernel takes")]
    Errno(u32),
    #[error("argument {0} of a system call does not exist: they are counted from 0 to 5")]
    Argument(u8),
    #[error("no capability is called {0:?}")]
    Capability(String),
    #[error("minKernel {0:?} is not MAJOR.MINOR")]
    Kernel(String),
}

impl Profile {
    /// A profile for all architectures that this machine has programs of.
    pub(super) fn new(default: ActionName, errno: u32, syscalls: Vec<RuleText>) -> Self {
        Self {
            default_action: default,
            default_errno_ret: Some(errno),
            architectures: Machine::VARIANTS
                .map(|variant| variant.scmp_name.to_owned())
                .to_vec(),
            arch_map: Vec::new(),
            flags: Vec::new(),
            listener_path: None,
            syscalls,
        }
    }

    /// Reads a profile and checks that every word of it can be heeded.
    pub fn parse(text: &[u8]) -> Result<Self, ProfileError> {
        let profile: Self = serde_json::from_slice(text)?;
        if profile.listener_path.is_some() {
            return Err(ProfileError::Listener("listenerPath"));
        }
        action(profile.default_action, profile.default_errno_ret)?;
        for rule in &profile.syscalls {
            action(rule.action, rule.errno_ret)?;
            for argument in rule.args.iter().flatten() {
                if argument.index > 5 {
                    return Err(ProfileError::Argument(argument.index));
                }
            }
            for when in [&rule.includes, &rule.excludes] {
                for name in &when.caps {
                    capability(name)?;
                }
                if let Some(text) = &when.min_kernel {
                    kernel_version(text)?;
                }
            }
        }
        Ok(profile)
    }

    /// What becomes of a call that no rule is about.
    pub(super) fn default_action(&self) -> Result<Action, ProfileError> {
        action(self.default_action, self.default_errno_ret)
    }

    /// `SECCOMP_FILTER_FLAG_…` for `seccomp(2)`.
    pub(super) fn flags(&self) -> u64 {
        let bit = |flag: &Flag| match flag {
            Flag::ThreadSync => 0,
            Flag::Log => libc::SECCOMP_FILTER_FLAG_LOG,
            Flag::SpeculationAllowed => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        };
        self.flags.iter().map(bit).fold(0, |all, bit| all | bit)
    }

    /// What the profile decides for a container with `capabilities` on `machine`.
    pub(super) fn decisions(
        &self,
        capabilities: Capabilities,
        machine: &Machine,
    ) -> Result<Vec<Architecture>, ProfileError> {
        let mut applying = Vec::new();
        for rule in &self.syscalls {
            if rule.includes.all(capabilities, machine)?
                && !rule.excludes.any(capabilities, machine)?
            {
                applying.push((rule, rule.decisions()?));
            }
        }
        Ok(Machine::VARIANTS
            .iter()
            .filter(|variant| variant.is_native() || self.admits(variant))
            .map(|variant| Architecture {
                audit: variant.audit,
                calls: calls(&applying, &variant.numbers()),
            })
            .collect())
    }

    fn admits(&self, variant: &Variant) -> bool {
        let native = Machine::NATIVE.scmp_name;
        let mapped = self
            .arch_map
            .iter()
            .filter(|map| map.architecture == native)
            .flat_map(|map| &map.sub_architectures);
        self.architectures
            .iter()
            .chain(mapped)
            .any(|name| name == variant.scmp_name)
    }
}

/// The rules by call number. A rule with conditions goes before one without, and of two with
/// conditions the stricter one first.
fn calls(
    applying: &[(&RuleText, Vec<Rule>)],
    numbers: &BTreeMap<&str, u32>,
) -> BTreeMap<u32, Vec<Rule>> {
    let mut calls: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    for (text, rules) in applying {
        let names = text.names.iter().chain(&text.name);
        for number in names.filter_map(|name| numbers.get(&**name)) {
            calls.entry(*number).or_default().extend_from_slice(rules);
        }
    }
    for rules in calls.values_mut() {
        rules.sort_by_key(|rule| (rule.conditions.is_empty(), rule.action));
    }
    calls
}

impl RuleText {
    pub(super) fn new(action: ActionName) -> Self {
        Self {
            names: Vec::new(),
            name: None,
            action,
            errno_ret: None,
            args: None,
            includes: When::default(),
            excludes: When::default(),
        }
    }

    /// One rule, or one for each argument where an argument is named twice: then they are
    /// alternatives, as runc has it.
    fn decisions(&self) -> Result<Vec<Rule>, ProfileError> {
        let action = action(self.action, self.errno_ret)?;
        let arguments = self.args.as_deref().unwrap_or_default();
        let conditions: Vec<Condition> = arguments.iter().map(ArgumentText::condition).collect();
        let twice = conditions.iter().enumerate().any(|(at, one)| {
            conditions[..at]
                .iter()
                .any(|other| other.argument == one.argument)
        });
        let alternatives = match twice {
            true => conditions.into_iter().map(|one| vec![one]).collect(),
            false => vec![conditions],
        };
        let rule = |conditions| Rule { conditions, action };
        Ok(alternatives.into_iter().map(rule).collect())
    }
}

impl ArgumentText {
    fn condition(&self) -> Condition {
        let (comparison, value) = match self.op {
            Operator::Equal => (Comparison::Equal, self.value),
            Operator::NotEqual => (Comparison::NotEqual, self.value),
            Operator::Less => (Comparison::Less, self.value),
            Operator::LessOrEqual => (Comparison::LessOrEqual, self.value),
            Operator::GreaterOrEqual => (Comparison::GreaterOrEqual, self.value),
            Operator::Greater => (Comparison::Greater, self.value),
            Operator::MaskedEqual => (Comparison::MaskedEqual { mask: self.value }, self.value_two),
        };
        Condition {
            argument: self.index,
            comparison,
            value,
        }
    }
}

impl When {
    /// Whether each of the circumstances that are named is given; so it is if none is named.
    fn all(&self, capabilities: Capabilities, machine: &Machine) -> Result<bool, ProfileError> {
        let mut given = self.arches.is_empty() || self.names_architecture();
        for name in &self.caps {
            given &= capabilities.has(capability(name)?);
        }
        Ok(given && self.names_older_kernel(machine)?.unwrap_or(true))
    }

    /// Whether one of the circumstances that are named is given.
    fn any(&self, capabilities: Capabilities, machine: &Machine) -> Result<bool, ProfileError> {
        let mut given = self.names_architecture();
        for name in &self.caps {
            given |= capabilities.has(capability(name)?);
        }
        Ok(given || self.names_older_kernel(machine)?.unwrap_or(false))
    }

    fn names_architecture(&self) -> bool {
        self.arches
            .iter()
            .any(|name| name == Machine::NATIVE.go_name)
    }

    /// Whether this kernel is at least the one that is named, if one is.
    fn names_older_kernel(&self, machine: &Machine) -> Result<Option<bool>, ProfileError> {
        let version = self.min_kernel.as_deref().map(kernel_version).transpose()?;
        Ok(version.map(|version| version <= machine.kernel))
    }
}

fn action(name: ActionName, errno: Option<u32>) -> Result<Action, ProfileError> {
    /// Where a profile names none.
    const DEFAULT_ERRNO: u32 = libc::EPERM as u32;
    /// `MAX_ERRNO` of `linux/err.h`.
    const MAX_ERRNO: u16 = 4095;
    Ok(match name {
        ActionName::Allow => Action::Allow,
        ActionName::KillThread => Action::KillThread,
        ActionName::KillProcess => Action::KillProcess,
        ActionName::Trap => Action::Trap,
        ActionName::Log => Action::Log,
        ActionName::Errno => {
            let errno = errno.unwrap_or(DEFAULT_ERRNO);
            match u16::try_from(errno) {
                Ok(errno @ ..=MAX_ERRNO) => Action::Errno(errno),
                _ => return Err(ProfileError::Errno(errno)),
            }
        }
        ActionName::Trace => return Err(ProfileError::Listener("SCMP_ACT_TRACE")),
        ActionName::Notify => return Err(ProfileError::Listener("SCMP_ACT_NOTIFY")),
    })
}

fn capability(name: &str) -> Result<CapabilityName, ProfileError> {
    match name.parse() {
        Ok(CapabilityName::All) | Err(_) => Err(ProfileError::Capability(name.to_owned())),
        Ok(single) => Ok(single),
    }
}

/// `MAJOR.MINOR`, as a pair that compares.
pub(super) fn kernel_version(text: &str) -> Result<(u32, u32), ProfileError> {
    let malformed = || ProfileError::Kernel(text.to_owned());
    let (major, minor) = text.split_once('.').ok_or_else(malformed)?;
    match (major.parse(), minor.parse()) {
        (Ok(major), Ok(minor)) => Ok((major, minor)),
        _ => Err(malformed()),
    }
}
