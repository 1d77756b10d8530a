//! Networks of containers that the guest routes (`--guest-network`): each container has its own
//! address on both sides of the guest, ports of its own, names, and connections that haul.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use testbed::resolver::Resolver;

use crate::behind::{flow, haul};
use crate::dns::ask_udp;
use crate::harness::traffic::EchoServer;
use crate::harness::traffic::{
    accept, assert_echo, connect, connect_from, listen, try_connect, udp, udp_echo,
};
use crate::harness::{
    Bridge, Case, Family, Helper, Netns, Setup, World, case, eventually, long_case,
};
use crate::icmp::ping;
use crate::options::status;
use crate::slirp_api::ask;

pub const CASES: &[Case] = &[
    case("networks::outbound", outbound),
    case("networks::published_to_each", published_to_each),
    case("networks::published_by_api", published_by_api),
    long_case("networks::outbound_hauls", outbound_hauls),
    long_case("networks::published_hauls", published_hauls),
    case(
        "networks::an_address_is_used_again",
        an_address_is_used_again,
    ),
    case("networks::nobody_else_is_heard", nobody_else_is_heard),
];

/// The number of the network that is declared.
const NUMBER: u8 = 89;

/// A helper with that network; `options` are more of its options.
fn start(world: &World, options: impl FnOnce(Setup) -> Setup) -> (Helper, PathBuf) {
    let status_socket = world.dir.join("status.sock");
    let setup = world
        .helper()
        .option("--guest-network=10.89.0.0/16")
        .option("--guest-network=fd89::/64")
        .option("--status-socket")
        .option(&status_socket);
    (options(setup).start(), status_socket)
}

/// Two containers of a network, by the last part of their addresses.
const CONTAINERS: [u8; 2] = [5, 6];

fn add_containers<'w>(world: &'w World) -> (Bridge<'w>, [Netns; 2]) {
    let bridge = Bridge::add(world, NUMBER);
    let containers = CONTAINERS.map(|last| bridge.add_container(last));
    (bridge, containers)
}

fn outbound(world: &mut World) {
    let (_helper, status_socket) = start(world, |setup| setup);
    let _resolver = Resolver::start(&world.elsewhere, Family::V4.elsewhere(), 1);
    let (bridge, containers) = add_containers(world);
    assert_eq!(
        status(&status_socket)["guest_networks"],
        json!(["10.89.0.0/16", "fd89::/64"])
    );
    for family in Family::BOTH {
        let echo = EchoServer::start(&world.elsewhere, family.elsewhere(), 0);
        let datagrams = udp_echo(&world.elsewhere, family.elsewhere(), 0);
        for (container, last) in containers.iter().zip(CONTAINERS) {
            let own = bridge.address(family, last);
            let mut stream = connect(container, echo.address);
            assert_echo(&mut stream, b"out of a container");
            let source = stream.local_addr().unwrap();
            let shown = flow_of(&status_socket, source);
            assert_eq!(shown["protocol"], "tcp", "{source}: {shown}");

            let socket = udp(container, own, 0);
            socket.connect(datagrams.address).unwrap();
            socket.send(b"a datagram").unwrap();
            let mut back = [0; 16];
            let count = socket.recv(&mut back).expect("an echo");
            assert_eq!(&back[..count], b"a datagram");
            let shown = flow_of(&status_socket, socket.local_addr().unwrap());
            assert_eq!(shown["protocol"], "udp", "{shown}");

            assert!(ping(container, family.elsewhere(), 56), "{own}");
            assert!(ping(container, family.gateway(), 56), "{own}");
            assert_eq!(ask_udp(container, family.dns(), 1), Some(1), "{own}");
        }
        // Among themselves they need nobody.
        let listener = listen(&containers[0], bridge.address(family, CONTAINERS[0]), 0);
        connect(&containers[1], listener.local_addr().unwrap());
    }
}

/// The flow whose end in the guest is `guest`.
fn flow_of(status_socket: &std::path::Path, guest: SocketAddr) -> serde_json::Value {
    let document = status(status_socket);
    let flows = document["flows"].as_array().expect("flows");
    let guest = guest.to_string();
    let mut found = flows.iter().filter(|flow| flow["guest"] == guest);
    found.next().cloned().unwrap_or_default()
}

fn published_to_each(world: &mut World) {
    let (_helper, _) = start(world, |setup| {
        setup
            .publish("8005:10.89.0.5:80")
            .publish("8006:10.89.0.6:80")
            .publish("[::]:8007:[fd89::5]:80")
            .publish("[::]:8008:[fd89::6]:80")
            .publish("5305:10.89.0.5:53/udp")
            .publish("5306:10.89.0.6:53/udp")
            .publish("[::]:5307:[fd89::5]:53/udp")
            .publish("[::]:5308:[fd89::6]:53/udp")
    });
    let (bridge, containers) = add_containers(world);
    for (family, first) in [(Family::V4, 5), (Family::V6, 7)] {
        for (number, (container, last)) in (first..).zip(containers.iter().zip(CONTAINERS)) {
            let own = bridge.address(family, last);
            assert_reached(world, family, container, own, 8000 + number, 5300 + number);
        }
    }
    // Over the other family, who comes is the gateway.
    let service = listen(
        &containers[0],
        bridge.address(Family::V4, CONTAINERS[0]),
        80,
    );
    let _client = connect(&world.elsewhere, (Family::V6.host(), 8005).into());
    assert_eq!(accept(&service).1.ip(), Family::V4.gateway());
}

/// A client elsewhere reaches port 80 over TCP, and port 53 over UDP, of the container that has
/// `own`, as itself.
fn assert_reached(
    world: &World,
    family: Family,
    container: &Netns,
    own: IpAddr,
    tcp_port: u16,
    udp_port: u16,
) {
    let service = listen(container, own, 80);
    let client = connect(&world.elsewhere, (family.host(), tcp_port).into());
    let (mut inside, peer) = accept(&service);
    assert_eq!(peer, client.local_addr().unwrap(), "the client's address");
    inside.write_all(b"from a container").unwrap();

    let service = udp(container, own, 53);
    let client = udp(&world.elsewhere, family.elsewhere(), 0);
    client.send_to(b"?", (family.host(), udp_port)).unwrap();
    let mut datagram = [0; 8];
    let (_, peer) = service.recv_from(&mut datagram).expect("the question");
    assert_eq!(peer, client.local_addr().unwrap(), "the client's address");
    service.send_to(b"!", peer).unwrap();
    let (_, answerer) = client.recv_from(&mut datagram).expect("the answer");
    assert_eq!(answerer, (family.host(), udp_port).into());
}

fn published_by_api(world: &mut World) {
    let api = world.dir.join("api.sock");
    let (_helper, _) = start(world, |setup| setup.option("--api-socket").option(&api));
    let (bridge, containers) = add_containers(world);
    for family in Family::BOTH {
        for (number, (container, last)) in (0..).zip(containers.iter().zip(CONTAINERS)) {
            let own = bridge.address(family, last);
            let add = |proto: &str, host_port: u16, guest_port: u16| {
                let arguments = json!({"proto": proto, "host_addr": family.unspecified(), "host_port": host_port,
                                       "guest_addr": own, "guest_port": guest_port});
                let request = json!({"execute": "add_hostfwd", "arguments": arguments});
                let answer = ask(&api, request.to_string().as_bytes());
                assert!(answer.contains("id"), "{answer}");
            };
            add("tcp", 8000 + number, 80);
            add("udp", 5300 + number, 53);
            assert_reached(world, family, container, own, 8000 + number, 5300 + number);
        }
    }
}

/// Pieces of 4 MiB that a flow hauls, each way.
const PIECES: usize = 25;

fn outbound_hauls(world: &mut World) {
    let (_helper, status_socket) = start(world, |setup| setup);
    let (bridge, containers) = add_containers(world);
    for family in Family::BOTH {
        for (container, last) in containers.iter().zip(CONTAINERS) {
            let listener = listen(&world.elsewhere, family.elsewhere(), 0);
            let inside = connect(container, listener.local_addr().unwrap());
            let (remote, _) = accept(&listener);
            haul(&inside, &remote, PIECES);
            let shown = flow_of(&status_socket, inside.local_addr().unwrap());
            assert_eq!(shown["path"], "kernel", "{shown}");
            assert_eq!(
                inside.local_addr().unwrap().ip(),
                bridge.address(family, last)
            );
            drop((inside, remote));
            eventually("the flow is forgotten", Duration::from_secs(10), || {
                flow(&status_socket).is_null()
            });
        }
    }
}

fn published_hauls(world: &mut World) {
    let (_helper, status_socket) = start(world, |setup| {
        setup
            .publish("8005:10.89.0.5:80")
            .publish("[::]:8006:[fd89::6]:80")
    });
    let (bridge, containers) = add_containers(world);
    for (number, family) in [(0, Family::V4), (1, Family::V6)] {
        let last = CONTAINERS[number];
        let service = listen(&containers[number], bridge.address(family, last), 80);
        let port = 8000 + u16::from(last);
        let client = connect(&world.elsewhere, (family.host(), port).into());
        let (inside, peer) = accept(&service);
        assert_eq!(peer, client.local_addr().unwrap());
        haul(&inside, &client, PIECES);
        let shown = flow_of(&status_socket, inside.local_addr().unwrap());
        assert_eq!(shown["path"], "kernel", "{shown}");
    }
}

/// A container that vanished without a word, in the midst of a transfer, leaves nothing that the
/// next one with its address would trip over, even with the very port.
fn an_address_is_used_again(world: &mut World) {
    let (_helper, status_socket) = start(world, |setup| setup.publish("8005:10.89.0.5:80"));
    let bridge = Bridge::add(world, NUMBER);
    let listener = listen(&world.elsewhere, Family::V4.elsewhere(), 0);
    let own = bridge.address(Family::V4, 5);
    let mut gone = Vec::new();
    for round in 0..3 {
        let container = bridge.add_container(5);
        let source = SocketAddr::new(own, 40_000);
        let inside = connect_from(&container, source, listener.local_addr().unwrap());
        let (remote, _) = accept(&listener);
        haul(&inside, &remote, 2);
        assert_eq!(flow(&status_socket)["path"], "kernel", "round {round}");
        let service = listen(&container, own, 80);
        let client = connect(&world.elsewhere, (Family::V4.host(), 8005).into());
        let (accepted, _) = accept(&service);
        assert_eq!(accepted.local_addr().unwrap().ip(), own);
        bridge.cut_off(5);
        drop((container, inside, accepted, service));
        gone.push((remote, client));
    }
}

/// An address of no declared network, which the guest would forward all the same.
fn nobody_else_is_heard(world: &mut World) {
    let (_helper, status_socket) = start(world, |setup| setup);
    let (_bridge, _containers) = add_containers(world);
    let other = Bridge::add(world, 77);
    let container = other.add_container(5);
    let dropped = || status(&status_socket)["frames_dropped"].as_u64();
    let before = dropped();
    for family in Family::BOTH {
        let echo = EchoServer::start(&world.elsewhere, family.elsewhere(), 0);
        try_connect(&container, echo.address, Duration::from_secs(1)).unwrap_err();
        assert_eq!(echo.accepted(), 0);
        assert!(!ping(&container, family.elsewhere(), 56));
    }
    assert!(dropped() >= before.map(|before| before + 4));
}
