//! The two directories of a user: `run` for what dies with the session or the boot (sockets),
//! `data` for what lasts (records, images, writable layers, logs).
//!
//! Follows the XDG base directory specification where its variables can be trusted. The fallback
//! under /tmp can be made in advance by anyone, so a run directory is used only when it is a real
//! directory, ours, and closed to others.

use std::env;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::User;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use super::StateError;
use crate::isolation::idmap::caller_uid;
use crate::path_text;

/// Mode of both directories: their owner's alone, since a setuid file in an image would otherwise
/// be anybody's.
const PRIVATE: u32 = 0o700;

/// The directories of one user. Both exist and are private.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dirs {
    /// Sockets and other things of running processes; may vanish at log-out or reboot.
    #[serde(with = "path_text")]
    pub run: PathBuf,
    /// Records, images, writable layers and logs.
    #[serde(with = "path_text")]
    pub data: PathBuf,
}

impl Dirs {
    /// Finds and creates the directories of the calling user, who is root in a user namespace of
    /// `coracle unshare` and has the same ones.
    ///
    /// Root has /run/coracle and /var/lib/coracle. Others have $XDG_RUNTIME_DIR/coracle, or
    /// /tmp/coracle-run-UID when the variable is unset or names somebody else's directory (`su`
    /// leaves it so), and $XDG_DATA_HOME/coracle or ~/.local/share/coracle.
    pub fn discover() -> Result<Self, StateError> {
        let own = |path: &Path| owner(path) == Some(geteuid().as_raw());
        if geteuid().is_root() && own(Path::new("/run")) {
            return Self::at("/run/coracle", "/var/lib/coracle");
        }
        let uid = caller_uid();
        let run = match absolute_from_env("XDG_RUNTIME_DIR") {
            Some(base) if own(&base) => base.join("coracle"),
            _ => PathBuf::from(format!("/tmp/coracle-run-{uid}")),
        };
        let data_home = match absolute_from_env("XDG_DATA_HOME") {
            Some(base) => base,
            None => home(uid)?.join(".local/share"),
        };
        Self::at(run, data_home.join("coracle"))
    }

    /// Uses these two directories, creating what is missing.
    pub fn at(run: impl AsRef<Path>, data: impl AsRef<Path>) -> Result<Self, StateError> {
        // The processes of containers have working directories of their own.
        let absolute =
            |path: &Path| std::path::absolute(path).map_err(StateError::io("find", path));
        let dirs = Self {
            run: absolute(run.as_ref())?,
            data: absolute(data.as_ref())?,
        };
        // Where one cannot be had, commands that need none go on; a new container is refused by
        // `Store::create`.
        let _ = claim_run(&dirs.run);
        claim_data(&dirs.data).map_err(|error| dirs.with_way_out(error))?;
        Ok(dirs)
    }

    /// Names the variable that moves a directory which cannot be used. Root's directories have
    /// none.
    pub(super) fn with_way_out(&self, error: StateError) -> StateError {
        match error {
            StateError::Io {
                action,
                path,
                source,
            } if !geteuid().is_root() => {
                let variable = match path.starts_with(&self.run) {
                    true => "XDG_RUNTIME_DIR",
                    false => "XDG_DATA_HOME",
                };
                StateError::NoPlace {
                    action,
                    path,
                    source,
                    variable,
                }
            }
            other => other,
        }
    }

    /// Refuses a run directory that cannot be had, or that somebody else may have prepared.
    pub fn ensure_run(&self) -> Result<(), StateError> {
        claim_run(&self.run).map_err(|error| self.with_way_out(error))
    }

    /// Where the built-in image is unpacked.
    pub fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    /// Where images are made.
    pub fn working(&self) -> PathBuf {
        self.data.join("working")
    }

    /// Where secrets are kept.
    pub fn secrets(&self) -> PathBuf {
        self.data.join("secrets")
    }

    /// Where volumes are kept.
    pub fn volumes(&self) -> PathBuf {
        self.data.join("volumes")
    }

    /// What commands of builds keep for the next.
    pub fn build_cache(&self) -> PathBuf {
        self.data.join("build-cache")
    }

    /// Where all other images are kept.
    pub fn storage(&self) -> PathBuf {
        self.data.join("storage")
    }
}

/// Creates `path`, or accepts it when nobody else can have prepared it for us.
pub(super) fn claim_run(path: &Path) -> Result<(), StateError> {
    create_private(path)?;
    let found = fs::symlink_metadata(path).map_err(StateError::io("examine", path))?;
    let refuse = |defect| {
        Err(StateError::UnsafeDir {
            path: path.to_owned(),
            defect,
        })
    };
    if found.is_symlink() {
        return refuse("is a symbolic link");
    }
    if !found.is_dir() {
        return refuse("is not a directory");
    }
    if found.uid() != geteuid().as_raw() {
        return refuse("belongs to another user");
    }
    if found.mode() & 0o077 != 0 {
        return refuse("is open to other users");
    }
    Ok(())
}

/// Creates `path` with its parents, or closes it to others. A symbolic link is fine here: it leads
/// from the user's own home to a larger disk, say.
fn claim_data(path: &Path) -> Result<(), StateError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(StateError::io("create", parent))?;
    }
    create_private(path)?;
    let found = fs::metadata(path).map_err(StateError::io("examine", path))?;
    if found.uid() != geteuid().as_raw() {
        return Err(StateError::UnsafeDir {
            path: path.to_owned(),
            defect: "belongs to another user",
        });
    }
    if found.mode() & 0o077 != 0 {
        fs::set_permissions(path, Permissions::from_mode(PRIVATE))
            .map_err(StateError::io("close to others", path))?;
    }
    Ok(())
}

/// Makes a private directory, or leaves what is there to the caller's judgement.
fn create_private(path: &Path) -> Result<(), StateError> {
    match DirBuilder::new().mode(PRIVATE).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(StateError::io("create", path)(error))
        }
        _ => Ok(()),
    }
}

/// The variable's value, unless it is unset, empty or relative, which the XDG specification says to
/// ignore.
fn absolute_from_env(variable: &str) -> Option<PathBuf> {
    env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}

fn home(uid: u32) -> Result<PathBuf, StateError> {
    absolute_from_env("HOME")
        .or_else(|| {
            User::from_uid(uid.into())
                .ok()
                .flatten()
                .map(|user| user.dir)
        })
        .ok_or(StateError::NoHome { uid })
}

fn owner(path: &Path) -> Option<u32> {
    fs::metadata(path).ok().map(|found| found.uid())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn defect(result: Result<(), StateError>) -> &'static str {
        match result {
            Err(StateError::UnsafeDir { defect, .. }) => defect,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn makes_private_directories_and_accepts_them_again() {
        let base = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let dirs = Dirs::at(base.path().join("run"), base.path().join("a/b/data")).unwrap();
            for dir in [&dirs.run, &dirs.data] {
                assert_eq!(
                    fs::metadata(dir).unwrap().mode() & 0o777,
                    PRIVATE,
                    "{}",
                    dir.display()
                );
            }
        }
    }

    #[test]
    fn refuses_a_run_directory_that_others_may_have_prepared() {
        let base = tempfile::tempdir().unwrap();
        let path = |name: &str| base.path().join(name);
        fs::create_dir(path("target")).unwrap();
        symlink(path("target"), path("link")).unwrap();
        assert_eq!(defect(claim_run(&path("link"))), "is a symbolic link");

        fs::create_dir(path("open")).unwrap();
        fs::set_permissions(path("open"), Permissions::from_mode(0o750)).unwrap();
        assert_eq!(defect(claim_run(&path("open"))), "is open to other users");

        fs::write(path("file"), "").unwrap();
        assert_eq!(defect(claim_run(&path("file"))), "is not a directory");

        if geteuid().is_root() {
            DirBuilder::new().mode(0o700).create(path("other")).unwrap();
            std::os::unix::fs::chown(path("other"), Some(12345), None).unwrap();
            assert_eq!(defect(claim_run(&path("other"))), "belongs to another user");
        }
    }

    #[test]
    fn closes_a_data_directory_that_was_open() {
        let base = tempfile::tempdir().unwrap();
        let data = base.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::set_permissions(&data, Permissions::from_mode(0o755)).unwrap();
        claim_data(&data).unwrap();
        assert_eq!(fs::metadata(&data).unwrap().mode() & 0o777, PRIVATE);
    }
}
