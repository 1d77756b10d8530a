//! What a container's process may do: capabilities, `no_new_privs`, keyring, system calls.
//!
//! Owns the names and the default set of capabilities, and the order in which rights are given up.
//! Which system calls there are is `seccomp`'s.
//! A container's capabilities are those of its user namespace only. The inheritable and ambient
//! sets are always empty: a non-empty one let files with inheritable capabilities raise them
//! (CVE-2022-24769, CVE-2022-27649).

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::str::FromStr;

use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use crate::failure::Explained;
use crate::isolation::seccomp::{Filter, SeccompError};
use crate::process::user::Identity;
use crate::sys;

#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    #[error("cannot give up capabilities: {source}")]
    Capabilities { source: io::Error },
    #[error("cannot become user {uid} and group {gid}: {source}{hint}")]
    Identity {
        uid: u32,
        gid: u32,
        source: io::Error,
        hint: &'static str,
    },
    #[error("cannot set no_new_privs: {source}")]
    NoNewPrivs { source: io::Error },
    #[error("cannot leave the caller's session keyring: {source}")]
    Keyring { source: io::Error },
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
}

impl Explained for SecurityError {}

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

/// What a container's command may do and who it is.
#[derive(Debug)]
pub struct Rights {
    pub identity: Identity,
    pub capabilities: Capabilities,
    pub no_new_privs: bool,
    /// Whether the user namespace has one user and one group, and so no groups to set.
    pub single_id: bool,
    pub filter: Option<Filter>,
}

impl Rights {
    /// The first of two steps that turn this process, root of the user namespace with every
    /// capability, into what the container's command is to be: nothing can be got back by executing
    /// a program, and the process is the command's user. It still has every capability.
    pub fn become_user(&self) -> Result<(), SecurityError> {
        match sys::join_fresh_session_keyring() {
            // A kernel without keyrings, or an outer container whose filter forbids them, leaves
            // nothing to protect.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {}
            other => other.map_err(|source| SecurityError::Keyring { source })?,
        }
        // The bounding set goes first: lowering it takes CAP_SETPCAP, which the container may not
        // be meant to have.
        rustix::thread::clear_ambient_capability_set().map_err(capability_error)?;
        for number in 0..u64::BITS {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            if !self.capabilities.0.contains(capability) {
                match rustix::thread::remove_capability_from_bounding_set(capability) {
                    // Beyond the last capability that this kernel knows.
                    Err(rustix::io::Errno::INVAL) => break,
                    other => other.map_err(capability_error)?,
                }
            }
        }
        // For `seal`, which may have to install a filter.
        rustix::thread::set_keep_capabilities(true).map_err(capability_error)?;
        become_user(&self.identity, self.single_id)?;
        rustix::thread::set_keep_capabilities(false).map_err(capability_error)
    }

    /// The second step, right before exec: what comes after has no rights left to do anything else,
    /// and makes no system call that the filter forbids.
    pub fn seal(&self) -> Result<(), SecurityError> {
        let permitted = rustix::thread::capabilities(None)
            .map_err(capability_error)?
            .permitted;
        // Only root keeps capabilities, as after exec of an ordinary program.
        let kept = match self.identity.uid {
            0 => permitted & self.capabilities.0,
            _ => CapabilitySet::empty(),
        };
        if self.no_new_privs {
            limit_capabilities(kept)?;
            let error = |errno: rustix::io::Errno| SecurityError::NoNewPrivs {
                source: errno.into(),
            };
            rustix::thread::set_no_new_privs(true).map_err(error)?;
            self.install_filter()
        } else {
            // Without no_new_privs a filter takes this capability (seccomp(2)).
            limit_capabilities(kept | (permitted & CapabilitySet::SYS_ADMIN))?;
            self.install_filter()?;
            limit_capabilities(kept)
        }
    }

    fn install_filter(&self) -> Result<(), SecurityError> {
        match &self.filter {
            Some(filter) => Ok(filter.install()?),
            None => Ok(()),
        }
    }
}

fn limit_capabilities(kept: CapabilitySet) -> Result<(), SecurityError> {
    let sets = rustix::thread::CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).map_err(capability_error)
}

fn capability_error(errno: rustix::io::Errno) -> SecurityError {
    SecurityError::Capabilities {
        source: errno.into(),
    }
}

/// Groups, then group, then user: each step still has the right to take the next.
fn become_user(identity: &Identity, single_id: bool) -> Result<(), SecurityError> {
    use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let failed = |errno: nix::errno::Errno| {
        let hint = match errno {
            nix::errno::Errno::EINVAL => {
                "; the container has no such ID, see its /proc/self/uid_map and gid_map"
            }
            _ => "",
        };
        SecurityError::Identity {
            uid: identity.uid,
            gid: identity.gid,
            source: errno.into(),
            hint,
        }
    };
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    match setgroups(&groups) {
        // Denied with a single-ID map (user_namespaces(7)): the caller's groups stay, as unmapped
        // ones. Asked of the kernel's map, not of a file that the container may have put in the
        // place of /proc.
        Err(nix::errno::Errno::EPERM) if single_id => {}
        other => other.map_err(failed)?,
    }
    setresgid(gid, gid, gid).map_err(failed)?;
    setresuid(uid, uid, uid).map_err(failed)
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
