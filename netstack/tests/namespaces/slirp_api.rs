//! The API socket of the program under the name `slirp4netns`: the same requests to slirp4netns
//! itself, answered in the same bytes, and what becomes of the ports.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::traffic::{EchoServer, assert_echo, connect, listen, try_connect, udp};
use crate::harness::{Case, Family, Guest, GuestUsers, Helper, World, case};
use crate::slirp4netns::{Who, both, need_slirp4netns};

pub const CASES: &[Case] = &[
    case("slirp_api::answers_byte_for_byte", answers_byte_for_byte),
    case("slirp_api::ports_come_and_go", |world| {
        both(world, ports_come_and_go)
    }),
    case("slirp_api::another_guest_address", |world| {
        both(world, another_guest_address)
    }),
    case("slirp_api::ipv6", ipv6),
    case("slirp_api::low_port", low_port),
    case("slirp_api::slow_clients", slow_clients),
    case("slirp_api::true_client_address", true_client_address),
];

/// A helper with an API.
struct Api {
    helper: Helper,
    path: PathBuf,
}

impl Api {
    fn start(world: &World, who: Who, options: &[&str]) -> Self {
        let path = world.dir.join("api.sock");
        let mut setup = who.on(world).option("--api-socket").option(&path);
        for option in options {
            setup = setup.option(option);
        }
        Self {
            helper: setup.start(),
            path,
        }
    }

    fn ask(&self, request: &[u8]) -> String {
        ask(&self.path, request)
    }

    /// Publishes a port, which must succeed.
    fn add(&self, arguments: Value) -> u64 {
        let request = json!({"execute": "add_hostfwd", "arguments": arguments});
        let answer = self.ask(request.to_string().as_bytes());
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        answer["return"]["id"]
            .as_u64()
            .unwrap_or_else(|| panic!("{answer}"))
    }

    fn remove(&self, id: u64) {
        let request = json!({"execute": "remove_hostfwd", "arguments": {"id": id}});
        assert_eq!(self.ask(request.to_string().as_bytes()), r#"{"return":{}}"#);
    }

    /// Ends it. slirp4netns leaves its socket.
    fn end(self) {
        let Self { helper, path } = self;
        drop(helper);
        let _ = fs::remove_file(path);
    }
}

/// One request to the API at `path`, and its answer.
pub fn ask(path: &Path, request: &[u8]) -> String {
    let mut client = UnixStream::connect(path).expect("connect to the API");
    let patience = Some(Duration::from_secs(20));
    client.set_read_timeout(patience).expect("a deadline");
    client.write_all(request).expect("send a request");
    client.shutdown(Shutdown::Write).expect("end the request");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    answer
}

/// What the two answer may differ in the form of the list only.
fn answers_byte_for_byte(world: &mut World) {
    const ADD: &str = r#"{"execute":"add_hostfwd","arguments":"#;
    let add = |arguments: &str| format!("{ADD}{{{arguments}}}}}").into_bytes();
    let requests: Vec<Vec<u8>> = vec![
        b"x".into(),
        b"".into(),
        b"[]".into(),
        b"{}".into(),
        br#"{"execute":1}"#.into(),
        br#"{"execute":"x"}"#.into(),
        br#"// c
{"execute":"list_hostfwd"}"#
            .into(),
        br#"{"execute":"list_hostfwd""#.into(),
        vec![b'y'; 4095],
        vec![b'y'; 4096],
        vec![b'['; 3000],
        add(r#""proto":"sctp""#),
        add(r#""proto":"tcp","host_addr":"x""#),
        add(r#""proto":"tcp","host_addr":5"#),
        add(r#""proto":"tcp","host_port":"8080","guest_port":80"#),
        add(r#""proto":"tcp","host_port":8080"#),
        add(r#""proto":"tcp","host_port":8080,"guest_addr":"x""#),
        add(r#""proto":"tcp","host_addr":"203.0.113.1","host_port":8080,"guest_port":80"#),
        [
            add(r#""proto":"tcp","host_port":8080,"guest_port":80"#),
            b" trailing".into(),
        ]
        .concat(),
        add(r#""proto":"tcp","host_port":8080,"guest_port":80"#),
        add(r#""proto":"udp","host_addr":"","host_port":8080.7,"guest_addr":"","guest_port":80"#),
        b"{\"execute\":\"list_hostfwd\"}\0more".into(),
        br#"{"execute":"remove_hostfwd"}"#.into(),
        br#"{"execute":"remove_hostfwd","arguments":{"id":"1"}}"#.into(),
        br#"{"execute":"remove_hostfwd","arguments":{"id":9}}"#.into(),
        br#"{"execute":"remove_hostfwd","arguments":{"id":2}}"#.into(),
        br#"{"execute":"list_hostfwd"}"#.into(),
        add(r#""proto":"udp","host_addr":"127.0.0.1","host_port":53,"guest_port":80"#),
    ];
    let mut answers: Vec<Vec<String>> = Vec::new();
    let mut modes = Vec::new();
    need_slirp4netns();
    for who in [Who::Slirp4netns, Who::Ours] {
        let api = Api::start(world, who, &[]);
        modes.push(
            fs::metadata(&api.path)
                .expect("a socket")
                .permissions()
                .mode(),
        );
        answers.push(requests.iter().map(|request| api.ask(request)).collect());
        api.end();
    }
    assert_eq!(modes[0], modes[1]);
    for ((request, theirs), ours) in requests.iter().zip(&answers[0]).zip(&answers[1]) {
        let request = String::from_utf8_lossy(request);
        if theirs.contains("entries") {
            let list = &theirs[1..theirs.len() - 1];
            assert_eq!(
                ours,
                &format!("{{\"return\":{{{list}}},{list}}}"),
                "{request}"
            );
        } else {
            assert_eq!(ours, theirs, "{request}");
        }
    }
}

fn ports_come_and_go(world: &World, who: Who) {
    let api = Api::start(world, who, &[]);
    let tcp = json!({"proto": "tcp", "host_port": 8080, "guest_port": 80});
    let id = api.add(tcp.clone());
    assert_eq!(id, 1);
    let _service = EchoServer::start(&world.guest.net, Family::V4.guest(), 80);
    let published = (Family::V4.host(), 8080).into();
    let mut stream = connect(&world.elsewhere, published);
    assert_echo(&mut stream, b"published");

    api.add(json!({"proto": "udp", "host_port": 8080, "guest_port": 53}));
    let service = udp(&world.guest.net, Family::V4.guest(), 53);
    let client = udp(&world.elsewhere, Family::V4.elsewhere(), 0);
    client.send_to(b"?", (Family::V4.host(), 8080)).unwrap();
    let (_, from) = service.recv_from(&mut [0]).expect("a datagram");
    service.send_to(b"!", from).unwrap();
    client.recv_from(&mut [0]).expect("an answer");

    api.remove(id);
    api.remove(2);
    drop(udp(&world.host, Family::V4.unspecified(), 8080));
    let patience = Duration::from_secs(5);
    try_connect(&world.elsewhere, published, patience).expect_err("nobody listens");
    assert_echo(&mut stream, b"the connection goes on");
    drop(listen(&world.host, Family::V4.unspecified(), 8080));
    assert_eq!(api.add(tcp), 3);
    assert_echo(
        &mut connect(&world.elsewhere, published),
        b"published again",
    );
    api.end();
}

/// One that the guest has given itself, as by DHCP.
fn another_guest_address(world: &World, who: Who) {
    let api = Api::start(world, who, &[]);
    let second = Ipv4Addr::new(10, 0, 2, 15);
    let guest = &world.guest.net;
    guest.link(|links| links.add_address("tap0", second, 24));
    api.add(json!({"proto": "tcp", "host_port": 8080, "guest_addr": second, "guest_port": 80}));
    let _service = EchoServer::start(guest, second.into(), 80);
    let mut stream = connect(&world.elsewhere, (Family::V4.host(), 8080).into());
    assert_echo(&mut stream, b"published");
    api.end();
}

fn ipv6(world: &mut World) {
    let api = Api::start(world, Who::Ours, &["-6"]);
    api.add(json!({"proto": "tcp", "host_addr": "::", "host_port": 8080, "guest_port": 80}));
    let v4_service = json!({
        "proto": "tcp", "host_addr": "::", "host_port": 8081,
        "guest_addr": "10.0.2.100", "guest_port": 81,
    });
    api.add(v4_service);
    for (family, host_port, guest_port) in [(Family::V6, 8080, 80), (Family::V4, 8081, 81)] {
        let _service = EchoServer::start(&world.guest.net, family.guest(), guest_port);
        let published = (Family::V6.host(), host_port).into();
        assert_echo(&mut connect(&world.elsewhere, published), b"published");
    }
    api.end();
}

/// Whoever may bind one still may, although the helper has given its rights up.
fn low_port(world: &mut World) {
    world.guest = Guest::new(GuestUsers::Own);
    let api = Api::start(world, Who::Ours, &["--enable-sandbox"]);
    api.add(json!({"proto": "tcp", "host_port": 80, "guest_port": 80}));
    let _service = EchoServer::start(&world.guest.net, Family::V4.guest(), 80);
    let published = (Family::V4.host(), 80).into();
    assert_echo(&mut connect(&world.elsewhere, published), b"published");
    api.end();
}

/// Clients that say nothing keep nobody from being served, and traffic least of all.
fn slow_clients(world: &mut World) {
    let api = Api::start(world, Who::Ours, &[]);
    let _slow: Vec<UnixStream> = (0..40)
        .map(|_| UnixStream::connect(&api.path).expect("connect to the API"))
        .collect();
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    assert_echo(&mut connect(&world.guest.net, server.address), b"it works");
    assert_eq!(
        api.add(json!({"proto": "tcp", "host_port": 8080, "guest_port": 80})),
        1
    );
    api.end();
}

/// Which slirp4netns does not show.
fn true_client_address(world: &mut World) {
    let api = Api::start(world, Who::Ours, &[]);
    api.add(json!({"proto": "tcp", "host_port": 8080, "guest_port": 80}));
    let service = listen(&world.guest.net, Family::V4.guest(), 80);
    let _client = connect(&world.elsewhere, (Family::V4.host(), 8080).into());
    let (_, client) = crate::harness::traffic::accept(&service);
    assert_eq!(client.ip(), Family::V4.elsewhere());
    api.end();
}
