//! `coracle restart`: containers end, all under one deadline, and are started again.
use netstack::logging::Filter;

use super::start::not_started;
use super::{chosen, for_each, open_engine, print_line};
use crate::cli::RestartArgs;
use crate::failure::Failure;
use crate::process::foreground::warn;
use crate::state::Container;

pub fn restart(args: RestartArgs, filter: Filter) -> Result<u8, Failure> {
    let engine = open_engine()?.logging(filter);
    let all = args.all || (args.running && args.chosen.names_nothing());
    let is_meant = |container: &Container| !args.running || container.is_alive();
    let mut names = chosen(&engine, &args.chosen, all, is_meant)?;
    if args.running {
        let mut running = Vec::new();
        for name in names {
            if engine.find(&name)?.is_alive() {
                running.push(name);
            }
        }
        names = running;
    }
    let patience = args.grace.patience();
    let mut restarted = engine.restart(&names, patience);
    for_each(&names, |name| {
        let launch = restarted.next().expect("one for each name");
        launch
            .and_then(|mut launch| launch.started(&mut warn))
            .map_err(not_started)?;
        print_line(name)
    })
}
