//! Published ports (`-p`): who reaches the service, and whom the service sees.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::Duration;

use nix::errno::Errno;

use crate::harness::traffic::{
    EchoServer, STALL, accept, assert_echo, assert_end, assert_never_reached, connect, listen,
    try_connect, udp,
};
use crate::harness::{Case, Family, Netns, World, case, eventually, sys};
use crate::outbound::errno;

pub const CASES: &[Case] = &[
    case("published::from_elsewhere_v4", |world| {
        from_elsewhere(world, Family::V4)
    }),
    case("published::from_elsewhere_v6", |world| {
        from_elsewhere(world, Family::V6)
    }),
    case("published::from_host_loopback_v4", |world| {
        from_host_loopback(world, Family::V4)
    }),
    case("published::from_host_loopback_v6", |world| {
        from_host_loopback(world, Family::V6)
    }),
    case("published::from_host_address", from_host_address),
    case("published::same_client_port_twice", same_client_port_twice),
    case("published::specific_address", specific_address),
    case("published::port_range", port_range),
    case("published::nobody_listens", nobody_listens),
    case("published::service_of_one_family", service_of_one_family),
    case(
        "published::udp_service_of_one_family",
        udp_service_of_one_family,
    ),
    case(
        "published::service_on_guest_loopback",
        service_on_guest_loopback,
    ),
    case("published::inherited_listener", inherited_listener),
    case("published::udp_shows_the_source", udp_shows_the_source),
    case(
        "published::udp_answers_from_the_address_that_was_asked",
        udp_answers_from_the_address_that_was_asked,
    ),
    case(
        "published::udp_answers_a_neighbour",
        udp_answers_a_neighbour,
    ),
    case(
        "published::udp_bursts_to_two_addresses",
        udp_bursts_to_two_addresses,
    ),
    case("published::clash_is_exit_126", clash_is_exit_126),
    case(
        "published::clash_in_range_binds_nothing",
        clash_in_range_binds_nothing,
    ),
    case(
        "published::low_port_without_privilege",
        low_port_without_privilege,
    ),
];

/// The service sees the very address and port of a client that is not on the host.
fn from_elsewhere(world: &mut World, family: Family) {
    let helper = world.helper().publish("8080:80").start();
    let service = listen(&world.guest.net, family.unspecified(), 80);
    let baseline = helper.resting_fd_count();
    for _ in 0..3 {
        let mut client = connect(&world.elsewhere, (family.host(), 8080).into());
        let (mut served, source) = accept(&service);
        assert_eq!(
            source,
            client.local_addr().unwrap(),
            "the client's true address"
        );
        assert_eq!(served.local_addr().unwrap(), (family.guest(), 80).into());
        talk(&mut client, &mut served);
    }
    helper.expect_fds_back_to(baseline);
}

/// A client on the host's loopback appears as the gateway: as 127.0.0.1 it would pass for a process
/// of the container.
fn from_host_loopback(world: &mut World, family: Family) {
    let _helper = world.helper().publish("8080:80").start();
    let service = listen(&world.guest.net, family.unspecified(), 80);
    let mut client = connect(&world.host, (family.loopback(), 8080).into());
    let (mut served, source) = accept(&service);
    assert_eq!(source.ip(), family.gateway());
    talk(&mut client, &mut served);
}

/// A client on the host that uses a real interface's address is seen by that address.
fn from_host_address(world: &mut World) {
    let _helper = world.helper().publish("8080:80").start();
    for family in Family::BOTH {
        let service = listen(&world.guest.net, family.unspecified(), 80);
        let mut client = connect(&world.host, (family.host(), 8080).into());
        let (mut served, source) = accept(&service);
        assert_eq!(source, client.local_addr().unwrap());
        talk(&mut client, &mut served);
    }
}

/// Two loopback clients whose tuples become the same once their address is replaced by the
/// gateway's.
fn same_client_port_twice(world: &mut World) {
    let _helper = world.helper().publish("8080:80").start();
    let service = listen(&world.guest.net, Family::V4.unspecified(), 80);
    let mut connections = Vec::new();
    for source in ["127.0.0.1:45000", "127.0.0.2:45000"] {
        let client = world.host.run(|| {
            use nix::sys::socket::{
                AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket,
            };
            let address =
                |text: &str| SockaddrIn::from(text.parse::<std::net::SocketAddrV4>().unwrap());
            let client = socket(
                AddressFamily::Inet,
                SockType::Stream,
                SockFlag::SOCK_CLOEXEC,
                None,
            )
            .unwrap();
            use std::os::fd::AsRawFd;
            bind(client.as_raw_fd(), &address(source)).unwrap();
            connect(client.as_raw_fd(), &address("127.0.0.1:8080")).unwrap();
            std::net::TcpStream::from(client)
        });
        crate::harness::traffic::limit(&client);
        let (served, _) = accept(&service);
        connections.push((client, served));
    }
    for (client, served) in &mut connections {
        talk(client, served);
    }
}

fn specific_address(world: &mut World) {
    let _helper = world
        .helper()
        .publish("127.0.0.1:8080:80")
        .publish("[2001:db8::1]:8081:80")
        .start();
    let _service = EchoServer::start(&world.guest.net, Family::V4.unspecified(), 80);
    assert_echo(
        &mut connect(&world.host, "127.0.0.1:8080".parse().unwrap()),
        b"loopback only",
    );
    for unbound in ["198.51.100.1:8080", "198.51.100.1:8081"] {
        let error = try_connect(&world.elsewhere, unbound.parse().unwrap(), SOON)
            .expect_err("not published there");
        assert_eq!(errno(&error), Some(Errno::ECONNREFUSED), "{unbound}");
    }
    let _service = EchoServer::start(&world.guest.net, Family::V6.guest(), 80);
    assert_echo(
        &mut connect(&world.elsewhere, "[2001:db8::1]:8081".parse().unwrap()),
        b"IPv6 only",
    );
}

fn port_range(world: &mut World) {
    let _helper = world.helper().publish("8000-8002:80-82/tcp").start();
    for offset in 0..3 {
        let service = listen(&world.guest.net, Family::V4.guest(), 80 + offset);
        let mut client = connect(&world.elsewhere, (Family::V4.host(), 8000 + offset).into());
        talk(&mut client, &mut accept(&service).0);
    }
}

/// A service that listens in one family only, as many do, serves clients of the other one as the
/// gateway's.
fn service_of_one_family(world: &mut World) {
    let helper = world.helper().publish("8080:80").start();
    let baseline = helper.resting_fd_count();
    for (service, client) in [(Family::V4, Family::V6), (Family::V6, Family::V4)] {
        // `TcpListener` binds IPv6 for both families unless it is to an address.
        let address = match service {
            Family::V4 => service.unspecified(),
            Family::V6 => service.guest(),
        };
        let listener = listen(&world.guest.net, address, 80);
        for (netns, host) in [
            (&world.elsewhere, client.host()),
            (&world.host, client.loopback()),
        ] {
            let mut stream = connect(netns, (host, 8080).into());
            let (mut served, source) = accept(&listener);
            assert_eq!(source.ip(), service.gateway());
            talk(&mut stream, &mut served);
        }
        // Its own clients are seen as themselves.
        let mut stream = connect(&world.elsewhere, (service.host(), 8080).into());
        let (mut served, source) = accept(&listener);
        assert_eq!(source, stream.local_addr().unwrap());
        talk(&mut stream, &mut served);
    }
    helper.expect_fds_back_to(baseline);
}

/// The same over UDP: the very first datagram arrives.
fn udp_service_of_one_family(world: &mut World) {
    let _helper = world.helper().publish("5300:53/udp").start();
    for (family, other) in [(Family::V4, Family::V6), (Family::V6, Family::V4)] {
        let service = udp(&world.guest.net, family.guest(), 53);
        let client = udp(&world.elsewhere, other.elsewhere(), 0);
        client.connect((other.host(), 5300)).unwrap();
        for query in [&b"first"[..], b"second"] {
            let mut buffer = [0; 64];
            client.send(query).unwrap();
            let (count, source) = service
                .recv_from(&mut buffer)
                .expect("the datagram arrives");
            assert_eq!((&buffer[..count], source.ip()), (query, family.gateway()));
            service.send_to(b"answer", source).unwrap();
            let count = client.recv(&mut buffer).expect("the answer comes back");
            assert_eq!(&buffer[..count], b"answer");
        }
    }
}

/// The host port is bound, so the handshake cannot be refused; the connection ends at once instead.
fn nobody_listens(world: &mut World) {
    let helper = world.helper().publish("8080:80").start();
    let baseline = helper.resting_fd_count();
    for family in Family::BOTH {
        assert_ends_at_once(world, (family.host(), 8080).into());
    }
    helper.expect_fds_back_to(baseline);
}

/// Delivery is to the guest's own address, so that what listens on the container's 127.0.0.1 stays
/// private.
fn service_on_guest_loopback(world: &mut World) {
    let _helper = world.helper().publish("8080:80").start();
    for family in Family::BOTH {
        let service = listen(&world.guest.net, family.loopback(), 80);
        assert_ends_at_once(world, (family.host(), 8080).into());
        assert_never_reached(&service);
    }
}

/// A listener that the caller bound, before there was any namespace.
fn inherited_listener(world: &mut World) {
    let listener = listen(&world.host, Family::V4.loopback(), 8080);
    let rule = format!("{}=127.0.0.1:8080:80/tcp", sys::inherit(&listener));
    let _helper = world.helper().option("--publish-fd").option(rule).start();
    drop(listener);
    let _service = EchoServer::start(&world.guest.net, Family::V4.guest(), 80);
    assert_echo(
        &mut connect(&world.host, "127.0.0.1:8080".parse().unwrap()),
        b"inherited",
    );
}

fn udp_shows_the_source(world: &mut World) {
    let _helper = world.helper().publish("5300:53/udp").start();
    for family in Family::BOTH {
        let service = udp(&world.guest.net, family.guest(), 53);
        let mut buffer = [0; 64];
        for (netns, client_address, host, seen) in [
            (
                &world.elsewhere,
                family.elsewhere(),
                family.host(),
                family.elsewhere(),
            ),
            (
                &world.host,
                family.loopback(),
                family.loopback(),
                family.gateway(),
            ),
        ] {
            let client = udp(netns, client_address, 0);
            client.connect((host, 5300)).unwrap();
            client.send(b"query").unwrap();
            let (count, source) = service
                .recv_from(&mut buffer)
                .expect("the datagram arrives");
            assert_eq!((&buffer[..count], source.ip()), (&b"query"[..], seen));
            if seen == client_address {
                assert_eq!(source, client.local_addr().unwrap());
            }
            service.send_to(b"answer", source).unwrap();
            let count = client
                .recv(&mut buffer)
                .expect("the answer comes from the published port");
            assert_eq!(&buffer[..count], b"answer");
        }
    }
}

/// A host with several addresses: a client knows an answer by the address that it has asked.
fn udp_answers_from_the_address_that_was_asked(world: &mut World) {
    let _helper = world.helper().publish("5300:53/udp").start();
    for (family, second, prefix) in [
        (Family::V4, "198.51.100.9", 24),
        (Family::V6, "2001:db8::9", 64),
    ] {
        let second: IpAddr = second.parse().unwrap();
        world
            .host
            .link(|links| links.add_address("up0", second, prefix));
        world.host.wait_until_local(second);
        let service = udp(&world.guest.net, family.guest(), 53);
        let client = udp(&world.elsewhere, family.elsewhere(), 0);
        let mut buffer = [0; 64];
        let mut sources = HashSet::new();
        for round in 0..3 {
            for asked in [second, family.host()] {
                let asked = SocketAddr::new(asked, 5300);
                client.send_to(&[round], asked).unwrap();
                let (_, source) = service.recv_from(&mut buffer).expect("the question");
                assert_eq!(source.ip(), family.elsewhere());
                sources.insert(source);
                service.send_to(b"answer", source).unwrap();
                let (count, answerer) = client.recv_from(&mut buffer).expect("the answer");
                assert_eq!((&buffer[..count], answerer), (&b"answer"[..], asked));
            }
        }
        assert_eq!(sources.len(), 2, "a flow with each: {sources:?}");
    }
}

/// A neighbour of the host's that has no other address asks by a link-local one.
fn udp_answers_a_neighbour(world: &mut World) {
    let _helper = world.helper().publish("5300:53/udp").start();
    let (host, _) = link_local(&world.host);
    let (own, interface) = link_local(&world.elsewhere);
    let service = udp(&world.guest.net, Family::V6.guest(), 53);
    let bound = SocketAddrV6::new(own, 0, 0, interface);
    let client = world.elsewhere.run(|| UdpSocket::bind(bound));
    let client = client.expect("bind to a link-local address");
    client.set_read_timeout(Some(STALL)).unwrap();
    let asked = SocketAddrV6::new(host, 5300, 0, interface);
    let mut buffer = [0; 64];
    client.send_to(b"query", asked).unwrap();
    let (_, source) = service.recv_from(&mut buffer).expect("the question");
    assert_eq!(source.ip(), Family::V6.gateway());
    service.send_to(b"answer", source).unwrap();
    let (count, answerer) = client.recv_from(&mut buffer).expect("the answer");
    assert_eq!((&buffer[..count], answerer), (&b"answer"[..], asked.into()));
}

/// The link-local address of `up0` in `netns`, once it is known that nobody else has it (RFC 4862
/// 5.4), and the interface's index there.
fn link_local(netns: &Netns) -> (Ipv6Addr, u32) {
    /// IFA_F_TENTATIVE (linux/if_addr.h).
    const TENTATIVE: u32 = 0x40;
    let mut found = None;
    eventually("up0 has a link-local address", LONG, || {
        let table = netns.run(|| fs::read_to_string("/proc/thread-self/net/if_inet6"));
        let table = table.expect("the IPv6 addresses");
        let mut lines = table.lines().filter(|line| line.starts_with("fe80"));
        found = lines.find(|line| line.ends_with(" up0")).and_then(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |word: &str| u32::from_str_radix(word, 16).expect("a number");
            let bits = u128::from_str_radix(words[0], 16).expect("an address");
            let is_ready = number(words[4]) & TENTATIVE == 0;
            is_ready.then(|| (Ipv6Addr::from_bits(bits), number(words[1])))
        });
        found.is_some()
    });
    found.expect("just seen")
}

/// Duplicates are looked for during a second or two.
const LONG: Duration = Duration::from_secs(10);

/// Datagrams that come in a row stay in their order, and each with whom it was sent to.
fn udp_bursts_to_two_addresses(world: &mut World) {
    const EACH: usize = 50;
    let _helper = world.helper().publish("5300:53/udp").start();
    let second: IpAddr = "198.51.100.9".parse().unwrap();
    world
        .host
        .link(|links| links.add_address("up0", second, 24));
    let service = udp(&world.guest.net, Family::V4.guest(), 53);
    let client = udp(&world.elsewhere, Family::V4.elsewhere(), 0);
    let asked = [Family::V4.host(), second].map(|ip| SocketAddr::new(ip, 5300));
    for number in 0..EACH {
        for asked in asked {
            client.send_to(&number.to_be_bytes(), asked).unwrap();
        }
    }
    let mut next = HashMap::new();
    for _ in 0..2 * EACH {
        let mut number = [0; 8];
        let (_, source) = service.recv_from(&mut number).expect("each arrives");
        let expected = next.entry(source).or_insert(0usize);
        assert_eq!(usize::from_be_bytes(number), *expected, "{source}");
        *expected += 1;
    }
    assert_eq!(next.len(), 2, "{next:?}");
}

fn clash_is_exit_126(world: &mut World) {
    let _taken = listen(&world.host, Family::V4.loopback(), 8080);
    let (code, text) = world.helper().publish("127.0.0.1:8080:80").fail();
    assert_eq!(code, 126, "{text}");
    assert!(
        text.contains("127.0.0.1:8080") && text.contains("in use"),
        "{text}"
    );
    assert!(
        !guest_has_tap(world),
        "a failed helper leaves no link behind"
    );
}

fn clash_in_range_binds_nothing(world: &mut World) {
    let _taken = listen(&world.host, Family::V4.loopback(), 8002);
    let (code, text) = world.helper().publish("127.0.0.1:8000-8003:80-83").fail();
    assert_eq!(code, 126, "{text}");
    assert!(text.contains("8002"), "{text}");
    for port in [8000, 8001, 8003] {
        listen(&world.host, Family::V4.loopback(), port);
    }
}

fn low_port_without_privilege(world: &mut World) {
    use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
    let setup = world.helper().publish("127.0.0.1:80:80");
    // Root gets from exec what its thread's bounding set still holds.
    let (code, text) = world.host.run(|| {
        remove_capability_from_bounding_set(CapabilitySet::NET_BIND_SERVICE)
            .expect("drop a capability");
        setup.fail()
    });
    assert_eq!(code, 126, "{text}");
    assert!(
        text.contains("127.0.0.1:80") && text.contains("ip_unprivileged_port_start"),
        "{text}"
    );
}

/// A message each way, then an orderly end from the client.
fn talk(client: &mut std::net::TcpStream, served: &mut std::net::TcpStream) {
    use std::io::{Read, Write};
    let mut buffer = [0; 8];
    client.write_all(b"question").unwrap();
    served
        .read_exact(&mut buffer)
        .expect("the question arrives");
    assert_eq!(&buffer, b"question");
    served.write_all(b"response").unwrap();
    client
        .read_exact(&mut buffer)
        .expect("the response arrives");
    assert_eq!(&buffer, b"response");
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_end(served);
    served.shutdown(std::net::Shutdown::Write).unwrap();
    assert_end(client);
}

/// A client from elsewhere is let go soon and without a byte. The handshake is the host kernel's,
/// so what the client sees depends on how far it got: refused, reset, or an end.
fn assert_ends_at_once(world: &World, address: SocketAddr) {
    use std::io::Read;
    let heard = try_connect(&world.elsewhere, address, SOON).and_then(|mut client| {
        client.set_read_timeout(Some(SOON))?;
        client.read(&mut [0; 8])
    });
    match heard {
        Ok(count) => assert_eq!(count, 0),
        Err(error) => {
            let told = [Errno::ECONNREFUSED, Errno::ECONNRESET, Errno::EPIPE];
            assert!(
                errno(&error).is_some_and(|errno| told.contains(&errno)),
                "{error}"
            );
        }
    }
}

fn guest_has_tap(world: &World) -> bool {
    world
        .guest
        .net
        .run(|| nix::net::if_::if_nametoindex("tap0").is_ok())
}

const SOON: Duration = Duration::from_secs(5);
