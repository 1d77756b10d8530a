//! Names that the engine hands over (`--host-name`, the API): the forwarder answers for them
//! itself, over UDP and TCP, and asks the host's resolvers for all else.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use testbed::resolver::Resolver;

use crate::dns::{
    A, AAAA, PTR, answer_over_tcp, answer_over_udp, ask_over_tcp, query_for, set_resolvers,
    write_in_place,
};
use crate::harness::traffic::{EchoServer, assert_echo, connect};
use crate::harness::{Bridge, Case, Family, Helper, World, case};
use crate::options::status;
use crate::slirp_api::ask;

pub const CASES: &[Case] = &[
    case("names::answered_over_udp", answered_over_udp),
    case("names::answered_over_tcp", answered_over_tcp),
    case("names::tcp_without_a_resolver", tcp_without_a_resolver),
    case("names::come_and_go", come_and_go),
    case("names::of_the_host", of_the_host),
];

/// What is said of a question: the error code, and the octets of the last record, if there is one.
fn told(answer: &[u8], len: usize) -> (u8, Option<&[u8]>) {
    let records = u16::from_be_bytes([answer[6], answer[7]]);
    let last = answer.split_at(answer.len() - len).1;
    (answer[3] & 15, (records > 0).then_some(last))
}

fn answered_over_udp(world: &mut World) {
    let resolver = Resolver::start(&world.elsewhere, Family::V4.elsewhere(), 1);
    let status_socket = world.dir.join("status.sock");
    let _helper = world
        .helper()
        .option("--host-name=db=10.89.0.5,fd89::5")
        .option("--host-name=web.app=10.89.0.6")
        .option("--status-socket")
        .option(&status_socket)
        .start();
    for family in Family::BOTH {
        let ask = |name: &str, kind| {
            let query = query_for(7, name, kind);
            answer_over_udp(&world.guest.net, family.dns(), &query)
        };
        assert_eq!(told(&ask("db", A), 4), (0, Some(&[10, 89, 0, 5][..])));
        let v6 = ask("DB", AAAA);
        assert_eq!(told(&v6, 2), (0, Some(&[0, 5][..])));
        let name = ask("5.0.89.10.in-addr.arpa", PTR);
        assert_eq!(told(&name, 4), (0, Some(&b"\x02db\0"[..])));
        assert_eq!(told(&ask("web.app", AAAA), 4), (0, None), "it has none");
        assert_eq!(resolver.asked(), usize::from(family == Family::V6));
        // The resolver's own.
        assert_eq!(told(&ask("other", A), 1), (0, Some(&[1][..])));
    }
    let document = status(&status_socket);
    assert_eq!(
        document["names"],
        json!(["db=10.89.0.5,fd89::5", "web.app=10.89.0.6"])
    );
    assert_eq!(document["names_answered"], 8);
}

/// Many questions in a row: each gets its answer, whoever gives it.
fn answered_over_tcp(world: &mut World) {
    const ROUNDS: u16 = 500;
    let _resolver = Resolver::start(&world.elsewhere, Family::V4.elsewhere(), 1);
    let _helper = world.helper().option("--host-name=db=10.89.0.5").start();
    for family in Family::BOTH {
        let mut stream = connect(&world.guest.net, (family.dns(), 53).into());
        let mut writer = stream.try_clone().unwrap();
        let asking = std::thread::spawn(move || {
            for id in 0..ROUNDS {
                let name = if id.is_multiple_of(2) { "db" } else { "other" };
                ask_over_tcp(&mut writer, &query_for(id, name, A));
            }
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut heard = vec![0; ROUNDS.into()];
        for _ in 0..ROUNDS {
            let answer = answer_over_tcp(&mut stream);
            let id = u16::from_be_bytes([answer[0], answer[1]]);
            let (code, last) = told(&answer, 1);
            assert_eq!(
                (code, last),
                (0, Some(&[if id.is_multiple_of(2) { 5 } else { 1 }][..]))
            );
            heard[usize::from(id)] += 1;
        }
        assert!(heard.iter().all(|count| *count == 1));
        asking.join().unwrap();
    }
}

fn tcp_without_a_resolver(world: &mut World) {
    // It refuses.
    set_resolvers(write_in_place, "198.51.100.7");
    let _helper = world.helper().option("--host-name=db=10.89.0.5").start();
    let mut stream = connect(&world.guest.net, (Family::V4.dns(), 53).into());
    ask_over_tcp(&mut stream, &query_for(1, "db", A));
    let answer = answer_over_tcp(&mut stream);
    assert_eq!(told(&answer, 4), (0, Some(&[10, 89, 0, 5][..])));
    ask_over_tcp(&mut stream, &query_for(2, "other", A));
    const SERVFAIL: u8 = 2;
    assert_eq!(told(&answer_over_tcp(&mut stream), 1), (SERVFAIL, None));
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    crate::harness::traffic::assert_end(&mut stream);
}

fn start_with_api(world: &World) -> (Helper, PathBuf) {
    let api = world.dir.join("api.sock");
    let setup = world.helper().option("--guest-network=10.89.0.0/16");
    let setup = setup.option("--guest-network=fd89::/64");
    (setup.option("--api-socket").option(&api).start(), api)
}

fn request(api: &Path, execute: &str, arguments: Value) -> Value {
    let request = json!({"execute": execute, "arguments": arguments});
    let answer = ask(api, request.to_string().as_bytes());
    serde_json::from_str(&answer).expect("JSON")
}

/// Containers find each other by name, as long as the engine says so, and only those of their
/// network.
fn come_and_go(world: &mut World) {
    let _resolver = Resolver::start(&world.elsewhere, Family::V4.elsewhere(), 1);
    let (_helper, api) = start_with_api(world);
    let bridge = Bridge::add(world, 89);
    let [web, db] = [5, 6].map(|last| bridge.add_container(last));
    let own = bridge.address(Family::V4, 6);
    let added = request(
        &api,
        "add_name",
        json!({"name": "db", "addresses": [own], "networks": ["10.89.0.0/16"]}),
    );
    assert_eq!(added, json!({"return": {"id": 1}}));
    let query = query_for(3, "db", A);
    let forwarder = Family::V4.dns();
    let answer = answer_over_udp(&web, forwarder, &query);
    assert_eq!(told(&answer, 4), (0, Some(&[10, 89, 0, 6][..])));
    let service = EchoServer::start(&db, own, 0);
    assert_echo(&mut connect(&web, service.address), b"found by its name");

    let of_the_resolver = (0, Some(&[1][..]));
    let elsewhere = answer_over_udp(&world.guest.net, forwarder, &query);
    assert_eq!(told(&elsewhere, 1), of_the_resolver, "not of the network");
    let listed = request(&api, "list_names", json!({}));
    assert_eq!(listed["return"]["names"][0]["name"], "db");
    request(&api, "remove_name", json!({"id": 1}));
    let answer = answer_over_udp(&web, forwarder, &query);
    assert_eq!(told(&answer, 1), of_the_resolver);
}

fn of_the_host(world: &mut World) {
    let _helper = world.helper().option("--map-host=192.0.2.1").start();
    let service = EchoServer::start(&world.host, Family::V4.loopback(), 0);
    for name in ["host.containers.internal", "host.docker.internal"] {
        let query = |kind| {
            answer_over_udp(
                &world.guest.net,
                Family::V4.dns(),
                &query_for(9, name, kind),
            )
        };
        assert_eq!(told(&query(A), 4), (0, Some(&[192, 0, 2, 1][..])));
        assert_eq!(told(&query(AAAA), 4), (0, None));
    }
    let mapped = ([192, 0, 2, 1], service.address.port()).into();
    assert_echo(&mut connect(&world.guest.net, mapped), b"to the host");
}
