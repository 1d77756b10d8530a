//! `coracle rm`: forgets containers that have ended, and with `-f` ends them first.

use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{
    MONITOR_PATIENCE, as_owner, for_each, init_pidfd, open_store, print_line, remove, select,
    wait_for_end, wait_for_monitor,
};
use crate::cli::RmArgs;
use crate::failure::{Failure, FailureKind};
use crate::state::{ContainerId, StateError, Status, Store};

pub fn rm(args: RmArgs) -> Result<u8, Failure> {
    let store = open_store()?;
    let names = select(&store, &args.containers, args.all, |c| {
        args.force || matches!(c.status, Status::Exited { .. })
    })?;
    for_each(&names, |name| {
        let container = match store.find(name) {
            Err(StateError::NotFound { .. }) if args.force => return Ok(()),
            Err(error @ StateError::NotFound { .. }) => {
                return Err(Failure::new(
                    FailureKind::NoSuchContainer,
                    error.to_string(),
                ));
            }
            Err(StateError::Damaged { id, .. }) => {
                end_unknown(&store, &id, args.force)?;
                as_owner(|| store.remove_damaged(&id))?;
                return print_line(name);
            }
            found => found?,
        };
        if let Some(init) = init_pidfd(&container) {
            if !args.force {
                let message = format!(
                    "container {} is running: `coracle stop {name}` ends it, `coracle rm -f` kills it",
                    container.name
                );
                return Err(Failure::new(FailureKind::StillRunning, message));
            }
            let _ = pidfd_send_signal(&init, Signal::KILL);
            wait_for_end(&init, None);
            wait_for_monitor(&container);
        }
        match store.find(container.id.as_str()) {
            // Its monitor has removed it.
            Err(StateError::NotFound { .. }) => {}
            found => remove(&store, &found?)?,
        }
        print_line(name)
    })
}

/// Ends a container of which nothing is known but who answers for it, if anybody does.
fn end_unknown(store: &Store, id: &ContainerId, force: bool) -> Result<(), Failure> {
    let Some(monitor) = store.claimant(id) else {
        return Ok(());
    };
    let name = id.short();
    if !force {
        let message = format!(
            "container {name} is running, and its record is damaged: `coracle rm -f {name}` kills it"
        );
        return Err(Failure::new(FailureKind::StillRunning, message));
    }
    let pidfd = pidfd_open(monitor, PidfdFlags::empty());
    // Asked again, now that the descriptor names one process for good.
    if let Ok(pidfd) = pidfd
        && store.claimant(id) == Some(monitor)
    {
        // The monitor's word for "at once".
        let _ = pidfd_send_signal(&pidfd, Signal::QUIT);
        wait_for_end(&pidfd, Some(MONITOR_PATIENCE));
    }
    match store.claimant(id) {
        None => Ok(()),
        Some(monitor) => Err(Failure::runner(format!(
            "container {name} runs on: its monitor, process {}, does not end",
            monitor.as_raw_nonzero()
        ))),
    }
}
