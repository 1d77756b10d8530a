//! The options of the commands that make images.

use std::path::PathBuf;

use clap::Args;

use super::image::{PullPolicy, RegistryArgs};
use super::values::text;

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
    #[arg(long, value_parser = text(parse_duration), value_name = "DURATION")]
    pub healthcheck_interval: Option<u64>,

    /// How long a health check may take
    #[arg(long, value_parser = text(parse_duration), value_name = "DURATION")]
    pub healthcheck_timeout: Option<u64>,

    /// How long failed health checks mean nothing after a start
    #[arg(long, value_parser = text(parse_duration), value_name = "DURATION")]
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
    #[arg(long, value_parser = text(parse_mode), value_name = "MODE")]
    pub chmod: Option<u32>,

    /// Copy from this working container or image
    #[arg(long, value_parser = text(str::parse::<String>), value_name = "CONTAINER|IMAGE")]
    pub from: Option<String>,

    /// Do not print a digest of what was copied
    #[arg(short, long)]
    pub quiet: bool,

    /// The container, the sources and, where it is not the container's working directory, the
    /// destination
    #[arg(value_parser = text(str::parse::<String>), required = true, num_args = 2.., value_name = "CONTAINER SOURCE [DESTINATION]")]
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

/// In octal digits, as `chmod(1)` takes it.
pub fn parse_mode(text: &str) -> Result<u32, &'static str> {
    let mode = u32::from_str_radix(text, 8).ok();
    mode.filter(|mode| *mode <= 0o7777)
        .ok_or("expected a mode in octal digits, as 0755")
}

/// Go's durations, as `1h2m3.5s`, in nanoseconds.
pub fn parse_duration(text: &str) -> Result<u64, &'static str> {
    const EXPECTED: &str = "expected a duration, as 30s, 1m30s or 500ms";
    const UNITS: [(&str, f64); 6] = [
        ("ns", 1.0),
        ("us", 1e3),
        ("ms", 1e6),
        ("s", 1e9),
        ("m", 60e9),
        ("h", 3600e9),
    ];
    if text == "0" {
        return Ok(0);
    }
    let mut rest = text;
    let mut nanos = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, tail) = rest.split_at(end.ok_or(EXPECTED)?);
        let number: f64 = number.parse().map_err(|_| EXPECTED)?;
        let end = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let unit = UNITS.iter().find(|(name, _)| *name == unit);
        nanos += number * unit.ok_or(EXPECTED)?.1;
        rest = tail;
    }
    match text.is_empty() {
        true => Err(EXPECTED),
        false => Ok(nanos as u64),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_go_s() {
        assert_eq!(parse_duration("30s"), Ok(30_000_000_000));
        assert_eq!(parse_duration("1m30s"), Ok(90_000_000_000));
        assert_eq!(parse_duration("1.5ms"), Ok(1_500_000));
        assert_eq!(parse_duration("0"), Ok(0));
        for wrong in ["", "3", "s", "1d", "1m3", "-1s", "1..2s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(parse_mode("755"), Ok(0o755));
        assert_eq!(parse_mode("04711"), Ok(0o4711));
        for wrong in ["", "u+x", "8", "77777"] {
            assert!(parse_mode(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*") {
            let _ = (parse_duration(&text), parse_mode(&text));
        }
    }
}
