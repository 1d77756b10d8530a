//! `coracle stop`: the stop signal, some patience, then SIGKILL. All containers end at the same
//! time, under one deadline.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::{
    end_by_monitor, for_each, init_pidfd, kill_init, open_store, print_line, select, wait_for_end,
    wait_for_monitor,
};
use crate::cli::StopArgs;
use crate::failure::Failure;
use crate::foreground::say;
use crate::state::{Container, Status, Store};
use crate::sys;

/// A container that was asked to end.
struct Stopping {
    container: Container,
    /// `None` for one that has ended already, which is as wanted.
    init: Option<OwnedFd>,
}

pub fn stop(args: StopArgs) -> Result<u8, Failure> {
    let store = open_store()?;
    let names = select(&store, &args.containers, args.all, Container::is_alive)?;
    let asked: Vec<Result<Stopping, Failure>> = names
        .iter()
        .map(|name| Ok(ask(&store, store.find(name)?)))
        .collect();
    let patience = Duration::from_secs(args.timeout.into());
    let deadline = Instant::now().checked_add(patience);
    explain_wait(&asked, patience);
    let mut asked = asked.into_iter();
    for_each(&names, |name| {
        let stopping = asked.next().expect("one for each name")?;
        if let Some(init) = &stopping.init {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if !wait_for_end(init, left) {
                kill_init(&stopping.container, init);
                wait_for_end(init, None);
            }
            wait_for_monitor(&stopping.container);
        }
        print_line(name)
    })
}

fn ask(store: &Store, container: Container) -> Stopping {
    // A container that is just starting has none for the stop signal, and ends at once.
    let init = init_pidfd(&container);
    if init.is_none() && container.status == Status::Created {
        end_by_monitor(store, &container.id);
    }
    if let Some(init) = &init {
        // Fails only when it has ended meanwhile.
        let _ = sys::send_signal(init.as_fd(), container.stop_signal);
    }
    Stopping { container, init }
}

/// A wait that is longer than anybody expects is told of, with what most often causes it.
fn explain_wait(asked: &[Result<Stopping, Failure>], patience: Duration) {
    const UNEXPECTED: Duration = Duration::from_secs(1);
    if patience <= UNEXPECTED {
        return;
    }
    let said_by = Instant::now() + UNEXPECTED;
    let still_runs = |stopping: &&Stopping| {
        let left = said_by.saturating_duration_since(Instant::now());
        let init = stopping.init.as_ref();
        init.is_some_and(|init| !wait_for_end(init, Some(left)))
    };
    let slow: Vec<&str> = asked
        .iter()
        .flatten()
        .filter(still_runs)
        .map(|stopping| stopping.container.name.as_str())
        .collect();
    if !slow.is_empty() {
        let names = slow.join(", ");
        say(&format!(
            "waiting up to {} s for {names} to end; process 1 of a container heeds a signal only if it has a handler for it: \
             `coracle run --init` puts one there that passes signals on",
            patience.as_secs()
        ));
    }
}
