//! What a container takes of the machine.
//!
//! Its control groups tell of all that it has had, where it has some of its own. Without, there is
//! what /proc tells of the processes that live: what those have taken that have ended is not in it.
//! What neither tells stays unknown.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::processes::running_init;
use super::top::processes_of;
use super::{Engine, EngineError};
use crate::state::Container;

/// A look at a container. Sizes are in bytes; `None` is what is not known.
#[derive(Debug, Clone)]
pub struct Stats {
    pub at: Instant,
    /// Of all processors.
    pub cpu_time: Option<Duration>,
    pub memory: Option<u64>,
    /// That of the machine, where the container has no smaller one.
    pub memory_limit: Option<u64>,
    /// Received and sent, since its network was made.
    pub network: Option<[u64; 2]>,
    /// Read from disks and written to them.
    pub block: Option<[u64; 2]>,
    /// Threads among them, where there is a control group that counts.
    pub processes: Option<u64>,
}

impl Engine {
    /// What a container that runs takes.
    ///
    /// # Errors
    /// [`EngineError::NotRunning`].
    pub fn stats(&self, container: &Container) -> Result<Stats, EngineError> {
        // Held until all is read: so long nobody else can have its PID.
        let _held = running_init(container)?;
        let gone = || EngineError::NotRunning {
            name: container.name.clone(),
        };
        let init = container.init.as_ref().ok_or_else(gone)?.pid;
        let groups = Groups(&container.cgroups);
        let at = Instant::now();
        let (cpu, memory, block, pids) =
            (groups.cpu(), groups.memory(), groups.block(), groups.pids());
        let is_complete = cpu.is_some() && memory.is_some() && block.is_some() && pids.is_some();
        let living = match is_complete {
            true => Vec::new(),
            false => processes_of(init).ok_or_else(gone)?,
        };
        let of_the_machine = total_memory();
        Ok(Stats {
            at,
            cpu_time: cpu.or_else(|| Some(living.iter().map(|process| process.cpu_time).sum())),
            memory: memory
                .or_else(|| Some(living.iter().map(|process| process.resident_size).sum())),
            memory_limit: match (groups.memory_limit(), of_the_machine) {
                (Some(own), Some(all)) => Some(own.min(all)),
                (own, all) => own.or(all),
            },
            network: network(init),
            block: block.or_else(|| {
                let of_each = living.iter().map(|process| block_of(process.host_pid));
                of_each.sum_pairs()
            }),
            processes: pids.or_else(|| u64::try_from(living.len()).ok()),
        })
    }
}

/// Adds up pairs, all of which have to be known.
trait SumPairs {
    fn sum_pairs(self) -> Option<[u64; 2]>;
}

impl<I: Iterator<Item = Option<[u64; 2]>>> SumPairs for I {
    fn sum_pairs(mut self) -> Option<[u64; 2]> {
        self.try_fold([0, 0], |[a, b], pair| {
            let [c, d] = pair?;
            Some([a + c, b + d])
        })
    }
}

/// The control groups of a container, of version 2 and of version 1.
struct Groups<'a>(&'a [PathBuf]);

impl Groups<'_> {
    /// The first of these files that one of them has.
    fn read(&self, name: &str) -> Option<String> {
        let read = |group: &PathBuf| fs::read_to_string(group.join(name)).ok();
        self.0.iter().find_map(read)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.read(name)?.trim().parse().ok()
    }

    fn cpu(&self) -> Option<Duration> {
        let usage = self.read("cpu.stat").and_then(|text| {
            let micros = field(&text, "usage_usec")?.parse().ok()?;
            Some(Duration::from_micros(micros))
        });
        usage.or_else(|| self.number("cpuacct.usage").map(Duration::from_nanos))
    }

    fn memory(&self) -> Option<u64> {
        self.number("memory.current")
            .or_else(|| self.number("memory.usage_in_bytes"))
    }

    /// `None` for one that is not limited.
    fn memory_limit(&self) -> Option<u64> {
        self.number("memory.max")
            .or_else(|| self.number("memory.limit_in_bytes"))
    }

    fn pids(&self) -> Option<u64> {
        self.number("pids.current")
    }

    fn block(&self) -> Option<[u64; 2]> {
        let of_2 = self.read("io.stat").map(|text| {
            let sum = |name: &str| {
                let words = text.split_ascii_whitespace();
                let values = words.filter_map(|word| word.strip_prefix(name)?.strip_prefix('='));
                values.filter_map(|value| value.parse::<u64>().ok()).sum()
            };
            [sum("rbytes"), sum("wbytes")]
        });
        of_2.or_else(|| {
            let text = self.read("blkio.throttle.io_service_bytes")?;
            let sum = |kind: &str| {
                let of_kind = text.lines().filter_map(|line| {
                    let mut words = line.split_ascii_whitespace().skip(1);
                    (words.next()? == kind).then(|| words.next()?.parse::<u64>().ok())?
                });
                of_kind.sum()
            };
            Some([sum("Read"), sum("Write")])
        })
    }
}

/// The value behind a name at the beginning of a line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let value = line.strip_prefix(name)?.trim_start_matches(':');
        value.split_ascii_whitespace().next()
    })
}

fn total_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kibibytes: u64 = field(&text, "MemTotal")?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// What has come and gone by the network of a process, unless that is this process's own: then it
/// is the host's.
fn network(pid: i32) -> Option<[u64; 2]> {
    let namespace = |pid: &str| fs::read_link(Path::new("/proc").join(pid).join("ns/net")).ok();
    if namespace(&pid.to_string())? == namespace("self")? {
        return None;
    }
    let text = fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    Some(interfaces(&text))
}

/// Bytes received and sent by all interfaces but the loopback, `proc_pid_net(5)`.
fn interfaces(text: &str) -> [u64; 2] {
    let counts = text.lines().filter_map(|line| {
        let (name, counts) = line.split_once(':')?;
        let counts: Vec<u64> = counts
            .split_ascii_whitespace()
            .filter_map(|count| count.parse().ok())
            .collect();
        (name.trim() != "lo").then_some([*counts.first()?, *counts.get(8)?])
    });
    counts.fold([0, 0], |[a, b], [c, d]| [a + c, b + d])
}

/// `proc_pid_io(5)`, of those that may be looked into.
fn block_of(pid: i32) -> Option<[u64; 2]> {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let number = |name| field(&text, name)?.parse().ok();
    Some([number("read_bytes")?, number("write_bytes")?])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Directories stand in for groups.
    #[test]
    fn groups_of_either_version_tell() {
        let dir = tempfile::tempdir().unwrap();
        let groups = [dir.path().to_owned()];
        let groups = Groups(&groups);
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert!(groups.cpu().is_none() && groups.memory().is_none() && groups.block().is_none());
        write("cpuacct.usage", "5000\n");
        write("memory.usage_in_bytes", "7\n");
        write(
            "blkio.throttle.io_service_bytes",
            "8:0 Read 1\n8:0 Write 2\n8:16 Read 10\n8:0 Total 13\nTotal 13\n",
        );
        assert_eq!(groups.cpu(), Some(Duration::from_micros(5)));
        assert_eq!((groups.memory(), groups.block()), (Some(7), Some([11, 2])));
        write("cpu.stat", "usage_usec 9\nuser_usec 4\n");
        write("memory.current", "8\n");
        write("memory.max", "max\n");
        write(
            "io.stat",
            "8:0 rbytes=1 wbytes=2 rios=3\n8:16 rbytes=4 wbytes=5\n",
        );
        assert_eq!(groups.cpu(), Some(Duration::from_micros(9)));
        assert_eq!((groups.memory(), groups.block()), (Some(8), Some([5, 7])));
        assert_eq!(groups.memory_limit(), None);
    }

    #[test]
    fn the_loopback_does_not_count() {
        let text = "Inter-| Receive | Transmit\n face |bytes packets\n    lo: 9 1 0 0 0 0 0 0 9 1 0 0\n  tap0: 5 1 0 0 0 0 0 0 6 1 0 0\n eth1:1 1 0 0 0 0 0 0 2 1 0 0\n";
        assert_eq!(interfaces(text), [6, 8]);
        assert_eq!(interfaces(""), [0, 0]);
    }
}
