//! The published ports: their sockets on the host, and when they are listened to. What arrives on
//! them is taken by `streams` and `datagrams`.
//!
//! A port may be published at any time, before the loop runs or later. Its id is given out once:
//! what still names a port that is gone, such as an event, finds nothing.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use portfwd::{Endpoint, Protocol};
use rustix::net::sockopt;

use super::pause::Pause;
use super::poller::{Interest, ListenerId, Poller, Token};
use crate::core::{Instant, Service};
use crate::forwards::OpenPort;
use crate::host::{KEEPALIVE, LocalLeg, UdpSocket};

/// The published ports.
#[derive(Default)]
pub struct Listeners {
    published: BTreeMap<ListenerId, Published>,
    /// How many there have ever been.
    added: u64,
    local_leg: LocalLeg,
    /// There are as many connections as may be, or no descriptor for one more: nobody is accepted,
    /// and who connects waits in the kernel's queue. A listener is never closed for that.
    pause: Pause,
}

/// A published port's socket.
pub enum Published {
    Tcp { lead: Lead, socket: OwnedFd },
    Udp { lead: Lead, socket: Arc<UdpSocket> },
}

/// Where a port leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lead {
    /// A socket on the host, to a service of the guest's.
    Guest(Service),
    /// A socket in the guest, to a service on the host. No address is the host's loopback.
    Host(Service),
}

impl Listeners {
    /// No port yet; clients on this machine get `local_leg`.
    pub fn new(local_leg: LocalLeg) -> Self {
        Self {
            local_leg,
            ..Self::default()
        }
    }

    /// Publishes a port of the guest's from now on. Who has connected to it before is accepted,
    /// too.
    pub fn add(&mut self, poller: &Poller, port: OpenPort) -> io::Result<ListenerId> {
        self.add_leading(poller, &port.endpoint, port.socket, Lead::Guest(port.to))
    }

    /// As [`Listeners::add`]: `socket` is at `endpoint` and leads to `lead`.
    pub fn add_leading(
        &mut self,
        poller: &Poller,
        endpoint: &Endpoint,
        socket: OwnedFd,
        lead: Lead,
    ) -> io::Result<ListenerId> {
        let published = match endpoint.protocol {
            Protocol::Tcp => {
                // Accepted sockets inherit all of it.
                let _ = sockopt::set_tcp_nodelay(&socket, true);
                let _ = KEEPALIVE.set(&socket);
                self.local_leg.begin(&socket);
                Published::Tcp { lead, socket }
            }
            Protocol::Udp => {
                let socket = Arc::new(UdpSocket::adopt(socket, endpoint.addr)?);
                Published::Udp { lead, socket }
            }
        };
        let interest = match published {
            Published::Tcp { .. } if self.pause.is_on() => Interest::HangUp,
            Published::Tcp { .. } | Published::Udp { .. } => Interest::Readable,
        };
        let id = ListenerId(self.added);
        poller.add(&published, Token::Listener(id), interest)?;
        self.published.insert(id, published);
        self.added += 1;
        Ok(id)
    }

    /// Publishes the port no more: it is free at once. Connections that were accepted go on; who
    /// waits to be, is turned away, and datagrams have no way any more.
    pub fn remove(&mut self, id: ListenerId) {
        // Closing the socket takes it out of the poller.
        self.published.remove(&id);
    }

    /// Lets a port lead to another service from now on, for who has not come yet.
    pub fn redirect(&mut self, id: ListenerId, to: Lead) {
        if let Some(Published::Tcp { lead, .. } | Published::Udp { lead, .. }) =
            self.published.get_mut(&id)
        {
            *lead = to;
        }
    }

    /// `None` for a port that is no longer published.
    pub fn get(&self, id: ListenerId) -> Option<&Published> {
        self.published.get(&id)
    }

    pub fn is_paused(&self) -> bool {
        self.pause.is_on()
    }

    /// Accepts nobody for a moment.
    pub fn pause(&mut self, poller: &Poller, now: Instant) {
        self.pause.begin(now);
        self.set_interest(poller, Interest::HangUp);
    }

    /// Accepts again if the pause is over: a descriptor may be free by now.
    pub fn resume(&mut self, poller: &Poller, now: Instant) {
        if self.pause.is_over(now) {
            match self.set_interest(poller, Interest::Readable) {
                true => self.pause.end(),
                false => self.pause.begin(now),
            }
        }
    }

    /// For TCP: a datagram of a client needs no descriptor.
    fn set_interest(&self, poller: &Poller, interest: Interest) -> bool {
        self.published
            .iter()
            .filter(|(_, published)| matches!(published, Published::Tcp { .. }))
            .all(|(id, published)| {
                let token = Token::Listener(*id);
                poller.change(published, token, interest).is_ok()
            })
    }
}

impl AsFd for Published {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp { socket, .. } => socket.as_fd(),
            Self::Udp { socket, .. } => socket.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpStream, UdpSocket as Client};

    use super::*;
    use crate::core::Duration;

    /// A port of the host's loopback that the kernel chooses, for port 80 of the guest.
    fn bind(protocol: &str) -> (OpenPort, SocketAddr) {
        let rule = format!("127.0.0.1:0:80/{protocol}").parse().unwrap();
        let listener = portfwd::publish::bind(&rule).unwrap().remove(0);
        let address = listener.host;
        (listener.into(), address)
    }

    /// Which ports somebody has come to.
    fn visited(poller: &mut Poller) -> Vec<ListenerId> {
        let mut events = Vec::new();
        let at_once = Some(Duration::ZERO);
        poller.wait(at_once, &mut events).unwrap();
        events
            .iter()
            .map(|event| match event.token {
                Token::Listener(id) => id,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn ports_are_added_one_by_one_and_told_apart() {
        let mut poller = Poller::new().unwrap();
        let mut listeners = Listeners::default();
        let (tcp, tcp_address) = bind("tcp");
        let (udp, udp_address) = bind("udp");
        let tcp = listeners.add(&poller, tcp).unwrap();
        assert_eq!(visited(&mut poller), []);
        let client = TcpStream::connect(tcp_address).unwrap();
        assert_eq!(visited(&mut poller), [tcp]);

        // While the first one is at work.
        let udp = listeners.add(&poller, udp).unwrap();
        let other = Client::bind("127.0.0.1:0").unwrap();
        other.send_to(b"?", udp_address).unwrap();
        let mut both = visited(&mut poller);
        both.sort_unstable();
        assert_eq!(both, [tcp, udp]);
        assert!(matches!(
            listeners.get(udp),
            Some(Published::Udp {
                lead: Lead::Guest(Service { port: 80, .. }),
                ..
            })
        ));
        assert!(listeners.get(ListenerId(2)).is_none());
        drop(client);
    }

    #[test]
    fn a_port_that_is_removed_is_free_and_its_connections_go_on() {
        let mut poller = Poller::new().unwrap();
        let mut listeners = Listeners::default();
        let (tcp, address) = bind("tcp");
        let first = listeners.add(&poller, tcp).unwrap();
        let client = TcpStream::connect(address).unwrap();
        let Some(Published::Tcp { socket, .. }) = listeners.get(first) else {
            panic!("it is published");
        };
        let accepted = rustix::net::accept(socket).unwrap();
        listeners.remove(first);
        assert!(listeners.get(first).is_none());
        let rule = format!("{address}:80").parse().unwrap();
        let tcp = portfwd::publish::bind(&rule).unwrap().remove(0);
        let second = listeners.add(&poller, tcp.into()).unwrap();
        assert_ne!(first, second);
        assert_eq!(visited(&mut poller), []);
        rustix::io::write(&accepted, b"x").unwrap();
        assert_eq!(rustix::io::read(&client, &mut [0; 2]), Ok(1));
    }

    /// When there is no descriptor for one more client, neither is there for those of a new port.
    #[test]
    fn a_port_that_is_added_during_a_pause_waits_for_its_end() {
        let mut poller = Poller::new().unwrap();
        let mut listeners = Listeners::default();
        listeners.pause(&poller, Instant::ZERO);
        let (tcp, address) = bind("tcp");
        let tcp = listeners.add(&poller, tcp).unwrap();
        let _client = TcpStream::connect(address).unwrap();
        assert_eq!(visited(&mut poller), []);
        listeners.resume(&poller, Instant::ZERO);
        assert!(listeners.is_paused());
        listeners.resume(&poller, Instant::from_secs(1));
        assert!(!listeners.is_paused());
        assert_eq!(visited(&mut poller), [tcp]);
    }
}
