//! The files of the sockets that the helper listens at: who has bound one removes it at the end.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tracing::debug;

/// The file of a socket, which is there until it is removed.
#[derive(Clone, Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: Identity,
}

/// Device, inode and time of change of a socket's file, so that nobody else's is removed: inodes
/// are used again.
type Identity = (u64, u64, i64, i64);

fn identity(file: &fs::Metadata) -> Identity {
    (file.dev(), file.ino(), file.ctime(), file.ctime_nsec())
}

impl SocketFile {
    /// Of the socket that this process has bound at `path`.
    pub fn of(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            identity: identity(&fs::symlink_metadata(path)?),
        })
    }

    /// Where it is removed from.
    pub fn directory(&self) -> &Path {
        match self.path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        }
    }

    /// For when nobody listens any more.
    pub fn remove(self) {
        let is_ours =
            fs::symlink_metadata(&self.path).is_ok_and(|file| identity(&file) == self.identity);
        if is_ours && let Err(error) = fs::remove_file(&self.path) {
            debug!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Why there is no socket for this user only, of the kind that is named first.
#[derive(Debug, thiserror::Error)]
pub enum PrivateSocketError {
    #[error("{0} socket {1}: a file of that name exists and is not a socket of ours")]
    Occupied(&'static str, PathBuf),
    #[error("{0} socket {1}: another process serves it")]
    Served(&'static str, PathBuf),
    #[error("cannot open {kind} socket {path}: {source}")]
    Open {
        kind: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl PrivateSocketError {
    pub fn open(kind: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Open {
            kind,
            path: path.to_owned(),
            source,
        }
    }
}

/// Connected clients that wait to be served, in the kernel.
const BACKLOG: i32 = 64;

/// Listens at `path`, for this user only. A socket that is there but that nobody serves any more is
/// replaced, if it belongs to this user; anything else is left alone. `kind` is for the errors.
pub fn listen_privately(
    kind: &'static str,
    path: &Path,
) -> Result<(UnixListener, SocketFile), PrivateSocketError> {
    remove_stale(kind, path)?;
    let open = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // The file takes the mode of the descriptor, so it is never open to others, not even
        // briefly.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok((socket.into(), SocketFile::of(path)?))
    };
    open().map_err(|source| PrivateSocketError::open(kind, path, source))
}

/// Removes the socket that a killed helper of this user left at `path`.
fn remove_stale(kind: &'static str, path: &Path) -> Result<(), PrivateSocketError> {
    let occupied = || PrivateSocketError::Occupied(kind, path.to_owned());
    let open_error = |source| PrivateSocketError::open(kind, path, source);
    let file = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result.map_err(open_error)?,
    };
    if !file.file_type().is_socket() || file.uid() != rustix::process::geteuid().as_raw() {
        return Err(occupied());
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(PrivateSocketError::Served(kind, path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(open_error)
        }
        // Its owner has a full backlog, or it is no stream socket.
        Err(_) => Err(occupied()),
    }
}
