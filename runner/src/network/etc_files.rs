//! The files that coracle provides to a container: resolv.conf, hosts, hostname, and localtime
//! where a time zone was asked for.
//!
//! They lie in the container's run directory, written anew for each start, and are bound over the
//! image's own, so that an image is never changed for them.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use netstack::core::addresses::Addresses;

use crate::failure::Explained;
use crate::network::names::{Names, ResolvConf};
use crate::network::options::NetworkOptions;
use crate::rootfs::{Bind, BindOptions};
use crate::spec::Network;

#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", path.display())]
pub struct WriteError {
    path: PathBuf,
    source: io::Error,
}

impl Explained for WriteError {}

const RESOLV_CONF: &str = "resolv.conf";
const HOSTS: &str = "hosts";
const HOSTNAME: &str = "hostname";
const LOCALTIME: &str = "localtime";

/// Whom the files are for.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    pub hostname: &'a str,
    /// The container's name.
    pub name: &'a str,
    pub names: &'a Names,
    /// The file of its time zone on the host.
    pub timezone: Option<&'a Path>,
}

/// Where the files that [`write`] puts into `dir` belong, but for those that are the image's.
pub fn binds(dir: &Path, names: &Names, has_timezone: bool) -> Vec<Bind> {
    let bind = |file| Bind {
        source: dir.join(file),
        target: Path::new("/etc").join(file),
        read_only: false,
        options: BindOptions::default(),
        changes: None,
    };
    let files = [
        (RESOLV_CONF, names.resolv_conf != ResolvConf::Image),
        (HOSTS, !names.no_hosts),
        (HOSTNAME, true),
        (LOCALTIME, has_timezone),
    ];
    let provided = files.into_iter().filter(|(_, is_ours)| *is_ours);
    provided.map(|(file, _)| bind(file)).collect()
}

/// Writes the files into `dir`. A container in networks is told of them when it has joined them, by
/// [`write_for_networks`].
pub fn write(dir: &Path, about: About, network: &Network) -> Result<(), WriteError> {
    let has_ipv6 = Path::new("/proc/sys/net/ipv6").exists();
    let (resolv_conf, hosts) = match network {
        Network::Coracle(options) => {
            let Addresses { dns, guest, .. } = addresses(options, has_ipv6);
            (
                about.resolv_conf(&host_resolv_conf(), Some(&dns)),
                about.hosts(network, &guest, options.host()),
            )
        }
        Network::Host => (
            about.resolv_conf(&host_resolv_conf(), None),
            fs::read_to_string("/etc/hosts").unwrap_or_default()
                + &about.names.host_lines(network)
                + &about.own_names(&[Ipv4Addr::LOCALHOST.into()]),
        ),
        Network::None | Network::Bridge => (
            about.resolv_conf(&host_resolv_conf(), Some(&[])),
            about.hosts(network, &[Ipv4Addr::LOCALHOST.into()], &[]),
        ),
    };
    if let Some(source) = about.timezone {
        let path = dir.join(LOCALTIME);
        fs::copy(source, &path).map_err(|source| WriteError { path, source })?;
    }
    let files = [
        (RESOLV_CONF, resolv_conf),
        (HOSTS, hosts),
        (HOSTNAME, format!("{}\n", about.hostname)),
    ];
    write_all(dir, files)
}

/// As [`write`], for a container in networks: it asks `resolvers`, and has `own` addresses. What is
/// there is changed in place, since the container has it mounted.
pub fn write_for_networks(
    dir: &Path,
    about: About,
    resolvers: &[IpAddr],
    own: &[IpAddr],
) -> Result<(), WriteError> {
    let files = [
        (
            RESOLV_CONF,
            about.resolv_conf(&host_resolv_conf(), Some(resolvers)),
        ),
        (HOSTS, about.hosts(&Network::Bridge, own, &[])),
    ];
    write_all(dir, files)
}

fn write_all<const N: usize>(
    dir: &Path,
    files: [(&'static str, String); N],
) -> Result<(), WriteError> {
    for (file, text) in files {
        let path = dir.join(file);
        fs::write(&path, text).map_err(|source| WriteError { path, source })?;
    }
    Ok(())
}

/// What a host without the file resolves is up to its C library, and so it is in the container.
fn host_resolv_conf() -> String {
    let text = fs::read("/etc/resolv.conf").unwrap_or_default();
    String::from_utf8_lossy(&text).into_owned()
}

impl About<'_> {
    /// The container's name servers, with the search list and the options of the host,
    /// `resolv.conf(5)`; what was asked for goes before. Without `servers` they are the host's.
    fn resolv_conf(&self, host: &str, servers: Option<&[IpAddr]>) -> String {
        let ResolvConf::Lists {
            servers: asked,
            search,
            options,
        } = &self.names.resolv_conf
        else {
            return String::new();
        };
        let servers = match asked.is_empty() {
            true => servers,
            false => Some(&asked[..]),
        };
        let is_kept = |line: &&str| match line.split_ascii_whitespace().next() {
            Some("search" | "domain") => search.is_empty(),
            Some("options") => options.is_empty(),
            Some("sortlist") => true,
            Some("nameserver") => servers.is_none(),
            _ => false,
        };
        let mut text: String = host
            .lines()
            .filter(is_kept)
            .map(|line| format!("{line}\n"))
            .collect();
        if !search.is_empty() && search != &["."] {
            text += &format!("search {}\n", search.join(" "));
        }
        if !options.is_empty() {
            text += &format!("options {}\n", options.join(" "));
        }
        for server in servers.unwrap_or_default() {
            text += &format!("nameserver {server}\n");
        }
        text
    }

    fn hosts(&self, network: &Network, own: &[IpAddr], host: &[IpAddr]) -> String {
        let mut text = self.names.host_lines(network);
        text += "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
        text += &self.own_names(own);
        for address in host {
            text += &format!("{address}\t{HOST_NAMES}\n");
        }
        text
    }

    fn own_names(&self, own: &[IpAddr]) -> String {
        let names = match self.hostname == self.name {
            true => self.hostname.to_owned(),
            false => format!("{} {}", self.hostname, self.name),
        };
        let lines = own.iter().map(|address| format!("{address}\t{names}\n"));
        lines.collect()
    }
}

/// What Podman and Docker call the host.
const HOST_NAMES: &str = "host.containers.internal host.docker.internal";

/// Who is who on the network that coracle-net gives the container.
fn addresses(options: &NetworkOptions, ipv6: bool) -> Addresses {
    let network = options
        .network()
        .expect("options are checked when they are read");
    let v6 = network.v6.filter(|_| ipv6);
    netstack::network::Network { v6, ..network }.addresses()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().expect(text)).collect()
    }

    fn about<'a>(hostname: &'a str, name: &'a str, names: &'a Names) -> About<'a> {
        About {
            hostname,
            name,
            names,
            timezone: None,
        }
    }

    #[test]
    fn the_hosts_servers_are_replaced_and_its_search_list_kept() {
        let host = "# comment\nsearch example.org corp.example.org\nnameserver 127.0.0.53\noptions edns0 trust-ad\n";
        let names = Names::default();
        let about = about("web", "web", &names);
        assert_eq!(
            about.resolv_conf(host, Some(&ips(&["10.0.2.3", "fd00::3"]))),
            "search example.org corp.example.org\noptions edns0 trust-ad\nnameserver 10.0.2.3\nnameserver fd00::3\n"
        );
        assert_eq!(about.resolv_conf("nameserver 1.1.1.1", Some(&[])), "");
        assert_eq!(
            about.resolv_conf("nameserver 1.1.1.1", None),
            "nameserver 1.1.1.1\n"
        );
    }

    #[test]
    fn what_is_asked_for_goes_before() {
        let host = "search example.org\nnameserver 127.0.0.53\noptions edns0\n";
        let lists = |servers: &[&str], search: &[&str], options: &[&str]| {
            let text = |list: &[&str]| list.iter().map(ToString::to_string).collect();
            let names = Names {
                resolv_conf: ResolvConf::Lists {
                    servers: ips(servers),
                    search: text(search),
                    options: text(options),
                },
                ..Names::default()
            };
            about("web", "web", &names).resolv_conf(host, Some(&ips(&["10.0.2.3"])))
        };
        assert_eq!(
            lists(
                &["192.0.2.1", "192.0.2.2"],
                &["a.test", "b.test"],
                &["ndots:2"]
            ),
            "search a.test b.test\noptions ndots:2\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n"
        );
        assert_eq!(
            lists(&[], &["."], &[]),
            "options edns0\nnameserver 10.0.2.3\n"
        );
    }

    #[test]
    fn a_container_knows_its_own_name() {
        let own = ips(&["10.0.2.100", "fd00::100"]);
        let names = Names::default();
        let network = Network::default();
        let one = about("abc", "web", &names).hosts(&network, &own[..1], &[]);
        assert!(one.ends_with("\n10.0.2.100\tabc web\n"));
        let both = about("web", "web", &names).hosts(&network, &own, &[]);
        assert!(both.ends_with("\n10.0.2.100\tweb\nfd00::100\tweb\n"));
    }

    #[test]
    fn each_network_has_its_own_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let read = |file| fs::read_to_string(dir.path().join(file)).unwrap();
        let network = Network::Coracle("cidr=10.9.0.0/24,map-host=192.0.2.1".parse().unwrap());
        let names = Names::default();
        let web = about("web", "web", &names);
        write(dir.path(), web, &network).unwrap();
        let text = read(HOSTS);
        assert!(text.contains("\n10.9.0.100\tweb\n"), "{text}");
        let host = "\n192.0.2.1\thost.containers.internal host.docker.internal\n";
        assert!(text.ends_with(host), "{text}");
        assert!(read(RESOLV_CONF).contains("nameserver 10.9.0.3\n"));
        write(dir.path(), web, &Network::None).unwrap();
        assert!(read(HOSTS).ends_with("\n127.0.0.1\tweb\n"));
        let own = ips(&["10.89.0.2", "10.90.0.7"]);
        let other = about("abc", "web", &names);
        write_for_networks(dir.path(), other, &ips(&["10.0.2.3"]), &own).unwrap();
        let text = read(HOSTS);
        let end = "\n10.89.0.2\tabc web\n10.90.0.7\tabc web\n";
        assert!(text.ends_with(end), "{text}");
        assert!(read(RESOLV_CONF).ends_with("nameserver 10.0.2.3\n"));
        assert_eq!(read(HOSTNAME), "web\n");
    }

    #[test]
    fn what_is_the_images_is_not_provided() {
        let targets = |names: &Names, has_timezone| -> Vec<PathBuf> {
            let binds = binds(Path::new("/run"), names, has_timezone);
            binds.into_iter().map(|bind| bind.target).collect()
        };
        let own = Names {
            resolv_conf: ResolvConf::Image,
            no_hosts: true,
            ..Names::default()
        };
        assert_eq!(targets(&own, false), [Path::new("/etc/hostname")]);
        assert_eq!(targets(&Names::default(), true).len(), 4);
    }
}
