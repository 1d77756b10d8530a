//! The host sockets of all flows, by flow id, and the stream half that the core reads and writes.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Weak;

use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

use super::kernel_flow::KernelFlow;
use super::query_stream::QueryStream;
use crate::core::dns::NamedQueries;
use crate::core::flow::FlowId;
use crate::core::tcp::HostStream;
use crate::host::{PingSocket, UdpSocket};

/// What a flow talks through on the host.
pub enum HostSocket {
    /// A stream whose connect is under way.
    Dialling(OwnedFd),
    Stream(Stream),
    /// To a resolver, or to none: names of the engine answer some of the guest's queries.
    Queries(Box<QueryStream>),
    /// Both sockets of a flow that the kernel carries.
    Promoted(KernelFlow),
    Udp(UdpSocket),
    Ping(PingSocket),
    /// A client of a published UDP port.
    PublishedUdp(Visited),
}

/// The socket of a published port, which all its clients share as long as the port is published.
#[derive(Clone)]
pub struct Visited {
    pub port: Weak<UdpSocket>,
    /// Which of its addresses the client has asked, and is answered from.
    pub asked: SocketAddr,
}

impl HostSocket {
    pub fn stream(socket: OwnedFd) -> Self {
        Self::Stream(Stream(socket))
    }

    /// A stream that was connected for the guest, which may carry `queries`.
    pub fn dialled(socket: OwnedFd, queries: Option<NamedQueries>) -> Self {
        match queries {
            None => Self::stream(socket),
            Some(queries) => {
                Self::Queries(Box::new(QueryStream::new(queries, Some(Stream(socket)))))
            }
        }
    }
}

/// Sockets by flow. A slot's generation is the flow's, so that a late event finds nothing.
#[derive(Default)]
pub struct HostSockets {
    slots: Vec<Option<(u32, HostSocket)>>,
}

impl HostSockets {
    pub fn insert(&mut self, id: FlowId, socket: HostSocket) {
        let index = id.index as usize;
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index] = Some((id.generation, socket));
    }

    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut HostSocket> {
        match self.slots.get_mut(id.index as usize)? {
            Some((generation, socket)) if *generation == id.generation => Some(socket),
            _ => None,
        }
    }

    /// The sockets of UDP mappings.
    pub fn udp(&self) -> impl Iterator<Item = &UdpSocket> {
        self.slots
            .iter()
            .flatten()
            .filter_map(|(_, socket)| match socket {
                HostSocket::Udp(socket) => Some(socket),
                _ => None,
            })
    }

    pub fn remove(&mut self, id: FlowId) -> Option<HostSocket> {
        self.get_mut(id)?;
        self.slots[id.index as usize]
            .take()
            .map(|(_, socket)| socket)
    }
}

/// A connected, non-blocking TCP socket.
pub struct Stream(pub OwnedFd);

impl Stream {
    /// Closes with RST instead of FIN.
    pub fn reset(self) {
        // If the option fails the remote gets a FIN, which is the next best.
        let _ = rustix::net::sockopt::set_socket_linger(&self.0, Some(std::time::Duration::ZERO));
    }
}

impl HostStream for Stream {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(retry_on_intr(|| {
            rustix::net::recv(self.0.as_fd(), &mut *buffer, RecvFlags::DONTWAIT).map(|(n, _)| n)
        })?)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(retry_on_intr(|| {
            rustix::net::send(self.0.as_fd(), bytes, flags)
        })?)
    }

    fn finish(&mut self) {
        // ENOTCONN: the remote has reset the connection, which the next read tells.
        let _ = rustix::net::shutdown(&self.0, Shutdown::Write);
    }
}
