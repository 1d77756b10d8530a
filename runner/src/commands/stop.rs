//! `coracle stop`: the stop signal, some patience, then SIGKILL.

use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};

use super::{for_each, init_pidfd, open_store, print_line, wait_for_end, wait_for_monitor};
use crate::cli::StopArgs;
use crate::failure::Failure;
use crate::spec::ContainerSpec;

pub fn stop(args: StopArgs) -> Result<u8, Failure> {
    let store = open_store()?;
    for_each(&args.containers, |name| {
        let container = store.find(name)?;
        // One that has ended already is as wanted.
        if let Some(init) = init_pidfd(&container) {
            let stop_signal = ContainerSpec::load(&store.dir(&container).data)?.stop_signal;
            let _ = pidfd_send_signal(
                &init,
                Signal::from_named_raw(stop_signal).unwrap_or(Signal::TERM),
            );
            if !wait_for_end(&init, Some(Duration::from_secs(args.timeout.into()))) {
                let _ = pidfd_send_signal(&init, Signal::KILL);
                wait_for_end(&init, None);
            }
            wait_for_monitor(&container);
        }
        print_line(name);
        Ok(())
    })
}
