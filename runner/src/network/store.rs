//! The networks that a user has made, by their names: `DATA/networks/NAME.json`.
//!
//! Which containers are in a network is told by their records. The lock, on the directory, is held
//! by whoever makes or removes networks, and by whoever puts a container into one: so a network
//! does not go while a container comes.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use netstack::config::MTU_RANGE;
use netstack::core::addresses::Prefix;
use serde::{Deserialize, Serialize};

use super::subnet::{self, Subnet, SubnetError};
use crate::events::{Event, Journal};
use crate::failure::Explained;
use crate::images::error::StorageError;
use crate::images::files::{replace, to_json};
use crate::random;
use crate::state::{Container, ContainerId, StateError, Store, lock_directory, read_regular};

/// A network of containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeNetwork {
    version: u32,
    pub name: String,
    /// 64 hexadecimal digits.
    pub id: String,
    /// Seconds since 1970, and nanoseconds.
    pub created: (u64, u32),
    /// One of IPv4, one of IPv6, or both.
    pub subnets: Vec<Subnet>,
    /// Whether there is no way out.
    pub internal: bool,
    /// Whether containers find each other by name.
    pub dns: bool,
    /// Bytes of an IP packet, if not the usual ones.
    pub mtu: Option<u16>,
    pub labels: BTreeMap<String, String>,
}

const VERSION: u32 = 1;

/// What a network is to be.
#[derive(Debug, Clone, Default)]
pub struct NetworkRequest {
    /// Made up when not given.
    pub name: Option<String>,
    /// Chosen when there is none.
    pub subnets: Vec<Prefix>,
    /// One of a subnet's, at most.
    pub gateways: Vec<IpAddr>,
    /// Whether there is to be IPv6, too.
    pub ipv6: bool,
    pub internal: bool,
    pub no_dns: bool,
    pub mtu: Option<u16>,
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, thiserror::Error)]
pub enum NetworksError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("there is no network {name:?}; `coracle network ls` lists them")]
    NotFound { name: String },
    #[error("several networks have ids that begin with {name:?}")]
    Ambiguous { name: String },
    #[error("there is a network {name:?} already")]
    Exists { name: String },
    #[error(
        "{name:?} cannot name a network: a name has letters, digits, and, not at its beginning, `_`, `.` and `-`"
    )]
    Name { name: String },
    #[error("{name:?} cannot name a network: it is a kind of network for --network")]
    Reserved { name: String },
    #[error(
        "network {name} is used by container {container}: `coracle rm {container}` removes that, `coracle network rm -f {name}` both"
    )]
    InUse { name: String, container: String },
    #[error(transparent)]
    Subnet(#[from] SubnetError),
    #[error("subnet {subnet} is already used by {user}")]
    Taken { subnet: Prefix, user: String },
    #[error("there are two subnets of one family: a network has one of IPv4 and one of IPv6")]
    Family,
    #[error("gateway {gateway} is in no subnet: --subnet says which")]
    NoSubnet { gateway: IpAddr },
    #[error("no free subnet is left in 10.89.0.0 to 10.255.255.0: --subnet names another")]
    Full,
    #[error(
        "mtu={mtu} is of no use: expected {first} to {last}",
        first = MTU_RANGE.start(),
        last = MTU_RANGE.end()
    )]
    Mtu { mtu: u16 },
    #[error("{} is damaged: {defect}", path.display())]
    Damaged { path: PathBuf, defect: String },
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    State(#[from] StateError),
}

impl Explained for NetworksError {}

impl BridgeNetwork {
    pub fn has_ipv6(&self) -> bool {
        self.subnets.iter().any(|own| own.subnet.network.is_ipv6())
    }

    /// Short enough for a message.
    pub fn without_labels(mut self) -> Self {
        self.labels.clear();
        self
    }

    pub fn short_id(&self) -> &str {
        &self.id[..12]
    }

    /// Whether `ip` is one that a container may have here.
    pub fn is_for_containers(&self, ip: IpAddr) -> bool {
        self.subnets.iter().any(|own| own.is_for_containers(ip))
    }
}

/// Names that mean something to `--network`.
const RESERVED: [&str; 10] = [
    "bridge",
    "container",
    "coracle",
    "default",
    "host",
    "none",
    "ns",
    "pasta",
    "private",
    "slirp4netns",
];

/// The networks of one user. Cheap to make.
#[derive(Debug, Clone)]
pub struct Networks {
    root: PathBuf,
    journal: Journal,
}

/// Networks are neither made nor removed until it is dropped.
#[derive(Debug)]
pub struct Hold {
    _lock: File,
}

impl Networks {
    pub fn of(store: &Store) -> Self {
        Self {
            root: store.dirs().data.join("networks"),
            journal: store.journal(),
        }
    }

    /// Keeps networks as they are.
    pub fn hold(&self) -> Result<Hold, NetworksError> {
        let made = DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(&self.root);
        made.map_err(self.io_error("create"))?;
        let lock = lock_directory(&self.root).map_err(self.io_error("lock"))?;
        Ok(Hold { _lock: lock })
    }

    pub fn create(&self, request: NetworkRequest) -> Result<BridgeNetwork, NetworksError> {
        let _hold = self.hold()?;
        let others = self.list()?;
        let name = match request.name {
            Some(name) if RESERVED.contains(&&*name) => {
                return Err(NetworksError::Reserved { name });
            }
            Some(name) if !is_valid_name(&name) => return Err(NetworksError::Name { name }),
            Some(name) if others.iter().any(|other| other.name == name) => {
                return Err(NetworksError::Exists { name });
            }
            Some(name) => name,
            None => free_name(&others),
        };
        if let Some(mtu) = request.mtu.filter(|mtu| !MTU_RANGE.contains(mtu)) {
            return Err(NetworksError::Mtu { mtu });
        }
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let created = since.map_or((0, 0), |since| (since.as_secs(), since.subsec_nanos()));
        let network = BridgeNetwork {
            version: VERSION,
            id: ContainerId::random()?.to_string(),
            created,
            subnets: choose_subnets(
                &request.subnets,
                &request.gateways,
                request.ipv6,
                request.internal,
                &others,
            )?,
            name,
            internal: request.internal,
            dns: !request.no_dns,
            mtu: request.mtu,
            labels: request.labels,
        };
        replace(&self.path(&network.name), &to_json(&network))?;
        let created = Event::of_network("create", &network.name, None);
        self.journal.write(&created);
        Ok(network)
    }

    /// By its name, its id or the beginning of that.
    pub fn find(&self, wanted: &str) -> Result<BridgeNetwork, NetworksError> {
        if is_valid_name(wanted)
            && let Some(network) = self.read(wanted)?
        {
            return Ok(network);
        }
        let is_id = !wanted.is_empty() && wanted.bytes().all(|byte| byte.is_ascii_hexdigit());
        let mut found = self.list()?;
        found.retain(|network| is_id && network.id.starts_with(wanted));
        let name = wanted.to_owned();
        match found.len() {
            0 => Err(NetworksError::NotFound { name }),
            1 => Ok(found.remove(0)),
            _ => Err(NetworksError::Ambiguous { name }),
        }
    }

    /// All, in the order of their names.
    pub fn list(&self) -> Result<Vec<BridgeNetwork>, NetworksError> {
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(self.io_error("list"))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(self.io_error("list"))?.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(".json"));
            names.extend(
                name.filter(|name| is_valid_name(name))
                    .map(ToOwned::to_owned),
            );
        }
        names.sort();
        let networks = names.iter().map(|name| self.read(name));
        networks.filter_map(Result::transpose).collect()
    }

    /// Removes a network that no container of `store` is in.
    pub fn remove(&self, network: &BridgeNetwork, store: &Store) -> Result<(), NetworksError> {
        let _hold = self.hold()?;
        if let Some(user) = users(&network.name, store)?.pop() {
            return Err(NetworksError::InUse {
                name: network.name.clone(),
                container: user.name,
            });
        }
        let path = self.path(&network.name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(NetworksError::NotFound {
                name: network.name.clone(),
            }),
            Err(source) => Err(NetworksError::Io {
                action: "remove",
                path,
                source,
            }),
            Ok(()) => {
                let removed = Event::of_network("remove", &network.name, None);
                self.journal.write(&removed);
                Ok(())
            }
        }
    }

    fn read(&self, name: &str) -> Result<Option<BridgeNetwork>, NetworksError> {
        let path = self.path(name);
        let text = match read_regular(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(NetworksError::Io {
                    action: "read",
                    path,
                    source,
                });
            }
            Ok(text) => text,
        };
        let damaged = |defect: String| NetworksError::Damaged {
            path: path.clone(),
            defect,
        };
        let network: BridgeNetwork =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if network.version != VERSION {
            let version = network.version;
            return Err(damaged(format!(
                "it has version {version}, and this coracle knows version {VERSION}"
            )));
        }
        let is_whole = network.name == name && network.id.parse::<ContainerId>().is_ok();
        match is_whole {
            true => Ok(Some(network)),
            false => Err(damaged("its name or its id is none".to_owned())),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(format!("{name}.json"))
    }

    fn io_error(&self, action: &'static str) -> impl FnOnce(io::Error) -> NetworksError {
        let path = self.root.clone();
        move |source| NetworksError::Io {
            action,
            path,
            source,
        }
    }
}

/// The containers that are in a network, or will be when they are started.
pub fn users(name: &str, store: &Store) -> Result<Vec<Container>, StateError> {
    let is_in = |container: &Container| container.networks.iter().any(|own| own.network == name);
    let mut containers = store.list()?.containers;
    containers.retain(is_in);
    Ok(containers)
}

fn is_valid_name(name: &str) -> bool {
    crate::state::is_valid_name(name)
}

fn free_name(others: &[BridgeNetwork]) -> String {
    let mut names = (1..).map(|number| format!("net{number}"));
    let is_free = |name: &String| !others.iter().any(|other| other.name == *name);
    names
        .find(is_free)
        .expect("there are more numbers than networks")
}

/// The subnets of a new network, none of which overlaps with another's or the host's.
fn choose_subnets(
    asked: &[Prefix],
    gateways: &[IpAddr],
    ipv6: bool,
    internal: bool,
    others: &[BridgeNetwork],
) -> Result<Vec<Subnet>, NetworksError> {
    let of_host = subnet::routed_by_host();
    let of_others = others.iter().flat_map(|other| {
        let subnets = other.subnets.iter();
        subnets.map(move |own| (own.subnet, format!("the network {}", other.name)))
    });
    let taken: Vec<(Prefix, String)> = of_others
        .chain(of_host.into_iter().map(|own| (own, "the host".to_owned())))
        .collect();
    let mut chosen = asked.to_vec();
    for subnet in asked {
        if let Some((_, user)) = taken.iter().find(|(other, _)| other.overlaps(subnet)) {
            return Err(NetworksError::Taken {
                subnet: *subnet,
                user: user.clone(),
            });
        }
    }
    if let Some(gateway) = gateways
        .iter()
        .find(|gateway| !asked.iter().any(|subnet| subnet.contains(**gateway)))
    {
        return Err(match asked.iter().find(|own| same_family(own, *gateway)) {
            Some(subnet) => SubnetError::Gateway {
                gateway: *gateway,
                subnet: *subnet,
            }
            .into(),
            None => NetworksError::NoSubnet { gateway: *gateway },
        });
    }
    let has = |chosen: &[Prefix], v6: bool| chosen.iter().any(|own| own.network.is_ipv6() == v6);
    if !has(&chosen, false) && !has(&chosen, true) {
        let all: Vec<_> = taken.iter().map(|(subnet, _)| *subnet).collect();
        chosen.push(subnet::free_v4(&all).ok_or(NetworksError::Full)?);
    }
    if ipv6 && !has(&chosen, true) {
        chosen.push(subnet::random_v6(random()?));
    }
    let of_family = |v6: bool| chosen.iter().filter(move |own| own.network.is_ipv6() == v6);
    if of_family(false).count() > 1 || of_family(true).count() > 1 {
        return Err(NetworksError::Family);
    }
    let subnet = |subnet: &Prefix| {
        let asked = gateways.iter().find(|gateway| subnet.contains(**gateway));
        match (asked, internal) {
            (Some(gateway), _) => Subnet {
                subnet: *subnet,
                gateway: Some(*gateway),
            },
            (None, true) => Subnet {
                subnet: *subnet,
                gateway: None,
            },
            (None, false) => Subnet::with_gateway(*subnet),
        }
    };
    Ok(chosen.iter().map(subnet).collect())
}

fn same_family(subnet: &Prefix, ip: IpAddr) -> bool {
    subnet.network.is_ipv6() == ip.is_ipv6()
}

fn random<const N: usize>() -> Result<[u8; N], NetworksError> {
    random::random().map_err(|source| NetworksError::Io {
        action: "read",
        path: "/dev/urandom".into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Dirs;

    fn networks() -> (tempfile::TempDir, Networks, Store) {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs::at(dir.path().join("run"), dir.path().join("data")).unwrap();
        let store = Store::open(dirs).unwrap();
        (dir, Networks::of(&store), store)
    }

    fn named(name: &str) -> NetworkRequest {
        NetworkRequest {
            name: Some(name.to_owned()),
            ..NetworkRequest::default()
        }
    }

    #[test]
    fn networks_come_and_go() {
        let (_dir, networks, store) = networks();
        assert_eq!(networks.list().unwrap(), []);
        let web = networks.create(named("web")).unwrap();
        let other = networks.create(NetworkRequest {
            ipv6: true,
            ..NetworkRequest::default()
        });
        let other = other.unwrap();
        assert_eq!(other.name, "net1");
        assert!(other.has_ipv6() && !web.has_ipv6());
        assert!(!web.subnets[0].subnet.overlaps(&other.subnets[0].subnet));
        assert_eq!(networks.find("web").unwrap(), web);
        assert_eq!(networks.find(&web.id[..20]).unwrap(), web);
        let taken = NetworkRequest {
            subnets: vec![web.subnets[0].subnet],
            ..named("taken")
        };
        let error = networks.create(taken).unwrap_err().to_string();
        assert!(error.contains("the network web"), "{error}");
        networks.remove(&web, &store).unwrap();
        assert!(matches!(
            networks.find("web"),
            Err(NetworksError::NotFound { .. })
        ));
        assert_eq!(networks.list().unwrap(), [other]);
    }

    #[test]
    fn names_that_mean_something_are_refused() {
        let (_dir, networks, _store) = networks();
        for name in RESERVED {
            let error = networks.create(named(name)).unwrap_err();
            assert!(matches!(error, NetworksError::Reserved { .. }), "{name}");
        }
        for name in ["", "a b", "../x", "-x"] {
            let error = networks.create(named(name)).unwrap_err();
            assert!(matches!(error, NetworksError::Name { .. }), "{name}");
        }
        networks.create(named("web")).unwrap();
        let again = networks.create(named("web")).unwrap_err();
        assert!(matches!(again, NetworksError::Exists { .. }));
    }

    #[test]
    fn gateways_belong_to_subnets() {
        let (_dir, networks, _store) = networks();
        let request = |subnets: &[&str], gateways: &[&str]| NetworkRequest {
            subnets: subnets
                .iter()
                .filter_map(|text| Prefix::read(text))
                .collect(),
            gateways: gateways.iter().filter_map(|ip| ip.parse().ok()).collect(),
            ..NetworkRequest::default()
        };
        for (subnets, gateways, why) in [
            (&[][..], &["10.1.1.1"][..], "is in no subnet"),
            (
                &["10.95.0.0/24"],
                &["10.96.0.1"],
                "not in subnet 10.95.0.0/24",
            ),
            (
                &["10.95.0.0/24", "10.96.0.0/24"],
                &[],
                "two subnets of one family",
            ),
        ] {
            let error = networks.create(request(subnets, gateways)).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
        let made = networks
            .create(request(&["10.95.0.0/24"], &["10.95.0.9"]))
            .unwrap();
        assert_eq!(made.subnets[0].gateway, Some([10, 95, 0, 9].into()));
        let internal = NetworkRequest {
            internal: true,
            ..named("internal")
        };
        let made = networks.create(internal).unwrap();
        assert_eq!(made.subnets[0].gateway, None);
    }

    #[test]
    fn a_damaged_record_is_told() {
        let (_dir, networks, _store) = networks();
        networks.create(named("web")).unwrap();
        let path = networks.path("web");
        for text in ["", "{}", r#"{"version":9}"#] {
            fs::write(&path, text).unwrap();
            let error = networks.find("web").unwrap_err();
            assert!(matches!(error, NetworksError::Damaged { .. }), "{error}");
        }
    }
}
