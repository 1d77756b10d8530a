//! `pesto`: rules that are changed while the helper is at work.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;

use super::program::{Pasta, READY_WITHIN, pesto, pesto_succeeds};
use super::{assert_leads, assert_refused, entry, exchange};
use crate::harness::traffic::{EchoServer, accept, assert_echo, connect, listen};
use crate::harness::{Case, Family, World, case, eventually};

pub const CASES: &[Case] = &[
    case("pesto::changes_rules", changes_rules),
    case("pesto::leaves_the_rest_alone", leaves_the_rest_alone),
    case("pesto::all_or_nothing", all_or_nothing),
    case(
        "pesto::nonsense_at_the_control_socket",
        nonsense_at_the_control_socket,
    ),
];

fn changes_rules(world: &mut World) {
    let socket = world.dir.join("pesto.sock");
    let path = socket.to_str().expect("a text").to_owned();
    let pasta = Pasta::start(world, &["--conf-path", &path, "-t", "8001"]);
    let loopback = |port| SocketAddr::from((Family::V4.loopback(), port));
    let services: Vec<_> = (8001..=8004)
        .map(|port| EchoServer::start(&world.guest.net, Family::V4.unspecified(), port))
        .collect();
    let _host = EchoServer::start(&world.host, Family::V4.loopback(), 9001);
    let shown = pesto_succeeds(&socket, &[]);
    let expected = format!(
        "passt/pasta configuration ({path})\n  HOST\n    TCP [*]:8001  =>  8001\n  SPLICE\n"
    );
    assert_eq!(shown, expected);

    pesto_succeeds(
        &socket,
        &[
            "--add",
            "-t",
            "0.0.0.0/8002",
            "-t",
            "[::]/8002",
            "-T",
            "9001",
        ],
    );
    for (from, port) in [
        (&world.host, 8001),
        (&world.host, 8002),
        (&world.guest.net, 9001),
    ] {
        assert_echo(&mut connect(from, loopback(port)), b"added");
    }
    pesto_succeeds(&socket, &["--delete", "-t", "8001", "--add", "-t", "8003"]);
    assert_refused(&world.host, loopback(8001));
    assert_echo(&mut connect(&world.host, loopback(8003)), b"added");
    pesto_succeeds(&socket, &["-t", "8004,8003"]);
    assert_refused(&world.host, loopback(8002));
    assert_echo(&mut connect(&world.host, loopback(8004)), b"replaced");
    pesto_succeeds(&socket, &["--clear", "SPLICE"]);
    assert_refused(&world.guest.net, loopback(9001));
    let shown = pesto_succeeds(&socket, &["--show", "--add", "-u", "auto,~1-9"]);
    assert!(
        shown.contains("Previous") && shown.contains("(auto-scan)"),
        "{shown}"
    );
    pesto_succeeds(&socket, &["--clear", "HOST"]);
    assert_refused(&world.host, loopback(8004));
    drop((services, pasta));
    eventually("its file is removed", READY_WITHIN, || !socket.exists());
}

/// A connection, and a port, that a change leaves alone notice nothing.
fn leaves_the_rest_alone(world: &mut World) {
    let socket = world.dir.join("pesto.sock");
    let path = socket.to_str().expect("a text").to_owned();
    let pasta = Pasta::start(world, &["--conf-path", &path, "-t", "8001", "-t", "8002"]);
    let stays = listen(&world.guest.net, Family::V4.unspecified(), 8001);
    let goes = listen(&world.guest.net, Family::V4.unspecified(), 8002);
    let connection = |port, service: &TcpListener| {
        let client = connect(&world.elsewhere, (Family::V4.host(), port).into());
        (client, accept(service).0)
    };
    let mut connections = [connection(8001, &stays), connection(8002, &goes)];
    std::thread::scope(|scope| {
        let transfers: Vec<_> = connections
            .iter()
            .map(|(client, served)| scope.spawn(|| (0..4).for_each(|_| exchange(client, served))))
            .collect();
        for port in 8100..8110 {
            let port = port.to_string();
            pesto_succeeds(&socket, &["--add", "-t", &port]);
        }
        pesto_succeeds(&socket, &["-t", "8001"]);
        for transfer in transfers {
            transfer.join().expect("bytes arrive as they were sent");
        }
    });
    for (client, served) in &mut connections {
        client.write_all(b"still").expect("send");
        let mut heard = [0; 5];
        served.read_exact(&mut heard).expect("hear");
    }
    assert_leads(&world.elsewhere, (Family::V4.host(), 8001).into(), &stays);
    assert_refused(&world.elsewhere, (Family::V4.host(), 8002).into());
    drop(pasta);
    eventually("its file is removed", READY_WITHIN, || !socket.exists());
}

fn all_or_nothing(world: &mut World) {
    let socket = world.dir.join("pesto.sock");
    let path = socket.to_str().expect("a text").to_owned();
    let pasta = Pasta::start(world, &["--conf-path", &path, "-t", "8001"]);
    let taken = listen(&world.host, Family::V4.unspecified(), 8003);
    let before = pesto_succeeds(&socket, &[]);
    let (code, text) = pesto(&socket, &["-t", "8002-8004"]);
    assert!(
        code == 1 && text.contains("8003: address already in use"),
        "{code} {text}"
    );
    assert_eq!(pesto_succeeds(&socket, &[]), before);
    let service = listen(&world.guest.net, Family::V4.unspecified(), 8001);
    assert_leads(&world.host, entry("127.0.0.1:8001"), &service);
    for port in [8002, 8004] {
        drop(listen(&world.host, Family::V4.unspecified(), port));
    }
    drop(taken);
    pesto_succeeds(&socket, &["-t", "8002-8004"]);
    let (code, text) = pesto(&socket, &["--delete", "-t", "8002"]);
    assert!(code == 1 && text.contains("can't delete"), "{code} {text}");
    let (code, text) = pesto(&world.dir.join("none"), &[]);
    assert!(
        code == 1 && text.contains("Failed to connect"),
        "{code} {text}"
    );
    drop(pasta);
    eventually("its file is removed", READY_WITHIN, || !socket.exists());
}

/// Whoever sends anything holds up nobody's traffic, and after a while no other client.
fn nonsense_at_the_control_socket(world: &mut World) {
    let socket = world.dir.join("pesto.sock");
    let path = socket.to_str().expect("a text").to_owned();
    let pasta = Pasta::start(world, &["--conf-path", &path, "-t", "8001"]);
    let _service = EchoServer::start(&world.guest.net, Family::V4.unspecified(), 8001);
    let mut open = connect(&world.host, entry("127.0.0.1:8001"));
    for garbage in [
        &b"\xff\xff\xff\xff\xff"[..],
        b"\x01\xff\xff\xff\xff",
        &[0x41; 70_000],
    ] {
        let mut client = UnixStream::connect(&socket).expect("connect");
        let _ = client.write_all(garbage);
        assert_echo(&mut open, b"traffic");
    }
    // It has its turn and does nothing with it; others have lost patience or wait.
    let silent = UnixStream::connect(&socket).expect("connect");
    drop(
        (0..40)
            .map(|_| UnixStream::connect(&socket))
            .collect::<Vec<_>>(),
    );
    assert_echo(&mut open, b"traffic");
    assert!(pesto_succeeds(&socket, &[]).contains("8001"));
    drop((silent, pasta));
    eventually("its file is removed", READY_WITHIN, || !socket.exists());
}
