//! The flags of commands on the files of containers and images.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Args;

use super::values::{Switch, bytes, text};

#[derive(Debug, Args)]
#[command(after_help = "\
  coracle cp ./site web:/srv             into the directory /srv, or as it where there is none
  coracle cp ./site/. web:/srv           what is in ./site
  coracle cp web:/var/log/app.log .      out of a container, whether it runs or not
  coracle cp web:/srv - | tar tv         as a tar
  coracle cp web:/srv other:/srv

What is relative begins in the working directory, the container's or yours. A path of yours with a `:` in it begins with / or .")]
pub struct CpArgs {
    /// Give what comes into a container to the user of its command; else it keeps its owners
    #[arg(short, long, on(), value_name = "true|false")]
    pub archive: bool,

    /// Let directories and other files come into each other's places
    #[arg(long)]
    pub overwrite: bool,

    /// What to copy: CONTAINER:PATH, a path, or - for a tar from standard input
    #[arg(value_name = "FROM", value_parser = bytes(CopyPlace::parse))]
    pub from: CopyPlace,

    /// Where to: CONTAINER:PATH, a path, or - for a tar to standard output
    #[arg(value_name = "TO", value_parser = bytes(CopyPlace::parse))]
    pub to: CopyPlace,
}

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CopyPlace {
    Stream,
    Host(OsString),
    Container { name: String, path: OsString },
}

impl CopyPlace {
    fn parse(text: &OsStr) -> Result<Self, &'static str> {
        let bytes = text.as_bytes();
        let colon = bytes.iter().position(|byte| *byte == b':');
        match (bytes, colon) {
            ([], _) | (_, Some(0)) => Err("the name of a container or a path is missing"),
            ([b'-'], _) => Ok(Self::Stream),
            ([b'/' | b'.', ..], _) | (_, None) => Ok(Self::Host(text.to_owned())),
            (_, Some(colon)) => {
                let (name, path) = (&bytes[..colon], &bytes[colon + 1..]);
                let name = str::from_utf8(name).map_err(|_| "no container is named so")?;
                if path.is_empty() {
                    return Err("the path behind the container is missing");
                }
                Ok(Self::Container {
                    name: name.to_owned(),
                    path: OsStr::from_bytes(path).to_owned(),
                })
            }
        }
    }
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The file to write [default: standard output, which is no terminal then]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Name or id
    #[arg(value_parser = text(str::parse::<String>))]
    pub container: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Each line begins with A for what was added, C for what was changed, D for what was deleted. A container is compared with what it \
was made from, an image with its layers but the uppermost, or either with another one.")]
pub struct DiffArgs {
    /// How to print: json
    #[arg(long, value_parser = text(parse_json), value_name = "json")]
    pub format: Option<Json>,

    /// The container that was made last
    #[arg(short, long)]
    pub latest: bool,

    /// Names or ids: what is compared, and what with
    #[arg(value_parser = text(str::parse::<String>), value_name = "CONTAINER|IMAGE", num_args = 0..=2)]
    pub names: Vec<String>,
}

/// The one format that there is.
#[derive(Debug, Clone, Copy)]
pub struct Json;

fn parse_json(text: &str) -> Result<Json, &'static str> {
    match text {
        "json" => Ok(Json),
        _ => Err("there is json"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_of_a_container_or_the_hosts() {
        let parse = |text: &str| CopyPlace::parse(OsStr::new(text));
        let host = |path: &str| Ok(CopyPlace::Host(path.into()));
        let container = |name: &str, path: &str| {
            Ok(CopyPlace::Container {
                name: name.into(),
                path: path.into(),
            })
        };
        assert_eq!(parse("web:/srv"), container("web", "/srv"));
        assert_eq!(parse("web:a:b/"), container("web", "a:b/"));
        for path in ["a", "/a:b", "./a:b", "..", "-a"] {
            assert_eq!(parse(path), host(path));
        }
        assert_eq!(parse("-"), Ok(CopyPlace::Stream));
        for wrong in ["", ":", ":/a", "web:"] {
            parse(wrong).expect_err(wrong);
        }
    }
}
