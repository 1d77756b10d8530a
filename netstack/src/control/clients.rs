//! Clients of a Unix socket: a bounded number at a time, none of whom delays the helper. Further
//! ones wait in the kernel's backlog.
//!
//! One descriptor stands for all of them. It is readable when a client can go on, or when a new one
//! can be taken.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tracing::debug;

/// Clients at a time.
pub const MAX_CLIENTS: usize = 16;
/// Which descriptor an event is of is not asked.
const UNTOLD: EventData = EventData::new_u64(0);

/// What is kept of each client is a `C`.
#[derive(Debug)]
pub struct Clients<C> {
    listener: UnixListener,
    /// Knows the clients, and the listener while there is room for another one.
    epoll: OwnedFd,
    knows_listener: bool,
    clients: Vec<C>,
}

impl<C> Clients<C> {
    /// `listener` must not block.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, UNTOLD, EventFlags::IN)?;
        Ok(Self {
            listener,
            epoll,
            knows_listener: true,
            clients: Vec::new(),
        })
    }

    /// Takes those who wait, as long as there is room, and waits for `interest` of theirs. `begin`
    /// makes of a stream, which does not block, what is kept of the client; `None` if it is done
    /// with already.
    ///
    /// Fails when there is no descriptor for a client, who waits: until there is one, the
    /// descriptor stays readable.
    pub fn accept(
        &mut self,
        interest: EventFlags,
        mut begin: impl FnMut(UnixStream) -> Option<C>,
    ) -> io::Result<()> {
        let mut result = Ok(());
        while self.clients.len() < MAX_CLIENTS {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            };
            if stream.set_nonblocking(true).is_ok()
                && epoll::add(&self.epoll, &stream, UNTOLD, interest).is_ok()
            {
                self.clients.extend(begin(stream));
            }
        }
        self.watch_listener();
        result
    }

    /// Goes on with each client: `keep` says whether it is to stay, and may change what it is
    /// waited for by [`Watch::wait_for`].
    pub fn retain(&mut self, mut keep: impl FnMut(&mut C, Watch<'_>) -> bool) {
        let watch = Watch(self.epoll.as_fd());
        self.clients.retain_mut(|client| keep(client, watch));
        self.watch_listener();
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &C> {
        self.clients.iter()
    }

    fn watch_listener(&mut self) {
        let has_room = self.clients.len() < MAX_CLIENTS;
        let changed = match (self.knows_listener, has_room) {
            (false, true) => epoll::add(&self.epoll, &self.listener, UNTOLD, EventFlags::IN),
            (true, false) => epoll::delete(&self.epoll, &self.listener),
            _ => return,
        };
        match changed {
            Ok(()) => self.knows_listener = has_room,
            Err(error) => debug!("cannot watch for new clients of a socket: {error}"),
        }
    }
}

impl<C> AsFd for Clients<C> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// What is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Watch<'a>(BorrowedFd<'a>);

impl Watch<'_> {
    /// Waits for `interest` of a client's stream instead of what was waited for so far.
    pub fn wait_for(self, stream: &UnixStream, interest: EventFlags) {
        if let Err(error) = epoll::modify(self.0, stream, UNTOLD, interest) {
            debug!("cannot watch a client of a socket: {error}");
        }
    }
}

/// Sends what the socket takes; false once all is sent or nobody is there.
pub fn send(stream: &mut UnixStream, unsent: &mut Vec<u8>) -> bool {
    while !unsent.is_empty() {
        match stream.write(unsent) {
            Ok(len) => drop(unsent.drain(..len)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
    false
}

/// Takes what is there, until `received` has `most` bytes; false at the end.
pub fn receive(stream: &UnixStream, received: &mut Vec<u8>, most: usize) -> io::Result<bool> {
    receive_handed(stream, received, most, &mut None)
}

/// As [`receive`]; a descriptor that comes along takes the place of `handed`.
pub fn receive_handed(
    stream: &UnixStream,
    received: &mut Vec<u8>,
    most: usize,
    handed: &mut Option<OwnedFd>,
) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    // There is no room for more than one: the kernel closes the others.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    while received.len() < most {
        let room = buffer.len().min(most - received.len());
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut buffer[..room])];
        match recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) if message.bytes == 0 => return Ok(false),
            Ok(message) => {
                for rights in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(sockets) = rights {
                        *handed = sockets.last().or(handed.take());
                    }
                }
                received.extend_from_slice(&buffer[..message.bytes]);
            }
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(true)
}
