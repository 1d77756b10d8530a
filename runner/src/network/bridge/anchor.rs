//! The process that keeps a network's namespaces, and is in them: it makes the bridge, and then
//! waits for the end. In an internal network, which has no coracle-net, it answers for the names of
//! containers as well.
//!
//! It is a copy of the holder, in a user namespace of its own, which it is root of; on the host it
//! is the user, or for the host's root somebody who is nobody else.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};

use netstack::core::dns::{Carrier, DNS_PORT, HostNames, answer, failure};
use netstack::guest::Links;
use rustix::event::PollFlags;
use rustix::process::Signal;
use rustix::thread::ThreadNameSpaceType;

use super::Mac;
use super::messages::{FromAnchor, ToAnchor};
use crate::failure::Failure;
use crate::isolation::idmap::IdMaps;
use crate::isolation::namespaces::{self, Fork, become_root};
use crate::network::store::BridgeNetwork;
use crate::poll;
use crate::process::channel::{self, Channel};
use crate::sys::{Child, NewNamespaces};

/// A network's namespaces, from outside.
#[derive(Debug)]
pub struct Anchor {
    child: Child,
    channel: Channel<ToAnchor, FromAnchor>,
}

/// The bridge, in a namespace where there is no other.
const BRIDGE: &str = "bridge0";

impl Anchor {
    /// Makes the namespaces of `network` and its bridge. Returns the bridge's index, and a route
    /// socket of the namespace.
    pub fn start(network: &BridgeNetwork) -> Result<(Self, u32, Links), Failure> {
        let (mut maps, _) = IdMaps::discover(false)?;
        if !maps.root_is_another() {
            // Nobody but its root is ever in there.
            maps = IdMaps::single();
        }
        let (ours, theirs) = channel::pair::<ToAnchor, FromAnchor>()?;
        let others = NewNamespaces::of(ThreadNameSpaceType::NETWORK);
        match namespaces::fork_into_user_namespace(&maps, others, None)? {
            Fork::Child => {
                let theirs = OwnedFd::from(theirs);
                netstack::sys::close_descriptors(3, theirs.as_fd());
                live(&Channel::from_socket(theirs), network);
                std::process::exit(0)
            }
            Fork::Parent(held) => {
                drop(theirs);
                let anchor = Self {
                    child: held.release()?,
                    channel: ours,
                };
                let killed = || Failure::runner("the anchor of the network was killed");
                match anchor.channel.receive()? {
                    Some((FromAnchor::Ready { bridge }, mut sockets)) => {
                        let links = Links::adopt(sockets.pop().ok_or_else(killed)?);
                        Ok((anchor, bridge, links))
                    }
                    Some((FromAnchor::Failed(why), _)) => Err(Failure::runner(why)),
                    None => Err(killed()),
                }
            }
        }
    }

    pub fn pid(&self) -> rustix::process::Pid {
        self.child.pid
    }

    /// Readable when it has ended.
    pub fn pidfd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.child.pidfd.as_fd()
    }

    /// The names that it is to answer for, in the form of `--host-name`.
    pub fn tell_names(&self, names: &[String]) -> Result<(), Failure> {
        /// Some bytes of each, and a message has 32 KiB.
        const PER_MESSAGE: usize = 64;
        let chunks = names.chunks(PER_MESSAGE).map(<[String]>::to_vec);
        let chunks: Vec<_> = match names.is_empty() {
            true => vec![Vec::new()],
            false => chunks.collect(),
        };
        for (number, names) in chunks.into_iter().enumerate() {
            let first = number == 0;
            self.channel.send(&ToAnchor::Names { first, names }, &[])?;
        }
        Ok(())
    }
}

impl Drop for Anchor {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = rustix::process::pidfd_send_signal(&self.child.pidfd, Signal::KILL);
        let _ = namespaces::wait_for(self.child.pid);
    }
}

/// The process itself.
fn live(holder: &Channel<FromAnchor, ToAnchor>, network: &BridgeNetwork) {
    match prepare(network) {
        Ok((bridge, links, resolver)) => {
            let ready = FromAnchor::Ready { bridge };
            if holder.send(&ready, &[links.as_fd()]).is_ok() {
                drop(links);
                serve(holder, resolver.as_ref());
            }
        }
        // The holder may be gone, and then nobody asks.
        Err(why) => drop(holder.send(&FromAnchor::Failed(why), &[])),
    }
}

fn prepare(network: &BridgeNetwork) -> Result<(u32, Links, Option<Resolver>), String> {
    let begin = || -> io::Result<()> {
        become_root()?;
        // The holder's end is this one's. A holder that has ended before has hung up.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        rustix::thread::set_name(c"coracle-bridge")?;
        Ok(())
    };
    begin().map_err(|error| format!("cannot keep the network {}: {error}", network.name))?;
    let own = network.subnets.iter();
    let own: Vec<_> = own
        .filter_map(|subnet| Some((subnet.own()?, subnet.subnet.len)))
        .collect();
    let first = own.first().map(|(ip, _)| Mac::of(*ip));
    let Mac(mac) = first.ok_or_else(|| format!("the network {} has no subnet", network.name))?;
    let mut links = Links::open().map_err(|error| error.to_string())?;
    let bridge = links
        .add_bridge(BRIDGE, mac, network.mtu.map(u32::from), &own)
        .map_err(|error| error.to_string())?;
    let resolver = match network.internal && network.dns {
        true => Some(Resolver::open(own.iter().map(|(ip, _)| *ip))),
        false => None,
    };
    let resolver = resolver
        .transpose()
        .map_err(|error| format!("cannot answer for names: {error}"))?;
    Ok((bridge, links, resolver))
}

/// Until the holder has ended.
fn serve(holder: &Channel<FromAnchor, ToAnchor>, resolver: Option<&Resolver>) {
    let mut names = HostNames::default();
    loop {
        let sockets = resolver.map_or(&[][..], |resolver| &resolver.sockets);
        let socket = |at: usize| Some((sockets.get(at)?.as_fd(), PollFlags::IN));
        let interests = [Some((holder.as_fd(), PollFlags::IN)), socket(0), socket(1)];
        let Ok(Some([told, first, second])) = poll::wait(interests, None) else {
            return;
        };
        for (socket, _) in sockets.iter().zip([first, second]).filter(|(_, is)| *is) {
            answer_one(socket, &names);
        }
        if told {
            match holder.receive() {
                Ok(Some((ToAnchor::Names { first, names: new }, _))) => {
                    if first {
                        names = HostNames::default();
                    }
                    for name in new.iter().filter_map(|name| name.parse().ok()) {
                        // Beyond the limit of names, which no user's containers reach.
                        let _ = names.add(name);
                    }
                }
                Ok(None) | Err(_) => return,
            }
        }
    }
}

/// Answers containers of an internal network for their names, over UDP: what is known here fits
/// into a datagram.
struct Resolver {
    sockets: Vec<UdpSocket>,
}

impl Resolver {
    fn open(own: impl Iterator<Item = IpAddr>) -> io::Result<Self> {
        let open = |ip| {
            let socket = UdpSocket::bind(SocketAddr::new(ip, DNS_PORT))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        Ok(Self {
            sockets: own.map(open).collect::<io::Result<_>>()?,
        })
    }
}

/// Names that nobody here has, nobody has.
fn answer_one(socket: &UdpSocket, names: &HostNames) {
    const QUERY_LEN_MAX: usize = 1232;
    /// Answers in the header's last octet of flags, RFC 1035 4.1.1.
    const RCODE: u8 = 0x0f;
    const SERVFAIL: u8 = 2;
    const NXDOMAIN: u8 = 3;
    let mut query = [0; QUERY_LEN_MAX];
    let Ok((len, asker)) = socket.recv_from(&mut query) else {
        return;
    };
    let query = &query[..len];
    let answer = answer(query, Carrier::Udp, names, asker.ip()).or_else(|| {
        let mut answer = failure(query)?;
        if let Some(flags) = answer
            .get_mut(3)
            .filter(|flags| **flags & RCODE == SERVFAIL)
        {
            *flags = *flags & !RCODE | NXDOMAIN;
        }
        Some(answer)
    });
    if let Some(answer) = answer {
        // A container that does not listen any more.
        let _ = socket.send_to(&answer, asker);
    }
}
