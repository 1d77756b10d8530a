//! A guest that wants more than there is: datagrams from very many ports, SYNs that are never
//! followed up, connections. Everything else has to go on at once, under the hard limit of
//! descriptors that most systems have by default.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

use crate::harness::traffic::{EchoServer, UdpEcho, assert_echo, try_connect, udp, udp_echo};
use crate::harness::{Case, Family, Helper, World, case, eventually, skip};
use crate::load::require_descriptors;
use crate::options::status;

pub const CASES: &[Case] = &[
    case("floods::datagrams_of_many_ports", datagrams_of_many_ports),
    case("floods::echo_requests_of_many_programs", echo_requests),
    case("floods::limit_that_sinks_later", limit_that_sinks_later),
    case("floods::more_connections_than_may_be", more_connections),
    case("floods::syns_to_an_open_port", syns_to_an_open_port),
];

/// The hard limit of many shells and services.
const HARD_LIMIT: usize = 1024;
/// What a helper does at once, it does in this time, even on a machine that builds something
/// meanwhile.
const AT_ONCE: Duration = Duration::from_secs(3);

/// Servers on each side, and what to ask of them.
struct Neighbours {
    remote: EchoServer,
    _service: EchoServer,
    datagrams: UdpEcho,
}

impl Neighbours {
    fn new(world: &World) -> Self {
        Self {
            remote: EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7),
            _service: EchoServer::start(&world.guest.net, Family::V4.guest(), 80),
            datagrams: udp_echo(&world.elsewhere, Family::V4.elsewhere(), 7),
        }
    }

    /// TCP to the outside, a published port and a new UDP conversation work, each at once.
    fn assert_reachable(&self, world: &World) {
        let at_once = |netns, address| {
            let begin = Instant::now();
            let mut stream = try_connect(netns, address, AT_ONCE)
                .unwrap_or_else(|error| panic!("connect to {address}: {error}"));
            assert_echo(&mut stream, b"here");
            assert!(
                begin.elapsed() < AT_ONCE,
                "{address}: {:?}",
                begin.elapsed()
            );
        };
        at_once(&world.guest.net, self.remote.address);
        at_once(&world.elsewhere, (Family::V4.host(), 8080).into());
        let client = udp(&world.guest.net, Family::V4.guest(), 0);
        assert_answered(&client, self.datagrams.address);
    }
}

/// One datagram is answered; answers to earlier ones may come before. On a veth none is lost.
fn assert_answered(client: &UdpSocket, server: SocketAddr) {
    client.set_read_timeout(Some(AT_ONCE)).unwrap();
    client.send_to(b"hello", server).expect("send a datagram");
    let mut buffer = [0; 8];
    loop {
        let count = client.recv(&mut buffer).expect("an answer");
        if &buffer[..count] == b"hello" {
            return;
        }
    }
}

/// Sends one datagram from each of `count` ports. The sockets are to stay, as a program's that has
/// forgotten them.
fn datagrams(world: &World, server: SocketAddr, count: usize) -> Vec<UdpSocket> {
    let sockets = (0..count).map(|_| {
        let socket = udp(&world.guest.net, Family::V4.guest(), 0);
        socket.send_to(b"flood", server).expect("send a datagram");
        socket
    });
    sockets.collect()
}

fn helper(world: &World) -> (Helper, std::path::PathBuf) {
    let socket = world.dir.join("status.sock");
    let setup = world
        .helper()
        .publish("8080:80")
        .descriptors(HARD_LIMIT as u64);
    let helper = setup.option("--status-socket").option(&socket).start();
    (helper, socket)
}

/// How often flows of this kind have come to their limit.
fn limit_reached(socket: &Path, kind: &str) -> u64 {
    let document = status(socket);
    let reached = &document["limits"][kind]["reached"];
    assert!(document["limit_reached"].as_u64() >= reached.as_u64());
    reached.as_u64().expect("a counter")
}

fn datagrams_of_many_ports(world: &mut World) {
    const PORTS: usize = 1200;
    require_descriptors(2 * PORTS);
    let neighbours = Neighbours::new(world);
    let (helper, status_path) = helper(world);
    let mut open = try_connect(&world.guest.net, neighbours.remote.address, AT_ONCE).unwrap();
    let flood = datagrams(world, neighbours.datagrams.address, PORTS);
    neighbours.assert_reachable(world);
    assert_echo(&mut open, b"as before");
    assert!(limit_reached(&status_path, "udp") > 0, "it is told");
    assert!(helper.fd_count() < HARD_LIMIT - 100, "room for others");
    // The last of the flood has a mapping all the same, and the first gets a new one.
    assert_answered(&flood[PORTS - 1], neighbours.datagrams.address);
    assert_answered(&flood[0], neighbours.datagrams.address);
}

fn echo_requests(world: &mut World) {
    let neighbours = Neighbours::new(world);
    let (helper, status_path) = helper(world);
    let ping = |sequence: u16| {
        world.guest.net.run(|| {
            let flags = SockFlag::SOCK_CLOEXEC;
            let socket = socket(
                AddressFamily::Inet,
                SockType::Datagram,
                flags,
                SockProtocol::Icmp,
            )
            .expect("a ping socket");
            let message = [&[8, 0, 0, 0, 0, 0][..], &sequence.to_be_bytes()].concat();
            let to = SockaddrIn::new(198, 51, 100, 7, 0);
            sendto(socket.as_raw_fd(), &message, &to, MsgFlags::empty()).expect("ping");
        });
    };
    (0..1200).for_each(ping);
    neighbours.assert_reachable(world);
    assert!(limit_reached(&status_path, "icmp") > 0, "it is told");
    assert!(helper.fd_count() < HARD_LIMIT - 100, "room for others");
}

/// The shares were worked out for more than there is now: those who were not heard of for longest
/// give theirs.
fn limit_that_sinks_later(world: &mut World) {
    const LEFT: usize = 40;
    let neighbours = Neighbours::new(world);
    let helper = world.helper().publish("8080:80").start();
    helper.limit_descriptors(helper.fd_count() + LEFT);
    let _flood = datagrams(world, neighbours.datagrams.address, 3 * LEFT);
    neighbours.assert_reachable(world);
}

/// Connections stay open when there are as many as may be, and who comes then is served when one
/// has gone.
fn more_connections(world: &mut World) {
    const CONNECTIONS: usize = 1000;
    require_descriptors(4 * CONNECTIONS);
    let neighbours = Neighbours::new(world);
    let (helper, status_path) = helper(world);
    let published = SocketAddr::from((Family::V4.host(), 8080));
    let mut clients: Vec<_> = (0..CONNECTIONS)
        .map(|_| try_connect(&world.elsewhere, published, AT_ONCE).expect("the kernel's queue"))
        .collect();
    eventually("the limit is reached", Duration::from_secs(20), || {
        limit_reached(&status_path, "connections") > 0
    });
    assert!(helper.fd_count() < HARD_LIMIT);
    let client = udp(&world.guest.net, Family::V4.guest(), 0);
    assert_answered(&client, neighbours.datagrams.address);
    assert_echo(&mut clients[0], b"still open");

    let mut last = clients.pop().expect("there are some");
    drop(clients);
    assert_echo(&mut last, b"served after all");
    neighbours.assert_reachable(world);
}

/// SYNs of addresses that nobody has, to a port that accepts: their handshakes are never finished.
/// Each second of it, and afterwards, everything else works.
fn syns_to_an_open_port(world: &mut World) {
    const FLOOD: Duration = Duration::from_secs(4);
    /// What a helper may have for dials and half-open connections under this limit, and some more.
    const MOST: usize = 300;
    let neighbours = Neighbours::new(world);
    let (helper, status_path) = helper(world);
    let target = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 9);
    let SocketAddr::V4(address) = target.address else {
        unreachable!("Family::V4")
    };
    let baseline = helper.resting_fd_count();
    let done = AtomicBool::new(false);
    let sent = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| world.guest.net.run(|| flood(address, &done, &sent)));
        let stop = StopOnDrop(&done);
        let end = Instant::now() + FLOOD;
        while Instant::now() < end {
            neighbours.assert_reachable(world);
            let open = helper.fd_count() - baseline;
            assert!(open < MOST, "{open} descriptors for half-open connections");
        }
        drop(stop);
        flood.join().expect("the flood");
    });
    println!("{} SYNs", sent.load(Ordering::Relaxed));
    neighbours.assert_reachable(world);
    let document = status(&status_path);
    assert!(
        document["limit_reached"].as_u64() > Some(1000),
        "{document}"
    );
    assert!(
        document["limits"]["half_open"]["used"].as_u64() > Some(0),
        "{document}"
    );
}

/// Ends the flood however the checks end.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends 20,000 SYNs a second, if this machine can.
fn flood(target: SocketAddrV4, done: &AtomicBool, sent: &AtomicU32) {
    let flags = SockFlag::SOCK_CLOEXEC;
    let raw = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Raw)
        .unwrap_or_else(|errno| skip(format!("no raw sockets here: {errno}")));
    let to = SockaddrIn::from(SocketAddrV4::new(*target.ip(), 0));
    let begin = Instant::now();
    for number in 0u32.. {
        if done.load(Ordering::Relaxed) {
            return;
        }
        let source = Ipv4Addr::from_bits(u32::from_be_bytes([10, 9, 0, 0]) + number / 50_000);
        let port = 1024 + (number % 50_000) as u16;
        let syn = PacketBuilder::ipv4(source.octets(), target.ip().octets(), 64)
            .tcp(port, target.port(), number, 64_240)
            .syn();
        let mut packet = Vec::with_capacity(syn.size(0));
        syn.write(&mut packet, &[]).expect("a SYN");
        match sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::empty()) {
            Ok(_) | Err(nix::errno::Errno::ENOBUFS) => {}
            Err(errno) => panic!("send a SYN: {}", io::Error::from(errno)),
        }
        sent.store(number, Ordering::Relaxed);
        if number % 200 == 0 {
            let due = begin + Duration::from_millis(10) * (number / 200);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
}
