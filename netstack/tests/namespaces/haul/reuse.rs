//! Ports of promoted flows used again: the same tuple by the next connection, the remote's port
//! number by a server.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage};

use super::{Watched, ends_of};
use crate::harness::traffic::{
    EchoServer, accept, assert_echo, assert_end, connect, connect_from, listen, reset,
};
use crate::harness::{Family, World, eventually, full};
use crate::outbound::errno;

/// Who ends a flow, and how.
#[derive(Clone, Copy, Debug)]
pub enum Ender {
    GuestCloses,
    RemoteCloses,
    GuestResets,
    RemoteResets,
}

/// The guest connects from one port to one remote, again and again, right after the promoted flow
/// before has ended.
pub fn same_tuple(world: &mut World, ender: Ender) {
    let rounds = if full() { 200 } else { 20 };
    if let Ender::GuestCloses = ender {
        // Its own TIME-WAIT would keep the guest from its port for a minute (RFC 9293 3.6.1), with
        // or without us.
        world.guest.net.sysctl("ipv4/tcp_max_tw_buckets", "0");
    }
    let setup = world.helper().option("--promote=always");
    let helper = Watched::start(setup, &world.dir);
    let mut longest = Duration::ZERO;
    for family in Family::BOTH {
        let service = listen(&world.elsewhere, family.elsewhere(), 7);
        let source = (family.guest(), 40000).into();
        let address = service.local_addr().unwrap();
        for _ in 0..rounds {
            let began = Instant::now();
            let guest = connect_from(&world.guest.net, source, address);
            let (remote, _) = accept(&service);
            longest = longest.max(began.elapsed());
            helper.haul_pieces(&guest, &remote, 1000);
            end(guest, remote, ender);
        }
    }
    println!("{ender:?}: {longest:?} at most to connect again");
    eventually("no flow is left", Duration::from_secs(20), || {
        helper.flows().is_empty()
    });
}

/// Ends the connection, and makes sure that the other side sees it end so.
fn end(guest: TcpStream, remote: TcpStream, ender: Ender) {
    let (first, mut second) = match ender {
        Ender::GuestCloses | Ender::GuestResets => (guest, remote),
        Ender::RemoteCloses | Ender::RemoteResets => (remote, guest),
    };
    match ender {
        Ender::GuestCloses | Ender::RemoteCloses => {
            drop(first);
            assert_end(&mut second);
        }
        Ender::GuestResets | Ender::RemoteResets => {
            reset(first);
            let error = second.read(&mut [0]).expect_err("a reset is not an end");
            assert_eq!(errno(&error), Some(Errno::ECONNRESET), "{error}");
        }
    }
}

/// The socket of a promoted flow has the remote's address and port, and lives in the guest's
/// namespace. A server of the guest that wants this port number on all addresses can have it if it
/// sets SO_REUSEADDR, as nearly all do; without, it fails with EADDRINUSE for as long as the flow
/// lives, as it would beside a connection of its own. On the guest's own address nothing is in its
/// way.
pub fn same_port_number(world: &mut World) {
    const PORT: u16 = 7000;
    let setup = world.helper().publish(&format!("8080:{PORT}"));
    let helper = Watched::start(setup.option("--promote=always"), &world.dir);
    for family in Family::BOTH {
        let service = listen(&world.elsewhere, family.elsewhere(), PORT);
        let guest = connect(&world.guest.net, service.local_addr().unwrap());
        let (remote, _) = accept(&service);
        helper.haul(&guest, &remote);

        let bind = |address: SocketAddr| world.guest.net.run(|| bind_exclusively(address));
        assert_eq!(
            bind((family.unspecified(), PORT).into()),
            Err(Errno::EADDRINUSE)
        );
        assert_eq!(bind((family.guest(), PORT).into()), Ok(()));
        // The standard library sets SO_REUSEADDR.
        let listener = world
            .guest
            .net
            .run(|| TcpListener::bind((family.unspecified(), PORT)));
        drop(listener.expect("a server with SO_REUSEADDR"));
        let _server = EchoServer::start(&world.guest.net, family.unspecified(), PORT);
        for (netns, address) in [
            (&world.guest.net, family.guest()),
            (&world.guest.net, family.loopback()),
        ] {
            assert_echo(&mut connect(netns, (address, PORT).into()), b"from inside");
        }
        let mut client = connect(&world.elsewhere, (family.host(), 8080).into());
        assert_echo(&mut client, b"from outside");

        assert!(helper.is_promoted(ends_of(&guest)));
        helper.haul_pieces(&guest, &remote, 1000);
        drop((guest, remote, _server, client));
        eventually("the port is free", Duration::from_secs(20), || {
            helper.flows().is_empty()
        });
    }
}

/// Binds a TCP socket without SO_REUSEADDR and listens.
fn bind_exclusively(address: SocketAddr) -> Result<(), Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = nix::sys::socket::socket(family, SockType::Stream, flags, None)?;
    nix::sys::socket::bind(
        std::os::fd::AsRawFd::as_raw_fd(&socket),
        &SockaddrStorage::from(address),
    )?;
    nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::new(1)?)
}
