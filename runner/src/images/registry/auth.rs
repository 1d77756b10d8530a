//! Who a registry is told that we are: the files that Podman, Docker and Skopeo keep, and the
//! helpers that they name (containers-auth.json(5)).
//!
//! An entry for `HOST/PATH` goes before one for `HOST`. Helpers are programs of the user's own,
//! `docker-credential-NAME` in PATH.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::RegistryError;
use crate::state::read_regular;

/// A user name and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub user: String,
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials of {:?}", self.user)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AuthFile {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
}

/// The credentials for a repository, `HOST/PATH`, where any are known. `file` is the only one to be
/// asked where it is given.
pub fn find(repository: &str, file: Option<&Path>) -> Result<Option<Credentials>, RegistryError> {
    let files = match file {
        Some(file) => vec![file.to_owned()],
        None => places().collect(),
    };
    for path in files {
        let text = match read_regular(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && file.is_none() => continue,
            text => text.map_err(RegistryError::io("read", &path))?,
        };
        let read: AuthFile =
            serde_json::from_slice(&text).map_err(|source| RegistryError::AuthFile {
                path: path.clone(),
                source,
            })?;
        if let Some(found) = read.find(repository, &path)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

impl AuthFile {
    fn find(&self, repository: &str, path: &Path) -> Result<Option<Credentials>, RegistryError> {
        let host = repository.split('/').next().unwrap_or(repository);
        let helper = self.cred_helpers.get(host).unwrap_or(&self.creds_store);
        let has_entry = self.auths.keys().any(|key| host_of(key) == host);
        if !helper.is_empty() && (self.cred_helpers.contains_key(host) || has_entry) {
            return ask(helper, host);
        }
        for prefix in Path::new(repository).ancestors() {
            let is_meant = |key: &&String| Path::new(plain(key)) == prefix;
            let Some(key) = self.auths.keys().find(is_meant) else {
                continue;
            };
            let invalid = || RegistryError::AuthEntry {
                path: path.to_owned(),
                registry: key.clone(),
            };
            let text = STANDARD
                .decode(&self.auths[key].auth)
                .map_err(|_| invalid())?;
            let text = String::from_utf8(text).map_err(|_| invalid())?;
            let (user, password) = text.split_once(':').ok_or_else(invalid)?;
            return Ok(Some(Credentials {
                user: user.to_owned(),
                // As Docker pads it.
                password: password.trim_end_matches('\0').to_owned(),
            }));
        }
        Ok(None)
    }
}

/// Docker writes addresses: `https://index.docker.io/v1/`.
fn plain(key: &str) -> &str {
    let key = key.split_once("://").map_or(key, |(_, rest)| rest);
    let key = key.trim_end_matches('/');
    let key = key
        .strip_suffix("/v1")
        .or(key.strip_suffix("/v2"))
        .unwrap_or(key);
    match key {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        key => key,
    }
}

fn host_of(key: &str) -> &str {
    plain(key).split('/').next().unwrap_or_default()
}

/// Asks a helper, in the words of docker-credential-helpers.
fn ask(helper: &str, host: &str) -> Result<Option<Credentials>, RegistryError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let program = format!("docker-credential-{helper}");
    let failed = |cause: String| RegistryError::Helper {
        helper: program.clone(),
        cause,
    };
    let asked = match host {
        "docker.io" => "https://index.docker.io/v1/",
        host => host,
    };
    let ask = || -> io::Result<std::process::Output> {
        let mut child = Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read is wrong by what it says.
            let _ = stdin.write_all(asked.as_bytes());
        }
        child.wait_with_output()
    };
    let output = ask().map_err(|error| failed(error.to_string()))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        // It has none, which is no failure.
        let is_unknown = said.contains("credentials not found");
        return match is_unknown {
            true => Ok(None),
            false => Err(failed(said.trim().to_owned())),
        };
    }
    let answer: Answer = serde_json::from_str(&said).map_err(|error| failed(error.to_string()))?;
    Ok(Some(Credentials {
        user: answer.username,
        password: answer.secret,
    }))
}

/// Where credentials may be, those of containers' tools first.
fn places() -> impl Iterator<Item = PathBuf> {
    let env = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let home = env("HOME");
    let in_home = |path: &str| home.as_ref().map(|home| home.join(path));
    let config = env("XDG_CONFIG_HOME").or_else(|| in_home(".config"));
    let docker = env("DOCKER_CONFIG").or_else(|| in_home(".docker"));
    [
        Some(place()),
        config.map(|dir| dir.join("containers/auth.json")),
        docker.map(|dir| dir.join("config.json")),
    ]
    .into_iter()
    .flatten()
}

/// The file that `login` writes, as Podman's: it goes with the session.
pub fn place() -> PathBuf {
    let env = |name: &str| std::env::var_os(name).map(PathBuf::from);
    if let Some(file) = env("REGISTRY_AUTH_FILE") {
        return file;
    }
    match env("XDG_RUNTIME_DIR") {
        Some(dir) => dir.join("containers/auth.json"),
        None => match crate::isolation::idmap::caller_uid() {
            0 => PathBuf::from("/run/containers/0/auth.json"),
            _ => env("HOME")
                .unwrap_or_default()
                .join(".config/containers/auth.json"),
        },
    }
}

/// Keeps credentials for a registry, or forgets them. What else is in the file stays. Returns
/// whether there were any before.
pub fn keep(
    registry: &str,
    credentials: Option<&Credentials>,
    path: &Path,
) -> Result<bool, RegistryError> {
    #[derive(Serialize)]
    struct Kept {
        auth: String,
    }
    let malformed = |source| RegistryError::AuthFile {
        path: path.to_owned(),
        source,
    };
    let mut file: Map<String, Value> = match read_regular(path) {
        Ok(text) => serde_json::from_slice(&text).map_err(malformed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Map::new(),
        Err(error) => return Err(RegistryError::io("read", path)(error)),
    };
    let auths = file.entry("auths").or_insert_with(|| Map::new().into());
    let Value::Object(auths) = auths else {
        return Err(malformed(serde::de::Error::custom("auths is no object")));
    };
    let before = auths.len();
    auths.retain(|key, _| plain(key) != registry);
    let there = auths.len() < before;
    if let Some(Credentials { user, password }) = credentials {
        let auth = STANDARD.encode(format!("{user}:{password}"));
        let kept = serde_json::to_value(Kept { auth });
        auths.insert(registry.to_owned(), kept.expect("text"));
    } else if !there {
        return Ok(false);
    }
    let text = serde_json::to_vec_pretty(&file).expect("it has been read as JSON");
    let write = || -> io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(dir)?;
        // Its owner's alone, as temporary files are.
        let mut new = tempfile::NamedTempFile::new_in(dir)?;
        new.write_all(&text)?;
        new.persist(path)?;
        Ok(())
    };
    write().map_err(RegistryError::io("write", path))?;
    Ok(there)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn found(text: &str, repository: &str) -> Option<(String, String)> {
        let file: AuthFile = serde_json::from_str(text).expect("JSON");
        let found = file.find(repository, Path::new("f")).expect("readable");
        found.map(|found| (found.user, found.password))
    }

    fn pair(user: &str, password: &str) -> Option<(String, String)> {
        Some((user.to_owned(), password.to_owned()))
    }

    #[test]
    fn the_nearest_entry_counts() {
        // a:b, c:d, and e:f with Docker's padding.
        let text = r#"{"auths": {
            "quay.io": {"auth": "YTpi"}, "quay.io/team": {"auth": "Yzpk"},
            "https://index.docker.io/v1/": {"auth": "ZTpmAAA="}
        }}"#;
        assert_eq!(found(text, "quay.io/x/y"), pair("a", "b"));
        assert_eq!(found(text, "quay.io/team/y"), pair("c", "d"));
        assert_eq!(found(text, "quay.io/teams/y"), pair("a", "b"));
        assert_eq!(found(text, "docker.io/library/x"), pair("e", "f"));
        assert_eq!(found(text, "example.org/x"), None);
        assert_eq!(found("{}", "quay.io/x"), None);
        for wrong in ["!", "YQ==", "/w=="] {
            let text = format!(r#"{{"auths": {{"quay.io": {{"auth": "{wrong}"}}}}}}"#);
            let file: AuthFile = serde_json::from_str(&text).expect("JSON");
            file.find("quay.io/x", Path::new("f")).expect_err(wrong);
        }
    }

    #[test]
    fn what_is_kept_is_found_and_what_else_is_there_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("deep/auth.json");
        let mine = Credentials {
            user: "me".to_owned(),
            password: "a:b".to_owned(),
        };
        assert!(!keep("quay.io", None, &path).expect("nothing to forget"));
        assert!(!keep("quay.io", Some(&mine), &path).expect("kept"));
        let mode = std::fs::metadata(&path)
            .expect("a file")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            find("quay.io/x", Some(&path)).expect("read"),
            Some(mine.clone())
        );
        assert!(!format!("{mine:?}").contains("a:b"));
        let text = std::fs::read_to_string(&path).expect("text");
        std::fs::write(&path, text.replacen('{', "{\"other\": 1,", 1)).expect("written");
        keep("example.org", Some(&mine), &path).expect("kept");
        assert!(keep("quay.io", None, &path).expect("forgotten"));
        assert_eq!(find("quay.io/x", Some(&path)).expect("read"), None);
        let text = std::fs::read_to_string(&path).expect("text");
        assert!(
            text.contains("example.org") && text.contains("other"),
            "{text}"
        );
    }
}
