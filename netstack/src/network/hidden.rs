//! What a guest's own subnets keep from it: a network of the host's that has the same numbers, such
//! as a LAN 10.0.2.0/24. The guest looks for its hosts on its own link, where they are not.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::net::IpAddr;

use super::Network;
use crate::core::addresses::Prefix;
use crate::netlink::{AS_IN_TABLE, Netlink, NetlinkError};

/// A network that the host reaches and the guest does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// The host's.
    pub network: Prefix,
    /// The guest's own.
    pub subnet: Prefix,
}

impl Display for Hidden {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { network, subnet } = self;
        write!(
            f,
            "the guest's own network {subnet} hides the host's {network} from it"
        )
    }
}

/// Why the host's routes were not found.
#[derive(Debug, thiserror::Error)]
pub enum HiddenError {
    #[error("cannot open a route socket: {0}")]
    Open(#[source] io::Error),
    #[error("cannot ask for the route to {0}: {1}")]
    Route(IpAddr, #[source] NetlinkError),
}

/// What `network` hides, in the calling thread's network namespace, which is to be the host's. Asks
/// where the guest's gateway would be found, not for all routes: a host may have a million.
pub fn hidden_by(network: &Network) -> Result<Vec<Hidden>, HiddenError> {
    let mut netlink = Netlink::open(libc::NETLINK_ROUTE).map_err(HiddenError::Open)?;
    let mut hidden = Vec::new();
    let addresses = network.addresses();
    for subnet in &addresses.on_link {
        let inside = |gateway: &&IpAddr| subnet.contains(**gateway);
        let Some(&gateway) = addresses.gateways.iter().find(inside) else {
            continue;
        };
        let route = route_to(&mut netlink, gateway);
        let route = route.map_err(|error| HiddenError::Route(gateway, error))?;
        hidden.extend(route.map(|network| Hidden {
            network,
            subnet: *subnet,
        }));
    }
    Ok(hidden)
}

/// The network by which the host reaches `ip`, unless it does so by a default route or not at all.
fn route_to(netlink: &mut Netlink, ip: IpAddr) -> Result<Option<Prefix>, NetlinkError> {
    let found = match netlink.find_route(ip, AS_IN_TABLE) {
        Ok(found) => found,
        Err(error) => match error.errno() {
            // No route; a family that is switched off.
            Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EAFNOSUPPORT) => None,
            _ => return Err(error),
        },
    };
    let network =
        found.filter(|route| route.kind == libc::RTN_UNICAST && route.prefix_len >= SHORTEST);
    Ok(network.map(|route| Prefix::around(ip, route.prefix_len)))
}

/// Shorter prefixes are default routes in parts, as VPNs make them: 0.0.0.0/1 and 128.0.0.0/1.
const SHORTEST: u8 = 8;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::device::Tap;
    use crate::guest::{InterfaceSettings, configure};
    use crate::network::Family;
    use crate::testing::in_namespaces;

    fn of_three() -> Network {
        let v4 = |number| Ipv4Addr::new(10, 0, 3, number);
        Network {
            v4: Some(Family::<Ipv4Addr>::isolated(v4(100), 24, v4(2), None)),
            v6: None,
        }
    }

    #[test]
    fn a_lan_of_the_same_numbers_is_hidden() {
        in_namespaces(
            module_path!(),
            "a_lan_of_the_same_numbers_is_hidden",
            || {
                let hidden = |network| hidden_by(&network).unwrap();
                assert_eq!(hidden(Network::default()), []);
                // The interface and its default route play the host's LAN.
                let _tap = Tap::open("lan0").unwrap();
                let settings = InterfaceSettings {
                    name: "lan0".to_owned(),
                    mtu: Some(1500),
                    mac: None,
                    network: Network::default(),
                };
                configure(&settings).unwrap();
                let found = hidden(Network::default());
                let networks: Vec<_> = found.iter().map(|one| one.network.to_string()).collect();
                assert_eq!(networks, ["10.0.2.0/24", "fd00::/64"]);
                assert_eq!(
                    found[0].to_string(),
                    "the guest's own network 10.0.2.0/24 hides the host's 10.0.2.0/24 from it"
                );
                // By the default route only.
                assert_eq!(hidden(of_three()), []);
            },
        );
    }
}
