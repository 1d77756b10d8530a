//! Commands in groups, as Podman has them: `image ls` beside `images`.

use clap::{Args, Subcommand};

use super::container::parse_label;
use super::filter::Filter;
use super::image::{
    HistoryArgs, ImagesArgs, ImportArgs, LoadArgs, PullArgs, PushArgs, RmiArgs, SaveArgs,
    SearchArgs, TagArgs, UntagArgs,
};
use super::values::text;
use super::{DiffArgs, InspectArgs, InspectKind};
use crate::template::Format;

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Show what the uppermost layer of an image has changed, or how two images differ
    Diff(DiffArgs),
    /// Say by the exit code whether an image is there: 0 or 1
    Exists(ExistsArgs),
    /// Show how an image was made
    History(HistoryArgs),
    /// Make an image of a tar that holds a root file system
    Import(ImportArgs),
    /// Tell all that is known of images
    Inspect(ImageInspectArgs),
    /// Read images from a file, a pipe or a directory
    Load(LoadArgs),
    /// List images
    #[command(visible_alias = "list")]
    Ls(ImagesArgs),
    /// Remove images that have no name, or that no container uses
    Prune(ImagePruneArgs),
    /// Get images from registries
    Pull(PullArgs),
    /// Send an image to a registry, or write it to a file or a directory
    Push(PushArgs),
    /// Remove images, or names of images
    Rm(RmiArgs),
    /// Write images to a file, a pipe or a directory
    Save(SaveArgs),
    /// Look for images in registries
    Search(SearchArgs),
    /// Give an image more names
    Tag(TagArgs),
    /// Take names from an image
    Untag(UntagArgs),
}

#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume
    Create(VolumeCreateArgs),
    /// Say by the exit code whether a volume is there: 0 or 1
    Exists(ExistsArgs),
    /// Tell all that is known of volumes
    Inspect(VolumeInspectArgs),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(VolumeLsArgs),
    /// Remove volumes that no container uses
    Prune(VolumePruneArgs),
    /// Remove volumes
    Rm(VolumeRmArgs),
}

#[derive(Debug, Args)]
pub struct VolumeCreateArgs {
    /// Keep this with the volume: KEY[=VALUE]; may be repeated
    #[arg(short, long = "label", value_parser = text(parse_label), value_name = "KEY[=VALUE]")]
    pub labels: Vec<(String, String)>,

    /// Made up when not given
    #[arg(value_parser = text(str::parse::<String>))]
    pub name: Option<String>,
}

#[derive(Debug, Args)]
pub struct VolumeInspectArgs {
    /// How to print: json, or a template of Go's
    #[arg(short, long, value_parser = text(str::parse::<Format>))]
    pub format: Option<Format>,

    /// All volumes
    #[arg(short, long)]
    pub all: bool,

    #[arg(value_parser = text(str::parse::<String>), value_name = "NAME")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct VolumeLsArgs {
    /// Names only
    #[arg(short, long)]
    pub quiet: bool,

    /// Leave out the names of the columns
    #[arg(long)]
    pub noheading: bool,

    /// How to print: json, table, or a template of Go's with .Name, .Driver, .Mountpoint,
    /// .CreatedAt, .Labels and .Anonymous; `table TEMPLATE` makes columns
    #[arg(long, value_parser = text(str::parse::<Format>))]
    pub format: Option<Format>,

    /// Only what has this: dangling=BOOL, label=KEY[=VALUE], name=PATTERN, until=TIME; may be
    /// repeated
    #[arg(short, long = "filter", value_parser = text(str::parse::<Filter>), value_name = "KEY=VALUE")]
    pub filters: Vec<Filter>,
}

#[derive(Debug, Args)]
pub struct VolumePruneArgs {
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,

    /// Only what has this: label=KEY[=VALUE], name=PATTERN, until=TIME; may be repeated
    #[arg(long = "filter", value_parser = text(str::parse::<Filter>), value_name = "KEY=VALUE")]
    pub filters: Vec<Filter>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 1 when there is no such volume, 2 when a container uses it, 125 for all else."
)]
pub struct VolumeRmArgs {
    /// Remove containers that use the volumes as well
    #[arg(short, long)]
    pub force: bool,

    /// All volumes
    #[arg(short, long)]
    pub all: bool,

    #[arg(value_parser = text(str::parse::<String>), value_name = "NAME")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct ExistsArgs {
    /// Name or id
    #[arg(value_parser = text(str::parse::<String>))]
    pub name: String,
}

#[derive(Debug, Args)]
pub struct ImageInspectArgs {
    /// How to print: json, or a template of Go's
    #[arg(short, long, value_parser = text(str::parse::<Format>))]
    pub format: Option<Format>,

    /// Names or ids
    #[arg(value_parser = text(str::parse::<String>), required = true, value_name = "IMAGE")]
    pub names: Vec<String>,
}

impl From<ImageInspectArgs> for InspectArgs {
    fn from(args: ImageInspectArgs) -> Self {
        Self {
            kind: InspectKind::Image,
            format: args.format,
            latest: false,
            size: false,
            names: args.names,
        }
    }
}

#[derive(Debug, Args)]
pub struct ImagePruneArgs {
    /// All that no container uses, whatever names they have
    #[arg(short, long)]
    pub all: bool,

    /// The caches of RUN --mount=type=cache as well
    #[arg(long)]
    pub build_cache: bool,

    /// Do not ask
    #[arg(short, long)]
    pub force: bool,

    /// Only what has this: label=KEY[=VALUE], until=TIME and the others of `images`; may be
    /// repeated
    #[arg(long = "filter", value_parser = text(str::parse::<Filter>), value_name = "KEY=VALUE")]
    pub filters: Vec<Filter>,
}
