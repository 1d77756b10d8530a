//! What the user's files say of registries: containers-registries.conf(5), as Podman reads it.
//! Short names, mirrors, and which registries may be talked to without TLS.
//!
//! `~/.config/containers/registries.conf` where it is, else `/etc/containers/registries.conf`; then
//! the files of the directory `registries.conf.d` beside each, those of `/etc` first, in the order
//! of their names. A later file replaces the list of registries to be searched and adds aliases.
//! Names that Podman has learnt by asking are read as well.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::reference::ImageRef;
use crate::failure::Explained;
use crate::state::read_regular;

/// Aliases, registries to be searched, and how registries are reached.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    aliases: BTreeMap<String, String>,
    searched: Vec<String>,
    short_names: ShortNames,
    tables: Vec<Table>,
    place: PathBuf,
}

/// What becomes of a short name that several registries may have: `short-name-mode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShortNames {
    /// Somebody is asked, or it is refused.
    #[default]
    Enforcing,
    /// Somebody is asked, or all are tried in their order.
    Permissive,
    /// All are tried in their order.
    Disabled,
}

impl Explained for RegistriesError {}

/// Where an image may be got from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub image: ImageRef,
    /// Whether its certificate need not be good, nor TLS be spoken at all.
    pub insecure: bool,
}

/// A `[[registry]]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Table {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    #[serde(rename = "mirror-by-digest-only")]
    mirror_by_digest_only: bool,
    mirror: Vec<Mirror>,
}

/// A `[[registry.mirror]]`.
#[derive(Debug, Clone, Deserialize)]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default, rename = "pull-from-mirror")]
    pull_from_mirror: String,
}

#[derive(Debug, thiserror::Error)]
pub enum RegistriesError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot read {}: {}", path.display(), source.to_string().trim_end())]
    Toml {
        path: PathBuf,
        source: toml::de::Error,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Conf {
    #[serde(rename = "unqualified-search-registries")]
    searched: Option<Vec<String>>,
    #[serde(rename = "short-name-mode")]
    short_names: Option<ShortNames>,
    aliases: BTreeMap<String, String>,
    #[serde(rename = "registry")]
    tables: Vec<Table>,
}

const ETC: &str = "/etc/containers";

impl Registries {
    /// Reads the files of the calling user.
    pub fn load() -> Result<Self, RegistriesError> {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
        let config = config.or_else(|| Some(home.as_ref()?.join(".config")));
        let config = config.map(|dir| dir.join("containers"));
        let main = |dir: &Path| dir.join("registries.conf");
        let own = config.as_deref().map(main).filter(|path| path.exists());
        let place = own.unwrap_or_else(|| main(Path::new(ETC)));
        let mut files = vec![place.clone()];
        for dir in [Some(Path::new(ETC)), config.as_deref()]
            .into_iter()
            .flatten()
        {
            files.extend(drop_ins(&dir.join("registries.conf.d")));
        }
        files.extend(home.map(|home| home.join(".cache/containers/short-name-aliases.conf")));
        let mut texts = Vec::new();
        for path in files {
            match read_regular(&path) {
                Ok(text) => texts.push((path, String::from_utf8_lossy(&text).into_owned())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(RegistriesError::Read { path, source }),
            }
        }
        let read = Self::parse(texts.iter().map(|(path, text)| (path, text.as_str())))?;
        Ok(Self { place, ..read })
    }

    /// Reads files, each with its name, in their order.
    pub fn parse<'a>(
        files: impl IntoIterator<Item = (impl AsRef<Path>, &'a str)>,
    ) -> Result<Self, RegistriesError> {
        let mut registries = Self {
            place: Path::new(ETC).join("registries.conf"),
            ..Self::default()
        };
        for (path, text) in files {
            let conf: Conf = toml::from_str(text).map_err(|source| RegistriesError::Toml {
                path: path.as_ref().to_owned(),
                source,
            })?;
            if let Some(searched) = conf.searched {
                registries.searched = searched;
            }
            registries.short_names = conf.short_names.unwrap_or(registries.short_names);
            registries.aliases.extend(conf.aliases);
            for table in conf.tables {
                registries
                    .tables
                    .retain(|other| other.prefix() != table.prefix());
                registries.tables.push(table);
            }
        }
        Ok(registries)
    }

    /// What a short name, without tag and digest, stands for. An empty one takes an earlier away.
    pub fn alias(&self, name: &str) -> Option<&str> {
        let alias = self.aliases.get(name).map(String::as_str);
        alias.filter(|alias| !alias.is_empty())
    }

    /// The registries to be searched for other short names.
    pub fn searched(&self) -> &[String] {
        &self.searched
    }

    pub fn short_names(&self) -> ShortNames {
        self.short_names
    }

    /// Where an image may be got from, in this order: mirrors, then its own registry. `None` where
    /// it is blocked.
    pub fn endpoints(&self, image: &ImageRef) -> Option<Vec<Endpoint>> {
        let name = image.name();
        let of_it = self.tables.iter().filter(|table| table.is_for(&name));
        let Some(table) = of_it.max_by_key(|table| table.prefix().len()) else {
            return Some(vec![Endpoint {
                image: image.clone(),
                insecure: false,
            }]);
        };
        if table.blocked {
            return None;
        }
        let by_digest = image.digest().is_some();
        let is_used = |mirror: &&Mirror| match &*mirror.pull_from_mirror {
            "digest-only" => by_digest,
            "tag-only" => !by_digest,
            _ => by_digest || !table.mirror_by_digest_only,
        };
        let mirrors = table.mirror.iter().filter(is_used);
        let mirrors = mirrors.map(|mirror| (&mirror.location, mirror.insecure));
        let places = mirrors.chain([(&table.location, table.insecure)]);
        let at = |(location, insecure): (&String, bool)| {
            let image = match location.is_empty() || location == table.prefix() {
                true => image.clone(),
                false => image.moved(table.prefix(), location)?,
            };
            Some(Endpoint { image, insecure })
        };
        Some(places.filter_map(at).collect())
    }

    /// The file to be changed.
    pub fn place(&self) -> &Path {
        &self.place
    }
}

impl Table {
    /// What the names begin with that this is about.
    fn prefix(&self) -> &str {
        match self.prefix.is_empty() {
            true => &self.location,
            false => &self.prefix,
        }
    }

    fn is_for(&self, name: &str) -> bool {
        let prefix = self.prefix();
        if let Some(domain) = prefix.strip_prefix("*.") {
            let host = name.split('/').next().unwrap_or_default();
            return host
                .strip_suffix(domain)
                .is_some_and(|subdomain| subdomain.ends_with('.'));
        }
        let rest = name.strip_prefix(prefix);
        !prefix.is_empty() && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// A directory that is not there, or is closed, has none.
fn drop_ins(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let mut paths: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|ending| ending == "conf"))
        .collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_files_replace_the_search_and_add_aliases() {
        let read = Registries::parse([
            (
                "1",
                "unqualified-search-registries = [\"a.org\", \"b.org\"]\nshort-name-mode = \"enforcing\"\n\
                 [[registry]]\nlocation = \"x\"\n[aliases]\n\"x\" = \"a.org/x\"\n\"y\" = \"a.org/y\"\n",
            ),
            ("2", "[aliases]\n\"x\" = \"b.org/x\"\n\"y\" = \"\"\n"),
            ("3", "unqualified-search-registries = [\"c.org\"]"),
        ])
        .expect("TOML");
        assert_eq!(read.searched(), ["c.org"]);
        assert_eq!(read.short_names(), ShortNames::Enforcing);
        let other = [("4", "short-name-mode = \"permissive\"")];
        let other = Registries::parse(other).expect("TOML");
        assert_eq!(other.short_names(), ShortNames::Permissive);
        Registries::parse([("5", "short-name-mode = \"loose\"")]).expect_err("no mode");
        assert_eq!(read.alias("x"), Some("b.org/x"));
        assert_eq!(read.alias("y"), None);
        assert_eq!(read.alias("z"), None);
    }

    #[test]
    fn mirrors_come_before_their_registry() {
        let conf = r#"
            [[registry]]
            location = "docker.io"
            [[registry.mirror]]
            location = "mirror.example.org/hub"
            insecure = true
            [[registry.mirror]]
            location = "pinned.example.org"
            pull-from-mirror = "digest-only"
            [[registry]]
            prefix = "docker.io/library/secret"
            blocked = true
            [[registry]]
            prefix = "*.internal"
            location = "127.0.0.1:5000"
            insecure = true
            [[registry]]
            location = "localhost:5000"
            insecure = true
        "#;
        let read = Registries::parse([("registries.conf", conf)]).expect("TOML");
        let endpoints = |name: &str| {
            let endpoints = read.endpoints(&name.parse().expect(name));
            let shown = |end: Endpoint| format!("{} {}", end.image, end.insecure);
            endpoints.map(|all| all.into_iter().map(shown).collect::<Vec<_>>())
        };
        let hex = "0".repeat(64);
        assert_eq!(
            endpoints("docker.io/alpine:3").expect("allowed"),
            [
                "mirror.example.org/hub/library/alpine:3 true",
                "docker.io/library/alpine:3 false"
            ]
        );
        let pinned = endpoints(&format!("docker.io/alpine@sha256:{hex}")).expect("allowed");
        assert_eq!(pinned.len(), 3);
        assert_eq!(endpoints("docker.io/library/secret:1"), None);
        assert_eq!(
            endpoints("docker.io/library/secrets:1")
                .expect("another")
                .len(),
            2
        );
        assert_eq!(
            endpoints("a.internal/x:1").expect("allowed"),
            ["127.0.0.1:5000/x:1 true"]
        );
        assert_eq!(
            endpoints("localhost:5000/x:1").expect("allowed"),
            ["localhost:5000/x:1 true"]
        );
        assert_eq!(
            endpoints("quay.io/x:1").expect("allowed"),
            ["quay.io/x:1 false"]
        );
    }

    #[test]
    fn a_file_that_is_none_is_named() {
        let error = Registries::parse([("/etc/some.conf", "aliases = [")]).expect_err("broken");
        assert!(error.to_string().contains("/etc/some.conf"), "{error}");
    }
}
