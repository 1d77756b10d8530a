//! The container's way out: one `coracle-net` process, started beside the container and replaced
//! when it dies.
//!
//! The helper is this very program under the name `coracle-net`. It joins the container's user
//! namespace and stays in the host's network namespace. Published ports are bound before any of
//! this and stay open here, so that a new helper takes over the same sockets and clients only
//! notice that connections in flight are lost. The helper leaves when its exit descriptor hangs up,
//! which happens however the monitor ends.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use portfwd::publish::Listener;
use portfwd::spec::Protocol;
use rustix::net::Shutdown;
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use tracing::{debug, info, warn};

use super::options::NetworkOptions;
use crate::failure::{Explained, Failure, FailureKind};
use crate::logging::{ProcessLog, ProcessLogError};
use crate::process::selfexec;
use crate::sys;

/// Where the helper answers with its figures, below the directory given to [`HelperConfig`].
pub const STATUS_SOCKET: &str = "status.sock";
/// A shutdown signals every process at once. The helper serves the container until that has ended,
/// and leaves with the monitor.
const ENDING: [Signal; 4] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
];

/// The interface in the container.
const TAP: &str = "tap0";

/// A helper that lives shorter than this is not restarted at once.
const STABLE_AFTER: Duration = Duration::from_secs(10);
const RESTART_DELAY_MIN: Duration = Duration::from_millis(50);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(5);

/// What does not change from one helper of a container to the next.
#[derive(Debug)]
pub struct HelperConfig {
    pub listeners: Vec<Listener>,
    pub options: NetworkOptions,
    /// Arguments of coracle-net besides.
    pub more: Vec<String>,
    /// For the status socket; the container may see this directory.
    pub status_dir: PathBuf,
    /// Takes what helpers say on stderr.
    pub log: ProcessLog,
    /// PID 1 of the container, as seen from here.
    pub init: Pid,
    /// The container's root, if it is another user than this one: the status socket is given to it.
    pub owner: Option<(u32, u32)>,
}

/// A running helper. Dropped, it is killed and reaped.
#[derive(Debug)]
pub struct Helper {
    child: Child,
    pidfd: OwnedFd,
    /// Says "1" once the network is up; `None` after that.
    ready: Option<OwnedFd>,
    /// The helper leaves when this closes.
    _lifeline: OwnedFd,
    started: Instant,
    is_waited_for: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("cannot start the network helper: {source}")]
    Spawn { source: io::Error },
    #[error(transparent)]
    Log(#[from] ProcessLogError),
    #[error("cannot give {} to the container's root: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
}

impl Explained for NetworkError {}

impl HelperConfig {
    fn status_socket(&self) -> PathBuf {
        self.status_dir.join(STATUS_SOCKET)
    }

    /// The helper is ready, and has made its socket.
    fn give_socket_away(&self) -> Result<(), NetworkError> {
        let Some((uid, gid)) = self.owner else {
            return Ok(());
        };
        let path = self.status_socket();
        std::os::unix::fs::lchown(&path, Some(uid), Some(gid))
            .map_err(|source| NetworkError::Socket { path, source })
    }

    /// Starts a helper, which is ready when [`Helper::ready_fd`] says so.
    pub fn spawn(&self) -> Result<Helper, NetworkError> {
        let failed = |source| NetworkError::Spawn { source };
        let pipe = || {
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
                .map_err(|errno| failed(errno.into()))
        };
        let (ready, ready_in_helper) = pipe()?;
        let (exit_in_helper, lifeline) = pipe()?;
        let log = self.log.open()?;

        let mut command = selfexec::command("coracle-net");
        command.arg("--configure");
        command.args(self.options.arguments());
        command.args(&self.more);
        command.args(["--ready-fd".into(), ready_in_helper.as_raw_fd().to_string()]);
        command.args(["--exit-fd".into(), exit_in_helper.as_raw_fd().to_string()]);
        for listener in &self.listeners {
            let spec = format!("{}={}", listener.socket.as_raw_fd(), listener.rule());
            command.args(["--publish-fd".into(), spec]);
        }
        // A helper that was killed leaves its socket behind.
        let socket = self.status_socket();
        let _ = std::fs::remove_file(&socket);
        command.arg("--status-socket").arg(&socket);
        command.args([self.init.to_string(), TAP.to_owned()]);
        command
            .env(netstack::logging::VARIABLE, self.log.filter.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);

        let mut inherited: Vec<RawFd> = self
            .listeners
            .iter()
            .map(|listener| listener.socket.as_raw_fd())
            .collect();
        inherited.extend([ready_in_helper.as_raw_fd(), exit_in_helper.as_raw_fd()]);
        sys::prepare_command(&mut command, inherited, &ENDING);
        let child = command.spawn().map_err(failed)?;
        // It is our child and not yet reaped, so that the PID is its own.
        let pid = Pid::from_child(&child);
        debug!(pid = child.id(), "the network helper was started");
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| failed(errno.into()))?;
        Ok(Helper {
            child,
            pidfd,
            ready: Some(ready),
            _lifeline: lifeline,
            started: Instant::now(),
            is_waited_for: true,
        })
    }
}

impl Helper {
    /// Readable when the helper is ready or has died before; `None` once [`Helper::take_readiness`]
    /// has said so.
    pub fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        self.ready.as_ref().map(AsFd::as_fd)
    }

    /// Readable when the helper has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether the helper is ready. Waits until it is, or until it ends.
    pub fn take_readiness(&mut self) -> bool {
        let mut byte = [0];
        let Some(ready) = self.ready.take() else {
            return true;
        };
        matches!(
            rustix::io::retry_on_intr(|| rustix::io::read(&ready, &mut byte)),
            Ok(1)
        ) && byte == *b"1"
    }

    /// Why the helper, which ended before it was ready, could not do its work.
    pub fn failure(mut self, config: &HelperConfig) -> Failure {
        /// What the port owner's exit code is in every part of coracle.
        const PORT_UNAVAILABLE: i32 = 126;
        let code = self.child.wait().ok().and_then(|status| status.code());
        let kind = if code == Some(PORT_UNAVAILABLE) {
            FailureKind::PortUnavailable
        } else {
            FailureKind::Runner
        };
        let said = last_words(config.log.path()).unwrap_or_default();
        let message = match (complaint(&said), code) {
            ("", Some(code)) => format!("the network helper failed with exit code {code}"),
            ("", None) => "the network helper was killed".to_owned(),
            (said, _) => said.to_owned(),
        };
        Failure::new(
            kind,
            format!("cannot set up the container's network: {message}"),
        )
    }
}

impl Helper {
    /// Kills it and does not wait for its end. For a monitor that is about to end itself, whose
    /// children the system reaps.
    fn abandon(mut self) {
        self.is_waited_for = false;
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // It has nothing to lose: its state is sockets and flows. Fails only when it has ended
        // already.
        let _ = pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
        if self.is_waited_for {
            let _ = self.child.wait();
        }
    }
}

/// Keeps a helper running for as long as the container does.
#[derive(Debug)]
pub struct Supervisor {
    config: HelperConfig,
    helper: Option<Helper>,
    restart_at: Option<Instant>,
    delay: Duration,
}

impl Supervisor {
    /// Takes over a helper that is ready.
    pub fn new(config: HelperConfig, helper: Helper) -> Result<Self, NetworkError> {
        config.give_socket_away()?;
        Ok(Self {
            config,
            helper: Some(helper),
            restart_at: None,
            delay: RESTART_DELAY_MIN,
        })
    }

    /// Readable when [`Supervisor::handle_ready`] is due: a new helper has got ready.
    pub fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        self.helper.as_ref().and_then(Helper::ready_fd)
    }

    pub fn handle_ready(&mut self) {
        if let Some(helper) = &mut self.helper
            && helper.take_readiness()
        {
            // If it fails, the container cannot ask for figures; nothing else is lost.
            let _ = self.config.give_socket_away();
            info!("the network is back");
        }
    }

    /// Readable when [`Supervisor::handle_end`] is due.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.helper.as_ref().map(Helper::pidfd)
    }

    /// Ends the helper for good. When this returns the ports can be bound again.
    ///
    /// A dying helper takes tens of milliseconds, most of them in the kernel's removal of its tap.
    /// For TCP there is no need to wait for that: a listener that is shut down lets go of its port,
    /// whoever else has it open.
    pub fn end(self) {
        let mut all_free = true;
        for listener in &self.config.listeners {
            match listener.protocol {
                Protocol::Tcp => {
                    all_free &= rustix::net::shutdown(&listener.socket, Shutdown::Both).is_ok();
                }
                Protocol::Udp => all_free = false,
            }
        }
        if let Some(helper) = self.helper
            && all_free
        {
            helper.abandon();
        }
    }

    /// Ends the helper, and keeps the ports bound for the next one.
    pub fn pause(self) -> Vec<Listener> {
        // Or it would go on to accept.
        drop(self.helper);
        self.config.listeners
    }

    /// When [`Supervisor::handle_deadline`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.restart_at
    }

    /// The helper has ended: plans the next one. A helper that dies young is waited for longer each
    /// time.
    pub fn handle_end(&mut self, now: Instant) {
        let Some(helper) = self.helper.take() else {
            return;
        };
        if now.duration_since(helper.started) >= STABLE_AFTER {
            self.delay = RESTART_DELAY_MIN;
        }
        warn!(delay = ?self.delay, "the network helper has ended and is started again");
        self.restart_at = Some(now + self.delay);
        self.delay = (self.delay * 2).min(RESTART_DELAY_MAX);
    }

    pub fn handle_deadline(&mut self, now: Instant) {
        if self.restart_at.is_some_and(|at| at <= now) {
            match self.config.spawn() {
                Ok(helper) => {
                    self.helper = Some(helper);
                    self.restart_at = None;
                }
                // Out of processes or descriptors, which passes.
                Err(error) => {
                    warn!(%error, "the network helper cannot be started yet");
                    self.restart_at = Some(now + RESTART_DELAY_MAX);
                }
            }
        }
    }
}

/// What a helper has complained about at the end of its log: an error may have several lines, and
/// comes last.
fn complaint(log: &str) -> &str {
    const PREFIX: &str = "coracle-net: ";
    let begun = log.rfind(&format!("\n{PREFIX}")).map(|newline| newline + 1);
    log[begun.unwrap_or(0)..]
        .strip_prefix(PREFIX)
        .unwrap_or_default()
        .trim()
}

/// The end of a log file.
fn last_words(log: &Path) -> io::Result<String> {
    const LENGTH_MAX: u64 = 2000;
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LENGTH_MAX)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_helper_complains_about_is_told_from_what_it_logs() {
        let log = "2026-11-29T11:00:00Z  INFO coracle-net: not this\ncoracle-net: earlier\n\
                   2026-11-29T11:00:01Z DEBUG a line\ncoracle-net: cannot do it\n  because\n";
        assert_eq!(complaint(log), "cannot do it\n  because");
        assert_eq!(complaint("coracle-net: no\n"), "no");
        assert_eq!(complaint("2026-11-29T11:00:01Z DEBUG a line\n"), "");
        assert_eq!(complaint(""), "");
    }
}
