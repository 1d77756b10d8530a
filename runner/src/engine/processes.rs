//! The processes behind a record: finding a container's first one and its monitor, ending them, and
//! waiting for their end.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::EngineError;
use crate::isolation::freezer;
use crate::poll;
use crate::state::{Container, ContainerId, ProcessRef, RestartPolicy, Store};

/// How long a monitor may take to clean up after a container that has ended.
pub(super) const MONITOR_PATIENCE: Duration = Duration::from_secs(10);

/// For signalling the container's first process; `None` when it does not run.
pub(super) fn init_pidfd(container: &Container) -> Option<OwnedFd> {
    container
        .status
        .can_kill()
        .then(|| container.init.as_ref()?.open())
        .flatten()
}

/// For signalling the container's first process.
///
/// # Errors
/// [`EngineError::NotRunning`].
pub(crate) fn running_init(container: &Container) -> Result<OwnedFd, EngineError> {
    init_pidfd(container).ok_or_else(|| EngineError::NotRunning {
        name: container.name.clone(),
    })
}

/// Waits for a process to end, and says whether it has. Without a limit it waits for ever.
pub(crate) fn wait_for_end(pidfd: &OwnedFd, limit: Option<Duration>) -> bool {
    matches!(
        poll::wait([Some((pidfd.as_fd(), PollFlags::IN))], limit),
        Ok(Some([true]))
    )
}

/// Waits until the monitor has recorded the end of a container whose init has ended, or is gone
/// itself.
pub(super) fn wait_for_monitor(container: &Container) {
    if let Some(monitor) = container.monitor.as_ref().and_then(ProcessRef::open) {
        wait_for_end(&monitor, Some(MONITOR_PATIENCE));
    }
}

/// Keeps a container from being started again by its monitor, and returns it as it is from then on.
/// Where its record cannot be changed it is as before, and so is the monitor's intention.
pub(super) fn end_for_good(store: &Store, container: Container) -> Container {
    if container.restart == RestartPolicy::No || container.stopped {
        return container;
    }
    let stopped = store.modify(&container.id, |container| container.stopped = true);
    stopped.unwrap_or(container)
}

/// Kills the first process of a container, and with it all others, frozen ones included.
///
/// # Errors
/// [`EngineError::Signal`] for root of a user namespace that has not got the container's IDs.
pub(super) fn kill_init(container: &Container, init: &OwnedFd) -> Result<(), EngineError> {
    match pidfd_send_signal(init, Signal::KILL) {
        // Or it has ended.
        Ok(()) | Err(Errno::SRCH) => {
            freezer::thaw(&container.cgroups);
            Ok(())
        }
        Err(errno) => Err(EngineError::Signal {
            signal: "SIGKILL".to_owned(),
            name: container.name.clone(),
            source: errno.into(),
        }),
    }
}

/// Kills a container through whoever answers for it: one that has not started yet, or whose record
/// tells nothing, or not the truth. False when it runs on.
pub(super) fn end_by_monitor(store: &Store, id: &ContainerId) -> bool {
    let Some(monitor) = store.claimant(id) else {
        return true;
    };
    if let Ok(pidfd) = pidfd_open(monitor, PidfdFlags::empty())
        // Asked again, now that the descriptor names one process for good.
        && store.claimant(id) == Some(monitor)
    {
        // The monitor's word for "at once".
        let _ = pidfd_send_signal(&pidfd, Signal::QUIT);
        wait_for_end(&pidfd, Some(MONITOR_PATIENCE));
    }
    store.claimant(id).is_none()
}
