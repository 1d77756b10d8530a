//! What `/proc` says about a helper: CPU time, resident memory and descriptors of a process and all
//! its descendants.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

/// The processes of a helper: known roots, whatever they started, less the processes that are ours.
#[derive(Clone, Debug, Default)]
pub struct Processes {
    roots: Vec<i32>,
    not: Vec<i32>,
}

/// CPU time consumed so far, in seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// User and system time of the helper's processes.
    pub helper_s: f64,
    /// Time in which any core of the machine was not idle.
    pub machine_s: f64,
}

impl std::ops::Sub for Cpu {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            helper_s: self.helper_s - earlier.helper_s,
            machine_s: self.machine_s - earlier.machine_s,
        }
    }
}

impl std::ops::AddAssign for Cpu {
    fn add_assign(&mut self, more: Self) {
        self.helper_s += more.helper_s;
        self.machine_s += more.machine_s;
    }
}

/// Memory and descriptors at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Footprint {
    pub rss_bytes: u64,
    pub fds: u64,
}

impl Processes {
    /// The trees below `roots` without those below `not`.
    pub fn new(roots: Vec<i32>, not: Vec<i32>) -> Self {
        Self { roots, not }
    }

    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    pub fn cpu(&self) -> Result<Cpu> {
        let ticks: u64 = self.members()?.iter().map(|stat| stat.cpu_ticks).sum();
        let machine = fs::read_to_string("/proc/stat").context("failed to read /proc/stat")?;
        let machine_ticks =
            parse_machine_busy(&machine).context("failed to understand /proc/stat")?;
        let per_second =
            sysconf(SysconfVar::CLK_TCK)?.context("the kernel has no clock tick")? as f64;
        Ok(Cpu {
            helper_s: ticks as f64 / per_second,
            machine_s: machine_ticks as f64 / per_second,
        })
    }

    pub fn footprint(&self) -> Result<Footprint> {
        let mut sum = Footprint::default();
        for member in self.members()? {
            let status =
                fs::read_to_string(format!("/proc/{}/status", member.pid)).unwrap_or_default();
            sum.rss_bytes += parse_rss(&status).unwrap_or(0);
            sum.fds += descriptors(member.pid);
        }
        Ok(sum)
    }

    /// A process that ends while we look is simply no member.
    fn members(&self) -> Result<Vec<Stat>> {
        let mut all = Vec::new();
        for entry in fs::read_dir("/proc").context("failed to list /proc")? {
            let path = entry?.path();
            if let Ok(text) = fs::read_to_string(path.join("stat"))
                && let Some(stat) = Stat::parse(&text)
            {
                all.push(stat);
            }
        }
        Ok(self.select(all))
    }

    fn select(&self, all: Vec<Stat>) -> Vec<Stat> {
        let mut ours: BTreeSet<i32> = self.roots.iter().copied().collect();
        loop {
            let before = ours.len();
            ours.extend(
                all.iter()
                    .filter(|s| ours.contains(&s.parent) && !self.not.contains(&s.pid))
                    .map(|s| s.pid)
                    .collect::<Vec<_>>(),
            );
            if ours.len() == before {
                break;
            }
        }
        all.into_iter()
            .filter(|stat| ours.contains(&stat.pid))
            .collect()
    }
}

/// The fields of `/proc/PID/stat` that matter here.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stat {
    pid: i32,
    parent: i32,
    /// User and system time, children that were waited for included.
    cpu_ticks: u64,
}

impl Stat {
    /// The command, field 2, is in parentheses and may itself contain spaces and parentheses.
    fn parse(text: &str) -> Option<Self> {
        let pid = text.split(' ').next()?.parse().ok()?;
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // `rest` begins with field 3, the state; proc(5) numbers ppid 4 and utime..cstime 14..17.
        let parent = fields.get(1)?.parse().ok()?;
        let times: Option<u64> = fields
            .get(11..15)?
            .iter()
            .map(|ticks| ticks.parse::<u64>().ok())
            .sum();
        Some(Self {
            pid,
            parent,
            cpu_ticks: times?,
        })
    }
}

/// Ticks in which a core did anything: all columns of the first line but idle and iowait (guest
/// time is part of user time).
fn parse_machine_busy(text: &str) -> Option<u64> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let columns: Vec<u64> = line
        .split_ascii_whitespace()
        .map_while(|column| column.parse().ok())
        .collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, steal, ..] = columns[..] else {
        return None;
    };
    Some(user + nice + system + irq + softirq + steal)
}

/// `VmRSS` in bytes. Kernel threads and zombies have none.
fn parse_rss(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// Open descriptors of a process. Since Linux 6.2 the size of the directory is their number, which
/// needs no right to look into a process that made itself undumpable, as sandboxed helpers do;
/// before, they are counted where that is allowed.
fn descriptors(pid: i32) -> u64 {
    let path = format!("/proc/{pid}/fd");
    match fs::metadata(Path::new(&path)).map(|metadata| metadata.len()) {
        Ok(0) | Err(_) => fs::read_dir(path).map_or(0, |entries| entries.count() as u64),
        Ok(count) => count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(pid: i32, parent: i32) -> Stat {
        Stat {
            pid,
            parent,
            cpu_ticks: 1,
        }
    }

    #[test]
    fn a_hostile_command_name_does_not_shift_the_fields() {
        let text = "42 (a) b (c)) S 7 42 42 0 -1 4194560 1 2 3 4 100 20 3 4 20 0 1 0 5 6 7";
        assert_eq!(
            Stat::parse(text),
            Some(Stat {
                pid: 42,
                parent: 7,
                cpu_ticks: 127
            })
        );
        assert_eq!(Stat::parse("42 (a S 7"), None);
    }

    #[test]
    fn our_own_stat_parses() {
        let own = Stat::parse(&fs::read_to_string("/proc/self/stat").unwrap()).unwrap();
        assert_eq!(own.pid, std::process::id().cast_signed());
    }

    #[test]
    fn descendants_count_and_our_own_processes_do_not() {
        let all = vec![
            stat(1, 0),
            stat(10, 1),
            stat(11, 10),
            stat(12, 11),
            stat(13, 11),
            stat(14, 13),
            stat(20, 1),
        ];
        let members = Processes::new(vec![10], vec![13]).select(all);
        assert_eq!(
            members.iter().map(|s| s.pid).collect::<Vec<_>>(),
            [10, 11, 12]
        );
    }

    #[test]
    fn machine_time_leaves_idle_and_guest_out() {
        let text = "cpu  10 1 20 1000 500 2 3 4 7 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(parse_machine_busy(text), Some(40));
        assert_eq!(parse_machine_busy("cpu  1 2 3\n"), None);
    }

    #[test]
    fn rss_is_in_kilobytes() {
        assert_eq!(
            parse_rss("Name:\tx\nVmRSS:\t    5120 kB\n"),
            Some(5 * 1024 * 1024)
        );
        assert_eq!(parse_rss("Name:\tkthreadd\n"), None);
    }

    #[test]
    fn an_open_file_is_one_more_descriptor() {
        // Other tests open files too, so only a large step is a proof.
        let pid = std::process::id().cast_signed();
        let before = descriptors(pid);
        let files: Vec<_> = (0..200)
            .map(|_| fs::File::open("/dev/null").unwrap())
            .collect();
        assert!(
            descriptors(pid) >= before + 100,
            "{before} before, {} with {}",
            descriptors(pid),
            files.len()
        );
    }
}
