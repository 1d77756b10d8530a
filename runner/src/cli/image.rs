//! The options of the commands for images.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::values::text;

#[derive(Debug, Args)]
pub struct ImagesArgs {
    /// Ids only
    #[arg(short, long)]
    pub quiet: bool,

    /// Whole ids, with `sha256:` before them
    #[arg(long)]
    pub no_trunc: bool,

    /// Show the digests of manifests
    #[arg(long)]
    pub digests: bool,

    /// Leave out the names of the columns
    #[arg(short, long)]
    pub noheading: bool,

    /// How to print: a table, unless another form is asked for
    #[arg(long, value_enum)]
    pub format: Option<ListFormat>,

    /// Only this image, under all its names; or all images of this repository
    #[arg(value_parser = text(str::parse::<String>), value_name = "IMAGE")]
    pub image: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    Table,
    Json,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A name is taken from its image; the image goes with its last name. By its id an image is removed that has one name or none, \
and with -f one that has several.

Exit codes: 1 when there is no such image, 2 when a container uses it, 125 for all else.")]
pub struct RmiArgs {
    /// Remove containers of the images as well, and all names of an image that is given by its id
    #[arg(short, long)]
    pub force: bool,

    /// All images
    #[arg(short, long)]
    pub all: bool,

    /// Do not mind images that are not there
    #[arg(short, long)]
    pub ignore: bool,

    /// Names or ids
    #[arg(value_parser = text(str::parse::<String>), value_name = "IMAGE")]
    pub images: Vec<String>,
}

#[derive(Debug, Args)]
pub struct TagArgs {
    /// Name or id of the image
    #[arg(value_parser = text(str::parse::<String>))]
    pub image: String,

    /// New names; one without a registry is localhost's
    #[arg(value_parser = text(str::parse::<String>), required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct UntagArgs {
    /// Name or id of the image
    #[arg(value_parser = text(str::parse::<String>))]
    pub image: String,

    /// The names; without, all that it has
    #[arg(value_parser = text(str::parse::<String>), value_name = "NAME")]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
It may be an archive of `docker save`, `podman save` or `coracle save`, of either form, compressed by gzip or zstd or not at \
all, or the directory of an OCI image layout.")]
pub struct LoadArgs {
    /// Read this file or directory; without, the standard input
    #[arg(short, long, value_name = "PATH")]
    pub input: Option<PathBuf>,

    /// Do not say what was loaded
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct SaveArgs {
    /// Write to this file, or make this directory; without, the standard output
    #[arg(short, long, value_name = "PATH")]
    pub output: Option<PathBuf>,

    /// The form to write
    #[arg(long, value_enum, default_value = "docker-archive")]
    pub format: SaveFormat,

    /// Take all names for images, instead of those behind the first for more names of that
    #[arg(short, long)]
    pub multi_image_archive: bool,

    /// Names or ids
    #[arg(value_parser = text(str::parse::<String>), required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SaveFormat {
    /// A tar that Docker and Podman load
    DockerArchive,
    /// A tar of an OCI image layout
    OciArchive,
    /// The directory of an OCI image layout
    OciDir,
}
