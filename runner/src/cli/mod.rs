//! The command line as it is typed. What the flags mean together is decided by `commands`.
//!
//! `run` has the flags of `run`, `create` and `exec`, with those about the file system in `tree`;
//! `life` has those of other commands on containers, `image` those about images, `files` those
//! about their files, `groups` the commands that are in groups. `read` makes a [`Cli`] of the words
//! and one line of what is wrong with them; `values`, `container`, `mount` and `security_opt` read
//! single values; `elsewhere` knows the names that other engines have.

mod build;
mod container;
mod elsewhere;
mod files;
mod filter;
mod groups;
mod health;
mod image;
mod kernel;
mod life;
mod lifetime;
mod limits;
mod log;
mod mount;
mod network;
mod read;
mod run;
mod secret;
mod security_opt;
mod system;
mod tree;
mod values;
mod watch;

use std::ffi::OsString;

use clap::{Args, Parser, Subcommand, ValueEnum};
use portfwd::spec::Protocol;

pub use build::{
    BuildArgs, CommitArgs, ConfigArgs, ContainersArgs, CopyArgs, FromArgs, MountArgs, UmountArgs,
};
pub use container::{Entrypoint, EnvArg, RootfsArg, parse_label};
pub use files::{CopyPlace, CpArgs, DiffArgs, ExportArgs};
pub use filter::Filter;
pub use groups::{
    ExistsArgs, ImageCommand, ImagePruneArgs, VolumeCommand, VolumeCreateArgs, VolumeInspectArgs,
    VolumeLsArgs, VolumePruneArgs, VolumeRmArgs,
};
pub use health::{HealthArgs, HealthcheckCommand};
pub use image::{
    AccessArgs, HistoryArgs, ImageOrder, ImagesArgs, ImportArgs, LoadArgs, LoginArgs, LogoutArgs,
    PullArgs, PullPolicy, PushArgs, RegistryArgs, RmiArgs, SaveArgs, SaveFormat, SearchArgs,
    TagArgs, TlsArgs, UntagArgs,
};
pub use kernel::{KEEP_GROUPS, KernelArgs, UlimitArg};
pub use life::{
    AttachArgs, Chosen, GraceArgs, PauseArgs, RenameArgs, RestartArgs, StartArgs, TopArgs, WaitArgs,
};
pub use lifetime::LifetimeArgs;
pub use limits::{Cgroups, LimitArgs, UpdateArgs};
pub use log::{LogArgs, LogsArgs};
pub use network::{
    NetworkArg, NetworkCommand, NetworkConnectArgs, NetworkCreateArgs, NetworkDisconnectArgs,
    NetworkInspectArgs, NetworkLsArgs, NetworkOption, NetworkPruneArgs, NetworkRmArgs,
    RunNetworkArgs,
};
pub use read::{Unread, read};
pub use run::{
    AttachStream, ContainerArgs, CreateArgs, DetachArgs, ExecArgs, ProcessArgs, RunArgs,
    UserNamespace,
};
pub use secret::{SecretCommand, SecretCreateArgs, SecretInspectArgs, SecretLsArgs, SecretRmArgs};
pub use security_opt::{SeccompChoice, SecurityOpt};
pub use system::{CheckArgs, DfArgs, FormatArgs, SystemArgs, SystemCommand, SystemPruneArgs};
pub use tree::TreeArgs;
pub use values::TailLines;
pub use watch::{EventsArgs, StatsArgs};

use crate::logging::LogLevel;
use crate::signal::Signal;
use crate::template::Format;
use values::text;

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
    /// Make a container, for `start` to run its command
    Create(Box<CreateArgs>),
    /// Run the commands of containers that are there already
    Start(StartArgs),
    /// End containers, and start them again
    Restart(RestartArgs),
    /// Wait until containers end, and print their exit codes
    Wait(WaitArgs),
    /// Give a container another name
    Rename(RenameArgs),
    /// Give a container other limits, or another restart policy
    Update(Box<UpdateArgs>),
    /// Connect to the streams of a container that runs
    Attach(AttachArgs),
    /// Freeze the processes of containers
    Pause(PauseArgs),
    /// Let the processes of paused containers go on
    Unpause(PauseArgs),
    /// Show the processes of a container
    Top(TopArgs),
    /// Show what containers take of processors, memory, networks and disks
    Stats(StatsArgs),
    /// Show what happens to containers, images, volumes and networks
    Events(EventsArgs),
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
    /// Copy files into containers, out of them and between them
    Cp(CpArgs),
    /// Write the file system of a container as a tar
    Export(ExportArgs),
    /// Show what a container or an image has changed of what it was made from
    Diff(DiffArgs),
    /// Run a command as root of a user namespace like a container's, for files that belong to
    /// sub-IDs
    Unshare(UnshareArgs),
    /// Tell all that is known of containers and images
    Inspect(InspectArgs),
    /// Look after what coracle keeps
    System(SystemArgs),
    /// Tell what this host allows containers, and how to get more of it
    Info(FormatArgs),
    /// Tell which coracle this is
    Version(FormatArgs),
    /// Make an image of a Containerfile
    #[command(visible_alias = "bud")]
    Build(Box<BuildArgs>),
    /// Begin a working container, to make an image of
    From(FromArgs),
    /// Mount working containers, for other programs to change
    Mount(MountArgs),
    /// Unmount working containers
    #[command(alias = "unmount")]
    Umount(UmountArgs),
    /// Say how the image of a working container is to be run
    Config(Box<ConfigArgs>),
    /// Copy files into a working container
    Copy(CopyArgs),
    /// Copy files into a working container, and unpack archives there
    Add(CopyArgs),
    /// Make an image of a working container
    Commit(CommitArgs),
    /// List working containers
    Containers(ContainersArgs),
    /// List images
    Images(ImagesArgs),
    /// Remove images, or names of images
    Rmi(RmiArgs),
    /// What can be done with images, in one place
    #[command(subcommand)]
    Image(ImageCommand),
    /// Look after networks, in which containers reach each other
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Check the health of containers
    #[command(subcommand)]
    Healthcheck(HealthcheckCommand),
    /// Look after volumes: directories that outlive containers
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Look after secrets, which containers may read and nothing else keeps
    #[command(subcommand)]
    Secret(SecretCommand),
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
    /// Send an image to a registry, or write it to a file or a directory
    Push(PushArgs),
    /// Look for images in registries
    Search(SearchArgs),
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

    /// Whole ids, and whole commands
    #[arg(long)]
    pub no_trunc: bool,

    /// Leave out the names of the columns
    #[arg(long)]
    pub noheading: bool,

    /// The N that were made last, in whatever state
    #[arg(short = 'n', long, value_parser = text(values::parse_count), value_name = "N")]
    pub last: Option<usize>,

    /// The one that was made last, in whatever state
    #[arg(short, long)]
    pub latest: bool,

    /// How to print: json, table, or a template of Go's with .ID, .Names, .Image, .Command,
    /// .Status, .State, .Ports, .CreatedAt, .Labels and others; `table TEMPLATE` makes columns
    #[arg(long, value_parser = text(str::parse::<Format>))]
    pub format: Option<Format>,

    /// Only what has this: ancestor=IMAGE, before=CONTAINER, exited=CODE, health=STATUS, id=ID,
    /// label=KEY[=VALUE], name=PATTERN, network=NAME, restart-policy=POLICY, since=CONTAINER,
    /// status=STATE, until=TIME, volume=NAME or a path; may be repeated
    #[arg(short, long = "filter", value_parser = text(str::parse::<Filter>), value_name = "KEY=VALUE")]
    pub filters: Vec<Filter>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
It prints JSON with the names of Podman's fields:
  coracle inspect -f '{{.State.Pid}}' web
  coracle inspect -f '{{range .Config.Env}}{{println .}}{{end}}' docker.io/library/nginx
  coracle inspect --type image -f '{{json .RootFS}}' web")]
pub struct InspectArgs {
    /// What is meant by a name: a container or else an image, unless one of the two is asked for
    #[arg(
        short,
        long = "type",
        value_enum,
        default_value = "all",
        value_name = "TYPE"
    )]
    pub kind: InspectKind,

    /// How to print: json, or a template of Go's
    #[arg(short, long, value_parser = text(str::parse::<Format>))]
    pub format: Option<Format>,

    /// The container that was made last
    #[arg(short, long)]
    pub latest: bool,

    /// Measure the files of containers as well: .SizeRw and .SizeRootFs
    #[arg(short, long)]
    pub size: bool,

    /// Names or ids
    #[arg(value_parser = text(str::parse::<String>), value_name = "NAME")]
    pub names: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum InspectKind {
    All,
    Container,
    Image,
}

#[derive(Debug, Args)]
pub struct StopArgs {
    #[command(flatten)]
    pub grace: GraceArgs,

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

    /// Remove their anonymous volumes as well
    #[arg(short, long)]
    pub volumes: bool,

    /// Names or ids
    #[arg(value_parser = text(str::parse::<String>), value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The users and the mounts are other ones than the host's, and the same for all commands of `coracle unshare`, until `coracle \
system migrate` ends them:
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
            Command::Run(run) => &mut run.container.words,
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
