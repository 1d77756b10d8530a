//! From a prepared container to the program in it: the last steps of init and of `exec`, which are
//! the same.
//!
//! [`Prepared::new`] does everything that can fail for want of something in the container and
//! changes only this process; [`Prepared::exec`] gives up all rights and does not come back.
//! Between the two the network becomes ready.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::errno::Errno;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, chownat};

use crate::failure::{Failure, FailureKind};
use crate::isolation::capabilities::Capabilities;
use crate::process::inherited::SoftLimits;
use crate::process::reaper;
use crate::process::rights::Rights;
use crate::process::ulimit::Ulimit;
use crate::process::user::{self, Identity};
use crate::rootfs::lookup::{Missing, Root, file_type, open_in_root};
use crate::spec::{DEFAULT_PATH, ExtraGroups, ProcessSpec};
use crate::sys;

/// A program about to take this process over.
#[derive(Debug)]
pub struct Prepared {
    args: Vec<CString>,
    env: Vec<CString>,
    /// What `args[0]` may mean, in order.
    candidates: Vec<CString>,
    rights: Rights,
    limits: Option<SoftLimits>,
    ulimits: Vec<Ulimit>,
    umask: Mode,
    oom_score_adj: Option<i32>,
    init: bool,
}

impl Prepared {
    /// Looks up the user, enters the working directory and hands the standard streams over. `root`
    /// is the container's root directory and this process's.
    pub fn new(spec: &ProcessSpec, root: BorrowedFd) -> Result<Self, Failure> {
        let mut identity = user::resolve(&spec.user, root)?;
        if let ExtraGroups::Named(groups) = &spec.groups {
            user::add_groups(&mut identity, groups, root)?;
        }
        if spec.make_workdir {
            make_workdir(&spec.workdir, root, &identity)?;
        }
        enter_workdir(&spec.workdir, root)?;
        give_streams_to(&identity).map_err(Failure::context(
            "cannot hand standard streams to the container's user",
        ))?;

        let mut env = spec.env.clone();
        if variable(&env, "HOME").is_none() {
            let home = if identity.home.is_empty() {
                "/"
            } else {
                &identity.home
            };
            env.push(OsString::from(format!("HOME={home}")));
        }
        let program = spec
            .args
            .first()
            .ok_or_else(|| Failure::runner("no command to run in the container"))?;
        let candidates = candidates(program, variable(&env, "PATH"));
        Ok(Self {
            args: c_strings(spec.args.clone())?,
            env: c_strings(env)?,
            candidates: c_strings(candidates)?,
            rights: Rights {
                identity,
                capabilities: spec.capabilities,
                no_new_privs: spec.no_new_privs,
                keep_groups: spec.groups == ExtraGroups::Callers,
                single_id: spec.single_id,
                filter: spec.seccomp.filter(spec.capabilities)?,
            },
            limits: spec.limits,
            ulimits: spec.ulimits.clone(),
            umask: Mode::from_raw_mode(spec.umask),
            oom_score_adj: spec.oom_score_adj,
            init: spec.init,
        })
    }

    /// Becomes the program. Every descriptor from 3 on closes with the exec; a failure leaves them
    /// open, to be reported on.
    pub fn exec(self, on_parent_death: Option<rustix::process::Signal>) -> Failure {
        let prepare = || -> Result<(), Failure> {
            rustix::process::umask(self.umask);
            if let Some(score) = self.oom_score_adj {
                set_oom_score(score)?;
            }
            sys::close_on_exec_from(3).map_err(Failure::context("cannot close descriptors"))?;
            self.rights.become_user()?;
            // The kernel forgets it when IDs change, so that this comes after.
            rustix::process::set_parent_process_death_signal(on_parent_death)
                .map_err(Failure::context("cannot tie the container to its monitor"))?;
            if let Some(limits) = &self.limits {
                limits.restore();
            }
            self.ulimits.iter().try_for_each(Ulimit::apply)?;
            self.rights.seal()?;
            if self.init {
                // Goes on in a child; this process stays as process 1.
                reaper::part().map_err(Failure::context("cannot start the container's command"))?;
            }
            sys::reset_signals();
            Ok(())
        };
        if let Err(failure) = prepare() {
            return failure;
        }
        execute(
            &self.candidates,
            &self.args,
            &self.env,
            self.rights.capabilities,
        )
    }
}

/// Needs a process of the user's that the container's /proc is in the view of.
fn set_oom_score(score: i32) -> Result<(), Failure> {
    let write = std::fs::write("/proc/self/oom_score_adj", score.to_string());
    write.map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "; only the host's root may go below the caller's own"
            }
            _ => "",
        };
        let text = format!("cannot set the out-of-memory score to {score}: {error}{hint}");
        Failure::runner(text)
    })
}

/// Becomes `args[0]`, found as a shell finds it with the PATH of `env`, in this process's view of
/// the file system.
pub fn execute_program(args: Vec<OsString>, env: Vec<OsString>) -> Failure {
    let attempt = || -> Result<Failure, Failure> {
        let program = args
            .first()
            .ok_or_else(|| Failure::runner("no command to run"))?;
        let candidates = c_strings(candidates(program, variable(&env, "PATH")))?;
        Ok(execute(
            &candidates,
            &c_strings(args)?,
            &c_strings(env)?,
            Capabilities::ALL,
        ))
    };
    attempt().unwrap_or_else(|failure| failure)
}

/// Returns only when none of the candidates can be executed, with the code that a shell would give.
fn execute(
    candidates: &[CString],
    args: &[CString],
    env: &[CString],
    capabilities: Capabilities,
) -> Failure {
    let exists = |file: &CString| Path::new(OsStr::from_bytes(file.as_bytes())).exists();
    let mut refused = None;
    for candidate in candidates {
        let Err(errno) = nix::unistd::execve(candidate, args, env);
        match errno {
            Errno::ENOENT | Errno::ENOTDIR => {}
            // A directory of PATH that may not be looked into does not hold the program.
            Errno::EACCES if !exists(candidate) => {}
            // Another directory of PATH may hold one that can be executed.
            errno => refused = refused.or(Some((candidate, errno))),
        }
    }
    let program = args
        .first()
        .map(|arg| arg.to_string_lossy())
        .unwrap_or_default();
    if let Some((file, errno)) = refused {
        let lacking = match errno {
            Errno::EPERM => capabilities.lacking_for(file),
            _ => Vec::new(),
        };
        let mut message = format!("cannot execute {program}: {}", errno.desc());
        if !lacking.is_empty() {
            let names: Vec<_> = lacking.iter().map(ToString::to_string).collect();
            let names = names.join(",");
            message += &format!(
                "; the file gives {names}, which the container must not have: --cap-add {names} allows it"
            );
        }
        return Failure::new(FailureKind::NotExecutable, message);
    }
    let message = match candidates.iter().find(|file| exists(file)) {
        Some(file) => format!(
            "cannot execute {}: the interpreter that it names is missing",
            file.to_string_lossy()
        ),
        None if program.is_empty() => "the command is an empty word".to_owned(),
        None if program.contains('/') => format!("there is no {program}"),
        None => format!("there is no {program} in PATH"),
    };
    Failure::new(FailureKind::NotFound, message)
}

/// A name with a slash is a path; any other is looked for in PATH.
fn candidates(program: &OsStr, path: Option<&OsStr>) -> Vec<OsString> {
    if program.is_empty() {
        return Vec::new();
    }
    if program.as_bytes().contains(&b'/') {
        return vec![program.to_owned()];
    }
    let path = path.unwrap_or(OsStr::new(DEFAULT_PATH));
    std::env::split_paths(path)
        .map(|dir| dir.join(program).into_os_string())
        .collect()
}

fn c_strings(strings: Vec<OsString>) -> Result<Vec<CString>, Failure> {
    let nul =
        |_| Failure::runner("an argument or variable of the container's command holds a NUL byte");
    strings
        .into_iter()
        .map(|string| CString::new(string.into_vec()).map_err(nul))
        .collect()
}

fn variable<'a>(env: &'a [OsString], name: &str) -> Option<&'a OsStr> {
    let value = |entry: &'a OsString| {
        entry
            .as_bytes()
            .strip_prefix(name.as_bytes())?
            .strip_prefix(b"=")
    };
    env.iter().find_map(value).map(OsStr::from_bytes)
}

/// Makes the working directory that an image asks for, where there is none, and the container's
/// user its owner.
fn make_workdir(workdir: &Path, root: BorrowedFd, identity: &Identity) -> Result<(), Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match open_in_root(root, workdir, flags) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // What is wrong with another one, entering it tells.
        _ => return Ok(()),
    }
    let owner = Some(rustix::fs::Uid::from_raw(identity.uid));
    let group = Some(rustix::fs::Gid::from_raw(identity.gid));
    let make = || -> io::Result<()> {
        let made = Root::open()?.ensure(workdir, Missing::Directory)?;
        match chownat(&made, "", owner, group, AtFlags::EMPTY_PATH) {
            // No such ID in the container: becoming it fails next, with the better message.
            Err(rustix::io::Errno::INVAL) => Ok(()),
            other => Ok(other?),
        }
    };
    let doing = format!("cannot make the working directory {}", workdir.display());
    make().map_err(Failure::context(doing))
}

/// Magic links are refused: `/proc/self/fd/N` as working directory was a way out of the container
/// (CVE-2024-21626).
fn enter_workdir(workdir: &Path, root: BorrowedFd) -> Result<(), Failure> {
    let refused = |error: io::Error| {
        let why = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT) => "it does not exist in the container".to_owned(),
            Some(Errno::ELOOP) => "it leads through a link that must not be followed".to_owned(),
            _ => error.to_string(),
        };
        Failure::new(
            FailureKind::NotExecutable,
            format!(
                "cannot use {} as working directory: {why}",
                workdir.display()
            ),
        )
    };
    let dir = open_in_root(root, workdir, OFlags::PATH | OFlags::DIRECTORY).map_err(refused)?;
    rustix::process::fchdir(&dir).map_err(|errno| refused(errno.into()))
}

/// Lets a user other than root open `/dev/stdout` and its like anew. Pipes and terminals only:
/// coracle made these for the container, whereas the null device is the host's.
fn give_streams_to(identity: &Identity) -> io::Result<()> {
    if identity.uid == 0 {
        return Ok(());
    }
    for stream in [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ] {
        if file_type(stream)? == FileType::Fifo || rustix::termios::isatty(stream) {
            let owner = Some(rustix::fs::Uid::from_raw(identity.uid));
            match rustix::fs::fchown(stream.as_fd(), owner, None) {
                // No such ID in the container: becoming it fails next, with the better message.
                Err(rustix::io::Errno::INVAL) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_for_as_a_shell_does() {
        let path = Some(OsStr::new("/bin:/usr/bin"));
        assert_eq!(
            candidates(OsStr::new("sh"), path),
            ["/bin/sh", "/usr/bin/sh"]
        );
        assert_eq!(candidates(OsStr::new("./sh"), path), ["./sh"]);
        assert_eq!(candidates(OsStr::new("sh"), None).len(), 6);
        assert!(candidates(OsStr::new(""), path).is_empty());
    }

    #[test]
    fn variables_are_found_by_whole_name() {
        let env = ["PATHX=1", "PATH=/a", "P=2"].map(OsString::from);
        assert_eq!(variable(&env, "PATH"), Some(OsStr::new("/a")));
        assert_eq!(variable(&env, "PAT"), None);
    }
}
