//! A guest with its tap and what moves connections, and what the two ends of a connection say to
//! each other.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::peer::{Peer, REMOTE_MAC};
use crate::core::flow::Endpoints;
use crate::core::tcp::Snapshot;
use crate::device::Tap;
use crate::guest::promotion::repair::{RepairError, RepairSocket};
use crate::guest::promotion::socket_pool::{FreshSocket, SocketPool};
use crate::guest::promotion::socket_table::SocketTable;
use crate::guest::promotion::{Access, Gate, Reach, is_closed};
use crate::guest::{GuestThread, InterfaceSettings, configure};
use crate::netlink::Netlink;
use crate::network::Network;
use crate::sandbox;

pub const REMOTES: [&str; 2] = ["198.51.100.7:443", "[2001:db8::7]:443"];
pub const MIB: usize = 1 << 20;

/// A guest, its remotes, and what moves connections.
pub struct World {
    pub guest: GuestThread,
    pub peer: Peer,
    pub gate: Gate,
    pub pool: SocketPool,
    pub table: SocketTable,
}

impl World {
    /// In the calling thread's network namespace.
    pub fn new(mtu: u32) -> Self {
        let tap = Tap::open("tap0").unwrap();
        let gateways: (Ipv4Addr, Ipv6Addr) = ([10, 0, 2, 2].into(), "fd00::2".parse().unwrap());
        let settings = InterfaceSettings {
            name: "tap0".to_owned(),
            mtu: Some(mtu),
            mac: None,
            network: Network::default(),
        };
        assert!(configure(&settings).unwrap());
        add_neighbour(gateways.0.into());
        add_neighbour(gateways.1.into());
        let mut access = Access::open("tap0", true).unwrap();
        let network = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
        let guest = GuestThread::spawn(network.into()).unwrap();
        // As little as the helper keeps.
        let confine = || sandbox::keep_only(sandbox::Kept::Network);
        confine().unwrap();
        guest.run(confine).unwrap().unwrap();
        access.diversions.set_up().unwrap();
        access.gate.install().unwrap();
        Self {
            peer: Peer::start(tap, mtu),
            gate: access.gate,
            pool: SocketPool::new(128),
            table: access.table,
            guest,
        }
    }

    pub fn fresh_socket(&mut self, endpoints: &Endpoints) -> FreshSocket {
        let ipv6 = endpoints.remote().is_ipv6();
        self.pool.take(&self.guest, ipv6).unwrap()
    }

    /// The whole hand-over.
    pub fn promote(&mut self, endpoints: &Endpoints) -> TcpStream {
        let socket = self.fresh_socket(endpoints);
        self.promote_with(socket, endpoints)
    }

    pub fn promote_with(&mut self, socket: FreshSocket, endpoints: &Endpoints) -> TcpStream {
        self.peer.mute(endpoints);
        let snapshot = self.peer.snapshot(endpoints);
        let socket = restore(socket, &snapshot).unwrap();
        self.peer.hand_over(endpoints);
        self.gate.add(*endpoints, Reach::Own).unwrap();
        let socket = socket.leave().unwrap();
        self.peer.acknowledge(endpoints);
        stream(socket)
    }

    /// What follows the end of a promoted connection.
    pub fn forget(&mut self, endpoints: &Endpoints, server: TcpStream) -> bool {
        let start = Instant::now();
        while !is_closed(&server).unwrap() {
            assert!(start.elapsed() < DEADLINE, "{endpoints} does not close");
            thread::sleep(Duration::from_millis(1));
        }
        self.gate.remove(*endpoints).unwrap();
        drop(server);
        let was_time_wait = self.table.forget(endpoints).unwrap();
        self.peer.forget(endpoints);
        was_time_wait
    }
}

/// Of one of the guest's own connections, which no one translates.
pub fn restore(socket: FreshSocket, snapshot: &Snapshot) -> Result<RepairSocket, RepairError> {
    RepairSocket::restore(socket, snapshot.endpoints, Reach::Own, snapshot)
}

pub fn stream(socket: OwnedFd) -> TcpStream {
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false).unwrap();
    limit(&stream);
    stream
}

/// No test hangs.
pub fn limit(stream: &TcpStream) {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
}

pub fn add_neighbour(gateway: IpAddr) {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = nix::net::if_::if_nametoindex("tap0").unwrap();
    message.header.state = NeighbourState::Permanent;
    let address = match gateway {
        IpAddr::V4(ip) => {
            message.header.family = AddressFamily::Inet;
            NeighbourAddress::Inet(ip)
        }
        IpAddr::V6(ip) => {
            message.header.family = AddressFamily::Inet6;
            NeighbourAddress::Inet6(ip)
        }
    };
    message.attributes = vec![
        NeighbourAttribute::Destination(address),
        NeighbourAttribute::LinkLayerAddress(REMOTE_MAC.to_vec()),
    ];
    Netlink::open(libc::NETLINK_ROUTE)
        .unwrap()
        .request(
            RouteNetlinkMessage::NewNeighbour(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .unwrap();
}

pub fn connect(remote: &str) -> (TcpStream, Endpoints) {
    let remote: SocketAddr = remote.parse().unwrap();
    let client = TcpStream::connect_timeout(&remote, DEADLINE).unwrap();
    limit(&client);
    let endpoints = Endpoints::new(client.local_addr().unwrap(), remote).unwrap();
    (client, endpoints)
}

/// Connects from a port of our choice.
pub fn connect_from(local: SocketAddr, remote: SocketAddr) -> io::Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
    let family = if local.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let client = socket(family, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&client, true)?;
    bind(&client, &local)?;
    connect(&client, &remote)?;
    let client = TcpStream::from(client);
    limit(&client);
    Ok(client)
}

/// The peer in user space answers in capitals.
pub fn talk_to_peer(client: &mut TcpStream) {
    for word in ["served", "in", "user space"] {
        client.write_all(word.as_bytes()).unwrap();
        let mut answer = vec![0; word.len()];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, word.to_ascii_uppercase().as_bytes());
    }
}

pub fn talk(client: &TcpStream, server: &TcpStream) {
    for (mut from, mut to) in [(client, server), (server, client)] {
        from.write_all(b"through the kernel").unwrap();
        let mut received = [0; 18];
        to.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"through the kernel");
    }
}

/// Byte number `at` of a stream that no shift or repetition leaves unnoticed.
pub fn pattern(at: usize, salt: u8) -> u8 {
    let mixed = (at as u32).wrapping_mul(0x9e37_79b1);
    (mixed >> 24) as u8 ^ (mixed >> 13) as u8 ^ salt
}

/// Moves this many bytes both ways at once, each side half-closing when it is done, and compares
/// every byte.
pub fn exchange(client: &TcpStream, server: &TcpStream, to_server: usize, to_client: usize) {
    thread::scope(|scope| {
        scope.spawn(|| send_pattern(client, to_server, 0));
        scope.spawn(|| send_pattern(server, to_client, 0xff));
        scope.spawn(|| receive_pattern(client, to_client, 0xff));
        receive_pattern(server, to_server, 0);
    });
}

pub fn send_pattern(mut to: &TcpStream, len: usize, salt: u8) {
    let bytes: Vec<u8> = (0..len).map(|at| pattern(at, salt)).collect();
    to.write_all(&bytes).unwrap();
    to.shutdown(Shutdown::Write).unwrap();
}

pub fn receive_pattern(mut from: &TcpStream, len: usize, salt: u8) {
    let mut buffer = vec![0; MIB];
    let mut at = 0;
    loop {
        let count = from.read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        for (offset, byte) in buffer[..count].iter().enumerate() {
            assert_eq!(*byte, pattern(at + offset, salt), "byte {}", at + offset);
        }
        at += count;
    }
    assert_eq!(at, len);
}

pub fn reset_on_close(stream: &TcpStream) {
    let linger = Some(Duration::ZERO);
    rustix::net::sockopt::set_socket_linger(stream, linger).unwrap();
}

pub const DEADLINE: Duration = Duration::from_secs(30);
