//! RUN: a command in a container of the stage's tree.

use std::collections::BTreeMap;
use std::ffi::OsString;

use nix::sys::signal::SigSet;

use super::configure::with_shell;
use super::mounts::script_path;
use super::stage::Progress;
use super::{Build, Ended};
use crate::build::config::RunConfig;
use crate::build::containerfile::{Instruction, Run};
use crate::build::tree::Mounted;
use crate::engine::{Attach, ContainerRequest, Network, Source};
use crate::failure::Failure;
use crate::process::foreground::{Foreground, Outcome, Signals};

impl Build<'_> {
    /// Carries out RUN.
    pub fn run(
        &mut self,
        progress: &mut Progress,
        run: &Run,
        instruction: &Instruction,
    ) -> Result<(), Ended> {
        let (asked, told_mounts) = self.asked(progress, run)?;
        let words = match &run.script {
            Some(script) => vec![script_path(script).display().to_string()],
            None => with_shell(&progress.config.config, &run.command),
        };
        let args: Vec<_> = progress
            .args
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let told = match args.len() {
            0 => words.join(" "),
            count => format!("|{count} {} {}", args.join(" "), words.join(" ")),
        };
        let told = told + &told_mounts;
        if self.take_cached(progress, &told)? {
            return Ok(());
        }
        let mut mounts = self.mount(progress, asked, run.script.as_ref())?;
        let container = self.container(progress)?;
        let mounted = self.workshop.mount(&container.container)?;
        let source = Source::Directory {
            dir: mounted.path(),
            in_place: true,
            command: words.into_iter().map(OsString::from).collect(),
        };
        let request = ContainerRequest {
            network: match run.offline {
                true => Network::None,
                false => self.args.network.clone(),
            },
            volumes: std::mem::take(&mut mounts.volumes),
            env: std::mem::take(&mut mounts.env),
            ..ContainerRequest::new(source, self.limits)
        };
        let mut config = progress.config.config.clone();
        // ENV goes before ARG.
        config.env.splice(0..0, proxies(&self.given).chain(args));
        let code = self.foreground(&mounted, &config, request)?;
        drop((mounted, mounts));
        if code != 0 {
            return Err(self.command_failed(&instruction.text, instruction.line, code));
        }
        Ok(self.keep(progress, container, &told)?)
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
                    Outcome::Exited(code) | Outcome::Restarting(code) => Ok(code as u8),
                    Outcome::Unread => Err(Failure::runner("nobody reads what the command writes")),
                    Outcome::Lost => Err(Failure::runner("the command's monitor was killed")),
                    Outcome::Detached | Outcome::DetachedBy(_) => {
                        unreachable!("no way to leave it was asked for")
                    }
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
