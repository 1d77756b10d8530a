//! What each helper has to do for containers of Podman.

use std::net::IpAddr;

use testbed::resolver::Resolver;
use testbed::traffic::{EchoServer, Pattern, pass, udp, udp_echo};

use super::client::{GUEST, Podman, published};
use crate::harness::{Family, Helper, Service, eventually};

/// A network of `podman run`, and the helper that makes it.
#[derive(Clone, Copy)]
pub struct Network {
    pub option: &'static str,
    pub helper: Helper,
}

/// What is compared byte by byte, each way.
pub const BULK: usize = 100_000_000;

pub fn outbound(podman: &Podman, network: Network) {
    for family in Family::BOTH {
        let server = EchoServer::start(&podman.machine.elsewhere, family.elsewhere(), 0);
        let echo = udp_echo(&podman.machine.elsewhere, family.elsewhere(), 0);
        let [stream, datagrams] = [server.address, echo.address].map(|address| address.to_string());
        podman
            .run(&[network.option], &[GUEST, "exchange", &stream, "1000000"])
            .expect();
        podman
            .run(&[network.option], &[GUEST, "datagram", &datagrams])
            .expect();
    }
}

pub fn bulk_outbound(podman: &Podman, network: Network) {
    let server = EchoServer::start(&podman.machine.elsewhere, Family::V4.elsewhere(), 0);
    let program = [
        GUEST,
        "exchange",
        &server.address.to_string(),
        &BULK.to_string(),
    ];
    podman.run(&[network.option], &program).expect();
}

pub fn bulk_inbound(podman: &Podman, network: Network) {
    serve_at(podman, network, "service", "8080");
    let machine = podman.machine;
    Service::at(&machine.elsewhere, Family::V4.host(), 8080)
        .wait()
        .exchange(BULK);
    podman.remove("service");
}

pub fn names(podman: &Podman, network: Network) {
    let resolver = Resolver::start(&podman.machine.elsewhere, Family::V4.elsewhere(), 53);
    let answer = podman
        .run(&[network.option], &["nslookup", "example.test"])
        .expect();
    assert!(answer.contains("192.0.2.53"), "{answer}");
    assert!(resolver.asked() > 0);
}

pub fn ping(podman: &Podman, network: Network) {
    for family in Family::BOTH {
        // slirp4netns leaves those pings alone.
        let is_slirp4netns = network.helper == Helper::Slirp4netns && podman.machine.has_peers;
        if family == Family::V6 && is_slirp4netns {
            continue;
        }
        let address = family.elsewhere().to_string();
        podman
            .run(
                &[network.option, "--cap-add=NET_RAW"],
                &["ping", "-c", "1", "-w", "10", &address],
            )
            .expect();
    }
}

/// A port is free as soon as its container has stopped, and taken again when it is started at once.
pub fn restart(podman: &Podman, network: Network) {
    serve_at(podman, network, "service", "8080");
    let service = Service::at(&podman.machine.elsewhere, Family::V4.host(), 8080);
    service.wait();
    for _ in 0..3 {
        podman.call(&["restart", "service"]).expect();
        service.wait();
    }
    podman.call(&["stop", "service"]).expect();
    eventually_closed(&service);
    podman.call(&["start", "service"]).expect();
    service.wait();
    podman.remove("service");
    serve_at(podman, network, "next", "8080");
    service.wait();
    podman.remove("next");
    eventually_closed(&service);
}

/// Two containers do not disturb each other, not even by their ends.
pub fn two_at_once(podman: &Podman, network: Network) {
    serve_at(podman, network, "first", "8081");
    serve_at(podman, network, "second", "8082");
    let machine = podman.machine;
    let [first, second] =
        [8081, 8082].map(|port| Service::at(&machine.elsewhere, Family::V4.host(), port));
    first.wait().exchange(1_000_000);
    second.wait();
    let (stream, _) = second.greet().expect("the service answers");
    podman.remove("first");
    eventually_closed(&first);
    let pattern = Pattern::new(2);
    pass(&stream, &stream, &mut [pattern.clone(), pattern], 1_000_000);
    assert!(!machine.running(network.helper).is_empty());
    podman.remove("second");
}

/// Asks a UDP server elsewhere from a container, and returns the address that it is known by there.
pub fn known_elsewhere(podman: &Podman, option: &str, family: Family) -> IpAddr {
    let server = udp(&podman.machine.elsewhere, family.elsewhere(), 0);
    let address = server.local_addr().expect("an address").to_string();
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut datagram = [0; 64];
            let (len, client) = server.recv_from(&mut datagram).expect("a datagram");
            server
                .send_to(&datagram[..len], client)
                .expect("send it back");
            client.ip()
        });
        podman
            .run(&[option], &[GUEST, "datagram", &address])
            .expect();
        client.join().expect("the server's thread")
    })
}

pub fn serve_at(podman: &Podman, network: Network, name: &str, entry: &str) {
    let [tcp, udp] = published(entry);
    podman.serve(name, &[network.option, &tcp, &udp]);
}

/// The helper gives a port back when it notices the container's end.
pub fn eventually_closed(service: &Service) {
    let what = format!("nobody listens at {}", service.entry);
    eventually(&what, std::time::Duration::from_secs(10), || {
        service.is_closed()
    });
}

/// By TCP and UDP, the service at `entry` knows the client as `known_as`.
pub fn assert_known_as(service: &Service, known_as: IpAddr) {
    service.wait();
    assert_eq!(service.tcp_client(), known_as, "{} by TCP", service.entry);
    assert_eq!(service.udp_client(), known_as, "{} by UDP", service.entry);
}
