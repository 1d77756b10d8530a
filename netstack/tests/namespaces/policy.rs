//! What the guest must not reach: the host's loopback and the cloud's metadata service.

use std::net::IpAddr;
use std::time::Duration;

use nix::errno::Errno;

use crate::harness::traffic::{
    EchoServer, assert_echo, assert_never_reached, connect, listen, try_connect, udp, udp_echo,
};
use crate::harness::{Case, Family, World, case};
use crate::outbound::errno;

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
