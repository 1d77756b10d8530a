//! Ports in pasta's words: each form of `-t`, `-u`, `-T` and `-U`, ports that follow who listens,
//! and `pesto`.

pub mod pesto;
mod program;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use nix::errno::Errno;

use self::program::Pasta;
use crate::harness::traffic::{
    EchoServer, Pattern, accept, assert_echo, assert_end, connect, listen, pass, try_connect, udp,
    udp_echo,
};
use crate::harness::{Case, Family, Netns, World, case, eventually};
use crate::outbound::errno;

pub const CASES: &[Case] = &[
    case("ports::every_form_tcp", every_form_tcp),
    case("ports::every_form_udp", every_form_udp),
    case("ports::interfaces", interfaces),
    case("ports::many_ports", many_ports),
    case(
        "ports::clients_keep_their_address",
        clients_keep_their_address,
    ),
    case(
        "ports::out_to_the_hosts_loopback",
        out_to_the_hosts_loopback,
    ),
    case("ports::out_datagrams", out_datagrams),
    case(
        "ports::in_from_loopback_to_loopback",
        in_from_loopback_to_loopback,
    ),
    case("ports::automatic_inbound", automatic_inbound),
    case("ports::automatic_both_ways", automatic_both_ways),
    case("ports::taken_port_is_named", taken_port_is_named),
    case("ports::port_is_given_back_late", port_is_given_back_late),
    case("ports::restart_at_once", restart_at_once),
];

/// How long a port may take to follow. It is a second; a busy machine may need more.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(20);
const LENGTH: usize = 3 << 20;

/// Moves bytes both ways between the ends of a connection and compares each.
fn exchange(client: &TcpStream, server: &TcpStream) {
    let mut there = [Pattern::new(1), Pattern::new(1)];
    let mut back = [Pattern::new(2), Pattern::new(2)];
    pass(client, server, &mut there, LENGTH);
    pass(server, client, &mut back, LENGTH);
}

/// A client in `from` gets to `service` at `entry`.
fn assert_leads(from: &Netns, entry: SocketAddr, service: &TcpListener) {
    let mut client = connect(from, entry);
    let (mut served, _) = accept(service);
    client.write_all(b"?").expect("ask");
    let mut heard = [0];
    served.read_exact(&mut heard).expect("hear");
    drop(served);
    assert_end(&mut client);
}

fn assert_refused(from: &Netns, entry: SocketAddr) {
    let refused = try_connect(from, entry, Duration::from_secs(10)).expect_err("nobody is there");
    assert_eq!(errno(&refused), Some(Errno::ECONNREFUSED), "{entry}");
}

fn expect_refused(from: &Netns, entry: SocketAddr) {
    eventually(&format!("{entry} is free"), FOLLOWED_WITHIN, || {
        let refused = try_connect(from, entry, Duration::from_secs(10));
        refused.is_err_and(|error| errno(&error) == Some(Errno::ECONNREFUSED))
    });
}

fn expect_open(from: &Netns, entry: SocketAddr) {
    eventually(&format!("{entry} is forwarded"), FOLLOWED_WITHIN, || {
        let stream = try_connect(from, entry, Duration::from_secs(10));
        stream.is_ok_and(|mut stream| {
            let asked = stream.write_all(b"?").is_ok();
            asked && stream.read(&mut [0]).is_ok_and(|len| len == 1)
        })
    });
}

/// Specifications, and ports of the host's with the address and the guest's port that they lead to.
const FORMS: &[(&str, &[(&str, u16)])] = &[
    ("8001", &[("127.0.0.1:8001", 8001), ("[::1]:8001", 8001)]),
    ("8002:82", &[("127.0.0.1:8002", 82), ("[::1]:8002", 82)]),
    (
        "8003,8004:84",
        &[("127.0.0.1:8003", 8003), ("127.0.0.1:8004", 84)],
    ),
    (
        "8010-8012",
        &[("127.0.0.1:8010", 8010), ("127.0.0.1:8012", 8012)],
    ),
    (
        "8020-8022:120-122",
        &[("127.0.0.1:8020", 120), ("[::1]:8022", 122)],
    ),
    (
        "8030-8034,~8032",
        &[("127.0.0.1:8031", 8031), ("127.0.0.1:8033", 8033)],
    ),
    (
        "*/8040",
        &[("198.51.100.1:8040", 8040), ("[2001:db8::1]:8040", 8040)],
    ),
    ("198.51.100.1/8050:150", &[("198.51.100.1:8050", 150)]),
    ("::1/8051-8051:151-151", &[("[::1]:8051", 151)]),
    ("[2001:db8::1]/8052", &[("[2001:db8::1]:8052", 8052)]),
    (
        "%lo/8060",
        &[("127.0.0.1:8060", 8060), ("[::1]:8060", 8060)],
    ),
    ("127.0.0.1%lo/8061", &[("127.0.0.1:8061", 8061)]),
];
/// Where none of them listens.
const NOT_FORWARDED: &[&str] = &[
    "127.0.0.1:8000",
    "127.0.0.1:8013",
    "127.0.0.1:8032",
    "127.0.0.1:8050",
    "[2001:db8::1]:8050",
    "[2001:db8::1]:8051",
    "127.0.0.1:82",
];

fn entry(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn every_form_tcp(world: &mut World) {
    let options: Vec<&str> = FORMS.iter().flat_map(|(spec, _)| ["-t", spec]).collect();
    let _pasta = Pasta::start(world, &options);
    for (spec, ways) in FORMS {
        for (from, port) in *ways {
            let service = listen(&world.guest.net, Family::V6.unspecified(), *port);
            eprintln!("{spec}: {from}");
            assert_leads(&world.host, entry(from), &service);
        }
    }
    for from in NOT_FORWARDED {
        assert_refused(&world.host, entry(from));
    }
    for family in Family::BOTH {
        let service = listen(&world.guest.net, family.unspecified(), 8001);
        let client = connect(&world.elsewhere, (family.host(), 8001).into());
        let (served, _) = accept(&service);
        exchange(&client, &served);
    }
}

fn every_form_udp(world: &mut World) {
    let options: Vec<&str> = FORMS.iter().flat_map(|(spec, _)| ["-u", spec]).collect();
    let _pasta = Pasta::start(world, &options);
    for (spec, ways) in FORMS {
        for (from, port) in *ways {
            let _service = udp_echo(&world.guest.net, Family::V6.unspecified(), *port);
            let from = entry(from);
            let client = udp(&world.host, from.ip(), 0);
            let datagram: Vec<u8> = (0..1200u32).map(|byte| (byte % 251) as u8).collect();
            client.send_to(&datagram, from).expect("send");
            let mut answer = [0; 2000];
            let (len, sender) = client.recv_from(&mut answer).expect("an answer");
            assert_eq!((&answer[..len], sender), (&datagram[..], from), "{spec}");
        }
    }
}

/// What is bound to an interface is not heard at another one.
fn interfaces(world: &mut World) {
    let options = [
        "-t",
        "%up0/8030",
        "-t",
        "198.51.100.1%up0/8031",
        "-u",
        "%up0/8030",
    ];
    let _pasta = Pasta::start(world, &options);
    let service = listen(&world.guest.net, Family::V6.unspecified(), 8030);
    for family in Family::BOTH {
        assert_leads(&world.elsewhere, (family.host(), 8030).into(), &service);
        assert_refused(&world.host, (family.loopback(), 8030).into());
    }
    let service = listen(&world.guest.net, Family::V6.unspecified(), 8031);
    assert_leads(&world.elsewhere, entry("198.51.100.1:8031"), &service);
    let (code, text) = Pasta::fail(world, &["-t", "%nosuch0/9000"]);
    let expected = "Failed to bind port 9000 (No such device) for option '-t %nosuch0/9000'";
    assert!(code == 1 && text.contains(expected), "{code} {text}");
}

fn many_ports(world: &mut World) {
    let _pasta = Pasta::start(world, &["-t", "20000-20999:1000-1999", "-u", "20000-20999"]);
    for port in [20000, 20500, 20999] {
        let service = listen(&world.guest.net, Family::V4.unspecified(), port - 19000);
        assert_leads(&world.host, (Family::V4.loopback(), port).into(), &service);
    }
}

fn clients_keep_their_address(world: &mut World) {
    let _pasta = Pasta::start(world, &["-t", "8080:80", "-u", "8080:80"]);
    for family in Family::BOTH {
        let service = listen(&world.guest.net, family.unspecified(), 80);
        let client = connect(&world.elsewhere, (family.host(), 8080).into());
        let (_, seen) = accept(&service);
        assert_eq!(Ok(seen), client.local_addr().map_err(|_| ()));
        let service = udp(&world.guest.net, family.unspecified(), 80);
        let client = udp(&world.elsewhere, family.elsewhere(), 0);
        client.send_to(b"?", (family.host(), 8080)).expect("send");
        let (_, seen) = service.recv_from(&mut [0; 2]).expect("a datagram");
        assert_eq!(seen.ip(), family.elsewhere());
    }
}

/// `-T`: from the guest's loopback to the host's, which may serve one family only.
fn out_to_the_hosts_loopback(world: &mut World) {
    let _pasta = Pasta::start(world, &["-T", "9000,9001:9002"]);
    for family in Family::BOTH {
        let service = listen(&world.host, family.loopback(), 9000);
        let client = connect(&world.guest.net, (family.loopback(), 9000).into());
        let (served, seen) = accept(&service);
        assert!(seen.ip().is_loopback(), "{seen}");
        exchange(&client, &served);
        drop(served);
        let mut client = client;
        assert_end(&mut client);
    }
    let service = listen(&world.host, Family::V4.loopback(), 9002);
    for family in Family::BOTH {
        assert_leads(&world.guest.net, (family.loopback(), 9001).into(), &service);
    }
    drop(service);
    let nobody = SocketAddr::from((Family::V4.loopback(), 9001));
    let reset = match try_connect(&world.guest.net, nobody, Duration::from_secs(10)) {
        Ok(mut client) => client.read(&mut [0]).expect_err("nobody serves it"),
        // It was faster.
        Err(reset) => reset,
    };
    assert_eq!(errno(&reset), Some(Errno::ECONNRESET));
    // Only by the guest's loopback.
    assert_refused(&world.host, (Family::V4.loopback(), 9001).into());
    assert_refused(&world.elsewhere, (Family::V4.host(), 9001).into());
}

fn out_datagrams(world: &mut World) {
    let _pasta = Pasta::start(world, &["-U", "5300:53"]);
    for family in Family::BOTH {
        let _service = udp_echo(&world.host, family.loopback(), 53);
        let clients = [1, 2].map(|_| udp(&world.guest.net, family.loopback(), 0));
        for (nth, client) in clients.iter().enumerate() {
            let question = vec![nth as u8; 1000];
            let to = SocketAddr::from((family.loopback(), 5300));
            client.send_to(&question, to).expect("send");
            let mut answer = [0; 2000];
            let (len, from) = client.recv_from(&mut answer).expect("an answer");
            assert_eq!((&answer[..len], from), (&question[..], to));
        }
    }
}

fn in_from_loopback_to_loopback(world: &mut World) {
    let options = ["--host-lo-to-ns-lo", "-t", "8080:80", "-u", "8080:80"];
    let _pasta = Pasta::start(world, &options);
    for family in Family::BOTH {
        let service = listen(&world.guest.net, family.loopback(), 80);
        let entry = SocketAddr::from((family.loopback(), 8080));
        let client = connect(&world.host, entry);
        let (served, seen) = accept(&service);
        assert!(seen.ip().is_loopback(), "{seen}");
        exchange(&client, &served);
        // From elsewhere the guest's own address is the way, where nobody listens.
        let outside = try_connect(
            &world.elsewhere,
            (family.host(), 8080).into(),
            Duration::from_secs(10),
        );
        if let Ok(mut stream) = outside {
            assert!(stream.read(&mut [0]).is_err(), "loopback is reached");
        }
        let _echo = udp_echo(&world.guest.net, family.loopback(), 80);
        let client = udp(&world.host, family.loopback(), 0);
        client.send_to(b"question", entry).expect("send");
        let mut answer = [0; 20];
        let (len, from) = client.recv_from(&mut answer).expect("an answer");
        assert_eq!((&answer[..len], from), (&b"question"[..], entry));
    }
}

fn automatic_inbound(world: &mut World) {
    let early = EchoServer::start(&world.guest.net, Family::V4.unspecified(), 7000);
    let taken = listen(&world.host, Family::V4.unspecified(), 7003);
    let options = ["-t", "auto", "-u", "auto", "-t", "7100-7110:80-90,auto"];
    // A port of its own range is no contradiction to `auto` unless both could mean it.
    let _pasta = Pasta::start(
        world,
        &["-t", "auto,~7100-7110", "-u", "auto", "-t", options[5]],
    );
    let loopback = |port| SocketAddr::from((Family::V4.loopback(), port));
    // It was there before, so it is forwarded from the start.
    assert_echo(&mut connect(&world.host, loopback(7000)), b"early");

    let late = EchoServer::start(&world.guest.net, Family::V4.unspecified(), 7001);
    expect_open(&world.host, loopback(7001));
    let mapped = EchoServer::start(&world.guest.net, Family::V4.unspecified(), 85);
    expect_open(&world.host, loopback(7105));
    // One that cannot be bound is left out, and holds up no other.
    let _in_vain = EchoServer::start(&world.guest.net, Family::V4.unspecified(), 7003);
    // What listens on the guest's loopback only is not published.
    let _private = EchoServer::start(&world.guest.net, Family::V4.loopback(), 7004);
    let after = EchoServer::start(&world.guest.net, Family::V4.unspecified(), 7005);
    expect_open(&world.host, loopback(7005));
    assert_refused(&world.host, loopback(7004));
    drop(taken);

    let echo = udp_echo(&world.guest.net, Family::V4.unspecified(), 7010);
    let client = udp(&world.host, Family::V4.loopback(), 0);
    client
        .set_read_timeout(Some(Duration::from_millis(100)))
        .expect("read deadline");
    eventually("UDP is forwarded", FOLLOWED_WITHIN, || {
        let _ = client.send_to(b"?", loopback(7010));
        client.recv_from(&mut [0; 2]).is_ok()
    });

    // A connection outlives its port.
    let mut open = connect(&world.host, loopback(7001));
    assert_echo(&mut open, b"before");
    drop((early, mapped, after, echo));
    for port in [7000, 7105, 7005] {
        expect_refused(&world.host, loopback(port));
    }
    assert_echo(&mut open, b"after");
    drop(open);
    drop(late);
    expect_refused(&world.host, loopback(7001));
}

/// A port that goes in never comes out again: each goes away with its service.
fn automatic_both_ways(world: &mut World) {
    let options = ["-t", "auto", "-u", "auto", "-T", "auto", "-U", "auto"];
    let _pasta = Pasta::start(world, &options);
    let loopback = |port| SocketAddr::from((Family::V4.loopback(), port));
    for _ in 0..2 {
        let inside = EchoServer::start(&world.guest.net, Family::V4.unspecified(), 7000);
        let outside = EchoServer::start(&world.host, Family::V4.loopback(), 9000);
        expect_open(&world.host, loopback(7000));
        expect_open(&world.guest.net, loopback(9000));
        // For as long as a few looks, neither is taken for a service of the other side.
        std::thread::sleep(Duration::from_secs(2));
        drop((inside, outside));
        expect_refused(&world.host, loopback(7000));
        expect_refused(&world.guest.net, loopback(9000));
    }
}

/// An engine starts the next helper at once, when the one before still has to notice its end.
fn port_is_given_back_late(world: &mut World) {
    let before = listen(&world.host, Family::V4.unspecified(), 8081);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            drop(before);
        });
        let _pasta = Pasta::start(world, &["-t", "8081"]);
    });
}

fn taken_port_is_named(world: &mut World) {
    let _taken = listen(&world.host, Family::V4.unspecified(), 8081);
    let (code, text) = Pasta::fail(world, &["-t", "8080-8082"]);
    let expected =
        "Failed to bind port 8081 (Address already in use) for option '-t 8080-8082', exiting";
    assert!(code == 1 && text.contains(expected), "{code} {text}");
    let _taken = listen(&world.guest.net, Family::V4.unspecified(), 9000);
    let (code, text) = Pasta::fail(world, &["-T", "9000"]);
    let expected =
        "Failed to bind port 9000 (Address already in use) for option '-T 9000', exiting";
    assert!(code == 1 && text.contains(expected), "{code} {text}");
    for (options, part) in [
        (
            &["-t", "all"][..],
            "'all' port forwarding is only allowed for passt",
        ),
        (
            &["-t", "80", "-t", "none"],
            "-t none conflicts with previous options",
        ),
        (
            &["-T", "127.0.0.1/80"],
            "Listening address not allowed for -T 127.0.0.1/80",
        ),
        (&["-u", "http"], "Invalid port specifier 'http'"),
    ] {
        let (code, text) = Pasta::fail(world, options);
        assert!(
            code == 1 && text.contains(part),
            "{options:?}: {code} {text}"
        );
    }
}

fn restart_at_once(world: &mut World) {
    for _ in 0..3 {
        let pasta = Pasta::start(world, &["-t", "8080:80", "-T", "9000", "-u", "8080"]);
        let service = listen(&world.guest.net, Family::V4.unspecified(), 80);
        assert_leads(&world.host, entry("127.0.0.1:8080"), &service);
        drop(pasta);
        let free = listen(&world.host, Family::V4.unspecified(), 8080);
        drop(free);
    }
}
