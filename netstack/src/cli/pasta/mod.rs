//! The command line of pasta, of passt's version of July 2026: the same words, the same defaults,
//! and what its callers read of the answers. docs/DROP-IN.md says where this program differs all
//! the same. What becomes of the words is [`life`]'s.
//!
//! Callers try again without an option that is told to be unrecognized, so one that is not here is
//! left undefined. Those of passt that have no meaning without a virtual machine are refused by
//! name ([`Refused`]).

mod addressing;
mod autoconf;
mod life;
mod ports;
mod refused;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{ArgAction, Parser};
use nix::unistd::{Group, User};
use portfwd::forward::SpecError;
use rustix::process::Pid;

use self::autoconf::{Services, ServicesError};
use crate::config::{Config, ConfigError};
use crate::control::HeededSignals;
use crate::guest::{TargetName, UserNamespace};
use crate::logging::{self, Filter, InvalidFilter};
use crate::process::Program;
use crate::process::log_file::{DEFAULT_SIZE, MIN_SIZE};
use crate::sandbox::root::Ids;

pub use life::{LifeError, run};

use addressing::{Addressing, AddressingError};
use ports::PortArgs;
use refused::Refused;

/// Behind the program's name, in the first line that callers read.
const VERSION: &str = concat!("2026_07_16+coracle.", env!("CARGO_PKG_VERSION"));

/// A network for a namespace, with the options of pasta.
///
/// This is coracle-net under that name. Without PID and --netns it runs COMMAND, or a login shell,
/// in new namespaces, and ends with it. Otherwise it goes to the background once the network is up,
/// and ends with the namespace.
#[derive(Debug, Parser)]
#[command(
    name = "pasta",
    version = VERSION,
    disable_version_flag = true,
    args_override_self = true,
    infer_long_args = true,
    override_usage = "pasta [OPTION]... [COMMAND [ARG]...]\n       pasta [OPTION]... PID\n       \
                      pasta [OPTION]... --netns PATH|NAME",
    max_term_width = 110,
)]
pub struct Args {
    /// What to run in new namespaces; a number alone is the process whose namespace gets a network
    #[arg(value_name = "COMMAND|PID", trailing_var_arg = true)]
    words: Vec<OsString>,

    /// Say what each flow does
    #[arg(short, long)]
    debug: bool,

    /// Say all there is to say
    #[arg(long)]
    trace: bool,

    /// Say nothing but warnings and errors
    #[arg(short, long)]
    quiet: bool,

    /// Stay in the foreground
    #[arg(short, long)]
    foreground: bool,

    /// Nothing more to do: messages go to the error output until the network is up
    #[arg(short = 'e', long)]
    stderr: bool,

    /// Write messages to this file alone
    #[arg(short, long, value_name = "PATH", value_parser = path())]
    log_file: Option<PathBuf>,

    /// Bytes that the log file may have; the oldest messages go then
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_SIZE, requires = "log_file",
          value_parser = clap::value_parser!(u64).range(MIN_SIZE..))]
    log_size: u64,

    /// Who to be if root starts it [default: nobody]
    #[arg(long, value_name = "UID[:GID]|LOGIN[:GROUP]", value_parser = run_as)]
    runas: Option<Ids>,

    /// Write the process ID to this file
    #[arg(short = 'P', long, value_name = "PATH", value_parser = path())]
    pid: Option<PathBuf>,

    /// Write every frame to this file, as tcpdump and Wireshark read it
    #[arg(short, long, value_name = "PATH", value_parser = path())]
    pcap: Option<PathBuf>,

    /// Nothing more to do: the sandbox needs no directory
    #[arg(long)]
    chroot_fallback: bool,

    /// Join this user namespace first [default: the one that owns the network namespace]
    #[arg(long, value_name = "PATH", value_parser = path(), conflicts_with = "netns_only")]
    userns: Option<PathBuf>,

    /// The network namespace that gets a network; a NAME is one of `ip netns`
    #[arg(long, value_name = "PATH|NAME", value_parser = netns(), conflicts_with = "words")]
    netns: Option<PathBuf>,

    /// Join, or make, no user namespace
    #[arg(long)]
    netns_only: bool,

    /// Go on when --netns is unmounted
    #[arg(long)]
    no_netns_quit: bool,

    /// Give the guest's interface its addresses and routes
    #[arg(long)]
    config_net: bool,

    #[command(flatten)]
    addressing: Addressing,

    #[command(flatten)]
    ports: PortArgs,

    #[command(flatten)]
    services: Services,

    #[command(flatten)]
    refused: Refused,

    /// Print version
    #[arg(long, action = ArgAction::Version)]
    version: Option<bool>,
}

/// Whom the network is for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum For {
    /// A program in namespaces of its own, with a user namespace unless told otherwise.
    Program {
        program: Program,
        own_users: bool,
    },
    Namespace(TargetName),
}

/// A value that cannot work.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    #[error("option '--{0}' is of no use here: {1}")]
    Refused(&'static str, &'static str),
    #[error(
        "--userns needs --netns or a PID: a new network namespace belongs to a new user namespace"
    )]
    UserNamespaceAlone,
    #[error("invalid PID {0:?}")]
    Pid(OsString),
    #[error(transparent)]
    Ports(#[from] SpecError),
    #[error(transparent)]
    Addressing(#[from] AddressingError),
    #[error(transparent)]
    Services(#[from] ServicesError),
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl Args {
    /// Whom the network is for.
    fn purpose(&self) -> Result<For, ArgsError> {
        if let Some(refused) = self.refused.given() {
            return Err(ArgsError::Refused(refused.long, refused.why));
        }
        if let Some(path) = &self.netns {
            return Ok(For::Namespace(TargetName::Path(path.clone())));
        }
        if let [word] = &self.words[..]
            && is_number(word)
        {
            return Ok(For::Namespace(TargetName::Process(pid(word)?)));
        }
        if self.userns.is_some() {
            return Err(ArgsError::UserNamespaceAlone);
        }
        Ok(For::Program {
            program: Program::of_words(self.words.clone()).unwrap_or_else(Program::login_shell),
            own_users: !self.netns_only,
        })
    }

    /// How much is said: what the options ask for, or else the environment.
    fn filter(&self, purpose: &For) -> Result<Filter, InvalidFilter> {
        let level = match purpose {
            _ if self.trace => "trace",
            _ if self.debug => "debug",
            _ if self.quiet => "warn",
            _ if std::env::var_os(logging::VARIABLE).is_some() => {
                return Filter::from_environment();
            }
            // The terminal is the program's.
            For::Program { .. } => "warn",
            For::Namespace(_) => "info",
        };
        level.parse()
    }

    /// For the namespace `target`, which a program has of its own if `of_program` says so.
    fn config(self, target: TargetName, of_program: bool) -> Result<Config, ArgsError> {
        let plan = self.addressing.plan()?;
        // With --config-net, too.
        let autoconf = self.services.of(plan.network.autoconf(plan.mtu))?;
        let forwards = self.ports.forwards()?;
        let config = Config {
            user_namespace: match self.userns {
                None if self.netns_only => UserNamespace::Own,
                path => path.into(),
            },
            outlives_path: self.no_netns_quit,
            heeded_signals: match of_program {
                true => HeededSignals::NotTerminals,
                false => HeededSignals::All,
            },
            instead_of_root: self.runas.unwrap_or_default(),
            configure: self.config_net,
            loopback_up: true,
            mtu: plan.mtu,
            guest_mac: plan.guest_mac,
            our_mac: Some(plan.our_mac),
            autoconf,
            policy: plan.policy,
            outbound: plan.outbound,
            resolvers: plan.resolvers,
            forwards,
            pcap: self.pcap,
            ..Config::new(target, plan.tap, plan.network)
        };
        Ok(config.check()?)
    }
}

/// A path that holds when the working directory is another one.
fn path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(std::path::absolute)
}

/// A path as well, or a name of what `ip netns` keeps.
fn netns() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.components().count() {
        1 => Ok(Path::new("/run/netns").join(path)),
        _ => std::path::absolute(path),
    })
}

fn is_number(word: &OsStr) -> bool {
    let bytes = word.as_encoded_bytes();
    !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit)
}

fn pid(word: &OsStr) -> Result<Pid, ArgsError> {
    let number = word.to_str().and_then(|text| text.parse().ok());
    number
        .and_then(Pid::from_raw)
        .ok_or_else(|| ArgsError::Pid(word.to_owned()))
}

/// Reads `UID[:GID]` or `LOGIN[:GROUP]`. Root stays nobody: what root is needed for is done before.
fn run_as(text: &str) -> Result<Ids, String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let by_name = User::from_name(user).ok().flatten();
    let uid = match (&by_name, user.parse()) {
        (Some(user), _) => user.uid.as_raw(),
        (None, Ok(uid)) => uid,
        (None, Err(_)) => return Err(format!("there is no user {user:?}")),
    };
    let gid = match group {
        Some(group) => match (Group::from_name(group).ok().flatten(), group.parse()) {
            (Some(group), _) => group.gid.as_raw(),
            (None, Ok(gid)) => gid,
            (None, Err(_)) => return Err(format!("there is no group {group:?}")),
        },
        None => {
            let by_number = || User::from_uid(uid.into()).ok().flatten();
            by_name
                .or_else(by_number)
                .map_or(uid, |user| user.gid.as_raw())
        }
    };
    match uid {
        0 => Ok(Ids::default()),
        _ => Ok(Ids {
            user: uid,
            group: gid,
        }),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn args(line: &str) -> Result<Args, String> {
        let words = std::iter::once("pasta").chain(line.split_whitespace());
        Args::try_parse_from(words).map_err(|error| error.to_string())
    }

    fn purpose(line: &str) -> Result<For, String> {
        args(line)?.purpose().map_err(|error| error.to_string())
    }

    fn process(number: i32) -> For {
        For::Namespace(TargetName::Process(Pid::from_raw(number).unwrap()))
    }

    #[test]
    fn the_command_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_help_and_the_version_are_answers() {
        for help in ["-h", "--help"] {
            let help = Args::try_parse_from(["pasta", help]).unwrap_err();
            assert_eq!(help.kind(), ErrorKind::DisplayHelp);
            for option in ["--netns", "--config-net", "--log-size", "--vhost-user"] {
                assert!(help.to_string().contains(option), "{option}");
            }
        }
        let version = Args::try_parse_from(["pasta", "-q", "--version"]).unwrap_err();
        assert_eq!(version.kind(), ErrorKind::DisplayVersion);
        assert!(version.to_string().starts_with("pasta 2026_07_16+coracle."));
    }

    #[test]
    fn words_are_taken_as_getopt_takes_them() {
        let args = args("-qfP/a --log-file=/b --pid /c --log-si 65536 --trace 1").unwrap();
        assert!(args.quiet && args.foreground && args.trace);
        assert_eq!(args.pid, Some("/c".into()), "the last one holds");
        assert_eq!((args.log_file, args.log_size), (Some("/b".into()), 65536));
    }

    #[test]
    fn what_follows_the_first_word_is_the_commands() {
        for line in ["ls -l --help -f", "-q -- ls -l --help -f"] {
            let For::Program { program, own_users } = purpose(line).unwrap() else {
                panic!("{line}");
            };
            assert_eq!((program.file, own_users), ("ls".into(), true), "{line}");
            assert_eq!(program.arguments, ["-l", "--help", "-f"], "{line}");
        }
        assert_eq!(
            purpose("--netns-only").unwrap(),
            For::Program {
                program: Program::login_shell(),
                own_users: false
            }
        );
    }

    #[test]
    fn namespaces_are_named_in_three_ways() {
        let path = |path: &str| For::Namespace(TargetName::Path(path.into()));
        assert_eq!(purpose("-f 4711").unwrap(), process(4711));
        assert_eq!(purpose("-- 4711").unwrap(), process(4711));
        assert_eq!(purpose("--netns /n/x").unwrap(), path("/n/x"));
        assert_eq!(purpose("--netns x").unwrap(), path("/run/netns/x"));
        assert!(matches!(purpose("1 2").unwrap(), For::Program { .. }));
    }

    #[test]
    fn user_namespaces_are_chosen() {
        let chosen = |line| {
            let config = args(line)
                .unwrap()
                .config(TargetName::Path("/n".into()), false);
            config.unwrap().user_namespace
        };
        assert_eq!(chosen("--netns /n"), UserNamespace::Owner);
        assert_eq!(chosen("--netns /n --netns-only"), UserNamespace::Own);
        let named = UserNamespace::At("/u".into());
        assert_eq!(chosen("--netns /n --userns /u"), named);
    }

    #[test]
    fn users_have_names_or_numbers() {
        let nobody = Ids::default();
        for (text, ids) in [
            ("nobody", nobody),
            ("65534:65534", nobody),
            ("root", nobody),
            ("0:0", nobody),
            (
                "4711:42",
                Ids {
                    user: 4711,
                    group: 42,
                },
            ),
            (
                "4711",
                Ids {
                    user: 4711,
                    group: 4711,
                },
            ),
        ] {
            assert_eq!(run_as(text), Ok(ids), "{text}");
        }
        assert!(run_as("no such user").unwrap_err().contains("user"));
        assert!(
            run_as("nobody:no such group")
                .unwrap_err()
                .contains("group")
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (line, part) in [
            ("--no-such-option", "--no-such-option"),
            ("--log-size 1 -l /x", "1 is not in 40960.."),
            ("--log-size 65536", "--log-file"),
            ("--netns /x 4711", "--netns"),
            ("--userns /x --netns-only 1", "--netns-only"),
            ("--userns /x", "--userns needs --netns"),
            ("0", "invalid PID \"0\""),
            ("99999999999", "invalid PID"),
            ("-1 true", "--one-off"),
            ("--vhost-user true", "--vhost-user"),
            ("-s /x true", "--socket"),
            ("-F 3 true", "--fd"),
            ("--migrate-exit", "--migrate-exit"),
        ] {
            let error = purpose(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
