//! What a container needs in its tree to have something mounted upon, and no image wants: it is
//! taken away again after a command has run in a working container.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, OFlags, statat, unlinkat};

use crate::rootfs::lookup::open_in_root;

/// Files before the directories that they are in.
const PLACES: [&str; 7] = [
    "etc/resolv.conf",
    "etc/hosts",
    "etc/hostname",
    "etc",
    "proc",
    "sys",
    "dev",
];

/// Places that were not there before.
#[derive(Debug)]
pub struct Placeholders(Vec<PathBuf>);

impl Placeholders {
    /// Looks at a tree before something is run in it, with mounts at `targets` besides.
    pub fn missing_in<'a>(root: &OwnedFd, targets: impl IntoIterator<Item = &'a Path>) -> Self {
        // With the directories above, which are made for them.
        let targets = targets.into_iter().flat_map(Path::ancestors);
        let targets = targets.map(|target| target.strip_prefix("/").unwrap_or(target));
        let targets = targets.filter(|target| !target.as_os_str().is_empty());
        let mut targets: Vec<_> = targets.map(Path::to_owned).collect();
        targets.sort_by_key(|target| std::cmp::Reverse(target.components().count()));
        targets.dedup();
        let places = targets.into_iter().chain(PLACES.map(PathBuf::from));
        Self(places.filter(|place| kind(root, place).is_none()).collect())
    }

    /// Takes away those that are there by now, and empty.
    pub fn remove(self, root: &OwnedFd) {
        for place in self.0 {
            let Some((dir, found)) = kind(root, &place) else {
                continue;
            };
            let name = place.file_name().unwrap_or_default();
            // A directory that holds something stays.
            let _ = match FileType::from_raw_mode(found.st_mode) {
                FileType::Directory => unlinkat(&dir, name, AtFlags::REMOVEDIR),
                FileType::RegularFile if found.st_size == 0 => {
                    unlinkat(&dir, name, AtFlags::empty())
                }
                _ => Ok(()),
            };
        }
    }
}

/// The directory that holds the place, and what is there.
fn kind(root: &OwnedFd, place: &Path) -> Option<(OwnedFd, rustix::fs::Stat)> {
    let above = Path::new("/").join(place.parent()?);
    let dir = open_in_root(root, &above, OFlags::RDONLY | OFlags::DIRECTORY).ok()?;
    let found = statat(&dir, place.file_name()?, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some((dir, found))
}
