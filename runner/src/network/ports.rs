//! The host ports of a new container. They are bound before anything else is made, so that a clash
//! has nothing to undo.

use std::fmt;
use std::net::SocketAddr;

use portfwd::publish::{self, BindError, Listener};
use portfwd::spec::{Protocol, Publish};

use crate::state::{Container, Store};

/// Why a port cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    #[error("cannot bind {addr}: {holder}; choose another host port")]
    Taken { addr: SocketAddr, holder: Holder },
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// Who has an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// The new container itself, by an earlier rule.
    Rule(Publish),
    /// Another one, of this name.
    Container(String),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Rule(rule) => write!(f, "this command publishes it already, by -p {rule}"),
            Self::Container(name) => write!(f, "the container {name} has it"),
        }
    }
}

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
    /// [`PortError::Taken`] names whoever of this command and the user's containers has the port.
    pub fn bind(rules: &[Publish], store: &Store) -> Result<Self, PortError> {
        let mut ports = Self::default();
        for rule in rules {
            let listeners = publish::bind(rule)
                .map_err(|error| unavailable(error, rule.protocol, &ports.rules, store))?;
            ports.rules.push(rule.resolved(&listeners));
            ports.listeners.extend(listeners);
        }
        Ok(ports)
    }
}

fn unavailable(
    error: BindError,
    protocol: Protocol,
    bound: &[Publish],
    store: &Store,
) -> PortError {
    let BindError::InUse(addr) = error else {
        return error.into();
    };
    match holder(addr, protocol, bound, store) {
        Some(holder) => PortError::Taken { addr, holder },
        None => error.into(),
    }
}

/// Who of this command and the user's containers has an address. What cannot be listed is not
/// known.
fn holder(
    addr: SocketAddr,
    protocol: Protocol,
    bound: &[Publish],
    store: &Store,
) -> Option<Holder> {
    let has_it = |rule: &Publish| rule.protocol == protocol && rule.covers(addr);
    if let Some(rule) = bound.iter().find(|rule| has_it(rule)) {
        return Some(Holder::Rule(rule.clone()));
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
    Some(Holder::Container(container.name))
}
