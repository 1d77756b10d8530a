//! Freezing the processes in a container's control groups, `cgroups(7)`: by `cgroup.freeze` of
//! version 2, or else by the freezer of version 1.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Why the processes of a container cannot be frozen, or let go.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    #[error(
        "it has no control group of its own that can be frozen, as this user may make none here; a session under systemd \
         with control groups of version 2 delegates some to its user"
    )]
    NoFreezer,
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the processes in {} do not freeze in time", group.display())]
    Overdue { group: PathBuf },
}

/// A file that freezes a group, what is written to it, and where the group tells that it has come
/// to that.
struct Freezer {
    file: &'static str,
    frozen: &'static str,
    thawed: &'static str,
    state: &'static str,
    tells_frozen: fn(&str) -> bool,
}

const FREEZERS: [Freezer; 2] = [
    Freezer {
        file: "cgroup.freeze",
        frozen: "1",
        thawed: "0",
        state: "cgroup.events",
        tells_frozen: |events| events.lines().any(|line| line == "frozen 1"),
    },
    Freezer {
        file: "freezer.state",
        frozen: "FROZEN",
        thawed: "THAWED",
        state: "freezer.state",
        tells_frozen: |state| state.trim_end() == "FROZEN",
    },
];

/// Freezes the processes in a container's groups, and waits until they are. Where that fails, they
/// go on.
pub fn freeze(groups: &[PathBuf]) -> Result<(), FreezeError> {
    /// A process that the kernel is busy for freezes when that is done.
    const LIMIT: Duration = Duration::from_secs(10);
    let (group, freezer) = freezers(groups).next().ok_or(FreezeError::NoFreezer)?;
    let deadline = Instant::now() + LIMIT;
    write(group, freezer, freezer.frozen)?;
    while !fs::read_to_string(group.join(freezer.state)).is_ok_and(|s| (freezer.tells_frozen)(&s)) {
        if Instant::now() >= deadline {
            thaw(groups);
            let group = group.to_owned();
            return Err(FreezeError::Overdue { group });
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Lets frozen processes go on.
pub fn unfreeze(groups: &[PathBuf]) -> Result<(), FreezeError> {
    if freezers(groups).next().is_none() {
        return Err(FreezeError::NoFreezer);
    }
    freezers(groups).try_for_each(|(group, freezer)| write(group, freezer, freezer.thawed))
}

/// Lets frozen processes go on as far as that can be done, so that they can be killed: a container
/// may have frozen itself.
pub fn thaw(groups: &[PathBuf]) {
    for (group, freezer) in freezers(groups) {
        // Fails where the group has gone.
        let _ = write(group, freezer, freezer.thawed);
    }
}

fn freezers(groups: &[PathBuf]) -> impl Iterator<Item = (&Path, &'static Freezer)> {
    let of = |freezer: &'static Freezer| {
        let has_it = |group: &&PathBuf| group.join(freezer.file).exists();
        groups
            .iter()
            .filter(has_it)
            .map(move |group| (group.as_path(), freezer))
    };
    FREEZERS.iter().flat_map(of)
}

fn write(group: &Path, freezer: &Freezer, value: &str) -> Result<(), FreezeError> {
    let path = group.join(freezer.file);
    fs::write(&path, value).map_err(|source| FreezeError::Write { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Directories stand in for groups: they take what is written, and tell it.
    #[test]
    fn version_2_goes_before_version_1() {
        let dir = tempfile::tempdir().unwrap();
        let groups = ["other", "one", "two"].map(|name| dir.path().join(name));
        groups
            .iter()
            .for_each(|group| fs::create_dir(group).unwrap());
        assert!(matches!(freeze(&groups), Err(FreezeError::NoFreezer)));
        assert!(matches!(unfreeze(&groups), Err(FreezeError::NoFreezer)));

        fs::write(groups[1].join("freezer.state"), "THAWED").unwrap();
        freeze(&groups).unwrap();
        let state = |group: &Path, file| fs::read_to_string(group.join(file)).unwrap();
        assert_eq!(state(&groups[1], "freezer.state"), "FROZEN");
        unfreeze(&groups).unwrap();
        assert_eq!(state(&groups[1], "freezer.state"), "THAWED");

        fs::write(groups[2].join("cgroup.freeze"), "0").unwrap();
        fs::write(groups[2].join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        freeze(&groups).unwrap();
        assert_eq!(state(&groups[2], "cgroup.freeze"), "1");
        assert_eq!(state(&groups[1], "freezer.state"), "THAWED");
        thaw(&groups);
        assert_eq!(state(&groups[2], "cgroup.freeze"), "0");
    }
}
