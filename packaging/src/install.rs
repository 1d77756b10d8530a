//! Files and where they go below a prefix.
//!
//! A file is written beside its place and renamed, so that a program that runs meanwhile goes on
//! with the old one and nobody ever finds half a file.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("cannot run {}: {source}", program.display())]
    Run { program: PathBuf, source: io::Error },
    #[error("the programs could not be built")]
    Build,
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}; does it belong to another user?", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// A file to be put in place.
pub struct File {
    /// Below the prefix.
    pub path: PathBuf,
    pub contents: Vec<u8>,
    mode: u32,
}

impl File {
    pub fn document(path: PathBuf, contents: Vec<u8>) -> Self {
        Self {
            path,
            contents,
            mode: 0o644,
        }
    }

    fn program(name: &str, contents: Vec<u8>) -> Self {
        Self {
            path: Path::new("bin").join(name),
            contents,
            mode: 0o755,
        }
    }

    /// Returns where it is then.
    pub fn place_below(&self, prefix: &Path) -> Result<PathBuf, InstallError> {
        let place = prefix.join(&self.path);
        let error = |source| InstallError::Write {
            path: place.clone(),
            source,
        };
        let dir = place.parent().expect("below a prefix");
        fs::create_dir_all(dir).map_err(error)?;
        let mut name = place.file_name().expect("a file's path").to_owned();
        name.push(".new");
        let new = dir.join(name);
        fs::write(&new, &self.contents)
            .and_then(|()| fs::set_permissions(&new, fs::Permissions::from_mode(self.mode)))
            .and_then(|()| fs::rename(&new, &place))
            .map_err(error)?;
        Ok(place)
    }
}

/// Builds the programs as they are shipped.
pub fn programs() -> Result<Vec<File>, InstallError> {
    let cargo = PathBuf::from(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a member of the workspace");
    let status = Command::new(&cargo)
        .current_dir(workspace)
        .args(["build", "--release", "--locked"])
        .args(["--package", "coracle", "--package", "coracle-netstack"])
        .status()
        .map_err(|source| InstallError::Run {
            program: cargo,
            source,
        })?;
    if !status.success() {
        return Err(InstallError::Build);
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    ["coracle", "coracle-net"]
        .into_iter()
        .map(|name| {
            let path = workspace.join(&target).join("release").join(name);
            match fs::read(&path) {
                Ok(contents) => Ok(File::program(name, contents)),
                Err(source) => Err(InstallError::Read { path, source }),
            }
        })
        .collect()
}

/// What is left to do for somebody whose shell does not look below `prefix`.
pub fn advice(prefix: &Path, path: &OsStr) -> Vec<String> {
    let mut advice = Vec::new();
    let bin = prefix.join("bin");
    if !is_in(&bin, path) {
        advice.push(format!("PATH does not have {} yet", bin.display()));
    }
    if !SYSTEM_PREFIXES.iter().any(|system| prefix == *system) {
        advice.push(format!(
            "zsh finds its completions with fpath+=({}/share/zsh/site-functions) before compinit",
            prefix.display()
        ));
    }
    advice
}

/// Where every shell looks; bash, fish and man look below ~/.local as well.
const SYSTEM_PREFIXES: [&str; 2] = ["/usr", "/usr/local"];

fn is_in(dir: &Path, path: &OsStr) -> bool {
    std::env::split_paths(path).any(|entry| entry == dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_takes_the_place_of_another() {
        let prefix = tempfile::tempdir().unwrap();
        let old = File::program("coracle", b"old".to_vec());
        let new = File::program("coracle", b"new".to_vec());
        let place = old.place_below(prefix.path()).unwrap();
        let running = fs::File::open(&place).unwrap();
        assert_eq!(new.place_below(prefix.path()).unwrap(), place);

        assert_eq!(fs::read(&place).unwrap(), b"new");
        let mode = fs::metadata(&place).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert_eq!(io::read_to_string(running).unwrap(), "old");
        let names = fs::read_dir(prefix.path().join("bin")).unwrap().count();
        assert_eq!(names, 1, "nothing else is left there");
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let prefix = tempfile::tempdir().unwrap();
        fs::write(prefix.path().join("share"), "").unwrap();
        let file = File::document("share/man/x.1".into(), Vec::new());
        let error = file.place_below(prefix.path()).unwrap_err().to_string();
        assert!(error.contains("share/man/x.1"), "{error}");
    }

    #[test]
    fn what_shells_do_not_look_at_is_said() {
        let path = OsStr::new("/usr/local/bin:/home/me/.local/bin");
        assert_eq!(advice(Path::new("/usr/local"), path), [""; 0]);
        let own = advice(Path::new("/home/me/.local"), path);
        assert!(own.len() == 1 && own[0].contains("fpath"), "{own:?}");
        let other = advice(Path::new("/opt/coracle"), path);
        assert!(other[0].contains("/opt/coracle/bin"), "{other:?}");
    }
}
