//! The command line as it is typed. What the flags mean together is decided by `commands`.

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

    /// The image; with --rootfs, the command. Without either it is coracle/hello, which is built in and serves a web page
    #[arg(value_name = "IMAGE|COMMAND")]
    pub subject: Option<OsString>,

    /// Arguments of the command, or of the image's program
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARG"
    )]
    pub args: Vec<OsString>,
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
pub struct ExecArgs {
    #[command(flatten)]
    pub process: ProcessArgs,

    /// Name or id of the container, or the beginning of its id
    pub container: String,

    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub command: Vec<OsString>,
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
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = false,
        value_name = "COMMAND"
    )]
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

    #[test]
    fn the_commands_own_flags_are_left_alone() {
        let cli = Cli::parse_from([
            "coracle", "run", "--rm", "--rootfs", "/x", "ls", "-l", "--rm", "--",
        ]);
        let Command::Run(run) = cli.command else {
            panic!("run was typed")
        };
        assert_eq!(run.subject.as_deref(), Some("ls".as_ref()));
        assert_eq!(run.args, ["-l", "--rm", "--"]);
        Cli::try_parse_from(["coracle", "run", "--no-such-flag", "ls"])
            .expect_err("not a flag of run");
        let cli = Cli::parse_from(["coracle", "exec", "-it", "web", "sh", "-c", "x"]);
        let Command::Exec(exec) = cli.command else {
            panic!("exec was typed")
        };
        assert_eq!(
            (
                exec.container.as_str(),
                exec.command.len(),
                exec.process.tty
            ),
            ("web", 3, true)
        );
    }

    #[test]
    fn unshare_takes_the_commands_flags_and_refuses_its_own() {
        let cli = Cli::parse_from(["coracle", "unshare", "ls", "-l", "--help"]);
        let Command::Unshare(unshare) = cli.command else {
            panic!("unshare was typed")
        };
        assert_eq!(unshare.command, ["ls", "-l", "--help"]);
        Cli::try_parse_from(["coracle", "unshare", "--foo"]).expect_err("not a flag of unshare");
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
