//! Who runs coracle: root, a normal user with sub-IDs, a normal user without.
//!
//! Tests that run as root play all three, the normal users by setpriv. Tests of a normal user play
//! that one only, which is called by what it has.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nix::unistd::{Gid, Uid, User, getegid, geteuid};

/// What matters about a caller: the IDs that they can give to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All of their own.
    Root,
    /// Their own and their sub-IDs, with the help of newuidmap and newgidmap.
    Member,
    /// Their own only.
    Stranger,
}

impl Kind {
    /// Those that these tests can play.
    pub fn all() -> Vec<Self> {
        match geteuid() {
            uid if uid.is_root() => vec![Self::Root, Self::Member, Self::Stranger],
            uid if members().any(|user| user.uid == uid) && missing_map_tool().is_none() => {
                vec![Self::Member]
            }
            _ => vec![Self::Stranger],
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Member => "member",
            Self::Stranger => "stranger",
        })
    }
}

#[derive(Debug)]
pub struct Caller {
    pub kind: Kind,
    pub uid: Uid,
    pub gid: Gid,
    /// The words that make a command theirs; none when the tests themselves are.
    pub prefix: Vec<String>,
}

impl Caller {
    /// A caller of this kind who can make containers here, or what is missing for it.
    pub fn play(kind: Kind) -> Result<Self, String> {
        let me = geteuid();
        let caller = match kind {
            _ if !me.is_root() || kind == Kind::Root => Self {
                kind,
                uid: me,
                gid: getegid(),
                prefix: Vec::new(),
            },
            Kind::Member => Self::member()?,
            _ => Self::by_setpriv(
                kind,
                Uid::from_raw(STRANGER),
                Gid::from_raw(STRANGER),
                "--clear-groups",
            )?,
        };
        caller.can_make_user_namespaces()?;
        Ok(caller)
    }

    fn member() -> Result<Self, String> {
        if let Some(tool) = missing_map_tool() {
            return Err(format!("{tool} is not installed (package uidmap)"));
        }
        // The user that CI makes goes before a person.
        let user = members()
            .min_by_key(|user| user.name != CI_USER)
            .ok_or("no normal user has lines in /etc/subuid and /etc/subgid")?;
        Self::by_setpriv(Kind::Member, user.uid, user.gid, "--init-groups")
    }

    fn by_setpriv(kind: Kind, uid: Uid, gid: Gid, groups: &str) -> Result<Self, String> {
        if program("setpriv").is_none() {
            return Err("setpriv is not installed (package util-linux)".into());
        }
        let ids = [format!("--reuid={uid}"), format!("--regid={gid}")];
        Ok(Self {
            kind,
            uid,
            gid,
            prefix: ["setpriv".to_owned()]
                .into_iter()
                .chain(ids)
                .chain([groups.to_owned()])
                .collect(),
        })
    }

    /// Tried, not looked up: distributions and security modules forbid it in ways of their own. The
    /// mount namespace shows whether the new user namespace comes with capabilities.
    fn can_make_user_namespaces(&self) -> Result<(), String> {
        if program("unshare").is_none() {
            return Err("unshare is not installed (package util-linux)".into());
        }
        let mut words = self.prefix.iter().map(String::as_str).chain([
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "true",
        ]);
        let tried = Command::new(words.next().expect("never empty"))
            .args(words)
            .output()
            .map_err(|error| format!("unshare cannot be run: {error}"))?;
        if tried.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&tried.stderr);
        Err(format!(
            "uid {} cannot make user namespaces here: {}",
            self.uid,
            said.lines().last().unwrap_or_default()
        ))
    }
}

/// The normal users that have sub-IDs of both kinds.
fn members() -> impl Iterator<Item = User> {
    let holders = |path: &str| -> Vec<User> {
        let text = fs::read_to_string(path).unwrap_or_default();
        let names = text.lines().filter_map(|line| line.split(':').next());
        // subuid(5): by name or by number.
        names
            .filter_map(|name| match name.parse() {
                Ok(uid) => User::from_uid(Uid::from_raw(uid)).ok()?,
                Err(_) => User::from_name(name).ok()?,
            })
            .collect()
    };
    let with_gids = holders("/etc/subgid");
    holders("/etc/subuid")
        .into_iter()
        .filter(move |user| !user.uid.is_root() && with_gids.contains(user))
}

fn missing_map_tool() -> Option<&'static str> {
    ["newuidmap", "newgidmap"]
        .into_iter()
        .find(|tool| program(tool).is_none())
}

/// Where a program is, if it is in `PATH`.
pub fn program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

/// Not in any passwd file, so that nobody has granted it sub-IDs.
const STRANGER: u32 = 64_123;

/// Made by `.ci/run`.
const CI_USER: &str = "coracle-ci";
