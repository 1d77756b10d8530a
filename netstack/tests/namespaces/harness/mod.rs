//! What every namespace test stands on. A [`Case`] is a named body that gets a fresh [`World`]: a
//! host, a guest and an "elsewhere" network namespace, owned by one new user namespace, so that
//! cases run the same as root and as a normal user, in parallel, and leave nothing behind.
//!
//! Each case is a [`trial`], in a process of its own that is still single-threaded when it unshares
//! its user namespace. The whole process group ends at the deadline.
//!
//! Environment: `CORACLE_REQUIRE=all` turns each skip into a failure, save that of a root case
//! under a normal user; `CORACLE_FULL=1` runs the long sizes, `CORACLE_FLOWS=n` sets how many
//! random flows `haul` makes and `CORACLE_SEED=n` which ones, and `CORACLE_PEER=slirp4netns` puts
//! slirp4netns in the helper's place, which proves the harness by a peer; `CORACLE_DEVICE=veth` has
//! the helper work without a tap. What a case measured is shown with `--nocapture`.

mod bridge;
mod far;
mod helper;
mod nft;
mod socket_table;
pub mod sys;
mod world;

use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::Arguments;
use testbed::trial::{self, EXIT_SKIPPED, Trial};

pub use bridge::Bridge;
pub use far::FarLink;
pub use helper::{Helper, Setup};
pub use nft::nft;
pub use socket_table::tcp_sockets;
pub use testbed::family::Family;
pub use testbed::netns::Netns;
pub use testbed::traffic;
pub use testbed::wait::{eventually, exit_by, readable_by};
pub use world::{Guest, GuestUsers, World};

/// One test: `body` panics to fail and calls [`skip`] when a facility is missing.
#[derive(Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub body: fn(&mut World),
    /// The whole case, set-up and teardown included, is killed after this long.
    pub limit: Duration,
    /// In the host's own user namespace, instead of one of the case's; skipped unless its root runs
    /// it.
    pub as_root: bool,
}

/// A case with the usual limit, generous since two cores may run many cases and a build at once.
pub const fn case(name: &'static str, body: fn(&mut World)) -> Case {
    Case {
        name,
        body,
        limit: Duration::from_secs(120),
        as_root: false,
    }
}

/// A case about a helper that the host's root starts.
pub const fn root_case(name: &'static str, body: fn(&mut World)) -> Case {
    Case {
        as_root: true,
        ..case(name, body)
    }
}

/// A case that moves enough data or connections to need more than the usual limit.
pub const fn long_case(name: &'static str, body: fn(&mut World)) -> Case {
    Case {
        name,
        body,
        limit: Duration::from_secs(600),
        ..case(name, body)
    }
}

/// Whether the long sizes (1 GiB, 500,000 connections) were asked for.
pub fn full() -> bool {
    std::env::var_os("CORACLE_FULL").is_some_and(|value| value == "1")
}

/// The number in environment variable `name`, if it is set.
pub fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(
        value
            .parse()
            .unwrap_or_else(|error| panic!("{name}={value}: {error}")),
    )
}

/// Ends this case as skipped: `reason` names the facility that is missing.
pub fn skip(reason: impl std::fmt::Display) -> ! {
    trial::say_skipped(reason);
    std::process::exit(EXIT_SKIPPED.into())
}

/// Runs all cases, or, in the process that is one's own, the one that it was started for.
pub fn run(cases: &[Case]) -> ExitCode {
    if let Some(name) = trial::named() {
        let case = cases
            .iter()
            .find(|case| case.name == name)
            .expect("the parent names an existing case");
        world::enter(case.as_root);
        let mut world = World::new();
        (case.body)(&mut world);
        world.finish();
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    let show_output = arguments.nocapture;
    // Flows by the million take hours; each of them has a deadline of its own.
    let flows = number("CORACLE_FLOWS").map(|flows| Duration::from_millis(20 * flows));
    let trials = cases
        .iter()
        .map(|&case| {
            let trial = Trial {
                name: case.name,
                limit: Some(case.limit.max(flows.unwrap_or_default())),
                // No preparation makes a normal user root.
                may_be_skipped: case.as_root && !rustix::process::geteuid().is_root(),
                show_output,
            };
            libtest_mimic::Trial::ignorable_test(case.name, move || trial.run(|_| {}))
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
