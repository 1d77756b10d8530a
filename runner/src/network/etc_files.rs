//! The three files that coracle provides to a container: resolv.conf, hosts and hostname.
//!
//! They lie in the container's run directory, written anew for each start, and are bound over the
//! image's own, so that an image is never changed for them.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
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
    };
    [RESOLV_CONF, HOSTS, HOSTNAME].map(bind).into()
}

/// Writes the files into `dir`.
pub fn write(dir: &Path, hostname: &str, name: &str, network: &Network) -> Result<(), WriteError> {
    // What a host without the file resolves is up to its C library, and so it is in the container.
    let host_resolv_conf = fs::read("/etc/resolv.conf").unwrap_or_default();
    let has_ipv6 = Path::new("/proc/sys/net/ipv6").exists();
    let files = [
        (
            RESOLV_CONF,
            resolv_conf(
                &String::from_utf8_lossy(&host_resolv_conf),
                network,
                has_ipv6,
            ),
        ),
        (HOSTS, hosts(hostname, name, network, has_ipv6)),
        (HOSTNAME, format!("{hostname}\n")),
    ];
    for (file, text) in files {
        let path = dir.join(file);
        fs::write(&path, text).map_err(|source| WriteError { path, source })?;
    }
    Ok(())
}

/// Our name servers, with the search list and the options of the host, `resolv.conf(5)`.
fn resolv_conf(host: &str, network: &Network, ipv6: bool) -> String {
    let kept = host.lines().filter(|line| {
        matches!(
            line.split_ascii_whitespace().next(),
            Some("search" | "domain" | "options" | "sortlist")
        )
    });
    let servers = match network {
        Network::Coracle(options) => addresses(options, ipv6).dns,
        Network::None => Vec::new(),
    };
    let servers = servers
        .iter()
        .map(|server| format!("nameserver {server}\n"));
    kept.map(|line| format!("{line}\n"))
        .chain(servers)
        .collect()
}

fn hosts(hostname: &str, name: &str, network: &Network, ipv6: bool) -> String {
    let mut text =
        String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let names = if hostname == name {
        hostname.to_owned()
    } else {
        format!("{hostname} {name}")
    };
    let (own, host) = match network {
        Network::Coracle(options) => (addresses(options, ipv6).guest, options.host()),
        Network::None => (vec![Ipv4Addr::LOCALHOST.into()], &[][..]),
    };
    for address in own {
        text += &format!("{address}\t{names}\n");
    }
    for address in host {
        text += &format!("{address}\t{HOST_NAMES}\n");
    }
    text
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

    #[test]
    fn the_hosts_servers_are_replaced_and_its_search_list_kept() {
        let host = "# comment\nsearch example.org corp.example.org\nnameserver 127.0.0.53\noptions edns0 trust-ad\n";
        assert_eq!(
            resolv_conf(host, &Network::default(), true),
            "search example.org corp.example.org\noptions edns0 trust-ad\nnameserver 10.0.2.3\nnameserver fd00::3\n"
        );
        assert_eq!(resolv_conf("nameserver 1.1.1.1", &Network::None, true), "");
        assert_eq!(
            resolv_conf("", &Network::default(), false),
            "nameserver 10.0.2.3\n"
        );
    }

    #[test]
    fn a_container_knows_its_own_name() {
        assert!(
            hosts("abc", "web", &Network::default(), false).ends_with("\n10.0.2.100\tabc web\n")
        );
        let both = hosts("web", "web", &Network::default(), true);
        assert!(both.ends_with("\n10.0.2.100\tweb\nfd00::100\tweb\n"));
        assert!(hosts("web", "web", &Network::None, true).ends_with("\n127.0.0.1\tweb\n"));
    }

    #[test]
    fn the_host_has_its_names_where_it_has_an_address() {
        let network = Network::Coracle("cidr=10.9.0.0/24,map-host=192.0.2.1".parse().unwrap());
        let text = hosts("web", "web", &network, false);
        let host = "192.0.2.1\thost.containers.internal host.docker.internal\n";
        assert!(
            text.ends_with(&format!("\n10.9.0.100\tweb\n{host}")),
            "{text}"
        );
        assert_eq!(resolv_conf("", &network, false), "nameserver 10.9.0.3\n");
    }
}
