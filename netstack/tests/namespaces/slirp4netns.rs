//! The program under the name `slirp4netns`: each of its options, first with slirp4netns itself as
//! a control where that is installed, so that a difference shows as one.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Output};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{getsockopt, sockopt};

use crate::harness::traffic::{EchoServer, accept, assert_echo, connect, listen, try_connect, udp};
use crate::harness::{Case, Family, Guest, GuestUsers, Setup, World, case, skip, sys};
use crate::icmp::ping;
use crate::outbound::errno;

pub const CASES: &[Case] = &[
    case("slirp4netns::default_network", |world| {
        both(world, default_network)
    }),
    case("slirp4netns::host_loopback", |world| {
        both(world, host_loopback)
    }),
    case("slirp4netns::disabled_host_loopback", |world| {
        both(world, disabled_host_loopback)
    }),
    case("slirp4netns::disabled_dns", |world| {
        both(world, disabled_dns)
    }),
    case("slirp4netns::disabled_dns_is_beyond", |world| {
        route_to_dns(world);
        both(world, disabled_dns_is_beyond)
    }),
    case("slirp4netns::outbound_address", |world| {
        world
            .host
            .link(|links| links.add_address("up0", SECOND, 24));
        both(world, outbound_address)
    }),
    case("slirp4netns::mac_address", |world| both(world, mac_address)),
    case("slirp4netns::other_subnet", |world| {
        both(world, other_subnet)
    }),
    case("slirp4netns::any_mtu", |world| both(world, any_mtu)),
    case("slirp4netns::tap_of_the_callers", |world| {
        both(world, tap_of_the_callers)
    }),
    case("slirp4netns::exit_fd", |world| both(world, exit_fd)),
    case("slirp4netns::namespace_by_path", |world| {
        both(world, namespace_by_path)
    }),
    case("slirp4netns::words_that_fail", |world| {
        both(world, words_that_fail)
    }),
    case("slirp4netns::sandbox", |world| both(world, sandbox)),
    case("slirp4netns::ipv6", ipv6),
    case("slirp4netns::first_word", first_word),
    case("slirp4netns::announcement", announcement),
];

/// The program under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Slirp4netns,
    Ours,
}

impl Who {
    /// For the world's guest, with the MTU that is the default.
    pub fn on(self, world: &World) -> Setup {
        self.at(world.guest.pid.to_string())
    }

    fn at(self, target: String) -> Setup {
        let setup = Setup::new(target).mtu(1500);
        match self {
            Self::Slirp4netns => setup.slirp4netns(),
            Self::Ours => setup.by_name("slirp4netns"),
        }
    }

    /// Runs it to its end.
    fn run(self, words: &[&str]) -> Output {
        use std::os::unix::process::CommandExt;
        let mut command = match self {
            Self::Slirp4netns => Command::new("slirp4netns"),
            Self::Ours => Command::new(env!("CARGO_BIN_EXE_coracle-net")),
        };
        let output = command.arg0("slirp4netns").args(words).output();
        output.expect("start the program")
    }
}

/// Without slirp4netns, ours alone is tried, and the comparison counts as skipped.
pub fn both(world: &mut World, check: fn(&World, Who)) {
    if is_installed() {
        check(world, Who::Slirp4netns);
    }
    check(world, Who::Ours);
    need_slirp4netns();
}

/// Skips the case without slirp4netns.
pub fn need_slirp4netns() {
    if !is_installed() {
        skip("slirp4netns is not installed, to compare with");
    }
}

fn is_installed() -> bool {
    Command::new("slirp4netns").arg("-v").output().is_ok()
}

fn default_network(world: &World, who: Who) {
    let _helper = who.on(world).start();
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    let mut stream = connect(&world.guest.net, server.address);
    assert_eq!(stream.local_addr().unwrap().ip(), Family::V4.guest());
    assert_echo(&mut stream, b"outbound");
    assert!(ping(&world.guest.net, Family::V4.gateway(), 56));
    let v6 = (Family::V6.elsewhere(), 7).into();
    let error = try_connect(&world.guest.net, v6, SOON).expect_err("no IPv6 unless asked for");
    assert_eq!(errno(&error), Some(Errno::ENETUNREACH), "{who:?}");
}

fn host_loopback(world: &World, who: Who) {
    let _helper = who.on(world).start();
    let _server = EchoServer::start(&world.host, Family::V4.loopback(), 8000);
    let mut stream = connect(&world.guest.net, (Family::V4.gateway(), 8000).into());
    assert_echo(&mut stream, b"to the host's loopback");
}

fn disabled_host_loopback(world: &World, who: Who) {
    let _helper = who.on(world).option("--disable-host-loopback").start();
    let _server = EchoServer::start(&world.host, Family::V4.loopback(), 8000);
    let error = refusal(world, (Family::V4.gateway(), 8000).into());
    assert_eq!(errno(&error), Some(Errno::ENETUNREACH), "{who:?}: {error}");
    assert!(ping(&world.guest.net, Family::V4.gateway(), 56));
}

/// Nobody is on the host's network under the forwarder's address.
fn disabled_dns(world: &World, who: Who) {
    let _helper = who.on(world).option("--disable-dns").start();
    let error = refusal(world, (Family::V4.dns(), 53).into());
    assert_eq!(errno(&error), Some(Errno::ENETUNREACH), "{who:?}: {error}");
}

/// Somebody is.
fn disabled_dns_is_beyond(world: &World, who: Who) {
    let _helper = who.on(world).option("--disable-dns").start();
    let server = EchoServer::start(&world.elsewhere, Family::V4.dns(), 53);
    assert_echo(
        &mut connect(&world.guest.net, server.address),
        b"somebody else's",
    );
}

fn route_to_dns(world: &World) {
    let dns = Family::V4.dns();
    world
        .elsewhere
        .link(|links| links.add_address("up0", dns, 32));
    world
        .host
        .link(|links| links.add_route(dns, 32, Family::V4.elsewhere()));
}

/// By address and by the name of an interface, which has another one first.
fn outbound_address(world: &World, who: Who) {
    for (option, expected) in [
        (format!("--outbound-addr={SECOND}"), SECOND.into()),
        ("--outbound-addr=up0".to_owned(), Family::V4.host()),
    ] {
        let _helper = who.on(world).option(&option).start();
        let remote = listen(&world.elsewhere, Family::V4.elsewhere(), 7);
        let _stream = connect(&world.guest.net, remote.local_addr().unwrap());
        assert_eq!(accept(&remote).1.ip(), expected, "{who:?} {option}");
        let loopback = listen(&world.host, Family::V4.loopback(), 8000);
        let _stream = connect(&world.guest.net, (Family::V4.gateway(), 8000).into());
        assert_eq!(accept(&loopback).1.ip(), expected, "{who:?} {option}");
        let server = udp(&world.elsewhere, Family::V4.elsewhere(), 7);
        let client = udp(&world.guest.net, Family::V4.guest(), 0);
        client.send_to(b"?", server.local_addr().unwrap()).unwrap();
        let (_, from) = server.recv_from(&mut [0]).expect("a datagram");
        assert_eq!(from.ip(), expected, "{who:?} {option}");
    }
}

/// Of the host, beside its usual one.
const SECOND: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

fn mac_address(world: &World, who: Who) {
    let address = "52:54:00:12:34:56";
    let _helper = who
        .on(world)
        .option(format!("--macaddress={address}"))
        .start();
    assert_eq!(mac_of_tap(world), address, "{who:?}");
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    assert_echo(&mut connect(&world.guest.net, server.address), b"it works");
}

fn other_subnet(world: &World, who: Who) {
    let _helper = who.on(world).option("--cidr=10.55.0.0/16").start();
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    let mut stream = connect(&world.guest.net, server.address);
    let own = stream.local_addr().unwrap().ip();
    assert_eq!(own, IpAddr::from([10, 55, 0, 100]), "{who:?}");
    assert_echo(&mut stream, b"another subnet");
}

/// Smaller ones than IPv6 allows, too.
fn any_mtu(world: &World, who: Who) {
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    for mtu in [576, 1000, 9000, 65521] {
        let _helper = who.on(world).mtu(mtu).start();
        assert_eq!(mtu_of_tap(world), mtu.cast_signed(), "{who:?}");
        let mut stream = connect(&world.guest.net, server.address);
        assert_echo(&mut stream, &[7; 20_000]);
    }
}

/// Made before, and set up afterwards.
fn tap_of_the_callers(world: &World, who: Who) {
    let guest = Guest::new(GuestUsers::Cases);
    let tap = guest.net.run(|| sys::make_tap("tap0")).expect("make a tap");
    drop(tap);
    let _helper = who.at(guest.pid.to_string()).without_configure().start();
    guest.net.link(|links| {
        links
            .up("tap0")?
            .add_address("tap0", Family::V4.guest(), 24)?
            .add_route(Family::V4.unspecified(), 0, Family::V4.gateway())
    });
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    assert_echo(&mut connect(&guest.net, server.address), b"it works");
}

/// Without -c, too.
fn exit_fd(world: &World, who: Who) {
    let (watched, ours) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    let mut helper = who
        .on(world)
        .without_configure()
        .option("-e")
        .option(sys::inherit(&watched).to_string())
        .start();
    drop(watched);
    assert!(helper.is_running());
    drop(ours);
    assert_eq!(helper.wait().code(), Some(0), "{who:?}");
}

fn namespace_by_path(world: &World, who: Who) {
    let guest = Guest::new(GuestUsers::Own);
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    let helper = who
        .at(format!("/proc/{}/ns/net", guest.pid))
        .option("--netns-type=path")
        .option(format!("--userns-path=/proc/{}/ns/user", guest.pid));
    let _helper = helper.start();
    assert_echo(&mut connect(&guest.net, server.address), b"it works");
}

/// Always with status 1, and in words that callers compare.
fn words_that_fail(_: &World, who: Who) {
    for (line, part) in [
        ("", ""),
        ("1", ""),
        (
            "--no-such-option 1 tap0",
            "unrecognized option '--no-such-option'",
        ),
        ("--cidr 24 1 tap0", "invalid CIDR"),
        (
            "--cidr 10.0.2.100/24 1 tap0",
            "CIDR needs to be a network address like 10.0.2.0/24, not like 10.0.2.100/24",
        ),
        (
            "--cidr 10.0.2.0/26 1 tap0",
            "prefix length needs to be 1-25",
        ),
        (
            "--mtu 65522 1 tap0",
            "MTU must be a positive integer (< 65522)",
        ),
        (
            "--userns-path=/no/such 1 tap0",
            "userns path doesn't exist: /no/such",
        ),
        ("x tap0", "PID must be a positive integer"),
        ("--macaddress=52:54:00:12:34:56 1 tap0", ""),
        ("4194305 tap0", ""),
        ("--netns-type=path /no/such tap0", ""),
    ] {
        let words: Vec<&str> = line.split_whitespace().collect();
        let output = who.run(&words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{who:?} {line}: {errors}");
        assert!(errors.contains(part), "{who:?} {line}: {errors}");
    }
    for (words, line) in [
        (["--help"], "sage: slirp4netns [OPTION]... PID|PATH"),
        (["-v"], "slirp4netns version 1."),
    ] {
        let output = who.run(&words);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{who:?}");
        assert!(text.contains(line), "{who:?}: {text}");
    }
}

/// No files of the host's, and little power over the guest.
fn sandbox(world: &World, who: Who) {
    let mut helper = who
        .on(world)
        .option("--enable-sandbox")
        .option("--enable-seccomp")
        .start();
    for status in helper.of_each_thread("status") {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.expect("a field of proc_pid_status(5)")
                .trim()
                .to_owned()
        };
        let capabilities = u64::from_str_radix(&field("CapEff:"), 16).expect("a number");
        const BIND_SERVICE: u64 = 1 << 10;
        const SYS_ADMIN: u64 = 1 << 21;
        assert_eq!(
            capabilities & (BIND_SERVICE | SYS_ADMIN),
            BIND_SERVICE,
            "{who:?}"
        );
        assert_eq!(field("Seccomp:"), "2", "{who:?}");
    }
    for gone in ["home", "root", "var", "proc"] {
        let there = fs::exists(format!("/proc/{}/root/{gone}", helper.pid()));
        assert!(!there.expect("a look"), "{who:?}: {gone}");
    }
    // What is mounted for others stays so.
    assert!(fs::exists(&world.dir).expect("a look"));
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    assert_echo(&mut connect(&world.guest.net, server.address), b"it works");
    assert!(helper.is_running());
}

fn ipv6(world: &mut World) {
    let _helper = Who::Ours.on(world).option("-6").start();
    crate::options::assert_works(world, &world.guest);
}

fn first_word(_: &mut World) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_coracle-net"));
    let output = command
        .args(["slirp4netns", "-v"])
        .output()
        .expect("start the program");
    assert!(
        output.stdout.starts_with(b"slirp4netns version"),
        "{output:?}"
    );
}

/// In the form that people look for in logs.
fn announcement(_: &mut World) {
    let output = Who::Ours.run(&["--cidr=10.55.0.0/16", "--mtu=9000", "4194305", "tap0"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let expected = "\
Starting slirp
* MTU:             9000
* Network:         10.55.0.0
* Netmask:         255.255.0.0
* Gateway:         10.55.0.2
* DNS:             10.55.0.3
* DHCP begin:      10.55.0.15
* DHCP end:        10.55.0.30
* Recommended IP:  10.55.0.100
";
    assert_eq!(text, expected);
}

/// The Ethernet address of the guest's tap.
fn mac_of_tap(world: &World) -> String {
    let find = || {
        let mut all = nix::ifaddrs::getifaddrs().expect("addresses");
        all.find_map(|entry| {
            let is_tap = entry.interface_name == "tap0";
            let address = *entry.address.filter(|_| is_tap)?.as_link_addr()?;
            address.addr()
        })
    };
    let mac = world.guest.net.run(find).expect("a tap");
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The MTU of the guest's way out.
fn mtu_of_tap(world: &World) -> i32 {
    let socket = udp(&world.guest.net, Family::V4.guest(), 0);
    socket
        .connect((Family::V4.elsewhere(), 7))
        .expect("a route");
    getsockopt(&socket, sockopt::IpMtu).expect("IP_MTU")
}

/// What a connection from the guest comes to that must not succeed.
fn refusal(world: &World, remote: SocketAddr) -> io::Error {
    try_connect(&world.guest.net, remote, SOON).expect_err("nobody there")
}

/// Long enough for a busy machine, far shorter than a connect timeout.
const SOON: Duration = Duration::from_secs(5);
