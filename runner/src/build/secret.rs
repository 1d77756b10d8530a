//! `--secret`: what a RUN may read and no image keeps.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::str::FromStr;

/// As Docker's: whoever has more has no secret.
const LEN_MAX: u64 = 500 << 10;

/// One `--secret`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    pub id: String,
    source: Source,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    File(PathBuf),
    Env(OsString),
}

impl FromStr for Secret {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut id, mut kind, mut src, mut env) = (None, None, None, None);
        for field in text.split(',') {
            let (name, value) = field.split_once('=').unwrap_or((field, ""));
            let place = match name.trim() {
                "id" => &mut id,
                "type" => &mut kind,
                "src" | "source" => &mut src,
                "env" => &mut env,
                other => return Err(format!("{other:?} is not known: expected {EXPECTED}")),
            };
            if value.is_empty() || place.replace(value.to_owned()).is_some() {
                return Err(format!("{name}: expected one value, as {EXPECTED}"));
            }
        }
        let id = id.ok_or_else(|| format!("expected {EXPECTED}"))?;
        let source = match (kind.as_deref(), src, env) {
            (Some("file") | None, Some(path), None) => Source::File(path.into()),
            (Some("env") | None, None, Some(name)) | (Some("env"), Some(name), None) => {
                Source::Env(name.into())
            }
            (Some("env"), None, None) => Source::Env(id.clone().into()),
            (None, None, None) if std::env::var_os(&id).is_some() => Source::Env(id.clone().into()),
            (Some("file") | None, None, None) => Source::File(id.clone().into()),
            _ => return Err(format!("expected {EXPECTED}")),
        };
        Ok(Self { id, source })
    }
}

const EXPECTED: &str = "id=NAME,src=FILE or id=NAME,env=VARIABLE";

impl Secret {
    /// The secret itself.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let file = match &self.source {
            Source::Env(name) => {
                let unset = || io::Error::other(format!("{} is not set", name.display()));
                return Ok(std::env::var_os(name).ok_or_else(unset)?.into_vec());
            }
            Source::File(path) => std::fs::File::open(path).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })?,
        };
        let mut content = Vec::new();
        file.take(LEN_MAX + 1).read_to_end(&mut content)?;
        match content.len() as u64 > LEN_MAX {
            true => Err(io::Error::other(format!(
                "it is longer than {LEN_MAX} bytes"
            ))),
            false => Ok(content),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_a_file_or_a_variable() {
        let read = |text: &str| text.parse::<Secret>().expect(text);
        assert_eq!(read("id=a,src=f").source, Source::File("f".into()));
        assert_eq!(read("id=a,env=E").source, Source::Env("E".into()));
        assert_eq!(read("type=env,id=a,src=E").source, Source::Env("E".into()));
        assert_eq!(read("id=no-such").source, Source::File("no-such".into()));
        assert_eq!(read("id=PATH").source, Source::Env("PATH".into()));
        for wrong in [
            "",
            "a",
            "src=f",
            "id=a,src=f,env=E",
            "id=a,x=y",
            "id=a,type=z",
            "id=",
        ] {
            wrong.parse::<Secret>().expect_err(wrong);
        }
    }

    #[test]
    fn too_much_is_no_secret() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        let secret = |file: &tempfile::NamedTempFile| {
            let text = format!("id=a,src={}", file.path().display());
            text.parse::<Secret>().expect("a secret").read()
        };
        io::Write::write_all(&mut file, b"x").expect("written");
        assert_eq!(secret(&file).expect("read"), b"x");
        file.as_file().set_len(LEN_MAX + 1).expect("longer");
        secret(&file).expect_err("too long");
        secret(&tempfile::NamedTempFile::new().expect("a file")).expect("an empty one");
        let gone = "id=a,src=/no/such".parse::<Secret>().expect("a secret");
        assert!(
            gone.read()
                .expect_err("gone")
                .to_string()
                .contains("/no/such")
        );
    }
}
