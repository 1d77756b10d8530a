//! Tests of the faces of `coracle-net` by the programs that call them: Podman, buildah,
//! RootlessKit, Docker and LXC as they are installed here, each run by a normal user, with links to
//! `coracle-net` in the place of `slirp4netns`, `pasta` and `pesto`. One file per engine and
//! helper; `harness` makes the machines on which they run. See [`harness`] for the environment
//! variables that shape a run.

mod buildah;
mod docker;
mod figures;
mod harness;
mod lxc;
mod podman;
mod rootlesskit;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = harness::as_guest() {
        return code;
    }
    let engines = [
        podman::cases(),
        buildah::CASES.to_vec(),
        rootlesskit::CASES.to_vec(),
        docker::CASES.to_vec(),
        lxc::CASES.to_vec(),
        figures::cases(),
    ];
    harness::run(&engines.concat())
}
