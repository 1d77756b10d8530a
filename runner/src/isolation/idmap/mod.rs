//! Which user and group IDs a container has, and how they are given to its user namespace.
//!
//! Owns the choice between the ways to map IDs, and the writing of the maps; `subids` knows which
//! sub-IDs there are. Four ways, in this order of choice:
//! - *range*: the host's root gives IDs that nobody else has, root in the container included, since
//!   its own ID owns the host even without capabilities (`/proc/sys/kernel`, control groups);
//! - *own*: root of an outer container passes on its own map unchanged; so does the host's root
//!   with `--userns host`;
//! - *subordinate*: root in the container is the caller, the rest is the caller's sub-IDs, written
//!   by newuidmap and newgidmap;
//! - *single*: root in the container is the caller and there is no other ID. `setgroups` is denied
//!   then, as `user_namespaces(7)` demands: else a caller could shed a group that a file denies
//!   access to (CVE-2014-8989).
//!
//! Maps are sorted and start at 0 inside; everything else is checked by the kernel.

mod extents;
mod subids;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::unistd::User;
use rustix::process::{Gid, Pid, Uid, getegid, geteuid};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use crate::failure::Explained;
pub use extents::{
    Extent, Kind, groups_of, inside, is_mapped, is_single, last_contiguous, read_own, root_of,
    users_of,
};
use extents::{after_self, in_a_row, read_map, to_map_text, unchanged};
use subids::parse_subids;

#[derive(Debug, thiserror::Error)]
pub enum IdMapError {
    #[error(
        "this root cannot give containers other IDs than its own, for want of CAP_SETUID and CAP_SETGID or of other IDs in the user \
         namespace around it, so that their root would be the host's; --userns host allows that"
    )]
    HostRoot,
    #[error(
        "no IDs are free for the containers of root: give the user `coracle` some in /etc/subuid and /etc/subgid"
    )]
    NoFreeRange,
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} holds no ID map: {line:?}", path.display())]
    Malformed { path: PathBuf, line: String },
    #[error("{} maps no root", path.display())]
    NoRoot { path: PathBuf },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot run {}: {source}", tool.display())]
    Spawn { tool: PathBuf, source: io::Error },
    #[error("{} failed: {message}", tool.display())]
    Tool { tool: PathBuf, message: String },
}

impl Explained for IdMapError {}

impl IdMapError {
    /// Whether newuidmap or newgidmap would fail the next time, too.
    pub fn is_lasting(&self) -> bool {
        use io::ErrorKind::{NotFound, PermissionDenied};
        match self {
            Self::Tool { .. } => true,
            Self::Spawn { source, .. } => matches!(source.kind(), NotFound | PermissionDenied),
            _ => false,
        }
    }
}

/// The ID maps of a user namespace that is about to be made. Kept with a container, for another
/// namespace with the same IDs. A process inside of such a namespace has the same maps as one
/// outside, so that what either of them keeps is of use to both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMaps {
    uids: Vec<Extent>,
    gids: Vec<Extent>,
    method: Method,
}

const NEWUIDMAP: &str = "newuidmap";
const NEWGIDMAP: &str = "newgidmap";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Method {
    Range,
    Own,
    Subordinate,
    Single,
}

/// Why a container gets a single user and group ID. The display is the second half of the warning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SingleReason {
    #[error("{file} has no line for {user}; {remedy}")]
    NoSubIds {
        file: &'static str,
        user: String,
        /// What root can do about it.
        remedy: String,
    },
    #[error("{0} is not in PATH; the package uidmap (Debian) or shadow-utils (Fedora) holds it")]
    NoTool(&'static str),
    #[error("the user namespace around this process has no others")]
    Outer,
    #[error(
        "no_new_privs is set for this process, so that newuidmap cannot gain the right to map IDs"
    )]
    NoNewPrivs,
    #[error("{0}")]
    ToolFailed(String),
}

impl SingleReason {
    /// For the user.
    pub fn warning(&self) -> String {
        format!(
            "the container has one user and one group only, so that programs in it cannot switch users: {self}"
        )
    }
}

impl IdMaps {
    /// Chooses the maps for this process; `host_root` lets the host's root be root in the
    /// container. With the single map comes the reason, to be shown once.
    pub fn discover(host_root: bool) -> Result<(Self, Option<SingleReason>), IdMapError> {
        if is_host_root() && !host_root {
            return Ok((Self::range()?, None));
        }
        if geteuid().is_root() && may_set_ids() {
            let maps = Self::own()?;
            let single = [&maps.uids, &maps.gids]
                .into_iter()
                .any(|extents| last_contiguous(extents) == 0);
            return Ok((maps, single.then_some(SingleReason::Outer)));
        }
        match Self::subordinate(geteuid(), getegid()) {
            Ok(maps) => Ok((maps, None)),
            Err(reason) => Ok((Self::single(), Some(reason))),
        }
    }

    /// This process's own, for a namespace below in which every ID is what it is here.
    fn own() -> Result<Self, IdMapError> {
        let (uids, gids) = (read_own(Kind::User)?, read_own(Kind::Group)?);
        let all_unchanged = |extents: &[Extent]| extents.iter().all(|e| e.inside == e.outside);
        // How a process outside would make a namespace with these IDs.
        let method = match () {
            () if all_unchanged(&uids) && all_unchanged(&gids) => Method::Own,
            () if is_single(&uids) && is_single(&gids) => Method::Single,
            () => Method::Subordinate,
        };
        Ok(Self { uids, gids, method })
    }

    /// The maps as this process has to write them: in a namespace that has these very IDs, they are
    /// passed on unchanged.
    fn here(&self) -> Self {
        let is_own = |kind, extents: &[Extent]| read_own(kind).is_ok_and(|own| own == extents);
        if !is_own(Kind::User, &self.uids) || !is_own(Kind::Group, &self.gids) {
            return self.clone();
        }
        Self {
            uids: unchanged(&self.uids),
            gids: unchanged(&self.gids),
            method: Method::Own,
        }
    }

    /// The map that every caller may use: root inside is the caller, and there is nobody else.
    pub fn single() -> Self {
        let only = |outside| {
            vec![Extent {
                inside: 0,
                outside,
                count: 1,
            }]
        };
        Self {
            uids: only(geteuid().as_raw()),
            gids: only(getegid().as_raw()),
            method: Method::Single,
        }
    }

    /// IDs for the containers of the host's root: those that `/etc/subuid` and `/etc/subgid` grant
    /// to the user `coracle` or `containers`, else a range that nobody has. The choice is the same
    /// each time, as files in containers belong to these IDs.
    fn range() -> Result<Self, IdMapError> {
        if !may_set_ids() {
            return Err(IdMapError::HostRoot);
        }
        // In a user namespace of its own the host's root may have no other IDs to give.
        let own = read_own(Kind::User)?;
        let texts = [Kind::User, Kind::Group].map(Kind::read_subids);
        let granted = (
            subids::granted_to_root(&texts[0]),
            subids::granted_to_root(&texts[1]),
        );
        let (uids, gids) = match granted {
            (Some(uids), Some(gids)) => (in_a_row(&uids), in_a_row(&gids)),
            _ => {
                let free = subids::free_for_root(&texts).ok_or(IdMapError::NoFreeRange)?;
                let extents = in_a_row(&[free]);
                (extents.clone(), extents)
            }
        };
        if !uids.iter().all(|extent| is_mapped(&own, extent.outside)) {
            return Err(IdMapError::HostRoot);
        }
        Ok(Self {
            uids,
            gids,
            method: Method::Range,
        })
    }

    /// Whether the container's root has another user ID than the caller, who has to hand its files
    /// over to it.
    pub fn root_is_another(&self) -> bool {
        matches!(self.method, Method::Range)
    }

    /// The user and group ID of the container's root, as this process sees them.
    pub fn root(&self) -> (u32, u32) {
        let root = |extents: &[Extent]| {
            let extent = extents.iter().find(|extent| extent.inside == 0);
            extent.expect("maps start at 0 inside").outside
        };
        let here = self.here();
        (root(&here.uids), root(&here.gids))
    }

    fn subordinate(uid: Uid, gid: Gid) -> Result<Self, SingleReason> {
        let name = User::from_uid(uid.as_raw().into())
            .ok()
            .flatten()
            .map(|user| user.name);
        let ranges = |kind: Kind| {
            let ranges = parse_subids(&kind.read_subids(), name.as_deref(), uid.as_raw());
            if ranges.is_empty() {
                let user = name.clone().unwrap_or_else(|| uid.to_string());
                return Err(SingleReason::NoSubIds {
                    file: kind.subid_file(),
                    user,
                    remedy: subids::remedy(name.as_deref(), uid.as_raw()),
                });
            }
            Ok(ranges)
        };
        let uids = after_self(uid.as_raw(), &ranges(Kind::User)?);
        let gids = after_self(gid.as_raw(), &ranges(Kind::Group)?);
        for tool in [NEWUIDMAP, NEWGIDMAP] {
            find_in_path(tool).ok_or(SingleReason::NoTool(tool))?;
        }
        if rustix::thread::no_new_privs().unwrap_or(false) {
            return Err(SingleReason::NoNewPrivs);
        }
        Ok(Self {
            uids,
            gids,
            method: Method::Subordinate,
        })
    }

    /// Whether there is but one user or one group.
    pub fn is_single(&self) -> bool {
        is_single(&self.uids) || is_single(&self.gids)
    }

    /// The lines for users.
    pub fn uids(&self) -> &[Extent] {
        &self.uids
    }

    /// The lines for groups.
    pub fn gids(&self) -> &[Extent] {
        &self.gids
    }

    /// How many users there are without a gap from root on.
    pub fn user_count(&self) -> u32 {
        last_contiguous(&self.uids).saturating_add(1)
    }

    /// Whether an ID of the caller's namespace has a place in the container.
    pub fn maps_host_uid(&self, uid: u32) -> bool {
        self.here()
            .uids
            .iter()
            .any(|e| (e.outside..e.outside.saturating_add(e.count)).contains(&uid))
    }

    /// What a user and a group of the caller's namespace are in the container: nobody where they
    /// have no place there.
    pub fn inside(&self, uid: u32, gid: u32) -> (u32, u32) {
        /// Of `/proc/sys/kernel/overflowuid`, unless somebody has set another.
        const OVERFLOW_ID: u32 = 65534;
        let here = self.here();
        let id = |extents: &[Extent], id| inside(extents, id).unwrap_or(OVERFLOW_ID);
        (id(&here.uids, uid), id(&here.gids, gid))
    }

    /// Whether the user namespace of process `pid` has these IDs.
    pub fn are_of(&self, pid: i32) -> bool {
        let is = |file: &str, extents: &Vec<Extent>| {
            read_map(Path::new(&format!("/proc/{pid}/{file}"))).is_ok_and(|own| own == *extents)
        };
        let here = self.here();
        is("uid_map", &here.uids) && is("gid_map", &here.gids)
    }

    /// Writes the maps of the user namespace that `pid`, a child of this process, has just been
    /// born into.
    ///
    /// # Errors
    /// [`IdMapError::Tool`] carries what newuidmap or newgidmap said. The namespace is of no use
    /// after an error: one of its maps may be written already, and a map is written once.
    pub fn write(&self, pid: Pid) -> Result<(), IdMapError> {
        let proc_file = |name: &str| PathBuf::from(format!("/proc/{pid}/{name}"));
        let put = |name: &str, text: &str| {
            let path = proc_file(name);
            std::fs::write(&path, text).map_err(|source| IdMapError::Write { path, source })
        };
        let Self { uids, gids, method } = &self.here();
        match method {
            Method::Subordinate => {
                // Where one is missing now, the attempt to run it says so.
                let found = |tool| find_in_path(tool).unwrap_or_else(|| tool.into());
                let (newuidmap, newgidmap) = (found(NEWUIDMAP), found(NEWGIDMAP));
                let (uids, gids) = (
                    start_tool(&newuidmap, pid, uids)?,
                    start_tool(&newgidmap, pid, gids),
                );
                // Both are reaped, whichever fails.
                let uids = finish_tool(&newuidmap, uids);
                let gids = gids.and_then(|gids| finish_tool(&newgidmap, gids));
                uids.and(gids)
            }
            Method::Single => {
                put("setgroups", "deny")?;
                put("uid_map", &to_map_text(uids))?;
                put("gid_map", &to_map_text(gids))
            }
            Method::Own | Method::Range => {
                put("uid_map", &to_map_text(uids))?;
                put("gid_map", &to_map_text(gids))
            }
        }
    }
}

/// Whether this process may be in the host's own user namespace, where every ID is itself.
pub fn is_initial() -> bool {
    let all = |own: Vec<Extent>| {
        own.iter()
            .any(|e| e.inside == e.outside && e.count == u32::MAX)
    };
    read_own(Kind::User).map_or(true, all)
}

/// The user who has started this process: in a user namespace, as the one around it sees them.
pub fn caller_uid() -> u32 {
    let uid = geteuid().as_raw();
    let own = read_own(Kind::User).unwrap_or_default();
    let extent = own.iter().find(|e| is_mapped(&[**e], uid));
    extent.map_or(uid, |extent| extent.outside + (uid - extent.inside))
}

/// Whether this process is the host's root, whose user ID owns the host's files: `/proc/sys/kernel`
/// belongs to that ID, which has another name in a user namespace that does not map it. Without
/// /proc to ask, it is taken to be.
pub fn is_host_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    geteuid().is_root()
        && std::fs::metadata("/proc/sys/kernel").map_or(true, |found| found.uid() == 0)
}

/// CAP_SETFCAP is not asked for: the kernel wants it (since 5.12) only where ID 0 of an ancestor is
/// mapped, and says so.
fn may_set_ids() -> bool {
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID;
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

fn find_in_path(name: &str) -> Option<PathBuf> {
    let path =
        std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/local/bin:/usr/bin:/bin"));
    let executable = |file: &PathBuf| {
        file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
    };
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(executable)
}

fn start_tool(tool: &Path, pid: Pid, extents: &[Extent]) -> Result<Child, IdMapError> {
    let mut command = Command::new(tool);
    command
        .arg(pid.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    for extent in extents {
        command
            .args([extent.inside, extent.outside, extent.count].map(|number| number.to_string()));
    }
    command.spawn().map_err(|source| IdMapError::Spawn {
        tool: tool.into(),
        source,
    })
}

fn finish_tool(tool: &Path, child: Child) -> Result<(), IdMapError> {
    let output = child
        .wait_with_output()
        .map_err(|source| IdMapError::Spawn {
            tool: tool.into(),
            source,
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let message = if said.is_empty() {
        output.status.to_string()
    } else {
        said
    };
    Err(IdMapError::Tool {
        tool: tool.into(),
        message,
    })
}
