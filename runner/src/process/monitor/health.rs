//! When the container's health is checked: at once, and then so long after each check. The check
//! itself is another process's matter ([`crate::engine`]), which may take its time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tracing::warn;

use super::Monitor;
use crate::engine::{HEALTH_ROLE, HealthJob};
use crate::health::{HealthLog, HealthStatus};
use crate::process::selfexec;
use crate::process::task;
use crate::sys;

/// The checks of one life.
#[derive(Debug)]
pub struct Checks {
    job: HealthJob,
    interval: Duration,
    /// `None` while one is under way.
    next: Option<Instant>,
    running: Option<OwnedFd>,
}

impl Checks {
    /// `None` for a container that has no check, or one that is run by hand only.
    pub fn of(monitor: &Monitor) -> Option<Self> {
        let check = monitor.spec.health.as_ref()?;
        Some(Self {
            job: HealthJob {
                dirs: monitor.store.dirs().clone(),
                id: monitor.container.id.clone(),
                filter: monitor.log.filter.clone(),
            },
            interval: check.interval()?,
            next: Some(Instant::now()),
            running: None,
        })
    }

    /// Readable when [`Checks::handle_end`] is due.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref().map(AsFd::as_fd)
    }

    /// When [`Checks::handle_deadline`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// A check has ended, and has told the record how.
    pub fn handle_end(&mut self) {
        self.running = None;
        self.next = Instant::now().checked_add(self.interval);
    }

    /// Begins a check if it is time.
    pub fn handle_deadline(&mut self, now: Instant) {
        if self.next.is_none_or(|at| at > now) {
            return;
        }
        match self.begin() {
            Ok(running) => {
                self.next = None;
                self.running = Some(running);
            }
            Err(error) => {
                warn!(%error, "the container's health cannot be checked");
                self.next = now.checked_add(self.interval);
            }
        }
    }

    /// Whoever waits for the monitor's children reaps this one as well.
    fn begin(&self) -> io::Result<OwnedFd> {
        let task = task::write(HEALTH_ROLE, &self.job).map_err(io::Error::other)?;
        let mut command = selfexec::command(HEALTH_ROLE);
        command
            .stdin(task)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        sys::prepare_command(&mut command, Vec::new(), &[]);
        let child = command.spawn()?;
        // It is our child and not yet reaped, so that the PID is its own.
        Ok(pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?)
    }
}

/// What is known at the beginning of a life: nothing.
pub fn begin(monitor: &Monitor) -> Option<HealthStatus> {
    monitor.spec.health.as_ref()?;
    let data = &monitor.dir.data;
    let log = HealthLog {
        failing_streak: 0,
        ..HealthLog::load(data)
    };
    if let Err(error) = log.keep(data) {
        warn!(%error, "the results of health checks cannot be kept");
    }
    Some(HealthStatus::Starting)
}
