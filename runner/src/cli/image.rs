//! The options of the commands for images.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::filter::Filter;
use super::values::{Switch, parse_count, text};
use crate::images::destination::Destination;
use crate::images::import::Change;
use crate::images::platform::Platform;
use crate::images::registry::auth::Credentials;
use crate::images::registry::form::ManifestForm;
use crate::template::Format;

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

    /// How to print: json, table, or a template of Go's with .ID, .Repository, .Tag, .Digest,
    /// .CreatedSince, .CreatedAt, .Size, .Names, .Labels and others; `table TEMPLATE` makes columns
    #[arg(long, value_parser = text(str::parse::<Format>))]
    pub format: Option<Format>,

    /// Only what has this: after=IMAGE, before=IMAGE, containers=BOOL, dangling=BOOL, id=ID,
    /// label=KEY[=VALUE], reference=PATTERN, since=IMAGE, until=TIME; may be repeated
    #[arg(short, long = "filter", value_parser = text(str::parse::<Filter>), value_name = "KEY=VALUE")]
    pub filters: Vec<Filter>,

    /// By what they are put in order
    #[arg(long, value_enum, default_value = "created")]
    pub sort: ImageOrder,

    /// Also those without a name that a build has made on the way to others
    #[arg(short, long)]
    pub all: bool,

    /// Only this image, under all its names; or all images of this repository
    #[arg(value_parser = text(str::parse::<String>), value_name = "IMAGE")]
    pub image: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ImageOrder {
    Created,
    Id,
    Repository,
    Size,
    Tag,
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

/// How secure the talk with a registry is.
#[derive(Debug, Default, Args)]
pub struct TlsArgs {
    /// Whether the registry has to speak TLS, and show a certificate that is trusted; without, what
    /// registries.conf says
    #[arg(long, switch(), value_name = "true|false")]
    pub tls_verify: Option<bool>,

    /// Trust the authorities whose certificates are in this directory, *.crt, instead of those of
    /// certs.d
    #[arg(long, value_name = "DIR")]
    pub cert_dir: Option<PathBuf>,
}

/// How to get at a registry.
#[derive(Debug, Default, Args)]
pub struct AccessArgs {
    #[command(flatten)]
    pub tls: TlsArgs,

    /// Read user names and passwords from this file only
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,

    /// User name and password for the registry
    #[arg(long, value_parser = text(parse_credentials), value_name = "USER:PASSWORD")]
    pub creds: Option<Credentials>,
}

/// How images are got from registries.
#[derive(Debug, Default, Args)]
pub struct RegistryArgs {
    /// Get the image for another kind of machine: OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT
    #[arg(
        long,
        value_parser = text(str::parse::<Platform>),
        value_name = "PLATFORM",
        conflicts_with_all = ["arch", "os", "variant"]
    )]
    platform: Option<Platform>,

    /// Get the image for another architecture, as arm64
    #[arg(long, value_parser = text(str::parse::<String>), value_name = "ARCHITECTURE")]
    arch: Option<String>,

    /// Get the image for another operating system
    #[arg(long, value_parser = text(str::parse::<String>), value_name = "OS")]
    os: Option<String>,

    /// Get the image for this variant of the architecture
    #[arg(long, value_parser = text(str::parse::<String>), value_name = "VARIANT")]
    variant: Option<String>,

    #[command(flatten)]
    pub tls: TlsArgs,

    /// Read user names and passwords from this file only
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
}

impl RegistryArgs {
    /// What machine an image is to be for, if anything is said of that.
    pub fn platform(&self) -> Option<Platform> {
        let said = [&self.os, &self.arch, &self.variant];
        match said.iter().any(|part| part.is_some()) {
            true => Some(Platform::this().with(said.map(Clone::clone))),
            false => self.platform.clone(),
        }
    }
}

#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// Ids only
    #[arg(short, long)]
    pub quiet: bool,

    /// Whole ids, and whole commands
    #[arg(long)]
    pub no_trunc: bool,

    /// Times and sizes as people read them
    #[arg(short = 'H', long, on(), value_name = "true|false")]
    pub human: bool,

    /// How to print: json, table, or a template of Go's with .ID, .Created, .CreatedAt,
    /// .CreatedBy, .Size, .Comment and .Tags; `table TEMPLATE` makes columns
    #[arg(short, long, value_parser = text(str::parse::<Format>))]
    pub format: Option<Format>,

    /// Name or id of the image
    #[arg(value_parser = text(str::parse::<String>))]
    pub image: String,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// What the image is to say of how it is run, as in a Containerfile: CMD, ENTRYPOINT, ENV,
    /// EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR, and a value; may be repeated
    #[arg(
        short = 'c',
        long = "change",
        value_parser = text(str::parse::<Change>),
        value_name = "INSTRUCTION"
    )]
    pub changes: Vec<Change>,

    /// A comment for the image's history
    #[arg(short, long, value_parser = text(str::parse::<String>))]
    pub message: Option<String>,

    /// The tar, compressed by gzip or zstd or not at all; `-` for the standard input
    pub path: PathBuf,

    /// Name for the image; one without a registry is localhost's
    #[arg(value_parser = text(str::parse::<String>))]
    pub name: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A name without a registry is looked up among the aliases of registries.conf, and then in the registries of \
unqualified-search-registries. Where there are several, somebody at a terminal is asked; else it is refused or, with \
short-name-mode permissive or disabled, all are tried in their order. docker.io/library/NAME is Docker Hub's.

containers-storage:IMAGE is one that Podman or buildah has; oci-archive:FILE, docker-archive:FILE and oci:DIR are loaded.

Downloads that broke off go on where they ended. Passwords are those of `coracle login`, `podman login` and `docker login`.")]
pub struct PullArgs {
    /// Print the id only
    #[arg(short, long)]
    pub quiet: bool,

    #[command(flatten)]
    pub registry: RegistryArgs,

    /// User name and password for the registry
    #[arg(long, value_parser = text(parse_credentials), value_name = "USER:PASSWORD")]
    pub creds: Option<Credentials>,

    /// Names
    #[arg(value_parser = text(str::parse::<String>), required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Without a destination the image goes to the registry that its name says. A destination may be
  docker://REGISTRY/NAME[:TAG], or the same without docker://
  oci-archive:FILE[:NAME]        a tar of an OCI image layout
  oci:DIR[:NAME]                 the directory of one, which may hold other images
  docker-archive:FILE[:NAME]     a tar that Docker and Podman load; FILE must not exist

What the registry has already is not sent again. Layers that are not compressed are, on their way to a registry.")]
pub struct PushArgs {
    /// Say nothing but what goes wrong
    #[arg(short, long)]
    pub quiet: bool,

    /// In whose words the registry gets the manifest: oci or v2s2, Docker's; without, in those that
    /// the image has here
    #[arg(short, long, value_parser = text(str::parse::<ManifestForm>))]
    pub format: Option<ManifestForm>,

    /// Write the digest of the image's manifest, as it is at its destination, to this file
    #[arg(long, value_name = "FILE")]
    pub digestfile: Option<PathBuf>,

    #[command(flatten)]
    pub access: AccessArgs,

    /// Name or id of the image
    #[arg(value_parser = text(str::parse::<String>))]
    pub image: String,

    /// Where it goes
    #[arg(value_parser = text(str::parse::<Destination>))]
    pub destination: Option<Destination>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A term is REGISTRY/TEXT, REGISTRY/ for all that it has, or text that is looked for in the registries of \
unqualified-search-registries. The registry's catalogue is read, which not every registry has; Docker Hub has none.")]
pub struct SearchArgs {
    /// At most so many of each registry
    #[arg(long, value_parser = text(parse_count), default_value = "25", value_name = "N")]
    pub limit: usize,

    /// List the tags of the repository that the term names
    #[arg(long)]
    pub list_tags: bool,

    /// Nothing is shortened, whether this is given or not
    #[arg(long)]
    pub no_trunc: bool,

    /// Leave out the names of the columns
    #[arg(long)]
    pub noheading: bool,

    /// How to print: json, table, or a template of Go's with .Index, .Name, .Description and .Tag;
    /// `table TEMPLATE` makes columns
    #[arg(long, value_parser = text(str::parse::<Format>))]
    pub format: Option<Format>,

    #[command(flatten)]
    pub access: AccessArgs,

    /// What is looked for
    #[arg(value_parser = text(str::parse::<String>))]
    pub term: String,
}

/// When `run` pulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PullPolicy {
    Always,
    Missing,
    Newer,
    Never,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The password is kept as it is in the file that `podman login` writes, $XDG_RUNTIME_DIR/containers/auth.json, which goes with \
the session.")]
pub struct LoginArgs {
    /// User name; without, it is asked for
    #[arg(short, long, value_parser = text(str::parse::<String>))]
    pub username: Option<String>,

    /// Password; better given by --password-stdin, since everybody on this host sees arguments
    #[arg(short, long, value_parser = text(str::parse::<String>))]
    pub password: Option<String>,

    /// Read the password from the standard input
    #[arg(long)]
    pub password_stdin: bool,

    /// Print the user name that is kept, and ask for nothing
    #[arg(long)]
    pub get_login: bool,

    #[command(flatten)]
    pub tls: TlsArgs,

    /// Keep it in this file
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,

    /// Host, with a port if it has one of its own
    #[arg(value_parser = text(parse_registry))]
    pub registry: String,
}

#[derive(Debug, Args)]
pub struct LogoutArgs {
    /// Forget it in this file
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,

    /// Host, with a port if it has one of its own
    #[arg(value_parser = text(parse_registry))]
    pub registry: String,
}

fn parse_credentials(text: &str) -> Result<Credentials, &'static str> {
    let (user, password) = text.split_once(':').ok_or("expected USER:PASSWORD")?;
    Ok(Credentials {
        user: user.to_owned(),
        password: password.to_owned(),
    })
}

/// Docker's users give an address, too.
fn parse_registry(text: &str) -> Result<String, &'static str> {
    let host = text.split_once("://").map_or(text, |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or_default();
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':');
    match !host.is_empty() && host.bytes().all(is_host) {
        true => Ok(host.to_owned()),
        false => Err("expected the name of a host, as quay.io"),
    }
}
