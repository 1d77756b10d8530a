//! Podman over slirp4netns: the default of Podman 4, an option of Podman 5.

use std::net::IpAddr;

use testbed::traffic::EchoServer;

use super::client::{GUEST, Podman, published};
use super::common::{self, Network, assert_known_as, serve_at};
use crate::harness::{Case, Family, Helper, Machine, Service, case};

pub const CASES: &[Case] = &[
    case("podman::slirp4netns::outbound", |machine| {
        common::outbound(&Podman::new(machine), BY_HELPER)
    }),
    case("podman::slirp4netns::bulk_outbound", |machine| {
        common::bulk_outbound(&Podman::new(machine), BY_HELPER)
    }),
    case("podman::slirp4netns::bulk_inbound", |machine| {
        common::bulk_inbound(&Podman::new(machine), BY_HELPER)
    }),
    case("podman::slirp4netns::names", |machine| {
        common::names(&Podman::new(machine), BY_HELPER)
    }),
    case("podman::slirp4netns::ping", |machine| {
        common::ping(&Podman::new(machine), BY_HELPER)
    }),
    case("podman::slirp4netns::restart", |machine| {
        common::restart(&Podman::new(machine), BY_HELPER)
    }),
    case("podman::slirp4netns::two_at_once", |machine| {
        common::two_at_once(&Podman::new(machine), BY_HELPER)
    }),
    case("podman::slirp4netns::published", published_ports),
    case("podman::slirp4netns::published_ipv6", published_ipv6),
    case("podman::slirp4netns::port_taken", port_taken),
    case("podman::slirp4netns::options", options),
    case("podman::slirp4netns::outbound_address", outbound_address),
    case("podman::slirp4netns::host_loopback", host_loopback),
    case("podman::slirp4netns::named_by_option", named_by_option),
    case(
        "podman::slirp4netns::published_by_podman",
        published_by_podman,
    ),
];

const BY_HELPER: Network = Network {
    option: "--network=slirp4netns:port_handler=slirp4netns,enable_ipv6=true",
    helper: Helper::Slirp4netns,
};
const BY_PODMAN: Network = Network {
    option: "--network=slirp4netns:enable_ipv6=true",
    helper: Helper::Slirp4netns,
};

/// Clients elsewhere appear as they are, those on the host's loopback as the gateway.
fn published_ports(machine: &Machine) {
    let podman = Podman::new(machine);
    serve_at(&podman, BY_HELPER, "service", "8080");
    let v4 = Family::V4;
    let service = Service::at(&machine.elsewhere, v4.host(), 8080);
    assert_known_as(&service, v4.elsewhere());
    let service = Service::at(&machine.host, v4.loopback(), 8080);
    assert_eq!(service.tcp_client(), v4.gateway());
    // slirp4netns does not bring the answer back.
    if !machine.has_peers {
        assert_eq!(service.udp_client(), v4.gateway());
    }
    podman.remove("service");
}

fn published_ipv6(machine: &Machine) {
    machine.need_ours("publish IPv6 addresses");
    let podman = Podman::new(machine);
    let v6 = Family::V6;
    serve_at(
        &podman,
        BY_HELPER,
        "service",
        &format!("[{}]:8080", v6.host()),
    );
    let service = Service::at(&machine.elsewhere, v6.host(), 8080);
    assert_known_as(&service, v6.elsewhere());
    podman.remove("service");
    serve_at(&podman, BY_HELPER, "service", "[::1]:8080");
    let service = Service::at(&machine.host, v6.loopback(), 8080);
    assert_known_as(&service, v6.gateway());
    podman.remove("service");
}

/// The forwarder of Podman's own connects from inside.
fn published_by_podman(machine: &Machine) {
    let podman = Podman::new(machine);
    serve_at(&podman, BY_PODMAN, "service", "8080");
    let service = Service::at(&machine.elsewhere, Family::V4.host(), 8080);
    assert_known_as(&service, Family::V4.guest());
    podman.remove("service");
}

/// The second container that asks for a port is refused, and the first goes on.
fn port_taken(machine: &Machine) {
    let podman = Podman::new(machine);
    serve_at(&podman, BY_HELPER, "first", "8080");
    let service = Service::at(&machine.elsewhere, Family::V4.host(), 8080);
    service.wait();
    let [tcp, _] = published("8080");
    let said = podman
        .run(&[BY_HELPER.option, &tcp], &["cat", "/etc/hosts"])
        .expect_failure();
    assert!(said.contains("slirp_add_hostfwd failed"), "{said}");
    service.exchange(1000);
    podman.remove("first");
}

/// The options of `--network slirp4netns:…`, each as it shows in the container or elsewhere.
fn options(machine: &Machine) {
    let podman = Podman::new(machine);
    let shown = |options: &str, program: &[&str]| {
        let network = format!("--network=slirp4netns:{options}");
        podman.run(&[&network], program).expect()
    };
    let addresses = shown("cidr=10.9.0.0/24", &["ip", "address"]);
    assert!(addresses.contains("inet 10.9.0.100/24"), "{addresses}");
    let resolvers = shown("cidr=10.9.0.0/24", &["cat", "/etc/resolv.conf"]);
    assert!(resolvers.contains("nameserver 10.9.0.3"), "{resolvers}");
    assert_eq!(
        shown("mtu=9000", &["cat", "/sys/class/net/tap0/mtu"]),
        "9000"
    );
    let addresses = shown("enable_ipv6=false", &["ip", "address", "show", "tap0"]);
    assert!(!addresses.contains("fd00::"), "{addresses}");
}

fn outbound_address(machine: &Machine) {
    let podman = Podman::new(machine);
    for (family, second, prefix, option) in [
        (Family::V4, "198.51.100.9", 24, "outbound_addr=198.51.100.9"),
        (
            Family::V6,
            "2001:db8::9",
            64,
            "enable_ipv6=true,outbound_addr6=2001:db8::9",
        ),
        (Family::V4, "198.51.100.1", 24, "outbound_addr=up0"),
    ] {
        let second: IpAddr = second.parse().expect("an address");
        if second != family.host() {
            machine
                .host
                .link(|links| links.add_address("up0", second, prefix));
            machine.host.wait_until_local(second);
        }
        let network = format!("--network=slirp4netns:{option}");
        let known = common::known_elsewhere(&podman, &network, family);
        assert_eq!(known, second, "{option}");
    }
}

/// The host's loopback is out of reach unless it is asked for.
fn host_loopback(machine: &Machine) {
    let podman = Podman::new(machine);
    let server = EchoServer::start(&machine.host, Family::V4.loopback(), 0);
    let entry = format!("{}:{}", Family::V4.gateway(), server.address.port());
    let program = [GUEST, "exchange", &entry, "1000"];
    podman
        .run(
            &["--network=slirp4netns:allow_host_loopback=true"],
            &program,
        )
        .expect();
    podman
        .run(&["--network=slirp4netns"], &program)
        .expect_failure();
    assert_eq!(server.accepted(), 1);
}

/// The helper that Podman's own option names goes before the one in PATH.
fn named_by_option(machine: &Machine) {
    let dir = machine.make_dir("named");
    let link = dir.join("slirp4netns");
    let helper = std::fs::read_link(machine.path_of(Helper::Slirp4netns)).expect("a link");
    std::os::unix::fs::symlink(helper, &link).expect("link the helper");
    let link = link.to_str().expect("UTF-8");
    let podman = Podman::new(machine).option(format!("--network-cmd-path={link}"));
    serve_at(&podman, BY_HELPER, "service", "8080");
    let running = machine.running(Helper::Slirp4netns);
    assert!(!running.is_empty());
    assert!(
        running.iter().all(|line| line.starts_with(link)),
        "{running:?}"
    );
    podman.remove("service");
}
