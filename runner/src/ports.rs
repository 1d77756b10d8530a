//! The host ports of a new container. They are bound before anything else is made, so that a clash
//! has nothing to undo.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portfwd::publish::{self, BindError, Listener};
use portfwd::spec::{Protocol, Publish};

use crate::failure::{Failure, FailureKind};
use crate::state::{Container, Store};

/// Bound ports.
#[derive(Debug, Default)]
pub struct Ports {
    pub listeners: Vec<Listener>,
    /// The rules, with the ports that the kernel chose.
    pub rules: Vec<Publish>,
}

impl Ports {
    /// Binds the host's side of `rules`.
    ///
    /// # Errors
    /// [`FailureKind::PortUnavailable`] names whoever of this command and the user's containers has
    /// the port.
    pub fn bind(rules: &[Publish], store: &Store) -> Result<Self, Failure> {
        let mut ports = Self::default();
        for rule in rules {
            let listeners = publish::bind(rule)
                .map_err(|error| unavailable(error, rule.protocol, &ports.rules, store))?;
            ports.rules.push(rule.resolved(&listeners));
            ports.listeners.extend(listeners);
        }
        Ok(ports)
    }

    /// Where a browser on this host finds what listens on `guest_port`.
    pub fn url(&self, guest_port: u16) -> Option<String> {
        let is_it = |listener: &&Listener| {
            listener.protocol == Protocol::Tcp && listener.guest_port == guest_port
        };
        let host = self.listeners.iter().find(is_it)?.host;
        let ip = match host.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        Some(format!("http://{}", SocketAddr::new(ip, host.port())))
    }
}

fn unavailable(error: BindError, protocol: Protocol, bound: &[Publish], store: &Store) -> Failure {
    let message = match &error {
        BindError::InUse(addr) => holder(*addr, protocol, bound, store)
            .map(|holder| format!("cannot bind {addr}: {holder}; choose another host port")),
        _ => None,
    };
    let message = message.unwrap_or_else(|| error.to_string());
    Failure::new(FailureKind::PortUnavailable, message)
}

/// Who of this command and the user's containers has an address. What cannot be listed is not
/// known.
fn holder(
    addr: SocketAddr,
    protocol: Protocol,
    bound: &[Publish],
    store: &Store,
) -> Option<String> {
    let has_it = |rule: &Publish| rule.protocol == protocol && rule.covers(addr);
    if let Some(rule) = bound.iter().find(|rule| has_it(rule)) {
        return Some(format!("this command publishes it already, by -p {rule}"));
    }
    let publishes = |container: &Container| {
        let rules = container
            .publish
            .iter()
            .filter_map(|rule| rule.parse().ok());
        container.is_alive() && rules.into_iter().any(|rule| has_it(&rule))
    };
    let containers = store.list().ok()?.containers;
    let container = containers.into_iter().find(publishes)?;
    Some(format!("the container {} has it", container.name))
}
