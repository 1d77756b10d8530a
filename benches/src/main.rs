//! `coracle-benches compare`: coracle-net beside slirp4netns, pasta, RootlessKit and the bare
//! kernel, in one interleaved run.
//!
//! The program starts itself again for every role a measurement needs: `__world` and `__stage` make
//! and direct the namespaces of a figure ([`namespaces`], [`stage`]), `__traffic` is a generator
//! ([`traffic`]), `__hold` and `__exec` keep namespaces and start programs in them. Those commands
//! are hidden; their protocol is private.

mod cell;
mod cli;
mod compare;
mod crosscheck;
mod links;
mod matrix;
mod metric;
mod namespaces;
mod peers;
mod place;
mod procfs;
mod report;
mod stage;
mod startup;
mod stats;
mod traffic;
mod worker;

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command as Process, ExitCode};

use anyhow::{Context, Result};
use clap::Parser;

use cli::{Cli, Command, Role};

fn main() -> ExitCode {
    let (name, result) = match called_as_another_program() {
        Some(result) => ("", result),
        None => match Cli::parse().command {
            Command::Compare(args) => ("coracle-benches: ", compare::run(*args)),
            // The comparison quotes what its own processes say.
            Command::Role(role) => ("", play(role)),
        },
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{name}{e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one of the roles in a measurement.
fn play(role: Role) -> Result<()> {
    match role {
        Role::World { order } => {
            namespaces::create_world()?;
            // The first child is init of the new PID namespace; its output is ours.
            let status = Process::new("/proc/self/exe")
                .arg("__stage")
                .arg(order)
                .status();
            let status = status.context("failed to start the world's init")?;
            std::process::exit(status.code().unwrap_or(1))
        }
        Role::Stage { order } => {
            let outcome = stage::perform(&serde_json::from_str(&order)?)?;
            let mut out = std::io::stdout().lock();
            serde_json::to_writer(&mut out, &outcome)?;
            out.flush()?;
            Ok(())
        }
        Role::Traffic { task } => traffic::run(serde_json::from_str(&task)?),
        Role::Hold { held } => namespaces::hold(held),
        Role::ReportPid { file } => peers::rootlesskit::report_pid(&file),
        Role::Exec { enter, program } => {
            if let Some(pid) = enter {
                namespaces::enter(pid)?;
            }
            namespaces::drop_capabilities()?;
            let (name, args) = program.split_first().context("nothing to start")?;
            let error = Process::new(name).args(args).exec();
            Err(error).with_context(|| format!("failed to start {}", name.to_string_lossy()))
        }
    }
}

/// RootlessKit finds us under the names of its tools, and we are the `true` of the containers whose
/// start is timed.
fn called_as_another_program() -> Option<Result<()>> {
    let mut args = std::env::args();
    let called = args.next()?;
    let name = called.rsplit('/').next()?;
    if name == "true" {
        return Some(Ok(()));
    }
    peers::rootlesskit::shim(name, &args.collect::<Vec<_>>())
}
