//! Waiting for something to happen, never for time to pass.

use std::os::fd::AsFd;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags};

/// Whether `fd` became readable (or hung up) before `deadline`.
pub fn readable_by(fd: impl AsFd, deadline: Instant) -> std::io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = left.try_into().expect("deadlines are hours away at most");
        match rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Whether `child` has exited before `deadline`. It is not reaped.
pub fn has_exited_by(child: &Child, deadline: Instant) -> std::io::Result<bool> {
    let pidfd = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    readable_by(pidfd, deadline)
}

/// Waits for `child` to exit and reaps it; `None` when `deadline` came first.
pub fn exit_by(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    let has_exited = has_exited_by(child, deadline).expect("pidfd of a child");
    has_exited.then(|| child.wait().expect("reap a child"))
}

/// Polls `condition` until it holds, and panics with `what` when it does not within `limit`. For
/// the few facts that nothing announces, such as the number of a process's descriptors.
#[track_caller]
pub fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
