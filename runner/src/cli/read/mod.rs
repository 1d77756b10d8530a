//! From words to a [`Cli`], and from clap's errors to one line each.
//!
//! Clap says what is wrong over several lines, with advice that is a guess. Here a line names the
//! command and the option, and tells a name that other engines have ([`elsewhere`]) from a slip of
//! the finger.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Command as Definition, CommandFactory, Error, FromArgMatches};

use super::elsewhere::{self, nearest};
use super::values::Switch;
use super::{
    Chosen, Cli, Command, ImageCommand, InspectKind, NetworkCommand, SaveFormat, SystemArgs,
    SystemCommand, VolumeCommand,
};
use crate::failure::Failure;

/// Why there is no [`Cli`].
#[derive(Debug)]
pub enum Unread {
    /// Help or a version, to be printed as it is.
    Answer(Error),
    Wrong(Failure),
}

/// Reads the words of the command line, the program's name first.
pub fn read(words: &[OsString]) -> Result<Cli, Unread> {
    let cli = definition()
        .try_get_matches_from(words)
        .and_then(|matches| Cli::from_arg_matches(&matches))
        .map_err(|error| explain(&error, words))?;
    cli.command
        .check()
        .map_err(|message| Unread::Wrong(Failure::runner(message)))?;
    Ok(cli)
}

/// The command line as it is parsed. As with Podman, the last of two equal options counts, and
/// every switch is a [`Switch`], those that are off at first among them.
fn definition() -> Definition {
    with_values(Cli::command().args_override_self(true))
}

fn with_values(command: Definition) -> Definition {
    command
        .mut_args(|arg| match arg.get_action() {
            ArgAction::SetTrue => arg.switch().default_value("false"),
            _ => arg,
        })
        .mut_subcommands(with_values)
}

impl Command {
    /// What the definition cannot say, since it takes a switch that is off for one that was given.
    fn check(&self) -> Result<(), String> {
        match self {
            Self::Run(run) if run.detach && !run.attach.is_empty() => {
                Err("--detach and --attach cannot be given together".into())
            }
            Self::Run(run) if run.detach && run.leave.detach_keys.is_some() => {
                Err("--detach and --detach-keys cannot be given together".into())
            }
            Self::Run(run) => run.container.check(),
            Self::Create(create) => create.container.check(),
            Self::Start(args) => {
                let attach = args.attach || args.interactive;
                if attach && (args.all || args.chosen.containers.len() > 1) {
                    return Err("start attaches to one container at a time".into());
                }
                if !attach && (args.sig_proxy == Some(true) || args.leave.detach_keys.is_some()) {
                    return Err(
                        "--sig-proxy and --detach-keys go with --attach or --interactive".into(),
                    );
                }
                check_chosen("start", &args.chosen, args.all)
            }
            Self::Restart(args) => match (&args.chosen.containers[..], args.running) {
                ([], true) if !args.all && !args.chosen.latest => Ok(()),
                _ => check_chosen("restart", &args.chosen, args.all),
            },
            Self::Attach(args) if args.container.is_some() == args.latest => {
                Err("attach needs the name or id of a container, or --latest".into())
            }
            Self::Pause(args) => check_chosen("pause", &args.chosen, args.all),
            Self::Unpause(args) => check_chosen("unpause", &args.chosen, args.all),
            Self::Top(args) if args.words.is_empty() && !args.latest => {
                Err("top needs the name or id of a container, or --latest".into())
            }
            Self::Stats(args) if args.interval == 0 => {
                Err("stats looks once a second at the most: --interval is 1 or more".into())
            }
            Self::Stats(args) => match (&args.containers[..], args.latest, args.all) {
                ([_, ..], true, _) | ([_, ..], _, true) | (_, true, true) => {
                    Err("--all, --latest and names cannot be given together".into())
                }
                _ => Ok(()),
            },
            Self::Logs(args) if args.container.is_some() == args.latest => {
                Err("coracle logs needs the name or id of a container, or --latest".into())
            }
            Self::Wait(args) => match (&args.containers[..], args.latest) {
                ([], false) => Err("wait needs the name or id of a container, or --latest".into()),
                ([_, ..], true) => Err("--latest and names cannot be given together".into()),
                _ => Ok(()),
            },
            Self::Exec(exec) if exec.words.len() < 2 => Err(
                "exec needs a container and a command: coracle exec CONTAINER COMMAND [ARG]..."
                    .into(),
            ),
            Self::Copy(args) | Self::Add(args) if args.words.len() < 2 => {
                Err("a container and a source are needed: CONTAINER SOURCE [DESTINATION]".into())
            }
            Self::Update(args) => args.check(),
            Self::Umount(args) => check_selection("umount", &args.containers, args.all),
            Self::Ps(ps) if ps.quiet && ps.format.is_some() => {
                Err("--quiet and --format cannot be given together".into())
            }
            Self::Ps(ps) if ps.latest && ps.last.is_some() => {
                Err("--latest and --last cannot be given together".into())
            }
            Self::Inspect(args) => match (&args.names[..], args.latest) {
                ([], false) => Err("inspect needs the name of a container or an image".into()),
                ([_, ..], true) => Err("--latest and names cannot be given together".into()),
                (_, true) if args.kind == InspectKind::Image => {
                    Err("--latest is for containers".into())
                }
                _ => Ok(()),
            },
            Self::Stop(args) => check_selection("stop", &args.containers, args.all),
            Self::Kill(args) => check_selection("kill", &args.containers, args.all),
            Self::Rm(args) => check_selection("rm", &args.containers, args.all),
            Self::Rmi(args) | Self::Image(ImageCommand::Rm(args)) => {
                match (&args.images[..], args.all) {
                    ([], false) => Err("rmi needs the name or id of an image, or --all".into()),
                    ([_, ..], true) => {
                        Err("--all and names of images cannot be given together".into())
                    }
                    _ => Ok(()),
                }
            }
            Self::Images(args) | Self::Image(ImageCommand::Ls(args))
                if args.quiet && args.format.is_some() =>
            {
                Err("--quiet and --format cannot be given together".into())
            }
            Self::Volume(VolumeCommand::Rm(args)) => check_volumes("rm", &args.names, args.all),
            Self::Volume(VolumeCommand::Inspect(args)) => {
                check_volumes("inspect", &args.names, args.all)
            }
            Self::Volume(VolumeCommand::Ls(args)) if args.quiet && args.format.is_some() => {
                Err("--quiet and --format cannot be given together".into())
            }
            Self::Network(NetworkCommand::Ls(args)) if args.quiet && args.format.is_some() => {
                Err("--quiet and --format cannot be given together".into())
            }
            Self::System(SystemArgs {
                command: SystemCommand::Df(args),
            }) if args.verbose && args.format.is_some() => {
                Err("--verbose and --format cannot be given together".into())
            }
            Self::System(SystemArgs {
                command: SystemCommand::Check(args),
            }) if args.force && !args.repair => Err("--force goes with --repair".into()),
            Self::Login(args) if args.password.is_some() && args.password_stdin => {
                Err("--password and --password-stdin cannot be given together".into())
            }
            Self::Save(args) | Self::Image(ImageCommand::Save(args))
                if args.format == SaveFormat::OciDir && args.output.is_none() =>
            {
                Err("--format oci-dir needs a directory to make: --output DIR".into())
            }
            _ => Ok(()),
        }
    }
}

fn check_selection(command: &str, names: &[String], all: bool) -> Result<(), String> {
    match (names, all) {
        ([], false) => Err(format!(
            "{command} needs the name or id of a container, or --all"
        )),
        ([_, ..], true) => Err("--all and names of containers cannot be given together".into()),
        _ => Ok(()),
    }
}

/// One way to say which containers are meant.
fn check_chosen(command: &str, chosen: &Chosen, all: bool) -> Result<(), String> {
    let is_filtered = !chosen.filters.is_empty();
    match (&chosen.containers[..], all, chosen.latest, is_filtered) {
        ([], false, false, false) => Err(format!(
            "{command} needs the name or id of a container, or --all, --latest or --filter"
        )),
        ([_, ..], true, ..) | (_, true, true, _) => {
            Err("--all goes with neither names nor --latest".into())
        }
        ([_, ..], _, true, _) | ([_, ..], _, _, true) | (_, _, true, true) => {
            Err("names, --latest and --filter cannot be given together".into())
        }
        _ => Ok(()),
    }
}

fn check_volumes(command: &str, names: &[String], all: bool) -> Result<(), String> {
    match (names, all) {
        ([], false) => Err(format!(
            "volume {command} needs the name of a volume, or --all"
        )),
        ([_, ..], true) => Err("--all and names of volumes cannot be given together".into()),
        _ => Ok(()),
    }
}

fn explain(error: &Error, words: &[OsString]) -> Unread {
    let path = path_of(words);
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    match error.kind() {
        ErrorKind::DisplayVersion => Unread::Answer(help(&["--version"])),
        ErrorKind::DisplayHelp => Unread::Answer(help(&[&path[..], &["--help"]].concat())),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand if path.is_empty() => {
            Unread::Answer(help(&[]))
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Unread::Answer(help(&[&path[..], &["--help"]].concat()))
        }
        _ => Unread::Wrong(Failure::runner(one_line(error, &path, words))),
    }
}

/// Clap's own answer to `args`, from the definition without values of switches, which would only
/// lengthen it.
fn help(args: &[&str]) -> Error {
    Cli::command()
        .try_get_matches_from(std::iter::once(&"coracle").chain(args))
        .expect_err("help and versions are errors to clap")
}

/// The command that was typed, if it is one of ours, behind its group if it is in one.
fn path_of(words: &[OsString]) -> Vec<String> {
    let mut words = words.iter().skip(1).filter_map(|word| word.to_str());
    let mut path = Vec::new();
    let mut definition = Cli::command();
    while let Some(word) = words.next() {
        match word {
            // The one flag before it that there is, with its value. Any other is wrong, and no flag
            // of the command's.
            "--log-level" => drop(words.next()),
            "help" => {}
            word if word.starts_with("--log-level=") => {}
            word => match definition.find_subcommand(word) {
                Some(found) => {
                    path.push(found.get_name().to_owned());
                    definition = found.clone();
                }
                None => break,
            },
        }
    }
    path
}

/// The definition of a command.
fn defined(path: &[&str]) -> Definition {
    path.iter().fold(Cli::command(), |definition, name| {
        let found = definition.find_subcommand(name).cloned();
        found.unwrap_or(definition)
    })
}

/// As it is typed.
fn shown(path: &[&str]) -> String {
    [&["coracle"], path].concat().join(" ")
}

fn one_line(error: &Error, path: &[&str], words: &[OsString]) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    // `--signal <SIGNAL>` of an option, `[CONTAINER]...` of a positional.
    let arg = context(ContextKind::InvalidArg)
        .split([' ', '='])
        .next()
        .unwrap_or("");
    let option = arg
        .split('[')
        .next()
        .filter(|option| !option.is_empty())
        .unwrap_or(arg);
    let value = context(ContextKind::InvalidValue);
    let who = shown(path);
    match error.kind() {
        ErrorKind::UnknownArgument if arg.starts_with('-') => unknown_flag(arg, path, words),
        ErrorKind::UnknownArgument => format!("{who} has no use for {arg:?}"),
        ErrorKind::InvalidSubcommand => {
            unknown_command(path, context(ContextKind::InvalidSubcommand))
        }
        ErrorKind::InvalidValue if value.is_empty() => format!("{who}: {option} needs a value"),
        ErrorKind::InvalidValue => match error.get(ContextKind::ValidValue) {
            Some(ContextValue::Strings(valid)) => format!(
                "{who}: {value:?} cannot be the value of {option}; it may be {}",
                valid.join(" or ")
            ),
            _ => format!("{who}: {value:?} cannot be the value of {option}"),
        },
        ErrorKind::ValueValidation => {
            let reason = std::error::Error::source(error).map(ToString::to_string);
            let reason = reason.unwrap_or_default();
            format!("{who}: {value:?} cannot be the value of {option}: {reason}")
        }
        ErrorKind::MissingRequiredArgument => {
            let missing = match error.get(ContextKind::InvalidArg) {
                Some(ContextValue::Strings(args)) => args.join(" and "),
                _ => arg.to_owned(),
            };
            format!("{who} needs {missing}; `{who} --help` tells more")
        }
        // Clap's first line, which is a sentence of its own.
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            format!("{who}: {}", line.strip_prefix("error: ").unwrap_or(line))
        }
    }
}

fn unknown_command(path: &[&str], name: &str) -> String {
    let who = shown(path);
    if elsewhere::has_command(path.first().copied(), name) {
        return format!("{who} does not have `{name}` yet; `{who} --help` lists what it has");
    }
    let definition = defined(path);
    let ours = definition.get_subcommands().map(Definition::get_name);
    match nearest(name, ours) {
        Some(near) => format!("{who} has no command `{name}`; did you mean `{near}`?"),
        None => format!("{who} has no command `{name}`; `{who} --help` lists all"),
    }
}

fn unknown_flag(flag: &str, path: &[&str], words: &[OsString]) -> String {
    let who = shown(path);
    let definition = defined(path);
    let longs = || definition.get_arguments().filter_map(|arg| arg.get_long());
    // `-name` is read as a row of short flags, the first of which is wrong or not.
    let single_dash = words
        .iter()
        .filter_map(|word| word.to_str())
        .find_map(|word| {
            let name = word
                .strip_prefix('-')
                .filter(|name| !name.starts_with('-'))?;
            let name = name.split('=').next()?;
            (flag.len() == 2 && name.len() > 2 && word.contains(&flag[1..])).then_some(name)
        });
    if let Some(name) = single_dash.and_then(|name| longs().find(|long| *long == name)) {
        return format!("{who} has no option {flag}; did you mean --{name}?");
    }
    if elsewhere::has_flag(path, flag) {
        return format!("{who} does not have {flag} yet; `{who} --help` lists what it has");
    }
    match nearest(flag.trim_start_matches('-'), longs()) {
        Some(near) if flag.starts_with("--") => {
            format!("{who} has no option {flag}; did you mean --{near}?")
        }
        _ => format!("{who} has no option {flag}; `{who} --help` lists all"),
    }
}

#[cfg(test)]
mod tests;
