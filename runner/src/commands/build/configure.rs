//! Instructions that change the configuration only.

use std::path::Path;

use super::Build;
use super::stage::{Progress, unread};
use crate::build::config::{Empty, Healthcheck, RunConfig, port};
use crate::build::containerfile::{Action, Check, Command};
use crate::build::copy;
use crate::failure::Failure;
use crate::signal::Signal;

impl Build<'_> {
    /// Carries out an instruction that changes no file.
    pub fn configure(&self, progress: &mut Progress, action: &Action) -> Result<(), Failure> {
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
            Action::OnBuild(text) => config.on_build.push(text.clone()),
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
}

/// A line is for the shell that SHELL names.
pub fn with_shell(config: &RunConfig, command: &Command) -> Vec<String> {
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
