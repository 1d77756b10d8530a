//! `coracle build`: an image of a Containerfile.
//!
//! This file reads the options and goes from stage to stage, `stage` from instruction to
//! instruction.

mod cache;
mod configure;
mod copy;
mod mounts;
mod needed;
mod run;
mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use netstack::logging::Filter;

use super::print_line;
use super::workshop::Workshop;
use crate::build::containerfile::{self, Action, Containerfile};
use crate::build::expand;
use crate::build::ignore::Ignore;
use crate::build::tree::open_directory;
use crate::cli::BuildArgs;
use crate::engine::{ImageName, ImageRef, Platform};
use crate::failure::Failure;
use crate::images::digest::Digest;
use crate::printable::complain;
use crate::process::foreground::warn;
use crate::process::inherited::{Inherited, SoftLimits};

/// All that is the same for each stage.
struct Build<'a> {
    workshop: &'a Workshop,
    args: &'a BuildArgs,
    file: &'a Containerfile,
    context: OwnedFd,
    ignore: Ignore,
    names: Vec<ImageRef>,
    limits: SoftLimits,
    filter: Filter,
    /// What `--build-arg` says.
    given: BTreeMap<String, String>,
    /// Of the arguments before the first stage.
    global: BTreeMap<String, String>,
    /// Which of those that were given anything has asked for.
    asked_for: BTreeSet<String>,
    done: Vec<Done>,
}

/// A stage that is done.
struct Done {
    number: usize,
    name: Option<String>,
    image: Digest,
}

/// Why a build ended early.
enum Ended {
    Failed(Failure),
    /// A command has, and has said why.
    Command(u8),
}

impl<E> From<E> for Ended
where
    Failure: From<E>,
{
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

pub fn build(args: &BuildArgs, inherited: &Inherited, filter: Filter) -> Result<u8, Failure> {
    let workshop = Workshop::enter(inherited)?;
    if let Some(platform) = args.registry.platform()
        && platform != Platform::this()
    {
        let text = format!("coracle builds for this machine only, {}", Platform::this());
        return Err(Failure::runner(text));
    }
    let context = args.context.to_string_lossy();
    if ["http://", "https://", "git://", "git@"]
        .iter()
        .any(|start| context.starts_with(start))
    {
        let text = format!("coracle does not fetch contexts: get {context} first");
        return Err(Failure::runner(text));
    }
    let (name, text) = read_file(args)?;
    let file = containerfile::parse(&text).map_err(Failure::context(&name))?;
    let context = open_directory(&args.context)?;
    let ignore = match &args.ignorefile {
        Some(path) => Ignore::read(path),
        None => Ignore::beside(&name, &context),
    };
    let tag = |name: &String| Ok(name.parse::<ImageName>()?.to_tag()?);
    let mut build = Build {
        workshop: &workshop,
        args,
        file: &file,
        ignore: ignore.map_err(|error| Failure::runner(error.to_string()))?,
        context,
        names: args.tags.iter().map(tag).collect::<Result<_, Failure>>()?,
        limits: inherited.limits,
        filter,
        given: given(&args.build_args),
        global: BTreeMap::new(),
        asked_for: BTreeSet::new(),
        done: Vec::new(),
    };
    let image = match build.all(&name) {
        Ok(image) => image,
        Err(Ended::Command(code)) => return Ok(code),
        Err(Ended::Failed(failure)) => return Err(failure),
    };
    if let Some(file) = &args.iidfile {
        let doing = format!("cannot write {}", file.display());
        std::fs::write(file, image.to_string()).map_err(Failure::context(doing))?;
    }
    print_line(image.hex())?;
    Ok(0)
}

/// The Containerfile, with what it is called in messages.
fn read_file(args: &BuildArgs) -> Result<(String, String), Failure> {
    let candidates = match &args.file {
        Some(file) => vec![file.clone()],
        None => ["Containerfile", "Dockerfile"]
            .map(|name| args.context.join(name))
            .into(),
    };
    for path in &candidates {
        let name = path.display().to_string();
        let opened: io::Result<Box<dyn Read>> = match path == Path::new("-") {
            true => Ok(Box::new(io::stdin())),
            false => File::open(path).map(|file| Box::new(file) as _),
        };
        let file = match opened {
            Err(error) if error.kind() == io::ErrorKind::NotFound && args.file.is_none() => {
                continue;
            }
            opened => opened.map_err(Failure::context(format!("cannot open {name}")))?,
        };
        let mut text = String::new();
        file.take(containerfile::LEN_MAX)
            .read_to_string(&mut text)
            .map_err(Failure::context(format!("cannot read {name}")))?;
        return Ok((name, text));
    }
    let context = args.context.display();
    Err(Failure::runner(format!(
        "there is neither a Containerfile nor a Dockerfile in {context}: -f FILE names another"
    )))
}

/// What `--build-arg` gives; a name alone has the caller's value.
fn given(words: &[String]) -> BTreeMap<String, String> {
    let pair = |word: &String| match word.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => Some((word.clone(), std::env::var(word).ok()?)),
    };
    words.iter().filter_map(pair).collect()
}

impl Build<'_> {
    /// Returns the image of the last stage.
    fn all(&mut self, file_name: &str) -> Result<Digest, Ended> {
        self.declare_global(file_name)?;
        let last = self.last_stage()?;
        let needed = match self.args.skip_unused_stages {
            true => needed::stages(self.file, last),
            false => vec![true; last + 1],
        };
        for number in (0..=last).filter(|number| needed[*number]) {
            let stage = &self.file.stages[number];
            match self.stage(number, number == last) {
                Ok(image) => self.done.push(Done {
                    number,
                    name: stage.name.clone(),
                    image,
                }),
                Err((_, Ended::Command(code))) => return Err(Ended::Command(code)),
                Err((line, Ended::Failed(failure))) => {
                    let text = format!("{file_name}: line {line}: {}", failure.message);
                    return Err(Ended::Failed(Failure::new(failure.kind, text)));
                }
            }
        }
        let is_unused = |name: &&String| !self.asked_for.contains(*name) && !run::is_proxy(name);
        let unused: Vec<_> = self.given.keys().filter(is_unused).cloned().collect();
        if !unused.is_empty() {
            warn(&format!(
                "no ARG asks for these build arguments: {}",
                unused.join(", ")
            ));
        }
        let last = self.done.last().expect("the last stage is needed");
        Ok(last.image.clone())
    }

    fn declare_global(&mut self, file_name: &str) -> Result<(), Failure> {
        for instruction in &self.file.args {
            let Action::Arg(text) = &instruction.action else {
                unreachable!("nothing else stands before the first stage");
            };
            let lookup = |name: &str| self.global.get(name).cloned();
            let words = expand::words(text, self.file.escape, &lookup);
            let words = words.map_err(|error| {
                Failure::runner(format!("{file_name}: line {}: {error}", instruction.line))
            })?;
            for word in words {
                let (name, default) = word.split_once('=').unwrap_or((&word, ""));
                self.asked_for.insert(name.to_owned());
                let value = self.given.get(name).map_or(default, String::as_str);
                self.global.insert(name.to_owned(), value.to_owned());
            }
        }
        Ok(())
    }

    fn last_stage(&self) -> Result<usize, Failure> {
        let stages = &self.file.stages;
        let Some(target) = &self.args.target else {
            return Ok(stages.len() - 1);
        };
        let named = target.to_ascii_lowercase();
        let by_name = stages
            .iter()
            .position(|stage| stage.name.as_deref() == Some(&named));
        let by_number = || target.parse().ok().filter(|number| *number < stages.len());
        by_name
            .or_else(by_number)
            .ok_or_else(|| Failure::runner(format!("there is no stage {target}")))
    }

    /// The image of a stage that is done, by its name or number.
    fn stage_image(&self, wanted: &str) -> Option<&Digest> {
        let named = wanted.to_ascii_lowercase();
        let mut done = self.done.iter().rev();
        let by_name = done.find(|done| done.name.as_deref() == Some(&named));
        let number = wanted.parse::<usize>().ok();
        let by_number = || self.done.iter().find(|done| Some(done.number) == number);
        by_name.or_else(by_number).map(|done| &done.image)
    }

    /// What is told of the build's steps.
    fn say(&self, text: &str) -> Result<(), Failure> {
        match self.args.quiet {
            true => Ok(()),
            false => print_line(&crate::printable::escape(text)),
        }
    }

    /// A command has ended the build.
    fn command_failed(&self, text: &str, line: usize, code: u8) -> Ended {
        complain(format!(
            "building at STEP {text:?}, line {line}: the command has ended with exit code {code}"
        ));
        Ended::Command(code)
    }
}
