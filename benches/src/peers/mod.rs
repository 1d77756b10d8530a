//! The network helpers that are compared: how each is found, started and attached to a guest.
//!
//! Every peer is started as a normal user's engine would start it, with host loopback blocked and,
//! for published cells, one port forwarded from all addresses of the host. What differs between
//! peers stays in the peer's own file.

pub mod coracle;
pub mod loopback;
mod pasta;
pub mod rootlesskit;
mod slirp4netns;
mod veth;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cell::{Cell, Family, Route, Work};
use crate::procfs::Processes;
use crate::worker::Running;

/// The port that the guest's service listens on and that published cells forward on the host.
pub const PORT: u16 = 8080;

/// A program to compare.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// Unique in a comparison; a second build of a program gets a number.
    pub name: String,
    pub kind: Kind,
    /// Empty for the host reference.
    pub program: PathBuf,
    /// What the program says of itself.
    pub version: String,
    /// A helper's helper: RootlessKit's slirp4netns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// No helper and no guest: both ends in the host's network namespace. What the kernel alone can
    /// do.
    Host,
    /// No helper either, but a guest: connected by a veth pair, as only root can.
    Veth,
    Coracle,
    Slirp4netns,
    Pasta,
    /// RootlessKit's builtin port driver, which moves bytes between two kernel sockets; outbound it
    /// is slirp4netns.
    Rootlesskit,
    /// RootlessKit with the ports of its slirp4netns, which is how it keeps the client's address.
    RootlesskitSlirp4netns,
}

/// What a helper forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// As it stands in port rules.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// What a figure needs from a helper.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// A process in the guest's namespaces.
    pub guest: i32,
    pub mtu: u16,
    pub family: Family,
    /// Forward [`PORT`] of every host address of the family to the same port of the guest.
    pub publish: &'static [Protocol],
}

impl Wanted {
    /// The port rules in the notation that coracle-net and RootlessKit share with Docker.
    fn rules(&self) -> impl Iterator<Item = String> {
        let any = match self.family {
            Family::Ipv4 => "0.0.0.0",
            Family::Ipv6 => "[::]",
        };
        let rule = move |protocol: &Protocol| format!("{any}:{PORT}:{PORT}/{}", protocol.name());
        self.publish.iter().map(rule)
    }
}

/// A helper at work.
pub struct Attached {
    /// The guest's process when the helper made the guest itself.
    pub guest: Option<i32>,
    /// Where clients find the guest when no port of the host leads there.
    pub address: Option<IpAddr>,
    pub processes: Processes,
    /// From starting the program until the network was up; forwarding a port through an API comes
    /// after.
    pub ready: Option<Duration>,
    /// Held so that the programs' pipes stay open.
    pub _programs: Vec<Running>,
}

impl Peer {
    /// Whether the cell says anything about this peer.
    pub fn answers(&self, cell: &Cell) -> bool {
        let of_helper = matches!(cell.work, Work::Memory { .. } | Work::Soak { .. });
        let outbound = cell.route == Route::Outbound;
        let ipv4 = cell.family == Family::Ipv4;
        match self.kind {
            Kind::Host | Kind::Veth => !of_helper,
            Kind::Coracle | Kind::Pasta => true,
            // Its API forwards IPv4 only.
            Kind::Slirp4netns => outbound || ipv4,
            Kind::Rootlesskit => !outbound,
            Kind::RootlesskitSlirp4netns => !outbound && ipv4,
        }
    }

    /// Starts the helper and waits until the guest's network is up.
    pub fn attach(&self, wanted: Wanted) -> Result<Attached> {
        match self.kind {
            Kind::Host => Ok(loopback::attach()),
            Kind::Veth => veth::attach(wanted),
            Kind::Coracle => coracle::attach(&self.program, wanted),
            Kind::Slirp4netns => slirp4netns::attach(&self.program, wanted),
            Kind::Pasta => pasta::attach(&self.program, wanted),
            Kind::Rootlesskit | Kind::RootlesskitSlirp4netns => {
                let backend = self
                    .backend
                    .as_deref()
                    .context("RootlessKit needs slirp4netns")?;
                let port_driver = match self.kind {
                    Kind::Rootlesskit => "builtin",
                    _ => "slirp4netns",
                };
                rootlesskit::attach(&self.program, backend, port_driver, wanted)
            }
        }
        .with_context(|| format!("failed to attach {}", self.name))
    }
}

/// Programs named on the command line, in addition to those that are installed.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Programs {
    /// A coracle-net to measure besides the one built with this program (repeatable)
    #[arg(long, value_name = "PATH")]
    pub coracle_net: Vec<PathBuf>,
    /// Another slirp4netns (repeatable)
    #[arg(long, value_name = "PATH")]
    pub slirp4netns: Vec<PathBuf>,
    /// Another pasta (repeatable)
    #[arg(long, value_name = "PATH")]
    pub pasta: Vec<PathBuf>,
    /// Another rootlesskit (repeatable)
    #[arg(long, value_name = "PATH")]
    pub rootlesskit: Vec<PathBuf>,
}

/// The host reference and every helper that is installed or named, and a line for each that is
/// missing.
///
/// Fails when a program that was named cannot be run.
pub fn detect(programs: &Programs) -> Result<(Vec<Peer>, Vec<String>)> {
    let mut peers = vec![loopback::peer(), veth::peer()];
    let mut missing = Vec::new();
    let mut add = |kind: Kind,
                   name: &str,
                   found: Option<PathBuf>,
                   named: &[PathBuf],
                   absent: &str|
     -> Result<()> {
        if found.is_none() && named.is_empty() {
            missing.push(format!("{name}: {absent}"));
        }
        for (index, program) in found.iter().chain(named).enumerate() {
            let program = std::path::absolute(program)?;
            let name = if index == 0 {
                name.to_string()
            } else {
                format!("{name}-{}", index + 1)
            };
            let version = version(&program)?;
            peers.push(Peer {
                name,
                kind,
                program,
                version,
                backend: None,
            });
        }
        Ok(())
    };
    let built = built_with_us("coracle-net");
    add(
        Kind::Coracle,
        "coracle",
        built,
        &programs.coracle_net,
        "build it: cargo build --release -p coracle-netstack",
    )?;
    let installed = |name| find_program(name);
    let absent = "not installed";
    add(
        Kind::Slirp4netns,
        "slirp4netns",
        installed("slirp4netns"),
        &programs.slirp4netns,
        absent,
    )?;
    add(
        Kind::Pasta,
        "pasta",
        installed("pasta"),
        &programs.pasta,
        absent,
    )?;
    add(
        Kind::Rootlesskit,
        "rootlesskit",
        installed("rootlesskit"),
        &programs.rootlesskit,
        absent,
    )?;
    give_backends(&mut peers, &mut missing);
    Ok((peers, missing))
}

/// Gives each RootlessKit its slirp4netns, and a twin that uses the ports of it.
fn give_backends(peers: &mut Vec<Peer>, missing: &mut Vec<String>) {
    let is = |kind| move |peer: &Peer| peer.kind == kind;
    let slirp4netns = peers.iter().find(|peer| is(Kind::Slirp4netns)(peer));
    let Some(backend) = slirp4netns.map(|peer| peer.program.clone()) else {
        if peers.iter().any(is(Kind::Rootlesskit)) {
            missing.push("rootlesskit: it needs slirp4netns, which is not installed".into());
            peers.retain(|peer| peer.kind != Kind::Rootlesskit);
        }
        return;
    };
    let mut twins = Vec::new();
    for peer in peers.iter_mut().filter(|peer| is(Kind::Rootlesskit)(peer)) {
        peer.backend = Some(backend.clone());
        twins.push(Peer {
            name: peer.name.replace("rootlesskit", "rk-slirp4netns"),
            kind: Kind::RootlesskitSlirp4netns,
            ..peer.clone()
        });
    }
    peers.extend(twins);
}

/// A program of this workspace, next to our own executable.
pub fn built_with_us(name: &str) -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    Some(own.parent()?.join(name)).filter(|path| path.is_file())
}

/// A program in the search path, or where system programs are kept.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
}

/// The version a program prints, from its first line that has a digit; "version unknown" when it
/// knows none.
pub fn version(program: &Path) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to run {} --version", program.display()))?;
    Ok(parse_version(&String::from_utf8_lossy(&output.stdout))
        .unwrap_or_else(|| "version unknown".into()))
}

/// The first word that begins with a digit and has a dot in it, or the one after `version`.
fn parse_version(text: &str) -> Option<String> {
    let words = text.lines().next()?.split_ascii_whitespace();
    words
        .map(|word| word.trim_matches([',', 'v']))
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))
        .map(String::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_the_programs_print_them() {
        let parse = |text| parse_version(text).unwrap_or_default();
        assert_eq!(
            parse("slirp4netns version 1.2.0\ncommit: 656041\n"),
            "1.2.0"
        );
        assert_eq!(
            parse("pasta 0.0~git20261002.cba3570-1\nCopyright Red Hat\n"),
            "0.0~git20261002.cba3570-1"
        );
        assert_eq!(parse("rootlesskit version v2.3.1\n"), "2.3.1");
        assert_eq!(parse("runc version 1.1.5+ds1, build x\n"), "1.1.5+ds1");
        assert_eq!(parse_version("pasta unknown version\n"), None);
        assert_eq!(parse_version(""), None);
    }

    #[test]
    fn the_reference_has_no_helper_whose_memory_could_be_measured() {
        let cells = crate::matrix::full();
        let host = loopback::peer();
        assert!(cells.iter().any(|cell| !host.answers(cell)));
        assert!(
            cells
                .iter()
                .filter(|cell| !host.answers(cell))
                .all(|cell| matches!(cell.work, Work::Memory { .. }))
        );
    }

    #[test]
    fn rootlesskit_comes_with_both_port_drivers_or_not_at_all() {
        let peer = |kind, name: &str| Peer {
            kind,
            name: name.into(),
            program: format!("/usr/bin/{name}").into(),
            ..loopback::peer()
        };
        let rootlesskit = peer(Kind::Rootlesskit, "rootlesskit");
        let mut alone = vec![rootlesskit.clone()];
        let mut missing = Vec::new();
        give_backends(&mut alone, &mut missing);
        assert!(alone.is_empty() && missing.len() == 1);

        let mut both = vec![peer(Kind::Slirp4netns, "slirp4netns"), rootlesskit];
        give_backends(&mut both, &mut Vec::new());
        let names: Vec<&str> = both.iter().map(|peer| peer.name.as_str()).collect();
        assert_eq!(names, ["slirp4netns", "rootlesskit", "rk-slirp4netns"]);
        assert!(both[1..].iter().all(|peer| peer.backend.is_some()));
    }
}
