//! Names that the engine has handed over: of containers, and of the host. Who asks from a network
//! sees the names of that network, and those that are everybody's.
//!
//! A guest cannot add to them. Their number is bounded all the same, as engines have faults, too.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;
use std::str::FromStr;

use crate::core::addresses::Prefix;
use crate::core::autoconf::DomainName;

/// A name with its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName {
    pub name: DomainName,
    /// At least one.
    pub addresses: Vec<IpAddr>,
    /// Who asks from elsewhere does not see it. Everybody does if there is none.
    pub networks: Vec<Prefix>,
}

/// All names, each by the number that it was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostNames {
    names: BTreeMap<u64, HostName>,
    /// As in a message, in lower case.
    by_name: BTreeMap<Vec<u8>, Vec<u64>>,
    by_address: BTreeMap<IpAddr, Vec<u64>>,
    last: u64,
}

/// Why there is no such name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostNameError {
    #[error(
        "{0:?} is not a name with addresses: expected NAME=ADDRESS[,ADDRESS…][@NETWORK[,…]], as in db=10.89.0.5"
    )]
    NotHostName(String),
    #[error("{0:?} has no address")]
    NoAddress(String),
    #[error("{0:?} has {1} addresses and networks, {MAX_ADDRESSES} of each at most")]
    TooManyAddresses(String, usize),
    #[error("{MAX_NAMES} names at most")]
    TooManyNames,
}

/// Names of all networks together.
pub const MAX_NAMES: usize = 4096;
/// Addresses of a name, and networks that see it.
pub const MAX_ADDRESSES: usize = 16;
/// Most names of an address, or addresses of a name that several have, that an answer tells.
pub const MAX_TOLD: usize = 64;

impl HostName {
    /// # Errors
    /// Without an address, and with more than [`MAX_ADDRESSES`].
    pub fn new(
        name: DomainName,
        addresses: Vec<IpAddr>,
        networks: Vec<Prefix>,
    ) -> Result<Self, HostNameError> {
        match addresses.len().max(networks.len()) {
            _ if addresses.is_empty() => Err(HostNameError::NoAddress(name.to_string())),
            count if count > MAX_ADDRESSES => {
                Err(HostNameError::TooManyAddresses(name.to_string(), count))
            }
            _ => Ok(Self {
                name,
                addresses,
                networks,
            }),
        }
    }

    fn is_seen_by(&self, asker: IpAddr) -> bool {
        self.networks.is_empty() || self.networks.iter().any(|network| network.contains(asker))
    }

    fn key(&self) -> Vec<u8> {
        let mut key = Vec::new();
        self.name.write(&mut key);
        key.make_ascii_lowercase();
        key
    }
}

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<Self, HostNameError> {
        let not_name = || HostNameError::NotHostName(text.to_owned());
        let (name, rest) = text.split_once('=').ok_or_else(not_name)?;
        let (addresses, networks) = match rest.split_once('@') {
            Some((addresses, networks)) => (addresses, Some(networks)),
            None => (rest, None),
        };
        let addresses = addresses.split(',').map(str::parse);
        let networks = networks
            .into_iter()
            .flat_map(|networks| networks.split(','));
        Self::new(
            name.parse().map_err(|_| not_name())?,
            addresses
                .collect::<Result<_, _>>()
                .map_err(|_| not_name())?,
            networks
                .map(Prefix::read)
                .collect::<Option<_>>()
                .ok_or_else(not_name)?,
        )
    }
}

impl Display for HostName {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let addresses: Vec<_> = self.addresses.iter().map(IpAddr::to_string).collect();
        write!(f, "{}={}", self.name, addresses.join(","))?;
        let networks: Vec<_> = self.networks.iter().map(Prefix::to_string).collect();
        match networks.is_empty() {
            true => Ok(()),
            false => write!(f, "@{}", networks.join(",")),
        }
    }
}

impl HostNames {
    pub fn new(names: impl IntoIterator<Item = HostName>) -> Result<Self, HostNameError> {
        let mut all = Self::default();
        for name in names {
            all.add(name)?;
        }
        Ok(all)
    }

    /// Adds a name, and returns its number, which no other will have. Several of one name are
    /// answered with the addresses of all.
    pub fn add(&mut self, name: HostName) -> Result<u64, HostNameError> {
        if self.names.len() >= MAX_NAMES {
            return Err(HostNameError::TooManyNames);
        }
        self.last += 1;
        let id = self.last;
        self.by_name.entry(name.key()).or_default().push(id);
        for address in &name.addresses {
            let ids = self.by_address.entry(*address).or_default();
            if ids.last() != Some(&id) {
                ids.push(id);
            }
        }
        self.names.insert(id, name);
        Ok(id)
    }

    /// False if there is no such name.
    pub fn remove(&mut self, id: u64) -> bool {
        let Some(name) = self.names.remove(&id) else {
            return false;
        };
        forget(&mut self.by_name, &name.key(), id);
        for address in &name.addresses {
            forget(&mut self.by_address, address, id);
        }
        true
    }

    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// In the order in which they were added, with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &HostName)> {
        self.names.iter().map(|(id, name)| (*id, name))
    }

    /// The addresses of `name`, as in a message and in lower case, that `asker` may see; none if it
    /// is no name of ours to it.
    pub fn addresses(&self, name: &[u8], asker: IpAddr) -> Vec<IpAddr> {
        let mut told = Vec::new();
        let seen = self.seen(self.by_name.get(name), asker);
        for address in seen.flat_map(|name| &name.addresses) {
            if told.len() < MAX_TOLD && !told.contains(address) {
                told.push(*address);
            }
        }
        told
    }

    /// The names of `address` that `asker` may see.
    pub fn names(&self, address: IpAddr, asker: IpAddr) -> impl Iterator<Item = &DomainName> {
        let seen = self.seen(self.by_address.get(&address), asker);
        seen.map(|name| &name.name).take(MAX_TOLD)
    }

    fn seen<'n>(
        &'n self,
        ids: Option<&'n Vec<u64>>,
        asker: IpAddr,
    ) -> impl Iterator<Item = &'n HostName> {
        let names = ids
            .into_iter()
            .flatten()
            .filter_map(|id| self.names.get(id));
        names.filter(move |name| name.is_seen_by(asker))
    }
}

fn forget<K: Ord>(index: &mut BTreeMap<K, Vec<u64>>, key: &K, id: u64) {
    if let Some(ids) = index.get_mut(key) {
        ids.retain(|own| *own != id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn names(texts: &[&str]) -> HostNames {
        let mut names = HostNames::default();
        for text in texts {
            names.add(text.parse().unwrap()).unwrap();
        }
        names
    }

    #[test]
    fn a_name_is_read_as_it_is_written() {
        for text in [
            "db=10.89.0.5",
            "web.my_app=10.89.0.6,fd89::6",
            "db=10.89.0.5@10.89.0.0/24,fd89::/64",
        ] {
            assert_eq!(text.parse::<HostName>().unwrap().to_string(), text);
        }
        for bad in [
            "db",
            "=10.0.0.1",
            "d b=10.0.0.1",
            "db=",
            "db=x",
            "db=10.0.0.1@",
            "db=10.0.0.1@10.0.0.1/8",
        ] {
            assert!(bad.parse::<HostName>().is_err(), "{bad}");
        }
        let many = vec!["10.0.0.1"; MAX_ADDRESSES + 1].join(",");
        let error = format!("db={many}").parse::<HostName>().unwrap_err();
        assert!(error.to_string().contains("17 addresses"), "{error}");
    }

    #[test]
    fn who_asks_from_a_network_sees_its_names_and_everybodys() {
        let names = names(&[
            "db=10.89.0.5@10.89.0.0/24",
            "DB=10.90.0.5@10.90.0.0/24",
            "db=10.89.0.6,10.89.0.5@10.89.0.0/24",
            "host=10.0.2.2",
        ]);
        let seen = |asker| names.addresses(b"\x02db\0", ip(asker));
        assert_eq!(seen("10.89.0.7"), [ip("10.89.0.5"), ip("10.89.0.6")]);
        assert_eq!(seen("10.90.0.7"), [ip("10.90.0.5")]);
        assert_eq!(seen("10.0.2.100"), [] as [IpAddr; 0]);
        assert_eq!(
            names.addresses(b"\x04host\0", ip("10.90.0.7")),
            [ip("10.0.2.2")]
        );
        let reverse = |address, asker| names.names(ip(address), ip(asker)).count();
        assert_eq!(reverse("10.89.0.5", "10.89.0.7"), 2);
        assert_eq!(reverse("10.89.0.5", "10.90.0.7"), 0);
    }

    #[test]
    fn names_come_and_go_and_are_bounded() {
        let mut names = names(&["a=10.0.0.1,10.0.0.1", "a=10.0.0.2"]);
        assert!(names.remove(1) && !names.remove(1));
        assert_eq!(names.addresses(b"\x01a\0", ip("::")), [ip("10.0.0.2")]);
        assert!(names.remove(2));
        assert!(names.by_name.is_empty() && names.by_address.is_empty());
        for number in 0..MAX_NAMES {
            let name = format!("n{number}=10.0.0.1").parse().unwrap();
            assert_eq!(names.add(name), Ok(3 + number as u64));
        }
        let one_more = "a=10.0.0.1".parse().unwrap();
        assert_eq!(names.add(one_more), Err(HostNameError::TooManyNames));
        assert_eq!(names.names(ip("10.0.0.1"), ip("::")).count(), MAX_TOLD);
    }
}
