//! The process that unpacks, reads and removes layers, as root of a user namespace.
//!
//! It holds a share of the storage's lock while it unpacks, so that nobody takes the layers for
//! left over should its caller die.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::mount::{MountPropagationFlags, mount_change};
use serde::{Deserialize, Serialize};

use super::apply::{ApplyError, Owners, Tree};
use super::decompress::decompress;
use super::tar::{Members, TarError};
use super::tar_split::{self, Rebuild};
use super::{DIFF, KEPT_FILE, Kept, Layer, UNFINISHED, needed};
use crate::images::digest::{Digest, Hashing};
use crate::images::files::{self, to_json};
use crate::path_text;
use crate::process::owner;
use crate::rootfs::mounts::Detached;
use crate::rootfs::overlay::{self, Overlay, RootSource};
use crate::state::{remove_tree, tree_size};
use crate::sys::{self, NewNamespaces};

/// `argv[0]` of the process.
pub const ROLE: &str = "coracle-storage";

#[derive(Debug, Serialize, Deserialize)]
pub enum Job {
    Unpack {
        /// Where the layers are to be, each in a directory named by its chain.
        #[serde(with = "path_text")]
        dir: PathBuf,
        #[serde(with = "path_text")]
        blobs: PathBuf,
        #[serde(with = "path_text")]
        lock: PathBuf,
        /// The layers that are there already, the lowest first.
        below: Vec<Digest>,
        /// Those on top of them.
        layers: Vec<Layer>,
        /// Whether there is but one ID.
        single: bool,
    },
    Remove {
        #[serde(with = "path_text::list")]
        paths: Vec<PathBuf>,
    },
    /// Writes the lengths of all files below `path` to the file `report`.
    Measure {
        #[serde(with = "path_text")]
        path: PathBuf,
        #[serde(with = "path_text")]
        report: PathBuf,
    },
    Rebuild {
        jobs: Vec<Rebuild>,
    },
}

pub fn main() -> ExitCode {
    owner::main(|job: Job| match job {
        Job::Remove { paths } => {
            let remove = |path: &PathBuf| remove_tree(path).map_err(failed("remove", path));
            paths.iter().try_for_each(remove)
        }
        Job::Measure { path, report } => {
            let size = tree_size(&path).map_err(failed("measure", &path))?;
            fs::write(&report, to_json(&size)).map_err(failed("write", &report))
        }
        Job::Rebuild { jobs } => jobs.iter().try_for_each(|job| {
            tar_split::rebuild(job).map_err(|error| tar_split::failed(job, &error))
        }),
        Job::Unpack {
            dir,
            blobs,
            lock,
            below,
            layers,
            single,
        } => {
            let _lock = files::lock(&lock, FlockOperation::LockShared)
                .map_err(|error| error.to_string())?;
            make_mount_namespace().map_err(|error| format!("cannot have mounts: {error}"))?;
            let owners = match single {
                true => Owners::Recorded,
                false => Owners::Kept,
            };
            let mut lowers: Vec<PathBuf> =
                below.iter().map(|chain| dir.join(chain.hex())).collect();
            for layer in &layers {
                let place = dir.join(layer.chain.hex());
                if !place.join(KEPT_FILE).exists() {
                    let blob = blobs.join(layer.blob.hex());
                    unpack(&dir, &place, layer, &blob, &lowers, owners)?;
                }
                lowers.push(place);
            }
            Ok(())
        }
    })
}

fn make_mount_namespace() -> io::Result<()> {
    sys::unshare(NewNamespaces::MOUNT)?;
    Ok(mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?)
}

fn unpack(
    dir: &Path,
    place: &Path,
    layer: &Layer,
    blob: &Path,
    lowers: &[PathBuf],
    owners: Owners,
) -> Result<(), String> {
    let new = dir.join(format!(
        "{UNFINISHED}{}-{}",
        std::process::id(),
        layer.chain.hex()
    ));
    let unpacked = unpack_at(&new, layer, blob, lowers, owners).and_then(|()| {
        match fs::rename(&new, place) {
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => remove_tree(&new),
            other => other,
        }
        .map_err(failed("create", place))
    });
    if unpacked.is_err() {
        // What stays is swept later.
        let _ = remove_tree(&new);
    }
    unpacked
}

fn unpack_at(
    new: &Path,
    layer: &Layer,
    blob: &Path,
    lowers: &[PathBuf],
    owners: Owners,
) -> Result<(), String> {
    let (diff, work) = (new.join(DIFF), new.join("work"));
    for path in [new, &diff, &work] {
        fs::create_dir(path).map_err(failed("create", path))?;
    }
    // Past the umask.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&diff, mode).map_err(failed("create", &diff))?;
    let file = File::open(blob).map_err(failed("open", blob))?;
    let named =
        |error: &dyn std::fmt::Display| format!("cannot unpack layer {}: {error}", layer.diff);
    let lower_dirs: Vec<_> = needed(lowers.to_vec())
        .iter()
        .map(|lower| lower.join(DIFF))
        .collect();
    let (root, is_whole) = mount(&diff, &work, &lower_dirs)?;
    let tree = Tree::new(root, owners, lowers.is_empty());
    let (size, found) = apply(tree, file).map_err(|error| named(&error))?;
    if found != layer.diff {
        return Err(named(&format!("its content is {found}")));
    }
    remove_tree(&work).map_err(failed("remove", &work))?;
    let kept = new.join(KEPT_FILE);
    fs::write(&kept, to_json(&Kept { size, is_whole })).map_err(failed("write", &kept))?;
    let opened = File::open(new).map_err(failed("open", new))?;
    rustix::fs::syncfs(&opened).map_err(|errno| failed("write", new)(errno.into()))
}

/// Applies what a blob holds, and returns how many bytes its files have and the digest of its tar.
/// One thread decompresses, this one writes files.
fn apply(tree: Tree, blob: File) -> Result<(u64, Digest), ApplyError> {
    let (reader, writer) = io::pipe().map_err(TarError::Read)?;
    // Where it cannot be so long, the two wait for each other more often.
    let _ = rustix::pipe::fcntl_setpipe_size(&writer, PIPE_LEN);
    std::thread::scope(|scope| {
        let decompressed = scope.spawn(move || -> io::Result<Digest> {
            let mut out = BufWriter::with_capacity(BUFFER_LEN, Hashing::new(writer));
            io::copy(&mut decompress(blob)?, &mut out)?;
            let out = out.into_inner().map_err(|error| error.into_error())?;
            Ok(out.digest())
        });
        let mut members = Members::new(BufReader::with_capacity(BUFFER_LEN, reader));
        let applied = tree.apply(&mut members).and_then(|size| {
            let rest = io::copy(&mut members.into_inner(), &mut io::sink());
            rest.map_err(TarError::Read)?;
            Ok(size)
        });
        match decompressed.join().expect("decompressing does not panic") {
            // The other side has left, and says why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe && applied.is_err() => {
                Err(applied.expect_err("checked just now"))
            }
            Err(error) => Err(TarError::Read(error).into()),
            Ok(digest) => Ok((applied?, digest)),
        }
    })
}

const PIPE_LEN: usize = 1 << 20;
const BUFFER_LEN: usize = 128 << 10;

/// The tree that a layer is applied to: its own directory over those of the layers below or, where
/// no overlay can be mounted, with all of them in it.
fn mount(diff: &Path, work: &Path, lowers: &[PathBuf]) -> Result<(OwnedFd, bool), String> {
    let open_dir = |path: &Path| {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty());
        opened.map_err(|errno| failed("open", path)(errno.into()))
    };
    if lowers.is_empty() {
        return Ok((open_dir(diff)?, false));
    }
    let top_first: Vec<PathBuf> = lowers.iter().rev().cloned().collect();
    let open = |path: &PathBuf| Detached::copy_of_host(path, false).map_err(failed("open", path));
    let dirs = top_first.iter().map(open).collect::<Result<_, _>>()?;
    let source = RootSource::Overlay(Overlay {
        lowers: top_first,
        upper: diff.to_owned(),
        work: work.to_owned(),
        // What counts is on the disk before the layer is.
        volatile: true,
    });
    let mounted = overlay::mount_or_copy(&source, dirs, None);
    let (mounted, copied) = mounted.map_err(|error| error.to_string())?;
    Ok((mounted.into(), copied.is_some()))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> String {
    let path = path.to_owned();
    move |error| format!("cannot {action} {}: {error}", path.display())
}
