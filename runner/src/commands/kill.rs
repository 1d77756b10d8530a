//! `coracle kill`: a signal to the first process of containers.

use super::{
    for_each, open_store, print_line, running_init, select, wait_for_end, wait_for_monitor,
};
use crate::cgroup;
use crate::cli::KillArgs;
use crate::failure::Failure;
use crate::signal::Signal;
use crate::state::Status;
use crate::sys::send_signal;

pub fn kill(args: KillArgs) -> Result<u8, Failure> {
    let store = open_store()?;
    let names = select(&store, &args.containers, args.all, |c| {
        c.status == Status::Running
    })?;
    for_each(&names, |name| {
        let container = store.find(name)?;
        let init = running_init(&container)?;
        send_signal(&init, args.signal.as_raw()).map_err(Failure::context(format!(
            "cannot send {} to container {}",
            args.signal, container.name
        )))?;
        if args.signal == Signal::KILL {
            cgroup::thaw(&container.cgroups);
            // Nothing survives it, so that the next command may rely on the end.
            wait_for_end(&init, None);
            wait_for_monitor(&container);
        }
        print_line(name)
    })
}
