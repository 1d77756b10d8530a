//! The processes of a container, as the host's /proc tells of them.
//!
//! They are found by their PID namespace, and read by PID. Nothing of the container's is executed
//! (CVE-2022-1227); its passwd and group are looked up below its root, for names only. A process
//! that ends meanwhile is left out, and so is one whose PID has gone to another one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use super::processes::running_init;
use super::{Engine, EngineError};
use crate::isolation::capabilities::Capabilities;
use crate::isolation::idmap;
use crate::process::user;
use crate::sys;

/// A process of a container. IDs of processes are the container's where nothing else is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessEntry {
    pub pid: i32,
    /// 0 where its parent is outside.
    pub ppid: i32,
    pub pgid: i32,
    pub host_pid: i32,
    /// Real and effective, as the host sees them.
    pub host_uids: [u32; 2],
    pub host_gids: [u32; 2],
    pub host_groups: Vec<u32>,
    pub comm: String,
    /// Empty for one that has given its arguments up, as one that has ended.
    pub args: Vec<String>,
    /// A letter of `proc_pid_stat(5)`.
    pub state: char,
    /// Device number of its terminal; 0 for none.
    pub terminal: u32,
    pub nice: i64,
    /// Of a processor.
    pub cpu_time: Duration,
    /// Since it started.
    pub elapsed: Duration,
    /// In bytes.
    pub virtual_size: u64,
    pub resident_size: u64,
    pub inheritable: Capabilities,
    pub permitted: Capabilities,
    pub effective: Capabilities,
    pub bounding: Capabilities,
    pub ambient: Capabilities,
    /// As `proc_pid_status(5)` has it.
    pub seccomp: u32,
    /// Of a security module; empty without.
    pub label: String,
}

/// The processes of a container, and what its IDs mean there.
#[derive(Debug, Clone, Default)]
pub struct Top {
    /// In the order of their PIDs.
    pub processes: Vec<ProcessEntry>,
    users: Names,
    groups: Names,
}

#[derive(Debug, Clone, Default)]
struct Names {
    map: Vec<idmap::Extent>,
    names: BTreeMap<u32, String>,
}

impl Names {
    /// The name in the container of an ID of the host's, or else its number there; the number of
    /// nobody where it has no place there.
    fn of(&self, host_id: u32) -> String {
        /// As the kernel shows such an ID.
        const OVERFLOW: u32 = 65534;
        let id = idmap::inside(&self.map, host_id).unwrap_or(OVERFLOW);
        self.names
            .get(&id)
            .cloned()
            .unwrap_or_else(|| id.to_string())
    }
}

impl Top {
    /// The name in the container of a user of the host's.
    pub fn user(&self, host_uid: u32) -> String {
        self.users.of(host_uid)
    }

    /// The same of a group.
    pub fn group(&self, host_gid: u32) -> String {
        self.groups.of(host_gid)
    }
}

impl Engine {
    /// The processes of a container that runs.
    ///
    /// # Errors
    /// [`EngineError::NotRunning`], and those of [`Engine::find`].
    pub fn top(&self, wanted: &str) -> Result<Top, EngineError> {
        let container = self.find(wanted)?;
        // Held until all is read: so long nobody else can have its PID.
        let _held = running_init(&container)?;
        let gone = || EngineError::NotRunning {
            name: container.name.clone(),
        };
        let init = container.init.as_ref().ok_or_else(gone)?.pid;
        let (users, groups) = match File::open(format!("/proc/{init}/root")) {
            Ok(root) => user::names(root.as_fd()),
            Err(_) => Default::default(),
        };
        Ok(Top {
            processes: processes_of(init).ok_or_else(gone)?,
            users: Names {
                map: idmap::users_of(init)?,
                names: users,
            },
            groups: Names {
                map: idmap::groups_of(init)?,
                names: groups,
            },
        })
    }
}

/// Those in the PID namespace of `init`, and in those below it. `None` when it has ended.
pub(super) fn processes_of(init: i32) -> Option<Vec<ProcessEntry>> {
    let namespace = |pid| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own: PathBuf = namespace(init)?;
    let depth = Status::read(init)
        .ok()?
        .ids::<i32>("NSpid")
        .len()
        .checked_sub(1)?;
    let seen: Vec<Seen> = fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Seen::look(pid).ok())
        .collect();
    let mut members: BTreeSet<i32> = seen
        .iter()
        .map(|seen| seen.pid)
        .filter(|pid| namespace(*pid).as_ref() == Some(&own))
        .collect();
    // A namespace below this one has its first process from here.
    loop {
        let child =
            |seen: &&Seen| members.contains(&seen.stat.ppid) && !members.contains(&seen.pid);
        let children: Vec<i32> = seen.iter().filter(child).map(|seen| seen.pid).collect();
        if children.is_empty() {
            break;
        }
        members.extend(children);
    }
    let seen = seen.iter().filter(|seen| members.contains(&seen.pid));
    let seen: Vec<&Seen> = seen.collect();
    let inside: BTreeMap<i32, i32> = seen
        .iter()
        .filter_map(|seen| Some((seen.pid, *seen.status.ids("NSpid").get(depth)?)))
        .collect();
    let uptime = uptime().ok()?;
    let entries = seen
        .into_iter()
        .filter_map(|seen| seen.entry(depth, &inside, uptime));
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by_key(|entry| entry.pid);
    Some(entries)
}

/// What /proc says of one process, read at one time.
struct Seen {
    pid: i32,
    stat: Stat,
    status: Status,
    args: Vec<u8>,
    label: String,
}

impl Seen {
    fn look(pid: i32) -> io::Result<Self> {
        let file = |name: &str| format!("/proc/{pid}/{name}");
        let stat = Stat::read(pid)?;
        let seen = Self {
            pid,
            status: Status::read(pid)?,
            args: fs::read(file("cmdline"))?,
            label: fs::read_to_string(file("attr/current")).unwrap_or_default(),
            stat,
        };
        match Stat::read(pid)?.start_time == seen.stat.start_time {
            true => Ok(seen),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// `inside` has the PIDs in the container by those of the host.
    fn entry(
        &self,
        depth: usize,
        inside: &BTreeMap<i32, i32>,
        uptime: Duration,
    ) -> Option<ProcessEntry> {
        let ids = |name| {
            let ids = self.status.ids(name);
            Some([*ids.first()?, *ids.get(1)?])
        };
        // One that has ended has no memory.
        let kibibytes = |name| 1024 * self.status.ids(name).first().copied().unwrap_or(0u64);
        let caps = |name| Capabilities::from(self.status.hex(name));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let args = self.args.strip_suffix(b"\0").unwrap_or(&self.args);
        let args = args.split(|byte| *byte == 0).map(text);
        Some(ProcessEntry {
            pid: *inside.get(&self.pid)?,
            ppid: inside.get(&self.stat.ppid).copied().unwrap_or(0),
            pgid: self.status.ids("NSpgid").get(depth).copied().unwrap_or(0),
            host_pid: self.pid,
            host_uids: ids("Uid")?,
            host_gids: ids("Gid")?,
            host_groups: self.status.ids("Groups"),
            comm: self.stat.comm.clone(),
            args: match self.args.is_empty() {
                true => Vec::new(),
                false => args.collect(),
            },
            state: self.stat.state,
            terminal: self.stat.terminal,
            nice: self.stat.nice,
            cpu_time: ticks(self.stat.cpu_ticks),
            elapsed: uptime.saturating_sub(ticks(self.stat.start_time)),
            virtual_size: kibibytes("VmSize"),
            resident_size: kibibytes("VmRSS"),
            inheritable: caps("CapInh"),
            permitted: caps("CapPrm"),
            effective: caps("CapEff"),
            bounding: caps("CapBnd"),
            ambient: caps("CapAmb"),
            seccomp: self.status.ids("Seccomp").first().copied().unwrap_or(0),
            label: self.label.trim_end_matches(['\0', '\n']).to_owned(),
        })
    }
}

/// The fields of `proc_pid_stat(5)` that are of use.
struct Stat {
    comm: String,
    state: char,
    ppid: i32,
    terminal: u32,
    cpu_ticks: u64,
    nice: i64,
    start_time: u64,
}

impl Stat {
    fn read(pid: i32) -> io::Result<Self> {
        let text = fs::read(format!("/proc/{pid}/stat"))?;
        Self::parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn parse(text: &[u8]) -> Option<Self> {
        // The name may itself hold spaces and parentheses.
        let begin = text.iter().position(|byte| *byte == b'(')?;
        let end = text.iter().rposition(|byte| *byte == b')')?;
        let comm = String::from_utf8_lossy(text.get(begin + 1..end)?).into_owned();
        let fields = str::from_utf8(&text[end + 1..]).ok()?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        // Numbered as in the manual, which counts from 1 and has two before these.
        let field = |number: usize| fields.get(number - 3).copied();
        let number = |index| field(index)?.parse::<u64>().ok();
        Some(Self {
            comm,
            state: field(3)?.chars().next()?,
            ppid: field(4)?.parse().ok()?,
            terminal: field(7)?.parse::<i32>().ok()?.cast_unsigned(),
            cpu_ticks: number(14)? + number(15)?,
            nice: field(19)?.parse().ok()?,
            start_time: number(22)?,
        })
    }
}

/// `proc_pid_status(5)`.
struct Status(String);

impl Status {
    fn read(pid: i32) -> io::Result<Self> {
        let text = fs::read(format!("/proc/{pid}/status"))?;
        Ok(Self(String::from_utf8_lossy(&text).into_owned()))
    }

    fn field(&self, name: &str) -> &str {
        let value = |line: &'_ str| -> Option<usize> {
            let rest = line.strip_prefix(name)?.strip_prefix(':')?;
            Some(line.len() - rest.len())
        };
        let mut lines = self.0.lines();
        lines
            .find_map(|line| Some(&line[value(line)?..]))
            .unwrap_or("")
    }

    fn ids<T: std::str::FromStr>(&self, name: &str) -> Vec<T> {
        let fields = self.field(name).split_ascii_whitespace();
        fields.filter_map(|id| id.parse().ok()).collect()
    }

    fn hex(&self, name: &str) -> u64 {
        u64::from_str_radix(self.field(name).trim(), 16).unwrap_or(0)
    }
}

/// Time in the kernel's ticks.
fn ticks(count: u64) -> Duration {
    let per_second = sys::clock_ticks_per_second();
    let rest = count % per_second * 1_000_000_000 / per_second;
    Duration::from_secs(count / per_second) + Duration::from_nanos(rest)
}

/// Since the boot, as start times are.
fn uptime() -> io::Result<Duration> {
    let text = fs::read_to_string("/proc/uptime")?;
    let seconds: Option<f64> = text.split(' ').next().and_then(|text| text.parse().ok());
    let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    time.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_fields() {
        let rest = "S 1 7 7 34816 7 4194304 9 0 0 0 150 50 0 0 20 5 1 0 300 4096 2 0";
        let text = format!("7 (a) R 9 (b) {rest}");
        let stat = Stat::parse(text.as_bytes()).expect("fields");
        assert_eq!((&*stat.comm, stat.state, stat.ppid), ("a) R 9 (b", 'S', 1));
        assert_eq!((stat.terminal, stat.cpu_ticks, stat.nice), (34816, 200, 5));
        assert_eq!(stat.start_time, 300);
        for text in ["", "7 (a", "7 (a) S 1", ")("] {
            assert!(Stat::parse(text.as_bytes()).is_none(), "{text:?}");
        }
    }

    #[test]
    fn only_whole_names_are_fields() {
        let status = Status("Name:\tGid:\t9\nGid:\t1\t2\nCapEff:\t00000000000000ff\n".to_owned());
        assert_eq!(status.ids::<u32>("Gid"), [1, 2]);
        assert_eq!(status.hex("CapEff"), 255);
        assert!(status.ids::<u32>("Cap").is_empty());
    }
}
