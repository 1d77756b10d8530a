//! Containers as a user meets them: the built program run against a busybox tree, as root and as
//! normal users. One file per subject; `harness` makes the worlds. See [`harness`] for the
//! environment variables that shape a run.

mod harness;

mod again;
mod attach;
mod boundaries;
mod damage;
mod diagnostics;
mod ending;
mod files;
mod flags;
mod handed_down;
mod health;
mod hostile;
mod info;
mod isolation;
mod kernel;
mod layers;
mod library;
mod lifecycle;
mod limits;
mod logs;
mod mounts;
mod names;
mod network;
mod networks;
mod privileges;
mod processes;
mod restarts;
mod seccomp;
mod secrets;
mod shared;
mod streams;
mod watching;
mod words;

use std::process::ExitCode;

fn main() -> ExitCode {
    let subjects = [
        lifecycle::CASES,
        limits::CASES,
        again::CASES,
        attach::CASES,
        ending::CASES,
        damage::CASES,
        diagnostics::CASES,
        boundaries::CASES,
        restarts::CASES,
        shared::CASES,
        streams::CASES,
        files::CASES,
        flags::CASES,
        handed_down::CASES,
        health::CASES,
        isolation::CASES,
        kernel::CASES,
        layers::CASES,
        mounts::CASES,
        info::CASES,
        library::CASES,
        hostile::CASES,
        names::CASES,
        logs::CASES,
        network::CASES,
        networks::CASES,
        seccomp::CASES,
        secrets::CASES,
        privileges::CASES,
        processes::CASES,
        watching::CASES,
        words::CASES,
    ];
    harness::run(&subjects.concat())
}
