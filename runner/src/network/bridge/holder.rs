//! The process that keeps a user's networks while containers are in them.
//!
//! It is the user's, as monitors are, and nobody's child. It listens for monitors, each of which
//! puts a container into a network over a connection of its own; what the container has there ends
//! with the connection. When nobody is connected any more, it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use netstack::core::addresses::Prefix;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use portfwd::publish::Listener;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use tracing::{debug, error_span, warn};

use super::Lease;
use super::api::Name;
use super::client::{Job, directory, socket_path};
use super::leases::{Taken, grant};
use super::messages::{FromHolder, Join, ToHolder};
use super::space::{Place, Port, Space};
use crate::failure::Failure;
use crate::isolation::namespaces;
use crate::logging::ProcessLog;
use crate::printable::complain;
use crate::process::channel::{self, Channel};
use crate::process::inherited::put_behind;
use crate::process::selfexec::NETWORKS_ROLE;
use crate::process::task;
use crate::state::{Store, try_lock_directory};
use crate::stdio::ProgramEnds;
use crate::sys::{self, NewNamespaces};

/// How soon a holder whom nobody is connected to looks again whether it may end. Somebody is about
/// to connect, or was.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The process itself: its standard input is the listening socket, its standard output the job.
pub fn main() -> ExitCode {
    put_behind();
    let job = || -> Option<(OwnedFd, Job)> {
        let listener = rustix::stdio::stdin().try_clone_to_owned().ok()?;
        let task = rustix::stdio::stdout().try_clone_to_owned().ok()?;
        Some((listener, task::read(task).ok()?))
    };
    let Some((listener, job)) = job() else {
        complain(format_args!(
            "{NETWORKS_ROLE} is started by coracle itself, for networks of containers"
        ));
        return ExitCode::from(125);
    };
    match sys::clone_process(NewNamespaces::NONE, None) {
        // The child goes on, and is an orphan as soon as this process has ended.
        Ok(Some(_)) => ExitCode::SUCCESS,
        Ok(None) => match live(listener, job) {
            Ok(()) => ExitCode::SUCCESS,
            // Whoever is connected finds that it has gone.
            Err(_) => ExitCode::from(125),
        },
        Err(_) => ExitCode::from(125),
    }
}

fn live(listener: OwnedFd, job: Job) -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::chdir("/")?;
    rustix::thread::set_name(c"coracle-nets")?;
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))?;
    ProgramEnds::null()?.install()?;
    // A shutdown signals every process at once. Containers have their networks until they end, and
    // then this process ends as well.
    let heeded = SigSet::from(Signal::SIGCHLD);
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let run = directory(&job.dirs);
    let log = ProcessLog::new(&run, job.filter);
    let file = log.open();
    let _log = file
        .ok()
        .map(|file| tracing::dispatcher::set_default(&log.dispatch(file)));
    let _span = error_span!("networks").entered();
    let holder = Holder {
        listener,
        signals: SignalFd::with_flags(&heeded, flags)?,
        store: Store::open(job.dirs).map_err(io::Error::other)?,
        identity: identity(&fs::metadata(&run)?),
        run,
        log,
        spaces: BTreeMap::new(),
        members: Vec::new(),
    };
    holder.serve()
}

/// Tells a directory from another of the same name.
fn identity(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

struct Holder {
    listener: OwnedFd,
    signals: SignalFd,
    store: Store,
    run: PathBuf,
    /// Of that directory, as this process has found it.
    identity: (u64, u64),
    log: ProcessLog,
    /// By the ids of networks. Each has a member at least.
    spaces: BTreeMap<String, Space>,
    members: Vec<Member>,
}

/// Who is connected.
struct Member {
    channel: Channel<FromHolder, ToHolder>,
    joined: Option<Joined>,
}

/// A container in a network.
struct Joined {
    network: String,
    container: String,
    names: Vec<String>,
    lease: Lease,
    /// The interface on the bridge.
    interface: String,
    /// Published ports.
    listeners: Vec<Listener>,
}

/// What a round of the loop has found.
#[derive(Default)]
struct Ready {
    newcomer: bool,
    signal: bool,
    members: Vec<usize>,
    /// The ids of networks whose anchor, helper, or next helper has something to say.
    spaces: Vec<(String, [bool; 3])>,
}

impl Holder {
    fn serve(mut self) -> io::Result<()> {
        loop {
            let now = Instant::now();
            for space in self.spaces.values_mut() {
                space.handle_deadline(now);
            }
            if self.members.is_empty() {
                self.accept()?;
            }
            if self.members.is_empty() && self.ends()? {
                return Ok(());
            }
            let ready = self.wait(now)?;
            if ready.signal {
                self.reap();
            }
            if ready.newcomer {
                self.accept()?;
            }
            if !ready.spaces.is_empty() {
                // Networks and members may be others then than those that were waited for.
                self.serve_spaces(ready.spaces);
                continue;
            }
            // From the last, since a member that leaves is taken out.
            for member in ready.members.into_iter().rev() {
                self.serve_member(member);
            }
        }
    }

    fn wait(&self, now: Instant) -> io::Result<Ready> {
        let idle = self.members.is_empty().then_some(now + LOOK_AGAIN);
        let deadlines = self.spaces.values().filter_map(Space::deadline);
        let wake_at = deadlines.chain(idle).min();
        let timeout = wake_at.map(|at| at.saturating_duration_since(now));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut fds = vec![
            PollFd::new(&self.listener, PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
        ];
        let members = self.members.iter();
        fds.extend(members.map(|member| PollFd::new(&member.channel, PollFlags::IN)));
        let mut watched = Vec::new();
        for (id, space) in &self.spaces {
            for (kind, fd) in space.watched().into_iter().enumerate() {
                if let Some(fd) = fd {
                    watched.push((id, kind));
                    fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
                }
            }
        }
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, timeout.as_ref()))?;
        let is_ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut spaces: BTreeMap<&String, [bool; 3]> = BTreeMap::new();
        let of_spaces = watched.iter().zip(&is_ready[2 + self.members.len()..]);
        for ((id, kind), _) in of_spaces.filter(|(_, ready)| **ready) {
            spaces.entry(*id).or_default()[*kind] = true;
        }
        Ok(Ready {
            newcomer: is_ready[0],
            signal: is_ready[1],
            members: (0..self.members.len())
                .filter(|at| is_ready[2 + at])
                .collect(),
            spaces: spaces
                .into_iter()
                .map(|(id, ready)| (id.clone(), ready))
                .collect(),
        })
    }

    /// Takes whoever has connected.
    fn accept(&mut self) -> io::Result<()> {
        loop {
            let error = match channel::accept(&self.listener) {
                Ok(channel) => {
                    self.members.push(Member {
                        channel,
                        joined: None,
                    });
                    continue;
                }
                Err(error) => error,
            };
            match Errno::from_io_error(&error) {
                // Whoever it was has left, or there is no descriptor for a moment.
                Some(
                    Errno::WOULDBLOCK
                    | Errno::CONNABORTED
                    | Errno::MFILE
                    | Errno::NFILE
                    | Errno::INTR,
                ) => return Ok(()),
                _ if error.kind() == io::ErrorKind::PermissionDenied => {}
                _ => return Err(error),
            }
        }
    }

    /// Ends if nobody is connected or about to be. Its files go first: who waits for the lock
    /// starts another holder.
    fn ends(&mut self) -> io::Result<bool> {
        let lock = match try_lock_directory(&self.run) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            lock => lock?,
        };
        let Some(lock) = lock else {
            return Ok(false);
        };
        if identity(&lock.metadata()?) != self.identity {
            // The session's directories were made anew: nobody finds this process any more, and
            // what is there is another's.
            return Ok(true);
        }
        self.accept()?;
        if !self.members.is_empty() {
            return Ok(false);
        }
        self.spaces.clear();
        debug!("no container is in a network any more");
        let _ = fs::remove_file(socket_path(&self.run));
        if let Err(error) = fs::remove_dir_all(&self.run) {
            warn!(%error, "the directory of networks stays");
        }
        Ok(true)
    }

    /// Reaps orphans of coracle-net, and those that are not waited for.
    fn reap(&self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        namespaces::reap();
    }

    fn serve_spaces(&mut self, ready: Vec<(String, [bool; 3])>) {
        for (id, [anchor, helper, helper_ready]) in ready {
            if anchor {
                warn!("a network's anchor was killed");
                self.drop_space(&id);
                continue;
            }
            let Some(space) = self.spaces.get_mut(&id) else {
                continue;
            };
            if helper_ready {
                space.handle_ready();
            }
            if helper {
                space.handle_end(Instant::now());
            }
            if helper_ready {
                self.tell(&id);
            }
        }
    }

    /// Hangs up on the members of a network that is no more. They come back, and make it anew.
    fn drop_space(&mut self, id: &str) {
        let is_of = |member: &Member| {
            let joined = member.joined.as_ref();
            joined.is_some_and(|joined| joined.network == id)
        };
        self.members.retain(|member| !is_of(member));
        self.spaces.remove(id);
        self.tell_all();
    }

    fn serve_member(&mut self, at: usize) {
        let message = match self.members[at].channel.receive() {
            Ok(Some(message)) => message,
            Ok(None) => return self.remove(at),
            Err(error) => {
                warn!(%error, "a monitor is not understood");
                return self.remove(at);
            }
        };
        let answer = match message {
            (ToHolder::Join(join), descriptors) => self.join(at, *join, descriptors),
            (ToHolder::Publish(rules), sockets) => self.publish(at, &rules, sockets),
            (ToHolder::Leave { runs_on }, _) => {
                let left = self.leave(at, runs_on);
                // A container that has ended need not wait for the kernel.
                let _ = self.members[at].channel.send(&FromHolder::Done, &[]);
                return self.detach(left);
            }
        };
        let answer = answer.unwrap_or_else(FromHolder::Failed);
        if self.members[at].channel.send(&answer, &[]).is_err() {
            self.remove(at);
        }
    }

    fn join(
        &mut self,
        at: usize,
        join: Join,
        descriptors: Vec<OwnedFd>,
    ) -> Result<FromHolder, Failure> {
        let out_of_order = || Failure::runner("a monitor has asked for what cannot be");
        let Ok([user, network]) = <[OwnedFd; 2]>::try_from(descriptors) else {
            return Err(out_of_order());
        };
        if self.members[at].joined.is_some() {
            return Err(out_of_order());
        }
        let id = join.network.id.clone();
        if !self.spaces.contains_key(&id) {
            let space = Space::open(join.network.clone(), &self.run, &self.log)?;
            self.spaces.insert(id.clone(), space);
        }
        let joined = self.put_into(join, &Place { user, network });
        match joined {
            Ok(joined) => {
                let lease = joined.lease.clone();
                self.members[at].joined = Some(joined);
                // Whoever is in several networks sees the names of all.
                self.tell_all();
                Ok(FromHolder::Joined(lease))
            }
            Err(failure) => {
                self.drop_unused(&id);
                Err(failure)
            }
        }
    }

    fn put_into(&mut self, join: Join, place: &Place) -> Result<Joined, Failure> {
        let mut lease = grant(&join, &self.taken(&join)?)?;
        let id = &join.network.id;
        let space = self.spaces.get_mut(id).expect("made before");
        lease.resolvers = space.resolvers().to_vec();
        // An interface's name has 15 bytes.
        let interface = format!("v{}", join.container.short());
        space.attach(&interface, &lease, join.leads_out, place)?;
        debug!(container = join.container.short(), network = join.network.name, addresses = ?lease.addresses, "a container is in a network");
        Ok(Joined {
            network: id.clone(),
            container: join.container.to_string(),
            names: join.names,
            lease,
            interface,
            listeners: Vec::new(),
        })
    }

    /// Who has addresses of a network, or waits for them: members, containers whose monitors have
    /// not come back yet, and such as have asked for an address.
    fn taken(&self, join: &Join) -> Result<Vec<Taken>, Failure> {
        let of_members = self.joined(&join.network.id).flat_map(|joined| {
            let addresses = joined.lease.addresses.iter();
            addresses.map(|address| Taken {
                ip: address.ip,
                by: joined.names.first().cloned().unwrap_or_default(),
                runs: true,
            })
        });
        let mut taken: Vec<_> = of_members.collect();
        for container in self.store.list()?.containers {
            if container.id == join.container {
                continue;
            }
            let runs = container.is_alive();
            for attachment in &container.networks {
                let add = |ip: IpAddr, runs| Taken {
                    ip,
                    by: container.name.clone(),
                    runs,
                };
                if attachment.network == join.network.name {
                    taken.extend(attachment.ips.iter().map(|ip| add(*ip, false)));
                }
                let lease = attachment.lease.as_ref();
                let lease = lease.filter(|own| runs && own.network_id == join.network.id);
                let addresses = lease.into_iter().flat_map(|lease| &lease.addresses);
                taken.extend(addresses.map(|address| add(address.ip, true)));
            }
        }
        Ok(taken)
    }

    fn publish(
        &mut self,
        at: usize,
        rules: &[String],
        sockets: Vec<OwnedFd>,
    ) -> Result<FromHolder, Failure> {
        let Some(joined) = &mut self.members[at].joined else {
            return Err(Failure::runner(
                "a port is published before its container is there",
            ));
        };
        for (rule, socket) in rules.iter().zip(sockets) {
            let rule = rule
                .parse()
                .map_err(Failure::context("cannot read a published port"))?;
            let listener = Listener::adopt(&rule, socket);
            joined
                .listeners
                .push(listener.map_err(Failure::context("cannot take a published port over"))?);
        }
        let id = joined.network.clone();
        self.publish_all(&id)?;
        Ok(FromHolder::Done)
    }

    /// Who has hung up has left as well.
    fn remove(&mut self, at: usize) {
        let left = self.leave(at, false);
        self.members.remove(at);
        self.detach(left);
    }

    /// Returns what is left to be done without haste.
    fn leave(&mut self, at: usize, runs_on: bool) -> Option<Joined> {
        let joined = self.members[at].joined.take()?;
        debug!(
            container = joined.container,
            "a container has left a network"
        );
        let id = &joined.network;
        if let Some(space) = self.spaces.get_mut(id).filter(|_| runs_on) {
            space.detach(&joined.interface);
        }
        if !self.drop_unused(id)
            && let Err(failure) = self.publish_all(id)
        {
            warn!(%failure, "ports are not published");
        }
        self.tell_all();
        (!runs_on).then_some(joined)
    }

    /// Removes the interface of a container that has left, before another comes that may get its
    /// address: the kernel removes it with the container's namespace, but takes its time.
    fn detach(&mut self, left: Option<Joined>) {
        if let Some(joined) = left
            && let Some(space) = self.spaces.get_mut(&joined.network)
        {
            space.detach(&joined.interface);
        }
    }

    /// Ends a network that no container is in. Whether it has.
    fn drop_unused(&mut self, id: &str) -> bool {
        let is_unused = self.joined(id).next().is_none();
        if is_unused {
            self.spaces.remove(id);
        }
        is_unused
    }

    /// The containers in a network.
    fn joined(&self, id: &str) -> impl Iterator<Item = &Joined> {
        let joined = self.members.iter().filter_map(|own| own.joined.as_ref());
        joined.filter(move |joined| joined.network == id)
    }

    /// Tells a network all that it is to know.
    fn tell(&mut self, id: &str) {
        if let Err(failure) = self.publish_all(id) {
            warn!(%failure, "ports are not published");
        }
        let names = self.names_of(id);
        if let Some(space) = self.spaces.get_mut(id) {
            space.tell_names(names);
        }
    }

    fn tell_all(&mut self) {
        let ids: Vec<_> = self.spaces.keys().cloned().collect();
        for id in ids {
            let names = self.names_of(&id);
            if let Some(space) = self.spaces.get_mut(&id) {
                space.tell_names(names);
            }
        }
    }

    fn publish_all(&mut self, id: &str) -> Result<(), Failure> {
        let Some(space) = self.spaces.get_mut(id) else {
            return Ok(());
        };
        let joined = self.members.iter().filter_map(|own| own.joined.as_ref());
        let ports = joined
            .filter(|joined| joined.network == id)
            .flat_map(|joined| {
                let listeners = joined.listeners.iter();
                listeners.filter_map(|listener| {
                    let like = |ip: &IpAddr| ip.is_ipv4() == listener.host.is_ipv4();
                    let addresses = || joined.lease.addresses.iter().map(|address| address.ip);
                    let guest = addresses().find(like).or(addresses().next())?;
                    Some(Port { listener, guest })
                })
            });
        space.publish(&ports.collect::<Vec<_>>())
    }

    /// What a network answers for: the names of its containers to all of it; and to a container
    /// that is in other networks as well, the names of those.
    fn names_of(&self, id: &str) -> BTreeSet<Name> {
        let Some(space) = self.spaces.get(id) else {
            return BTreeSet::new();
        };
        let subnets = space.network.subnets.iter();
        let whole: Vec<_> = subnets.map(|own| own.subnet.to_string()).collect();
        let mut names = BTreeSet::new();
        if space.network.dns {
            for joined in self.joined(id) {
                names.extend(joined.told_to(&whole));
            }
        }
        for own in self.joined(id) {
            let addresses = own.lease.addresses.iter();
            let asker: Vec<_> = addresses
                .map(|address| Prefix::host(address.ip).to_string())
                .collect();
            for (other, space) in self.spaces.iter().filter(|(other, _)| *other != id) {
                let is_there = self
                    .joined(other)
                    .any(|joined| joined.container == own.container);
                if is_there && space.network.dns {
                    names.extend(self.joined(other).flat_map(|joined| joined.told_to(&asker)));
                }
            }
        }
        names
    }
}

impl Joined {
    /// Its names, for those who ask from one of `networks`.
    fn told_to<'a>(&'a self, networks: &'a [String]) -> impl Iterator<Item = Name> + 'a {
        self.names.iter().map(|name| Name {
            name: name.clone(),
            addresses: self.lease.addresses.iter().map(|own| own.ip).collect(),
            networks: networks.to_vec(),
        })
    }
}
