//! `pesto`'s command line: shows and changes the forwarding rules of a helper that runs, over the
//! control socket that it was given with `pasta --conf-path`.
//!
//! Actions apply in the order that they are written, as in `pesto --delete -t 80 --add -t 81`. The
//! whole of what comes of them is sent at once, and the helper makes the difference. One that is
//! pasta itself takes it without a word; ours says what it could not do.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use portfwd::forward::wire::{self, MAX_GREETING, Tables, WireError};
use portfwd::forward::{PortOption, SpecError};
use portfwd::publish::ephemeral_ports;
use portfwd::{Direction, PortRange};

/// What a command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    path: PathBuf,
    show: bool,
    /// In the order they are written; none is a question.
    actions: Vec<Action>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    /// What follows is added.
    Add,
    /// What follows is deleted.
    Delete,
    Clear(Direction),
    Rules(PortOption, String),
}

/// Why the rules were neither shown nor changed.
#[derive(Debug, thiserror::Error)]
pub enum PestoError {
    #[error("Failed to connect to {path}: {source}")]
    Connect { path: PathBuf, source: io::Error },
    #[error("Error on the control socket: {0}")]
    Socket(#[from] io::Error),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("the rules stay as they were: {0}")]
    Refused(String),
}

pub fn command() -> Command {
    let flag = |id: &'static str, short, help| {
        let arg = Arg::new(id).short(short).long(id).help(help);
        arg.action(ArgAction::SetTrue)
    };
    let mark = |id: &'static str, short, help| {
        let arg = Arg::new(id).short(short).long(id).help(help);
        // Each time that it is written counts, as its place does.
        arg.action(ArgAction::Append)
            .num_args(0)
            .default_missing_value("")
    };
    let rules = |option: PortOption, help| {
        let (short, long) = names(option);
        let arg = Arg::new(long).short(short).long(long).help(help);
        arg.value_name("SPEC").action(ArgAction::Append)
    };
    Command::new("pesto")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Shows and changes the ports that a running pasta forwards")
        .after_long_help(EXAMPLES)
        .arg(flag("debug", 'd', "Has no effect"))
        .arg(flag(
            "show",
            's',
            "Show the rules before and after the change",
        ))
        .arg(mark(
            "add",
            'A',
            "Add the specifications that follow to the rules",
        ))
        .arg(mark(
            "delete",
            'D',
            "Delete the specifications that follow from the rules",
        ))
        .arg(
            Arg::new("clear")
                .short('C')
                .long("clear")
                .value_name("TABLE")
                .help("Delete all rules of HOST (-t, -u) or SPLICE (-T, -U)")
                .value_parser(["HOST", "SPLICE"])
                .action(ArgAction::Append),
        )
        .arg(rules(
            PortOption::TcpInbound,
            "TCP from the host into the namespace",
        ))
        .arg(rules(
            PortOption::UdpInbound,
            "UDP from the host into the namespace",
        ))
        .arg(rules(
            PortOption::TcpOutbound,
            "TCP from the namespace's loopback to the host's",
        ))
        .arg(rules(
            PortOption::UdpOutbound,
            "UDP from the namespace's loopback to the host's",
        ))
        .arg(
            Arg::new("path")
                .value_name("PATH")
                .help("The control socket, as in `pasta --conf-path PATH`")
                .required(true)
                .value_parser(value_parser!(PathBuf)),
        )
}

const EXAMPLES: &str = "\
Specifications are those of pasta. Without --add and --delete they replace a table; without any
change the rules are shown. What the change leaves alone goes on, and so do connections.

Examples:
  pesto /run/pasta.sock                            show the rules
  pesto --add -t 8080:80 -t [::1]/5353 /run/pasta.sock
  pesto --delete -t 8080:80 --add -t 8081:80 /run/pasta.sock
  pesto --clear SPLICE /run/pasta.sock
  pesto -t 8080:80 -u none /run/pasta.sock         nothing but this";

/// Short and long name.
pub fn names(option: PortOption) -> (char, &'static str) {
    match option {
        PortOption::TcpInbound => ('t', "tcp-ports"),
        PortOption::UdpInbound => ('u', "udp-ports"),
        PortOption::TcpOutbound => ('T', "tcp-ns"),
        PortOption::UdpOutbound => ('U', "udp-ns"),
    }
}

impl Request {
    pub fn read(words: Vec<OsString>) -> Result<Self, clap::Error> {
        let matches = command().try_get_matches_from(words)?;
        let mut actions = Vec::new();
        actions.extend(placed(&matches, "add", |_| Action::Add));
        actions.extend(placed(&matches, "delete", |_| Action::Delete));
        actions.extend(placed(&matches, "clear", |name| {
            let named = |direction: &Direction| direction.name() == name;
            let direction = Direction::BOTH.into_iter().find(named);
            Action::Clear(direction.expect("the parser knows both names"))
        }));
        for option in PortOption::ALL {
            let rules = |spec: &str| Action::Rules(option, spec.to_owned());
            actions.extend(placed(&matches, names(option).1, rules));
        }
        actions.sort_by_key(|(place, _)| *place);
        let path = matches.get_one::<PathBuf>("path");
        Ok(Self {
            path: path.expect("it is required").clone(),
            show: matches.get_flag("show"),
            actions: actions.into_iter().map(|(_, action)| action).collect(),
        })
    }

    /// Does it, and prints what is asked for.
    pub fn carry_out(&self, output: &mut impl Write) -> Result<(), PestoError> {
        let connected = UnixStream::connect(&self.path);
        let mut socket = connected.map_err(|source| PestoError::Connect {
            path: self.path.clone(),
            source,
        })?;
        let mut tables = receive(&mut socket)?;
        let mut show = |title: &str, tables: &Tables| self.print(title, tables, output);
        if self.actions.is_empty() {
            return Ok(show("passt/pasta configuration", &tables)?);
        }
        if self.show {
            show("Previous configuration", &tables)?;
        }
        self.change(&mut tables, ephemeral_ports())?;
        if self.show {
            show("Updated configuration", &tables)?;
        }
        socket.write_all(&wire::update(&tables))?;
        socket.shutdown(Shutdown::Write)?;
        // The end comes once the rules are in force.
        let mut refusal = String::new();
        socket.read_to_string(&mut refusal)?;
        match refusal.is_empty() {
            true => Ok(()),
            false => Err(PestoError::Refused(refusal)),
        }
    }

    fn change(&self, tables: &mut Tables, ephemeral: PortRange) -> Result<(), SpecError> {
        /// What becomes of specifications.
        #[derive(Clone, Copy, PartialEq)]
        enum Mode {
            Replace,
            Add,
            Delete,
        }
        let mut mode = Mode::Replace;
        let mut cleared = Vec::new();
        for action in &self.actions {
            match action {
                Action::Add => mode = Mode::Add,
                Action::Delete => mode = Mode::Delete,
                Action::Clear(direction) => {
                    tables.of_mut(*direction).clear();
                    cleared.push(*direction);
                }
                Action::Rules(option, spec) => {
                    let direction = option.direction();
                    let table = tables.of_mut(direction);
                    if mode == Mode::Replace && !cleared.contains(&direction) {
                        table.clear();
                        cleared.push(direction);
                    }
                    match mode {
                        Mode::Delete => option.delete(spec, ephemeral, table)?,
                        Mode::Replace | Mode::Add => option.add(spec, ephemeral, table)?,
                    }
                }
            }
        }
        Ok(())
    }

    fn print(&self, title: &str, tables: &Tables, output: &mut impl Write) -> io::Result<()> {
        writeln!(output, "{title} ({})", self.path.display())?;
        for direction in Direction::BOTH {
            writeln!(output, "  {}", direction.name())?;
            for rule in tables.of(direction).rules() {
                writeln!(output, "    {rule}")?;
            }
        }
        output.flush()
    }
}

/// Each value of `id` as an action, with its place on the command line.
fn placed(matches: &ArgMatches, id: &str, action: impl Fn(&str) -> Action) -> Vec<(usize, Action)> {
    let values = matches.get_many::<String>(id).into_iter().flatten();
    let places = matches.indices_of(id).into_iter().flatten();
    places
        .zip(values)
        .map(|(place, value)| (place, action(value)))
        .collect()
}

/// Reads the greeting.
fn receive(socket: &mut UnixStream) -> Result<Tables, PestoError> {
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let len = socket.read(&mut buffer)?;
        received.extend_from_slice(&buffer[..len]);
        match wire::read_greeting(&received)? {
            Some(tables) => return Ok(tables),
            None if len == 0 || received.len() >= MAX_GREETING => {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(line: &str) -> Request {
        let words = line.split_whitespace().map(OsString::from);
        Request::read(words.collect()).unwrap()
    }

    /// The rules after one command and another.
    fn rules(lines: &[&str]) -> Result<Vec<String>, SpecError> {
        let mut tables = Tables::default();
        for line in lines {
            request(line).change(&mut tables, PortRange::EPHEMERAL)?;
        }
        let shown = Direction::BOTH.map(|direction| {
            let rules = tables.of(direction).rules().iter();
            rules.map(ToString::to_string).collect::<Vec<_>>()
        });
        Ok(shown.concat())
    }

    #[test]
    fn the_command_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn actions_apply_in_their_order() {
        let request = request("pesto -A -t 80 --delete -u 53 -s -C SPLICE --tcp-ns=90 /s");
        let rules = |option, spec: &str| Action::Rules(option, spec.to_owned());
        let expected = Request {
            path: "/s".into(),
            show: true,
            actions: vec![
                Action::Add,
                rules(PortOption::TcpInbound, "80"),
                Action::Delete,
                rules(PortOption::UdpInbound, "53"),
                Action::Clear(Direction::Outbound),
                rules(PortOption::TcpOutbound, "90"),
            ],
        };
        assert_eq!(request, expected);
    }

    #[test]
    fn rules_are_added_deleted_cleared_and_replaced() {
        let (http, dns) = ("TCP [*]:80  =>  80", "UDP [*]:53  =>  53");
        let splice = "TCP [*]%lo:5  =>  5";
        for (lines, expected) in [
            (&["pesto -t 80 -u 53 -T 5 /s"][..], &[http, dns, splice][..]),
            (&["pesto -t 80 /s", "pesto -A -u 53 /s"], &[http, dns]),
            (&["pesto -t 80 /s", "pesto -u 53 /s"], &[dns]),
            (&["pesto -t 80 -T 5 /s", "pesto -u 53 /s"], &[dns, splice]),
            (&["pesto -t 80 -u 53 /s", "pesto -D -t 80 /s"], &[dns]),
            (&["pesto -t 80 -T 5 /s", "pesto -C HOST /s"], &[splice]),
            (&["pesto -t 80 /s", "pesto -t none /s"], &[]),
            (&["pesto -t 80 /s", "pesto -D -t 80 -A -u 53 /s"], &[dns]),
            (&["pesto -t 80 /s", "pesto -C HOST -A -u 53 /s"], &[dns]),
        ] {
            assert_eq!(rules(lines).unwrap(), expected, "{lines:?}");
        }
        let error = rules(&["pesto -D -t 80 /s"]).unwrap_err().to_string();
        assert!(error.contains("Couldn't find"), "{error}");
        let error = rules(&["pesto -t 80 /s", "pesto -A -t 79-80 /s"]);
        assert!(error.unwrap_err().to_string().contains("conflict"));
    }

    #[test]
    fn a_path_is_needed() {
        for line in ["pesto", "pesto -A -t 80", "pesto /a /b", "pesto -C TAP /s"] {
            let words = line.split_whitespace().map(OsString::from);
            assert!(Request::read(words.collect()).is_err(), "{line}");
        }
    }
}
