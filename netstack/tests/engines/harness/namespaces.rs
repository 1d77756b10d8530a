//! The namespaces of a machine, and the processes that lead there.
//!
//! The process outside makes all namespaces at once. Its first child is process 1 of the new PID
//! namespace, which ends everything on the machine when it ends; its own child plays the case.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{User, getegid, geteuid};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::skip;

/// What a process of a case is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Outside,
    Init,
    Player,
}

impl Role {
    pub fn of_this_process() -> Self {
        match std::env::var(VARIABLE).as_deref() {
            Err(_) => Self::Outside,
            Ok("init") => Self::Init,
            Ok(_) => Self::Player,
        }
    }
}

/// Makes the machine's namespaces, starts its init, and ends as the case does.
pub fn make() -> ExitCode {
    let mut mapper = Mapper::start();
    let namespaces = CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    if let Err(errno) = unshare(namespaces) {
        skip(format!("no namespaces can be made here: {errno}"));
    }
    mapper.map();
    let status = again("init").wait().expect("wait for the machine's init");
    ending(status)
}

/// The life of process 1: it reaps whatever is left to it, until the case has been played.
#[expect(clippy::zombie_processes, reason = "it is waited for among all others")]
pub fn init() -> ExitCode {
    die_with_parent();
    let player = again("player");
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() as u32 == player.id() => {
                return ending(ExitStatus::from_raw(code << 8));
            }
            Ok(WaitStatus::Signaled(pid, ..)) if pid.as_raw() as u32 == player.id() => {
                return ExitCode::FAILURE;
            }
            Ok(_) => {}
            Err(errno) => panic!("wait for the machine's processes: {errno}"),
        }
    }
}

/// Lets the kernel kill this process when its parent ends.
pub fn die_with_parent() {
    set_parent_process_death_signal(Some(Signal::KILL)).expect("PDEATHSIG");
}

/// This program once more, in another role.
fn again(role: &str) -> Child {
    let mut command = Command::new("/proc/self/exe");
    command.env(VARIABLE, role);
    command
        .spawn()
        .unwrap_or_else(|error| panic!("start the machine's {role}: {error}"))
}

fn ending(status: ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

/// A process that stays in the user namespace where we began, for only from there a range of IDs
/// can be mapped into ours.
struct Mapper(Child);

impl Mapper {
    /// It maps the user to the machine's root, and its sub-IDs to all others.
    fn start() -> Self {
        let script = if geteuid().is_root() {
            r#"read go && for kind in u g; do printf "0 0 1\n1 $4 65535\n" >"/proc/$1/${kind}id_map" || exit; done"#
        } else {
            r#"read go && newuidmap "$1" 0 "$2" 1 1 "$4" 65535 && newgidmap "$1" 0 "$3" 1 1 "$5" 65535"#
        };
        let mapper = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(std::process::id().to_string())
            .args([geteuid().to_string(), getegid().to_string()])
            .args([first_sub_id("/etc/subuid"), first_sub_id("/etc/subgid")])
            .stdin(Stdio::piped())
            .spawn();
        Self(mapper.expect("start sh"))
    }

    fn map(&mut self) {
        let mut go = self.0.stdin.take().expect("piped");
        go.write_all(b"go\n").expect("tell the mapper");
        drop(go);
        let status = self.0.wait().expect("wait for the mapper");
        if !status.success() {
            skip("newuidmap or newgidmap did not map the sub-IDs (package uidmap)");
        }
    }
}

/// Where the 65535 sub-IDs of this user begin; root may have any.
fn first_sub_id(path: &str) -> String {
    const ROOTS: &str = "100000";
    if geteuid().is_root() {
        return ROOTS.into();
    }
    let user = User::from_uid(geteuid()).ok().flatten();
    let name = user.map(|user| user.name).unwrap_or_default();
    let uid = geteuid().to_string();
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // subuid(5): by name or by number.
    let first = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let owner = fields
            .next()
            .filter(|owner| *owner == name || *owner == uid);
        let first = owner.and_then(|_| fields.next())?;
        let count: u32 = fields.next()?.parse().ok()?;
        (count >= 65535).then(|| first.to_owned())
    });
    first.unwrap_or_else(|| skip(format!("this user has no 65535 IDs in {path}")))
}

/// Tells a process of a case its role.
const VARIABLE: &str = "CORACLE_ENGINES_ROLE";
