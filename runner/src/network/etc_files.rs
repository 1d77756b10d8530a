//! The three files that coracle provides to a container: resolv.conf, hosts and hostname.
//!
//! They lie in the container's run directory, written anew for each start, and are bound over the
//! image's own, so that an image is never changed for them.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use netstack::core::addresses::Addresses;

use crate::failure::Explained;
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

/// Where the files that [`write`] puts into `dir` belong.
pub fn binds(dir: &Path) -> Vec<Bind> {
    let bind = |file| Bind {
        source: dir.join(file),
        target: Path::new("/etc").join(file),
        read_only: false,
        options: BindOptions::default(),
        changes: None,
    };
    [RESOLV_CONF, HOSTS, HOSTNAME].map(bind).into()
}

/// Writes the files into `dir`. A container in networks is told of them when it has joined them, by
/// [`write_for_networks`].
pub fn write(dir: &Path, hostname: &str, name: &str, network: &Network) -> Result<(), WriteError> {
    let has_ipv6 = Path::new("/proc/sys/net/ipv6").exists();
    let (resolv_conf, hosts) = match network {
        Network::Coracle(options) => {
            let Addresses { dns, guest, .. } = addresses(options, has_ipv6);
            (
                resolv_conf(&host_resolv_conf(), &dns),
                hosts(hostname, name, &guest, options.host()),
            )
        }
        Network::Host => (
            host_resolv_conf(),
            fs::read_to_string("/etc/hosts").unwrap_or_default()
                + &own_names(hostname, name, &[Ipv4Addr::LOCALHOST.into()]),
        ),
        Network::None | Network::Bridge => (
            resolv_conf(&host_resolv_conf(), &[]),
            hosts(hostname, name, &[Ipv4Addr::LOCALHOST.into()], &[]),
        ),
    };
    let files = [
        (RESOLV_CONF, resolv_conf),
        (HOSTS, hosts),
        (HOSTNAME, format!("{hostname}\n")),
    ];
    write_all(dir, files)
}

/// As [`write`], for a container in networks: it asks `resolvers`, and has `own` addresses. What is
/// there is changed in place, since the container has it mounted.
pub fn write_for_networks(
    dir: &Path,
    hostname: &str,
    name: &str,
    resolvers: &[IpAddr],
    own: &[IpAddr],
) -> Result<(), WriteError> {
    let files = [
        (RESOLV_CONF, resolv_conf(&host_resolv_conf(), resolvers)),
        (HOSTS, hosts(hostname, name, own, &[])),
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

/// Our name servers, with the search list and the options of the host, `resolv.conf(5)`.
fn resolv_conf(host: &str, servers: &[IpAddr]) -> String {
    let kept = host.lines().filter(|line| {
        matches!(
            line.split_ascii_whitespace().next(),
            Some("search" | "domain" | "options" | "sortlist")
        )
    });
    let servers = servers
        .iter()
        .map(|server| format!("nameserver {server}\n"));
    kept.map(|line| format!("{line}\n"))
        .chain(servers)
        .collect()
}

fn hosts(hostname: &str, name: &str, own: &[IpAddr], host: &[IpAddr]) -> String {
    let mut text =
        String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    text += &own_names(hostname, name, own);
    for address in host {
        text += &format!("{address}\t{HOST_NAMES}\n");
    }
    text
}

fn own_names(hostname: &str, name: &str, own: &[IpAddr]) -> String {
    let names = if hostname == name {
        hostname.to_owned()
    } else {
        format!("{hostname} {name}")
    };
    let lines = own.iter().map(|address| format!("{address}\t{names}\n"));
    lines.collect()
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

    #[test]
    fn the_hosts_servers_are_replaced_and_its_search_list_kept() {
        let host = "# comment\nsearch example.org corp.example.org\nnameserver 127.0.0.53\noptions edns0 trust-ad\n";
        assert_eq!(
            resolv_conf(host, &ips(&["10.0.2.3", "fd00::3"])),
            "search example.org corp.example.org\noptions edns0 trust-ad\nnameserver 10.0.2.3\nnameserver fd00::3\n"
        );
        assert_eq!(resolv_conf("nameserver 1.1.1.1", &[]), "");
    }

    #[test]
    fn a_container_knows_its_own_name() {
        let own = ips(&["10.0.2.100", "fd00::100"]);
        assert!(hosts("abc", "web", &own[..1], &[]).ends_with("\n10.0.2.100\tabc web\n"));
        let both = hosts("web", "web", &own, &[]);
        assert!(both.ends_with("\n10.0.2.100\tweb\nfd00::100\tweb\n"));
    }

    #[test]
    fn each_network_has_its_own_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let read = |file| fs::read_to_string(dir.path().join(file)).unwrap();
        let network = Network::Coracle("cidr=10.9.0.0/24,map-host=192.0.2.1".parse().unwrap());
        write(dir.path(), "web", "web", &network).unwrap();
        let text = read(HOSTS);
        assert!(text.contains("\n10.9.0.100\tweb\n"), "{text}");
        let host = "\n192.0.2.1\thost.containers.internal host.docker.internal\n";
        assert!(text.ends_with(host), "{text}");
        assert!(read(RESOLV_CONF).contains("nameserver 10.9.0.3\n"));
        write(dir.path(), "web", "web", &Network::None).unwrap();
        assert!(read(HOSTS).ends_with("\n127.0.0.1\tweb\n"));
        let own = ips(&["10.89.0.2", "10.90.0.7"]);
        write_for_networks(dir.path(), "abc", "web", &ips(&["10.0.2.3"]), &own).unwrap();
        let text = read(HOSTS);
        let end = "\n10.89.0.2\tabc web\n10.90.0.7\tabc web\n";
        assert!(text.ends_with(end), "{text}");
        assert!(read(RESOLV_CONF).ends_with("nameserver 10.0.2.3\n"));
        assert_eq!(read(HOSTNAME), "web\n");
    }
}
