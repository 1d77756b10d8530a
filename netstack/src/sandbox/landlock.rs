//! What is left of the file system by Landlock (Linux 5.13): for the helper and its broker nothing,
//! for the companion reading, and removing in the directories of its sockets.
//!
//! It stands behind the lists of system calls: what one of them let through would find no file to
//! open, create, change or execute, and no process to trace. From Linux 6.12 on abstract Unix
//! sockets go, too; signals do not, since a command that is to die with the helper is told so by
//! one (PR_SET_PDEATHSIG). An older kernel does what it can, and one without Landlock nothing.

use std::path::Path;

use ::landlock::{
    ABI, Access, AccessFs, BitFlags, PathBeneath, PathFd, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use tracing::debug;

/// The newest one whose kinds of access are known here (Linux 6.12).
const KNOWN: ABI = ABI::V6;

/// Takes the whole file system from the calling thread.
pub fn deny_files() -> Result<(), RulesetError> {
    tell(all_handled()?.restrict_self()?);
    Ok(())
}

/// Leaves the calling thread reading, everywhere, and removing files in `directories`.
pub fn deny_writing<'d>(
    directories: impl IntoIterator<Item = &'d Path>,
) -> Result<(), RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut ruleset = allow(all_handled()?, Path::new("/"), read)?;
    for directory in directories {
        ruleset = allow(ruleset, directory, AccessFs::RemoveFile.into())?;
    }
    tell(ruleset.restrict_self()?);
    Ok(())
}

fn all_handled() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .scope(Scope::AbstractUnixSocket)?
        .create()
}

/// A directory that is gone needs nothing.
fn allow(
    ruleset: RulesetCreated,
    directory: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    match PathFd::new(directory) {
        Ok(directory) => ruleset.add_rule(PathBeneath::new(directory, access)),
        Err(error) => {
            debug!(%error, "a directory that nothing can be removed from");
            Ok(ruleset)
        }
    }
}

fn tell(status: RestrictionStatus) {
    if status.ruleset != RulesetStatus::FullyEnforced {
        debug!("Landlock is {:?} here", status.ruleset);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::ErrorKind;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    use std::thread;

    use super::*;

    /// Runs `attempt` on a thread of its own.
    fn confined(
        confine: impl FnOnce() -> Result<(), RulesetError> + Send,
        attempt: impl FnOnce() + Send,
    ) {
        thread::scope(|scope| {
            scope.spawn(|| {
                confine().unwrap();
                attempt();
            });
        });
    }

    fn assert_denied<T>(result: std::io::Result<T>) {
        assert_eq!(
            result.err().map(|error| error.kind()),
            Some(ErrorKind::PermissionDenied)
        );
    }

    #[test]
    fn no_file_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "text").unwrap();
        let mut open = File::open(&file).unwrap();
        confined(deny_files, || {
            assert_denied(File::open(&file));
            assert_denied(fs::read_dir(dir.path()));
            assert_denied(File::create(dir.path().join("other")));
            assert_denied(fs::remove_file(&file));
            assert_denied(std::process::Command::new("/bin/true").spawn());
            // What was open before stays.
            std::io::Read::read_to_end(&mut open, &mut Vec::new()).unwrap();
        });
        // Other threads keep what they have.
        assert_eq!(fs::read(&file).unwrap(), b"text");
    }

    #[test]
    fn abstract_sockets_are_out_of_reach() {
        let name = format!("coracle-net-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let _listener = UnixListener::bind_addr(&address).unwrap();
        confined(deny_files, || {
            assert_denied(UnixStream::connect_addr(&address));
        });
        UnixStream::connect_addr(&address).unwrap();
    }

    #[test]
    fn files_are_read_and_those_of_one_directory_removed() {
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [ours, theirs] = dirs.each_ref().map(|dir| dir.path().join("socket"));
        for file in [&ours, &theirs] {
            fs::write(file, "text").unwrap();
        }
        let gone = Path::new("/no/such/directory");
        let confine = || deny_writing([dirs[0].path(), gone]);
        confined(confine, || {
            assert_eq!(fs::read(&theirs).unwrap(), b"text");
            assert_denied(File::create(&ours));
            assert_denied(fs::remove_file(&theirs));
            fs::remove_file(&ours).unwrap();
        });
    }
}
