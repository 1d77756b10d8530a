//! The command lines: a file for each name that this program answers to. Each reads its flags into
//! the one checked [`Config`], so that nothing else depends on the name.
//!
//! The name is that of `argv[0]`, as of a link `slirp4netns -> coracle-net`, or the first word of
//! coracle-net's own arguments: `coracle-net slirp4netns …`. `hook` and `status` are first
//! words only.
//!
//! Only [`main`] prints errors and picks exit codes; `start` brings up what the configuration says.

mod coracle_net;
mod hook;
mod network_args;
mod pasta;
mod pesto;
mod slirp4netns;
mod status;

use std::env;
use std::ffi::{CStr, OsStr, OsString};
use std::fmt::Display;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};
use clap::{CommandFactory, Parser};

use crate::config::{Config, ConfigError};
use crate::core::MacAddr;
use crate::logging::{self, Filter};
use crate::start::{self, StartError};

/// A host port cannot be bound; as container engines have it, "the container could not be started".
const EXIT_PORT: u8 = 126;
const EXIT_FAILURE: u8 = 1;

/// Runs the helper with the process's arguments until it is told to end.
pub fn main() -> ExitCode {
    let (name, words) = Name::called(env::args_os().collect());
    // The kernel takes the name from the file that was executed, which may be /proc/self/exe.
    // Threads have their own.
    let _ = rustix::thread::set_name(name.in_ps());
    match name.run(words) {
        Ok(code) => code,
        Err(Failure::Words(error)) => name.usage(&error),
        Err(error) => name.fail(&error, error.exit_code()),
    }
}

/// The command line, with that of each other name as a command of its own, for documents.
pub fn command() -> clap::Command {
    coracle_net::Args::command()
        .subcommand(hook::Args::command())
        .subcommand(slirp4netns::Args::command())
        .subcommand(pasta::Args::command())
        .subcommand(pesto::command())
        .subcommand(status::Args::command())
}

/// A name that this program answers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    CoracleNet,
    Hook,
    Slirp4netns,
    Pasta,
    Pesto,
    Status,
}

/// Why the program does not do what it was called for, or not any more.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Help, too, is an answer of this kind.
    #[error(transparent)]
    Words(#[from] clap::Error),
    #[error(transparent)]
    Values(#[from] ConfigError),
    #[error(transparent)]
    Slirp4netnsValues(#[from] slirp4netns::ArgsError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Hook(#[from] hook::HookError),
    #[error(transparent)]
    Pasta(#[from] pasta::LifeError),
    #[error(transparent)]
    Pesto(#[from] pesto::PestoError),
    #[error(transparent)]
    Status(#[from] status::StatusError),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Start(StartError::Bind(_)) => EXIT_PORT,
            _ => EXIT_FAILURE,
        }
    }
}

impl Name {
    const ALL: [Self; 6] = [
        Self::CoracleNet,
        Self::Hook,
        Self::Slirp4netns,
        Self::Pasta,
        Self::Pesto,
        Self::Status,
    ];

    /// The name that the program was called by, and its words without any other.
    fn called(mut words: Vec<OsString>) -> (Self, Vec<OsString>) {
        let file = words.first().and_then(|word| Path::new(word).file_name());
        let called = file.and_then(Self::of);
        let called = called.filter(|name| !matches!(name, Self::Hook | Self::Status));
        let called = called.unwrap_or(Self::CoracleNet);
        match words.get(1).and_then(|word| Self::of(word)) {
            Some(name) if called == Self::CoracleNet => {
                words.remove(0);
                (name, words)
            }
            _ => (called, words),
        }
    }

    fn of(word: &OsStr) -> Option<Self> {
        Self::ALL.into_iter().find(|name| word == name.word())
    }

    fn word(self) -> &'static str {
        match self {
            Self::CoracleNet => "coracle-net",
            Self::Hook => "hook",
            Self::Slirp4netns => "slirp4netns",
            Self::Pasta => "pasta",
            Self::Pesto => "pesto",
            Self::Status => "status",
        }
    }

    /// What errors begin with.
    fn title(self) -> &'static str {
        match self {
            Self::Hook => "coracle-net hook",
            Self::Status => "coracle-net status",
            name => name.word(),
        }
    }

    /// What `ps`, `top` and `ss` show, and scripts look for. 15 bytes at most (TASK_COMM_LEN).
    fn in_ps(self) -> &'static CStr {
        match self {
            Self::CoracleNet | Self::Hook | Self::Status => c"coracle-net",
            Self::Slirp4netns => c"slirp4netns",
            Self::Pasta => c"pasta",
            Self::Pesto => c"pesto",
        }
    }

    fn run(self, words: Vec<OsString>) -> Result<ExitCode, Failure> {
        match self {
            Self::CoracleNet => {
                let config = coracle_net::Args::try_parse_from(words)?.try_into()?;
                log_to_stderr();
                coracle_net::warn_of_hidden(&config);
                serve(config)
            }
            Self::Hook => Ok(hook::run(hook::Args::try_parse_from(words)?)?),
            Self::Slirp4netns => {
                let config = slirp4netns::Args::try_parse_from(words)?.try_into()?;
                log_to_stderr();
                slirp4netns::announce(&config);
                serve(config)
            }
            Self::Pasta => Ok(pasta::run(
                pasta::Args::try_parse_from(&words)?,
                &words[1..],
            )?),
            Self::Pesto => {
                pesto::Request::read(words)?.carry_out(&mut io::stdout().lock())?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Status => {
                status::Args::try_parse_from(words)?.carry_out(&mut io::stdout().lock())?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }

    fn fail(self, error: &impl Display, code: u8) -> ExitCode {
        eprintln!("{}: {error}", self.title());
        ExitCode::from(code)
    }

    /// Help and version are answers; anything else is an error in this program's own form.
    fn usage(self, error: &clap::Error) -> ExitCode {
        if matches!(
            error.kind(),
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
        ) {
            // A closed pipe is no failure of ours.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        // As getopt has it: callers try again without an option that is not known.
        if !matches!(self, Self::CoracleNet | Self::Hook | Self::Status)
            && error.kind() == ErrorKind::UnknownArgument
            && let Some(option) = error.get(ContextKind::InvalidArg)
        {
            return self.fail(&format!("unrecognized option '{option}'"), EXIT_FAILURE);
        }
        let text = error.render().to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        eprint!("{}: {text}", self.title());
        ExitCode::from(EXIT_FAILURE)
    }
}

/// As `CORACLE_LOG` says.
fn log_to_stderr() {
    let filter = Filter::from_environment().unwrap_or_else(|error| {
        eprintln!("coracle-net: {}: {error}", logging::VARIABLE);
        Filter::default()
    });
    logging::to_stderr(&filter);
}

fn serve(config: Config) -> Result<ExitCode, Failure> {
    start::run(config, || Ok(()))?;
    Ok(ExitCode::SUCCESS)
}

/// Reads an Ethernet address.
fn mac(text: &str) -> Result<MacAddr, &'static str> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    bytes
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or("expected six bytes in hexadecimal, as in 52:54:00:12:34:56")
}

#[cfg(test)]
mod tests {
    use portfwd::BindError;

    use super::*;
    use crate::guest::GuestThreadEnded;

    #[test]
    fn the_program_goes_by_its_name_or_by_its_first_word() {
        for (line, name, first) in [
            ("coracle-net 42", Name::CoracleNet, Some("42")),
            ("/usr/bin/coracle-net", Name::CoracleNet, None),
            ("/proc/self/exe 42", Name::CoracleNet, Some("42")),
            ("slirp4netns 42", Name::Slirp4netns, Some("42")),
            ("/opt/bin/slirp4netns -h", Name::Slirp4netns, Some("-h")),
            ("coracle-net slirp4netns -h", Name::Slirp4netns, Some("-h")),
            ("x slirp4netns", Name::Slirp4netns, None),
            ("/usr/bin/pasta 42", Name::Pasta, Some("42")),
            ("coracle-net pasta -f", Name::Pasta, Some("-f")),
            ("coracle-net pesto /s", Name::Pesto, Some("/s")),
            ("coracle-net hook -p", Name::Hook, Some("-p")),
            ("/etc/hook 42", Name::CoracleNet, Some("42")),
            (
                "slirp4netns coracle-net",
                Name::Slirp4netns,
                Some("coracle-net"),
            ),
            (
                "coracle-net ./slirp4netns",
                Name::CoracleNet,
                Some("./slirp4netns"),
            ),
        ] {
            let words = line.split_whitespace().map(OsString::from).collect();
            let (called, words) = Name::called(words);
            let first_found = words.get(1).and_then(|word| word.to_str());
            assert_eq!((called, first_found), (name, first), "{line}");
        }
    }

    #[test]
    fn only_a_port_clash_has_its_own_exit_code() {
        let port = StartError::Bind(BindError::InUse("127.0.0.1:80".parse().unwrap()));
        assert_eq!(Failure::from(port).exit_code(), 126);
        let other = StartError::Thread(GuestThreadEnded);
        assert_eq!(Failure::from(other).exit_code(), 1);
    }
}
