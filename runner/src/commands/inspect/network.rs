//! What `inspect` tells of a container's networks.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;
use serde_json::Value;

use crate::engine::{Attachment, Lease};
use crate::state::Container;

/// What the container has in a network. While it does not run, it has nothing there.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Network {
    #[serde(rename = "EndpointID")]
    endpoint_id: &'static str,
    gateway: String,
    #[serde(rename = "IPAddress")]
    ip_address: String,
    #[serde(rename = "IPPrefixLen")]
    ip_prefix_len: u8,
    #[serde(rename = "IPv6Gateway")]
    ipv6_gateway: String,
    #[serde(rename = "GlobalIPv6Address")]
    global_ipv6_address: String,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    global_ipv6_prefix_len: u8,
    mac_address: String,
    /// The name, as Podman has it.
    #[serde(rename = "NetworkID")]
    network_id: String,
    driver_opts: Value,
    #[serde(rename = "IPAMConfig")]
    ipam_config: Value,
    links: Value,
    aliases: Vec<String>,
}

/// By their names.
pub fn networks(container: &Container) -> BTreeMap<String, Network> {
    let runs = container.status.can_kill();
    let seen = |attachment: &Attachment| {
        let lease = attachment.lease.as_ref().filter(|_| runs);
        let mut aliases = attachment.aliases.clone();
        aliases.push(container.id.short().to_owned());
        let network = Network::of(&attachment.network, lease, aliases);
        (attachment.network.clone(), network)
    };
    container.networks.iter().map(seen).collect()
}

impl Network {
    fn of(name: &str, lease: Option<&Lease>, aliases: Vec<String>) -> Self {
        let leases = || lease.into_iter();
        let address = |v4: bool| {
            let mut addresses = leases().flat_map(|lease| &lease.addresses);
            let found = addresses.find(|own| own.ip.is_ipv4() == v4);
            found.map_or_else(Default::default, |own| (own.ip.to_string(), own.len))
        };
        let gateway = |v4: bool| {
            let mut gateways = leases().flat_map(|lease| &lease.gateways);
            let found = gateways.find(|ip| ip.is_ipv4() == v4);
            found.map(IpAddr::to_string).unwrap_or_default()
        };
        let (ip_address, ip_prefix_len) = address(true);
        let (global_ipv6_address, global_ipv6_prefix_len) = address(false);
        Self {
            endpoint_id: "",
            gateway: gateway(true),
            ip_address,
            ip_prefix_len,
            ipv6_gateway: gateway(false),
            global_ipv6_address,
            global_ipv6_prefix_len,
            mac_address: lease.map(|lease| lease.mac.to_string()).unwrap_or_default(),
            network_id: name.to_owned(),
            driver_opts: Value::Null,
            ipam_config: Value::Null,
            links: Value::Null,
            aliases,
        }
    }
}
