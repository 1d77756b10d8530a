//! Which user and group IDs a container has, and how they are given to its user namespace.
//!
//! Owns the parsing of `/etc/subuid` and `/etc/subgid` (`subuid(5)`), the choice between the three ways to map IDs, and the
//! writing of the maps. Four ways, in this order of choice:
//! - *range*: the host's root gives IDs that nobody else has, root in the container included, since its own ID owns the host even
//!   without capabilities (`/proc/sys/kernel`, control groups);
//! - *own*: root of an outer container passes on its own map unchanged; so does the host's root with `--userns host`;
//! - *subordinate*: root in the container is the caller, the rest is the caller's sub-IDs, written by newuidmap and newgidmap;
//! - *single*: root in the container is the caller and there is no other ID. `setgroups` is denied then, as
//!   `user_namespaces(7)` demands: else a caller could shed a group that a file denies access to (CVE-2014-8989).
//!
//! Maps are sorted and start at 0 inside; everything else is checked by the kernel.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::unistd::{Gid, Pid, Uid, User, getegid, geteuid};
use rustix::thread::CapabilitySet;

#[derive(Debug, thiserror::Error)]
pub enum IdMapError {
    #[error(
        "this root has not got CAP_SETUID and CAP_SETGID, so that the container's root would be the host's; \
         --userns host allows that"
    )]
    HostRoot,
    #[error("no {} user IDs in a row are free between {} and {}", RANGE_LEN, FREE_RANGES.start, FREE_RANGES.end)]
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

/// `count` IDs from `inside` on stand for those from `outside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub inside: u32,
    /// As the process that writes the map sees it.
    pub outside: u32,
    pub count: u32,
}

/// One kind of ID: decides which file is read, which tool is run and which file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    User,
    Group,
}

/// The ID maps of a user namespace that is about to be made.
#[derive(Debug, Clone)]
pub struct IdMaps {
    uids: Vec<Extent>,
    gids: Vec<Extent>,
    method: Method,
}

#[derive(Debug, Clone)]
enum Method {
    Range,
    Own,
    Tools {
        newuidmap: PathBuf,
        newgidmap: PathBuf,
    },
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
    /// Chooses the maps for this process; `host_root` lets the host's root be root in the container. With the single map comes the
    /// reason, to be shown once.
    pub fn discover(host_root: bool) -> Result<(IdMaps, Option<SingleReason>), IdMapError> {
        if is_host_root() && !host_root {
            return Ok((Self::range()?, None));
        }
        if geteuid().is_root() && may_set_ids() {
            let maps = IdMaps {
                uids: own_unchanged(Kind::User)?,
                gids: own_unchanged(Kind::Group)?,
                method: Method::Own,
            };
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

    /// The map that every caller may use: root inside is the caller, and there is nobody else.
    pub fn single() -> IdMaps {
        let only = |outside| {
            vec![Extent {
                inside: 0,
                outside,
                count: 1,
            }]
        };
        IdMaps {
            uids: only(geteuid().as_raw()),
            gids: only(getegid().as_raw()),
            method: Method::Single,
        }
    }

    /// IDs for the containers of the host's root: those that `/etc/subuid` and `/etc/subgid` grant to the user `coracle` or
    /// `containers`, else a range that nobody has. The choice is the same each time, as files in containers belong to these IDs.
    fn range() -> Result<IdMaps, IdMapError> {
        if !may_set_ids() {
            return Err(IdMapError::HostRoot);
        }
        let granted = |kind: Kind| {
            let text = kind.read_subids();
            ["coracle", "containers"]
                .map(|owner| in_a_row(&parse_subids(&text, Some(owner), u32::MAX)))
                .into_iter()
                .find(|extents| !extents.is_empty())
        };
        let (uids, gids) = match (granted(Kind::User), granted(Kind::Group)) {
            (Some(uids), Some(gids)) => (uids, gids),
            _ => {
                let texts = [Kind::User, Kind::Group].map(Kind::read_subids);
                let start = free_range(&texts).ok_or(IdMapError::NoFreeRange)?;
                let count = RANGE_LEN;
                let extents = in_a_row(&[SubIdRange { start, count }]);
                (extents.clone(), extents)
            }
        };
        Ok(IdMaps {
            uids,
            gids,
            method: Method::Range,
        })
    }

    /// Whether the container's root has another user ID than the caller, who has to hand its files over to it.
    pub fn root_is_another(&self) -> bool {
        matches!(self.method, Method::Range)
    }

    /// The user and group ID of the container's root, as this process sees them.
    pub fn root(&self) -> (u32, u32) {
        let root = |extents: &[Extent]| {
            let extent = extents.iter().find(|extent| extent.inside == 0);
            extent.expect("maps start at 0 inside").outside
        };
        (root(&self.uids), root(&self.gids))
    }

    fn subordinate(uid: Uid, gid: Gid) -> Result<IdMaps, SingleReason> {
        let name = User::from_uid(uid).ok().flatten().map(|user| user.name);
        let ranges = |kind: Kind| {
            let ranges = parse_subids(&kind.read_subids(), name.as_deref(), uid.as_raw());
            if ranges.is_empty() {
                let user = name.clone().unwrap_or_else(|| uid.to_string());
                return Err(SingleReason::NoSubIds {
                    file: kind.subid_file(),
                    user,
                    remedy: sub_ids_remedy(name.as_deref(), uid.as_raw()),
                });
            }
            Ok(ranges)
        };
        let uids = after_self(uid.as_raw(), &ranges(Kind::User)?);
        let gids = after_self(gid.as_raw(), &ranges(Kind::Group)?);
        let tool = |name| find_in_path(name).ok_or(SingleReason::NoTool(name));
        let (newuidmap, newgidmap) = (tool("newuidmap")?, tool("newgidmap")?);
        if rustix::thread::no_new_privs().unwrap_or(false) {
            return Err(SingleReason::NoNewPrivs);
        }
        Ok(IdMaps {
            uids,
            gids,
            method: Method::Tools {
                newuidmap,
                newgidmap,
            },
        })
    }

    /// Whether an ID of the caller's namespace has a place in the container.
    pub fn maps_host_uid(&self, uid: u32) -> bool {
        self.uids
            .iter()
            .any(|e| (e.outside..e.outside.saturating_add(e.count)).contains(&uid))
    }

    /// Writes the maps of the user namespace that `pid`, a child of this process, has just been born into.
    ///
    /// # Errors
    /// [`IdMapError::Tool`] carries what newuidmap or newgidmap said. The namespace is of no use after an error: one of its
    /// maps may be written already, and a map is written once.
    pub fn write(&self, pid: Pid) -> Result<(), IdMapError> {
        let proc_file = |name: &str| PathBuf::from(format!("/proc/{pid}/{name}"));
        let put = |name: &str, text: &str| {
            let path = proc_file(name);
            std::fs::write(&path, text).map_err(|source| IdMapError::Write { path, source })
        };
        match &self.method {
            Method::Tools {
                newuidmap,
                newgidmap,
            } => {
                let (uids, gids) = (
                    start_tool(newuidmap, pid, &self.uids)?,
                    start_tool(newgidmap, pid, &self.gids),
                );
                // Both are reaped, whichever fails.
                let uids = finish_tool(newuidmap, uids);
                let gids = gids.and_then(|gids| finish_tool(newgidmap, gids));
                uids.and(gids)
            }
            Method::Single => {
                put("setgroups", "deny")?;
                put("uid_map", &to_map_text(&self.uids))?;
                put("gid_map", &to_map_text(&self.gids))
            }
            Method::Own | Method::Range => {
                put("uid_map", &to_map_text(&self.uids))?;
                put("gid_map", &to_map_text(&self.gids))
            }
        }
    }
}

impl Kind {
    fn subid_file(self) -> &'static str {
        match self {
            Kind::User => "/etc/subuid",
            Kind::Group => "/etc/subgid",
        }
    }

    /// An absent or unreadable file grants nothing, as for newuidmap itself.
    fn read_subids(self) -> String {
        let text = std::fs::read(self.subid_file()).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    fn own_map(self) -> &'static str {
        match self {
            Kind::User => "/proc/self/uid_map",
            Kind::Group => "/proc/self/gid_map",
        }
    }
}

/// The map of the user namespace that this process is in; `outside` is as its parent namespace sees it.
pub fn read_own(kind: Kind) -> Result<Vec<Extent>, IdMapError> {
    read_map(Path::new(kind.own_map()))
}

fn read_map(path: &Path) -> Result<Vec<Extent>, IdMapError> {
    let text = std::fs::read_to_string(path).map_err(|source| IdMapError::Read {
        path: path.into(),
        source,
    })?;
    parse_map(&text).map_err(|line| IdMapError::Malformed {
        path: path.into(),
        line,
    })
}

/// The user and group ID of root in the user namespace of process `pid`, as this process sees them.
pub fn root_of(pid: i32) -> Result<(u32, u32), IdMapError> {
    let root = |file: &str| {
        let path = PathBuf::from(format!("/proc/{pid}/{file}"));
        let extents = read_map(&path)?;
        let first = extents.iter().find(|extent| extent.inside == 0);
        first
            .map(|extent| extent.outside)
            .ok_or(IdMapError::NoRoot { path })
    };
    Ok((root("uid_map")?, root("gid_map")?))
}

/// This process's own map for a namespace below, where every ID is to be what it is here.
fn own_unchanged(kind: Kind) -> Result<Vec<Extent>, IdMapError> {
    let unchanged = |extent: Extent| Extent {
        outside: extent.inside,
        ..extent
    };
    Ok(read_own(kind)?.into_iter().map(unchanged).collect())
}

/// Whether `id`, as seen inside, is one of `extents`.
pub fn is_mapped(extents: &[Extent], id: u32) -> bool {
    extents
        .iter()
        .any(|e| id >= e.inside && id - e.inside < e.count)
}

/// The last ID of the gapless run that starts at 0 inside.
pub fn last_contiguous(extents: &[Extent]) -> u32 {
    let mut extents = extents.to_vec();
    extents.sort_by_key(|e| e.inside);
    let mut next = 0u32;
    for extent in extents.iter().take_while(|e| e.count > 0) {
        if extent.inside != next {
            break;
        }
        next = next.saturating_add(extent.count);
    }
    next.saturating_sub(1)
}

/// A range of subordinate IDs as `/etc/subuid` grants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubIdRange {
    pub start: u32,
    pub count: u32,
}

/// The ranges that the lines for `name` or for the number `uid` grant, in file order. Comments, empty lines and lines
/// that are no `owner:start:count` grant nothing, as with newuidmap; neither do ranges beyond 32 bits.
pub fn parse_subids(text: &str, name: Option<&str>, uid: u32) -> Vec<SubIdRange> {
    let parse_line = |line: &str| {
        let mut fields = line.trim_end().split(':');
        let (owner, start, count) = (fields.next()?, fields.next()?, fields.next()?);
        if fields.next().is_some() || !(Some(owner) == name || parse_id(owner) == Some(uid)) {
            return None;
        }
        let (start, count) = (parse_id(start)?, parse_id(count)?);
        // u32::MAX is no ID (`chown(2)` reads it as "leave alone"), so that a range must end below it.
        (count > 0 && start.checked_add(count).is_some()).then_some(SubIdRange { start, count })
    };
    text.lines().filter_map(parse_line).collect()
}

/// How root gives a user sub-IDs that nobody has. usermod itself does not look whether they are
/// free.
fn sub_ids_remedy(name: Option<&str>, uid: u32) -> String {
    let texts =
        [Kind::User, Kind::Group].map(|kind| std::fs::read(kind.subid_file()).unwrap_or_default());
    let texts = texts.map(|text| String::from_utf8_lossy(&text).into_owned());
    let Some(free) = free_sub_ids(&texts.each_ref().map(String::as_str)) else {
        return "and all ranges are given away".to_owned();
    };
    let (first, last) = (free.start, free.start + (free.count - 1));
    match name {
        Some(name) => format!(
            "`usermod --add-subuids {first}-{last} --add-subgids {first}-{last} {name}` as root gives \
             free ones"
        ),
        // usermod wants a name.
        None => format!(
            "the line `{uid}:{first}:{}` in /etc/subuid and in /etc/subgid gives free ones",
            free.count
        ),
    }
}

/// The first range that overlaps no line of these files, whoever the lines are for.
fn free_sub_ids(texts: &[&str]) -> Option<SubIdRange> {
    /// Where useradd begins, and how many it gives: SUB_UID_MIN and SUB_UID_COUNT of
    /// `login.defs(5)`.
    const FIRST: u32 = 100_000;
    const COUNT: u32 = 65536;
    let parse_line = |line: &str| {
        let mut fields = line.trim_end().split(':').skip(1);
        let (start, count): (u64, u64) =
            (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some((start, start.saturating_add(count)))
    };
    let mut taken: Vec<(u64, u64)> = texts
        .iter()
        .flat_map(|text| text.lines().filter_map(parse_line))
        .collect();
    taken.sort_unstable();
    let mut start = u64::from(FIRST);
    for (from, to) in taken {
        if from < start + u64::from(COUNT) && to > start {
            start = to;
        }
    }
    // u32::MAX is no ID.
    let start = u32::try_from(start).ok()?;
    start.checked_add(COUNT)?;
    Some(SubIdRange {
        start,
        count: COUNT,
    })
}

/// Digits only: `u32::from_str` would take a leading `+` as well.
fn parse_id(text: &str) -> Option<u32> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

/// Where the IDs of root's containers are looked for when nobody has granted any: a part of the 32 bits that distributions, systemd
/// and its machines leave alone.
const FREE_RANGES: std::ops::Range<u32> = 0x7000_0000..0x8000_0000;
/// How many IDs a container has then: those that images use.
const RANGE_LEN: u32 = 65536;

/// The beginning of a range that neither an account nor a line of the sub-ID files `texts` has.
fn free_range(texts: &[String]) -> Option<u32> {
    let granted: Vec<(u32, u32)> = texts.iter().flat_map(|text| all_subids(text)).collect();
    FREE_RANGES.step_by(RANGE_LEN as usize).find(|start| {
        let is_granted = |&(first, count): &(u32, u32)| {
            u64::from(first) < u64::from(*start) + u64::from(RANGE_LEN)
                && u64::from(*start) < u64::from(first) + u64::from(count)
        };
        !granted.iter().any(is_granted) && matches!(User::from_uid(Uid::from_raw(*start)), Ok(None))
    })
}

/// The first ID and the number of every range in a sub-ID file, whoever owns it.
fn all_subids(text: &str) -> impl Iterator<Item = (u32, u32)> + '_ {
    text.lines().filter_map(|line| {
        let mut fields = line.trim_end().split(':').skip(1);
        Some((parse_id(fields.next()?)?, parse_id(fields.next()?)?))
    })
}

/// The ranges one after another from 0 inside, leaving out what would map an ID twice.
fn in_a_row(ranges: &[SubIdRange]) -> Vec<Extent> {
    append(Vec::new(), ranges)
}

/// `id` as 0, then the ranges one after another, leaving out what would map an ID twice.
fn after_self(id: u32, ranges: &[SubIdRange]) -> Vec<Extent> {
    let own = Extent {
        inside: 0,
        outside: id,
        count: 1,
    };
    append(vec![own], ranges)
}

fn append(mut extents: Vec<Extent>, ranges: &[SubIdRange]) -> Vec<Extent> {
    /// `user_namespaces(7)`: lines per map since Linux 4.15.
    const EXTENTS_MAX: usize = 340;
    for range in ranges {
        let overlaps = |e: &Extent| {
            range.start < e.outside.saturating_add(e.count) && e.outside < range.start + range.count
        };
        let next = extents.last().map_or(0, |last| last.inside + last.count);
        let room = u32::MAX - next;
        if extents.len() < EXTENTS_MAX && !extents.iter().any(overlaps) && room > 0 {
            extents.push(Extent {
                inside: next,
                outside: range.start,
                count: range.count.min(room),
            });
        }
    }
    extents
}

fn parse_map(text: &str) -> Result<Vec<Extent>, String> {
    let parse_line = |line: &str| {
        let mut fields = line
            .split_ascii_whitespace()
            .map(|field| field.parse().ok());
        Some(Extent {
            inside: fields.next()??,
            outside: fields.next()??,
            count: fields.next()??,
        })
    };
    text.lines()
        .map(|line| parse_line(line).ok_or_else(|| line.to_owned()))
        .collect()
}

fn to_map_text(extents: &[Extent]) -> String {
    extents
        .iter()
        .map(|e| format!("{} {} {}\n", e.inside, e.outside, e.count))
        .collect()
}

/// Whether this process is the host's root, whose user ID owns the host's files: `/proc/sys/kernel` belongs to that ID, which has
/// another name in a user namespace that does not map it. Without /proc to ask, it is taken to be.
pub fn is_host_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    geteuid().is_root()
        && std::fs::metadata("/proc/sys/kernel").map_or(true, |found| found.uid() == 0)
}

/// CAP_SETFCAP is not asked for: the kernel wants it (since 5.12) only where ID 0 of an ancestor is mapped, and says so.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: u32, count: u32) -> SubIdRange {
        SubIdRange { start, count }
    }

    #[test]
    fn subids_are_found_by_name_and_by_number() {
        let file = "# comment\nrhel:165536:65536\nalice:100000:65536\n\n1001:300000:10\ngke-930957db5604c7804fbd:296608:65536\n";
        assert_eq!(
            parse_subids(file, Some("alice"), 1001),
            [range(100_000, 65536), range(300_000, 10)]
        );
        assert_eq!(
            parse_subids(file, Some("gke-930957db5604c7804fbd"), 7),
            [range(296_608, 65536)]
        );
        assert_eq!(parse_subids(file, None, 1001), [range(300_000, 10)]);
        assert_eq!(parse_subids(file, Some("bob"), 1002), []);
    }

    #[test]
    fn the_range_that_is_proposed_is_free() {
        let free = |texts: &[&str]| free_sub_ids(texts).map(|range| (range.start, range.count));
        assert_eq!(free(&["", ""]), Some((100_000, 65536)));
        // Either file, any owner, in any order; gaps that are too small are passed over.
        assert_eq!(free(&["a:100000:65536", ""]), Some((165_536, 65536)));
        assert_eq!(free(&["", "a:100000:65536"]), Some((165_536, 65536)));
        assert_eq!(
            free(&["a:100000:1", "b:165535:65536\n"]),
            Some((231_071, 65536))
        );
        assert_eq!(
            free(&["b:165536:65536\na:100000:65536", "c:231072:1"]),
            Some((231_073, 65536))
        );
        assert_eq!(free(&["a:165536:65536", "# b:1"]), Some((100_000, 65536)));
        assert_eq!(free(&["a:0:1000000\nb:5:5"]), Some((1_000_000, 65536)));
        assert_eq!(free(&["a:99999:2\nbad\n7:x:5"]), Some((100_001, 65536)));
        // To the end, and beyond it.
        assert_eq!(free(&["a:100000:4294801759"]), Some((4_294_901_759, 65536)));
        assert_eq!(free(&["a:100000:4294801760"]), None);
        assert_eq!(free(&["a:100000:18446744073709551615"]), None);
    }

    #[test]
    fn the_remedy_for_no_sub_ids_is_one_command() {
        let said = sub_ids_remedy(Some("alice"), 1001);
        assert_eq!(said.matches("usermod").count(), 1, "{said}");
        assert!(
            said.contains("--add-subuids")
                && said.contains("--add-subgids")
                && said.contains(" alice`"),
            "{said}"
        );
        assert!(sub_ids_remedy(None, 1001).contains("`1001:"));
    }

    #[test]
    fn bad_lines_grant_nothing() {
        for line in [
            "alice",
            "alice:1",
            "alice:1:",
            "alice::5",
            "alice:x:5",
            "alice:1:5:6",
            "alice:1:0",
            "alice:-1:5",
            "alice:+1:5",
            "alice:4294967295:1",
            "alice:4294967000:400",
            "alice:99999999999:5",
            " alice:1:5",
            "#alice:1:5",
            ":1:5",
        ] {
            assert_eq!(parse_subids(line, Some("alice"), 1001), [], "{line}");
        }
    }

    #[test]
    fn root_inside_is_the_caller_and_ranges_follow_without_gap() {
        let extents = after_self(1001, &[range(100_000, 65536), range(300_000, 10)]);
        assert_eq!(
            to_map_text(&extents),
            "0 1001 1\n1 100000 65536\n65537 300000 10\n"
        );
        assert_eq!(last_contiguous(&extents), 65546);
        assert!(is_mapped(&extents, 65546) && !is_mapped(&extents, 65547));
    }

    #[test]
    fn ranges_that_would_map_an_id_twice_are_left_out() {
        let extents = after_self(1001, &[range(1000, 10), range(5000, 100), range(5050, 100)]);
        assert_eq!(to_map_text(&extents), "0 1001 1\n1 5000 100\n");
    }

    #[test]
    fn kernel_maps_are_read() {
        let text = "         0       1001          1\n         1     100000      65536\n";
        let extents = parse_map(text).expect("a kernel map");
        assert_eq!(
            extents[1],
            Extent {
                inside: 1,
                outside: 100_000,
                count: 65536
            }
        );
        assert_eq!(parse_map("0 x 1\n"), Err("0 x 1".to_owned()));
        assert_eq!(
            last_contiguous(&parse_map("0 0 4294967295").expect("the initial map")),
            4_294_967_294
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*", uid: u32) {
            parse_subids(&text, Some("alice"), uid);
            let _ = parse_map(&text);
        }

        #[test]
        fn extents_never_overlap(uid in 0..u32::MAX, raw in prop::collection::vec((0..u32::MAX, 1u32..100_000), 0..20)) {
            let ranges: Vec<_> = raw.into_iter().filter(|(s, c)| s.checked_add(*c).is_some()).map(|(s, c)| range(s, c)).collect();
            let extents = after_self(uid, &ranges);
            let mut next = 0;
            for (i, a) in extents.iter().enumerate() {
                prop_assert_eq!(a.inside, next);
                next += a.count;
                for b in &extents[i + 1..] {
                    prop_assert!(a.outside + a.count <= b.outside || b.outside + b.count <= a.outside);
                }
            }
        }
    }
}
