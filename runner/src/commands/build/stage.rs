//! The instructions of one stage, one after another.
//!
//! Each that changes files makes a layer, in a working container of its own, and an image that the
//! next goes on with. Where there is an image already that was made of the same by the same step,
//! that is taken instead: the same layers below, the same configuration, the same history, in which
//! a step that copies tells a digest of what it copies.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::signal::SigSet;

use super::{Build, Ended};
use crate::build::commit::{CommitRequest, commit};
use crate::build::config::{Empty, Healthcheck, ImageConfig, RunConfig, Step, port};
use crate::build::containerfile::{Action, Check, Command, Copy, Instruction};
use crate::build::copy::{self, CopyRequest, LeftOut, Nothing};
use crate::build::expand::{self, ExpandError};
use crate::build::pack::Changes;
use crate::build::tree::Mounted;
use crate::commands::workshop::{Passing, SCRATCH};
use crate::engine::{Attach, Capabilities, ContainerRequest, Platform, Seccomp, Source};
use crate::failure::Failure;
use crate::images::digest::Digest;
use crate::process::foreground::{Foreground, Outcome, Signals, warn};
use crate::signal::Signal;
use crate::spec::DEFAULT_PATH;

/// How far a stage is.
struct Progress {
    /// The image so far; none at the beginning of one that is made of nothing.
    image: Option<Digest>,
    /// With all that is not in the image yet.
    config: ImageConfig,
    /// Whether the image says all that the configuration does.
    is_current: bool,
    /// Whether what comes next may have been made before.
    cached: bool,
    /// Arguments that were declared, with their values.
    args: Vec<(String, String)>,
}

/// A failure with the line that it happened at.
type AtLine<T> = Result<T, (usize, Ended)>;

impl Build<'_> {
    /// Goes through a stage, and returns its image.
    pub fn stage(&mut self, number: usize, is_last: bool) -> AtLine<Digest> {
        let file = self.file;
        let stage = &file.stages[number];
        let count = stage.instructions.len() + 1;
        let prefix = match file.stages.len() {
            1 => String::new(),
            stages => format!("[{}/{stages}] ", number + 1),
        };
        let step = |index: usize, text: &str| format!("{prefix}STEP {index}/{count}: {text}");
        let at = |line: usize| move |ended: Ended| (line, ended);
        let said = self.say(&step(1, &stage.text));
        said.map_err(Ended::from).map_err(at(stage.line))?;
        let mut progress = self.begin(number).map_err(at(stage.line))?;
        for (index, instruction) in stage.instructions.iter().enumerate() {
            let done = self
                .say(&step(index + 2, &instruction.text))
                .map_err(Ended::from)
                .and_then(|()| self.instruction(&mut progress, instruction));
            done.map_err(at(instruction.line))?;
        }
        let last_line = stage
            .instructions
            .last()
            .map_or(stage.line, |last| last.line);
        self.finish(progress, is_last).map_err(at(last_line))
    }

    fn begin(&mut self, number: usize) -> Result<Progress, Ended> {
        let stage = &self.file.stages[number];
        let this = Platform::this().to_string();
        let lookup = |name: &str| match name {
            "BUILDPLATFORM" | "TARGETPLATFORM" => Some(this.clone()),
            name => self.global.get(name).cloned(),
        };
        let read = |text: &str| {
            let word = expand::one(text, self.file.escape, &lookup);
            word.map_err(|error| Failure::runner(error.to_string()))
        };
        if let Some(platform) = &stage.platform {
            let platform = read(platform)?;
            if platform.parse::<Platform>() != Ok(Platform::this()) {
                let text = format!(
                    "FROM --platform={platform}: coracle builds for this machine only, {this}"
                );
                return Err(Failure::runner(text).into());
            }
        }
        let image = read(&stage.image)?;
        if image.is_empty() {
            return Err(Failure::runner("FROM names no image").into());
        }
        let id = match self.stage_image(&image) {
            Some(done) => Some(done.clone()),
            None if image == SCRATCH => None,
            None => Some(self.provide(&image)?),
        };
        let config = match &id {
            None => {
                let mut config = ImageConfig::scratch();
                // As with all that build.
                config.config.set_env("PATH", DEFAULT_PATH);
                config
            }
            Some(id) => self.config_of(id)?,
        };
        if let Some(first) = config.config.on_build.first() {
            let text = format!(
                "the image {image} has instructions for ONBUILD, which coracle does not carry out: {first}"
            );
            return Err(Failure::runner(text).into());
        }
        Ok(Progress {
            is_current: id.is_some(),
            image: id,
            config,
            cached: !self.args.no_cache,
            args: Vec::new(),
        })
    }

    fn provide(&self, image: &str) -> Result<Digest, Failure> {
        let (engine, args) = (&self.workshop.engine, self.args);
        let name =
            crate::commands::pull::provide(engine, image, args.pull, &args.registry, args.quiet)?;
        Ok(self.workshop.images.find(&name)?.0.id)
    }

    fn config_of(&self, id: &Digest) -> Result<ImageConfig, Failure> {
        let text = self.workshop.images.read_blob(id)?;
        let doing = "cannot use the configuration of the image";
        ImageConfig::of_base(&text).map_err(Failure::context(doing))
    }

    fn instruction(
        &mut self,
        progress: &mut Progress,
        instruction: &Instruction,
    ) -> Result<(), Ended> {
        match &instruction.action {
            Action::Arg(text) => Ok(self.declare(progress, text)?),
            Action::Run(command) => self.run(progress, command, instruction),
            Action::Copy(request) => self.copy(progress, request),
            action => {
                self.configure(progress, action)?;
                progress.tell(&nop(&instruction.text), true);
                Ok(())
            }
        }
    }

    fn declare(&mut self, progress: &mut Progress, text: &str) -> Result<(), Failure> {
        for word in self.words(progress, text)? {
            let (name, default) = match word.split_once('=') {
                Some((name, default)) => (name.to_owned(), Some(default.to_owned())),
                None => (word, None),
            };
            self.asked_for.insert(name.clone());
            let given = self.given.get(&name).cloned();
            let value = given
                .or(default)
                .or_else(|| self.global.get(&name).cloned());
            progress.args.retain(|(other, _)| *other != name);
            if let Some(value) = value {
                progress.args.push((name, value));
            }
        }
        Ok(())
    }

    fn words(&self, progress: &Progress, text: &str) -> Result<Vec<String>, Failure> {
        expand::words(text, self.file.escape, &|name| progress.lookup(name)).map_err(unread)
    }

    fn one(&self, progress: &Progress, text: &str) -> Result<String, Failure> {
        expand::one(text, self.file.escape, &|name| progress.lookup(name)).map_err(unread)
    }

    fn configure(&self, progress: &mut Progress, action: &Action) -> Result<(), Failure> {
        let mut config = progress.config.config.clone();
        match action {
            Action::Env(text) => {
                for (name, value) in self.pairs(progress, "ENV", text)? {
                    config.set_env(&name, &value);
                }
            }
            Action::Label(text) => config.labels.extend(self.pairs(progress, "LABEL", text)?),
            Action::User(text) => config.user = self.one(progress, text)?,
            Action::Workdir(text) => {
                let dir = config.working_dir().join(self.one(progress, text)?);
                config.working_dir = Path::new("/").join(copy::clean(&dir)).display().to_string();
            }
            Action::Expose(text) => {
                for word in self.words(progress, text)? {
                    let read = port(&word);
                    let read =
                        read.map_err(|expected| Failure::runner(format!("{word}: {expected}")))?;
                    config.exposed_ports.insert(read, Empty {});
                }
            }
            Action::Entrypoint(command) => {
                config.entrypoint = with_shell(&config, command);
                // It was meant for another entry point.
                config.cmd = Vec::new();
            }
            Action::Cmd(command) => config.cmd = with_shell(&config, command),
            Action::Volume(words) => {
                let words = words.expand(self.file.escape, &|name| progress.lookup(name));
                let words = words.map_err(unread)?;
                config
                    .volumes
                    .extend(words.into_iter().map(|word| (word, Empty {})));
            }
            Action::Shell(list) => config.shell.clone_from(list),
            Action::StopSignal(text) => {
                let signal = self.one(progress, text)?;
                let read = signal.parse::<Signal>();
                read.map_err(|error| Failure::runner(format!("{signal}: {error}")))?;
                config.stop_signal = signal;
            }
            Action::Healthcheck(check) => config.healthcheck = Some(healthcheck(check)),
            Action::Maintainer(text) => progress.config.author = Some(text.clone()),
            Action::Arg(_) | Action::Run(_) | Action::Copy(_) => unreachable!("done elsewhere"),
        }
        progress.config.config = config;
        Ok(())
    }

    /// `NAME=VALUE` several times, or a name and the rest of the line.
    fn pairs(
        &self,
        progress: &Progress,
        instruction: &str,
        text: &str,
    ) -> Result<Vec<(String, String)>, Failure> {
        let (first, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        if !first.contains('=') {
            if rest.is_empty() {
                return Err(Failure::runner(format!(
                    "{instruction} {first} has no value"
                )));
            }
            return Ok(vec![(
                self.one(progress, first)?,
                self.one(progress, rest.trim())?,
            )]);
        }
        let pair = |word: String| match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(Failure::runner(format!(
                "{instruction}: expected NAME=VALUE, found {word:?}"
            ))),
        };
        self.words(progress, text)?.into_iter().map(pair).collect()
    }

    fn run(
        &mut self,
        progress: &mut Progress,
        command: &Command,
        instruction: &Instruction,
    ) -> Result<(), Ended> {
        let words = with_shell(&progress.config.config, command);
        let args: Vec<_> = progress
            .args
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let told = match args.len() {
            0 => words.join(" "),
            count => format!("|{count} {} {}", args.join(" "), words.join(" ")),
        };
        if self.take_cached(progress, &told)? {
            return Ok(());
        }
        let container = self.container(progress)?;
        let mounted = self.workshop.mount(&container.container)?;
        let proxies = proxies(&self.given);
        let env = proxies.into_iter().chain(progress.args.iter().cloned());
        let env = env.map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let request = ContainerRequest {
            source: Source::Directory {
                dir: mounted.path(),
                in_place: true,
                command: words.into_iter().map(OsString::from).collect(),
            },
            name: None,
            hostname: None,
            labels: BTreeMap::new(),
            network: self.args.network.clone(),
            publish: Vec::new(),
            publish_all: false,
            volumes: Vec::new(),
            read_only: false,
            host_root: true,
            remove: true,
            env: Vec::new(),
            entrypoint: None,
            workdir: None,
            user: None,
            terminal: false,
            open_stdin: false,
            init: false,
            capabilities: Capabilities::DEFAULT,
            no_new_privs: false,
            seccomp: Seccomp::Default,
            limits: self.limits,
        };
        // ENV goes before ARG.
        let mut config = progress.config.config.clone();
        let of_config = std::mem::take(&mut config.env);
        let of_config = of_config.iter().filter_map(|entry| {
            let (name, value) = entry.split_once('=')?;
            Some((OsString::from(name), OsString::from(value)))
        });
        let request = ContainerRequest {
            env: env.chain(of_config).collect(),
            ..request
        };
        let code = self.foreground(&mounted, &config, request)?;
        drop(mounted);
        if code != 0 {
            return Err(self.command_failed(&instruction.text, instruction.line, code));
        }
        Ok(self.keep(progress, &container, &told)?)
    }

    fn foreground(
        &self,
        mounted: &Mounted,
        config: &RunConfig,
        request: ContainerRequest,
    ) -> Result<u8, Failure> {
        let doing = "cannot take signals";
        let mask = SigSet::thread_get_mask().map_err(Failure::context(doing))?;
        let signals = Signals::block()?;
        let attach = Attach {
            stdin: false,
            stdout: !self.args.quiet,
            stderr: !self.args.quiet,
        };
        let filter = self.filter.clone();
        let ended = self
            .workshop
            .run_in(mounted, config, request, attach, filter, |launch, _| {
                let (events, ends, monitor) = launch.into_parts();
                let ends =
                    ends.ok_or_else(|| Failure::runner("no pipes were made for the foreground"))?;
                let outcome = Foreground::new(signals, events, ends, false)?.serve();
                monitor.wait();
                match outcome? {
                    Outcome::Exited(code) => Ok(code as u8),
                    Outcome::Unread => Err(Failure::runner("nobody reads what the command writes")),
                    Outcome::Lost => Err(Failure::runner("the command's monitor was killed")),
                }
            });
        mask.thread_set_mask().map_err(Failure::context(doing))?;
        ended
    }

    fn copy(&mut self, progress: &mut Progress, request: &Copy) -> Result<(), Ended> {
        let words = request
            .words
            .expand(self.file.escape, &|name| progress.lookup(name));
        let words = words.map_err(unread)?;
        let [sources @ .., dest] = &words[..] else {
            return Err(Failure::runner("it takes a source and a destination").into());
        };
        let origin = self.origin(progress, request)?;
        let chown = request
            .chown
            .as_ref()
            .map(|owner| self.one(progress, owner))
            .transpose()?;
        let (from, left_out): (&OwnedFd, &dyn LeftOut) = match &origin {
            Some(origin) => (&origin.root, &Nothing),
            None => (&self.context, &self.ignore),
        };
        let workdir = progress.config.config.working_dir();
        let mut copy_request = CopyRequest {
            from,
            base: Path::new("/"),
            sources,
            dest,
            workdir: &workdir,
            changes: Changes {
                owner: (origin.is_none() && chown.is_none()).then_some((0, 0)),
                mode: request.chmod,
                modified: None,
            },
            unpack: request.unpack,
            left_out,
            owners: self.workshop.owners,
        };
        let content = copy::digest(&copy_request)?;
        let kind = if request.unpack { "ADD" } else { "COPY" };
        // With values: another argument may mean another owner.
        let chown_told = chown.as_ref().map(|owner| format!("--chown={owner} "));
        let chown_told = chown_told.unwrap_or_default();
        let content = content.hex();
        let told = format!("/bin/sh -c #(nop) {kind} {chown_told}{content} in {dest}");
        if self.take_cached(progress, &told)? {
            return Ok(());
        }
        let container = self.container(progress)?;
        let mounted = self.workshop.mount(&container.container)?;
        let root = mounted.open()?;
        if let Some(chown) = &chown {
            copy_request.changes.owner = Some(copy::owner(chown, &root)?);
        }
        copy::copy(&copy_request, &root)?;
        drop((root, mounted));
        Ok(self.keep(progress, &container, &told)?)
    }

    /// Where `--from` leads.
    fn origin(&self, progress: &Progress, request: &Copy) -> Result<Option<Origin>, Failure> {
        let Some(from) = &request.from else {
            return Ok(None);
        };
        let from = self.one(progress, from)?;
        let id = match self.stage_image(&from) {
            Some(id) => id.clone(),
            None => self.provide(&from)?,
        };
        let passing = Passing::of_image(self.workshop, &id, self.config_of(&id)?)?;
        let mounted = self.workshop.mount(&passing.container)?;
        Ok(Some(Origin {
            root: mounted.open()?,
            _mounted: mounted,
            _passing: passing,
        }))
    }

    /// A container to carry out a step in.
    fn container(&self, progress: &Progress) -> Result<Passing, Failure> {
        match &progress.image {
            Some(id) => Passing::of_image(self.workshop, id, progress.config.clone()),
            None => Passing::of_nothing(self.workshop, progress.config.clone()),
        }
    }

    /// Makes an image of what a step has done.
    fn keep(
        &self,
        progress: &mut Progress,
        container: &Passing,
        told: &str,
    ) -> Result<(), Failure> {
        let mut container = container.container.clone();
        container.created_by = Some(told.to_owned());
        let request = CommitRequest {
            timestamp: self.args.timestamp,
            // So that the next build finds it by its place.
            keep_empty: true,
            ..CommitRequest::default()
        };
        let Self { workshop, .. } = self;
        let image = commit(
            &workshop.working,
            &workshop.images,
            &container,
            request,
            &mut warn,
        )?;
        progress.config = self.config_of(&image.id)?;
        progress.image = Some(image.id.clone());
        progress.is_current = true;
        progress.cached = false;
        self.say(&format!("--> {}", image.id.short()))
    }

    /// Goes on with the image that the same step has made before, if it has.
    fn take_cached(&self, progress: &mut Progress, told: &str) -> Result<bool, Failure> {
        if !progress.cached {
            return Ok(false);
        }
        let mut expected = progress.config.clone();
        expected.history.push(Step {
            created_by: Some(told.to_owned()),
            ..Step::default()
        });
        let found = self.made_before(&expected, |found| {
            let layers = &expected.rootfs.diff_ids;
            found.rootfs.diff_ids.len() == layers.len() + 1
                && found.rootfs.diff_ids.starts_with(layers)
        })?;
        let Some((id, config)) = found else {
            // What comes after something new is new.
            progress.cached = false;
            return Ok(false);
        };
        progress.config = config;
        progress.is_current = true;
        self.say(&format!("--> Using cache {}", id.hex()))?;
        self.say(&format!("--> {}", id.short()))?;
        progress.image = Some(id);
        Ok(true)
    }

    /// An image that says the same, at whatever time it was made.
    fn made_before(
        &self,
        expected: &ImageConfig,
        has_layers: impl Fn(&ImageConfig) -> bool,
    ) -> Result<Option<(Digest, ImageConfig)>, Failure> {
        for image in self.workshop.images.list()? {
            let config = self.config_of(&image.id)?;
            if has_layers(&config) && config.is_like(expected) {
                return Ok(Some((image.id, config)));
            }
        }
        Ok(None)
    }

    /// The stage's image, with the names that the last one has.
    fn finish(&self, mut progress: Progress, is_last: bool) -> Result<Digest, Ended> {
        if is_last && !self.args.labels.is_empty() {
            let labels = self.args.labels.iter().cloned();
            progress.config.config.labels.extend(labels);
            progress.is_current = false;
        }
        if !progress.is_current && progress.cached && progress.image.is_some() {
            let expected = &progress.config;
            let same = |found: &ImageConfig| found.rootfs.diff_ids == expected.rootfs.diff_ids;
            if let Some((id, _)) = self.made_before(expected, same)? {
                progress.image = Some(id);
                progress.is_current = true;
            }
        }
        let id = match progress.image.clone().filter(|_| progress.is_current) {
            Some(id) => id,
            None => {
                let container = self.container(&progress)?;
                let request = CommitRequest {
                    timestamp: self.args.timestamp,
                    config_only: true,
                    is_told: true,
                    ..CommitRequest::default()
                };
                let Self { workshop, .. } = self;
                let (working, images) = (&workshop.working, &workshop.images);
                commit(working, images, &container.container, request, &mut warn)?.id
            }
        };
        if !is_last {
            self.say(&format!("--> {}", id.short()))?;
            return Ok(id);
        }
        let first = self.names.first().map(|name| format!(" {name}"));
        self.say(&format!("COMMIT{}", first.unwrap_or_default()))?;
        self.say(&format!("--> {}", id.short()))?;
        for name in &self.names {
            self.workshop.images.tag(&id, name)?;
            self.say(&format!("Successfully tagged {name}"))?;
        }
        Ok(id)
    }
}

/// The tree of an image that files are copied from.
struct Origin {
    root: OwnedFd,
    _mounted: Mounted,
    _passing: Passing,
}

impl Progress {
    /// Variables for instructions: those of the image go before arguments.
    fn lookup(&self, name: &str) -> Option<String> {
        let env = self.config.config.env.iter();
        let of_env = env
            .filter_map(|entry| entry.split_once('='))
            .find(|(key, _)| *key == name);
        let of_args = || self.args.iter().find(|(key, _)| key == name);
        of_env
            .map(|(_, value)| value.to_owned())
            .or_else(|| of_args().map(|(_, value)| value.clone()))
    }

    /// Adds a step to the history.
    fn tell(&mut self, created_by: &str, empty_layer: bool) {
        self.is_current = false;
        self.config.history.push(Step {
            created: Some(jiff::Timestamp::now().to_string()),
            created_by: Some(created_by.to_owned()),
            author: self.config.author.clone(),
            comment: None,
            empty_layer,
        });
    }
}

fn unread(error: ExpandError) -> Failure {
    Failure::runner(error.to_string())
}

/// How histories tell a step that runs nothing.
fn nop(text: &str) -> String {
    format!("/bin/sh -c #(nop) {text}")
}

/// A line is for the shell that SHELL names.
fn with_shell(config: &RunConfig, command: &Command) -> Vec<String> {
    match command {
        Command::Exec(list) => list.clone(),
        Command::Line(line) if line.is_empty() => Vec::new(),
        Command::Line(line) => {
            let mut words = match &config.shell[..] {
                [] => ["/bin/sh", "-c"].map(str::to_owned).into(),
                shell => shell.to_vec(),
            };
            words.push(line.clone());
            words
        }
    }
}

fn healthcheck(check: &Option<Check>) -> Healthcheck {
    let Some(check) = check else {
        return Healthcheck {
            test: vec!["NONE".to_owned()],
            ..Healthcheck::default()
        };
    };
    let (kind, words) = match &check.command {
        Command::Exec(list) => ("CMD", list.clone()),
        Command::Line(line) => ("CMD-SHELL", vec![line.clone()]),
    };
    Healthcheck {
        test: std::iter::once(kind.to_owned()).chain(words).collect(),
        ..check.timing.clone()
    }
}

/// Arguments that need no ARG.
fn proxies(given: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let given = given.iter().filter(|(name, _)| is_proxy(name));
    given
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

pub fn is_proxy(name: &str) -> bool {
    const NAMES: [&str; 4] = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy"];
    NAMES.contains(&name.to_ascii_lowercase().as_str())
}
