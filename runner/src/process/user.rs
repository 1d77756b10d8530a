//! Who the container's process is: `-u` values, looked up in the container's own `/etc/passwd` and
//! `/etc/group`.
//!
//! Both files belong to the image and are hostile: they are opened below the container's root, must
//! be regular files, and are read up to a limit (a FIFO or `/dev/zero` in their place must not hang
//! or fill us, CVE-2024-9676). Parsing is pure. Lines that are not in the format of `passwd(5)` or
//! `group(5)` are passed over, as the C library does.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::ErrorKind::{NotADirectory, NotFound};
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::failure::Explained;
use crate::rootfs::lookup::open_in_root;

/// Bytes read of each file. A large directory export fits; a bomb does not.
const FILE_MAX: u64 = 4 << 20;

/// As `setgroups(2)` on Linux, NGROUPS_MAX is 65536; nobody has as many.
const GROUPS_MAX: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("cannot read {path} of the container: {source}")]
    Read {
        path: &'static str,
        source: io::Error,
    },
    #[error("{path} of the container is no regular file")]
    NotRegular { path: &'static str },
    #[error("{path} of the container is larger than {} bytes", FILE_MAX)]
    TooLarge { path: &'static str },
    #[error("no user {name:?} in /etc/passwd of the container")]
    NoUser { name: String },
    #[error("no group {name:?} in /etc/group of the container")]
    NoGroup { name: String },
}

impl Explained for UserError {}

/// Who to run as, with everything a process takes from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// All groups, `gid` among them, for `setgroups(2)`.
    pub groups: Vec<u32>,
    /// Empty when `/etc/passwd` knows none.
    pub home: String,
}

/// Looks up `spec` (`USER`, `UID`, `USER:GROUP`, `UID:GID`, `:GROUP` or empty for root) below the
/// directory `root`.
pub fn resolve(spec: &str, root: BorrowedFd) -> Result<Identity, UserError> {
    let passwd = read_limited(root, "etc/passwd")?;
    let group = read_limited(root, "etc/group")?;
    lookup(spec, &passwd, &group)
}

/// Adds the groups of these names or numbers.
pub fn add_groups(
    identity: &mut Identity,
    groups: &[String],
    root: BorrowedFd,
) -> Result<(), UserError> {
    if groups.is_empty() {
        return Ok(());
    }
    let text = read_limited(root, "etc/group")?;
    for name in groups {
        let gid = group_id(name, &text)?;
        if !identity.groups.contains(&gid) {
            identity.groups.push(gid);
        }
    }
    Ok(())
}

/// As [`resolve`], on the texts of the two files.
pub fn lookup(spec: &str, passwd: &str, group: &str) -> Result<Identity, UserError> {
    let (user, group_name) = spec.split_once(':').unwrap_or((spec, ""));
    let account = match user {
        "" => find_account(passwd, |account| account.uid == 0).unwrap_or(Account {
            name: "root",
            uid: 0,
            gid: 0,
            home: "",
        }),
        name => find_account(passwd, |account| account.name == name)
            .or_else(|| {
                let uid = parse_id(name)?;
                let unknown = Account {
                    name: "",
                    uid,
                    gid: 0,
                    home: "",
                };
                Some(find_account(passwd, |account| account.uid == uid).unwrap_or(unknown))
            })
            .ok_or_else(|| UserError::NoUser {
                name: name.to_owned(),
            })?,
    };
    let mut identity = Identity {
        uid: account.uid,
        gid: account.gid,
        groups: Vec::new(),
        home: account.home.to_owned(),
    };
    if group_name.is_empty() {
        // As for a login: the primary group and those that list the user.
        identity.groups = groups(group)
            .filter(|g| g.has_member(account.name))
            .map(|g| g.gid)
            .collect();
    } else {
        // A group that is named replaces them all: the caller asked for exactly these rights.
        identity.gid = group_id(group_name, group)?;
    }
    identity.groups.insert(0, identity.gid);
    let mut seen = std::collections::HashSet::new();
    identity.groups.retain(|gid| seen.insert(*gid));
    identity.groups.truncate(GROUPS_MAX);
    Ok(identity)
}

/// The names of users and groups below the directory `root`, by their IDs. The first of several
/// counts, and what cannot be read has none.
pub fn names(root: BorrowedFd) -> (BTreeMap<u32, String>, BTreeMap<u32, String>) {
    let text = |path| read_limited(root, path).unwrap_or_default();
    let (passwd, group) = (text("etc/passwd"), text("etc/group"));
    let mut users = BTreeMap::new();
    // The last of equal keys stays.
    for account in accounts(&passwd).collect::<Vec<_>>().into_iter().rev() {
        users.insert(account.uid, account.name.to_owned());
    }
    let mut of_groups = BTreeMap::new();
    for group in groups(&group).collect::<Vec<_>>().into_iter().rev() {
        of_groups.insert(group.gid, group.name.to_owned());
    }
    (users, of_groups)
}

#[derive(Debug, Clone, Copy)]
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

#[derive(Debug)]
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl Group<'_> {
    fn has_member(&self, name: &str) -> bool {
        !name.is_empty() && self.members.split(',').any(|member| member == name)
    }
}

fn find_account<'a>(passwd: &'a str, matches: impl Fn(&Account) -> bool) -> Option<Account<'a>> {
    accounts(passwd).find(matches)
}

fn accounts<'a>(passwd: &'a str) -> impl Iterator<Item = Account<'a>> {
    let parse = |line: &'a str| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (parse_id(fields.next()?)?, parse_id(fields.next()?)?);
        let home = fields.nth(1).unwrap_or("");
        (!name.is_empty()).then_some(Account {
            name,
            uid,
            gid,
            home,
        })
    };
    passwd.lines().filter_map(parse)
}

fn groups(text: &str) -> impl Iterator<Item = Group<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let gid = parse_id(fields.next()?)?;
        (!name.is_empty()).then_some(Group {
            name,
            gid,
            members: fields.next().unwrap_or(""),
        })
    })
}

/// A name goes before a number that looks like it.
fn group_id(name: &str, text: &str) -> Result<u32, UserError> {
    let named = groups(text).find(|group| group.name == name);
    let id = named.map(|group| group.gid).or_else(|| parse_id(name));
    id.ok_or_else(|| UserError::NoGroup {
        name: name.to_owned(),
    })
}

/// Digits only, and below the value that stands for "no ID" in `setresuid(2)`.
fn parse_id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        .filter(|id| *id != u32::MAX)
}

/// The text of a file of the container, or nothing where there is no such file.
fn read_limited(root: BorrowedFd, path: &'static str) -> Result<String, UserError> {
    let read = |source: io::Error| UserError::Read { path, source };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match open_in_root(root, Path::new(path), flags) {
        Ok(file) => File::from(file),
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => return Ok(String::new()),
        Err(error) => return Err(read(error)),
    };
    let found = file.metadata().map_err(read)?;
    if is_null_device(&found) {
        // It is hidden (`--security-opt mask=`).
        return Ok(String::new());
    }
    if !found.is_file() {
        return Err(UserError::NotRegular { path });
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(read)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(UserError::TooLarge { path });
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn is_null_device(found: &Metadata) -> bool {
    found.file_type().is_char_device() && found.rdev() == rustix::fs::makedev(1, 3)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use proptest::prelude::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\n:x:5:5::/:\nweb:x:1000:1000:Web,,,:/srv/web:/bin/false\n7:x:70:70::/seven:\n";
    const GROUP: &str =
        "root:x:0:\nweb:x:1000:\nlog:x:4:web,other\nmedia:x:44:other,web\nnone:x:9:,\n";

    fn ids(spec: &str) -> (u32, u32, Vec<u32>) {
        let identity = lookup(spec, PASSWD, GROUP).expect("a known user");
        (identity.uid, identity.gid, identity.groups)
    }

    #[test]
    fn forms_of_user_and_group() {
        assert_eq!(ids(""), (0, 0, vec![0]));
        assert_eq!(ids("web"), (1000, 1000, vec![1000, 4, 44]));
        assert_eq!(ids("1000"), (1000, 1000, vec![1000, 4, 44]));
        assert_eq!(ids("web:log"), (1000, 4, vec![4]));
        assert_eq!(ids("web:77"), (1000, 77, vec![77]));
        assert_eq!(ids("1000:1000"), (1000, 1000, vec![1000]));
        assert_eq!(ids("1"), (1, 0, vec![0]));
        assert_eq!(ids("1:"), (1, 0, vec![0]));
        assert_eq!(ids(":1"), (0, 1, vec![1]));
        assert_eq!(ids("01"), (1, 0, vec![0]));
        // A name goes before a number that looks like it.
        assert_eq!(ids("7"), (70, 70, vec![70]));
        assert_eq!(ids("4294967294").0, 4_294_967_294);
    }

    #[test]
    fn unknown_names_and_ids_out_of_range_are_errors() {
        for spec in [
            " 1",
            "+1",
            "-1",
            "1 ",
            "4294967295",
            "4294967296",
            "nobody",
            "broken",
        ] {
            assert!(
                matches!(lookup(spec, PASSWD, GROUP), Err(UserError::NoUser { .. })),
                "{spec:?}"
            );
        }
        for spec in [
            "web: 1",
            "web:+1",
            "web:4294967295",
            "web:nogroup",
            "web:1:2",
        ] {
            assert!(
                matches!(lookup(spec, PASSWD, GROUP), Err(UserError::NoGroup { .. })),
                "{spec:?}"
            );
        }
    }

    #[test]
    fn home_comes_from_passwd() {
        assert_eq!(lookup("web", PASSWD, GROUP).expect("web").home, "/srv/web");
        assert_eq!(lookup("", "", "").expect("root needs no entry").home, "");
    }

    #[test]
    fn files_that_are_not_what_they_seem_do_not_hang() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = File::open(dir.path()).expect("opened");
        let read = || read_limited(root.as_fd(), "etc/passwd");
        assert_eq!(read().expect("no file grants nobody"), "");

        let etc = dir.path().join("etc");
        std::fs::create_dir(&etc).expect("etc");
        let passwd = etc.join("passwd");
        mknodat(CWD, &passwd, FileType::Fifo, Mode::RUSR, 0).expect("a fifo");
        assert!(matches!(read(), Err(UserError::NotRegular { .. })));

        std::fs::remove_file(&passwd).expect("removed");
        std::os::unix::fs::symlink("../../../../../../etc/hostname-of-host", &passwd)
            .expect("a symlink");
        std::fs::write(dir.path().join("etc/hostname-of-host"), "inside").expect("written");
        assert_eq!(read().expect("links stay inside"), "inside");

        std::fs::remove_file(&passwd).expect("removed");
        File::create(&passwd)
            .and_then(|file| file.set_len(FILE_MAX + 1))
            .expect("a large file");
        assert!(matches!(read(), Err(UserError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn any_files_are_read_without_panic(spec in "\\PC{0,20}", passwd in "[a-z0-9:\n]*", group in "[a-z0-9:,\n]*") {
            if let Ok(identity) = lookup(&spec, &passwd, &group) {
                prop_assert_eq!(identity.groups[0], identity.gid);
                prop_assert!(identity.uid != u32::MAX && !identity.groups.contains(&u32::MAX));
            }
        }
    }
}
