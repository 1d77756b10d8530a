//! The published ports' sockets on the host, and when they are listened to. What arrives on them is
//! taken by `streams` and `datagrams`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use portfwd::{Listener, Protocol};
use rustix::net::sockopt;
use tracing::warn;

use super::poller::{Interest, Poller, Token};
use super::scarcity::Pause;
use crate::core::Instant;
use crate::host::{KEEPALIVE, UdpSocket};

/// The published ports.
pub struct Listeners {
    listeners: Vec<Published>,
    /// There are as many connections as may be, or no descriptor for one more: nobody is accepted,
    /// and who connects waits in the kernel's queue. A listener is never closed for that.
    pause: Pause,
}

/// A published port's socket.
pub enum Published {
    Tcp { guest_port: u16, socket: OwnedFd },
    Udp { guest_port: u16, socket: UdpSocket },
}

impl Listeners {
    pub fn new(listeners: Vec<Listener>) -> Listeners {
        let listeners = listeners
            .into_iter()
            .filter_map(|listener| match listener.protocol {
                Protocol::Tcp => {
                    // Accepted sockets inherit both.
                    let _ = sockopt::set_tcp_nodelay(&listener.socket, true);
                    let _ = KEEPALIVE.set(&listener.socket);
                    Some(Published::Tcp {
                        guest_port: listener.guest_port,
                        socket: listener.socket,
                    })
                }
                Protocol::Udp => match UdpSocket::adopt(listener.socket, listener.host) {
                    Ok(socket) => Some(Published::Udp {
                        guest_port: listener.guest_port,
                        socket,
                    }),
                    Err(error) => {
                        warn!(address = %listener.host, %error, "cannot publish this UDP port");
                        None
                    }
                },
            })
            .collect();
        Listeners {
            listeners,
            pause: Pause::default(),
        }
    }

    pub fn watch(&self, poller: &Poller) -> io::Result<()> {
        for (index, listener) in self.listeners.iter().enumerate() {
            poller.add(listener, Token::Listener(index as u32), Interest::Readable)?;
        }
        Ok(())
    }

    pub fn is_paused(&self) -> bool {
        self.pause.is_on()
    }

    pub fn get(&self, index: u32) -> Option<&Published> {
        self.listeners.get(index as usize)
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

    pub fn pause(&mut self, poller: &Poller, now: Instant) {
        self.pause.begin(now);
        self.set_interest(poller, Interest::HangUp);
    }

    /// For TCP: a datagram of a client needs no descriptor.
    fn set_interest(&self, poller: &Poller, interest: Interest) -> bool {
        let listeners = self.listeners.iter().enumerate();
        listeners
            .filter(|(_, listener)| matches!(listener, Published::Tcp { .. }))
            .all(|(index, listener)| {
                let token = Token::Listener(index as u32);
                poller.change(listener, token, interest).is_ok()
            })
    }
}

impl AsFd for Published {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Published::Tcp { socket, .. } => socket.as_fd(),
            Published::Udp { socket, .. } => socket.as_fd(),
        }
    }
}
