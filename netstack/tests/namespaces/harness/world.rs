//! The three namespaces of a case and their addresses.
//!
//! ```text
//!  guest ── tap0 (the helper under test) ── host ── up0 (veth) ── elsewhere
//!  10.0.2.100                               198.51.100.1          198.51.100.7
//!  fd00::100                                2001:db8::1           2001:db8::7
//! ```
//!
//! The case's process lives in the host namespace. Behind elsewhere lie 203.0.113.0/24 and
//! 2001:db8:dead::/48, which answer nothing at all; the host has unreachable routes to 192.0.2.0/24
//! and 2001:db8:beef::/48, and no default route.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use testbed::family::Family;
use testbed::netns::Netns;

use super::{Setup, eventually, skip, sys};

/// The namespace that a helper is attached to, and the process whose namespace it is.
pub struct Guest {
    pub net: Netns,
    pub pid: Pid,
}

/// Which user namespace a guest's network namespace belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestUsers {
    /// The case's own.
    Cases,
    /// One where the case's user is 0, as `unshare -Urn` makes it.
    Own,
    /// One whose IDs are all the host's from this one on, as an engine makes it that is started by
    /// root.
    From(u32),
}

impl Guest {
    /// Its interfaces are all down.
    pub fn new(users: GuestUsers) -> Self {
        let pid = sys::fork_holder(users).expect("fork the holder of the guest's namespaces");
        if let GuestUsers::From(first) = users {
            for map in ["uid_map", "gid_map"] {
                fs::write(format!("/proc/{pid}/{map}"), format!("0 {first} 65536"))
                    .expect("map the guest's IDs");
            }
        }
        let net = Netns::open(Path::new(&format!("/proc/{pid}/ns/net")));
        net.sysctl("ipv4/ping_group_range", "0 0");
        Self { net, pid }
    }

    /// Ends the process that the namespaces belong to; sockets in them go on living.
    pub fn kill_process(&mut self) {
        let _ = nix::sys::signal::kill(self.pid, nix::sys::signal::SIGKILL);
        waitpid(self.pid, None).expect("reap the guest's process");
        self.pid = Pid::from_raw(0);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if self.pid.as_raw() != 0 {
            self.kill_process();
        }
    }
}

/// Everything that a case works with. Dropping order does not matter: [`World::finish`] looks at
/// what is left.
pub struct World {
    pub host: Netns,
    pub elsewhere: Netns,
    pub guest: Guest,
    /// An empty directory, which a case must leave empty.
    pub dir: PathBuf,
}

/// Makes this process, which must have one thread, root of a new user namespace, with its own
/// mounts, its own `/etc` and the host's network namespace. With `as_root` the user namespace is
/// the host's.
pub fn enter(as_root: bool) {
    let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    if as_root {
        if !is_hosts_root() {
            skip("only the host's root can do it");
        }
        if let Err(errno) = unshare(flags) {
            skip(format!("no namespaces can be made here: {errno}"));
        }
    } else {
        enter_user_namespace(flags);
    }

    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .expect("PDEATHSIG");
    // What the helper might leave behind becomes our child, where `World::finish` sees it.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .expect("become a subreaper");
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("RLIMIT_NOFILE");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("raise RLIMIT_NOFILE to its hard limit");

    let none = None::<&str>;
    if let Err(errno) = mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none) {
        skip(format!(
            "user namespaces have no capabilities here (AppArmor?): {errno}"
        ));
    }
    // A whole directory rather than one file, so that resolv.conf can be replaced by rename, as
    // resolvconf tools do.
    mount(Some("etc"), "/etc", Some("tmpfs"), MsFlags::empty(), none)
        .expect("mount a tmpfs over /etc");
    fs::write("/etc/resolv.conf", "nameserver 198.51.100.7\n").expect("write resolv.conf");
}

fn enter_user_namespace(flags: CloneFlags) {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    if let Err(errno) = unshare(flags | CloneFlags::CLONE_NEWUSER) {
        skip(format!("no user namespace can be made here: {errno}"));
    }
    let write = |path: &str, text: String| {
        fs::write(path, text)
            .unwrap_or_else(|error| skip(format!("{path} cannot be written: {error}")));
    };
    write("/proc/self/setgroups", "deny".into());
    write("/proc/self/uid_map", format!("0 {uid} 1"));
    write("/proc/self/gid_map", format!("0 {gid} 1"));
}

fn is_hosts_root() -> bool {
    /// USER_NS_INIT_INO of linux/nsfs.h.
    const INITIAL: u64 = 0xEFFF_FFFD;
    let namespace = fs::metadata("/proc/self/ns/user").expect("our user namespace");
    namespace.ino() == INITIAL && nix::unistd::geteuid().is_root()
}

impl World {
    pub fn new() -> Self {
        if let Err(error) = fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
        {
            skip(format!("/dev/net/tun cannot be opened: {error}"));
        }
        if !Path::new("/proc/sys/net/ipv6").exists() {
            skip("the kernel has no IPv6");
        }
        let host = Netns::open(Path::new("/proc/self/ns/net"));
        let elsewhere = Netns::create();
        host.link(|links| links.up("lo")?.add_veth("up0", "up0", elsewhere.as_fd()));
        for (netns, pick) in [
            (&host, Family::host as fn(Family) -> IpAddr),
            (&elsewhere, Family::elsewhere),
        ] {
            netns.sysctl("ipv4/ping_group_range", "0 0");
            netns.link(|links| {
                links
                    .up("up0")?
                    .add_address("up0", pick(Family::V4), 24)?
                    .add_address("up0", pick(Family::V6), 64)
            });
        }
        for family in Family::BOTH {
            let (any, site) = match family {
                Family::V4 => (0, 24),
                Family::V6 => (0, 48),
            };
            let network = |address: IpAddr| match address {
                IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & !0xff)),
                IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 80 << 80)),
            };
            host.link(|links| {
                links
                    .add_route(network(family.silent()), site, family.elsewhere())?
                    .add_unreachable(network(family.unreachable()), site)
            });
            // A way back that it will not use, since it does not forward: without one IPv6 would
            // answer "no route".
            elsewhere.link(|links| links.add_route(family.unspecified(), any, family.host()));
        }
        for (netns, address) in [
            (&host, Family::V6.host()),
            (&elsewhere, Family::V6.elsewhere()),
        ] {
            netns.wait_until_local(address);
        }
        // A neighbour that does not answer is given up after 0.3 s instead of 3 s.
        host.sysctl("ipv4/neigh/up0/retrans_time_ms", "100");
        host.sysctl("ipv6/neigh/up0/retrans_time_ms", "100");

        // On the case's own tmpfs, so that it vanishes even when the case is killed.
        let dir = PathBuf::from("/etc/case");
        fs::create_dir(&dir).expect("make the case's directory");
        Self {
            host,
            elsewhere,
            guest: Guest::new(GuestUsers::Cases),
            dir,
        }
    }

    /// A helper for [`World::guest`], to be configured and started.
    pub fn helper(&self) -> Setup {
        Setup::new(self.guest.pid.to_string())
    }

    /// Ends the case: nothing that it started may be left.
    pub fn finish(self) {
        let Self {
            host,
            elsewhere,
            guest,
            dir,
        } = self;
        drop((host, elsewhere, guest));
        eventually(
            "every process that the case started has exited",
            Duration::from_secs(5),
            || {
                loop {
                    match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                        Err(nix::errno::Errno::ECHILD) => break true,
                        Ok(WaitStatus::StillAlive) => break false,
                        Ok(_) => continue,
                        Err(errno) => panic!("waitpid: {errno}"),
                    }
                }
            },
        );
        // A helper's companion removes the status socket after the helper has ended.
        fs::remove_dir(&dir).expect("the case's directory is empty");
        if is_hosts_root() {
            return;
        }
        let strangers = processes_in_our_user_namespace();
        assert!(
            strangers.is_empty(),
            "processes left in the case's user namespace: {strangers:?}"
        );
    }
}

/// All processes but this one whose user namespace is ours; each would keep the case's namespaces
/// alive.
fn processes_in_our_user_namespace() -> Vec<u32> {
    let namespace =
        |pid: &str| fs::metadata(format!("/proc/{pid}/ns/user")).map(|ns| (ns.dev(), ns.ino()));
    let ours = namespace("self").expect("our own user namespace");
    let processes = fs::read_dir("/proc").expect("read /proc").flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            *pid != std::process::id() && namespace(&pid.to_string()).is_ok_and(|ns| ns == ours)
        })
        .collect()
}
