//! What the user's files say of registries: containers-registries.conf(5), as Podman reads it.
//!
//! `~/.config/containers/registries.conf` where it is, else `/etc/containers/registries.conf`; then
//! the files of the directory `registries.conf.d` beside each, those of `/etc` first, in the order
//! of their names. A later file replaces the list of registries to be searched and adds aliases.
//! Names that Podman has learnt by asking are read as well.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::state::read_regular;

/// Aliases, and registries to be searched.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    aliases: BTreeMap<String, String>,
    searched: Vec<String>,
    place: PathBuf,
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
    aliases: BTreeMap<String, String>,
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
            registries.aliases.extend(conf.aliases);
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

    /// The file to be changed.
    pub fn place(&self) -> &Path {
        &self.place
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
        assert_eq!(read.alias("x"), Some("b.org/x"));
        assert_eq!(read.alias("y"), None);
        assert_eq!(read.alias("z"), None);
    }

    #[test]
    fn a_file_that_is_none_is_named() {
        let error = Registries::parse([("/etc/some.conf", "aliases = [")]).expect_err("broken");
        assert!(error.to_string().contains("/etc/some.conf"), "{error}");
    }
}
