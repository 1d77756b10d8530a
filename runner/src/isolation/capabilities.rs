//! Capabilities by name, and the set that a container gets.
//!
//! They are those of its user namespace only (`capabilities(7)`).

use std::ffi::CStr;
use std::fmt;
use std::str::FromStr;

use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

/// A set of capabilities. Written as a number, bit N being capability N of `capabilities(7)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "u64", into = "u64")]
pub struct Capabilities(CapabilitySet);

impl From<u64> for Capabilities {
    fn from(bits: u64) -> Self {
        Self(CapabilitySet::from_bits_retain(bits))
    }
}

impl From<Capabilities> for u64 {
    fn from(set: Capabilities) -> Self {
        set.0.bits()
    }
}

impl Capabilities {
    /// What Podman gives a container.
    pub const DEFAULT: Self = Self(
        CapabilitySet::CHOWN
            .union(CapabilitySet::DAC_OVERRIDE)
            .union(CapabilitySet::FOWNER)
            .union(CapabilitySet::FSETID)
            .union(CapabilitySet::KILL)
            .union(CapabilitySet::NET_BIND_SERVICE)
            .union(CapabilitySet::SETFCAP)
            .union(CapabilitySet::SETGID)
            .union(CapabilitySet::SETPCAP)
            .union(CapabilitySet::SETUID)
            .union(CapabilitySet::SYS_CHROOT),
    );
    /// All that have names, of which `CHECKPOINT_RESTORE` (Linux 5.9) is the last.
    pub const ALL: Self = Self(CapabilitySet::from_bits_retain(
        (CapabilitySet::CHECKPOINT_RESTORE.bits() << 1) - 1,
    ));

    /// The set that `--cap-add` and `--cap-drop` ask for. `ALL` comes first, so that
    /// `--cap-drop ALL --cap-add X` leaves X.
    pub fn adjusted(self, add: &[CapabilityName], drop: &[CapabilityName]) -> Self {
        let mut set = self.0;
        for (names, all) in [(add, Self::ALL.0), (drop, CapabilitySet::empty())] {
            if names.contains(&CapabilityName::All) {
                set = all;
            }
        }
        let single = |names: &[CapabilityName]| -> CapabilitySet {
            names.iter().filter_map(CapabilityName::single).collect()
        };
        Self((set | single(add)) - single(drop))
    }

    /// As capabilities(7) writes them.
    pub fn names(self) -> Vec<String> {
        let names = self.0.iter_names();
        names.map(|(name, _)| format!("CAP_{name}")).collect()
    }

    pub fn set(self) -> CapabilitySet {
        self.0
    }

    /// Whether the set has this one; for ALL, whether it has all.
    pub fn has(self, name: CapabilityName) -> bool {
        self.0.contains(name.single().unwrap_or(Self::ALL.0))
    }

    /// What the file capabilities of a program give that these do not allow: the kernel refuses to
    /// execute it then (EPERM).
    pub fn lacking_for(self, program: &CStr) -> Vec<CapabilityName> {
        let wanted = file_capabilities(program).unwrap_or(CapabilitySet::empty());
        let lacking = (wanted - self.0) & Self::ALL.0;
        lacking.iter().map(CapabilityName::Single).collect()
    }
}

/// The permitted set that executing a file gives, from the attribute that `capabilities(7)`
/// describes.
fn file_capabilities(program: &CStr) -> Option<CapabilitySet> {
    /// `linux/capability.h`: a word that tells the version, then the low and the high half of each
    /// set, little-endian.
    const PERMITTED: [usize; 2] = [4, 12];
    let mut attribute = [0; 24];
    let length = rustix::fs::getxattr(program, c"security.capability", &mut attribute).ok()?;
    let word = |at: usize| {
        let bytes = attribute[..length].get(at..at + 4)?;
        Some(u64::from(u32::from_le_bytes(bytes.try_into().ok()?)))
    };
    let [low, high] = PERMITTED.map(word);
    let bits = low? | high.unwrap_or(0) << 32;
    Some(CapabilitySet::from_bits_retain(bits))
}

/// One argument of `--cap-add` or `--cap-drop`: a name with or without `CAP_`, in any case, or
/// `ALL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CapabilityName {
    All,
    /// A set of one.
    Single(CapabilitySet),
}

impl CapabilityName {
    fn single(&self) -> Option<CapabilitySet> {
        match self {
            Self::All => None,
            Self::Single(capability) => Some(*capability),
        }
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no capability has this name; capabilities(7) lists them")]
pub struct UnknownCapability;

impl FromStr for CapabilityName {
    type Err = UnknownCapability;

    fn from_str(text: &str) -> Result<Self, UnknownCapability> {
        let upper = text.to_ascii_uppercase();
        if upper == "ALL" {
            return Ok(Self::All);
        }
        CapabilitySet::from_name(upper.strip_prefix("CAP_").unwrap_or(&upper))
            .map(Self::Single)
            .ok_or(UnknownCapability)
    }
}

impl fmt::Display for CapabilityName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::All => f.write_str("ALL"),
            Self::Single(capability) => capability
                .iter_names()
                .try_for_each(|(name, _)| f.write_str(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<CapabilityName> {
        list.iter()
            .map(|name| name.parse().expect("a capability"))
            .collect()
    }

    #[test]
    fn the_default_is_podmans_eleven() {
        let eleven = [
            "chown",
            "CAP_DAC_OVERRIDE",
            "FOWNER",
            "fsetid",
            "KILL",
            "NET_BIND_SERVICE",
            "SETFCAP",
            "SETGID",
            "SETPCAP",
            "SETUID",
            "cap_sys_chroot",
        ];
        assert_eq!(
            Capabilities::DEFAULT,
            Capabilities::from(0).adjusted(&names(&eleven), &[])
        );
        assert_eq!(u64::from(Capabilities::DEFAULT), 0x8004_05fb);
    }

    #[test]
    fn all_goes_before_single_names() {
        let default = Capabilities::DEFAULT;
        assert_eq!(
            default.adjusted(&names(&["NET_BIND_SERVICE"]), &names(&["all"])),
            Capabilities::from(0x400)
        );
        assert_eq!(
            default.adjusted(&names(&["ALL"]), &[]),
            Capabilities::from(0x1ff_ffff_ffff)
        );
        assert_eq!(
            default.adjusted(&names(&["ALL"]), &names(&["CHOWN"])),
            Capabilities::from(0x1ff_ffff_fffe)
        );
        assert_eq!(
            default.adjusted(&[], &names(&["CHOWN"])),
            Capabilities::from(0x8004_05fa)
        );
    }

    #[test]
    fn names_are_checked_and_print_back() {
        assert_eq!("NET".parse::<CapabilityName>(), Err(UnknownCapability));
        assert_eq!("CAP_ALL".parse::<CapabilityName>(), Err(UnknownCapability));
        assert_eq!(
            "cap_bpf"
                .parse::<CapabilityName>()
                .expect("bpf")
                .to_string(),
            "BPF"
        );
        assert_eq!(
            "checkpoint_restore".parse(),
            Ok(CapabilityName::Single(CapabilitySet::CHECKPOINT_RESTORE))
        );
    }
}
