//! `coracle rm`: forgets containers that have ended, and with `-f` ends them first.

use rustix::process::{Signal, pidfd_send_signal};

use super::{for_each, init_pidfd, open_store, print_line, remove, wait_for_end, wait_for_monitor};
use crate::cli::RmArgs;
use crate::failure::{Failure, FailureKind};
use crate::state::StateError;

pub fn rm(args: RmArgs) -> Result<u8, Failure> {
    let store = open_store()?;
    for_each(&args.containers, |name| {
        let container = match store.find(name) {
            Err(StateError::NotFound { .. }) if args.force => return Ok(()),
            Err(error @ StateError::NotFound { .. }) => {
                return Err(Failure::new(
                    FailureKind::NoSuchContainer,
                    error.to_string(),
                ));
            }
            Err(StateError::Damaged { id, .. }) => {
                store.remove_damaged(&id)?;
                print_line(name);
                return Ok(());
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
        print_line(name);
        Ok(())
    })
}
