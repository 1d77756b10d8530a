//! Control groups of a container's own, `cgroups(7)`.
//!
//! A container that shared its caller's group could, where the caller may write that group's files,
//! freeze or kill the caller through a cgroup file system that it mounts for itself. So each
//! container gets a group below the caller's in every hierarchy in which the caller may make one,
//! and is born there; its cgroup namespace begins at that group. Where the caller may not, neither
//! may the container.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Access, access};
use rustix::process::Pid;

use crate::failure::Explained;
use crate::rootfs::lookup::{CGROUP2_SUPER_MAGIC, filesystem_magic};

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error(
        "cannot make a control group in {}: {source}; in the caller's own the container could freeze or kill the caller",
        path.display()
    )]
    Make { path: PathBuf, source: io::Error },
    #[error("cannot open {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
}

impl Explained for CgroupError {}

/// Which groups are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The container's root has the caller's user ID: what the caller may write, the container may.
    Callers,
    /// It has another: a group in the unified hierarchy is enough, and not needed for safety.
    Own,
}

/// Whether a process in this one's groups, with the same user ID, could act on this one through
/// them.
pub fn may_be_harmed() -> bool {
    own_groups().iter().any(|own| is_exposed(&own.path))
}

/// The groups of a container by their name, where this process would make them.
pub fn named(name: &str) -> Vec<PathBuf> {
    let parents = own_groups().into_iter().flat_map(|own| parents(&own.path));
    let groups = parents.map(|parent| parent.join(name));
    groups.filter(|group| group.exists()).collect()
}

/// Where a container's group may be instead of below this process's own: controllers of the unified
/// hierarchy are for groups only whose parent has no processes.
fn parents(own: &Path) -> Vec<PathBuf> {
    let ancestors = own.ancestors();
    match is_unified(own) {
        true => ancestors
            .take_while(|group| is_unified(group))
            .map(Path::to_owned)
            .collect(),
        false => vec![own.to_owned()],
    }
}

/// Whether this process may make groups for containers.
pub fn has_own() -> bool {
    let is_ours = |own: &Own| access(&own.path, Access::WRITE_OK).is_ok();
    own_groups().iter().any(is_ours)
}

fn own_groups() -> Vec<Own> {
    let read = |file| fs::read_to_string(file).unwrap_or_default();
    groups_of(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"))
}

/// A group that this process is in.
#[derive(Debug, PartialEq, Eq)]
struct Own {
    path: PathBuf,
    /// The controllers of a hierarchy of version 1, as `cpu,cpuacct`; empty for the unified one.
    controllers: String,
}

/// The name of a container's groups.
pub fn name(short_id: &str) -> String {
    format!("coracle-{short_id}")
}

/// Makes the groups of a container and returns their directories; none where the caller may make
/// none. Groups that have the wanted controllers are made where they can be.
///
/// # Errors
/// When the container would have to share a group whose files it may write.
pub fn create(name: &str, reach: Reach, wanted: &[&str]) -> Result<Vec<PathBuf>, CgroupError> {
    let mut made = Vec::new();
    for own in own_groups() {
        let is_wanted = || {
            let mut controllers = own.controllers.split(',');
            controllers.any(|controller| wanted.contains(&controller))
        };
        let parent = match is_unified(&own.path) {
            true => best_parent(&own.path, wanted),
            false if reach == Reach::Own && !is_wanted() => continue,
            false => own.path,
        };
        let path = parent.join(name);
        match make(&parent, &path) {
            Ok(()) => made.push(path),
            Err(source) if reach == Reach::Callers && is_exposed(&parent) => {
                remove(&made);
                return Err(CgroupError::Make {
                    path: parent,
                    source,
                });
            }
            Err(_) => {}
        }
    }
    Ok(made)
}

/// The nearest group of the unified hierarchy in which one can be made that has the controllers.
/// This process's own where there is none, or none is wanted.
fn best_parent(own: &Path, wanted: &[&str]) -> PathBuf {
    let offers = |parent: &PathBuf| {
        let file = parent.join("cgroup.subtree_control");
        let has_all = || {
            let text = fs::read_to_string(&file).unwrap_or_default();
            wanted
                .iter()
                .all(|controller| text.split_ascii_whitespace().any(|has| has == *controller))
        };
        if access(parent, Access::WRITE_OK).is_err() {
            return false;
        }
        // One that has processes refuses, and so does one whose parent does not hand them on. All
        // at once: a group that lacks one of them keeps what it hands on.
        let added: Vec<_> = wanted.iter().map(|name| format!("+{name}")).collect();
        has_all() || fs::write(&file, added.join(" ")).is_ok()
    };
    let best = match wanted {
        [] => None,
        _ => parents(own).into_iter().find(offers),
    };
    best.unwrap_or_else(|| own.to_owned())
}

/// Removes the groups of a container that has ended, with those that it made below. What cannot be
/// removed stays.
pub fn remove(groups: &[PathBuf]) {
    /// A process that has just ended may hold its group for a moment.
    const PATIENCE: Duration = Duration::from_millis(200);
    let deadline = Instant::now() + PATIENCE;
    for group in groups {
        while remove_one(group, GROUPS_DEEP).is_err() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// How deep a container may nest groups and still have them removed.
const GROUPS_DEEP: u32 = 64;

fn remove_one(group: &Path, depth: u32) -> io::Result<()> {
    if let Some(deeper) = depth.checked_sub(1) {
        let entries = fs::read_dir(group).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            // If it fails, so does the removal of its parent.
            let _ = remove_one(&entry.path(), deeper);
        }
    }
    match fs::remove_dir(group) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The way into a container's groups, opened with the caller's rights.
#[derive(Debug, Default)]
pub struct Entrance {
    unified: Option<OwnedFd>,
    /// `cgroup.procs` of hierarchies of version 1.
    others: Vec<File>,
}

impl Entrance {
    pub fn open(groups: &[PathBuf]) -> Result<Self, CgroupError> {
        let mut entrance = Self::default();
        for path in groups {
            let opened = |result: io::Result<File>| {
                result.map_err(|source| CgroupError::Open {
                    path: path.clone(),
                    source,
                })
            };
            if is_unified(path) {
                entrance.unified = Some(opened(File::open(path))?.into());
            } else {
                let procs = path.join("cgroup.procs");
                let procs = opened(OpenOptions::new().write(true).open(procs))?;
                entrance.others.push(procs);
            }
        }
        Ok(entrance)
    }

    /// For [`crate::sys::clone_process`]: to be born there is far cheaper than to be moved.
    pub fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(AsFd::as_fd)
    }

    /// Moves a process that was born in the unified group into the others.
    pub fn admit(&mut self, pid: Pid) -> io::Result<()> {
        self.others
            .iter_mut()
            .try_for_each(|procs| procs.write_all(pid.to_string().as_bytes()))
    }
}

fn make(parent: &Path, path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    // A cpuset of version 1 is born empty, and takes no process until it has processors and memory.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if !is_unified(path)
            && let Ok(value) = fs::read(parent.join(file))
        {
            fs::write(path.join(file), value)?;
        }
    }
    // The right to make a group is not yet the right to move into it.
    access(path.join("cgroup.procs"), Access::WRITE_OK)?;
    if is_unified(path) && access(parent.join("cgroup.procs"), Access::WRITE_OK).is_err() {
        fs::remove_dir(path)?;
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(())
}

/// Whether this process may act on all processes of `group` through its files.
fn is_exposed(group: &Path) -> bool {
    [
        "cgroup.procs",
        "cgroup.kill",
        "cgroup.freeze",
        "freezer.state",
    ]
    .iter()
    .any(|file| access(group.join(file), Access::WRITE_OK).is_ok())
}

pub fn is_unified(group: &Path) -> bool {
    File::open(group)
        .and_then(filesystem_magic)
        .is_ok_and(|magic| magic == CGROUP2_SUPER_MAGIC)
}

/// The groups that the texts of `/proc/PID/cgroup` and `/proc/PID/mountinfo` tell of.
fn groups_of(cgroup: &str, mountinfo: &str) -> Vec<Own> {
    let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
    let directory = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, Path::new(fields.next()?));
        // Outside of what the cgroup namespace around this process shows.
        if path.components().any(|part| part.as_os_str() == "..") {
            return None;
        }
        let mount = mounts.iter().find(|mount| mount.carries(controllers))?;
        let below = path.strip_prefix(mount.root).ok()?;
        Some(Own {
            path: Path::new(mount.point).join(below),
            controllers: controllers.to_owned(),
        })
    };
    cgroup.lines().filter_map(directory).collect()
}

/// A cgroup file system, `proc_pid_mountinfo(5)`.
struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    unified: bool,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut filesystem = filesystem.split(' ');
        let unified = match filesystem.next()? {
            "cgroup2" => true,
            "cgroup" => false,
            _ => return None,
        };
        let options = filesystem.nth(1)?;
        let mut mount = mount.split(' ').skip(3);
        Some(Self {
            root: mount.next()?,
            point: mount.next()?,
            unified,
            options,
        })
    }

    /// `controllers` is empty for the unified hierarchy, else a list such as `cpu,cpuacct` or
    /// `name=systemd`.
    fn carries(&self, controllers: &str) -> bool {
        match controllers {
            "" => self.unified,
            list => {
                !self.unified
                    && list
                        .split(',')
                        .all(|name| self.options.split(',').any(|option| option == name))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 /user.slice /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
";

    #[test]
    fn each_hierarchy_is_found_where_it_is_mounted() {
        let cgroup = "9:name=systemd:/a\n2:cpu,cpuacct:/\n3:memory:/\n0::/user.slice/x:y\n";
        let expected = [
            "/sys/fs/cgroup/systemd/a",
            "/sys/fs/cgroup/cpu/",
            "/sys/fs/cgroup/unified/x:y",
        ];
        let found = groups_of(cgroup, MOUNTS);
        let paths: Vec<_> = found.iter().map(|own| &*own.path).collect();
        assert_eq!(paths, expected.map(Path::new));
        let controllers: Vec<_> = found.iter().map(|own| &*own.controllers).collect();
        assert_eq!(controllers, ["name=systemd", "cpu,cpuacct", ""]);
    }

    #[test]
    fn groups_out_of_sight_are_left_alone() {
        for cgroup in ["0::/../other\n", "0::/elsewhere\n", "0\n", ""] {
            assert_eq!(groups_of(cgroup, MOUNTS), [], "{cgroup}");
        }
    }
}
