//! The flags of `run` and `exec`, and what the two share.

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args};
use portfwd::spec::Publish;

use super::container::{self, Entrypoint, EnvArg};
use super::health::HealthArgs;
use super::image::{PullPolicy, RegistryArgs};
use super::kernel::KernelArgs;
use super::lifetime::LifetimeArgs;
use super::limits::{Cgroups, LimitArgs};
use super::log::LogArgs;
use super::network::{NameArgs, RunNetworkArgs};
use super::security_opt::SecurityOpt;
use super::tree::TreeArgs;
use super::values::{self, Switch, bytes, text};
use crate::isolation::capabilities::CapabilityName;
use crate::signal::Signal;
use crate::spec::Variable;
use crate::stdio::keys::DetachKeys;

/// What the help of `run` ends with.
const ABOUT_CONTAINERS: &str = "\
The container has its own user, mount, PID, network, IPC, UTS and cgroup namespaces. Root in it is the calling user; its \
other users are the caller's ranges in /etc/subuid and /etc/subgid, or nobody when there are none. Containers of the host's root \
have other IDs than root: those of the user coracle or containers in these files, else a free range. The network goes through \
coracle-net: address 10.0.2.100 and fd00::100, name servers 10.0.2.3 and fd00::3.

In the foreground, signals that coracle receives go to the container's command. It is process 1 there, which the kernel spares \
every signal that it has no handler for: when Ctrl-C does nothing, `--init` helps, or `coracle kill` from another terminal. \
Ports that are published without a host port get one from the kernel; `coracle port` shows it.";

#[derive(Debug, Args)]
#[command(
    // `-h` is the host name here, as with Podman and Docker.
    disable_help_flag = true,
    override_usage = "coracle run [OPTIONS] [IMAGE [ARG]...]\n       coracle run [OPTIONS] --rootfs DIR COMMAND [ARG]...",
    after_help = ABOUT_CONTAINERS
)]
pub struct RunArgs {
    #[command(flatten)]
    pub container: ContainerArgs,

    /// Leave the container running and print its id
    #[arg(short, long)]
    pub detach: bool,

    /// Attach to these only: stdin, stdout, stderr; may be repeated. Without, to stdout and stderr,
    /// and with -i to stdin
    #[arg(short, long, value_parser = text(values::parse_attach), value_name = "STREAM")]
    pub attach: Vec<AttachStream>,

    /// Pass signals on to the command, in the foreground; otherwise they end coracle, and the
    /// container goes on
    #[arg(long, on(), value_name = "true|false")]
    pub sig_proxy: bool,

    #[command(flatten)]
    pub leave: DetachArgs,

    /// Remove the image when the container has ended and gone, unless another uses it; goes with
    /// the foreground
    #[arg(long, conflicts_with = "detach")]
    pub rmi: bool,

    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// How to leave a program to itself.
#[derive(Debug, Args)]
pub struct DetachArgs {
    /// Keys that leave the program to itself when they are typed at a terminal for its terminal:
    /// characters, or ctrl- and a letter, as ctrl-a, with commas between them; empty for none
    /// [default: ctrl-p,ctrl-q]
    #[arg(long, value_parser = text(str::parse::<DetachKeys>), value_name = "KEYS")]
    pub detach_keys: Option<DetachKeys>,
}

#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    override_usage = "coracle create [OPTIONS] [IMAGE [ARG]...]\n       coracle create [OPTIONS] --rootfs DIR COMMAND [ARG]...",
    after_help = "\
`coracle start` starts it, then or later. Its ports are bound while it runs only; `coracle run --help` tells more of \
containers."
)]
pub struct CreateArgs {
    #[command(flatten)]
    pub container: ContainerArgs,

    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// What a container is to be: what `run` and `create` share.
#[derive(Debug, Args)]
pub struct ContainerArgs {
    #[command(flatten)]
    pub process: ProcessArgs,

    /// Set all variables of the caller's environment; those of the image, and -e, go before them
    #[arg(long)]
    pub env_host: bool,

    /// Do not set this variable of the image or of coracle; may be repeated
    #[arg(long = "unsetenv", value_parser = text(str::parse::<String>), value_name = "NAME")]
    pub unset: Vec<String>,

    /// Set none of the variables of the image and of coracle
    #[arg(long = "unsetenv-all")]
    pub unset_all: bool,

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

    /// Expose a port beside those of the image, for -P to publish: `PORT[-PORT][/tcp|/udp]`; may be
    /// repeated
    #[arg(long, value_parser = text(container::parse_expose), value_name = "PORT")]
    pub expose: Vec<String>,

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

    /// End and remove the container that has the name, if there is one
    #[arg(long)]
    pub replace: bool,

    /// Write the container's id to a file, which may not be there yet
    #[arg(long, value_name = "FILE")]
    pub cidfile: Option<PathBuf>,

    /// The signal that asks the command to end; without, the image's, or TERM
    #[arg(long, value_parser = text(str::parse::<Signal>), value_name = "SIGNAL")]
    pub stop_signal: Option<Signal>,

    #[command(flatten)]
    pub lifetime: LifetimeArgs,

    #[command(flatten)]
    pub health: HealthArgs,

    #[command(flatten)]
    pub log: LogArgs,

    /// Put a label on the container, for programs that look for it; may be repeated: the last value
    /// of a key counts
    #[arg(
        short = 'l',
        long = "label",
        value_parser = text(container::parse_label),
        value_name = "KEY[=VALUE]"
    )]
    pub labels: Vec<(String, String)>,

    /// Put the labels in a file on the container, a line each; may be repeated
    #[arg(long = "label-file", value_name = "FILE")]
    pub label_files: Vec<PathBuf>,

    #[command(flatten)]
    pub tree: TreeArgs,

    /// Forget the container when it ends; so is coracle/hello without -d
    #[arg(long)]
    pub rm: bool,

    /// Host name in the container; without, the first 12 digits of its id
    #[arg(short = 'h', long, value_parser = text(container::parse_hostname), value_name = "NAME")]
    pub hostname: Option<String>,

    #[command(flatten)]
    pub network: RunNetworkArgs,

    #[command(flatten)]
    pub names: NameArgs,

    /// Time zone of the container, as Europe/Berlin; local for this host's
    #[arg(long, value_parser = text(str::parse::<String>), value_name = "ZONE")]
    pub tz: Option<String>,

    /// Stay as process 1 of the container: pass signals on to the command, and reap what ends
    #[arg(long)]
    pub init: bool,

    #[command(flatten)]
    pub kernel: KernelArgs,

    #[command(flatten)]
    pub limits: LimitArgs,

    /// Whether the container gets control groups of its own
    #[arg(long, value_enum, default_value = "enabled")]
    pub cgroups: Cgroups,

    /// User IDs of the container; `host` lets the host's root be root in it, which gives the
    /// container the host
    #[arg(
        long,
        value_parser = text(values::parse_user_namespace),
        default_value = "default",
        value_name = "default|host"
    )]
    pub userns: UserNamespace,

    /// Give the container's root more capabilities, or ALL; with commas, or repeated. Users other
    /// than root have none
    #[arg(long, value_parser = text(str::parse::<CapabilityName>), value_delimiter = ',', value_name = "CAPABILITY")]
    pub cap_add: Vec<CapabilityName>,

    /// Take capabilities, or ALL, from the container; with commas, or repeated
    #[arg(long, value_parser = text(str::parse::<CapabilityName>), value_delimiter = ',', value_name = "CAPABILITY")]
    pub cap_drop: Vec<CapabilityName>,

    /// Give the container what its caller has: all capabilities and system calls, devices that the
    /// caller may open, /proc and /sys as they are
    #[arg(long)]
    pub privileged: bool,

    /// no-new-privileges: setuid files and file capabilities give nothing in the container.
    /// seccomp=FILE: the system calls that a profile in JSON allows, in place of the default
    /// profile, which is equal to Podman's; seccomp=unconfined: all of them. mask=PATHS hides paths
    /// besides those of /proc and /sys that are hidden anyway, unmask=PATHS leaves these as they
    /// are, and unmask=ALL all of them
    #[arg(long, value_parser = bytes(SecurityOpt::parse), value_name = "OPTION")]
    pub security_opt: Vec<SecurityOpt>,

    /// Hand the caller's proxies on: http_proxy, https_proxy, ftp_proxy and no_proxy, in either
    /// case. -e goes before them
    #[arg(long, on(), value_name = "true|false")]
    pub http_proxy: bool,

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

    /// Set the variables in a file, a line each: NAME=VALUE, NAME for the caller's value, NAME* for
    /// all of the caller's that begin so; lines that begin with # are passed over, and -e goes
    /// before them
    #[arg(long = "env-file", value_name = "FILE")]
    pub env_files: Vec<PathBuf>,

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

    #[command(flatten)]
    pub leave: DetachArgs,

    /// Give the command all capabilities and system calls
    #[arg(long)]
    pub privileged: bool,

    /// Name or id of the container, or the beginning of its id; then the command and its arguments
    #[arg(trailing_var_arg = true, value_name = "CONTAINER COMMAND [ARG]")]
    pub words: Vec<OsString>,
}

impl ContainerArgs {
    /// Refuses what cannot be together, as far as the definition cannot say it.
    pub fn check(&self) -> Result<(), String> {
        self.tree
            .check_places()
            .map_err(|error| error.to_string())?;
        self.kernel.check()?;
        self.limits.check()?;
        let has_limits = !self.limits.resources().controllers().is_empty();
        if self.cgroups == Cgroups::Disabled && has_limits {
            return Err(
                "limits need control groups: they do not go with --cgroups=disabled".into(),
            );
        }
        self.names.check()
    }
}

impl RunArgs {
    /// Whether the caller's standard input goes to the container.
    pub fn reads_stdin(&self) -> bool {
        self.container.process.interactive || self.attach.contains(&AttachStream::Stdin)
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
