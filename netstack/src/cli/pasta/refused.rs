//! Options of passt's command line that are of no use here: known, so that they are refused by name
//! and with the reason, and never taken for the beginning of another one or for a command.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

/// One of them.
#[derive(Debug)]
pub struct Useless {
    pub long: &'static str,
    short: Option<char>,
    value: Option<&'static str>,
    pub why: &'static str,
}

/// Those that were given; the first one counts.
#[derive(Debug)]
pub struct Refused(Option<&'static Useless>);

const ALL: &[Useless] = &[
    useless("socket", Some('s'), Some("PATH"), FOR_VM),
    useless("socket-path", None, Some("PATH"), FOR_VM),
    useless("fd", Some('F'), Some("FD"), FOR_VM),
    useless("one-off", Some('1'), None, FOR_VM),
    useless("vhost-user", None, None, FOR_VM),
    useless("print-capabilities", None, None, FOR_VM),
    useless("repair-path", None, Some("PATH"), FOR_VM),
    useless("migrate-exit", None, None, FOR_VM),
    useless("migrate-no-linger", None, None, FOR_VM),
    useless(
        "freebind",
        None,
        None,
        "ports are bound to addresses that the host has",
    ),
    useless(
        "stats",
        None,
        Some("SECONDS"),
        "the status socket of coracle-net has what there is to count",
    ),
];

const FOR_VM: &str = "it is for virtual machines, which passt itself serves";

const fn useless(
    long: &'static str,
    short: Option<char>,
    value: Option<&'static str>,
    why: &'static str,
) -> Useless {
    Useless {
        long,
        short,
        value,
        why,
    }
}

impl Refused {
    pub fn given(&self) -> Option<&'static Useless> {
        self.0
    }
}

impl clap::Args for Refused {
    fn augment_args(command: Command) -> Command {
        let argument = |option: &Useless| {
            let argument = Arg::new(option.long)
                .long(option.long)
                .help(format!("Refused: {}", option.why))
                .help_heading("Refused");
            let argument = match option.short {
                Some(short) => argument.short(short),
                None => argument,
            };
            match option.value {
                Some(name) => argument.value_name(name).action(ArgAction::Append),
                None => argument.action(ArgAction::Count),
            }
        };
        command.args(ALL.iter().map(argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Refused {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let is_given =
            |option: &&Useless| matches.value_source(option.long) == Some(ValueSource::CommandLine);
        Ok(Self(ALL.iter().find(is_given)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
