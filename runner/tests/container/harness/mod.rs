//! What every container test stands on. A [`Case`] is a named body that gets a fresh [`World`]:
//! somebody who runs containers, with a directory, a store and a busybox tree of their own.
//!
//! Each case is tried once for every [`Kind`] of caller that the tests can play, as a trial of its
//! own, named `lifecycle::commands_can_be_added (stranger)`. Its process (see [`trial`]) adopts
//! whatever its containers leave behind. So it can tell that nothing is left, and end what a failed
//! case has left.

pub mod caller;
mod cgroup;
mod process;
mod session;
mod sys;
mod world;

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use libtest_mimic::Arguments;
use testbed::trial::{self, EXIT_SKIPPED, Trial};

use caller::{Caller, Kind};
use world::Program;

pub use cgroup::DelegatedGroup;
pub use process::{
    DEADLINE, Outcome, children_of, collect, eventually, finish, finish_with_input, is_running,
    parent_of, wait,
};
pub use session::Session;
pub use sys::HandedDown;
pub use world::{OverlayStore, World, coracle, example, snapshot, unique};

/// One test: `body` panics to fail and calls [`skip`] when a facility is missing.
#[derive(Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub body: fn(&World),
    /// Whether root has to set the scene, whoever the caller is: there is no such case for others.
    pub root_prepares: bool,
}

/// Makes `CASES` of a module's test functions, each named by its path; behind a semicolon those
/// that root prepares.
macro_rules! cases {
    ($($body:ident),* $(,)? $(; $($prepared:ident),* $(,)?)?) => {
        pub const CASES: &[$crate::harness::Case] = &[
            $($crate::harness::Case {
                name: concat!(module_path!(), "::", stringify!($body)),
                body: $body,
                root_prepares: false,
            },)*
            $($($crate::harness::Case {
                name: concat!(module_path!(), "::", stringify!($prepared)),
                body: $prepared,
                root_prepares: true,
            },)*)?
        ];
    };
}
pub(crate) use cases;

/// Ends this trial as skipped: `reason` names the facility that is missing. For the thread that
/// runs the body.
pub fn skip(reason: impl std::fmt::Display) -> ! {
    resume_unwind(Box::new(Skip(reason.to_string())))
}

struct Skip(String);

/// For cases with a network.
pub fn need_tun() {
    let opened = File::options().read(true).write(true).open("/dev/net/tun");
    if let Err(error) = opened {
        skip(format!("/dev/net/tun cannot be opened: {error}"));
    }
}

/// Runs all trials, or, in the process that is one's own, the one that it was started for.
pub fn run(cases: &[Case]) -> ExitCode {
    let trials = || {
        let kinds = Kind::all();
        let is_root = rustix::process::geteuid().is_root();
        let possible = cases
            .iter()
            .filter(move |case| is_root || !case.root_prepares);
        possible.flat_map(move |&case| {
            kinds
                .clone()
                .into_iter()
                .map(move |kind| (trial_name(case, kind), case, kind))
        })
    };
    if let Some(wanted) = trial::named() {
        let (_, case, kind) = trials()
            .find(|(name, ..)| *name == wanted)
            .expect("the parent names an existing trial");
        return play(case, kind);
    }
    let program = Program::for_everybody();
    let arguments = Arguments::from_args();
    let show_output = arguments.nocapture;
    let trials = trials()
        .map(|(name, ..)| {
            let program = program.path().to_owned();
            let body = move |name: &str| {
                // It keeps the time itself, so that it clears up in any case.
                let trial = Trial {
                    name,
                    limit: None,
                    may_be_skipped: false,
                    show_output,
                };
                trial.run(|command| {
                    command.env(world::PROGRAM_VARIABLE, program);
                })
            };
            libtest_mimic::Trial::ignorable_test(name.clone(), move || body(&name))
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial_name(case: Case, kind: Kind) -> String {
    let (_crate, name) = case.name.split_once("::").expect("a path in this crate");
    format!("{name} ({kind})")
}

/// A trial, in the process that is there for it alone.
fn play(case: Case, kind: Kind) -> ExitCode {
    let world = match Caller::play(kind).and_then(World::new) {
        // Lives as long as the process: a body that hangs is not waited for.
        Ok(world) => &*Box::leak(Box::new(world)),
        Err(missing) => return skipped(&missing),
    };
    let (ended, ending) = mpsc::channel();
    std::thread::spawn(move || {
        let ending = catch_unwind(AssertUnwindSafe(|| (case.body)(world)));
        // Nobody listens once the time is up.
        let _ = ended.send(ending);
    });
    let code = match ending.recv_timeout(LIMIT) {
        Ok(Ok(())) => match world.left() {
            left if left.is_empty() => ExitCode::SUCCESS,
            left => failed(&format!("left behind: {left:#?}")),
        },
        Ok(Err(panic)) => match panic.downcast_ref() {
            Some(Skip(reason)) => skipped(reason),
            // The panic hook has said why.
            None => ExitCode::FAILURE,
        },
        Err(_) => failed(&format!("still running after {LIMIT:?}")),
    };
    match world.clear() {
        Err(error) if code == ExitCode::SUCCESS => failed(&error),
        _ => code,
    }
}

fn skipped(reason: &str) -> ExitCode {
    trial::say_skipped(reason);
    EXIT_SKIPPED.into()
}

fn failed(reason: &str) -> ExitCode {
    eprintln!("{reason}");
    ExitCode::FAILURE
}

/// A body is given up after this long. Generous, since two cores may run many trials and a build at
/// once.
const LIMIT: Duration = Duration::from_secs(300);
