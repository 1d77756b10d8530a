//! Checking the health of a container: its command is run as `exec` runs one, and what is made of
//! the outcome is recorded and, where the container is to bear the consequences, done.
//!
//! Who runs a check at each interval is the monitor, by a process of its own ([`HEALTH_ROLE`]): it
//! waits, and the monitor never does.

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use netstack::logging::Filter;
use rustix::event::PollFlags;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::{Engine, EngineError, Exec, ExecRequest};
use crate::build::config::Healthcheck;
use crate::events::Event;
use crate::failure::Failure;
use crate::health::{HealthCheck, HealthLog, HealthStatus, OUTPUT_MAX, OnFailure, Probe};
use crate::logging::ProcessLog;
use crate::poll;
use crate::process::messages::FromMonitor;
use crate::process::task;
use crate::signal::Signal;
use crate::state::{Container, ContainerId, Dirs, lock_directory, now};
use crate::stdio::Outputs;

/// `argv[0]` of the process that a monitor has for a check.
pub const HEALTH_ROLE: &str = "coracle-health";

/// What a request says of a container's health. What it says nothing about is the image's.
#[derive(Debug, Clone, Default)]
pub struct HealthRequest {
    /// As images have it: `CMD` and words, `CMD-SHELL` and a line, or `NONE`.
    pub test: Option<Vec<String>>,
    /// 0 for a check that only the user runs.
    pub interval: Option<Duration>,
    pub timeout: Option<Duration>,
    pub start_period: Option<Duration>,
    pub retries: Option<u32>,
    pub on_failure: OnFailure,
}

const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const RETRIES: u64 = 3;

impl HealthRequest {
    /// The check that a container of an image with `images` has.
    pub(super) fn resolve(
        &self,
        images: Option<Healthcheck>,
    ) -> Result<Option<HealthCheck>, EngineError> {
        let mut check = images.unwrap_or_default();
        if let Some(test) = &self.test {
            // Times of the image are meant for its own command.
            check = Healthcheck {
                test: test.clone(),
                ..Healthcheck::default()
            };
        }
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let or = |said: Option<Duration>, images: u64, default: Duration| match (said, images) {
            (Some(said), _) => nanos(said),
            (None, 0) => nanos(default),
            (None, images) => images,
        };
        check.interval = or(self.interval, check.interval, INTERVAL);
        let timeout = self.timeout.filter(|timeout| !timeout.is_zero());
        check.timeout = or(timeout, check.timeout, TIMEOUT);
        check.start_period = or(self.start_period, check.start_period, Duration::ZERO);
        check.retries = match (self.retries, check.retries) {
            (Some(retries), _) => retries.into(),
            (None, 0) => RETRIES,
            (None, images) => images,
        };
        let check = HealthCheck {
            check,
            on_failure: self.on_failure,
        };
        let is_one = check.command().is_some();
        match is_one {
            true => Ok(Some(check)),
            false if self.on_failure != OnFailure::None => Err(EngineError::OnFailureOfNothing {
                action: self.on_failure,
            }),
            false => Ok(None),
        }
    }
}

impl Engine {
    /// How the last checks of a container went.
    pub fn health(&self, container: &Container) -> HealthLog {
        HealthLog::load(&self.store.dir(container).data)
    }

    /// Runs the health check of a running container once, and records how it went. Whether it
    /// succeeded. A container that has become unhealthy by it is dealt with as it was made to be.
    ///
    /// # Errors
    /// [`EngineError::NoHealthCheck`], [`EngineError::HealthOverdue`] and those of
    /// [`Engine::exec`].
    pub fn check_health(&self, wanted: &str) -> Result<bool, EngineError> {
        let container = self.find(wanted)?;
        let check = self.spec(&container)?.health;
        let check = check.and_then(|check| Some((check.command()?, check)));
        let Some((command, check)) = check else {
            return Err(EngineError::NoHealthCheck {
                name: container.name,
            });
        };
        let request = ExecRequest {
            command: command.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            workdir: None,
            user: None,
            terminal: false,
            stdin: false,
            privileged: false,
        };
        let start = Timestamp::now().to_string();
        let exec = self.begin(&container, request)?;
        let (exit_code, output) = attend(exec, check.timeout())?;
        let probe = Probe {
            start,
            end: Timestamp::now().to_string(),
            exit_code,
            output,
        };
        let status = self.record_probe(&container, probe, &check.check)?;
        if status == HealthStatus::Unhealthy {
            self.act(&container, check.on_failure)?;
        }
        match exit_code {
            OVERDUE => Err(EngineError::HealthOverdue {
                timeout: check.timeout(),
            }),
            code => Ok(code == 0),
        }
    }

    fn record_probe(
        &self,
        container: &Container,
        probe: Probe,
        check: &Healthcheck,
    ) -> Result<HealthStatus, EngineError> {
        let data = self.store.dir(container).data;
        let failed = |source| EngineError::Health {
            path: data.clone(),
            source,
        };
        // One result after the other, whoever has it.
        let _lock = lock_directory(&data).map_err(failed)?;
        let started = container.started.unwrap_or_default();
        let age = Duration::from_secs(now().saturating_sub(started));
        let is_starting = age < Duration::from_nanos(check.start_period);
        let mut log = HealthLog::load(&data);
        let mut status = None;
        self.store.modify(&container.id, |now| {
            // A check that a container's end has cut short says nothing of the next life.
            if now.init == container.init && now.is_alive() {
                let before = now.health.unwrap_or(HealthStatus::Starting);
                now.health = Some(log.add(probe, before, check, is_starting));
                status = now.health;
            }
        })?;
        let Some(status) = status else {
            return Err(EngineError::NotRunning {
                name: container.name.clone(),
            });
        };
        let event = Event::health(container, status);
        self.store.journal().write(&event);
        // A full disk keeps the details out, not the status.
        if let Err(error) = log.keep(&data) {
            warn!(%error, "the result of a health check could not be kept");
        }
        Ok(status)
    }

    fn act(&self, container: &Container, action: OnFailure) -> Result<(), EngineError> {
        let id = container.id.to_string();
        if action != OnFailure::None {
            info!(%action, "the container is unhealthy");
        }
        match action {
            OnFailure::None => Ok(()),
            OnFailure::Kill => self.kill(&id, Signal::KILL),
            OnFailure::Stop => self.stop(&[id], None).finish().collect(),
            OnFailure::Restart => self
                .restart(&[id], None)
                .try_for_each(|launch| launch?.started(&mut |warning| warn!("{warning}"))),
        }
    }
}

/// The exit code of a check that took too long.
const OVERDUE: i32 = -1;

/// That of one that could not be started, as with Podman.
const UNSTARTED: i32 = 1;

/// Waits for a check's end, and ends one that takes too long. Returns its exit code, and the
/// beginning of what it wrote.
fn attend(exec: Exec, timeout: Duration) -> Result<(i32, String), EngineError> {
    let deadline = Instant::now().checked_add(timeout);
    let (events, streams, launcher) = exec.into_parts();
    let mut outputs: Vec<OwnedFd> = match streams.outputs {
        Some(Outputs { stdout, stderr }) => vec![stdout, stderr],
        None => Vec::new(),
    };
    for output in &outputs {
        rustix::io::ioctl_fionbio(output, true).map_err(|error| EngineError::wait(error.into()))?;
    }
    let mut said = Vec::new();
    let code = loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let reader = |at: usize| {
            outputs
                .get(at)
                .map(|output| (output.as_fd(), PollFlags::IN))
        };
        let interests = [Some((events.as_fd(), PollFlags::IN)), reader(0), reader(1)];
        let ready = poll::wait(interests, left).map_err(|error| EngineError::wait(error.into()))?;
        if ready.is_none() && left.is_some_and(|left| left.is_zero()) {
            break OVERDUE;
        }
        let [event, ..] = ready.unwrap_or_default();
        outputs.retain(|output| take(output, &mut said));
        if event {
            match events.receive()? {
                Some((FromMonitor::Exited(code), _)) => break code,
                Some((FromMonitor::Failed(failure), _)) => {
                    said = failure.message.into_bytes();
                    break UNSTARTED;
                }
                Some(_) => {}
                None => return Err(EngineError::LauncherKilled),
            }
        }
    };
    outputs.retain(|output| take(output, &mut said));
    // Hung up on, it ends what still runs.
    drop(events);
    launcher.end();
    said.truncate(OUTPUT_MAX);
    let said = String::from_utf8_lossy(&said);
    Ok((code, said.trim_end_matches('\n').to_owned()))
}

/// Takes what is there to be read, and says whether there may be more.
fn take(output: &OwnedFd, said: &mut Vec<u8>) -> bool {
    let mut bytes = [0; 4096];
    loop {
        match rustix::io::read(output, &mut bytes) {
            Ok(0) => return false,
            Ok(count) => {
                let room = OUTPUT_MAX.saturating_sub(said.len());
                said.extend(&bytes[..count.min(room)]);
                if count == bytes.len() && room == 0 {
                    // One that never stops must not keep us from looking at the time.
                    return true;
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return true,
            Err(_) => return false,
        }
    }
}

/// What the process of a monitor is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HealthJob {
    pub dirs: Dirs,
    pub id: ContainerId,
    pub filter: Filter,
}

/// The process itself, whose standard input is its task.
pub fn main() -> ExitCode {
    match check_as_told() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(125),
    }
}

fn check_as_told() -> Result<(), Failure> {
    let stdin = rustix::stdio::stdin();
    let stdin = stdin.try_clone_to_owned();
    let stdin = stdin.map_err(Failure::context("cannot read the task"))?;
    let job: HealthJob = task::read(stdin)?;
    let engine = Engine::open(job.dirs)?.logging(job.filter.clone());
    let container = engine.find(job.id.as_str())?;
    let log = ProcessLog::new(&container.run_dir, job.filter);
    let dispatch = log.dispatch(log.open()?);
    tracing::dispatcher::with_default(&dispatch, || {
        match engine.check_health(job.id.as_str()) {
            Ok(healthy) => info!(healthy, "the container's health was checked"),
            // It may have ended, or been paused, meanwhile.
            Err(error) => info!(%error, "the container's health was not found out"),
        }
    });
    Ok(())
}
