//! The command line as it is typed. What the flags mean together is decided by `commands`.
//!
//! `read` makes a [`Cli`] of the words and one line of what is wrong with them; `values`,
//! `container` and `security_opt` read single values; `elsewhere` knows the names that other
//! engines have.

mod container;
mod elsewhere;
mod image;
mod read;
mod security_opt;
mod values;

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use portfwd::spec::{Protocol, Publish};

pub use container::{Entrypoint, EnvArg, RootfsArg};
pub use image::{
    HistoryArgs, ImagesArgs, ImportArgs, ListFormat, LoadArgs, LoginArgs, LogoutArgs, PullArgs,
    PullPolicy, RegistryArgs, RmiArgs, SaveArgs, SaveFormat, TagArgs, UntagArgs,
};
pub use read::{Unread, read};
pub use security_opt::{SeccompChoice, SecurityOpt};
pub use values::TailLines;

use crate::isolation::capabilities::CapabilityName;
use crate::logging::LogLevel;
use crate::rootfs::volume::VolumeArg;
use crate::signal::Signal;
use crate::spec::{Network, Variable};
use values::{bytes, text};

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
  coracle run -d -p 8081:80 docker.io/library/nginx   an image from a registry
  coracle load -i web.tar; coracle images         images from an archive of Podman's or Docker's
  coracle run -d --name web -p 8080:80 --rootfs ./debian nginx -g 'daemon off;'
  coracle logs -f web; coracle exec -it web sh; coracle stop web; coracle rm web

Exit codes of run and exec: the command's own (128 + N when signal N killed it), 125 when coracle itself failed, \
126 when the command cannot be executed or a port cannot be bound, 127 when the command was not found."
)]
pub struct Cli {
    /// What coracle logs about itself, on stderr; what the processes beside the container log goes
    /// to coracle.log in the container's run directory [default: CORACLE_LOG, or warn]
    #[arg(long, global = true, ignore_case = true, value_name = "LEVEL")]
    pub log_level: Option<LogLevel>,

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
    /// Run a command as root of a user namespace like a container's, for files that belong to
    /// sub-IDs
    Unshare(UnshareArgs),
    /// List images
    Images(ImagesArgs),
    /// Remove images, or names of images
    Rmi(RmiArgs),
    /// Give an image more names
    Tag(TagArgs),
    /// Take names from an image
    Untag(UntagArgs),
    /// Show how an image was made
    History(HistoryArgs),
    /// Make an image of a tar that holds a root file system
    Import(ImportArgs),
    /// Get images from registries
    Pull(PullArgs),
    /// Keep a user name and a password for a registry
    Login(LoginArgs),
    /// Forget the password for a registry
    Logout(LogoutArgs),
    /// Read images from a file, a pipe or a directory
    Load(LoadArgs),
    /// Write images to a file, a pipe or a directory
    Save(SaveArgs),
}

#[derive(Debug, Args)]
#[command(
    // `-h` is the host name here, as with Podman and Docker.
    disable_help_flag = true,
    override_usage = "coracle run [OPTIONS] [IMAGE [ARG]...]\n       coracle run [OPTIONS] --rootfs DIR COMMAND [ARG]...",
    after_help = "\
The container has its own user, mount, PID, network, IPC, UTS and cgroup namespaces. Root in it is the calling user; its \
other users are the caller's ranges in /etc/subuid and /etc/subgid, or nobody when there are none. Containers of the host's root \
have other IDs than root: those of the user coracle or containers in these files, else a free range. The network goes through \
coracle-net: address 10.0.2.100 and fd00::100, name servers 10.0.2.3 and fd00::3.

In the foreground, signals that coracle receives go to the container's command. It is process 1 there, which the kernel spares \
every signal that it has no handler for: when Ctrl-C does nothing, `--init` helps, or `coracle kill` from another terminal. \
Ports that are published without a host port get one from the kernel; `coracle port` shows it."
)]
pub struct RunArgs {
    #[command(flatten)]
    pub process: ProcessArgs,

    /// Publish a port of the container: `[[IP:]HOST:]CONTAINER[/tcp|/udp]`, ranges as
    /// 8000-8010:80-90
    ///
    /// The host side is bound before anything else happens; without an IP it is every address of
    /// the host, IPv4 and IPv6. The service sees the client's own address, and the gateway's in
    /// place of the host's loopback.
    #[arg(
        short = 'p',
        long = "publish",
        value_parser = text(str::parse::<Publish>),
        value_name = "SPEC"
    )]
    pub publish: Vec<Publish>,

    /// Publish all ports that the image exposes, at ports of the host that the kernel chooses
    #[arg(short = 'P', long)]
    pub publish_all: bool,

    /// Run this in place of the image's entry point, and without the image's command: a program, or
    /// a program and its arguments as a list in JSON. Empty for none
    #[arg(long, value_parser = bytes(container::parse_entrypoint), value_name = "PROGRAM|LIST")]
    pub entrypoint: Option<Entrypoint>,

    /// When to get the image from its registry: always, when it is missing here, when the
    /// registry's is newer, or never
    #[arg(long, value_enum, default_value = "missing", value_name = "POLICY")]
    pub pull: PullPolicy,

    /// Say nothing of how an image comes from its registry
    #[arg(short, long)]
    pub quiet: bool,

    #[command(flatten)]
    pub registry: RegistryArgs,

    /// Name the container; without, a name is made up
    #[arg(long, value_parser = text(str::parse::<String>))]
    pub name: Option<String>,

    /// Put a label on the container, for programs that look for it; may be repeated: the last value
    /// of a key counts
    #[arg(
        short = 'l',
        long = "label",
        value_parser = text(container::parse_label),
        value_name = "KEY[=VALUE]"
    )]
    pub labels: Vec<(String, String)>,

    /// Bind a file or directory of the host into the container: SRC:DST, options behind another
    /// colon
    ///
    /// SRC begins with `/` or `.`. Options, with commas between them: ro or rw; noexec, nosuid,
    /// nodev and their contraries; rbind (the default) or bind; `[r]private` (the default),
    /// `[r]slave` or `[r]shared` for mounts that come later; U to give the files to the container's
    /// user; z or Z where SELinux is off, and they mean nothing. For containers of the host's root:
    /// idmap, which lets the container's root read and write what belongs to the host's.
    #[arg(
        short = 'v',
        long = "volume",
        value_parser = bytes(VolumeArg::parse),
        value_name = "SRC:DST[:OPTIONS]"
    )]
    pub volumes: Vec<VolumeArg>,

    /// Forget the container when it ends; so is coracle/hello without -d
    #[arg(long)]
    pub rm: bool,

    /// Leave the container running and print its id
    #[arg(short, long)]
    pub detach: bool,

    /// Attach to these only: stdin, stdout, stderr; may be repeated. Without, to stdout and stderr,
    /// and with -i to stdin
    #[arg(short, long, value_parser = text(values::parse_attach), value_name = "STREAM")]
    pub attach: Vec<AttachStream>,

    /// Host name in the container; without, the first 12 digits of its id
    #[arg(short = 'h', long, value_parser = text(container::parse_hostname), value_name = "NAME")]
    pub hostname: Option<String>,

    /// Network of the container: default, none, or coracle:KEY=VALUE,... with cidr=, cidr6=, mtu=,
    /// map-host= (an address for this host) and egress= (a rule, may be repeated), all as
    /// coracle-net takes them
    #[arg(long, alias = "net", value_parser = text(values::parse_network), default_value = "default", value_name = "NETWORK")]
    pub network: Network,

    /// Stay as process 1 of the container: pass signals on to the command, and reap what ends
    #[arg(long)]
    pub init: bool,

    /// User IDs of the container; `host` lets the host's root be root in it, which gives the
    /// container the host
    #[arg(
        long,
        value_parser = text(values::parse_user_namespace),
        default_value = "default",
        value_name = "default|host"
    )]
    pub userns: UserNamespace,

    /// Run on this directory instead of an image
    ///
    /// Changes go to a layer of the container's own and end with it: the directory is not written.
    /// `:O` behind its name says just that. With `:rw` there is no such layer and the directory
    /// itself is changed. (A name that ends in one of these is given as `NAME:rw/`.)
    #[arg(long, value_parser = bytes(RootfsArg::parse), value_name = "DIR[:O|:rw]")]
    pub rootfs: Option<RootfsArg>,

    /// Give the container's root more capabilities, or ALL; with commas, or repeated. Users other
    /// than root have none
    #[arg(long, value_parser = text(str::parse::<CapabilityName>), value_delimiter = ',', value_name = "CAPABILITY")]
    pub cap_add: Vec<CapabilityName>,

    /// Take capabilities, or ALL, from the container; with commas, or repeated
    #[arg(long, value_parser = text(str::parse::<CapabilityName>), value_delimiter = ',', value_name = "CAPABILITY")]
    pub cap_drop: Vec<CapabilityName>,

    /// no-new-privileges: setuid files and file capabilities give nothing in the container.
    /// seccomp=FILE: the system calls that a profile in JSON allows, in place of the default
    /// profile, which is equal to Podman's; seccomp=unconfined: all of them
    #[arg(long, value_parser = bytes(SecurityOpt::parse), value_name = "OPTION")]
    pub security_opt: Vec<SecurityOpt>,

    /// Hand the caller's proxies on: http_proxy, https_proxy, ftp_proxy and no_proxy, in either
    /// case. -e goes before them
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_value = "true",
        default_missing_value = "true",
        value_parser = text(values::parse_bool),
        action = ArgAction::Set,
        hide_default_value = true,
        value_name = "true|false"
    )]
    pub http_proxy: bool,

    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,

    /// The image and its arguments, or with --rootfs the command and its arguments; options come
    /// before
    ///
    /// An image is one of `coracle images`, by its name or id, or else one of a registry, which
    /// `--pull` says more of, or one in a file, which is loaded first: `oci-archive:FILE`,
    /// `docker-archive:FILE` or `oci:DIR`. What it says about its entry
    /// point, command, environment, user, working directory, ports, stop signal and labels holds
    /// where the options say nothing else. What is written to its volumes is kept in the
    /// container's own layer, and ends with it. Without an image or --rootfs it is coracle/hello,
    /// which is built in and serves a web page.
    #[arg(trailing_var_arg = true, value_name = "IMAGE|COMMAND [ARG]")]
    pub words: Vec<OsString>,
}

/// What `run` and `exec` share.
#[derive(Debug, Args)]
pub struct ProcessArgs {
    /// Set a variable of the command's environment; -e NAME takes the caller's value
    #[arg(
        short = 'e',
        long = "env",
        value_parser = bytes(EnvArg::parse),
        value_name = "NAME[=VALUE]"
    )]
    pub env: Vec<EnvArg>,

    /// Working directory in the container
    #[arg(
        short = 'w',
        long = "workdir",
        value_parser = bytes(container::parse_workdir),
        value_name = "DIR"
    )]
    pub workdir: Option<PathBuf>,

    /// User in the container: NAME or UID, and GROUP or GID behind a colon
    ///
    /// Names are those of /etc/passwd and /etc/group in the container. A named group replaces all
    /// groups that the user has there.
    #[arg(short, long, value_parser = text(str::parse::<String>), value_name = "USER[:GROUP]")]
    pub user: Option<String>,

    /// Connect the caller's standard input
    #[arg(short, long)]
    pub interactive: bool,

    /// Give the command a terminal
    #[arg(short, long)]
    pub tty: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserNamespace {
    /// A user's own ID and sub-IDs; for the host's root, IDs that nobody else has.
    Default,
    /// The same for users; for the host's root, its own IDs.
    Host,
}

/// A standard stream to attach to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachStream {
    Stdin,
    Stdout,
    Stderr,
}

#[derive(Debug, Args)]
#[command(override_usage = "coracle exec [OPTIONS] CONTAINER COMMAND [ARG]...")]
pub struct ExecArgs {
    #[command(flatten)]
    pub process: ProcessArgs,

    /// Name or id of the container, or the beginning of its id; then the command and its arguments
    #[arg(trailing_var_arg = true, value_name = "CONTAINER COMMAND [ARG]")]
    pub words: Vec<OsString>,
}

impl RunArgs {
    /// Whether the caller's standard input goes to the container.
    pub fn reads_stdin(&self) -> bool {
        self.process.interactive || self.attach.contains(&AttachStream::Stdin)
    }

    /// Whether an output of the container is shown in the foreground.
    pub fn attaches(&self, stream: AttachStream) -> bool {
        self.attach.is_empty() || self.attach.contains(&stream)
    }
}

impl ProcessArgs {
    /// What `-e` sets, in order.
    pub fn variables(&self) -> impl Iterator<Item = Variable> + '_ {
        self.env.iter().filter_map(EnvArg::variable)
    }
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
    #[arg(value_parser = text(str::parse::<String>))]
    pub container: String,

    /// Only this port of the container's
    #[arg(value_name = "PORT[/PROTOCOL]", value_parser = text(values::parse_port))]
    pub port: Option<(u16, Protocol)>,
}

#[derive(Debug, Args)]
pub struct PsArgs {
    /// Also those that have ended
    #[arg(short, long)]
    pub all: bool,

    /// Ids only
    #[arg(short, long)]
    pub quiet: bool,

    /// How to print: a table, unless another form is asked for
    #[arg(long, value_enum)]
    pub format: Option<PsFormat>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PsFormat {
    Table,
    Json,
}

#[derive(Debug, Args)]
#[command(
    after_help = "The last 16 MiB are kept at least, and 32 MiB at most; older lines are gone."
)]
pub struct LogsArgs {
    /// Go on until the container ends
    #[arg(short, long)]
    pub follow: bool,

    /// Begin with the last N lines
    #[arg(
        long,
        value_parser = text(values::parse_tail),
        default_value = "all",
        allow_negative_numbers = true,
        value_name = "N|all"
    )]
    pub tail: TailLines,

    /// Show when each line was written
    #[arg(short, long)]
    pub timestamps: bool,

    /// Name or id of the container
    #[arg(value_parser = text(str::parse::<String>))]
    pub container: String,
}

#[derive(Debug, Args)]
pub struct StopArgs {
    /// Seconds from SIGTERM, or the image's stop signal, to SIGKILL
    #[arg(
        short = 't',
        long = "time",
        alias = "timeout",
        value_parser = text(values::parse_seconds),
        default_value = "10",
        value_name = "SECONDS"
    )]
    pub timeout: u32,

    /// All that are running
    #[arg(short, long)]
    pub all: bool,

    /// Names or ids
    #[arg(value_parser = text(str::parse::<String>), value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct KillArgs {
    /// Name or number of the signal: KILL, SIGTERM, RTMIN+3, 15
    #[arg(short, long, value_parser = text(str::parse::<Signal>), default_value = "KILL")]
    pub signal: Signal,

    /// All that are running
    #[arg(short, long)]
    pub all: bool,

    /// Names or ids
    #[arg(value_parser = text(str::parse::<String>), value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    /// Kill those that are running; do not mind those that are gone
    #[arg(short, long)]
    pub force: bool,

    /// All; without -f those that have ended
    #[arg(short, long)]
    pub all: bool,

    /// Names or ids
    #[arg(value_parser = text(str::parse::<String>), value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Nothing but the users and the mounts are the command's own:
  coracle unshare cat /proc/self/uid_map      how IDs are mapped
  coracle unshare chown -R 33:33 ./site       give files to a user of the container
  coracle unshare rm -rf ./tree               remove files of the container's users

The host's root keeps its own IDs in there. Its containers have others, which begin where the second number in their \
/proc/self/uid_map says.")]
pub struct UnshareArgs {
    /// The command and its arguments; without, the shell named by SHELL
    #[arg(trailing_var_arg = true, value_name = "COMMAND [ARG]")]
    pub command: Vec<OsString>,
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_of_run_tells_the_containers_addresses() {
        let mut cli = Cli::command();
        let run = cli.find_subcommand_mut("run").expect("a command");
        let help = run.render_long_help().to_string();
        let addresses = netstack::network::Network::default().addresses();
        let told = |ips: &[IpAddr]| match ips {
            [v4, v6] => help.contains(&format!("{v4} and {v6}")),
            _ => false,
        };
        assert!(told(&addresses.guest) && told(&addresses.dns));
    }

    fn parse(typed: &[&str]) -> Result<Cli, Unread> {
        read(&typed.iter().map(OsString::from).collect::<Vec<_>>())
    }

    /// Every option of every command as somebody may type it, and words that mean something to a
    /// parser.
    fn hostile_words() -> Vec<String> {
        let mut words: Vec<String> = [
            "--",
            "-",
            "-x",
            "--no-such-flag",
            "help",
            "--rm=false",
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
        let cli = parse(typed).unwrap_or_else(|error| panic!("{typed:?}: {error:?}"));
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
            parse(&typed).expect_err(&format!("{typed:?}"));
        }
    }
}
