//! Names that a guest is told: of itself, and of the domains that it searches, in the form that
//! DHCP and router advertisements share (RFC 1035 3.1, without compression).

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;
use std::str::FromStr;

/// What a guest is told besides its addresses. Nothing of it is told by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Most preferred first; of each family the first three.
    pub resolvers: Vec<IpAddr>,
    pub search: SearchList,
    /// The guest's own name, by DHCPv4.
    pub hostname: Option<DomainName>,
    /// The guest's full name, if it asks by an option that exists for it (RFC 4702, RFC 4704).
    pub fqdn: Option<DomainName>,
}

impl Names {
    /// The resolvers of IPv4 that are told, one after the other.
    pub fn resolvers_v4(&self) -> Vec<u8> {
        first_resolvers(self.resolvers.iter().filter_map(|ip| match ip {
            IpAddr::V4(ip) => Some(ip.octets()),
            IpAddr::V6(_) => None,
        }))
    }

    /// Those of IPv6.
    pub fn resolvers_v6(&self) -> Vec<u8> {
        first_resolvers(self.resolvers.iter().filter_map(|ip| match ip {
            IpAddr::V6(ip) => Some(ip.octets()),
            IpAddr::V4(_) => None,
        }))
    }
}

fn first_resolvers<const N: usize>(octets: impl Iterator<Item = [u8; N]>) -> Vec<u8> {
    octets.take(MAX_RESOLVERS).flatten().collect()
}

/// As many as resolv.conf(5) has a use for.
const MAX_RESOLVERS: usize = 3;

/// A domain name: labels of letters, digits, hyphens and underscores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainName(String);

/// Not a name that could be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("{0:?} is not a domain name")]
    NotName(String),
    #[error("the search domains are too long together: {0} bytes, {MAX_SEARCH_LEN} at most")]
    SearchTooLong(usize),
}

/// Longest text of a name (RFC 1035 3.1, without the last dot).
const MAX_NAME_LEN: usize = 253;
const MAX_LABEL_LEN: usize = 63;
/// What one option of DHCPv4 holds.
const MAX_SEARCH_LEN: usize = 255;

impl FromStr for DomainName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let is_label = |label: &str| {
            (1..=MAX_LABEL_LEN).contains(&label.len()) && label.bytes().all(is_letter)
        };
        match name.len() <= MAX_NAME_LEN && name.split('.').all(is_label) {
            true => Ok(Self(name.to_owned())),
            false => Err(NameError::NotName(text.to_owned())),
        }
    }
}

impl DomainName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Labels with their lengths, and the root.
    pub fn write(&self, to: &mut Vec<u8>) {
        for label in self.0.split('.') {
            to.push(label.len() as u8);
            to.extend_from_slice(label.as_bytes());
        }
        to.push(0);
    }
}

impl Display for DomainName {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Domains to search, as options carry them; short enough for all of these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SearchList(Vec<u8>);

impl SearchList {
    pub fn new(domains: &[DomainName]) -> Result<Self, NameError> {
        let mut encoded = Vec::new();
        domains.iter().for_each(|domain| domain.write(&mut encoded));
        match encoded.len() {
            len if len > MAX_SEARCH_LEN => Err(NameError::SearchTooLong(len)),
            _ => Ok(Self(encoded)),
        }
    }

    /// The first of `domains`, as many as there is room for.
    pub fn first_of(domains: &[DomainName]) -> Self {
        let lists = (0..=domains.len()).rev();
        let mut lists = lists.filter_map(|count| Self::new(&domains[..count]).ok());
        lists.next().unwrap_or_default()
    }

    /// `None` if there are no domains.
    pub fn encoded(&self) -> Option<&[u8]> {
        Some(self.0.as_slice()).filter(|encoded| !encoded.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels() {
        let name: DomainName = "a.example_1.test.".parse().unwrap();
        let mut encoded = Vec::new();
        name.write(&mut encoded);
        assert_eq!(encoded, b"\x01a\x09example_1\x04test\0");
        let long = "a".repeat(64);
        for text in ["", ".", "a..b", ".a", "a b", "é", &long, &"a.".repeat(128)] {
            let error = text.parse::<DomainName>().unwrap_err();
            assert_eq!(error, NameError::NotName(text.to_owned()));
        }
    }

    #[test]
    fn a_search_list_fits_an_option() {
        let domain = |len| "a".repeat(len).parse::<DomainName>().unwrap();
        assert_eq!(SearchList::new(&[]).unwrap().encoded(), None);
        let most = [domain(62), domain(62), domain(62), domain(61)];
        assert_eq!(
            SearchList::new(&most).unwrap().encoded().unwrap().len(),
            255
        );
        let more = [most.as_slice(), &[domain(1)]].concat();
        assert_eq!(SearchList::new(&more), Err(NameError::SearchTooLong(258)));
        assert_eq!(Ok(SearchList::first_of(&more)), SearchList::new(&most));
        assert_eq!(SearchList::first_of(&[]), SearchList::default());
    }
}
