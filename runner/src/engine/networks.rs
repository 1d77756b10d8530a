//! The networks of the same user, and which containers are in them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{ContainerRequest, Engine, EngineError};
use crate::events::Event;
use crate::network::bridge::{Attachment, Change, ask_monitor};
use crate::network::store::{BridgeNetwork, Hold, Networks, NetworksError, users};
use crate::spec::Network;
use crate::state::Container;

impl Engine {
    pub fn networks(&self) -> Networks {
        Networks::of(&self.store)
    }

    /// The containers that are in a network, or will be when they are started.
    pub fn network_users(&self, name: &str) -> Result<Vec<Container>, EngineError> {
        Ok(users(name, &self.store)?)
    }

    /// Removes a network. `force` removes the containers that are in it as well.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchNetwork`](super::ErrorKind::NoSuchNetwork); without `force`,
    /// [`ErrorKind::NetworkInUse`](super::ErrorKind::NetworkInUse).
    pub fn remove_network(&self, wanted: &str, force: bool) -> Result<(), EngineError> {
        let network = self.networks().find(wanted)?;
        if force {
            for container in self.network_users(&network.name)? {
                self.remove(container.id.as_str(), true)?;
            }
        }
        Ok(self.networks().remove(&network, &self.store)?)
    }

    /// Removes the networks among `candidates` that no container is in, and returns their names.
    pub fn prune_networks(&self, candidates: &[BridgeNetwork]) -> Result<Vec<String>, EngineError> {
        let mut removed = Vec::new();
        for network in candidates {
            match self.networks().remove(network, &self.store) {
                Ok(()) => removed.push(network.name.clone()),
                // Somebody has come, or was faster.
                Err(NetworksError::InUse { .. } | NetworksError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(removed)
    }

    /// Puts a container into one more network: at once if it runs, and at each start.
    pub fn connect(&self, wanted: &str, attachment: Attachment) -> Result<(), EngineError> {
        let container = self.in_networks(wanted)?;
        let hold = self.networks().hold()?;
        let network = self.networks().find(&attachment.network)?;
        check_addresses(&network, &attachment.ips)?;
        let attachment = Attachment {
            network: network.name.clone(),
            ..attachment
        };
        if container
            .networks
            .iter()
            .any(|own| own.network == network.name)
        {
            return Err(EngineError::InNetwork {
                container: container.name,
                network: network.name,
            });
        }
        if !container.status.can_kill() {
            self.store.modify(&container.id, |container| {
                container.networks.push(attachment);
            })?;
            self.note_network("connect", &network.name, &container);
            return Ok(());
        }
        let change = Change::Connect(attachment);
        let made = ask_monitor(&self.store.dir(&container).run, &change);
        drop(hold);
        made?;
        self.note_network("connect", &network.name, &container);
        Ok(())
    }

    /// Takes a container out of a network, at once if it runs.
    pub fn disconnect(&self, wanted: &str, network: &str) -> Result<(), EngineError> {
        let container = self.in_networks(wanted)?;
        // One that was removed by hand can be left all the same.
        let name = match self.networks().find(network) {
            Ok(network) => network.name,
            Err(NetworksError::NotFound { name }) => name,
            Err(error) => return Err(error.into()),
        };
        if !container.networks.iter().any(|own| own.network == name) {
            return Err(EngineError::NotInNetwork {
                container: container.name,
                network: name,
            });
        }
        if !container.status.can_kill() {
            self.store.modify(&container.id, |container| {
                container.networks.retain(|own| own.network != name);
            })?;
            self.note_network("disconnect", &name, &container);
            return Ok(());
        }
        let change = Change::Disconnect(name.clone());
        ask_monitor(&self.store.dir(&container).run, &change)?;
        self.note_network("disconnect", &name, &container);
        Ok(())
    }

    fn note_network(&self, status: &str, network: &str, container: &Container) {
        let event = Event::of_network(status, network, Some(container));
        self.store.journal().write(&event);
    }

    /// A container that may be in networks.
    fn in_networks(&self, wanted: &str) -> Result<Container, EngineError> {
        let container = self.find(wanted)?;
        match self.spec(&container)?.network {
            Network::Bridge => Ok(container),
            _ => Err(EngineError::NotInNetworks {
                container: container.name,
            }),
        }
    }

    /// The networks that a request names, by their names, each of which is there until the hold is
    /// dropped.
    pub(super) fn resolve_networks(
        &self,
        request: &ContainerRequest,
    ) -> Result<(Option<Hold>, Vec<Attachment>), EngineError> {
        if request.network != Network::Bridge {
            return Ok((None, Vec::new()));
        }
        let hold = self.networks().hold()?;
        let mut names = BTreeSet::new();
        let mut attachments = Vec::new();
        let mut only_internal = None;
        for attachment in &request.networks {
            let network = self.networks().find(&attachment.network)?;
            check_addresses(&network, &attachment.ips)?;
            only_internal = match network.internal {
                true => only_internal.or(Some(true)),
                false => Some(false),
            };
            if !names.insert(network.name.clone()) {
                return Err(EngineError::NetworkTwice {
                    network: network.name,
                });
            }
            attachments.push(Attachment {
                network: network.name,
                lease: None,
                ..attachment.clone()
            });
        }
        if only_internal == Some(true) && !request.publish.is_empty() {
            let network = attachments.swap_remove(0).network;
            return Err(EngineError::PortsOfInternal { network });
        }
        Ok((Some(hold), attachments))
    }
}

fn check_addresses(network: &BridgeNetwork, ips: &[IpAddr]) -> Result<(), EngineError> {
    let of_others = ips.iter().find(|ip| !network.is_for_containers(**ip));
    match of_others {
        None => Ok(()),
        Some(ip) => {
            let subnets = network.subnets.iter();
            let subnets: Vec<_> = subnets.map(|own| own.subnet.to_string()).collect();
            Err(EngineError::NetworkAddress {
                ip: *ip,
                network: network.name.clone(),
                subnets: subnets.join(" and "),
            })
        }
    }
}
