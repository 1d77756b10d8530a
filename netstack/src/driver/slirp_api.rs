//! What the clients of slirp4netns's API ask for while the loop runs: ports that are published and
//! withdrawn, rules that change.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use portfwd::Endpoint;
use tracing::debug;

use super::Driver;
use super::listeners::{Lead, Listeners};
use super::pause::Pause;
use super::poller::{Interest, ListenerId, Poller, Token};
use super::promotion::Promotion;
use super::shard::Shard;
use crate::broker::Broker;
use crate::control::{Forward, Publisher, SlirpApi};
use crate::core::dns::{HostName, HostNameError, HostNames};
use crate::core::egress::Egress;
use crate::core::{Instant, Service};
use crate::device::Device;

/// The API's socket, and what it takes to carry out what is asked there.
pub struct Api {
    socket: SlirpApi,
    broker: Broker,
    published: BTreeMap<u64, ListenerId>,
    /// No client is served for a moment.
    pause: Pause,
}

impl Api {
    pub fn new(socket: SlirpApi, broker: Broker) -> Self {
        Self {
            socket,
            broker,
            published: BTreeMap::new(),
            pause: Pause::default(),
        }
    }

    pub fn watch(&self, poller: &Poller) -> std::io::Result<()> {
        poller.add(&self.socket, Token::SlirpApi, Interest::Readable)
    }

    /// When there is something to do without an event.
    pub fn deadline(&self) -> Option<Instant> {
        self.pause.until().or(self.socket.deadline())
    }
}

impl<D: Device> Driver<D> {
    /// Serves clients that have come, sent something, or kept us waiting too long.
    pub(super) fn handle_slirp_api(&mut self, now: Instant) {
        let Some(api) = &mut self.slirp_api else {
            return;
        };
        let mut publishing = Publishing {
            listeners: &mut self.listeners,
            shard: &mut self.shard,
            promotion: &mut self.promotion,
            broker: &api.broker,
            published: &mut api.published,
            now,
        };
        if let Err(error) = api.socket.serve(&mut publishing, now) {
            debug!(%error, "a client of the API waits");
            let poller = &self.shard.poller;
            api.pause.silence(poller, &api.socket, Token::SlirpApi, now);
        }
    }

    /// Does what is due without an event.
    pub(super) fn resume_slirp_api(&mut self, now: Instant) {
        let Some(api) = &mut self.slirp_api else {
            return;
        };
        let poller = &self.shard.poller;
        api.pause.wake(poller, &api.socket, Token::SlirpApi, now);
        let deadline = api.socket.deadline();
        if deadline.is_some_and(|deadline| deadline <= now) {
            self.handle_slirp_api(now);
        }
    }
}

/// Publishes through the broker.
struct Publishing<'a, D> {
    listeners: &'a mut Listeners,
    shard: &'a mut Shard<D>,
    promotion: &'a mut Promotion,
    broker: &'a Broker,
    published: &'a mut BTreeMap<u64, ListenerId>,
    now: Instant,
}

impl<D: Device> Publisher for Publishing<'_, D> {
    fn publish(&mut self, id: u64, forward: &Forward, socket: Option<OwnedFd>) -> bool {
        let endpoint = Endpoint {
            protocol: forward.protocol,
            addr: forward.host,
            interface: None,
        };
        let socket = socket.map_or_else(|| self.broker.open(&endpoint), Ok);
        let socket = match socket {
            Ok(socket) => socket,
            Err(error) => {
                debug!(%error, %endpoint, "a port was asked for in vain");
                return false;
            }
        };
        let lead = Lead::Guest(Service {
            address: Some(forward.guest.ip()),
            port: forward.guest.port(),
        });
        match self
            .listeners
            .add_leading(&self.shard.poller, &endpoint, socket, lead)
        {
            Ok(listener) => {
                self.published.insert(id, listener);
                true
            }
            Err(error) => {
                debug!(%error, %endpoint, "a port cannot be watched");
                false
            }
        }
    }

    fn withdraw(&mut self, id: u64) {
        if let Some(listener) = self.published.remove(&id) {
            self.listeners.remove(listener);
        }
    }

    fn egress(&self) -> &Egress {
        self.shard.core.egress()
    }

    fn set_egress(&mut self, egress: Egress) {
        self.shard.set_egress(egress, self.now, self.promotion);
    }

    fn names(&self) -> &HostNames {
        self.shard.core.names()
    }

    fn add_name(&mut self, name: HostName) -> Result<u64, HostNameError> {
        self.shard.core.add_name(name)
    }

    fn remove_name(&mut self, id: u64) -> bool {
        self.shard.core.remove_name(id)
    }
}
