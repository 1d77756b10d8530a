//! What `inspect` tells of a container's published ports.

use std::collections::BTreeMap;

use portfwd::spec::Publish;
use serde::Serialize;

use crate::state::Container;

/// By `PORT/PROTOCOL` of the container.
pub type PortBindings = BTreeMap<String, Vec<HostPort>>;

#[derive(Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HostPort {
    /// Empty for any.
    host_ip: String,
    host_port: String,
}

pub fn bindings(container: &Container) -> PortBindings {
    let mut bindings = PortBindings::new();
    let rules = container.publish.iter();
    for rule in rules.filter_map(|rule| rule.parse::<Publish>().ok()) {
        for (host, guest) in rule.pairs() {
            let places = bindings.entry(format!("{guest}/{}", rule.protocol));
            places.or_default().push(HostPort {
                host_ip: rule.host_addr.map(|ip| ip.to_string()).unwrap_or_default(),
                host_port: host.to_string(),
            });
        }
    }
    bindings
}
