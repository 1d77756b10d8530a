//! A control group of the unified hierarchy that is delegated to a world's user, as systemd does it
//! for a session.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use super::{World, eventually, skip, unique};

/// This process is in it, and with it the commands that it runs.
pub struct DelegatedGroup {
    /// Where this process was before.
    own: PathBuf,
    path: PathBuf,
}

impl DelegatedGroup {
    /// Root makes one. Skips where there is no unified hierarchy.
    pub fn enter(world: &World) -> Self {
        let Some(own) = unified_group() else {
            skip("there is no unified hierarchy of control groups here");
        };
        // As systemd delegates one to a user, and mounts without nsdelegate leave it.
        let path = own.join(unique("coracle-test"));
        fs::create_dir(&path).expect("a group");
        for file in [
            "",
            "cgroup.procs",
            "cgroup.subtree_control",
            "cgroup.threads",
            "cgroup.kill",
            "cgroup.freeze",
        ] {
            let path = match file {
                "" => path.clone(),
                file => path.join(file),
            };
            let uid = Some(world.uid());
            chown(&path, uid, uid).expect("delegated");
        }
        fs::write(path.join("cgroup.procs"), me()).expect("in the group");
        Self { own, path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, which fails where anything is left in it.
    pub fn leave(self) {
        fs::write(self.own.join("cgroup.procs"), me()).expect("out of the group");
        eventually("the group can be removed", || {
            fs::remove_dir(&self.path).is_ok()
        });
    }
}

fn me() -> String {
    std::process::id().to_string()
}

/// Where this process's own group of the unified hierarchy is mounted.
fn unified_group() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(Path::new(point).join(Path::new(own).strip_prefix(root).ok()?))
}
