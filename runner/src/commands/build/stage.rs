//! The instructions of one stage, one after another.
//!
//! Each that changes files makes a layer, in a working container of its own, and an image that the
//! next goes on with.

use super::{Build, Ended};
use crate::build::commit::{CommitRequest, commit};
use crate::build::config::{ImageConfig, Step};
use crate::build::containerfile::{self, Action, Instruction};
use crate::build::expand::{self, ExpandError};
use crate::commands::workshop::{Passing, SCRATCH};
use crate::engine::Platform;
use crate::failure::Failure;
use crate::images::digest::Digest;
use crate::process::foreground::warn;
use crate::spec::DEFAULT_PATH;

/// How far a stage is.
pub struct Progress {
    /// The image so far; none at the beginning of one that is made of nothing.
    pub image: Option<Digest>,
    /// With all that is not in the image yet.
    pub config: ImageConfig,
    /// Whether the image says all that the configuration does.
    pub is_current: bool,
    /// Whether what comes next may have been made before.
    pub cached: bool,
    /// Arguments that were declared, with their values.
    pub args: Vec<(String, String)>,
    /// Whether all steps are to be one layer: they go on in one container then.
    pub one_layer: bool,
    /// That container, between the steps.
    whole: Option<Passing>,
}

/// A failure with the line that it happened at.
type AtLine<T> = Result<T, (usize, Ended)>;

impl Build<'_> {
    /// Goes through a stage, and returns its image.
    pub fn stage(&mut self, number: usize, is_last: bool) -> AtLine<Digest> {
        let file = self.file;
        let stage = &file.stages[number];
        let prefix = match file.stages.len() {
            1 => String::new(),
            stages => format!("[{}/{stages}] ", number + 1),
        };
        let step = |index: usize, count: usize, text: &str| {
            format!("{prefix}STEP {}/{}: {text}", index + 1, count + 1)
        };
        let at = |line: usize| move |ended: Ended| (line, ended);
        let said = self.say(&step(0, stage.instructions.len(), &stage.text));
        said.map_err(Ended::from).map_err(at(stage.line))?;
        let mut progress = self.begin(number).map_err(at(stage.line))?;
        progress.one_layer = !self.args.layers || (is_last && self.args.squashes());
        let triggers = self.triggers(&mut progress, stage.line);
        let mut instructions = triggers.map_err(Ended::from).map_err(at(stage.line))?;
        instructions.extend(stage.instructions.iter().cloned());
        let count = instructions.len();
        for (index, instruction) in instructions.iter().enumerate() {
            let done = self
                .say(&step(index + 1, count, &instruction.text))
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
        Ok(Progress {
            is_current: id.is_some(),
            image: id,
            config,
            cached: !self.args.no_cache,
            args: Vec::new(),
            one_layer: false,
            whole: None,
        })
    }

    /// What the stage's image has for those that are made of it, and this one has no more.
    fn triggers(&self, progress: &mut Progress, line: usize) -> Result<Vec<Instruction>, Failure> {
        let on_build = std::mem::take(&mut progress.config.config.on_build);
        progress.is_current &= on_build.is_empty();
        let mut triggers = Vec::new();
        for text in on_build {
            let read = containerfile::parse_trigger(&text, self.file.escape);
            let refused = |defect| Failure::runner(format!("ONBUILD {text}: {defect}"));
            triggers.extend(read.map_err(refused)?);
        }
        for trigger in &mut triggers {
            trigger.line = line;
        }
        Ok(triggers)
    }

    pub fn provide(&self, image: &str) -> Result<Digest, Failure> {
        let (engine, args) = (&self.workshop.engine, self.args);
        let name =
            crate::commands::pull::provide(engine, image, args.pull, &args.registry, args.quiet)?;
        Ok(self.workshop.images.find(&name)?.0.id)
    }

    pub fn config_of(&self, id: &Digest) -> Result<ImageConfig, Failure> {
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
            Action::Run(run) => self.run(progress, run, instruction),
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

    pub fn words(&self, progress: &Progress, text: &str) -> Result<Vec<String>, Failure> {
        expand::words(text, self.file.escape, &|name| progress.lookup(name)).map_err(unread)
    }

    pub fn one(&self, progress: &Progress, text: &str) -> Result<String, Failure> {
        expand::one(text, self.file.escape, &|name| progress.lookup(name)).map_err(unread)
    }

    /// A container to carry out a step in.
    pub fn container(&self, progress: &mut Progress) -> Result<Passing, Failure> {
        if let Some(whole) = progress.whole.take() {
            return Ok(whole);
        }
        Passing::begin(
            self.workshop,
            progress.image.as_ref(),
            progress.config.clone(),
        )
    }

    /// The stage's image, with the names that the last one has.
    fn finish(&self, mut progress: Progress, is_last: bool) -> Result<Digest, Ended> {
        if is_last && !self.args.labels.is_empty() {
            let labels = self.args.labels.iter().cloned();
            progress.config.config.labels.extend(labels);
            progress.is_current = false;
        }
        if progress.one_layer && (progress.whole.is_some() || is_last && self.args.squash_all) {
            self.keep_as_one(&mut progress, is_last && self.args.squash_all)?;
        }
        if !progress.is_current
            && progress.cached
            && progress.image.is_some()
            && let Some((id, _)) = self.made_before(&progress.config, 0)?
        {
            progress.image = Some(id);
            progress.is_current = true;
        }
        let id = match progress.image.clone().filter(|_| progress.is_current) {
            Some(id) => id,
            None => {
                let container = self.container(&mut progress)?;
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

impl Progress {
    /// Goes on in this container with the next step.
    pub fn go_on_in(&mut self, container: Passing) {
        self.whole = Some(container);
    }

    /// Variables for instructions: those of the image go before arguments.
    pub fn lookup(&self, name: &str) -> Option<String> {
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
    pub fn tell(&mut self, created_by: &str, empty_layer: bool) {
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

pub fn unread(error: ExpandError) -> Failure {
    Failure::runner(error.to_string())
}

/// How histories tell a step that runs nothing.
fn nop(text: &str) -> String {
    format!("/bin/sh -c #(nop) {text}")
}
