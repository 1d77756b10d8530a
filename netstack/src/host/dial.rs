//! Connecting to where the guest wants to go, and what a failure means to it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::errno::unreachable_by;
use super::{KEEPALIVE, Outbound};
use crate::core::DialError;
use crate::core::icmp::Unreachable;

/// How far a dial has come.
pub enum Dial {
    Connected(OwnedFd),
    /// The socket becomes writable when the outcome is known; ask [`outcome`] then.
    UnderWay(OwnedFd),
}

/// A socket to connect to `remote`, from an address of `outbound`.
pub fn socket_for(remote: SocketAddr, outbound: Outbound) -> io::Result<OwnedFd> {
    let family = match remote {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // The guest's kernel has already decided how to cut its stream into segments.
    let _ = sockopt::set_tcp_nodelay(&socket, true);
    let _ = KEEPALIVE.set(&socket);
    outbound.bind(&socket, remote.ip())?;
    Ok(socket)
}

/// Starts a non-blocking connect to `remote`. Over loopback it often has succeeded on return.
pub fn dial(socket: OwnedFd, remote: SocketAddr) -> Result<Dial, DialError> {
    match rustix::net::connect(&socket, &remote) {
        Ok(()) => Ok(Dial::Connected(socket)),
        Err(Errno::INPROGRESS) => Ok(Dial::UnderWay(socket)),
        Err(error) => Err(dial_error(error.into())),
    }
}

/// How a dial ended that was under way.
pub fn outcome(socket: impl AsFd) -> Result<(), DialError> {
    match sockopt::socket_error(socket) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) | Err(error) => Err(dial_error(error.into())),
    }
}

/// What the guest is told of a failed connect.
pub fn dial_error(error: io::Error) -> DialError {
    let errno = error.raw_os_error().unwrap_or(0);
    match unreachable_by(errno) {
        Some(Unreachable::Port) => DialError::Refused,
        None if errno == libc::ECONNRESET => DialError::Refused,
        Some(why) => DialError::Unreachable(why),
        // ETIMEDOUT: nobody answered us, nobody answers the guest. EMFILE, ENFILE, ENOBUFS, ENOMEM:
        // it may try again.
        None => DialError::Silent,
    }
}
