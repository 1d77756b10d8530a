//! Naming a process so that the name never fits another one.
//!
//! A PID alone is reused. With the start time (proc_pid_stat(5), field 22) it is unique until the
//! next boot, and with the boot id it stays unique after that. A pidfd settles the rest: it is
//! opened first and the start time read again, so that no signal can reach a newcomer. PIDs are
//! those of the initial PID namespace of the user's session.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};
use serde::{Deserialize, Serialize};

use super::StateError;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// One process of this machine, past or present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    pub pid: i32,
    /// Clock ticks from boot to the start of the process.
    pub start_time: u64,
    pub boot_id: String,
}

impl ProcessRef {
    /// The process that has this PID now. Fails when there is none.
    pub fn of(pid: i32) -> Result<Self, StateError> {
        let stat = Stat::read(pid).map_err(StateError::io("read", &Stat::path(pid)))?;
        let boot_id = current_boot().map_err(StateError::io("read", Path::new(BOOT_ID)))?;
        Ok(Self {
            pid,
            start_time: stat.start_time,
            boot_id,
        })
    }

    /// The calling process.
    pub fn current() -> Result<Self, StateError> {
        Self::of(getpid().as_raw_pid())
    }

    /// Whether it still runs. A zombie does not: it has ended, though its parent has not looked
    /// yet.
    pub fn is_alive(&self) -> bool {
        current_boot().is_ok_and(|boot| boot == self.boot_id)
            && Stat::read(self.pid)
                .is_ok_and(|stat| stat.start_time == self.start_time && !stat.ended)
    }

    /// A pidfd to signal it or wait for it; `None` once it has ended. The descriptor is
    /// close-on-exec.
    pub fn open(&self) -> Option<OwnedFd> {
        // A record may hold any number: `Pid` insists on a positive one.
        let pid = Pid::from_raw(self.pid.max(0))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Checked after the pidfd is open: if the process was the right one now, the pidfd can be
        // no other.
        self.is_alive().then_some(pidfd)
    }
}

/// What /proc/PID/stat says.
struct Stat {
    ended: bool,
    start_time: u64,
}

impl Stat {
    fn path(pid: i32) -> PathBuf {
        format!("/proc/{pid}/stat").into()
    }

    fn read(pid: i32) -> io::Result<Self> {
        let text = fs::read(Self::path(pid))?;
        Self::parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn parse(text: &[u8]) -> Option<Self> {
        // Field 2 is the command in parentheses and may itself hold spaces and parentheses: count
        // from the last one.
        let command_end = text.iter().rposition(|&byte| byte == b')')?;
        let mut fields = str::from_utf8(&text[command_end + 1..])
            .ok()?
            .split_ascii_whitespace();
        let state = fields.next()?;
        let start_time = fields.nth(22 - 4)?.parse().ok()?;
        Some(Self {
            ended: matches!(state, "Z" | "X" | "x"),
            start_time,
        })
    }
}

fn current_boot() -> io::Result<String> {
    Ok(fs::read_to_string(BOOT_ID)?.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn reads_past_a_hostile_command_name() {
        let mut line = b"7 (a) R 1 (b) S 1".to_vec();
        line.extend((5..22).flat_map(|field| format!(" {field}").into_bytes()));
        line.extend(b" 4242 23 24\n");
        let stat = Stat::parse(&line).unwrap();
        assert_eq!((stat.ended, stat.start_time), (false, 4242));
        assert!(Stat::parse(b"7 (short) S 1 2").is_none());
        assert!(Stat::parse(b"").is_none());
    }

    #[test]
    fn follows_a_process_through_its_end() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let process = ProcessRef::of(child.id() as i32).unwrap();
        assert!(process.is_alive());
        let pidfd = process.open().expect("it is running");

        drop(child.stdin.take());
        let mut ready = [rustix::event::PollFd::new(
            &pidfd,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut ready, None).unwrap();
        assert!(!process.is_alive(), "a zombie has ended");
        assert!(process.open().is_none());
        child.wait().unwrap();
        assert!(!process.is_alive());
    }

    #[test]
    fn is_not_fooled_by_a_reused_pid_or_another_boot() {
        let me = ProcessRef::current().unwrap();
        assert!(me.is_alive() && me.open().is_some());
        let earlier = ProcessRef {
            start_time: me.start_time.wrapping_sub(1),
            ..me.clone()
        };
        let other_boot = ProcessRef {
            boot_id: "00000000-0000-0000-0000-000000000000".into(),
            ..me.clone()
        };
        let nonsense = ProcessRef { pid: -1, ..me };
        for process in [earlier, other_boot, nonsense] {
            assert!(
                !process.is_alive() && process.open().is_none(),
                "{process:?}"
            );
        }
    }
}
