//! How a container has a secret: `--secret NAME[,type=mount|env,target=,uid=,gid=,mode=]`.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Content, SecretsError, io_error};
use crate::fields::Fields;
use crate::path_text;
use crate::units;

/// Where files of secrets are, unless they are asked for elsewhere.
const DIR: &str = "/run/secrets";
/// Beside a container's record.
const KEPT: &str = "secrets";

/// What somebody asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretArg {
    /// Name or id.
    pub wanted: String,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    File {
        target: Option<PathBuf>,
        uid: u32,
        gid: u32,
        mode: u32,
    },
    Variable(Option<String>),
}

/// A secret that a container has, less what it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretUse {
    pub id: String,
    pub name: String,
    pub delivery: Delivery,
}

/// How the container's command gets at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// As a file in memory, whose owner is as the container numbers users.
    File {
        #[serde(with = "path_text")]
        target: PathBuf,
        uid: u32,
        gid: u32,
        mode: u32,
    },
    /// As a variable of this name.
    Variable(String),
}

impl Delivery {
    pub fn is_variable(&self) -> bool {
        matches!(self, Self::Variable(_))
    }

    /// For messages.
    pub fn place(&self) -> String {
        match self {
            Self::File { target, .. } => target.display().to_string(),
            Self::Variable(name) => format!("the variable {name}"),
        }
    }
}

impl FromStr for SecretArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str =
            "expected NAME[,type=mount|env][,target=PLACE][,uid=UID][,gid=GID][,mode=MODE]";
        let mut fields = Fields::split(text)?;
        let wanted = match fields.take(&["source"]) {
            Some(wanted) => wanted.to_owned(),
            None => {
                let first = fields.first().ok_or(EXPECTED)?;
                let bare = fields.flag(first);
                let is_bare =
                    matches!(bare, Ok(Some(true))) && text.split(',').next() == Some(first);
                is_bare.then(|| first.to_owned()).ok_or(EXPECTED)?
            }
        };
        if wanted.is_empty() {
            return Err(EXPECTED.to_owned());
        }
        let target = fields.take(&["target"]).filter(|target| !target.is_empty());
        let id = |name: &str, value: Option<&str>| match value {
            None => Ok(None),
            Some(value) => {
                let id = value.parse::<u32>().ok();
                let id = id.ok_or_else(|| format!("{name}={value}: expected a number"))?;
                Ok::<_, String>(Some(id))
            }
        };
        let kind = fields.take(&["type"]).unwrap_or("mount");
        let (uid, gid) = (
            id("uid", fields.take(&["uid"]))?,
            id("gid", fields.take(&["gid"]))?,
        );
        let mode = fields.take(&["mode"]).map(units::mode).transpose()?;
        if let Some(other) = fields.first() {
            return Err(format!("{other:?} is not known: {EXPECTED}"));
        }
        let kind = match kind {
            "mount" => Kind::File {
                target: target.map(place).transpose()?,
                uid: uid.unwrap_or(0),
                gid: gid.unwrap_or(0),
                mode: mode.unwrap_or(0o444),
            },
            "env" if uid.is_some() || gid.is_some() || mode.is_some() => {
                return Err("uid, gid and mode are of files: a variable has none".to_owned());
            }
            "env" if target.is_some_and(|name| name.contains('=')) => {
                return Err("the name of a variable has no `=` in it".to_owned());
            }
            "env" => Kind::Variable(target.map(str::to_owned)),
            other => return Err(format!("type={other}: there are mount and env")),
        };
        Ok(Self { wanted, kind })
    }
}

/// Where a file is to be, in the container.
fn place(target: &str) -> Result<PathBuf, String> {
    let path = Path::new(DIR).join(target);
    let mut place = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => place.push(name),
            Component::ParentDir => return Err(format!("target={target}: it has a `..` in it")),
            _ => {}
        }
    }
    match place == Path::new("/") || place == Path::new(DIR) {
        true => Err(format!("target={target}: expected the place of a file")),
        false => Ok(place),
    }
}

impl SecretArg {
    /// For the secret that was found.
    pub fn used(&self, id: &str, name: &str) -> SecretUse {
        let delivery = match &self.kind {
            Kind::File {
                target,
                uid,
                gid,
                mode,
            } => Delivery::File {
                target: target.clone().unwrap_or_else(|| Path::new(DIR).join(name)),
                uid: *uid,
                gid: *gid,
                mode: *mode,
            },
            Kind::Variable(target) => Delivery::Variable(target.as_deref().unwrap_or(name).into()),
        };
        SecretUse {
            id: id.to_owned(),
            name: name.to_owned(),
            delivery,
        }
    }
}

/// Keeps what a container's secrets say in its directory, in their order.
pub fn keep(dir: &Path, contents: &[Content]) -> Result<(), SecretsError> {
    if contents.is_empty() {
        return Ok(());
    }
    let dir = dir.join(KEPT);
    let made = DirBuilder::new().mode(0o700).create(&dir);
    made.map_err(io_error("create", &dir))?;
    for (number, content) in contents.iter().enumerate() {
        let path = dir.join(number.to_string());
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        let written = file.and_then(|mut file| file.write_all(content.bytes()));
        written.map_err(io_error("write", &path))?;
    }
    Ok(())
}

/// What so many secrets of a container say.
pub fn kept(dir: &Path, count: usize) -> Result<Vec<Content>, SecretsError> {
    let dir = dir.join(KEPT);
    let read = |number: usize| {
        let path = dir.join(number.to_string());
        let mut bytes = Vec::new();
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path);
        let read = file.and_then(|file| {
            let most = file.take(Content::LEN_MAX as u64);
            { most }.read_to_end(&mut bytes)
        });
        read.map_err(io_error("read", &path))?;
        Content::new(bytes)
    };
    (0..count).map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_files_or_variables() {
        let used = |text: &str| {
            let arg: SecretArg = text
                .parse()
                .unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(arg.wanted, "s", "{text}");
            arg.used("id", "s").delivery
        };
        let file = |target: &str, uid, gid, mode| Delivery::File {
            target: target.into(),
            uid,
            gid,
            mode,
        };
        assert_eq!(used("s"), file("/run/secrets/s", 0, 0, 0o444));
        assert_eq!(
            used("source=s,target=a/b,uid=3,gid=4,mode=0400"),
            file("/run/secrets/a/b", 3, 4, 0o400)
        );
        assert_eq!(
            used("s,type=mount,target=/etc/k"),
            file("/etc/k", 0, 0, 0o444)
        );
        assert_eq!(used("s,type=env"), Delivery::Variable("s".into()));
        assert_eq!(used("s,type=env,target=V"), Delivery::Variable("V".into()));
        for wrong in [
            "",
            "type=env",
            "s,type=x",
            "s,type=env,uid=3",
            "s,type=env,target=a=b",
            "s,foo=bar",
            "s,mode=999",
            "s,uid=x",
            "s,target=../x",
            "s,target=/",
            "s,t",
        ] {
            wrong.parse::<SecretArg>().expect_err(wrong);
        }
    }
}
