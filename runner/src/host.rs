//! What this host allows containers, and how to get more of it: what /proc, /sys, /dev and /etc say
//! to the caller. Nothing is changed, and nothing here decides how a container is run; what does
//! tells of it by itself, when it matters.

use std::fs;
use std::path::PathBuf;

use rustix::fs::{Access, access};
use rustix::process::{getegid, geteuid};
use serde::Serialize;

use crate::isolation::cgroup;
use crate::isolation::idmap::{IdMaps, SingleReason, is_initial};

/// One thing that a host may allow or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub about: &'static str,
    /// Whether containers have all that they could have of it.
    pub is_well: bool,
    /// How it is here.
    pub says: String,
    /// What somebody can do to have more of it. Most of it takes root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// The version of control groups that a host has mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cgroups {
    V1,
    /// Version 1, and version 2 beside it without most controllers.
    Hybrid,
    V2,
    None,
}

/// Where the host's files are: `/`, but in tests.
#[derive(Debug)]
pub struct Host {
    root: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self::at("/")
    }
}

impl Host {
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// All that is known, in an order for people. Containers get `maps`, which are of one ID for
    /// the reason `single`.
    pub fn findings(&self, maps: &IdMaps, single: Option<&SingleReason>) -> Vec<Finding> {
        let mut findings = vec![users(maps, single)];
        findings.extend(self.user_namespaces());
        findings.extend([
            self.tap(),
            self.ping(),
            self.low_ports(),
            self.control_groups(),
        ]);
        findings.extend(self.linger());
        findings
    }

    pub fn cgroups(&self) -> Cgroups {
        let has = |path: &str| self.path(path).exists();
        match () {
            () if has("sys/fs/cgroup/cgroup.controllers") => Cgroups::V2,
            () if has("sys/fs/cgroup/unified/cgroup.controllers") => Cgroups::Hybrid,
            () if has("sys/fs/cgroup/memory") || has("sys/fs/cgroup/systemd") => Cgroups::V1,
            () => Cgroups::None,
        }
    }

    /// Whether a Linux security module of this name (`apparmor`, `selinux`) is at work.
    pub fn has_module(&self, name: &str) -> bool {
        let modules = self.read("sys/kernel/security/lsm").unwrap_or_default();
        modules.split(',').any(|module| module == name)
    }

    /// What keeps normal users from making user namespaces; nothing if all is well.
    fn user_namespaces(&self) -> Vec<Finding> {
        let settings = [
            ("kernel.unprivileged_userns_clone", "0", "1"),
            ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
            ("user.max_user_namespaces", "0", "15000"),
        ];
        let is = |setting: &str, value: &str| {
            let path = format!("proc/sys/{}", setting.replace('.', "/"));
            self.read(&path).is_some_and(|text| text == value)
        };
        let bad = settings
            .into_iter()
            .filter(|(setting, bad, _)| is(setting, bad));
        bad.map(|(setting, bad, good)| Finding {
            about: "user namespaces",
            is_well: false,
            says: format!("the sysctl {setting} is {bad}, so that normal users may make none"),
            remedy: Some(format!("sysctl -w {setting}={good}")),
        })
        .collect()
    }

    fn tap(&self) -> Finding {
        let path = self.path("dev/net/tun");
        let is_well = access(&path, Access::READ_OK | Access::WRITE_OK).is_ok();
        Finding {
            about: "network device",
            is_well,
            says: match is_well {
                true => "a tap",
                false => {
                    "/dev/net/tun is not there for this user; a pair of virtual Ethernet interfaces takes its \
                     place on Linux 6.2 or later"
                }
            }
            .to_owned(),
            remedy: (!is_well).then(|| "modprobe tun; chmod 666 /dev/net/tun".to_owned()),
        }
    }

    /// Ping sockets (ping_group_range in ip-sysctl), by which echo requests leave.
    fn ping(&self) -> Finding {
        let own = getegid().as_raw();
        let range = self.read("proc/sys/net/ipv4/ping_group_range");
        let range = range.as_deref().and_then(|text| {
            let (first, last) = text.split_once(char::is_whitespace)?;
            Some(first.trim().parse::<u32>().ok()?..=last.trim().parse::<u32>().ok()?)
        });
        let is_well = geteuid().is_root() || range.is_some_and(|range| range.contains(&own));
        Finding {
            about: "ping",
            is_well,
            says: match is_well {
                true => "containers can ping hosts".to_owned(),
                false => format!(
                    "containers can ping their gateway only: group {own} may open no ping socket"
                ),
            },
            remedy: (!is_well)
                .then(|| "sysctl -w net.ipv4.ping_group_range='0 2147483647'".to_owned()),
        }
    }

    fn low_ports(&self) -> Finding {
        const USUAL: u32 = 1024;
        let setting = "net.ipv4.ip_unprivileged_port_start";
        let first = self.read("proc/sys/net/ipv4/ip_unprivileged_port_start");
        let first = first.and_then(|text| text.parse().ok()).unwrap_or(USUAL);
        let is_well = geteuid().is_root() || first <= 80;
        Finding {
            about: "published ports",
            is_well,
            says: match geteuid().is_root() {
                true => "all".to_owned(),
                false => format!("from {first} on"),
            },
            remedy: (!is_well).then(|| format!("sysctl -w {setting}=80")),
        }
    }

    fn control_groups(&self) -> Finding {
        let version = match self.cgroups() {
            Cgroups::V1 => "version 1",
            Cgroups::Hybrid => "version 1, with an almost empty version 2 beside it",
            Cgroups::V2 => "version 2",
            Cgroups::None => "none",
        };
        let is_well = cgroup::has_own();
        let says = match is_well {
            true => format!("{version}; containers get groups of their own"),
            false => {
                format!("{version}; this user may make none, so that containers cannot be paused")
            }
        };
        let remedy = "start a session under systemd with control groups of version 2, which \
                      delegates some to its user";
        Finding {
            about: "control groups",
            is_well,
            says,
            remedy: (!is_well).then(|| remedy.to_owned()),
        }
    }

    /// Whether a user's processes outlive the log-out, where systemd decides that.
    fn linger(&self) -> Option<Finding> {
        if geteuid().is_root() || !self.path("run/systemd/system").exists() {
            return None;
        }
        let user = nix::unistd::User::from_uid(geteuid().as_raw().into()).ok()??;
        let file = self.path("var/lib/systemd/linger").join(&user.name);
        let is_well = file.exists();
        Some(Finding {
            about: "log-out",
            is_well,
            says: match is_well {
                true => "containers go on".to_owned(),
                false => "systemd ends the user's containers with the last session".to_owned(),
            },
            remedy: (!is_well).then(|| format!("loginctl enable-linger {}", user.name)),
        })
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn read(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(path)).ok()?;
        Some(text.trim().to_owned())
    }
}

/// How many users and groups a container has.
fn users(maps: &IdMaps, single: Option<&SingleReason>) -> Finding {
    const WANTED: u32 = 65_536;
    let count = maps.user_count();
    let is_short = single.is_none() && count < WANTED;
    Finding {
        about: "users",
        is_well: single.is_none() && !is_short,
        says: match (single, is_initial()) {
            (Some(reason), _) => format!("one for each container: {reason}"),
            (None, true) => format!("{count} for each container"),
            (None, false) => format!("{count} for each container, inside a user namespace"),
        },
        // What is wrong with a single one says itself how to get more.
        remedy: is_short.then(|| format!("/etc/subuid and /etc/subgid grant fewer than {WANTED}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host of which these files say these things.
    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let host = Host::at(dir.path());
        (dir, host)
    }

    #[test]
    fn what_keeps_users_from_namespaces_is_named_with_its_remedy() {
        for (files, remedy) in [
            (&[][..], None),
            (
                &[("proc/sys/kernel/unprivileged_userns_clone", "1\n")],
                None,
            ),
            (
                &[("proc/sys/kernel/unprivileged_userns_clone", "0\n")],
                Some("sysctl -w kernel.unprivileged_userns_clone=1"),
            ),
            (
                &[(
                    "proc/sys/kernel/apparmor_restrict_unprivileged_userns",
                    "1\n",
                )],
                Some("sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
            ),
            (
                &[("proc/sys/user/max_user_namespaces", "0\n")],
                Some("sysctl -w user.max_user_namespaces=15000"),
            ),
        ] {
            let (_dir, host) = host(files);
            let findings = host.user_namespaces();
            let remedies: Vec<_> = findings.iter().map(|one| one.remedy.as_deref()).collect();
            let expected: Vec<_> = remedy.map(Some).into_iter().collect();
            assert_eq!(remedies, expected, "{files:?}");
        }
    }

    #[test]
    fn the_version_of_control_groups_is_told() {
        for (files, version) in [
            (&[][..], Cgroups::None),
            (&[("sys/fs/cgroup/cgroup.controllers", "")], Cgroups::V2),
            (&[("sys/fs/cgroup/memory/tasks", "")], Cgroups::V1),
            (
                &[
                    ("sys/fs/cgroup/memory/tasks", ""),
                    ("sys/fs/cgroup/unified/cgroup.controllers", ""),
                ],
                Cgroups::Hybrid,
            ),
        ] {
            let (_dir, host) = host(files);
            assert_eq!(host.cgroups(), version);
        }
    }

    #[test]
    fn ping_and_ports_are_for_those_whom_the_kernel_lets() {
        let own = getegid().as_raw();
        let is_root = geteuid().is_root();
        for (range, is_well) in [
            (format!("{own}\t{own}\n"), true),
            ("0\t2147483647\n".to_owned(), true),
            ("1\t0\n".to_owned(), false),
            ("nonsense".to_owned(), false),
        ] {
            let (_dir, host) = host(&[("proc/sys/net/ipv4/ping_group_range", &range)]);
            let ping = host.ping();
            assert_eq!(ping.is_well, is_well || is_root, "{range}");
            assert_eq!(ping.remedy.is_none(), ping.is_well);
        }
        let (_dir, host) = host(&[("proc/sys/net/ipv4/ip_unprivileged_port_start", "80\n")]);
        assert!(host.low_ports().is_well);
        let (_dir, host) = self::host(&[]);
        assert_eq!(host.low_ports().is_well, is_root);
    }

    #[test]
    fn modules_are_whole_words() {
        let (_dir, host) = host(&[("sys/kernel/security/lsm", "capability,landlock,apparmor\n")]);
        assert!(host.has_module("apparmor") && !host.has_module("app"));
    }
}
