//! The guest's network under the name `pasta`: a likeness of the host's, with what callers change
//! of it.

use std::fs;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

use crate::dns::assert_answered_by_elsewhere;
use crate::harness::traffic::{
    EchoServer, Pattern, accept, assert_echo, connect, listen, pass, try_connect, udp, udp_echo,
};
use crate::harness::{Case, Family, Netns, World, case, skip, sys};
use crate::haul::require_nftables;
use crate::icmp::ping;
use crate::outbound::errno;

pub const CASES: &[Case] = &[
    case(
        "pasta_network::addresses_and_routes_are_the_hosts",
        addresses_and_routes_are_the_hosts,
    ),
    case("pasta_network::neighbours_are_real", neighbours_are_real),
    case(
        "pasta_network::gateway_is_host_loopback",
        gateway_is_host_loopback,
    ),
    case("pasta_network::as_podman_asks", as_podman_asks),
    case("pasta_network::as_rootlesskit_asks", as_rootlesskit_asks),
    case("pasta_network::hauling", hauling),
    case("pasta_network::one_family", one_family),
    case(
        "pasta_network::host_without_a_network",
        host_without_a_network,
    ),
    case("pasta_network::host_without_ipv6", host_without_ipv6),
    case("pasta_network::own_addresses", own_addresses),
    case("pasta_network::link", link),
    case("pasta_network::not_configured", not_configured),
    case("pasta_network::protocols_off", protocols_off),
    case("pasta_network::outbound", outbound),
    case("pasta_network::mistakes", mistakes),
];

/// Addresses of the router, which is elsewhere, too.
const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Gives the host a default route in each family; the one of IPv6 has a link-local gateway.
fn connect_host(world: &World) {
    world.elsewhere.link(|links| {
        links
            .add_address("up0", ROUTER_V4, 24)?
            .add_address("up0", ROUTER_V6, 64)
    });
    let words = "route add default via 198.51.100.254 metric 100";
    ip(&world.host, words);
    ip(&world.host, "-6 route add default via fe80::1 dev up0");
}

/// What `ip` says in a network namespace.
fn ip(netns: &Netns, words: &str) -> String {
    let output = netns.run(|| Command::new("ip").args(words.split_whitespace()).output());
    let Ok(output) = output else {
        skip("ip (iproute2) is not installed");
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {words}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// The same as JSON.
fn ip_json(netns: &Netns, words: &str) -> Value {
    let text = ip(netns, &format!("-json {words}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words}: {error}: {text}"))
}

/// The global addresses of a link, as address/prefix.
fn global_addresses(netns: &Netns, link: &str) -> Vec<String> {
    let links = ip_json(netns, &format!("addr show dev {link}"));
    let addresses = links[0]["addr_info"].as_array().expect("addresses").iter();
    let global = addresses.filter(|address| address["scope"] == "global");
    let text = |address: &Value| {
        let local = address["local"].as_str().expect("an address");
        format!("{local}/{}", address["prefixlen"])
    };
    global.map(text).collect()
}

/// A helper under that name, in the background. Dropped, it ends at SIGTERM with exit code 0.
struct Pasta {
    pid: Pid,
    file: PathBuf,
}

impl Pasta {
    /// For the world's guest; returns once the helper that was called has said it is ready.
    fn start(world: &World, words: &str) -> Self {
        let file = world.dir.join("pid");
        let words = format!("{words} --pid {}", file.display());
        let (code, said) = run(world, &words);
        assert_eq!(code, Some(0), "pasta {words}: {said}");
        let pid = fs::read_to_string(&file).expect("the file with the process ID");
        Self {
            pid: Pid::from_raw(pid.trim().parse().expect("a process ID")),
            file,
        }
    }
}

impl Drop for Pasta {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
        let _ = kill(self.pid, Signal::SIGTERM);
        let ended = waitpid(self.pid, None);
        if !std::thread::panicking() {
            assert_eq!(ended, Ok(WaitStatus::Exited(self.pid, 0)));
        }
    }
}

/// Runs it until the process that was called has ended, and nobody writes any more. Returns the
/// exit code and what it said.
fn run(world: &World, words: &str) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_coracle-net"))
        .arg0("pasta")
        .args(words.split_whitespace())
        .arg("--netns")
        .arg(format!("/proc/{}/ns/net", world.guest.pid))
        .stdin(Stdio::null())
        .output()
        .expect("start the program");
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

fn refuses(netns: &Netns, remote: SocketAddr) -> Errno {
    let error = try_connect(netns, remote, Duration::from_secs(3)).expect_err("nobody there");
    errno(&error).unwrap_or_else(|| panic!("{remote}: {error}"))
}

/// One datagram there and back.
fn udp_answers(netns: &Netns, family: Family, remote: SocketAddr) -> bool {
    let client = udp(netns, family.unspecified(), 0);
    client
        .set_read_timeout(Some(Duration::from_secs(2)))
        .expect("a deadline");
    client.connect(remote).expect("an address");
    client.send(b"hello").is_ok() && client.recv(&mut [0; 8]).is_ok()
}

fn addresses_and_routes_are_the_hosts(world: &mut World) {
    connect_host(world);
    ip(&world.host, "addr add 198.51.100.2/24 dev up0");
    ip(&world.host, "addr add 2001:db8::2/128 dev up0 nodad");
    ip(
        &world.host,
        "addr add 203.0.113.200/32 dev up0 noprefixroute",
    );
    ip(
        &world.host,
        "route add 100.65.0.0/16 via 198.51.100.9 src 198.51.100.2 mtu 1400",
    );
    let _helper = Pasta::start(world, "--config-net");
    let guest = &world.guest.net;
    for words in ["-4 route show dev up0", "-6 route show dev up0"] {
        assert_eq!(ip_json(guest, words), ip_json(&world.host, words));
    }
    let addresses = global_addresses(guest, "up0");
    assert_eq!(addresses.len(), 5);
    for address in global_addresses(&world.host, "up0") {
        assert!(addresses.contains(&address), "{address}: {addresses:?}");
    }
    assert_eq!(ip_json(guest, "link show dev up0")[0]["mtu"], 65520);
    assert!(ip(guest, "link show dev lo").contains("UP"));
}

/// The host's router and its neighbours are reached under their own addresses, and see the host's.
fn neighbours_are_real(world: &mut World) {
    connect_host(world);
    let _helper = Pasta::start(world, "--config-net --no-map-gw");
    let guest = &world.guest.net;
    for family in Family::BOTH {
        let server = listen(&world.elsewhere, family.elsewhere(), 7);
        let client = connect(guest, server.local_addr().unwrap());
        assert_eq!(client.local_addr().unwrap().ip(), family.host());
        assert_eq!(accept(&server).1.ip(), family.host());
        let _echo = udp_echo(&world.elsewhere, family.elsewhere(), 9);
        assert!(udp_answers(guest, family, (family.elsewhere(), 9).into()));
        assert!(ping(guest, family.elsewhere(), 56), "{family:?}");
        // A service of the host's own address is out of reach: the guest has that itself.
        let _service = listen(&world.host, family.host(), 8000);
        let error = refuses(guest, (family.host(), 8000).into());
        assert_eq!(error, Errno::ECONNREFUSED);
        let here = EchoServer::start(guest, family.host(), 8000);
        assert_echo(&mut connect(guest, here.address), b"to itself");
    }
}

/// The gateway as the guest's programs have to write it.
fn gateway(world: &World, family: Family, port: u16) -> SocketAddr {
    match family {
        Family::V4 => (ROUTER_V4, port).into(),
        Family::V6 => {
            let index = || nix::net::if_::if_nametoindex("up0").expect("the guest's link");
            let scope = world.guest.net.run(index);
            SocketAddrV6::new(ROUTER_V6, port, 0, scope).into()
        }
    }
}

fn gateway_is_host_loopback(world: &mut World) {
    connect_host(world);
    let guest = &world.guest.net;
    let servers =
        Family::BOTH.map(|family| EchoServer::start(&world.host, family.loopback(), 8000));
    let _echoes = Family::BOTH.map(|family| udp_echo(&world.host, family.loopback(), 8001));
    let helper = Pasta::start(world, "--config-net");
    for family in Family::BOTH {
        let service = gateway(world, family, 8000);
        assert_echo(&mut connect(guest, service), b"loopback");
        let datagrams = gateway(world, family, 8001);
        assert!(udp_answers(guest, family, datagrams), "{family:?}");
    }
    drop(helper);

    let helper = Pasta::start(world, "--config-net --map-host-loopback 192.0.2.77");
    let mapped = SocketAddr::from(([192, 0, 2, 77], 8000));
    assert_echo(&mut connect(guest, mapped), b"loopback");
    assert!(ping(guest, mapped.ip(), 56));
    // The gateway of this family is the router now.
    let _router = EchoServer::start(&world.elsewhere, ROUTER_V4.into(), 8000);
    let accepted = servers[0].accepted();
    assert_echo(
        &mut connect(guest, gateway(world, Family::V4, 8000)),
        b"router",
    );
    assert_eq!(servers[0].accepted(), accepted);
    assert_echo(
        &mut connect(guest, gateway(world, Family::V6, 8000)),
        b"loopback",
    );
    drop(helper);

    let _helper = Pasta::start(world, "--config-net --no-map-gw");
    let v6 = servers[1].accepted();
    let service = gateway(world, Family::V6, 8000);
    assert_eq!(refuses(guest, service), Errno::ECONNREFUSED);
    let service = gateway(world, Family::V4, 8000);
    assert_echo(&mut connect(guest, service), b"router");
    assert_eq!(
        [accepted, v6],
        [servers[0].accepted(), servers[1].accepted()]
    );
}

/// Podman 5.4, with the address of the host in each family.
fn as_podman_asks(world: &mut World) {
    connect_host(world);
    let _helper = Pasta::start(
        world,
        "--config-net --dns-forward 169.254.1.1 --no-map-gw --quiet \
         --map-guest-addr 169.254.1.2 --map-guest-addr 2001:db8:2::2",
    );
    let guest = &world.guest.net;
    for (family, host) in [(Family::V4, "169.254.1.2"), (Family::V6, "2001:db8:2::2")] {
        let host: IpAddr = host.parse().unwrap();
        let server = listen(&world.host, family.host(), 8000);
        let mut client = connect(guest, (host, 8000).into());
        assert_eq!(accept(&server).1.ip(), family.host());
        let _ = client.read(&mut [0]);
        let _echo = udp_echo(&world.host, family.host(), 8001);
        assert!(udp_answers(guest, family, (host, 8001).into()));
        assert!(ping(guest, host, 56));
        // Not its loopback.
        let _hidden = listen(&world.host, family.loopback(), 8002);
        assert_eq!(refuses(guest, (host, 8002).into()), Errno::ECONNREFUSED);
    }
    assert_answered_by_elsewhere(world, "169.254.1.1".parse().unwrap());
    let metadata = "169.254.169.254:80".parse().unwrap();
    assert_eq!(refuses(guest, metadata), Errno::EHOSTUNREACH);
}

/// RootlessKit, which has made the tap itself.
fn as_rootlesskit_asks(world: &mut World) {
    connect_host(world);
    let guest = &world.guest.net;
    drop(guest.run(|| sys::make_tap("tap0")).expect("make a tap"));
    let _helper = Pasta::start(
        world,
        "--stderr --ns-ifname=tap0 --mtu=65520 --config-net --address=10.0.2.100 --netmask=24 \
         --gateway=10.0.2.2 --dns-forward=10.0.2.3 --no-map-gw --ipv4-only",
    );
    assert_eq!(global_addresses(guest, "tap0"), ["10.0.2.100/24"]);
    let routes = ip_json(guest, "-4 route");
    assert_eq!(routes.as_array().map(Vec::len), Some(2), "{routes}");
    assert_eq!(routes[0]["gateway"], "10.0.2.2");
    assert_answered_by_elsewhere(world, Family::V4.dns());
    let server = listen(&world.elsewhere, Family::V4.elsewhere(), 7);
    let client = connect(guest, server.local_addr().unwrap());
    assert_eq!(client.local_addr().unwrap().ip(), Family::V4.guest());
    assert_eq!(accept(&server).1.ip(), Family::V4.host());
    // The guest's address is not the host's here.
    let service = EchoServer::start(&world.host, Family::V4.host(), 8000);
    assert_echo(&mut connect(guest, service.address), b"host");
}

/// The kernel takes connections over though their ends are the host's.
fn hauling(world: &mut World) {
    require_nftables();
    connect_host(world);
    let _helper = Pasta::start(world, "--config-net");
    let guest = &world.guest.net;
    for family in Family::BOTH {
        let server = listen(&world.elsewhere, family.elsewhere(), 0);
        let remote_addr = server.local_addr().unwrap();
        let near = connect(guest, remote_addr);
        let (far, client) = accept(&server);
        assert_eq!(client.ip(), family.host());
        let mut patterns = [Pattern::new(3), Pattern::new(3)];
        let is_promoted = || has_socket_at(guest, remote_addr.port());
        for piece in 0.. {
            if piece > 0 && is_promoted() {
                break;
            }
            assert!(piece < 64, "{family:?} is not promoted");
            pass(&far, &near, &mut patterns, 1 << 20);
        }
        for (sender, receiver) in [(&near, &far), (&far, &near)] {
            pass(sender, receiver, &mut patterns, 8 << 20);
        }
        assert!(is_promoted());
    }
}

/// Whether a TCP socket in `netns` has this port for its own: that of a remote, if none listens.
fn has_socket_at(netns: &Netns, port: u16) -> bool {
    let end = format!(":{port:04X}");
    netns.run(|| {
        ["tcp", "tcp6"].into_iter().any(|table| {
            let table = fs::read_to_string(format!("/proc/thread-self/net/{table}"));
            let table = table.expect("the socket table");
            let mut rows = table.lines().skip(1);
            rows.any(|row| {
                let own = row.split_whitespace().nth(1);
                own.is_some_and(|own| own.ends_with(&end))
            })
        })
    })
}

fn one_family(world: &mut World) {
    connect_host(world);
    let guest = &world.guest.net;
    for (option, kept, other) in [
        ("-4", Family::V4, Family::V6),
        ("-6", Family::V6, Family::V4),
    ] {
        let _helper = Pasta::start(world, &format!("--config-net {option}"));
        let addresses = global_addresses(guest, "up0");
        assert_eq!(addresses.len(), 1, "{addresses:?}");
        assert!(addresses[0].starts_with(&kept.host().to_string()));
        let server = EchoServer::start(&world.elsewhere, kept.elsewhere(), 7);
        assert_echo(&mut connect(guest, server.address), b"kept");
        let error = refuses(guest, (other.elsewhere(), 7).into());
        assert!(
            matches!(error, Errno::ENETUNREACH | Errno::EADDRNOTAVAIL),
            "{option}: {error}"
        );
    }
}

/// The guest has a way out all the same, which is there as soon as the host has one.
fn host_without_a_network(world: &mut World) {
    ip(&world.host, "link del up0");
    let _helper = Pasta::start(world, "--config-net");
    let guest = &world.guest.net;
    assert_eq!(global_addresses(guest, "tap0"), ["169.254.2.1/16"]);
    let remote = |family: Family| (family.elsewhere(), 7).into();
    assert_eq!(refuses(guest, remote(Family::V4)), Errno::ENETUNREACH);
    assert_eq!(refuses(guest, remote(Family::V6)), Errno::ENETUNREACH);
    world
        .host
        .link(|links| links.add_veth("up0", "up0", world.elsewhere.as_fd()));
    for (netns, pick) in [
        (&world.host, Family::host as fn(Family) -> IpAddr),
        (&world.elsewhere, Family::elsewhere),
    ] {
        netns.link(|links| {
            links
                .up("up0")?
                .add_address("up0", pick(Family::V4), 24)?
                .add_address("up0", pick(Family::V6), 64)
        });
        netns.wait_until_local(pick(Family::V6));
    }
    for family in Family::BOTH {
        let server = EchoServer::start(&world.elsewhere, family.elsewhere(), 7);
        assert_echo(&mut connect(guest, server.address), b"at last");
    }
}

fn host_without_ipv6(world: &mut World) {
    ip(&world.host, "route add default via 198.51.100.254");
    world.host.sysctl("ipv6/conf/all/disable_ipv6", "1");
    let _helper = Pasta::start(world, "--config-net");
    let guest = &world.guest.net;
    assert_eq!(global_addresses(guest, "up0"), ["198.51.100.1/24"]);
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    assert_echo(&mut connect(guest, server.address), b"IPv4");
    // The guest has a way out, and is told at once that it leads nowhere now.
    let error = refuses(guest, (Family::V6.elsewhere(), 7).into());
    let is_at_once = matches!(error, Errno::ENETUNREACH | Errno::EHOSTUNREACH);
    assert!(is_at_once, "{error}");
}

/// Prefixes of one address, and a gateway that is outside.
fn own_addresses(world: &mut World) {
    connect_host(world);
    let _helper = Pasta::start(
        world,
        "--config-net -a 10.9.8.7/32 -a 2001:db8:9::7/128 -g 10.0.0.1 -g fe80::99 --no-copy-addrs",
    );
    let guest = &world.guest.net;
    let addresses = global_addresses(guest, "up0");
    assert_eq!(addresses, ["10.9.8.7/32", "2001:db8:9::7/128"]);
    for family in Family::BOTH {
        let server = listen(&world.elsewhere, family.elsewhere(), 7);
        let _client = connect(guest, server.local_addr().unwrap());
        assert_eq!(accept(&server).1.ip(), family.host());
        // The host is a host like any other.
        let service = EchoServer::start(&world.host, family.host(), 8000);
        assert_echo(&mut connect(guest, service.address), b"host");
    }
}

fn link(world: &mut World) {
    connect_host(world);
    let guest = &world.guest.net;
    let words = "--config-net -I wan0 -m 1400 --ns-mac-addr 52:54:00:12:34:56 -M 9a:55:9a:55:9a:01";
    let helper = Pasta::start(world, words);
    let link = &ip_json(guest, "link show dev wan0")[0];
    assert_eq!(
        (&link["mtu"], &link["address"]),
        (&1400.into(), &"52:54:00:12:34:56".into())
    );
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    assert_echo(&mut connect(guest, server.address), b"over it");
    let neighbours = ip(guest, "neighbour show dev wan0");
    assert!(neighbours.contains("9a:55:9a:55:9a:01"), "{neighbours}");
    drop(helper);
    let _helper = Pasta::start(world, "--config-net -m 0");
    assert_eq!(ip_json(guest, "link show dev up0")[0]["mtu"], 1500);
    assert_echo(&mut connect(guest, server.address), b"as it was");
}

/// The guest configures itself, or is configured by others.
fn not_configured(world: &mut World) {
    connect_host(world);
    let _helper = Pasta::start(world, "--ns-mac-addr 52:54:00:12:34:56");
    let guest = &world.guest.net;
    let link = &ip_json(guest, "link show dev up0")[0];
    assert_eq!(link["address"], "52:54:00:12:34:56");
    assert!(!link["flags"].to_string().contains("\"UP\""), "{link}");
    assert_eq!(global_addresses(guest, "up0").len(), 0);
    let here = EchoServer::start(guest, Family::V4.loopback(), 8000);
    assert_echo(&mut connect(guest, here.address), b"loopback is up");
}

fn protocols_off(world: &mut World) {
    connect_host(world);
    let guest = &world.guest.net;
    let family = Family::V4;
    let server = EchoServer::start(&world.elsewhere, family.elsewhere(), 7);
    let _echo = udp_echo(&world.elsewhere, family.elsewhere(), 7);
    for (option, left) in [
        ("--no-tcp", [false, true, true]),
        ("--no-udp", [true, false, true]),
        ("--no-icmp", [true, true, false]),
    ] {
        let _helper = Pasta::start(world, &format!("--config-net {option}"));
        let tcp = try_connect(guest, server.address, Duration::from_secs(3)).is_ok();
        let udp = udp_answers(guest, family, server.address);
        let echo = ping(guest, family.elsewhere(), 56);
        assert_eq!([tcp, udp, echo], left, "{option}");
    }
}

/// The address and the interface that traffic leaves the host from, and the resolver.
fn outbound(world: &mut World) {
    connect_host(world);
    ip(&world.host, "addr add 198.51.100.2/24 dev up0");
    let guest = &world.guest.net;
    let server = listen(&world.elsewhere, Family::V4.elsewhere(), 7);
    let remote = server.local_addr().unwrap();
    let helper = Pasta::start(world, "--config-net -o 198.51.100.2 --outbound-if4 up0");
    let _client = connect(guest, remote);
    let second = IpAddr::from([198, 51, 100, 2]);
    assert_eq!(accept(&server).1.ip(), second);
    drop(helper);

    // No way leads out by loopback, but the host itself is reached still.
    let words = "--config-net --interface up0 --outbound-if4 lo --dns-forward 10.0.0.53";
    let helper = Pasta::start(world, words);
    assert!(try_connect(guest, remote, Duration::from_secs(1)).is_err());
    let local = EchoServer::start(&world.host, Family::V4.loopback(), 8000);
    let host = gateway(world, Family::V4, 8000);
    assert_echo(&mut connect(guest, host), b"host");
    drop((helper, local));

    fs::write("/etc/resolv.conf", "nameserver 203.0.113.9\n").expect("write resolv.conf");
    let words = "--config-net --dns-forward 10.0.0.53 --dns-host 198.51.100.7";
    let _helper = Pasta::start(world, words);
    assert_answered_by_elsewhere(world, "10.0.0.53".parse().unwrap());
}

fn mistakes(world: &mut World) {
    connect_host(world);
    for (words, part) in [
        ("-i nosuch0", "nosuch0"),
        ("-i lo", "external interface lo is not usable"),
        ("-a 127.0.0.1", "no host can have this address"),
        ("-a 10.0.0.1/33", "no length"),
        ("-n 255.0.255.0", "gaps"),
        ("-m 67", "from 68 to 65521"),
        ("-M 1:2:3", "six bytes"),
        ("-I a-name-of-16-byt", "15 bytes"),
        ("-4 -6", "cannot be used with"),
        ("--freebind", "--freebind"),
    ] {
        let (code, said) = run(world, words);
        assert_eq!(code, Some(1), "{words}: {said}");
        assert!(said.contains(part), "{words}: {said}");
    }
}
