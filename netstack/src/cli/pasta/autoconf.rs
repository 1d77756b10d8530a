//! pasta's options for guests that configure themselves: which services there are, and which names
//! they tell. Without an option all services answer, and none of them tells a name.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use crate::core::autoconf::{Autoconf, DomainName, NameError, Names, SearchList};
use crate::host::{RESOLV_CONF, ResolvConf, search_domains};

/// The options.
#[derive(Debug, clap::Args)]
pub struct Services {
    /// No DHCPv4
    #[arg(long)]
    no_dhcp: bool,

    /// No DHCPv6
    #[arg(long)]
    no_dhcpv6: bool,

    /// No router advertisements
    #[arg(long)]
    no_ra: bool,

    /// No answer to neighbour and router solicitations
    #[arg(long)]
    no_ndp: bool,

    /// Tell resolvers, by all of these services
    #[arg(long, overrides_with = "no_dhcp_dns")]
    dhcp_dns: bool,

    /// Tell no resolvers, as is the default
    #[arg(long)]
    no_dhcp_dns: bool,

    /// Tell the domains to search
    #[arg(long, overrides_with = "no_dhcp_search")]
    dhcp_search: bool,

    /// Tell no domains to search, as is the default
    #[arg(long)]
    no_dhcp_search: bool,

    /// A resolver to tell, or "none" for none at all (repeatable) [default: those of resolv.conf]
    #[arg(short = 'D', long, value_name = "ADDR", action = clap::ArgAction::Append,
          value_parser = or_none::<IpAddr>)]
    dns: Vec<Given<IpAddr>>,

    /// A domain to tell, or "none" for none at all (repeatable) [default: those of resolv.conf]
    #[arg(short = 'S', long, value_name = "DOMAIN", action = clap::ArgAction::Append,
          value_parser = or_none::<DomainName>)]
    search: Vec<Given<DomainName>>,

    /// The guest's own name, by DHCPv4
    #[arg(short = 'H', long, value_name = "NAME")]
    hostname: Option<DomainName>,

    /// The guest's full name, by DHCP, if it asks for one
    #[arg(long, value_name = "NAME")]
    fqdn: Option<DomainName>,
}

/// One value of a list, or the end of what was given so far.
#[derive(Debug, Clone)]
enum Given<T> {
    None,
    One(T),
}

/// Why names cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ServicesError {
    #[error("cannot read {RESOLV_CONF}, for --dhcp-dns and --dhcp-search: {0}")]
    ResolvConf(#[source] io::Error),
    #[error(transparent)]
    Name(#[from] NameError),
}

impl Services {
    /// What of `whole` is left.
    pub fn of(self, whole: Autoconf) -> Result<Autoconf, ServicesError> {
        let resolvers = match (self.dhcp_dns, values(self.dns)) {
            (false, _) => Vec::new(),
            (true, Some(given)) => given,
            (true, None) => host_resolvers().map_err(ServicesError::ResolvConf)?,
        };
        let search = match (self.dhcp_search, values(self.search)) {
            (false, _) => Vec::new(),
            (true, Some(given)) => given,
            (true, None) => search_domains().map_err(ServicesError::ResolvConf)?,
        };
        Ok(Autoconf {
            pool: whole.pool.filter(|_| !self.no_dhcp),
            dhcpv6: whole.dhcpv6.filter(|_| !self.no_dhcpv6),
            router: whole.router.filter(|_| !self.no_ra),
            names: Names {
                resolvers,
                search: SearchList::new(&search)?,
                hostname: self.hostname,
                fqdn: self.fqdn,
            },
            ignores_ndp: self.no_ndp,
            ..whole
        })
    }
}

/// What was given after the last "none"; `None` if nothing was given.
fn values<T>(given: Vec<Given<T>>) -> Option<Vec<T>> {
    if given.is_empty() {
        return None;
    }
    let mut values = Vec::new();
    for value in given {
        match value {
            Given::None => values.clear(),
            Given::One(value) => values.push(value),
        }
    }
    Some(values)
}

fn or_none<T: std::str::FromStr>(text: &str) -> Result<Given<T>, T::Err> {
    match text {
        "none" => Ok(Given::None),
        text => text.parse().map(Given::One),
    }
}

/// Those that the guest could reach as they are.
fn host_resolvers() -> io::Result<Vec<IpAddr>> {
    let resolvers = ResolvConf::open(Path::new(RESOLV_CONF))?;
    let addresses = resolvers.addresses().iter().map(|resolver| resolver.ip());
    Ok(addresses.filter(|ip| !ip.is_loopback()).collect())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::network::Network;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        services: Services,
    }

    fn autoconf(line: &str) -> Autoconf {
        let words = std::iter::once("pasta").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).expect("known options");
        let whole = Network::default().autoconf(Some(1500));
        line.services.of(whole).expect("sound values")
    }

    #[test]
    fn without_options_all_is_served_and_no_name_is_told() {
        let whole = Network::default().autoconf(Some(1500));
        let expected = Autoconf {
            names: Names::default(),
            ..whole
        };
        assert_eq!(autoconf(""), expected);
        assert_eq!(autoconf("-D 192.0.2.53 -S a.test").names, Names::default());
    }

    #[test]
    fn each_service_can_be_switched_off() {
        assert_eq!(autoconf("--no-dhcp").pool, None);
        assert_eq!(autoconf("--no-dhcpv6").dhcpv6, None);
        assert_eq!(autoconf("--no-ra").router, None);
        assert!(autoconf("--no-ndp").ignores_ndp);
    }

    #[test]
    fn names_are_told_where_that_is_asked_for() {
        let names = autoconf(
            "--dhcp-dns -D 192.0.2.1 -D none -D 192.0.2.53 --dns fd01::53 \
             --dhcp-search -S a.test -S b.test -H box --fqdn box.test",
        )
        .names;
        let expected = ["192.0.2.53", "fd01::53"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(names.resolvers, expected);
        let search = ["a.test", "b.test"].map(|name| name.parse().unwrap());
        assert_eq!(names.search, SearchList::new(&search).unwrap());
        assert_eq!(names.hostname, Some("box".parse().unwrap()));
        assert_eq!(names.fqdn, Some("box.test".parse().unwrap()));
        assert_eq!(autoconf("--dhcp-dns -D none").names, Names::default());
        assert_eq!(
            autoconf("--dhcp-dns --no-dhcp-dns -D ::1").names,
            Names::default()
        );
    }

    #[test]
    fn what_is_no_address_or_name_is_refused() {
        for line in ["-D x", "-S a..b", "-H a/b", "--fqdn ."] {
            let words = std::iter::once("pasta").chain(line.split_whitespace());
            assert!(Line::try_parse_from(words).is_err(), "{line}");
        }
    }
}
