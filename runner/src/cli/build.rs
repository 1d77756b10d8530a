//! The options of the commands that make images.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::image::{PullPolicy, RegistryArgs};
use super::values::text;
use crate::build::secret::Secret;
use crate::spec::Network;
use crate::units;

#[derive(Debug, Args)]
#[command(after_help = "\
A working container is an image in the making. No process belongs to it:
  ctr=$(coracle from docker.io/library/debian)
  coracle run $ctr -- apt-get install -y nginx
  coracle copy $ctr site /srv
  coracle config --cmd 'nginx -g \"daemon off;\"' --port 80 $ctr
  coracle commit --rm $ctr web")]
pub struct FromArgs {
    /// Name the container; without, it is named after the image
    #[arg(long, value_parser = text(str::parse::<String>))]
    pub name: Option<String>,

    /// When to get the image from its registry: always, when it is missing here, when the
    /// registry's is newer, or never
    #[arg(long, value_enum, default_value = "missing", value_name = "POLICY")]
    pub pull: PullPolicy,

    /// Say nothing of how an image comes from its registry
    #[arg(short, long)]
    pub quiet: bool,

    #[command(flatten)]
    pub registry: RegistryArgs,

    /// Name or id of an image, or scratch to begin with nothing
    #[arg(value_parser = text(str::parse::<String>))]
    pub image: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Users other than root do this in `coracle unshare`, where the mounts stay until `coracle umount`, `coracle rm` or `coracle \
system migrate`.")]
pub struct MountArgs {
    /// Names or ids of working containers; without, those that are mounted are listed
    #[arg(value_parser = text(str::parse::<String>), value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct UmountArgs {
    /// All that are mounted
    #[arg(short, long)]
    pub all: bool,

    /// Names or ids of working containers
    #[arg(value_parser = text(str::parse::<String>), value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ContainersArgs {
    /// Ids only
    #[arg(short, long)]
    pub quiet: bool,

    /// Leave out the names of the columns
    #[arg(short, long)]
    pub noheading: bool,

    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Of --env, --label, --port, --volume and --onbuild there may be several; `NAME-` takes one away that is set, and `-` all. What \
is empty is unset: --user=''.")]
pub struct ConfigArgs {
    /// Who made the image
    #[arg(short, long, value_parser = text(str::parse::<String>))]
    pub author: Option<String>,

    /// Command of containers: words, with quotation marks as in a shell
    #[arg(long, value_parser = text(str::parse::<String>))]
    pub cmd: Option<String>,

    /// Entry point: a list of words in JSON, or a line for /bin/sh
    #[arg(long, value_parser = text(str::parse::<String>))]
    pub entrypoint: Option<String>,

    /// Set a variable
    #[arg(short, long, value_parser = text(str::parse::<String>), value_name = "NAME=VALUE")]
    pub env: Vec<String>,

    /// Put a label on the image
    #[arg(short, long, value_parser = text(str::parse::<String>), value_name = "KEY=VALUE")]
    pub label: Vec<String>,

    /// A port on which containers listen: PORT or PORT/PROTOCOL
    #[arg(short, long, value_parser = text(str::parse::<String>), value_name = "PORT")]
    pub port: Vec<String>,

    /// Directory of containers that is to be a volume
    #[arg(short, long, value_parser = text(str::parse::<String>), value_name = "DIR")]
    pub volume: Vec<String>,

    /// User that containers run as: USER or USER:GROUP
    #[arg(short, long, value_parser = text(str::parse::<String>))]
    pub user: Option<String>,

    /// Working directory of containers
    #[arg(long, value_parser = text(str::parse::<String>), value_name = "DIR")]
    pub workingdir: Option<String>,

    /// Signal that asks containers to end
    #[arg(long, value_parser = text(str::parse::<String>), value_name = "SIGNAL")]
    pub stop_signal: Option<String>,

    /// Shell that runs lines of a Containerfile
    #[arg(long, value_parser = text(str::parse::<String>))]
    pub shell: Option<String>,

    /// Instruction for images that are made of this one
    #[arg(long, value_parser = text(str::parse::<String>), value_name = "INSTRUCTION")]
    pub onbuild: Vec<String>,

    /// How to find out whether a container is well: a list of words in JSON, a line for a shell, or
    /// NONE
    #[arg(long, value_parser = text(str::parse::<String>), value_name = "COMMAND")]
    pub healthcheck: Option<String>,

    /// Time between health checks, as 30s or 1m30s
    #[arg(long, value_parser = text(units::duration), value_name = "DURATION")]
    pub healthcheck_interval: Option<u64>,

    /// How long a health check may take
    #[arg(long, value_parser = text(units::duration), value_name = "DURATION")]
    pub healthcheck_timeout: Option<u64>,

    /// How long failed health checks mean nothing after a start
    #[arg(long, value_parser = text(units::duration), value_name = "DURATION")]
    pub healthcheck_start_period: Option<u64>,

    /// How many health checks have to fail
    #[arg(long, value_parser = text(str::parse::<u64>), value_name = "N")]
    pub healthcheck_retries: Option<u64>,

    /// What the image's history is to say of how it was made
    #[arg(long, value_parser = text(str::parse::<String>), value_name = "TEXT")]
    pub created_by: Option<String>,

    /// A comment for the image's history
    #[arg(long, value_parser = text(str::parse::<String>), value_name = "TEXT")]
    pub history_comment: Option<String>,

    /// Name or id of a working container
    #[arg(value_parser = text(str::parse::<String>))]
    pub container: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Of a directory its contents are copied. Patterns are expanded. The destination is a directory where it ends in a slash, where \
it is one, or with several sources.")]
pub struct CopyArgs {
    /// Owner of the copies, of the container's users: USER or USER:GROUP; without, root, and with
    /// --from the owner that they have
    #[arg(long, value_parser = text(str::parse::<String>), value_name = "USER[:GROUP]")]
    pub chown: Option<String>,

    /// Permissions of the copies, in octal digits
    #[arg(long, value_parser = text(units::mode), value_name = "MODE")]
    pub chmod: Option<u32>,

    /// Copy from this working container or image
    #[arg(long, value_parser = text(str::parse::<String>), value_name = "CONTAINER|IMAGE")]
    pub from: Option<String>,

    /// Do not print a digest of what was copied
    #[arg(short, long)]
    pub quiet: bool,

    /// The container, the sources and, where it is not the container's working directory, the
    /// destination
    #[arg(value_parser = text(str::parse::<String>), required = true, value_name = "CONTAINER SOURCE [DESTINATION]")]
    pub words: Vec<String>,
}

#[derive(Debug, Args)]
pub struct CommitArgs {
    /// Remove the container when the image is made
    #[arg(long)]
    pub rm: bool,

    /// Put all into one layer
    #[arg(long)]
    pub squash: bool,

    /// Let the image and its new files be made at this time, in seconds since 1970: the same
    /// content is the same image then
    #[arg(long, value_parser = text(str::parse::<i64>), value_name = "SECONDS")]
    pub timestamp: Option<i64>,

    /// Write the image's id to this file
    #[arg(long, value_name = "FILE")]
    pub iidfile: Option<PathBuf>,

    /// Say nothing but the image's id
    #[arg(short, long)]
    pub quiet: bool,

    /// Name or id of a working container
    #[arg(value_parser = text(str::parse::<String>))]
    pub container: String,

    /// Name for the image; one without a registry is localhost's
    #[arg(value_parser = text(str::parse::<String>))]
    pub image: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
What a Containerfile asks for that coracle does not have is refused by its name and its line: RUN --mount=type=ssh, ADD \
from addresses.

Each RUN, COPY and ADD makes a layer. One that an earlier build has made of the same is used again.")]
pub struct BuildArgs {
    /// Name for the image; may be repeated. One without a registry is localhost's
    #[arg(short, long = "tag", value_parser = text(str::parse::<String>), value_name = "NAME")]
    pub tags: Vec<String>,

    /// The Containerfile, `-` for the standard input; without, Containerfile or Dockerfile of the
    /// context
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Value of an ARG; without a value, the caller's variable. May be repeated
    #[arg(long = "build-arg", value_parser = text(str::parse::<String>), value_name = "NAME[=VALUE]")]
    pub build_args: Vec<String>,

    /// Stop at this stage, by its name or its number from 0 on
    #[arg(long, value_parser = text(str::parse::<String>), value_name = "STAGE")]
    pub target: Option<String>,

    /// Put a label on the image; may be repeated
    #[arg(long = "label", value_parser = text(super::container::parse_label), value_name = "KEY[=VALUE]")]
    pub labels: Vec<(String, String)>,

    /// Give what RUN --mount=type=secret asks for: id=NAME,src=FILE or id=NAME,env=VARIABLE; may be
    /// repeated
    #[arg(long = "secret", value_parser = text(str::parse::<Secret>), value_name = "SECRET")]
    pub secrets: Vec<Secret>,

    /// What of the context stays out; without, FILE.containerignore or FILE.dockerignore beside the
    /// Containerfile, then .containerignore or .dockerignore of the context
    #[arg(long, value_name = "FILE")]
    pub ignorefile: Option<PathBuf>,

    /// Make all layers anew
    #[arg(long)]
    pub no_cache: bool,

    /// Make a layer of each RUN, COPY and ADD; else each stage has one, and nothing is used again
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_value = "true",
        default_missing_value = "true",
        action = ArgAction::Set,
        value_name = "BOOL"
    )]
    pub layers: bool,

    /// Put all that is new into one layer
    #[arg(long, conflicts_with = "squash_all")]
    pub squash: bool,

    /// Put all into one layer, those of the image that it is made of among it
    #[arg(long)]
    pub squash_all: bool,

    /// Leave out stages that the last one does not need
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_value = "true",
        default_missing_value = "true",
        action = ArgAction::Set,
        value_name = "BOOL"
    )]
    pub skip_unused_stages: bool,

    /// When to get images from their registries; without a value, always
    #[arg(
        long,
        value_enum,
        num_args = 0..=1,
        require_equals = true,
        default_value = "missing",
        default_missing_value = "always",
        value_name = "POLICY"
    )]
    pub pull: PullPolicy,

    /// Network of what is run, as `coracle run --network` takes it
    #[arg(long, alias = "net", value_parser = text(super::network::parse_unnamed), default_value = "default", value_name = "NETWORK")]
    pub network: Network,

    /// Let the image and its new files be made at this time, in seconds since 1970
    #[arg(long, value_parser = text(str::parse::<i64>), value_name = "SECONDS")]
    pub timestamp: Option<i64>,

    /// Write the image's id to this file
    #[arg(long, value_name = "FILE")]
    pub iidfile: Option<PathBuf>,

    /// Print the image's id only
    #[arg(short, long)]
    pub quiet: bool,

    #[command(flatten)]
    pub registry: RegistryArgs,

    /// Directory that COPY and ADD take files from
    #[arg(default_value = ".")]
    pub context: PathBuf,
}

impl BuildArgs {
    /// Whether the last stage is to have one new layer.
    pub fn squashes(&self) -> bool {
        self.squash || self.squash_all
    }
}
