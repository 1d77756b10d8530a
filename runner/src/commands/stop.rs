//! `coracle stop`: the stop signal, some patience, then SIGKILL. All containers end at the same
//! time.

use std::time::Duration;

use super::{for_each, open_engine, print_line, select};
use crate::cli::StopArgs;
use crate::engine::Stop;
use crate::failure::Failure;
use crate::process::foreground::say;
use crate::state::Container;

pub fn stop(args: StopArgs) -> Result<u8, Failure> {
    let engine = open_engine()?;
    let names = select(&engine, &args.containers, args.all, Container::is_alive)?;
    let stop = engine.stop(&names, args.grace.patience());
    explain_wait(&stop);
    let mut ended = stop.finish();
    for_each(&names, |name| {
        ended.next().expect("one for each name")?;
        print_line(name)
    })
}

/// A wait that is longer than anybody expects is told of, with what most often causes it.
fn explain_wait(stop: &Stop) {
    const UNEXPECTED: Duration = Duration::from_secs(1);
    let patience = stop.patience();
    if patience <= UNEXPECTED {
        return;
    }
    let slow = stop.still_running_after(UNEXPECTED);
    if !slow.is_empty() {
        let names = slow.join(", ");
        say(&format!(
            "waiting up to {} s for {names} to end; process 1 of a container heeds a signal only if it has a handler for it: \
             `coracle run --init` puts one there that passes signals on",
            patience.as_secs()
        ));
    }
}
