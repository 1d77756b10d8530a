//! Secrets: what containers may read, and nothing else keeps.
//!
//! `DATA/secrets/NAME` is a file that nobody else may read, with the secret and what is known of
//! it. A container that is to have one gets a copy beside its record, so that it has it for good.
//! Neither the record nor the specification, what `inspect` tells or a log ever holds what a secret
//! says; in the container it is in memory.

mod usage;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use crate::failure::Explained;
use crate::random::random;
use crate::state::{Store, now, read_regular};

pub use usage::{Delivery, SecretArg, SecretUse, keep, kept};

/// What a secret says. It is told to nobody by accident.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Content(Vec<u8>);

impl Content {
    /// As Podman's.
    pub const LEN_MAX: usize = 512_000;

    pub fn new(bytes: Vec<u8>) -> Result<Self, SecretsError> {
        match (1..Self::LEN_MAX).contains(&bytes.len()) {
            true => Ok(Self(bytes)),
            false => Err(SecretsError::Len),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret")
    }
}

impl From<Content> for String {
    fn from(content: Content) -> Self {
        BASE64_STANDARD.encode(content.0)
    }
}

impl TryFrom<String> for Content {
    type Error = base64::DecodeError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        BASE64_STANDARD.decode(text).map(Self)
    }
}

/// A secret that is there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Secret {
    version: u32,
    /// 25 hexadecimal digits.
    pub id: String,
    pub name: String,
    /// Seconds since 1970; and when it was replaced last.
    pub created: u64,
    pub updated: u64,
    pub labels: BTreeMap<String, String>,
    pub content: Content,
}

const VERSION: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("there is no secret {name:?}; `coracle secret ls` lists them")]
    NotFound { name: String },
    #[error("several secrets have an id that begins with {name:?}: give more digits")]
    Ambiguous { name: String },
    #[error("there is a secret {name:?} already: --replace replaces it")]
    Exists { name: String },
    #[error(
        "{name:?} cannot name a secret: use up to 64 letters, digits, `_`, `.` and `-`, with a letter or a digit at both ends"
    )]
    Name { name: String },
    #[error("a secret has at least 1 byte, and less than {}", Content::LEN_MAX)]
    Len,
    #[error("two secrets are both for {place}")]
    SamePlace { place: String },
    #[error("the secret {name} holds a NUL byte, which no variable can: give it as a file")]
    Nul { name: String },
    #[error("{} is damaged: {defect}", path.display())]
    Damaged { path: PathBuf, defect: String },
}

impl Explained for SecretsError {}

/// The secrets of one user. Cheap to make.
#[derive(Debug, Clone)]
pub struct Secrets {
    root: PathBuf,
}

impl Secrets {
    pub fn of(store: &Store) -> Self {
        Self {
            root: store.dirs().secrets(),
        }
    }

    /// Keeps a secret, in place of the one of that name where it `replaces` that.
    pub fn create(
        &self,
        name: &str,
        content: Content,
        labels: BTreeMap<String, String>,
        replaces: bool,
    ) -> Result<Secret, SecretsError> {
        if !is_valid_name(name) {
            return Err(SecretsError::Name { name: name.into() });
        }
        let made = DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&self.root);
        made.map_err(io_error("create", &self.root))?;
        let path = self.root.join(name);
        let secret = Secret {
            version: VERSION,
            id: random_id().map_err(io_error("find a number for", &path))?,
            name: name.to_owned(),
            created: now(),
            updated: now(),
            labels,
            content,
        };
        let text = serde_json::to_vec(&secret).expect("it has only strings and numbers");
        let write = || -> io::Result<tempfile::NamedTempFile> {
            // For its owner alone.
            let mut file = tempfile::NamedTempFile::new_in(&self.root)?;
            file.write_all(&text)?;
            file.as_file().sync_all()?;
            Ok(file)
        };
        let file = write().map_err(io_error("write", &path))?;
        let persisted = match replaces {
            true => file.persist(&path),
            false => file.persist_noclobber(&path),
        };
        match persisted {
            Ok(_) => Ok(secret),
            Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
                Err(SecretsError::Exists { name: name.into() })
            }
            Err(error) => Err(io_error("write", &path)(error.error)),
        }
    }

    /// All, in the order of their names.
    pub fn list(&self) -> Result<Vec<Secret>, SecretsError> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(io_error("list", &self.root))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(io_error("list", &self.root))?.file_name();
            // What is just being written has another name.
            names.extend(name.into_string().ok().filter(|name| is_valid_name(name)));
        }
        names.sort();
        let read = |name: String| match self.read(&name) {
            // Removed meanwhile.
            Err(SecretsError::NotFound { .. }) => None,
            read => Some(read),
        };
        names.into_iter().filter_map(read).collect()
    }

    /// By its name, its id or the beginning of its id.
    pub fn find(&self, wanted: &str) -> Result<Secret, SecretsError> {
        match is_valid_name(wanted) {
            true => match self.read(wanted) {
                Err(SecretsError::NotFound { .. }) => {}
                read => return read,
            },
            false => {
                return Err(SecretsError::NotFound {
                    name: wanted.into(),
                });
            }
        }
        let mut found = self.list()?;
        found.retain(|secret| secret.id.starts_with(wanted));
        match (found.pop(), found.is_empty()) {
            (None, _) => Err(SecretsError::NotFound {
                name: wanted.into(),
            }),
            (Some(secret), true) => Ok(secret),
            (Some(_), false) => Err(SecretsError::Ambiguous {
                name: wanted.into(),
            }),
        }
    }

    pub fn remove(&self, secret: &Secret) -> Result<(), SecretsError> {
        let path = self.root.join(&secret.name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(SecretsError::NotFound {
                name: secret.name.clone(),
            }),
            removed => removed.map_err(io_error("remove", &path)),
        }
    }

    fn read(&self, name: &str) -> Result<Secret, SecretsError> {
        let path = self.root.join(name);
        let text = match read_regular(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(SecretsError::NotFound { name: name.into() });
            }
            text => text.map_err(io_error("read", &path))?,
        };
        let damaged = |defect: String| SecretsError::Damaged {
            path: path.clone(),
            defect,
        };
        let secret: Secret =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        match secret.version {
            VERSION => Ok(secret),
            version => Err(damaged(format!(
                "it has version {version}, and this coracle knows version {VERSION}"
            ))),
        }
    }
}

/// Names are names of files.
fn is_valid_name(name: &str) -> bool {
    let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    bytes.len() <= 64
        && is_end(bytes.first())
        && is_end(bytes.last())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

fn random_id() -> io::Result<String> {
    let digits: String = random::<13>()?
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok(digits[..25].to_owned())
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SecretsError {
    let path = path.to_owned();
    move |source| SecretsError::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn content(text: &str) -> Content {
        Content::new(text.into()).expect("a secret")
    }

    #[test]
    fn secrets_are_kept_found_replaced_and_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let secrets = Secrets {
            root: dir.path().join("secrets"),
        };
        let create = |name: &str, text: &str, replaces| {
            secrets.create(name, content(text), BTreeMap::new(), replaces)
        };
        assert!(secrets.list().expect("none").is_empty());
        let one = create("one", "1", false).expect("made");
        create("two", "2", false).expect("made");
        for wanted in ["one", &one.id, &one.id[..20]] {
            let found = secrets.find(wanted).expect(wanted);
            assert_eq!(found.content.bytes(), b"1");
        }
        let error = create("one", "x", false).expect_err("there").to_string();
        assert!(error.contains("--replace"), "{error}");
        create("one", "3", true).expect("replaced");
        assert_eq!(secrets.find("one").expect("it").content.bytes(), b"3");
        let file = fs::metadata(secrets.root.join("one")).expect("a file");
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
        let names: Vec<_> = secrets
            .list()
            .expect("two")
            .into_iter()
            .map(|s| s.name)
            .collect();
        assert_eq!(names, ["one", "two"]);
        secrets.remove(&one).expect("removed");
        secrets.remove(&one).expect_err("gone");
        fs::write(secrets.root.join("bad"), "{").expect("written");
        secrets.find("bad").expect_err("damaged");
    }

    #[test]
    fn a_secret_is_not_printed() {
        let secret = format!("{:?}", content("hush"));
        assert!(!secret.contains("hush"));
        Content::new(Vec::new()).expect_err("nothing");
        Content::new(vec![0; Content::LEN_MAX]).expect_err("too much");
        Content::new(vec![0; Content::LEN_MAX - 1]).expect("as much as can be");
    }

    #[test]
    fn names_are_plain() {
        for name in ["a", "a.b-c_d", &"a".repeat(64)] {
            assert!(is_valid_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "-a", "a.", "é", &"a".repeat(65)] {
            assert!(!is_valid_name(name), "{name}");
        }
    }
}
