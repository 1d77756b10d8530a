//! What the guest must not reach: the host's loopback and the cloud's metadata service.

use std::io::{ErrorKind, Read};
use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;
use serde_json::json;

use crate::harness::traffic::{
    EchoServer, assert_echo, assert_never_reached, connect, listen, try_connect, udp, udp_echo,
};
use crate::harness::{Case, Family, World, case};
use crate::outbound::errno;
use crate::slirp_api;

pub const CASES: &[Case] = &[
    case("policy::host_loopback_is_closed", host_loopback_is_closed),
    case("policy::host_loopback_on_request", host_loopback_on_request),
    case(
        "policy::loopback_is_not_the_guests",
        loopback_is_not_the_guests,
    ),
    case(
        "policy::metadata_is_never_dialled",
        metadata_is_never_dialled,
    ),
    case("policy::egress_rules", egress_rules),
    case("policy::one_port_of_the_host", one_port_of_the_host),
    case("policy::new_rules_end_flows", new_rules_end_flows),
];

fn host_loopback_is_closed(world: &mut World) {
    let _helper = world.helper().start();
    for family in Family::BOTH {
        let service = listen(&world.host, family.loopback(), 8000);
        let datagrams = udp(&world.host, family.loopback(), 8000);
        assert_turned_away(world, (family.gateway(), 8000).into());
        assert_never_reached(&service);

        let client = udp(&world.guest.net, family.guest(), 0);
        client.send_to(b"hello", (family.gateway(), 8000)).unwrap();
        datagrams
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        datagrams
            .recv(&mut [0; 8])
            .expect_err("a datagram reached the host's loopback");
    }
}

fn host_loopback_on_request(world: &mut World) {
    let _helper = world.helper().option("--allow-host-loopback").start();
    for family in Family::BOTH {
        let server = EchoServer::start(&world.host, family.loopback(), 8000);
        assert_echo(
            &mut connect(&world.guest.net, (family.gateway(), 8000).into()),
            b"to the host's loopback",
        );
        assert_eq!(server.accepted(), 1);

        let _server = udp_echo(&world.host, family.loopback(), 8000);
        let client = udp(&world.guest.net, family.guest(), 0);
        client.connect((family.gateway(), 8000)).unwrap();
        client.send(b"hello").unwrap();
        let mut buffer = [0; 8];
        let count = client
            .recv(&mut buffer)
            .expect("the echo comes from the gateway's address");
        assert_eq!(&buffer[..count], b"hello");
        assert_turned_away(world, (family.gateway(), 8001).into());
    }
}

/// `127.0.0.1` in the guest is the guest's, whatever was allowed.
fn loopback_is_not_the_guests(world: &mut World) {
    let _helper = world.helper().option("--allow-host-loopback").start();
    let service = listen(&world.host, Family::V4.loopback(), 8000);
    let error = try_connect(&world.guest.net, "127.0.0.1:8000".parse().unwrap(), SOON)
        .expect_err("nobody there");
    assert_eq!(errno(&error), Some(Errno::ECONNREFUSED));
    assert_never_reached(&service);
}

/// The host has each of these addresses itself here, so it would take what is sent to them.
fn metadata_is_never_dialled(world: &mut World) {
    const METADATA: [(&str, Family, u8); 5] = [
        ("169.254.169.254", Family::V4, 32),
        ("100.100.100.200", Family::V4, 32),
        ("fd00:ec2::254", Family::V6, 128),
        ("64:ff9b::a9fe:a9fe", Family::V6, 128),
        ("2002:7f00:1::", Family::V6, 128),
    ];
    for (metadata, _, prefix) in METADATA {
        let metadata: IpAddr = metadata.parse().unwrap();
        world
            .host
            .link(|links| links.add_address("up0", metadata, prefix));
        world.host.wait_until_local(metadata);
    }
    for flags in [&[][..], &["--allow-host-loopback"]] {
        let setup = flags
            .iter()
            .fold(world.helper(), |setup, flag| setup.option(flag));
        let _helper = setup.start();
        for (metadata, family, _) in METADATA {
            let metadata: IpAddr = metadata.parse().unwrap();
            let service = listen(&world.host, metadata, 80);
            let datagrams = udp(&world.host, metadata, 80);
            assert_turned_away(world, (metadata, 80).into());
            assert_never_reached(&service);

            let client = udp(&world.guest.net, family.guest(), 0);
            client.send_to(b"hello", (metadata, 80)).unwrap();
            datagrams
                .set_read_timeout(Some(Duration::from_millis(300)))
                .unwrap();
            datagrams
                .recv(&mut [0; 8])
                .expect_err("a datagram reached the metadata service");
        }
    }
}

fn egress_rules(world: &mut World) {
    let allowed = Family::BOTH.map(|family| match family.host() {
        IpAddr::V4(ip) => format!("allow:tcp:{ip}:8000"),
        IpAddr::V6(ip) => format!("allow:tcp:[{ip}]:8000"),
    });
    let rules = allowed.iter().map(String::as_str).chain(["deny"]);
    let setup = rules.fold(world.helper(), |setup, rule| {
        setup.option("--egress").option(rule)
    });
    let _helper = setup.start();
    for family in Family::BOTH {
        let (other, len) = (
            family.elsewhere(),
            if family == Family::V4 { 32 } else { 128 },
        );
        world
            .host
            .link(|links| links.add_address("up0", other, len));
        world.host.wait_until_local(other);
        let server = EchoServer::start(&world.host, family.host(), 8000);
        let mut stream = connect(&world.guest.net, (family.host(), 8000).into());
        assert_echo(&mut stream, b"it is on the list");
        assert_eq!(server.accepted(), 1);

        let datagrams = udp(&world.host, family.host(), 8000);
        let client = udp(&world.guest.net, family.guest(), 0);
        client.send_to(b"hello", (family.host(), 8000)).unwrap();
        datagrams
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        datagrams
            .recv(&mut [0; 8])
            .expect_err("a datagram went where only connections may");
        for (ip, port) in [(family.host(), 8001), (other, 8000)] {
            let service = listen(&world.host, ip, port);
            assert_turned_away(world, (ip, port).into());
            assert_never_reached(&service);
        }
    }
}

fn one_port_of_the_host(world: &mut World) {
    const HOST: [&str; 2] = ["192.0.2.200", "2001:db8:200::1"];
    let options = ["--map-host", HOST[0], "--map-host", HOST[1]];
    let rules = ["--egress", "allow:tcp:host:5432", "--egress", "deny:host"];
    let setup = options
        .iter()
        .chain(&rules)
        .fold(world.helper(), |setup, option| setup.option(option));
    let _helper = setup.start();
    for (family, shown) in Family::BOTH.into_iter().zip(HOST) {
        let shown: IpAddr = shown.parse().unwrap();
        let _server = EchoServer::start(&world.host, family.loopback(), 5432);
        let mut stream = connect(&world.guest.net, (shown, 5432).into());
        assert_echo(&mut stream, b"the host's database");
        let service = listen(&world.host, family.loopback(), 22);
        assert_turned_away(world, (shown, 22).into());
        assert_turned_away(world, (family.gateway(), 5432).into());
        assert_never_reached(&service);
    }
}

/// What talks in user space and what the kernel carries.
fn new_rules_end_flows(world: &mut World) {
    for promote in ["off", "always"] {
        let path = world.dir.join("api.sock");
        let setup = world.helper().option("--promote").option(promote);
        let _helper = setup.option("--api-socket").option(&path).start();
        let set = |rules: &[&str]| {
            let request = json!({"execute": "set_egress", "arguments": {"rules": rules}});
            let answer = slirp_api::ask(&path, request.to_string().as_bytes());
            assert_eq!(answer, r#"{"return":{}}"#);
        };
        for family in Family::BOTH {
            let remote = family.host();
            let _server = EchoServer::start(&world.host, remote, 8000);
            let _other = EchoServer::start(&world.host, remote, 8001);
            let mut prohibited = connect(&world.guest.net, (remote, 8000).into());
            let mut allowed = connect(&world.guest.net, (remote, 8001).into());
            assert_echo(&mut prohibited, b"before");
            assert_echo(&mut allowed, b"before");
            set(&["deny:any:8000"]);
            let error = prohibited.read(&mut [0; 8]).expect_err("it has been reset");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            assert_echo(&mut allowed, b"after");
            assert_turned_away(world, (remote, 8000).into());
            set(&[]);
            let mut stream = connect(&world.guest.net, (remote, 8000).into());
            assert_echo(&mut stream, b"allowed again");
        }
    }
}

/// The guest is told at once that it cannot connect; it need not wait for a timeout.
fn assert_turned_away(world: &World, remote: std::net::SocketAddr) {
    let error = try_connect(&world.guest.net, remote, SOON)
        .expect_err("the address is closed to the guest");
    let told = [
        Errno::ECONNREFUSED,
        Errno::EHOSTUNREACH,
        Errno::ENETUNREACH,
        Errno::EACCES,
    ];
    assert!(
        errno(&error).is_some_and(|errno| told.contains(&errno)),
        "{remote}: {error}"
    );
}

const SOON: Duration = Duration::from_secs(5);
