//! What every engine test stands on. A [`Case`] is a named body that gets a [`Machine`] of its own:
//! a host where one normal user has sub-IDs and runs engines, and a second host elsewhere. All of
//! it is namespaces and memory, so that cases run in parallel, the same as root and as a normal
//! user, and leave nothing behind.
//!
//! A case is a [`trial`] of three processes: one that stays outside and makes the namespaces, the
//! machine's init, and the one that plays the case as the machine's root.
//!
//! Environment: `CORACLE_TREE=DIR` runs the engines of another root file system, as `ci/trixie`
//! makes it. `CORACLE_PEER=installed` leaves slirp4netns and pasta in their places: what fails with
//! them, too, is no fault of ours. `CORACLE_REQUIRE=all` turns each skip into a failure, save that
//! of a case for engines that are newer than Debian 12's and not those of a tree.

mod guest;
pub mod image;
pub mod load;
mod machine;
mod namespaces;
mod process;

use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::Arguments;
use testbed::trial::{self, EXIT_SKIPPED, Trial};

use namespaces::Role;

pub use guest::{SERVICE_PORT, Service, as_guest};
pub use machine::{Helper, Machine};
pub use process::{Daemon, Outcome};
pub use testbed::family::Family;
pub use testbed::wait::eventually;

/// One test: `body` panics to fail and calls [`skip`] when a facility is missing.
#[derive(Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub body: fn(&Machine),
    /// Needs engines that are newer than those of Debian 12.
    pub newer: bool,
}

pub const fn case(name: &'static str, body: fn(&Machine)) -> Case {
    Case {
        name,
        body,
        newer: false,
    }
}

pub const fn newer_case(name: &'static str, body: fn(&Machine)) -> Case {
    Case {
        name,
        body,
        newer: true,
    }
}

/// Ends this case as skipped: `reason` names the facility that is missing.
pub fn skip(reason: impl std::fmt::Display) -> ! {
    trial::say_skipped(reason);
    std::process::exit(EXIT_SKIPPED.into())
}

/// Runs all cases, or, in a process that belongs to one, its part.
pub fn run(cases: &[Case]) -> ExitCode {
    if let Some(name) = trial::named() {
        return match Role::of_this_process() {
            Role::Outside => namespaces::make(),
            Role::Init => namespaces::init(),
            Role::Player => {
                let case = cases
                    .iter()
                    .find(|case| case.name == name)
                    .expect("the parent names an existing case");
                let machine = Machine::new();
                (case.body)(&machine);
                machine.finish();
                ExitCode::SUCCESS
            }
        };
    }
    let arguments = Arguments::from_args();
    let show_output = arguments.nocapture;
    let trials = cases
        .iter()
        .map(|&case| {
            let trial = Trial {
                name: case.name,
                limit: Some(LIMIT),
                may_be_skipped: case.newer && std::env::var_os("CORACLE_TREE").is_none(),
                show_output,
            };
            libtest_mimic::Trial::ignorable_test(case.name, move || trial.run(|_| {}))
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The whole case is killed after this long: generous, since two cores may run many and a build at
/// once.
const LIMIT: Duration = Duration::from_secs(180);
