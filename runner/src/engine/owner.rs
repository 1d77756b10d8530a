//! Removing files that belong to a container's own users, which only root of a user namespace with
//! the container's IDs may.
//!
//! A process of this program's own does it, executed anew: a caller may have threads, and could not
//! go on in a copy of itself. It makes the namespace and says so by [`MADE`]; the caller gives the
//! namespace its IDs and lets it go on with one byte. Then it says [`DONE`], or what is wrong, so
//! that its death cannot pass for success.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};

use rustix::process::Pid;

use crate::isolation::idmap::IdMaps;
use crate::isolation::namespaces::{NamespaceError, become_root};
use crate::process::selfexec;
use crate::state::{ContainerId, Dirs, Store};
use crate::sys::{self, NewNamespaces};

/// `argv[0]` of the process.
pub const OWNER_ROLE: &str = "coracle-owner";

const MADE: u8 = b'+';
const DONE: &str = "ok";

/// Removes all files of a container that has ended, its record among them.
pub(super) fn remove_files(
    store: &Store,
    id: &ContainerId,
    run_dir: &Path,
    maps: &IdMaps,
) -> Result<(), NamespaceError> {
    let mut owner = selfexec::command(OWNER_ROLE)
        .args([&store.dirs().run, &store.dirs().data, run_dir])
        .arg(id.as_str())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|source| NamespaceError::Start { source })?;
    let said = converse(&mut owner, maps);
    if said.is_err() {
        // It waits for its IDs, or has ended.
        let _ = owner.kill();
    }
    owner.wait().map_err(handshake)?;
    match &*said? {
        DONE => Ok(()),
        "" => Err(NamespaceError::Killed),
        message => Err(NamespaceError::Told {
            message: message.to_owned(),
        }),
    }
}

/// The caller's side. Returns the last word of the other.
fn converse(owner: &mut Child, maps: &IdMaps) -> Result<String, NamespaceError> {
    let pid = Pid::from_child(owner);
    let (Some(mut tell), Some(mut told)) = (owner.stdin.take(), owner.stdout.take()) else {
        unreachable!("both are pipes");
    };
    let mut first = [0];
    if told.read(&mut first).map_err(handshake)? == 0 {
        return Ok(String::new());
    }
    let mut said = Vec::new();
    if first == [MADE] {
        maps.write(pid)?;
        tell.write_all(&[MADE]).map_err(handshake)?;
    } else {
        said.extend(first);
    }
    told.read_to_end(&mut said).map_err(handshake)?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

fn handshake(source: io::Error) -> NamespaceError {
    NamespaceError::Handshake { source }
}

/// The process itself.
pub fn main(args: &[OsString]) -> ExitCode {
    let last_word = match play(args) {
        Ok(()) => DONE.to_owned(),
        Err(message) => message,
    };
    // Nobody listens where the caller has gone.
    let _ = io::stdout().write_all(last_word.as_bytes());
    ExitCode::SUCCESS
}

fn play(args: &[OsString]) -> Result<(), String> {
    let [_, run, data, run_dir, id] = args else {
        return Err(format!("{OWNER_ROLE} is for coracle itself"));
    };
    let id = id.to_string_lossy().parse::<ContainerId>();
    let id = id.map_err(|error| error.to_string())?;
    sys::unshare(NewNamespaces::USER).map_err(|error| NamespaceError::user(error).to_string())?;
    let mut mapped = [0];
    let mut stdout = io::stdout();
    stdout
        .write_all(&[MADE])
        .and_then(|()| stdout.flush())
        .and_then(|()| io::stdin().read_exact(&mut mapped))
        .map_err(|error| handshake(error).to_string())?;
    become_root().map_err(|errno| format!("cannot become the container's root: {errno}"))?;
    let dirs = Dirs {
        run: PathBuf::from(run),
        data: PathBuf::from(data),
    };
    Store::open(dirs)
        .and_then(|store| store.remove_files(&id, Path::new(run_dir)))
        .map_err(|error| error.to_string())
}
