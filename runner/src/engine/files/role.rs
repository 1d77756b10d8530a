//! The process that works in a container's tree, as root of a user namespace with the container's
//! IDs.
//!
//! It is never in the container: of one that runs it has the root directory, handed over by its
//! caller, and nothing of the container can see it. The tree of one that does not is put together
//! in a mount namespace of its own, whose root that tree is then.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::transfer::{Form, Receiving, Wanted, send};
use crate::build::pack::{Changes, Packer, Source};
use crate::images::layers::apply::Owners;
use crate::path_text;
use crate::process::{owner, user};
use crate::rootfs::difference::{self, Layer};
use crate::rootfs::lookup::open_in_root;
use crate::rootfs::{self, Sources, Tree};
use crate::sys::{self, NewNamespaces};

/// `argv[0]` of the process.
pub const FILES_ROLE: &str = "coracle-files";

/// The descriptors that come with it are that of [`Reach`], that of [`Work`] if there is one, and
/// mounts.
#[derive(Debug, Serialize, Deserialize)]
pub enum Job {
    Work {
        reach: Reach,
        work: Work,
    },
    /// Tells in the file that comes with it how the tree of the first layers differs from that of
    /// the others, each of them the uppermost first.
    Compare {
        #[serde(with = "path_text::list")]
        new: Vec<PathBuf>,
        #[serde(with = "path_text::list")]
        old: Vec<PathBuf>,
    },
}

/// How the container's root is reached.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reach {
    /// By its descriptor.
    Running,
    /// It is put together: of the mounts that come last, or where there are none by the paths of
    /// its sources. The lock that keeps others from doing so comes with it.
    AtRest(Box<Tree>),
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Work {
    /// A descriptor comes with it, to write to.
    Send { wanted: Wanted, form: Form },
    /// A descriptor comes with it, to read from.
    Receive(Arrival),
    /// From one place to another.
    Within { wanted: Wanted, arrival: Arrival },
    /// The root file system, without what is mounted in it. A descriptor comes with it, to write
    /// to.
    Export,
}

/// What [`Receiving`] is made of.
#[derive(Debug, Serialize, Deserialize)]
pub struct Arrival {
    pub wanted: Wanted,
    pub is_tar: bool,
    /// The user who gets the files, as `user::resolve` takes it.
    pub user: Option<String>,
    /// Whether there is but one ID.
    pub single: bool,
    pub replace: bool,
}

/// The process itself.
pub fn main() -> ExitCode {
    owner::main_with(|job: Job, descriptors| {
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or("a descriptor is missing");
        match job {
            Job::Compare { new, old } => {
                let out = next()?;
                compare(&new, &old, out.into())
            }
            Job::Work { reach, work } => {
                // Held to the end, if it is a lock.
                let anchor = next()?;
                let data = match work {
                    Work::Within { .. } => None,
                    _ => Some(File::from(next()?)),
                };
                match reach {
                    Reach::Running => carry_out(&anchor, work, data),
                    Reach::AtRest(tree) => {
                        let root = assemble(&tree, descriptors.collect())?;
                        carry_out(&root, work, data)
                    }
                }
            }
        }
    })
}

fn compare(new: &[PathBuf], old: &[PathBuf], mut out: File) -> Result<(), String> {
    let open = |paths| Layer::open_all(paths, None);
    let compare = || difference::changes(open(new)?, open(old)?);
    let changes = compare().map_err(|error| error.to_string())?;
    serde_json::to_writer(&mut out, &changes)
        .map_err(|error| format!("cannot tell what has changed: {error}"))
}

fn assemble(tree: &Tree, mounts: Vec<OwnedFd>) -> Result<OwnedFd, String> {
    sys::unshare(NewNamespaces::MOUNT).map_err(|error| format!("cannot have mounts: {error}"))?;
    let sources = match mounts.is_empty() {
        true => None,
        false => Some(
            Sources::from_descriptors(tree, mounts).ok_or("the container's mounts are missing")?,
        ),
    };
    let root = rootfs::assemble(tree, sources).map_err(|error| error.to_string())?;
    let root = root.as_fd().try_clone_to_owned();
    root.map_err(|error| format!("cannot open the container's root: {error}"))
}

fn carry_out(root: &OwnedFd, work: Work, data: Option<File>) -> Result<(), String> {
    match (work, data) {
        (Work::Send { wanted, form }, Some(out)) => {
            send(root, &wanted, None, form, out).map_err(|error| error.to_string())
        }
        (Work::Receive(arrival), Some(input)) => receive(root, &arrival, input),
        (Work::Export, Some(out)) => match export(root, out) {
            // A reader that has left knows why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => {
                written.map_err(|error| format!("cannot write the container's tree: {error}"))
            }
        },
        (Work::Within { wanted, arrival }, _) => {
            let (reader, writer) = io::pipe().map_err(|error| format!("no pipe: {error}"))?;
            std::thread::scope(|scope| {
                let sent = scope.spawn(|| send(root, &wanted, None, Form::Copy, writer));
                let received = receive(root, &arrival, reader);
                let sent = sent.join().expect("sending does not panic");
                sent.map_err(|error| error.to_string()).and(received)
            })
        }
        (_, None) => Err("a descriptor is missing".to_owned()),
    }
}

fn receive(root: &OwnedFd, arrival: &Arrival, input: impl io::Read) -> Result<(), String> {
    let owner = match &arrival.user {
        None => None,
        Some(user) => {
            let identity = user::resolve(user, root.as_fd()).map_err(|error| error.to_string())?;
            Some((identity.uid, identity.gid))
        }
    };
    Receiving {
        root,
        wanted: &arrival.wanted,
        is_host: false,
        is_tar: arrival.is_tar,
        owner,
        owners: match arrival.single {
            true => Owners::Recorded,
            false => Owners::Kept,
        },
        replace: arrival.replace,
    }
    .receive(input)
    .map_err(|error| error.to_string())
}

fn export(root: &OwnedFd, out: File) -> io::Result<()> {
    let out = BufWriter::with_capacity(64 << 10, out);
    let mut packer = Packer::new(out, Source::Files, Changes::default()).on_one_mount();
    let dir = open_in_root(root, Path::new("/"), OFlags::RDONLY | OFlags::DIRECTORY)?;
    packer.add_contents(&dir, Path::new(""), &|_, _| false)?;
    packer.finish()?.flush()
}
