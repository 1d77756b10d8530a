//! The commands, one file each: flags in, calls of the `engine`, text and an exit code out.

mod attach;
mod build;
mod check;
mod cidfile;
mod commit;
mod config;
mod containers;
mod copy;
mod cp;
mod create;
mod df;
mod diff;
mod env;
mod events;
mod exec;
mod export;
mod filter;
mod follow;
mod from;
mod healthcheck;
mod history;
mod human;
mod images;
mod import;
mod info;
mod inspect;
mod kill;
mod load;
mod login;
mod logs;
mod mount;
mod network;
mod pause;
mod port;
mod progress;
mod prune;
mod ps;
mod pull;
mod push;
mod rename;
mod request;
mod restart;
mod rm;
mod rmi;
mod rows;
mod run;
mod run_network;
mod save;
mod search;
mod secret;
mod short_names;
mod start;
mod stats;
mod stop;
mod system;
mod table;
mod tag;
mod timezone;
mod top;
mod unshare;
mod update;
mod volume;
mod wait;
mod workshop;

use netstack::logging::Filter;

use crate::cli::{Chosen, Command, ImageCommand};
use crate::engine::{Engine, EngineError, ErrorKind};
use crate::failure::{Failure, FailureKind, chain};
use crate::printable::complain;
use crate::process::foreground::warn;
use crate::process::inherited::Inherited;
use crate::state::{Container, Dirs};

/// Carries out what was typed. What it starts logs as much as `filter` says. Returns the exit code.
pub fn dispatch(command: Command, inherited: &Inherited, filter: Filter) -> Result<u8, Failure> {
    match command {
        Command::Run(args) => run::run(*args, inherited, filter),
        Command::Create(args) => create::create(*args, inherited),
        Command::Start(args) => start::start(args, filter),
        Command::Restart(args) => restart::restart(args, filter),
        Command::Wait(args) => wait::wait(args),
        Command::Attach(args) => attach::attach(&args),
        Command::Pause(args) => pause::pause(&args),
        Command::Unpause(args) => pause::unpause(&args),
        Command::Top(args) => top::top(&args),
        Command::Stats(args) => stats::stats(&args),
        Command::Events(args) => events::events(&args),
        Command::Rename(args) => rename::rename(&args),
        Command::Update(args) => update::update(&args),
        Command::Port(args) => port::port(args),
        Command::Exec(args) => exec::exec(args, filter),
        Command::Ps(args) => ps::ps(args),
        Command::Logs(args) => logs::logs(args),
        Command::Stop(args) => stop::stop(args),
        Command::Kill(args) => kill::kill(args),
        Command::Rm(args) => rm::rm(args, inherited),
        Command::Cp(args) => cp::cp(args),
        Command::Export(args) => export::export(&args),
        Command::Diff(args) => diff::diff(&args, false),
        Command::Unshare(args) => unshare::unshare_command(args, inherited),
        Command::Inspect(args) => inspect::inspect(args),
        Command::Image(command) => dispatch_image(command, inherited),
        Command::Network(command) => network::network(command),
        Command::Healthcheck(command) => healthcheck::healthcheck(command),
        Command::Volume(command) => volume::volume(command),
        Command::Secret(command) => secret::secret(command),
        Command::System(args) => system::system(args),
        Command::Info(args) => info::info(&args),
        Command::Version(args) => info::version(&args),
        Command::Build(args) => build::build(&args, inherited, filter),
        Command::From(args) => from::from(args, inherited),
        Command::Mount(args) => mount::mount(args, inherited),
        Command::Umount(args) => mount::umount(args, inherited),
        Command::Config(args) => config::config(*args, inherited),
        Command::Copy(args) => copy::copy(args, false, inherited),
        Command::Add(args) => copy::copy(args, true, inherited),
        Command::Commit(args) => commit::commit(args, inherited),
        Command::Containers(args) => containers::containers(args),
        Command::Images(args) => images::images(args),
        Command::Rmi(args) => rmi::rmi(args, inherited),
        Command::Tag(args) => tag::tag(args),
        Command::Untag(args) => tag::untag(args),
        Command::History(args) => history::history(args),
        Command::Import(args) => import::import(args),
        Command::Pull(args) => pull::pull(args),
        Command::Push(args) => push::push(args),
        Command::Search(args) => search::search(&args),
        Command::Login(args) => login::login(args),
        Command::Logout(args) => login::logout(args),
        Command::Load(args) => load::load(args),
        Command::Save(args) => save::save(args),
    }
}

fn dispatch_image(command: ImageCommand, inherited: &Inherited) -> Result<u8, Failure> {
    match command {
        ImageCommand::Diff(args) => diff::diff(&args, true),
        ImageCommand::Exists(args) => prune::image_exists(&args),
        ImageCommand::History(args) => history::history(args),
        ImageCommand::Import(args) => import::import(args),
        ImageCommand::Inspect(args) => inspect::inspect(args.into()),
        ImageCommand::Load(args) => load::load(args),
        ImageCommand::Ls(args) => images::images(args),
        ImageCommand::Prune(args) => prune::image_prune(&args, inherited),
        ImageCommand::Pull(args) => pull::pull(args),
        ImageCommand::Push(args) => push::push(args),
        ImageCommand::Rm(args) => rmi::rmi(args, inherited),
        ImageCommand::Save(args) => save::save(args),
        ImageCommand::Search(args) => search::search(&args),
        ImageCommand::Tag(args) => tag::tag(args),
        ImageCommand::Untag(args) => tag::untag(args),
    }
}

/// What the engine could not do, as the command line tells it.
impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let kind = match error.kind() {
            ErrorKind::NoSuchContainer => FailureKind::NoSuchContainer,
            ErrorKind::StillRunning => FailureKind::StillRunning,
            ErrorKind::NoSuchImage => FailureKind::NoSuchImage,
            ErrorKind::ImageInUse => FailureKind::ImageInUse,
            ErrorKind::NoSuchVolume => FailureKind::NoSuchVolume,
            ErrorKind::VolumeInUse => FailureKind::VolumeInUse,
            ErrorKind::NoSuchNetwork => FailureKind::NoSuchNetwork,
            ErrorKind::NetworkInUse => FailureKind::NetworkInUse,
            ErrorKind::PortUnavailable => FailureKind::PortUnavailable,
            ErrorKind::CommandNotFound => FailureKind::NotFound,
            ErrorKind::CommandNotExecutable => FailureKind::NotExecutable,
            _ => FailureKind::Runner,
        };
        Self::new(kind, chain(&error))
    }
}

/// The caller's containers, after what a crash may have left has been put right.
fn open_engine() -> Result<Engine, Failure> {
    let engine = Engine::open(Dirs::discover()?)?;
    repair(&engine)?;
    Ok(engine)
}

fn repair(engine: &Engine) -> Result<(), Failure> {
    for left_over in engine.repair()? {
        warn(&left_over.to_string());
    }
    Ok(())
}

/// Those that were named, or with `--all` the names of all that `is_meant`.
fn select(
    engine: &Engine,
    names: &[String],
    all: bool,
    is_meant: impl Fn(&Container) -> bool,
) -> Result<Vec<String>, Failure> {
    if !all {
        return Ok(names.to_vec());
    }
    let containers = engine.list()?.containers;
    Ok(containers
        .into_iter()
        .filter(is_meant)
        .map(|container| container.name)
        .collect())
}

/// Those that `chosen` names, in whatever state, or else those of the ones it describes that
/// `is_meant`; with `all` they need no description.
fn chosen(
    engine: &Engine,
    chosen: &Chosen,
    all: bool,
    is_meant: impl Fn(&Container) -> bool,
) -> Result<Vec<String>, Failure> {
    if chosen.latest {
        return Ok(vec![latest(engine)?]);
    }
    if chosen.filters.is_empty() {
        return select(engine, &chosen.containers, all, is_meant);
    }
    filter::check(&chosen.filters, "this command", ps::FILTERS)?;
    let mut names = Vec::new();
    for container in engine.list()?.containers {
        if is_meant(&container) && ps::admits_container(&chosen.filters, &container, engine)? {
            names.push(container.name);
        }
    }
    Ok(names)
}

/// The name of the container that was made last.
fn latest(engine: &Engine) -> Result<String, Failure> {
    let newest = engine.list()?.containers.into_iter().next();
    let newest = newest.ok_or_else(|| Failure::runner("there is no container yet"))?;
    Ok(newest.name)
}

/// Says by the exit code whether something was found: 0, or 1 where it is `missing`.
fn exists<T>(found: Result<T, EngineError>, missing: ErrorKind) -> Result<u8, Failure> {
    match found {
        Ok(_) => Ok(0),
        Err(error) if error.kind() == missing => Ok(1),
        Err(error) => Err(error.into()),
    }
}

/// Does `action` to each container named. All are tried; the last failure is returned, the others
/// are printed.
fn for_each(
    names: &[String],
    mut action: impl FnMut(&str) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let mut last = None;
    for name in names {
        if let Err(failure) = action(name)
            && let Some(earlier) = last.replace(failure)
        {
            complain(earlier);
        }
    }
    match last {
        Some(failure) => Err(failure),
        None => Ok(0),
    }
}

/// A line on stdout. A reader that has left, as `head` does, is no failure.
fn print_line(line: &str) -> Result<(), Failure> {
    use std::io::Write;
    let mut stdout = std::io::stdout();
    let written = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    output_result(written)
}

/// For what is written to the standard output or error.
pub fn output_result(written: std::io::Result<()>) -> Result<(), Failure> {
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(Failure::context("cannot write to standard output")),
    }
}
