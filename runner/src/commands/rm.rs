//! `coracle rm`: forgets containers that have ended, and with `-f` ends them first.

use rustix::process::{Signal, pidfd_send_signal};

use super::{
    MONITOR_PATIENCE, as_owner, end_by_monitor, for_each, init_pidfd, kill_init, open_store,
    print_line, remove, select, wait_for_end, wait_for_monitor,
};
use crate::cgroup;
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
            kill_init(&container, &init);
            wait_for_end(&init, None);
            wait_for_monitor(&container);
        }
        match container.status {
            // Its monitor may be cleaning up.
            Status::Exited { .. } => wait_for_monitor(&container),
            // One that is just starting, or whose record is wrong.
            _ => end_unknown(&store, &container.id, args.force)?,
        }
        match store.find(container.id.as_str()) {
            // Its monitor has removed it.
            Err(StateError::NotFound { .. }) => {}
            found => remove(&store, &found?)?,
        }
        print_line(name)
    })
}

/// Ends a container of which nothing is known but who answers for it, or, if nobody does, its first
/// process.
fn end_unknown(store: &Store, id: &ContainerId, force: bool) -> Result<(), Failure> {
    let name = id.short();
    let init = store.claimed_init(id).and_then(|init| init.open());
    if !force && (store.claimant(id).is_some() || init.is_some()) {
        let message = format!("container {name} is running: `coracle rm -f {name}` kills it");
        return Err(Failure::new(FailureKind::StillRunning, message));
    }
    if !end_by_monitor(store, id) {
        return Err(Failure::runner(format!(
            "container {name} runs on: its monitor does not end"
        )));
    }
    // One that changed its IDs has outlived its monitor.
    if let Some(init) = init {
        let _ = pidfd_send_signal(&init, Signal::KILL);
        cgroup::thaw(&cgroup::named(&cgroup::name(name)));
        wait_for_end(&init, Some(MONITOR_PATIENCE));
    }
    Ok(())
}
