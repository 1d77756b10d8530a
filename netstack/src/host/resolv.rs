//! The host's resolvers, as resolv.conf(5) lists them, followed live.
//!
//! Roaming and VPNs rewrite the file, mostly by renaming a new one over it; often it is a symbolic
//! link into another directory (/run/systemd/resolve). So the directories on the way are watched,
//! never the file. It takes a file system, so that it is the `companion`'s.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use rustix::fs::{Mode, OFlags, openat, readlinkat};
use tracing::{debug, warn};

use crate::core::autoconf::DomainName;
use crate::core::dns::DNS_PORT;

/// Where the host's resolvers are listed.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What glibc uses of a longer list (MAXNS).
const MAX_RESOLVERS: usize = 3;
/// Symbolic links in a row, as in path_resolution(7).
const MAX_LINKS: usize = 40;
/// Far longer than any real file.
const MAX_FILE_LEN: u64 = 64 << 10;

/// The file, and the current list. The descriptor is readable when it may have changed.
#[derive(Debug)]
pub struct ResolvConf {
    path: PathBuf,
    inotify: Inotify,
    /// The file's own name first, then what each symbolic link leads to.
    places: Vec<Place>,
    watches: BTreeSet<WatchDescriptor>,
    addresses: Vec<SocketAddr>,
}

/// A name in a directory that is held open.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    directory: OwnedFd,
}

impl ResolvConf {
    /// Reads the file at `path` and watches it. One that is missing may come later.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut followed = Self {
            path: path.to_owned(),
            inotify: Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?,
            places: Vec::new(),
            watches: BTreeSet::new(),
            addresses: Vec::new(),
        };
        followed.reload();
        Ok(followed)
    }

    /// Where to send queries, most preferred first; at most three, never none.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// To be called when the descriptor is readable: takes the news and says whether the list is
    /// another one now.
    pub fn changed(&mut self) -> bool {
        // What exactly happened does not matter; an overflow of the queue is an event like any
        // other.
        while self.inotify.read_events().is_ok() {}
        let before = self.addresses.clone();
        self.reload();
        before != self.addresses
    }

    fn reload(&mut self) {
        match self.read() {
            Ok(text) => self.addresses = parse(&text),
            // No descriptor to read it with, or the right to read it given up since: that says
            // nothing about the file.
            Err(error) if !self.addresses.is_empty() && is_about_us(&error) => {
                warn!("cannot read {}: {error}", self.path.display());
            }
            Err(error) => {
                debug!("cannot read {}: {error}", self.path.display());
                self.addresses = parse("");
            }
        }
    }

    /// Follows the links by hand, to watch each directory on the way. Watches come before reads, so
    /// that no change falls between.
    fn read(&mut self) -> io::Result<String> {
        let mut known = std::mem::take(&mut self.places);
        let mut watches = BTreeSet::new();
        let mut path = self.path.clone();
        let mut result = Err(io::Error::from_raw_os_error(libc::ELOOP));
        while self.places.len() < MAX_LINKS {
            watches.extend(self.watch(&path));
            // Anew if possible: the directory may have been removed and made again.
            let place = Place::open(&path).or_else(|error| {
                let index = known.iter().position(|place| place.path == path);
                index.map(|index| known.swap_remove(index)).ok_or(error)
            });
            let place = match place {
                Ok(place) => place,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            };
            let target = place.target();
            self.places.push(place);
            match target {
                Some(target) => path = target,
                None => {
                    result = self.places.last().expect("just pushed").read();
                    break;
                }
            }
        }
        for unused in self.watches.difference(&watches) {
            // Fails when its directory is gone, and the watch with it.
            let _ = self.inotify.rm_watch(*unused);
        }
        self.watches = watches;
        result
    }

    /// Watches the directory of `path`, or the nearest one above it that exists.
    fn watch(&self, path: &Path) -> Option<WatchDescriptor> {
        let events = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF;
        path.ancestors()
            .skip(1)
            .find_map(|directory| self.inotify.add_watch(directory, events).ok())
    }
}

impl AsFd for ResolvConf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

impl Place {
    fn open(path: &Path) -> io::Result<Self> {
        let parent = path.parent().ok_or(io::ErrorKind::IsADirectory)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(parent, flags, Mode::empty())?;
        Ok(Self {
            path: path.to_owned(),
            directory,
        })
    }

    fn name(&self) -> &Path {
        Path::new(self.path.file_name().unwrap_or_default())
    }

    /// Where it leads to, if it is a symbolic link.
    fn target(&self) -> Option<PathBuf> {
        let target = readlinkat(&self.directory, self.name(), Vec::new()).ok()?;
        let target = OsString::from_vec(target.into_bytes());
        Some(self.path.parent()?.join(target))
    }

    fn read(&self) -> io::Result<String> {
        // Non-blocking: a FIFO in this place must not hang us.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = File::from(openat(&self.directory, self.name(), flags, Mode::empty())?);
        let mut bytes = Vec::new();
        file.take(MAX_FILE_LEN).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Whether reading failed for what this process lacks, not for what the file is.
fn is_about_us(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::EACCES)
    )
}

/// The domains that the host searches, by the last `search` line of resolv.conf(5), without what is
/// no name.
pub fn search_domains() -> io::Result<Vec<DomainName>> {
    let text = fs::read_to_string(RESOLV_CONF)?;
    let last = text
        .lines()
        .map(str::split_whitespace)
        .filter_map(|mut words| (words.next() == Some("search")).then_some(words))
        .next_back();
    let words = last.into_iter().flatten();
    Ok(words.filter_map(|word| word.parse().ok()).collect())
}

/// The `nameserver` lines; a resolver on this machine if there is none (resolv.conf(5)). Names are
/// completed by the guest, so that search lists are for it ([`search_domains`]).
fn parse(text: &str) -> Vec<SocketAddr> {
    let mut addresses: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let value = words
                .next()
                .filter(|word| *word == "nameserver")
                .and_then(|_| words.next())?;
            parse_address(value)
        })
        .take(MAX_RESOLVERS)
        .collect();
    if addresses.is_empty() {
        addresses.push((Ipv4Addr::LOCALHOST, DNS_PORT).into());
    }
    addresses
}

/// An address, IPv6 with an optional zone (`fe80::1%eth0`, RFC 4007 11).
fn parse_address(text: &str) -> Option<SocketAddr> {
    match text.split_once('%') {
        None => Some((text.parse::<IpAddr>().ok()?, DNS_PORT).into()),
        Some((address, zone)) => {
            let scope = zone
                .parse()
                .or_else(|_| nix::net::if_::if_nametoindex(zone))
                .ok()?;
            Some(SocketAddrV6::new(address.parse().ok()?, DNS_PORT, 0, scope).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn addresses(text: &str) -> Vec<String> {
        parse(text).iter().map(SocketAddr::to_string).collect()
    }

    /// Waits for news like the driver, until the list is `expected`.
    fn expect(resolvers: &mut ResolvConf, expected: &str) {
        while resolvers.addresses()[0].ip().to_string() != expected {
            let mut polled = [PollFd::new(resolvers.as_fd(), PollFlags::POLLIN)];
            let events = poll(&mut polled, PollTimeout::from(10_000u16)).unwrap();
            assert_eq!(
                events,
                1,
                "no event, still {:?} instead of {expected}",
                resolvers.addresses()
            );
            resolvers.changed();
        }
    }

    #[test]
    fn the_nameserver_lines_count() {
        assert_eq!(
            addresses(
                "# nameserver 192.0.2.9\nnameserver 192.0.2.1\n  nameserver\t2001:db8::1 # x\nsearch example.org\n"
            ),
            ["192.0.2.1:53", "[2001:db8::1]:53"]
        );
        assert_eq!(
            addresses("nameserver fe80::1%1\nnameserver fe80::1%lo"),
            ["[fe80::1%1]:53"; 2]
        );
        assert_eq!(
            addresses("nameserver 1.1.1.1\n".repeat(9).as_str()).len(),
            3
        );
        for text in [
            "",
            "nameserver",
            "nameserver x\nnameservers 192.0.2.1",
            "nameserver fe80::1%nosuch",
            "search a",
        ] {
            assert_eq!(addresses(text), ["127.0.0.1:53"], "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_one_to_three_resolvers(text in "((nameserver|search|#)?[ \\t]*[0-9a-f:.%]{0,12}[\\n ]){0,8}") {
            let count = parse(&text).len();
            proptest::prop_assert!((1..=MAX_RESOLVERS).contains(&count));
        }
    }

    #[test]
    fn a_file_that_comes_changes_and_goes_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let mut resolvers = ResolvConf::open(&path).unwrap();
        expect(&mut resolvers, "127.0.0.1");
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        expect(&mut resolvers, "192.0.2.1");
        fs::write(dir.path().join("new"), "nameserver 192.0.2.2\n").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        expect(&mut resolvers, "192.0.2.2");
        fs::remove_file(&path).unwrap();
        expect(&mut resolvers, "127.0.0.1");
    }

    #[test]
    fn links_are_followed_into_directories_that_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let run = dir.path().join("run/resolve");
        symlink("run/resolve/stub.conf", &path).unwrap();
        let mut resolvers = ResolvConf::open(&path).unwrap();
        expect(&mut resolvers, "127.0.0.1");
        for address in ["192.0.2.1", "192.0.2.2"] {
            fs::create_dir_all(&run).unwrap();
            fs::write(run.join("stub.conf"), format!("nameserver {address}\n")).unwrap();
            expect(&mut resolvers, address);
            fs::remove_dir_all(dir.path().join("run")).unwrap();
            expect(&mut resolvers, "127.0.0.1");
        }
        // From the resolver's stub to a file of a VPN.
        fs::write(dir.path().join("vpn.conf"), "nameserver 192.0.2.3\n").unwrap();
        symlink(dir.path().join("vpn.conf"), dir.path().join("new")).unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        expect(&mut resolvers, "192.0.2.3");
    }

    #[test]
    fn odd_files_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        symlink("resolv.conf", &path).unwrap();
        let mut resolvers = ResolvConf::open(&path).unwrap();
        expect(&mut resolvers, "127.0.0.1");
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        resolvers.changed();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        resolvers.changed();
        expect(&mut resolvers, "127.0.0.1");
    }
}
