//! A container's networks, seen from its monitor: it joins them before the command runs, comes back
//! when their holder was killed, and makes the changes that commands ask for.
//!
//! The way out, and with it the resolver and published ports, is the first network's that is not
//! internal. What the container has got is kept in its record.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use netstack::core::autoconf::DomainName;
use netstack::logging::Filter;
use portfwd::publish::Listener;
use portfwd::spec::Protocol;
use rustix::event::{PollFlags, epoll};
use rustix::net::Shutdown;
use tracing::{debug, info, warn};

use super::client::{Client, HolderError};
use super::control::{self, Change};
use super::messages::{FromHolder, Join, ToHolder};
use super::space::Place;
use super::{Attachment, Lease};
use crate::failure::Failure;
use crate::network::etc_files::{self, About};
use crate::network::names::Names;
use crate::network::store::{BridgeNetwork, Networks};
use crate::poll;
use crate::process::channel::DESCRIPTORS_MAX;
use crate::state::{Container, ContainerId, Store};

const RETRY_DELAY_MIN: Duration = Duration::from_millis(20);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(5);

/// What does not change while the container runs.
#[derive(Debug)]
pub struct Host {
    pub store: Store,
    pub container: ContainerId,
    pub name: String,
    pub hostname: String,
    pub names: Names,
    /// Its run directory.
    pub run: PathBuf,
    pub filter: Filter,
}

/// The networks of a container that is starting or runs. Dropped, it leaves them.
#[derive(Debug)]
pub struct Membership {
    host: Host,
    place: Place,
    listeners: Vec<Listener>,
    links: Vec<Link>,
    control: control::Listener,
    /// Knows all that is to be waited for.
    epoll: OwnedFd,
    retry_at: Option<Instant>,
    delay: Duration,
}

/// One network of the container's.
#[derive(Debug)]
struct Link {
    attachment: Attachment,
    internal: bool,
    /// `None` since its holder was killed.
    client: Option<Client>,
    publishes: bool,
}

impl Membership {
    /// Joins the networks of `attachments`, one after the other.
    pub fn join(
        host: Host,
        place: Place,
        listeners: Vec<Listener>,
        attachments: &[Attachment],
    ) -> Result<Self, Failure> {
        let control = control::Listener::open(&host.run)
            .map_err(Failure::context("cannot listen for changes of networks"))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(Failure::context("cannot watch networks"))?;
        let mut membership = Self {
            host,
            place,
            listeners,
            links: Vec::new(),
            control,
            epoll,
            retry_at: None,
            delay: RETRY_DELAY_MIN,
        };
        membership.watch(membership.control.as_fd())?;
        for attachment in attachments {
            // What it had at an earlier start, somebody else may have by now.
            let attachment = Attachment {
                lease: None,
                ..attachment.clone()
            };
            membership.add(attachment)?;
        }
        membership.write_files()?;
        Ok(membership)
    }

    /// What the container's record is to say.
    pub fn attachments(&self) -> Vec<Attachment> {
        let links = self.links.iter();
        links.map(|link| link.attachment.clone()).collect()
    }

    /// Readable when [`Membership::handle`] is due.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// When [`Membership::handle_deadline`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Serves commands, and notices that the holder has gone.
    pub fn handle(&mut self, now: Instant) {
        for link in &mut self.links {
            let Some(client) = &link.client else { continue };
            let gone = poll::wait(
                [Some((client.as_fd(), PollFlags::IN))],
                Some(Duration::ZERO),
            );
            if let Ok(Some(_)) = gone {
                warn!(
                    network = link.attachment.network,
                    "the holder of the container's network has gone"
                );
                link.client = None;
                link.publishes = false;
                self.retry_at = Some(now);
            }
        }
        while let Some((change, asker)) = self.control.next() {
            let made = self.change(change).and_then(|()| self.record());
            asker.answer(made);
        }
    }

    /// Comes back to networks whose holder has gone.
    pub fn handle_deadline(&mut self, now: Instant) {
        if self.retry_at.is_none_or(|at| at > now) {
            return;
        }
        match self.come_back() {
            Ok(()) => {
                info!("the container is in its networks again");
                self.retry_at = None;
                self.delay = RETRY_DELAY_MIN;
            }
            Err(failure) => {
                warn!(%failure, delay = ?self.delay, "the container's networks are not back yet");
                self.retry_at = Some(Instant::now() + self.delay);
                self.delay = (self.delay * 2).min(RETRY_DELAY_MAX);
            }
        }
    }

    /// Leaves all networks. When this returns the ports can be bound again.
    pub fn end(self) {
        for listener in &self.listeners {
            if listener.protocol == Protocol::Tcp {
                // Lets go of the port, whoever else has the socket open.
                let _ = rustix::net::shutdown(&listener.socket, Shutdown::Both);
            }
        }
        self.leave();
    }

    /// Leaves all networks, and keeps the ports bound for when it is in them again.
    pub fn pause(self) -> Vec<Listener> {
        self.leave();
        self.listeners
    }

    fn leave(&self) {
        for link in &self.links {
            if let Some(client) = &link.client
                && let Err(error) = client.ask(&ToHolder::Leave { runs_on: false }, &[])
            {
                debug!(%error, "the container's network was gone before the container");
            }
        }
    }

    fn come_back(&mut self) -> Result<(), Failure> {
        let before = self.attachments();
        for at in 0..self.links.len() {
            if self.links[at].client.is_none() {
                let attachment = self.links[at].attachment.clone();
                let leads_out = self.way_out() == Some(at);
                let (link, _) = self.enter(attachment, at, leads_out)?;
                self.links[at] = link;
            }
        }
        self.publish()?;
        if self.attachments() != before {
            self.write_files()?;
            self.record()?;
        }
        Ok(())
    }

    fn change(&mut self, change: Change) -> Result<(), Failure> {
        match change {
            Change::Connect(attachment) => {
                let network = &attachment.network;
                let mut links = self.links.iter();
                if links.any(|link| link.attachment.network == *network) {
                    return Err(Failure::runner(format!(
                        "container {} is in the network {network} already",
                        self.host.name
                    )));
                }
                self.add(attachment)?;
            }
            Change::Disconnect(network) => {
                let at = self
                    .links
                    .iter()
                    .position(|link| link.attachment.network == network);
                let Some(at) = at else {
                    return Err(Failure::runner(format!(
                        "container {} is not in the network {network}",
                        self.host.name
                    )));
                };
                let was_way_out = self.way_out() == Some(at);
                let link = self.links.remove(at);
                if let Some(client) = &link.client {
                    client.ask(&ToHolder::Leave { runs_on: true }, &[])?;
                }
                if was_way_out {
                    self.lead_out()?;
                }
            }
        }
        self.publish()?;
        self.write_files()
    }

    /// Joins one more network.
    fn add(&mut self, attachment: Attachment) -> Result<(), Failure> {
        let at = self.links.len();
        let has_way_out = self.way_out().is_some();
        let (link, network) = self.enter(attachment, at, !has_way_out)?;
        debug!(network = network.name, "the container is in a network");
        self.links.push(link);
        self.publish()
    }

    /// Has the holder put the container into a network.
    fn enter(
        &self,
        mut attachment: Attachment,
        at: usize,
        leads_out: bool,
    ) -> Result<(Link, BridgeNetwork), Failure> {
        let network = Networks::of(&self.host.store).find(&attachment.network)?;
        let client = Client::connect(self.host.store.dirs(), &self.host.filter)?;
        let join = Join {
            network: network.clone().without_labels(),
            container: self.host.container.clone(),
            names: self.names(&attachment),
            interface: self.interface(&attachment, at),
            attachment: attachment.clone(),
            leads_out: leads_out && !network.internal,
        };
        let place = [self.place.user.as_fd(), self.place.network.as_fd()];
        let lease = match client.ask(&ToHolder::Join(Box::new(join)), &place) {
            Ok(FromHolder::Joined(lease)) => lease,
            Ok(_) => {
                return Err(Failure::runner(
                    "the holder of networks says what is not due",
                ));
            }
            Err(HolderError::Refused(failure)) => return Err(failure),
            Err(error) => return Err(error.into()),
        };
        self.watch(client.as_fd())?;
        attachment.lease = Some(lease);
        let link = Link {
            attachment,
            internal: network.internal,
            client: Some(client),
            publishes: false,
        };
        Ok((link, network))
    }

    /// What it is called in a network: as far as these can be names of hosts.
    fn names(&self, attachment: &Attachment) -> Vec<String> {
        let own = [self.host.name.as_str(), self.host.container.short()];
        let names = own
            .into_iter()
            .chain(attachment.aliases.iter().map(String::as_str));
        let mut told: Vec<String> = Vec::new();
        for name in names.filter(|name| name.parse::<DomainName>().is_ok()) {
            if !told.iter().any(|other| other.eq_ignore_ascii_case(name)) {
                told.push(name.to_owned());
            }
        }
        told
    }

    /// The one that it has had, or the first that is free.
    fn interface(&self, attachment: &Attachment, at: usize) -> String {
        if let Some(lease) = &attachment.lease {
            return lease.interface.clone();
        }
        let others = self.links.iter().enumerate();
        let others = others.filter(|(other, _)| *other != at);
        let taken: Vec<_> = others
            .filter_map(|(_, link)| Some(link.attachment.lease.as_ref()?.interface.as_str()))
            .collect();
        let mut names = (0..).map(|number| format!("eth{number}"));
        names
            .find(|name| !taken.contains(&name.as_str()))
            .expect("there are more numbers than networks")
    }

    /// The place of the network that leads out.
    fn way_out(&self) -> Option<usize> {
        self.links.iter().position(|link| !link.internal)
    }

    fn lease_of_way_out(&self) -> Option<&Lease> {
        self.links[self.way_out()?].attachment.lease.as_ref()
    }

    /// Gives the container another way out, where the one that it had is gone.
    fn lead_out(&self) -> Result<(), Failure> {
        match self.lease_of_way_out() {
            Some(lease) => self.place.lead_out(lease),
            None => Ok(()),
        }
    }

    /// Has the way out publish the container's ports.
    fn publish(&mut self) -> Result<(), Failure> {
        if self.listeners.is_empty() {
            return Ok(());
        }
        let Some(at) = self.way_out() else {
            return Ok(());
        };
        let link = &mut self.links[at];
        let Some(client) = link.client.as_ref().filter(|_| !link.publishes) else {
            return Ok(());
        };
        for some in self.listeners.chunks(DESCRIPTORS_MAX) {
            let rules = some.iter().map(|listener| listener.rule().to_string());
            let sockets: Vec<_> = some.iter().map(|own| own.socket.as_fd()).collect();
            match client.ask(&ToHolder::Publish(rules.collect()), &sockets) {
                Ok(_) => {}
                Err(HolderError::Refused(failure)) => return Err(failure),
                Err(error) => return Err(error.into()),
            }
        }
        link.publishes = true;
        Ok(())
    }

    /// Tells the container's resolv.conf and hosts of its networks.
    fn write_files(&self) -> Result<(), Failure> {
        let resolvers = match self.lease_of_way_out() {
            Some(lease) => lease.resolvers.clone(),
            None => self
                .leases()
                .flat_map(|own| own.resolvers.clone())
                .collect(),
        };
        let addresses = self.leases().flat_map(|lease| &lease.addresses);
        let addresses: Vec<_> = addresses.map(|address| address.ip).collect();
        let Host {
            run,
            hostname,
            name,
            names,
            ..
        } = &self.host;
        let about = About {
            hostname,
            name,
            names,
            // It does not change with the networks.
            timezone: None,
        };
        etc_files::write_for_networks(run, about, &resolvers, &addresses)?;
        Ok(())
    }

    fn leases(&self) -> impl Iterator<Item = &Lease> {
        let links = self.links.iter();
        links.filter_map(|link| link.attachment.lease.as_ref())
    }

    /// While the container runs. Before, its start records all.
    fn record(&self) -> Result<(), Failure> {
        let attachments = self.attachments();
        let change = |container: &mut Container| container.networks = attachments;
        self.host.store.modify(&self.host.container, change)?;
        Ok(())
    }

    fn watch(&self, fd: BorrowedFd<'_>) -> Result<(), Failure> {
        // Which one it was is looked up.
        let untold = epoll::EventData::new_u64(0);
        epoll::add(&self.epoll, fd, untold, epoll::EventFlags::IN)
            .map_err(Failure::context("cannot watch networks"))
    }
}
