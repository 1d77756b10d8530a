//! Podman over pasta: the default of Podman 5.

use std::fs;
use std::os::unix::fs::symlink;

use testbed::traffic::EchoServer;

use super::client::{GUEST, Podman};
use super::common::{self, Network, assert_known_as, serve_at};
use crate::harness::{Case, Family, Helper, Machine, SERVICE_PORT, Service, newer_case};

pub const CASES: &[Case] = &[
    newer_case("podman::pasta::outbound", |machine| {
        common::outbound(&podman(machine), PASTA)
    }),
    newer_case("podman::pasta::bulk_outbound", |machine| {
        common::bulk_outbound(&podman(machine), PASTA)
    }),
    newer_case("podman::pasta::bulk_inbound", |machine| {
        common::bulk_inbound(&podman(machine), PASTA)
    }),
    newer_case("podman::pasta::names", |machine| {
        common::names(&podman(machine), PASTA)
    }),
    newer_case("podman::pasta::ping", |machine| {
        common::ping(&podman(machine), PASTA)
    }),
    newer_case("podman::pasta::restart", |machine| {
        common::restart(&podman(machine), PASTA)
    }),
    newer_case("podman::pasta::two_at_once", |machine| {
        common::two_at_once(&podman(machine), PASTA)
    }),
    newer_case("podman::pasta::published", published_ports),
    newer_case(
        "podman::pasta::published_at_addresses",
        published_at_addresses,
    ),
    newer_case("podman::pasta::host_by_name", host_by_name),
    newer_case("podman::pasta::host_loopback", host_loopback),
    newer_case("podman::pasta::options", options),
    newer_case("podman::pasta::automatic_ports", automatic_ports),
    newer_case(
        "podman::pasta::named_by_configuration",
        named_by_configuration,
    ),
];

const PASTA: Network = Network {
    option: "--network=pasta",
    helper: Helper::Pasta,
};

fn podman(machine: &Machine) -> Podman<'_> {
    Podman::new(machine).since(5)
}

/// Without an address, ports are published at all of the host's, of both families, and services see
/// their clients.
fn published_ports(machine: &Machine) {
    let podman = podman(machine);
    serve_at(&podman, PASTA, "service", "8080");
    for family in Family::BOTH {
        let service = Service::at(&machine.elsewhere, family.host(), 8080);
        assert_known_as(&service, family.elsewhere());
        // The gateway, which is elsewhere here, stands for clients on the loopback.
        let known_as = match machine.has_peers {
            false => family.elsewhere(),
            true => family.host(),
        };
        let service = Service::at(&machine.host, family.loopback(), 8080);
        assert_known_as(&service, known_as);
    }
    podman.remove("service");
}

fn published_at_addresses(machine: &Machine) {
    let podman = podman(machine);
    for family in Family::BOTH {
        for (from, address) in [
            (&machine.elsewhere, family.host()),
            (&machine.host, family.loopback()),
        ] {
            let service = Service::at(from, address, 8080);
            serve_at(&podman, PASTA, "service", &format!("{}", service.entry));
            service.wait().exchange(1000);
            service.udp_client();
            podman.remove("service");
        }
    }
}

/// `host.containers.internal` is the host, by an address that is not its own.
fn host_by_name(machine: &Machine) {
    let podman = podman(machine);
    let server = EchoServer::start(&machine.host, Family::V4.host(), 0);
    let hosts = podman.run(&[PASTA.option], &["cat", "/etc/hosts"]).expect();
    let line = hosts
        .lines()
        .find(|line| line.contains("host.containers.internal"));
    let address = line
        .and_then(|line| line.split_whitespace().next())
        .expect("an address");
    assert_eq!(address, "169.254.1.2", "{hosts}");
    let entry = format!("{address}:{}", server.address.port());
    podman
        .run(&[PASTA.option], &[GUEST, "exchange", &entry, "1000"])
        .expect();
}

/// By the gateway or the guest's own loopback, if that is asked for.
fn host_loopback(machine: &Machine) {
    let podman = podman(machine);
    let server = EchoServer::start(&machine.host, Family::V4.loopback(), 0);
    let port = server.address.port();
    let exchange =
        |network: &str, entry: String| podman.run(&[network], &[GUEST, "exchange", &entry, "1000"]);
    let gateway = Family::V4.elsewhere();
    exchange("--network=pasta:--map-gw", format!("{gateway}:{port}")).expect();
    exchange(PASTA.option, format!("{gateway}:{port}")).expect_failure();
    let ports = format!("--network=pasta:-T,{port}");
    exchange(&ports, format!("127.0.0.1:{port}")).expect();
    exchange(PASTA.option, format!("127.0.0.1:{port}")).expect_failure();
    assert_eq!(server.accepted(), 2);
}

/// The options of `--network pasta:…` are those of pasta, each as it shows in the container.
fn options(machine: &Machine) {
    let podman = podman(machine);
    let shown = |options: &str, program: &[&str]| {
        let network = format!("--network=pasta:{options}");
        podman.run(&[&network], program).expect()
    };
    let own = "-a,10.3.3.3,-n,24,-g,10.3.3.1,-m,1400,-I,eth7,--ns-mac-addr,02:00:00:00:00:07";
    let link = shown(own, &["ip", "address", "show", "eth7"]);
    for expected in ["10.3.3.3/24", "mtu 1400", "02:00:00:00:00:07"] {
        assert!(link.contains(expected), "{expected} in {link}");
    }
    let routes = shown(own, &["ip", "route"]);
    assert!(routes.contains("default via 10.3.3.1"), "{routes}");
    let addresses = shown("-4", &["ip", "address"]);
    assert!(!addresses.contains("2001:db8::"), "{addresses}");
    let addresses = shown("--ipv6-only", &["ip", "address"]);
    assert!(!addresses.contains("198.51.100."), "{addresses}");
    // As it comes, the container has the host's addresses and the name of its link.
    let addresses = podman
        .run(&[PASTA.option], &["ip", "address", "show", "up0"])
        .expect();
    for family in Family::BOTH {
        assert!(
            addresses.contains(&family.host().to_string()),
            "{addresses}"
        );
    }
    let resolvers = shown("--dns-forward,198.51.100.99", &["cat", "/etc/resolv.conf"]);
    assert!(
        resolvers.contains("nameserver 198.51.100.99"),
        "{resolvers}"
    );
}

/// Whatever the container listens at is published.
fn automatic_ports(machine: &Machine) {
    let podman = podman(machine);
    podman.serve("service", &["--network=pasta:-t,auto,-u,auto"]);
    let service = Service::at(&machine.elsewhere, Family::V4.host(), SERVICE_PORT);
    assert_known_as(&service, Family::V4.elsewhere());
    podman.remove("service");
}

/// The directory that containers.conf names goes before PATH.
fn named_by_configuration(machine: &Machine) {
    let dir = machine.make_dir("named");
    let helper = fs::read_link(machine.path_of(Helper::Pasta)).expect("a link");
    symlink(helper, dir.join("pasta")).expect("link the helper");
    let configuration = format!(
        "[engine]\nhelper_binaries_dir = [\"{}\", \"/usr/lib/podman\"]\n",
        dir.display()
    );
    let directory = machine.make_dir(".config").join("containers");
    fs::create_dir(&directory).expect("make a directory");
    fs::write(directory.join("containers.conf"), configuration).expect("write containers.conf");
    let podman = podman(machine);
    serve_at(&podman, PASTA, "service", "8080");
    let running = machine.running(Helper::Pasta);
    assert!(!running.is_empty());
    let named = dir.to_str().expect("UTF-8");
    assert!(
        running.iter().all(|line| line.starts_with(named)),
        "{running:?}"
    );
    podman.remove("service");
}
