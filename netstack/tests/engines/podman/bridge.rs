//! Podman's bridge networks: a network namespace of the user's own, in which netavark makes the
//! bridges, behind one helper for all containers. It is slirp4netns for Podman 4, pasta for Podman
//! 5.

use testbed::resolver::Resolver;
use testbed::traffic::EchoServer;

use super::client::{GUEST, Podman, published};
use super::common::{BULK, eventually_closed};
use crate::harness::{Case, Family, Machine, SERVICE_PORT, Service, case};

pub const CASES: &[Case] = &[
    case("podman::bridge::containers", containers),
    case("podman::bridge::outbound", outbound),
    case("podman::bridge::published", published_ports),
];

const NETWORK: &str = "--network=inner";

fn with_network(machine: &Machine) -> Podman<'_> {
    let podman = Podman::new(machine);
    podman.need_netavark();
    podman.call(&["network", "create", "inner"]).expect();
    podman
}

/// Two containers reach each other, by address and by name.
fn containers(machine: &Machine) {
    let podman = with_network(machine);
    podman.serve("service", &[NETWORK]);
    let format = "--format={{.NetworkSettings.Networks.inner.IPAddress}}";
    let address = podman.call(&["inspect", format, "service"]).expect();
    let entry = format!("{address}:{SERVICE_PORT}");
    let client = podman.run(&[NETWORK], &[GUEST, "greet", &entry]).expect();
    assert!(client.starts_with("10.89."), "{client}");
    let answer = podman
        .run(&[NETWORK], &["nslookup", "service.dns.podman"])
        .expect();
    assert!(answer.contains(&address), "{answer}");
    podman.remove("service");
}

fn outbound(machine: &Machine) {
    let podman = with_network(machine);
    let _resolver = Resolver::start(&machine.elsewhere, Family::V4.elsewhere(), 53);
    let server = EchoServer::start(&machine.elsewhere, Family::V4.elsewhere(), 0);
    let [address, bulk] = [server.address.to_string(), BULK.to_string()];
    podman
        .run(&[NETWORK], &[GUEST, "exchange", &address, &bulk])
        .expect();
    let answer = podman
        .run(&[NETWORK], &["nslookup", "example.test"])
        .expect();
    assert!(answer.contains("192.0.2.53"), "{answer}");
}

fn published_ports(machine: &Machine) {
    let podman = with_network(machine);
    let [tcp, udp] = published("8080");
    podman.serve("service", &[NETWORK, &tcp, &udp]);
    let service = Service::at(&machine.elsewhere, Family::V4.host(), 8080);
    service.wait().exchange(1_000_000);
    // Podman's own forwarder connects from inside the network.
    for client in [service.tcp_client(), service.udp_client()] {
        let client = client.to_string();
        assert!(client.starts_with("10.89.0."), "{client}");
    }
    podman.call(&["restart", "service"]).expect();
    service.wait();
    podman.remove("service");
    eventually_closed(&service);
}
