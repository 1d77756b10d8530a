//! Files into containers and out of them, their trees as tars, and what has changed in them.

mod changes;
mod reach;
mod role;
mod transfer;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

use self::reach::Reached;
use self::role::Work;
use self::transfer::{Form, Receiving, Wanted, send};
use super::{Engine, EngineError};
use crate::images::layers::apply::Owners;

pub use self::changes::Layers;
pub(crate) use self::role::{FILES_ROLE, main as files_main};
pub use self::transfer::TransferError;

/// One end of a copy.
#[derive(Debug)]
pub enum CopyEnd {
    /// Of the host's. What is relative begins in this process's working directory.
    Host(OsString),
    /// In a container, by its name or id. What is relative begins in its working directory.
    Container { name: String, path: OsString },
    /// A tar that is read from this, or written to it.
    Tar(OwnedFd),
}

/// What is copied from where to where, one end in a container at least.
#[derive(Debug)]
pub struct CopyRequest {
    pub from: CopyEnd,
    pub to: CopyEnd,
    /// Whether what comes into a container keeps its owners, instead of belonging to the user of
    /// its command. What comes to the host belongs to whoever asks for it.
    pub keeps_owners: bool,
    /// Whether directories and other files come into each other's places.
    pub replaces: bool,
}

impl Engine {
    /// Copies files and directories into containers, out of them and from one to another, whether
    /// they run or not. Nothing leads out of a container's tree, whatever that holds.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchContainer`](super::ErrorKind::NoSuchContainer), and
    /// [`TransferError`]s, some of them as what a process has said.
    pub fn copy(&self, request: CopyRequest) -> Result<(), EngineError> {
        let CopyRequest {
            from,
            to,
            keeps_owners,
            replaces,
        } = request;
        match (from, to) {
            (CopyEnd::Host(from), CopyEnd::Container { name, path }) => {
                let container = self.reach(&self.find(&name)?, true)?;
                let host = Host::open(&from)?;
                let arrival =
                    container.arrival(wanted(&container, &path), false, keeps_owners, replaces);
                // Nobody else's files are known in there, where IDs are not the host's own.
                let owner = (keeps_owners && !container.maps.root_is_another()).then_some((0, 0));
                through_pipe(
                    |writer| {
                        Ok(send(
                            &host.root,
                            &host.wanted,
                            owner,
                            Form::Copy,
                            File::from(writer),
                        )?)
                    },
                    |reader| container.carry_out(Work::Receive(arrival), Some(reader)),
                )
            }
            (CopyEnd::Container { name, path }, CopyEnd::Host(to)) => {
                let container = self.reach(&self.find(&name)?, true)?;
                let host = Host::open(&to)?;
                let work = departure(&container, &path, Form::Copy);
                let me = (
                    rustix::process::geteuid().as_raw(),
                    rustix::process::getegid().as_raw(),
                );
                through_pipe(
                    |writer| container.carry_out(work, Some(writer)),
                    |reader| {
                        let receiving = Receiving {
                            root: &host.root,
                            wanted: &host.wanted,
                            is_host: true,
                            is_tar: false,
                            owner: Some(me),
                            owners: Owners::Kept,
                            replace: replaces,
                        };
                        Ok(receiving.receive(File::from(reader))?)
                    },
                )
            }
            (CopyEnd::Tar(from), CopyEnd::Container { name, path }) => {
                let container = self.reach(&self.find(&name)?, true)?;
                let arrival =
                    container.arrival(wanted(&container, &path), true, keeps_owners, replaces);
                container.carry_out(Work::Receive(arrival), Some(from))
            }
            (CopyEnd::Container { name, path }, CopyEnd::Tar(to)) => {
                let container = self.reach(&self.find(&name)?, true)?;
                let work = departure(&container, &path, Form::Tar);
                container.carry_out(work, Some(to))
            }
            (
                CopyEnd::Container {
                    name: from,
                    path: source,
                },
                CopyEnd::Container {
                    name: to,
                    path: dest,
                },
            ) => {
                let (from, to) = (self.find(&from)?, self.find(&to)?);
                if from.id == to.id {
                    let container = self.reach(&from, true)?;
                    let arrival =
                        container.arrival(wanted(&container, &dest), false, keeps_owners, replaces);
                    let wanted = wanted(&container, &source);
                    return container.carry_out(Work::Within { wanted, arrival }, None);
                }
                // In one order, so that nobody waits for whoever waits for him.
                let (from, to) = match from.id < to.id {
                    true => {
                        let from = self.reach(&from, true)?;
                        (from, self.reach(&to, true)?)
                    }
                    false => {
                        let to = self.reach(&to, true)?;
                        (self.reach(&from, true)?, to)
                    }
                };
                let arrival = to.arrival(wanted(&to, &dest), false, keeps_owners, replaces);
                let work = departure(&from, &source, Form::Copy);
                through_pipe(
                    |writer| from.carry_out(work, Some(writer)),
                    |reader| to.carry_out(Work::Receive(arrival), Some(reader)),
                )
            }
            _ => Err(EngineError::NoContainerEnd),
        }
    }

    /// Writes the root file system of a container as a tar. What is mounted in it stays out.
    pub fn export(&self, wanted: &str, out: OwnedFd) -> Result<(), EngineError> {
        let container = self.reach(&self.find(wanted)?, false)?;
        container.carry_out(Work::Export, Some(out))
    }
}

fn wanted(container: &Reached, path: &OsStr) -> Wanted {
    Wanted::new(path, &container.process.workdir, container.whose())
}

fn departure(container: &Reached, path: &OsStr, form: Form) -> Work {
    let wanted = wanted(container, path);
    Work::Send { wanted, form }
}

/// A path of the host's.
struct Host {
    root: OwnedFd,
    wanted: Wanted,
}

impl Host {
    fn open(path: &OsStr) -> Result<Self, EngineError> {
        let failed = |source| EngineError::HostTree { source };
        let base = std::env::current_dir().map_err(failed)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open("/", flags, Mode::empty());
        Ok(Self {
            root: root.map_err(|errno| failed(errno.into()))?,
            wanted: Wanted::new(path, &base, "on the host".to_owned()),
        })
    }
}

/// One thread sends, this one receives. What the sender says is wrong comes first: without it the
/// receiver would have found no end.
fn through_pipe(
    send: impl FnOnce(OwnedFd) -> Result<(), EngineError> + Send,
    receive: impl FnOnce(OwnedFd) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let (reader, writer) = io::pipe().map_err(|source| EngineError::HostTree { source })?;
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| send(writer.into()));
        let received = receive(reader.into());
        sent.join().expect("sending does not panic").and(received)
    })
}
