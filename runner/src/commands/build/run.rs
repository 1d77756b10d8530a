//! RUN: a command in a container of the stage's tree.

use std::collections::BTreeMap;
use std::ffi::OsString;

use nix::sys::signal::SigSet;

use super::configure::with_shell;
use super::stage::Progress;
use super::{Build, Ended};
use crate::build::config::RunConfig;
use crate::build::containerfile::{Command, Instruction};
use crate::build::tree::Mounted;
use crate::engine::{Attach, ContainerRequest, Source};
use crate::failure::Failure;
use crate::process::foreground::{Foreground, Outcome, Signals};

impl Build<'_> {
    /// Carries out RUN.
    pub fn run(
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
        let source = Source::Directory {
            dir: mounted.path(),
            in_place: true,
            command: words.into_iter().map(OsString::from).collect(),
        };
        let request = ContainerRequest {
            network: self.args.network.clone(),
            ..ContainerRequest::new(source, self.limits)
        };
        let mut config = progress.config.config.clone();
        // ENV goes before ARG.
        config.env.splice(0..0, proxies(&self.given).chain(args));
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
}

/// Arguments that need no ARG, as `NAME=VALUE`.
fn proxies(given: &BTreeMap<String, String>) -> impl Iterator<Item = String> {
    let given = given.iter().filter(|(name, _)| is_proxy(name));
    given.map(|(name, value)| format!("{name}={value}"))
}

pub fn is_proxy(name: &str) -> bool {
    const NAMES: [&str; 4] = ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy"];
    NAMES.contains(&name.to_ascii_lowercase().as_str())
}
