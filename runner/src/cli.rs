//! The command line as it is typed. What the flags mean together is decided by `commands`.

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use portfwd::spec::{Protocol, Publish};

use crate::security::CapabilityName;
use crate::spec::{self, EnvArg, Network, RootfsArg, VolumeArg};

/// Run rootless containers with a network that costs almost nothing
#[derive(Debug, Parser)]
#[command(
    name = "coracle",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "\
Try it:
  coracle run -p 8080:8080                        a web page on http://127.0.0.1:8080
  coracle run --rm -it --rootfs ./debian bash     a shell in a directory that holds a Debian tree
  coracle run -d --name web -p 8080:80 --rootfs ./debian nginx -g 'daemon off;'
  coracle logs -f web; coracle exec -it web sh; coracle stop web; coracle rm web

Exit codes of run and exec: the command's own (128 + N when signal N killed it), 125 when coracle itself failed, \
126 when the command cannot be executed or a port cannot be bound, 127 when the command was not found."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command in a new container
    Run(Box<RunArgs>),
    /// Show where published ports are on the host
    Port(PortArgs),
    /// Run another command in a running container
    Exec(ExecArgs),
    /// List containers
    Ps(PsArgs),
    /// Show what a container has written
    Logs(LogsArgs),
    /// Ask containers to end, and make them end when they do not
    Stop(StopArgs),
    /// Send a signal to containers
    Kill(KillArgs),
    /// Remove containers that have ended
    Rm(RmArgs),
    /// Run a command as root of a user namespace like a container's, for files that belong to sub-IDs
    Unshare(UnshareArgs),
}

#[derive(Debug, Args)]
#[command(
    override_usage = "coracle run [OPTIONS] [IMAGE [ARG]...]\n       coracle run [OPTIONS] --rootfs DIR COMMAND [ARG]...",
    after_help = "\
The container has its own user, mount, PID, network, IPC, UTS and cgroup namespaces. Root in it is the calling user; its \
other users are the caller's ranges in /etc/subuid and /etc/subgid, or nobody when there are none. The network goes through \
coracle-net: address 10.0.2.100 and fd00::100, name servers 10.0.2.3 and fd00::3.

In the foreground, signals that coracle receives go to the container's command. It is process 1 there, which the kernel spares \
every signal that it has no handler for: when Ctrl-C does nothing, `coracle kill` or `coracle rm -f` from another \
terminal does."
)]
pub struct RunArgs {
    #[command(flatten)]
    pub process: ProcessArgs,

    /// Publish a port of the container: [IP:]HOST:CONTAINER[/tcp|/udp], ranges as 8000-8010:80-90
    ///
    /// The host side is bound before anything else happens; without an IP it is every address of the host, IPv4 and IPv6.
    /// The service sees the client's own address.
    #[arg(short = 'p', long = "publish", value_name = "SPEC")]
    pub publish: Vec<Publish>,

    /// Name the container; without, a name is made up
    #[arg(long)]
    pub name: Option<String>,

    /// Bind a file or directory of the host into the container: SRC:DST or SRC:DST:ro
    #[arg(short = 'v', long = "volume", value_name = "SRC:DST[:ro]")]
    pub volumes: Vec<VolumeArg>,

    /// Forget the container when it ends; so is coracle/hello without -d
    #[arg(long)]
    pub rm: bool,

    /// Leave the container running and print its id
    #[arg(short, long)]
    pub detach: bool,

    /// Host name in the container; without, the first 12 digits of its id
    #[arg(long, value_parser = spec::parse_hostname, value_name = "NAME")]
    pub hostname: Option<String>,

    /// Network of the container
    #[arg(long, value_parser = parse_network, default_value = "default", value_name = "default|none")]
    pub network: Network,

    /// Stay as process 1 of the container: pass signals on to the command, and reap what ends
    #[arg(long)]
    pub init: bool,

    /// User IDs of the container; `host` lets the host's root be root in it, which gives the container the host
    #[arg(
        long,
        value_enum,
        default_value = "default",
        value_name = "default|host"
    )]
    pub userns: UserNamespace,

    /// Run on this directory instead of an image
    ///
    /// Changes go to a layer of the container's own and end with it: the directory is not written. With `:rw` behind its name there
    /// is no such layer and the directory itself is changed. (A name that ends in `:rw` is given as `NAME:rw/`.)
    #[arg(long, value_name = "DIR[:rw]")]
    pub rootfs: Option<RootfsArg>,

    /// Give the container's root one more capability, or ALL; may be repeated. Users other than root have none
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_add: Vec<CapabilityName>,

    /// Take a capability, or ALL, from the container; may be repeated
    #[arg(long, value_name = "CAPABILITY")]
    pub cap_drop: Vec<CapabilityName>,

    /// no-new-privileges: setuid files and file capabilities give nothing in the container
    #[arg(long, value_name = "OPTION")]
    pub security_opt: Vec<SecurityOpt>,

    /// The image and its arguments, or with --rootfs the command and its arguments; options come before
    ///
    /// Without an image or --rootfs it is coracle/hello, which is built in and serves a web page.
    #[arg(trailing_var_arg = true, value_name = "IMAGE|COMMAND [ARG]")]
    pub words: Vec<OsString>,
}

/// What `run` and `exec` share.
#[derive(Debug, Args)]
pub struct ProcessArgs {
    /// Set a variable of the command's environment; -e NAME takes the caller's value
    #[arg(short = 'e', long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<EnvArg>,

    /// Working directory in the container
    #[arg(short = 'w', long = "workdir", value_parser = spec::parse_workdir, value_name = "DIR")]
    pub workdir: Option<PathBuf>,

    /// User in the container: NAME or UID, and GROUP or GID behind a colon
    ///
    /// Names are those of /etc/passwd and /etc/group in the container. A named group replaces all groups that the user has there.
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,

    /// Connect the caller's standard input
    #[arg(short, long)]
    pub interactive: bool,

    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum UserNamespace {
    /// A user's own ID and sub-IDs; for the host's root, IDs that nobody else has.
    Default,
    /// The same for users; for the host's root, its own IDs.
    Host,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SecurityOpt {
    #[value(
        name = "no-new-privileges",
        alias = "no-new-privileges:true",
        alias = "no-new-privileges=true"
    )]
    NoNewPrivileges,
}

#[derive(Debug, Args)]
#[command(override_usage = "coracle exec [OPTIONS] CONTAINER COMMAND [ARG]...")]
pub struct ExecArgs {
    #[command(flatten)]
    pub process: ProcessArgs,

    /// Name or id of the container, or the beginning of its id; then the command and its arguments
    #[arg(
        trailing_var_arg = true,
        required = true,
        num_args = 2..,
        value_name = "CONTAINER COMMAND [ARG]"
    )]
    pub words: Vec<OsString>,
}

impl ExecArgs {
    pub fn container(&self) -> Cow<'_, str> {
        self.words[0].to_string_lossy()
    }

    /// The command with its arguments.
    pub fn command(&self) -> &[OsString] {
        &self.words[1..]
    }
}

#[derive(Debug, Args)]
pub struct PortArgs {
    /// Name or id of the container
    pub container: String,

    /// Only this port of the container's
    #[arg(value_name = "PORT[/PROTOCOL]", value_parser = crate::commands::parse_port)]
    pub port: Option<(u16, Protocol)>,
}

#[derive(Debug, Args)]
pub struct PsArgs {
    /// Also those that have ended
    #[arg(short, long)]
    pub all: bool,

    /// Ids only
    #[arg(short, long, conflicts_with = "format")]
    pub quiet: bool,

    /// How to print
    #[arg(long, value_enum, default_value = "table")]
    pub format: PsFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PsFormat {
    Table,
    Json,
}

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Go on until the container ends
    #[arg(short, long)]
    pub follow: bool,

    /// Begin with the last N lines
    #[arg(long, value_name = "N")]
    pub tail: Option<usize>,

    /// Name or id of the container
    pub container: String,
}

#[derive(Debug, Args)]
pub struct StopArgs {
    /// Seconds from SIGTERM, or the image's stop signal, to SIGKILL
    #[arg(
        short = 't',
        long = "time",
        default_value_t = 10,
        value_name = "SECONDS"
    )]
    pub timeout: u32,

    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct KillArgs {
    /// Name or number of the signal
    #[arg(short, long, default_value = "KILL", value_parser = parse_signal)]
    pub signal: nix::sys::signal::Signal,

    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    /// Kill those that are running; do not mind those that are gone
    #[arg(short, long)]
    pub force: bool,

    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Nothing but the users and the mounts are the command's own:
  coracle unshare cat /proc/self/uid_map      how IDs are mapped
  coracle unshare chown -R 33:33 ./site       give files to a user of the container
  coracle unshare rm -rf ./tree               remove files of the container's users")]
pub struct UnshareArgs {
    /// The command and its arguments; without, the shell named by SHELL
    #[arg(trailing_var_arg = true, value_name = "COMMAND [ARG]")]
    pub command: Vec<OsString>,
}

/// Told apart from a misspelling: these exist elsewhere and people will try them.
fn parse_network(text: &str) -> Result<Network, String> {
    match text {
        "default" => Ok(Network::Default),
        "none" => Ok(Network::None),
        "host" | "bridge" | "slirp4netns" | "pasta" => Err(format!(
            "coracle does not have the network {text:?}; there are default and none"
        )),
        _ => Err("there are default and none".into()),
    }
}

/// `TERM`, `SIGTERM`, `sigterm` and `15` are the same.
fn parse_signal(text: &str) -> Result<nix::sys::signal::Signal, String> {
    use nix::sys::signal::Signal;
    let unknown = || format!("there is no signal {text:?}; kill -l lists them");
    if let Ok(number) = text.parse::<i32>() {
        return Signal::try_from(number).map_err(|_| unknown());
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    format!("SIG{name}").parse().map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Every option of every command as somebody may type it, and words that mean something to a parser.
    fn hostile_words() -> Vec<String> {
        let mut words: Vec<String> = [
            "--",
            "-",
            "-x",
            "--no-such-flag",
            "help",
            "ps",
            "--rm=false",
        ]
        .map(str::to_owned)
        .into();
        let mut cli = Cli::command();
        cli.build();
        for command in std::iter::once(&cli).chain(cli.get_subcommands()) {
            for arg in command.get_arguments() {
                let longs = arg.get_long_and_visible_aliases().unwrap_or_default();
                for long in longs
                    .into_iter()
                    .chain(arg.get_all_aliases().unwrap_or_default())
                {
                    words.extend([format!("--{long}"), format!("--{long}=x")]);
                }
                for short in arg.get_short_and_visible_aliases().unwrap_or_default() {
                    words.extend([format!("-{short}"), format!("-{short}x")]);
                }
            }
        }
        assert!(words.contains(&"--cap-add=x".to_owned()) && words.contains(&"-d".to_owned()));
        words
    }

    /// What was parsed, less the words behind the first `kept`; and those.
    fn split_words(typed: &[&str], kept: usize) -> (String, Vec<OsString>) {
        let cli = Cli::try_parse_from(typed).unwrap_or_else(|error| panic!("{typed:?}: {error}"));
        let mut command = cli.command;
        let words = match &mut command {
            Command::Run(run) => &mut run.words,
            Command::Exec(exec) => &mut exec.words,
            Command::Unshare(unshare) => &mut unshare.command,
            _ => panic!("{typed:?} runs no command"),
        };
        let rest = words.split_off(kept);
        (format!("{command:?}"), rest)
    }

    #[test]
    fn behind_the_commands_first_word_everything_is_the_commands() {
        let beginnings: [(&[&str], usize); 5] = [
            (&["coracle", "run", "--rootfs", "/x", "cmd"], 1),
            (&["coracle", "run", "--rm", "-it", "image"], 1),
            (&["coracle", "exec", "-u", "web", "web", "cmd"], 2),
            (&["coracle", "exec", "web"], 1),
            (&["coracle", "unshare", "cmd"], 1),
        ];
        for word in hostile_words() {
            for (beginning, kept) in beginnings {
                let (expected, _) = split_words(&[beginning, &["x"]].concat(), kept);
                for rest in [
                    &[&*word, "x"][..],
                    &["x", &*word],
                    &[&*word, &*word, "--", "x"],
                ] {
                    let (parsed, words) = split_words(&[beginning, rest].concat(), kept);
                    assert_eq!(parsed, expected, "{beginning:?} {rest:?}");
                    assert_eq!(words, rest, "{beginning:?}");
                }
            }
        }
    }

    #[test]
    fn two_dashes_end_the_options() {
        for word in hostile_words() {
            for beginning in [
                &["coracle", "run", "--rootfs", "/x"][..],
                &["coracle", "unshare"],
            ] {
                let typed = [beginning, &["--", &word, "--"]].concat();
                assert_eq!(split_words(&typed, 0).1, [&*word, "--"], "{typed:?}");
            }
            let (_, words) = split_words(&["coracle", "exec", "--", "web", &word, "--"], 0);
            assert_eq!(words, ["web", &*word, "--"]);
        }
    }

    #[test]
    fn before_it_a_flag_has_to_be_one_of_ours() {
        for typed in [
            &["run", "--no-such-flag", "cmd"][..],
            &["run", "--rootfs", "/x", "-X", "cmd"],
            &["exec", "--no-such-flag", "web", "cmd"],
            &["exec", "-X", "web", "cmd"],
            &["unshare", "--no-such-flag", "cmd"],
            &["unshare", "-X"],
        ] {
            let typed = [&["coracle"], typed].concat();
            Cli::try_parse_from(&typed).expect_err(&format!("{typed:?}"));
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        use nix::sys::signal::Signal;
        for text in ["TERM", "SIGTERM", "sigterm", "term", "15"] {
            assert_eq!(parse_signal(text), Ok(Signal::SIGTERM));
        }
        for text in ["", "SIG", "0", "-9", "99", "NOPE"] {
            assert!(parse_signal(text).is_err(), "{text}");
        }
    }

    #[test]
    fn networks_that_others_have_are_named_in_the_refusal() {
        assert!(
            parse_network("host")
                .expect_err("not built")
                .contains("host")
        );
        assert_eq!(parse_network("none"), Ok(Network::None));
    }
}
