//! `coracle kill`: a signal to the first process of containers.

use rustix::process::pidfd_send_signal;

use super::{for_each, open_store, print_line, running_init, wait_for_end, wait_for_monitor};
use crate::cli::KillArgs;
use crate::failure::Failure;

pub fn kill(args: KillArgs) -> Result<u8, Failure> {
    let store = open_store()?;
    for_each(&args.containers, |name| {
        let container = store.find(name)?;
        let init = running_init(&container)?;
        let signal = rustix::process::Signal::from_named_raw(args.signal as i32)
            .ok_or_else(|| Failure::runner(format!("cannot send {}", args.signal)))?;
        pidfd_send_signal(&init, signal).map_err(Failure::context(format!(
            "cannot signal container {}",
            container.name
        )))?;
        if signal == rustix::process::Signal::KILL {
            // Nothing survives it, so that the next command may rely on the end.
            wait_for_end(&init, None);
            wait_for_monitor(&container);
        }
        print_line(name)
    })
}
