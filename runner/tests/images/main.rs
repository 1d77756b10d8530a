//! Images as a user meets them: the built program loads, lists, runs, saves and removes them, as
//! root and as normal users. One file per subject; `recipe` makes images, and the worlds are those
//! of the container tests.

mod docker_registry;
#[allow(
    dead_code,
    unused_imports,
    reason = "shared with the container tests: either uses a part of it"
)]
#[path = "../container/harness/mod.rs"]
mod harness;
mod recipe;
mod server;
mod steps;
mod transcript;

mod archives;
mod building;
mod containerfile;
mod crashes;
mod hostile;
mod inspect;
mod judges;
mod layers;
mod names;
mod push;
mod registry;
mod running;
mod upkeep;
mod volumes;

use std::process::ExitCode;

fn main() -> ExitCode {
    let subjects = [
        archives::CASES,
        building::CASES,
        containerfile::CASES,
        crashes::CASES,
        hostile::CASES,
        inspect::CASES,
        judges::CASES,
        layers::CASES,
        names::CASES,
        push::CASES,
        registry::CASES,
        running::CASES,
        steps::CASES,
        transcript::CASES,
        upkeep::CASES,
        volumes::CASES,
    ];
    harness::run(&subjects.concat())
}
