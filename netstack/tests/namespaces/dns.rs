//! The forwarder on the DNS addresses: both families, UDP and TCP, and a resolv.conf that changes.

use std::fs;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::time::Duration;

use testbed::resolver::Resolver;

use crate::harness::traffic::{connect, try_connect, udp};
use crate::harness::{Case, Family, Netns, World, case, eventually};

pub const CASES: &[Case] = &[
    case("dns::over_udp", over_udp),
    case("dns::over_tcp", over_tcp),
    case("dns::resolver_on_host_loopback", resolver_on_host_loopback),
    case("dns::resolv_conf_rewritten", |world| {
        resolv_conf_changes(world, write_in_place)
    }),
    case("dns::resolv_conf_replaced", |world| {
        resolv_conf_changes(world, replace_by_rename)
    }),
    case("dns::first_resolver_refuses", first_resolver_refuses),
    case("dns::first_resolver_is_silent", first_resolver_is_silent),
    case("dns::many_questions", many_questions),
    case("dns::disabled", disabled),
];

fn over_udp(world: &mut World) {
    let resolver = Resolver::start(&world.elsewhere, Family::V4.elsewhere(), 1);
    let helper = world.helper().start();
    let baseline = helper.resting_fd_count();
    for family in Family::BOTH {
        for id in 0..50 {
            let answer = ask_udp(&world.guest.net, family.dns(), id).expect("an answer");
            assert_eq!(answer, 1);
        }
    }
    assert!(resolver.asked() >= 100);
    // Forwarded queries must not hold their sockets for long after the answer.
    eventually("query sockets are closed", Duration::from_secs(60), || {
        helper.fd_count() <= baseline + 8
    });
}

fn over_tcp(world: &mut World) {
    let _resolver = Resolver::start(&world.elsewhere, Family::V4.elsewhere(), 1);
    let _helper = world.helper().start();
    for family in Family::BOTH {
        let mut stream = connect(&world.guest.net, (family.dns(), 53).into());
        for id in [7, 8] {
            let query = query(id);
            ask_over_tcp(&mut stream, &query);
            assert_eq!(parse_answer(&query, &answer_over_tcp(&mut stream)), 1);
        }
    }
}

/// systemd-resolved and dnsmasq listen on the host's loopback; the forwarder may go there, the
/// guest may not.
fn resolver_on_host_loopback(world: &mut World) {
    set_resolvers(write_in_place, "127.0.0.53");
    let _resolver = Resolver::start(&world.host, "127.0.0.53".parse().unwrap(), 53);
    let _helper = world.helper().start();
    assert_eq!(ask_udp(&world.guest.net, Family::V4.dns(), 1), Some(53));
}

pub fn resolv_conf_changes(world: &mut World, write: fn(&str)) {
    let _first = Resolver::start(&world.elsewhere, Family::V4.elsewhere(), 1);
    let _second = Resolver::start(&world.host, Family::V4.host(), 2);
    let _third = Resolver::start(&world.elsewhere, Family::V6.elsewhere(), 3);
    let _helper = world.helper().start();
    assert_eq!(ask_udp(&world.guest.net, Family::V4.dns(), 1), Some(1));
    for (resolver, address) in [
        (2, Family::V4.host()),
        (3, Family::V6.elsewhere()),
        (1, Family::V4.elsewhere()),
    ] {
        set_resolvers(write, &address.to_string());
        eventually(
            &format!("resolver {address} is asked"),
            Duration::from_secs(10),
            || ask_udp(&world.guest.net, Family::V4.dns(), 2) == Some(resolver),
        );
    }
}

/// A resolver elsewhere is asked, which [`crate::harness`] lists from the start.
/// Queries to `forwarder` go to a resolver elsewhere.
pub fn assert_answered_by_elsewhere(world: &World, forwarder: IpAddr) {
    let _resolver = Resolver::start(&world.elsewhere, Family::V4.elsewhere(), 1);
    assert_eq!(ask_udp(&world.guest.net, forwarder, 1), Some(1));
}

/// A first resolver that refuses costs one attempt: the next question goes to the second.
fn first_resolver_refuses(world: &mut World) {
    set_resolvers(write_in_place, "198.51.100.7\nnameserver 198.51.100.1");
    let _second = Resolver::start(&world.host, Family::V4.host(), 2);
    let _helper = world.helper().start();
    eventually(
        "the second resolver is asked",
        Duration::from_secs(10),
        || ask_udp(&world.guest.net, Family::V4.dns(), 3) == Some(2),
    );
}

/// A first resolver that is silent costs a timeout: the question repeated, as a stub resolver does,
/// goes to the second.
fn first_resolver_is_silent(world: &mut World) {
    set_resolvers(write_in_place, "203.0.113.9\nnameserver 198.51.100.1");
    let _second = Resolver::start(&world.host, Family::V4.host(), 2);
    let _helper = world.helper().start();
    let client = udp(&world.guest.net, Family::V4.unspecified(), 0);
    client
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    client.connect((Family::V4.dns(), 53)).unwrap();
    let query = query(9);
    let mut answer = [0; 1500];
    let heard = (0..5).find_map(|_| {
        client.send(&query).expect("ask");
        client.recv(&mut answer).ok()
    });
    assert_eq!(
        parse_answer(&query, &answer[..heard.expect("an answer")]),
        2
    );
}

/// Each question comes from a port of its own; more of them than the helper has mappings, faster
/// than those expire.
fn many_questions(world: &mut World) {
    let _resolver = Resolver::start(&world.elsewhere, Family::V4.elsewhere(), 1);
    let _helper = world.helper().start();
    for id in 0..6000 {
        assert_eq!(
            ask_udp(&world.guest.net, Family::V4.dns(), id),
            Some(1),
            "question {id}"
        );
    }
}

fn disabled(world: &mut World) {
    let resolver = Resolver::start(&world.elsewhere, Family::V4.elsewhere(), 1);
    let _helper = world.helper().option("--disable-dns").start();
    for family in Family::BOTH {
        assert_eq!(ask_udp(&world.guest.net, family.dns(), 4), None);
        try_connect(
            &world.guest.net,
            (family.dns(), 53).into(),
            Duration::from_secs(2),
        )
        .expect_err("nobody there");
    }
    assert_eq!(resolver.asked(), 0);
}

/// Makes the case's resolv.conf name one resolver.
pub fn set_resolvers(write: fn(&str), address: &str) {
    write(&format!(
        "# changed by a test\nsearch example\nnameserver {address}\noptions edns0\n"
    ));
}

pub fn write_in_place(text: &str) {
    fs::write("/etc/resolv.conf", text).expect("rewrite resolv.conf");
}

pub fn replace_by_rename(text: &str) {
    fs::write("/etc/resolv.conf.new", text).expect("write the new resolv.conf");
    fs::rename("/etc/resolv.conf.new", "/etc/resolv.conf").expect("replace resolv.conf");
}

/// Asks for example.test's address; the answer's last octet tells which resolver gave it.
pub fn ask_udp(netns: &Netns, server: IpAddr, id: u16) -> Option<u8> {
    let any = if server.is_ipv4() {
        Family::V4
    } else {
        Family::V6
    };
    let client = udp(netns, any.unspecified(), 0);
    client
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    client.connect((server, 53)).unwrap();
    let query = query(id);
    client.send(&query).ok()?;
    let mut answer = [0; 1500];
    let count = client.recv(&mut answer).ok()?;
    Some(parse_answer(&query, &answer[..count]))
}

/// A query for `example.test. IN A`, RFC 1035 section 4.1, recursion desired.
fn query(id: u16) -> Vec<u8> {
    query_for(id, "example.test", A)
}

/// Types of records (RFC 1035 3.2.2, RFC 3596 2.1).
pub const A: u8 = 1;
pub const PTR: u8 = 12;
pub const AAAA: u8 = 28;

/// A query for the records of `kind` that `name` has.
pub fn query_for(id: u16, name: &str, kind: u8) -> Vec<u8> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, kind, 0, 1]);
    query
}

/// The answer of the forwarder at `server` over UDP.
pub fn answer_over_udp(netns: &Netns, server: IpAddr, query: &[u8]) -> Vec<u8> {
    let any = match server.is_ipv4() {
        true => Family::V4,
        false => Family::V6,
    };
    let client = udp(netns, any.unspecified(), 0);
    client.connect((server, 53)).unwrap();
    client.send(query).expect("ask");
    let mut answer = vec![0; 1500];
    let count = client.recv(&mut answer).expect("an answer");
    answer.truncate(count);
    answer
}

/// Puts a query behind its length on `stream`.
pub fn ask_over_tcp(stream: &mut impl Write, query: &[u8]) {
    stream
        .write_all(&(query.len() as u16).to_be_bytes())
        .unwrap();
    stream.write_all(query).unwrap();
}

/// The next answer on `stream`.
pub fn answer_over_tcp(stream: &mut impl Read) -> Vec<u8> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).expect("an answer over TCP");
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer).unwrap();
    answer
}

/// The last octet of the one A record in `answer`, which must match `query`.
fn parse_answer(query: &[u8], answer: &[u8]) -> u8 {
    assert_eq!(answer[..2], query[..2], "the identifier comes back");
    assert_eq!(answer[3] & 0xf, 0, "an error code instead of an answer");
    assert_eq!(
        answer[12..query.len()],
        query[12..],
        "the question comes back"
    );
    assert_eq!(answer.len(), query.len() + 16, "one record");
    *answer.last().expect("not empty")
}
