//! A network while containers are in it: its namespaces with the bridge, the coracle-net that is
//! its way out, and what that has been told of containers.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use netstack::core::addresses::Prefix;
use netstack::guest::{End, Links};
use portfwd::publish::Listener;
use rustix::event::PollFlags;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tracing::{debug, warn};

use super::Lease;
use super::anchor::Anchor;
use super::api::{self, ApiError, Name};
use crate::failure::Failure;
use crate::isolation::namespaces::in_that_user_namespace;
use crate::logging::ProcessLog;
use crate::network::helper::{HelperConfig, Supervisor};
use crate::network::options::NetworkOptions;
use crate::network::store::BridgeNetwork;
use crate::poll;

/// How long a coracle-net may take to be ready.
const READY_WITHIN: Duration = Duration::from_secs(10);
/// What coracle-net takes for a bridge that says nothing else: Ethernet's.
const MTU: u16 = 1500;

/// Where a container's end of a pair goes.
#[derive(Debug)]
pub struct Place {
    pub user: OwnedFd,
    pub network: OwnedFd,
}

/// A port of a container's that is to be published.
#[derive(Debug, Clone, Copy)]
pub struct Port<'a> {
    pub listener: &'a Listener,
    pub guest: IpAddr,
}

#[derive(Debug)]
pub struct Space {
    pub network: BridgeNetwork,
    anchor: Anchor,
    links: Links,
    bridge: u32,
    /// None of an internal network's.
    helper: Option<Supervisor>,
    dir: PathBuf,
    resolvers: Vec<IpAddr>,
    /// What coracle-net answers for, by number.
    names: BTreeMap<Name, u64>,
    /// What it publishes, by the numbers of descriptors here.
    ports: BTreeMap<i32, u64>,
    /// What an internal network's anchor has been told.
    told: BTreeSet<Name>,
}

impl Space {
    /// Makes the network's namespaces and, unless it is internal, waits until its way out is ready.
    /// Files of its own go to `run`, and what is logged to `log`.
    pub fn open(network: BridgeNetwork, run: &Path, log: &ProcessLog) -> Result<Self, Failure> {
        let dir = run.join(network.short_id());
        let made = DirBuilder::new().mode(0o700).recursive(true).create(&dir);
        made.map_err(Failure::context(format!("cannot create {}", dir.display())))?;
        let (anchor, bridge, links) = Anchor::start(&network)?;
        let mut space = Self {
            resolvers: resolvers_of_internal(&network),
            network,
            anchor,
            links,
            bridge,
            helper: None,
            dir,
            names: BTreeMap::new(),
            ports: BTreeMap::new(),
            told: BTreeSet::new(),
        };
        if !space.network.internal {
            space.start_helper(log)?;
        }
        debug!(network = space.network.name, "the network is there");
        Ok(space)
    }

    fn start_helper(&mut self, log: &ProcessLog) -> Result<(), Failure> {
        let options = way_out(&self.network);
        let addresses = options.network()?.addresses();
        let is_reached = |ip: &IpAddr| {
            let mut own = self.network.subnets.iter();
            own.any(|own| own.subnet.network.is_ipv6() == ip.is_ipv6())
        };
        self.resolvers = addresses.dns.into_iter().filter(is_reached).collect();
        let config = HelperConfig {
            listeners: Vec::new(),
            options,
            more: self.arguments(),
            status_dir: self.dir.clone(),
            log: log.clone(),
            init: self.anchor.pid(),
            owner: None,
        };
        let mut helper = config.spawn()?;
        if let Some(ready) = helper.ready_fd() {
            let waited = poll::wait([Some((ready, PollFlags::IN))], Some(READY_WITHIN));
            let waited = waited.map_err(Failure::context("cannot wait for the network helper"))?;
            if waited.is_none() {
                return Err(Failure::runner(
                    "cannot set up the network: the network helper does not get ready",
                ));
            }
            if !helper.take_readiness() {
                return Err(helper.failure(&config));
            }
        }
        self.helper = Some(Supervisor::new(config, helper)?);
        Ok(())
    }

    /// What coracle-net is told besides its options.
    fn arguments(&self) -> Vec<String> {
        let subnets = self.network.subnets.iter();
        let mut arguments: Vec<String> = subnets
            .flat_map(|own| ["--guest-network".to_owned(), own.subnet.to_string()])
            .collect();
        if !self.network.has_ipv6() {
            arguments.push("--ipv4-only".to_owned());
        }
        arguments.push("--api-socket".to_owned());
        // `RUN` is text, or sockets in it could not be named at all.
        arguments.push(self.api().to_string_lossy().into_owned());
        arguments
    }

    fn api(&self) -> PathBuf {
        self.dir.join("api.sock")
    }

    /// The network's name servers, as containers know them.
    pub fn resolvers(&self) -> &[IpAddr] {
        &self.resolvers
    }

    /// Lays a pair of interfaces into the container at `place`, where it has what `lease` says.
    /// `name` is the one on the bridge.
    pub fn attach(
        &mut self,
        name: &str,
        lease: &Lease,
        leads_out: bool,
        place: &Place,
    ) -> Result<(), Failure> {
        let end = end(lease, self.network.mtu, leads_out);
        let made = self
            .links
            .add_pair(name, self.bridge, &end, place.network.as_fd());
        if made.is_err() {
            // One that an earlier holder has left, if it is not gone yet.
            let _ = self.links.remove(name);
            let of_earlier = end.name.clone();
            place.inside(move || {
                let mut links = Links::open().map_err(|error| error.to_string())?;
                links.remove(&of_earlier).map_err(|error| error.to_string())
            })?;
            self.links
                .add_pair(name, self.bridge, &end, place.network.as_fd())
                .map_err(Failure::context(
                    "cannot put the container into its network",
                ))?;
        }
        place.inside(|| end.set_up().map_err(|error| error.to_string()))
    }

    /// Removes the pair again.
    pub fn detach(&mut self, name: &str) {
        if let Err(error) = self.links.remove(name) {
            warn!(%error, "a container's interface stays on the bridge");
        }
    }

    /// Sees to it that the network answers for `names` and for no others.
    pub fn tell_names(&mut self, names: BTreeSet<Name>) {
        if self.network.internal {
            if self.told != names {
                let texts: Vec<_> = names.iter().map(text).collect();
                match self.anchor.tell_names(&texts) {
                    Ok(()) => self.told = names,
                    Err(error) => warn!(%error, "names of containers cannot be told"),
                }
            }
            return;
        }
        if !self.is_ready() {
            return;
        }
        let api = self.api();
        self.names.retain(|name, id| {
            let stays = names.contains(name);
            if !stays {
                complain("a name stays", api::remove_name(&api, *id));
            }
            stays
        });
        for name in names {
            if let Entry::Vacant(entry) = self.names.entry(name) {
                match api::add_name(&api, entry.key()) {
                    Ok(id) => {
                        entry.insert(id);
                    }
                    Err(error) => complain::<()>("a name is not told", Err(error)),
                }
            }
        }
    }

    /// Sees to it that `ports` are published and no others. Fails with the last that could not be;
    /// when coracle-net has just died, the next one is told again.
    pub fn publish(&mut self, ports: &[Port]) -> Result<(), Failure> {
        if !self.is_ready() {
            return Ok(());
        }
        let api = self.api();
        let number = |port: &Port| port.listener.socket.as_raw_fd();
        let wanted: BTreeSet<i32> = ports.iter().map(number).collect();
        self.ports.retain(|socket, id| {
            let stays = wanted.contains(socket);
            if !stays {
                complain("a port stays published", api::withdraw(&api, *id));
            }
            stays
        });
        let mut failed = Ok(());
        for port in ports {
            if self.ports.contains_key(&number(port)) {
                continue;
            }
            match api::publish(&api, port.listener, port.guest) {
                Ok(id) => {
                    self.ports.insert(number(port), id);
                }
                Err(ApiError::Silent(error)) => {
                    warn!(%error, "a port is published once the network helper is back");
                }
                Err(error) => {
                    let rule = port.listener.rule();
                    failed = Err(Failure::runner(format!("cannot publish {rule}: {error}")));
                }
            }
        }
        failed
    }

    /// Whether there is a coracle-net that can be told something.
    fn is_ready(&self) -> bool {
        let ready = |helper: &Supervisor| helper.pidfd().is_some() && helper.ready_fd().is_none();
        self.helper.as_ref().is_some_and(ready)
    }

    /// What is to be waited for: the anchor's end, coracle-net's, and that a new one gets ready.
    pub fn watched(&self) -> [Option<BorrowedFd<'_>>; 3] {
        let helper = self.helper.as_ref();
        [
            Some(self.anchor.pidfd()),
            helper.and_then(Supervisor::pidfd),
            helper.and_then(Supervisor::ready_fd),
        ]
    }

    /// When [`Space::handle_deadline`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.helper.as_ref().and_then(Supervisor::deadline)
    }

    /// coracle-net has ended. Another one knows nothing of what this one was told.
    pub fn handle_end(&mut self, now: Instant) {
        if let Some(helper) = &mut self.helper {
            helper.handle_end(now);
            self.names.clear();
            self.ports.clear();
        }
    }

    /// Another coracle-net is ready, or has died before.
    pub fn handle_ready(&mut self) {
        if let Some(helper) = &mut self.helper {
            helper.handle_ready();
        }
    }

    pub fn handle_deadline(&mut self, now: Instant) {
        if let Some(helper) = &mut self.helper {
            helper.handle_deadline(now);
        }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if let Some(helper) = self.helper.take() {
            helper.end();
        }
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(%error, "the directory of a network stays");
            }
            _ => {}
        }
    }
}

impl Place {
    /// Does `job` in the container's network namespace, as its root.
    pub fn inside(&self, job: impl FnOnce() -> Result<(), String>) -> Result<(), Failure> {
        in_that_user_namespace(&self.user, || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(self.network.as_fd(), kind)
                .map_err(|errno| format!("cannot join the container's network: {errno}"))?;
            job()
        })?;
        Ok(())
    }

    /// Makes this network the container's way out.
    pub fn lead_out(&self, lease: &Lease) -> Result<(), Failure> {
        let end = end(lease, None, true);
        self.inside(|| end.lead_out().map_err(|error| error.to_string()))
    }
}

fn end(lease: &Lease, mtu: Option<u16>, leads_out: bool) -> End {
    let addresses = lease.addresses.iter();
    End {
        name: lease.interface.clone(),
        mac: lease.mac.0,
        mtu: mtu.map(u32::from),
        addresses: addresses.map(|address| (address.ip, address.len)).collect(),
        gateways: match leads_out {
            true => lease.gateways.clone(),
            false => Vec::new(),
        },
    }
}

fn text(name: &Name) -> String {
    let addresses = name.addresses.iter().map(ToString::to_string);
    let addresses: Vec<_> = addresses.collect();
    format!(
        "{}={}@{}",
        name.name,
        addresses.join(","),
        name.networks.join(",")
    )
}

fn complain<T>(what: &str, result: Result<T, ApiError>) {
    if let Err(error) = result {
        warn!(%error, "{what}");
    }
}

/// The bridge's own addresses, where its anchor answers.
fn resolvers_of_internal(network: &BridgeNetwork) -> Vec<IpAddr> {
    match network.internal && network.dns {
        true => network.subnets.iter().filter_map(|own| own.own()).collect(),
        false => Vec::new(),
    }
}

/// The network between the bridge's namespace and coracle-net: the usual one, unless containers
/// have its addresses.
fn way_out(network: &BridgeNetwork) -> NetworkOptions {
    let is_free = |text: &str| {
        let prefix = Prefix::read(text).expect("written here");
        let mut own = network.subnets.iter();
        !own.any(|own| own.subnet.overlaps(&prefix))
    };
    let choose = |choices: [&'static str; 3]| {
        let free = choices.into_iter().find(|text| is_free(text));
        free.unwrap_or(choices[0])
    };
    let v4 = choose(["10.0.2.0/24", "172.31.253.0/24", "192.168.253.0/24"]);
    let v6 = choose(["fd00::/64", "fd00:0:0:1::/64", "fdc0:ac1e::/64"]);
    let mtu = network.mtu.unwrap_or(MTU);
    format!("cidr={v4},cidr6={v6},mtu={mtu}")
        .parse()
        .expect("subnets and an MTU that coracle-net takes")
}
