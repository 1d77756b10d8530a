//! Where a container's published ports are on the host.

use std::net::SocketAddr;

use portfwd::spec::{Protocol, Publish};

use crate::state::Container;

/// A port of a container's that the host listens on for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedPort {
    pub host: SocketAddr,
    pub guest: u16,
    pub protocol: Protocol,
}

/// What a container's rules come to, in their order.
pub fn published_ports(container: &Container) -> Vec<PublishedPort> {
    let mut ports = Vec::new();
    let rules = container
        .publish
        .iter()
        .filter_map(|rule| rule.parse().ok());
    for rule in rules.collect::<Vec<Publish>>() {
        for (host, guest) in rule.pairs() {
            ports.extend(rule.host_addrs().into_iter().map(|addr| PublishedPort {
                host: SocketAddr::new(addr, host),
                guest,
                protocol: rule.protocol,
            }));
        }
    }
    ports
}
