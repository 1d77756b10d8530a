//! Options and targets: addresses, families, MTU, namespaces named in different ways, the status
//! socket.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::harness::traffic::{EchoServer, assert_echo, connect, try_connect};
use crate::harness::{Case, Family, Guest, GuestUsers, Setup, World, case};

pub const CASES: &[Case] = &[
    case("options::own_user_namespace", own_user_namespace),
    case("options::namespace_by_path", namespace_by_path),
    case(
        "options::namespace_by_path_with_userns",
        namespace_by_path_with_userns,
    ),
    case("options::unconfigured_tap", unconfigured_tap),
    case("options::other_networks", other_networks),
    case("options::mtu_is_set", mtu_is_set),
    case("options::ipv4_only", ipv4_only),
    case("options::ipv6_off_in_guest", ipv6_off_in_guest),
    case("options::ipv6_off_on_host", ipv6_off_on_host),
    case("options::status_document", status_document),
    case("options::metrics", metrics),
];

/// What `unshare -Urn` makes, and every rootless container: the helper has to join the user
/// namespace first.
fn own_user_namespace(world: &mut World) {
    let guest = Guest::new(GuestUsers::Own);
    let _helper = Setup::new(guest.pid.to_string()).publish("8080:80").start();
    assert_works(world, &guest);
    let _service = EchoServer::start(&guest.net, Family::V4.guest(), 80);
    assert_echo(
        &mut connect(&world.elsewhere, (Family::V4.host(), 8080).into()),
        b"published",
    );
}

fn namespace_by_path(world: &mut World) {
    let path = format!("/proc/{}/ns/net", world.guest.pid);
    let _helper = Setup::new(path).option("--netns-type=path").start();
    assert_works(world, &world.guest);
}

fn namespace_by_path_with_userns(world: &mut World) {
    let guest = Guest::new(GuestUsers::Own);
    let userns = format!("--userns-path=/proc/{}/ns/user", guest.pid);
    let _helper = Setup::new(format!("/proc/{}/ns/net", guest.pid))
        .option(userns)
        .start();
    assert_works(world, &guest);
}

/// Without `--configure` the caller sets up the link, as RootlessKit does.
fn unconfigured_tap(world: &mut World) {
    let _helper = world.helper().without_configure().start();
    let guest = &world.guest.net;
    guest.link(|links| links.up("tap0")?.set_mtu("tap0", 65520));
    for (family, prefix) in [(Family::V4, 24), (Family::V6, 64)] {
        guest.link(|links| {
            links
                .add_address("tap0", family.guest(), prefix)?
                .add_route(family.unspecified(), 0, family.gateway())
        });
    }
    assert_works(world, &world.guest);
}

fn other_networks(world: &mut World) {
    let setup = world
        .helper()
        .option("--cidr=10.55.0.0/16")
        .option("--cidr6=fd77:1::/64");
    let _helper = setup.option("--allow-host-loopback").start();
    let expected: [(Family, &str, &str); 2] = [
        (Family::V4, "10.55.0.100", "10.55.0.2"),
        (Family::V6, "fd77:1::100", "fd77:1::2"),
    ];
    for (family, guest, gateway) in expected {
        let server = EchoServer::start(&world.elsewhere, family.elsewhere(), 7);
        let mut stream = connect(&world.guest.net, server.address);
        assert_eq!(
            stream.local_addr().unwrap().ip(),
            guest.parse::<IpAddr>().unwrap()
        );
        assert_echo(&mut stream, b"another network");
        let _server = EchoServer::start(&world.host, family.loopback(), 8000);
        let gateway = gateway.parse::<IpAddr>().unwrap();
        assert_echo(
            &mut connect(&world.guest.net, (gateway, 8000).into()),
            b"another gateway",
        );
    }
}

fn mtu_is_set(world: &mut World) {
    for mtu in [1280, 1500, 9000, 65520] {
        let _helper = world.helper().mtu(mtu).start();
        let path = "/proc/sys/net/ipv6/conf/tap0/mtu";
        let set = world
            .guest
            .net
            .run(|| std::fs::read_to_string(path))
            .unwrap();
        assert_eq!(set.trim(), mtu.to_string());
        assert_works(world, &world.guest);
    }
}

fn ipv4_only(world: &mut World) {
    let _helper = world.helper().option("--ipv4-only").start();
    assert_only_ipv4_works(world);
}

fn ipv6_off_in_guest(world: &mut World) {
    world.guest.net.sysctl("ipv6/conf/all/disable_ipv6", "1");
    world
        .guest
        .net
        .sysctl("ipv6/conf/default/disable_ipv6", "1");
    let _helper = world.helper().publish("8080:80").start();
    assert_only_ipv4_works(world);
    let _service = EchoServer::start(&world.guest.net, Family::V4.guest(), 80);
    assert_echo(
        &mut connect(&world.elsewhere, (Family::V4.host(), 8080).into()),
        b"published",
    );
}

/// The guest may have IPv6 all the same; it is told that there is no way out.
fn ipv6_off_on_host(world: &mut World) {
    world.host.sysctl("ipv6/conf/all/disable_ipv6", "1");
    let _helper = world.helper().publish("8080:80").start();
    assert_only_ipv4_works(world);
    let _service = EchoServer::start(&world.guest.net, Family::V4.guest(), 80);
    assert_echo(
        &mut connect(&world.elsewhere, (Family::V4.host(), 8080).into()),
        b"published",
    );
}

/// One connection shows up in the status document, with the addresses that the guest sees.
fn status_document(world: &mut World) {
    let socket = world.dir.join("status.sock");
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    let helper = world
        .helper()
        .option("--status-socket")
        .option(&socket)
        .start();
    let status = || status(&socket);
    assert_eq!(status()["flows"].as_array().map(Vec::len), Some(0));
    assert_eq!(
        status()["guest"],
        serde_json::json!(["10.0.2.100", "fd00::100"])
    );

    let mut stream = connect(&world.guest.net, server.address);
    assert_echo(&mut stream, &[1; 1000]);
    let document = status();
    assert_eq!(document["connections_total"], 1);
    let flow = &document["flows"][0];
    assert_eq!(flow["protocol"], "tcp");
    assert_eq!(flow["initiator"], "guest");
    assert_eq!(flow["guest"], stream.local_addr().unwrap().to_string());
    assert_eq!(flow["remote"], server.address.to_string());
    assert_eq!(flow["state"], "ESTABLISHED");
    assert_eq!(flow["path"], "engine", "a little talk is no haul");
    assert_eq!(
        (&flow["bytes_from_guest"], &flow["bytes_to_guest"]),
        (&1000.into(), &1000.into())
    );
    let prohibited = document["prohibited"].as_u64().expect("a counter");
    let metadata = (Ipv4Addr::new(169, 254, 169, 254), 80).into();
    try_connect(&world.guest.net, metadata, Duration::from_secs(5)).expect_err("out of reach");
    assert!(status()["prohibited"].as_u64() > Some(prohibited));
    drop(helper);
    assert!(!socket.exists(), "the helper removes its socket");
}

/// As a collector asks for them, and by the program's own command, from within the sandbox.
fn metrics(world: &mut World) {
    let [metrics, document] = ["metrics.sock", "status.sock"].map(|name| world.dir.join(name));
    let setup = world.helper().option("--metrics-socket").option(&metrics);
    let helper = setup.option("--status-socket").option(&document).start();
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    let mut stream = connect(&world.guest.net, server.address);
    assert_echo(&mut stream, b"counted");
    let mut client = UnixStream::connect(&metrics).expect("connect to the metrics socket");
    client
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .expect("ask");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let line = "\ncoracle_net_flows{protocol=\"tcp\",path=\"engine\"} 1\n";
    assert!(answer.contains(line), "{answer}");

    let mut status = Command::new(env!("CARGO_BIN_EXE_coracle-net"));
    let output = status
        .arg("status")
        .arg(&document)
        .output()
        .expect("run it");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success());
    let flow = |line: &str| line.starts_with("tcp ") && line.contains("ESTABLISHED");
    assert_eq!(text.lines().filter(|line| flow(line)).count(), 1, "{text}");
    drop(helper);
    assert!(!metrics.exists() && !document.exists());
}

/// What the helper tells at its status socket.
pub fn status(socket: &Path) -> serde_json::Value {
    let mut text = String::new();
    let mut stream = UnixStream::connect(socket).expect("connect to the status socket");
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    stream.read_to_string(&mut text).expect("read the status");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Both families reach elsewhere from `guest`.
pub fn assert_works(world: &World, guest: &Guest) {
    for family in Family::BOTH {
        let server = EchoServer::start(&world.elsewhere, family.elsewhere(), 7);
        assert_echo(&mut connect(&guest.net, server.address), b"it works");
    }
}

/// IPv4 reaches elsewhere, and an attempt over IPv6 fails at once, so that programs fall back
/// without a delay.
fn assert_only_ipv4_works(world: &World) {
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    assert_echo(&mut connect(&world.guest.net, server.address), b"IPv4");
    let remote = (Family::V6.elsewhere(), 7).into();
    let error = try_connect(&world.guest.net, remote, Duration::from_secs(5))
        .expect_err("there is no IPv6");
    assert!(error.raw_os_error().is_some(), "{error}");
}
