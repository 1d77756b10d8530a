//! `coracle run`: from flags to a running container, and in the foreground on to its exit code.
//!
//! The engine makes and starts the container. In the foreground this process stays attached to it.

use std::ffi::OsString;

use netstack::logging::Filter;
use tracing::error_span;

use super::cidfile::CidFile;
use super::follow::{Bond, adopt_orphans, follow};
use super::pull::provide;
use super::request::request;
use super::workshop::Workshop;
use super::{open_engine, print_line};
use crate::build::store::Working;
use crate::cli::{AttachStream, ContainerArgs, RunArgs};
use crate::engine::{Attach, Engine, ErrorKind, Place, RestartPolicy, Source};
use crate::failure::Failure;
use crate::images::builtin;
use crate::process::foreground::{Signals, warn};
use crate::process::inherited::Inherited;

pub fn run(args: RunArgs, inherited: &Inherited, filter: Filter) -> Result<u8, Failure> {
    if let Some(container) = working(&args)? {
        return run_working(args, &container, inherited, filter);
    }
    // In the foreground a signal that comes while the container starts is kept for it.
    let signals = match args.detach {
        true => None,
        false => Some(Signals::block()?),
    };
    let engine = open_engine()?.logging(filter);
    let source = source(&args.container, &engine)?;
    let is_first_look = !args.detach && args.container.lifetime.restart == RestartPolicy::No;
    let is_removed =
        args.container.rm || args.rmi || (is_first_look && is_builtin(&args.container));
    let request = request(
        &args.container,
        source,
        is_removed,
        args.reads_stdin(),
        inherited.limits,
    )?;
    let attach = signals.is_some().then(|| Attach {
        stdin: args.reads_stdin(),
        stdout: args.attaches(AttachStream::Stdout),
        stderr: args.attaches(AttachStream::Stderr),
    });
    if attach.is_some() {
        adopt_orphans();
    }
    let cidfile = CidFile::create(args.container.cidfile.as_deref())?;
    replace(&args.container, &engine)?;
    let mut launch = engine.run(request, attach, &mut warn)?;
    cidfile.tell(&launch.container)?;
    let _span = error_span!("run", container = launch.container.id.short()).entered();
    match signals {
        Some(signals) => {
            let bond = Bond::of(&args.leave, args.reads_stdin(), args.sig_proxy);
            let image = launch.container.image_id.clone();
            let code = follow(launch, signals, bond, &engine);
            if let (Some(image), true) = (image, args.rmi) {
                remove_image(&engine, &image);
            }
            code
        }
        None => {
            launch.started(&mut warn)?;
            print_line(launch.container.id.as_str())?;
            Ok(0)
        }
    }
}

/// Removes the image of a container that has gone, which is of no matter for its exit code.
fn remove_image(engine: &Engine, image: &str) {
    match engine.remove_image(image, false) {
        Err(error) if error.kind() != ErrorKind::ImageInUse => {
            warn(&format!("the image stays: {error}"));
        }
        _ => {}
    }
}

/// The working container that is meant: the first word is its name, or its whole id. An image of
/// the same name is meant by its whole name, as localhost/NAME.
fn working(args: &RunArgs) -> Result<Option<Working>, Failure> {
    let name = args.container.words.first();
    let name = name.and_then(|name| name.to_str());
    match (name, &args.container.tree.rootfs) {
        (Some(name), None) => Ok(open_engine()?.working().find_exactly(name)?),
        _ => Ok(None),
    }
}

/// Runs a command in a working container, and keeps what it changes there.
fn run_working(
    args: RunArgs,
    container: &Working,
    inherited: &Inherited,
    filter: Filter,
) -> Result<u8, Failure> {
    if !args.sig_proxy || args.leave.detach_keys.is_some() {
        let text = "a working container cannot be left to itself: there is no --detach-keys nor --sig-proxy=false for it";
        return Err(Failure::runner(text));
    }
    if args.container.lifetime.restart != RestartPolicy::No {
        let text = "a working container runs its command once: there is no --restart for it";
        return Err(Failure::runner(text));
    }
    if args.detach {
        let text =
            "a working container runs its command in the foreground: there is no --detach for it";
        return Err(Failure::runner(text));
    }
    let workshop = Workshop::enter(inherited)?;
    let bond = Bond {
        interactive: args.reads_stdin(),
        // What it changes is kept once it has ended.
        keys: None,
        passes_signals: true,
    };
    let mut command = args.container.words[1..].to_vec();
    if command.first().is_some_and(|word| word == "--") {
        command.remove(0);
    }
    let mounted = workshop.mount(container)?;
    let source = Source::Directory {
        dir: mounted.path(),
        in_place: true,
        command,
    };
    let rm = args.container.rm;
    let request = request(
        &args.container,
        source,
        rm,
        args.reads_stdin(),
        inherited.limits,
    )?;
    let signals = Signals::block()?;
    let attach = Attach {
        stdin: args.reads_stdin(),
        stdout: args.attaches(AttachStream::Stdout),
        stderr: args.attaches(AttachStream::Stderr),
    };
    let config = &container.config.config;
    workshop.run_in(
        &mounted,
        config,
        request,
        attach,
        filter,
        |launch, engine| follow(launch, signals, bond, engine),
    )
}

/// What the words name.
pub(super) fn source(args: &ContainerArgs, engine: &Engine) -> Result<Source, Failure> {
    let words = args.words.clone();
    Ok(match &args.tree.rootfs {
        Some(rootfs) => Source::Directory {
            dir: rootfs.dir.clone(),
            in_place: rootfs.in_place,
            command: words,
        },
        None => {
            let mut words = words.into_iter();
            let name = words.next().unwrap_or_else(|| builtin::DEFAULT.into());
            Source::Image {
                name: bring(args, engine, name)?,
                args: words.collect(),
            }
        }
    })
}

/// Ends and removes the container of the new one's name, if there is one and that was asked for. To
/// be done just before the new one is made: a command line that is wrong costs the old one nothing.
pub(super) fn replace(args: &ContainerArgs, engine: &Engine) -> Result<(), Failure> {
    let name = match (&args.name, args.replace) {
        (_, false) => return Ok(()),
        (None, true) => {
            return Err(Failure::runner(
                "--replace is about a name: it goes with --name",
            ));
        }
        (Some(name), true) => name,
    };
    match engine.find(name) {
        Ok(old) if old.name == *name => {
            let stop = engine.stop(std::slice::from_ref(name), None);
            stop.finish().collect::<Result<Vec<_>, _>>()?;
            // One that was to go at its end has gone.
            if engine.find(old.id.as_str()).is_ok() {
                engine.remove(old.id.as_str(), true)?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The name of an image that is at hand: one in a file is loaded first, one of a registry pulled.
fn bring(args: &ContainerArgs, engine: &Engine, name: OsString) -> Result<OsString, Failure> {
    let Some(text) = name.to_str().filter(|name| *name != builtin::DEFAULT) else {
        return Ok(name);
    };
    let Some(place) = Place::parse(text) else {
        let name = provide(engine, text, args.pull, &args.registry, args.quiet)?;
        return Ok(name.into());
    };
    let images = engine.images()?.load(&place, &mut warn)?;
    match &images[..] {
        [image] => Ok(image.id.to_string().into()),
        _ => Err(Failure::runner(format!(
            "there are {} images in {name:?}: `coracle load` reads them all, and `coracle run` one by its name",
            images.len()
        ))),
    }
}

/// The built-in image in the foreground is a first look, which is to leave nothing behind.
fn is_builtin(args: &ContainerArgs) -> bool {
    let mut name = args.words.iter();
    args.tree.rootfs.is_none() && name.next().is_none_or(|name| name == builtin::DEFAULT)
}
