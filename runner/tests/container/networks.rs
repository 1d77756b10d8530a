//! Networks that containers share: how they reach each other there, and how nobody else does.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::{
    Outcome, World, cases, children_of, collect, eventually, is_running, need_tun, parent_of,
    unique,
};

cases![
    containers_reach_each_other_by_name,
    ports_are_published_with_the_clients_address,
    networks_are_apart,
    an_internal_network_has_no_way_out,
    a_container_has_what_it_asks_for,
    networks_come_and_go_while_a_container_runs,
    whichever_process_is_killed_networks_come_back,
    many_containers_start_at_once,
    networks_are_made_listed_and_removed,
    a_network_in_use_stays,
    the_hosts_network_can_be_a_containers,
];

/// Whether any case can be tried: a way out is there for all but internal networks.
fn need_ipv6() -> bool {
    fs::exists("/proc/sys/net/ipv6").unwrap_or(false)
}

fn network(world: &World, args: &[&str]) -> Outcome {
    world.try_coracle(&[&["network"], args].concat())
}

/// Makes a network, whose name is returned.
fn create(world: &World, flags: &[&str]) -> String {
    let name = unique("net");
    let made = network(world, &[&["create"], flags, &[&name]].concat());
    assert_eq!(made.success().trim_end(), name);
    name
}

fn exec(world: &World, container: &str, command: &[&str]) -> Outcome {
    world.try_coracle(&[&["exec", container, "busybox"], command].concat())
}

/// Whether `container` reads a line from TCP port 7 of `host`.
fn reaches(world: &World, container: &str, host: &str) -> bool {
    let asked = exec(world, container, &["nc", "-w", "2", host, "7"]);
    let is_reached = asked.code() == Some(0) && asked.stdout == "here\n";
    if !is_reached {
        eprintln!("{container} does not reach {host}: {asked:?}");
    }
    is_reached
}

/// A container that says "here" to whoever comes to its TCP port 7.
const SERVICE: &[&str] = &[
    "busybox", "nc", "-ll", "-p", "7", "-e", "busybox", "echo", "here",
];

fn serve(world: &World, name: &str, flags: &[&str]) {
    world.detach(name, flags, SERVICE);
    eventually("it listens", || reaches(world, name, "127.0.0.1"));
}

fn looks_up(world: &World, container: &str, name: &str) -> bool {
    exec(world, container, &["nslookup", "-type=a", name]).code() == Some(0)
}

fn remove(world: &World, containers: &[&str]) {
    world
        .try_coracle(&[&["rm", "-f"], containers].concat())
        .success();
}

fn inspect(world: &World, container: &str) -> Value {
    let seen = world.try_coracle(&["inspect", container]);
    let seen: Vec<Value> = serde_json::from_str(seen.success()).expect("JSON");
    seen.into_iter().next().expect("the container")
}

/// The container's address of IPv4 in a network.
fn address(world: &World, container: &str, network: &str) -> String {
    let networks = &inspect(world, container)["NetworkSettings"]["Networks"];
    let address = networks[network]["IPAddress"].as_str();
    address.expect("an address").to_owned()
}

fn containers_reach_each_other_by_name(world: &World) {
    need_tun();
    let flags: &[&str] = if need_ipv6() { &["--ipv6"] } else { &[] };
    let net = create(world, flags);
    let [web, app, db] = ["web", "app", "db"].map(unique);
    serve(world, &db, &["--network", &net, "--network-alias", "store"]);
    serve(world, &app, &["--network", &net]);
    serve(world, &web, &["--network", &net]);
    let id = inspect(world, &app)["Id"].as_str().expect("an id")[..12].to_owned();
    let ip = address(world, &db, &net);
    for (from, to) in [(&web, &app), (&app, &db), (&db, &web), (&web, &id)] {
        assert!(reaches(world, from, to), "{from} {to}");
    }
    assert!(reaches(world, &web, "store") && reaches(world, &web, &ip));
    if need_ipv6() {
        let networks = &inspect(world, &db)["NetworkSettings"]["Networks"];
        let v6 = networks[&net]["GlobalIPv6Address"].as_str();
        assert!(reaches(world, &web, v6.expect("an address")));
    }
    // Who leaves takes the name along, and the address is free.
    remove(world, &[&db]);
    assert!(!looks_up(world, &web, "store"));
    serve(world, &db, &["--network", &net]);
    assert_eq!(address(world, &db, &net), ip);
    assert!(reaches(world, &web, &db), "with the address of another");
    remove(world, &[&web, &app, &db]);
    network(world, &["rm", &net]).success();
}

/// An address of this host that is not loopback's, if it has one.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.77:9").ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_loopback()).then_some(own)
}

fn ports_are_published_with_the_clients_address(world: &World) {
    need_tun();
    let net = create(world, &[]);
    let [first, web] = ["first", "web"].map(unique);
    // So that the published one is not the network's only container.
    serve(world, &first, &["--network", &net]);
    let port = TcpListener::bind("0.0.0.0:0")
        .and_then(|socket| socket.local_addr())
        .expect("a port")
        .port();
    let publish = format!("{port}:80");
    let command = ["busybox", "httpd", "-f", "-v", "-h", "/etc"];
    world.detach(&web, &["--network", &net, "-p", &publish], &command);
    let get = |ip: IpAddr| {
        let timeout = Duration::from_secs(2);
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip, port), timeout).ok()?;
        stream.set_read_timeout(Some(timeout)).expect("a timeout");
        stream.write_all(b"GET /hostname HTTP/1.0\r\n\r\n").ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        page.starts_with("HTTP/1.1 200").then_some(page)
    };
    let loopback = IpAddr::from([127, 0, 0, 1]);
    eventually("the page is served", || get(loopback).is_some());
    let logged = |ip: IpAddr| {
        let logs = world.try_coracle(&["logs", &web]);
        logs.stderr.contains(&format!("{ip}]:")) || logs.stdout.contains(&format!("{ip}]:"))
    };
    eventually("loopback is the gateway", || logged([10, 0, 2, 2].into()));
    if let Some(own) = own_address() {
        assert!(get(own).is_some());
        eventually("the client is seen as itself", || logged(own));
    }
    let taken = world.try_coracle(&[
        "run",
        "--rm",
        "--network",
        &net,
        "-p",
        &publish,
        "--rootfs",
        "rootfs",
        "true",
    ]);
    assert_eq!(taken.code(), Some(126), "{taken:?}");
    let shown = world.try_coracle(&["port", &web, "80"]);
    assert!(shown.success().contains(&port.to_string()));
    // The port is free the moment the container has been stopped, whoever is left in the network.
    world.try_coracle(&["stop", "-t", "0", &web]).success();
    drop(TcpListener::bind((loopback, port)).expect("a free port"));
    remove(world, &[&web, &first]);
    network(world, &["rm", &net]).success();
}

fn networks_are_apart(world: &World) {
    need_tun();
    let [front, back] = [(); 2].map(|()| create(world, &[]));
    let [web, app, db] = ["web", "app", "db"].map(unique);
    serve(world, &db, &["--network", &back]);
    let both = format!("{front},{back}");
    serve(world, &app, &["--network", &both]);
    serve(world, &web, &["--network", &front]);
    assert!(reaches(world, &web, &app) && reaches(world, &db, &app));
    // In both, and so are the names.
    assert!(reaches(world, &app, &web) && reaches(world, &app, &db));
    assert!(!looks_up(world, &web, &db) && !looks_up(world, &db, &web));
    let ip = address(world, &db, &back);
    assert!(!reaches(world, &web, &ip));
    // Not even by way of whoever is in both: it does not forward.
    let route = [
        "ip",
        "route",
        "add",
        &format!("{ip}/32"),
        "via",
        &address(world, &app, &front),
    ];
    let by_app = [
        "run",
        "--rm",
        "--cap-add",
        "NET_ADMIN",
        "--network",
        &front,
        "--rootfs",
        "rootfs",
        "sh",
        "-c",
    ];
    let script = format!("{} && busybox nc -w 2 {ip} 7", route.join(" "));
    let asked = world.try_coracle(&[&by_app[..], &[&script]].concat());
    assert!(
        asked.code() != Some(0) && asked.stdout.is_empty(),
        "{asked:?}"
    );
    // Nor does the namespace of another's bridge have a way to its neighbour's.
    let gateway = exec(world, &web, &["ip", "route"]);
    assert_eq!(gateway.success().matches("default via").count(), 1);
    remove(world, &[&web, &app, &db]);
    network(world, &["rm", &front, &back]).success();
}

fn an_internal_network_has_no_way_out(world: &World) {
    let net = create(world, &["--internal"]);
    let [web, db] = ["web", "db"].map(unique);
    serve(world, &db, &["--network", &net]);
    serve(world, &web, &["--network", &net]);
    assert!(reaches(world, &web, &db) && looks_up(world, &web, &db));
    assert!(!looks_up(world, &web, "example.com"));
    let routes = exec(world, &web, &["ip", "route"]);
    assert!(!routes.success().contains("default"), "{routes:?}");
    let ports = [
        "run",
        "--rm",
        "--network",
        &net,
        "-p",
        "80",
        "--rootfs",
        "rootfs",
        "true",
    ];
    let refused = world.try_coracle(&ports);
    assert_eq!(refused.code(), Some(125));
    assert!(refused.stderr.contains("is internal"), "{refused:?}");
    remove(world, &[&web, &db]);
    network(world, &["rm", &net]).success();
}

fn a_container_has_what_it_asks_for(world: &World) {
    need_tun();
    let net = create(world, &["--subnet", "10.91.7.0/24", "--opt", "mtu=1400"]);
    let name = unique("asks");
    let flags = [
        "--network",
        &net,
        "--ip",
        "10.91.7.77",
        "--mac-address",
        "02:00:00:00:00:77",
    ];
    world.detach(&name, &flags, &["sleep", "1000"]);
    let links = exec(world, &name, &["ip", "addr", "show", "eth0"]);
    for part in ["inet 10.91.7.77/24", "ether 02:00:00:00:00:77", "mtu 1400"] {
        assert!(links.success().contains(part), "{part}: {links:?}");
    }
    let seen = &inspect(world, &name)["NetworkSettings"]["Networks"][&net];
    assert_eq!(seen["IPAddress"], "10.91.7.77");
    assert_eq!(seen["Gateway"], "10.91.7.1");
    assert_eq!(seen["IPPrefixLen"], 24);
    assert_eq!(seen["MacAddress"], "02:00:00:00:00:77");
    let refused = |flags: &[&str]| {
        let words = [&["run", "--rm"], flags, &["--rootfs", "rootfs", "true"]].concat();
        let outcome = world.try_coracle(&words);
        assert_eq!(outcome.code(), Some(125), "{flags:?}: {outcome:?}");
        outcome.stderr
    };
    let option = format!("{net}:ip=10.91.7.77");
    for (flags, why) in [
        (
            &["--network", option.as_str()][..],
            "in use by the container",
        ),
        (
            &["--network", &net, "--ip", "10.92.7.7"],
            "no address for a container",
        ),
        (
            &["--network", &net, "--ip", "10.91.7.1"],
            "no address for a container",
        ),
        (&["--network", &net, "--network", &net], "named twice"),
        (&["--network", "no-such-network"], "there is no network"),
        (&["--ip", "10.91.7.7"], "--network names it"),
        (
            &["--network", "none", "--network-alias", "x"],
            "--network names it",
        ),
        (&["--network", &net, "--network", "none"], "go together"),
        (&["--network", "container:x"], "does not have"),
    ] {
        let said = refused(flags);
        assert!(said.contains(why), "{flags:?}: {said}");
    }
    remove(world, &[&name]);
    network(world, &["rm", &net]).success();
}

fn networks_come_and_go_while_a_container_runs(world: &World) {
    need_tun();
    let [front, back] = [(); 2].map(|()| create(world, &[]));
    let [web, db] = ["web", "db"].map(unique);
    serve(world, &db, &["--network", &back]);
    serve(world, &web, &["--network", &front]);
    assert!(!reaches(world, &db, &web));
    network(world, &["connect", "--alias", "page", &back, &web]).success();
    assert!(reaches(world, &db, "page") && reaches(world, &web, &db));
    let again = network(world, &["connect", &back, &web]);
    assert_eq!(again.code(), Some(125), "{again:?}");
    let connected = inspect(world, &web);
    let networks = connected["NetworkSettings"]["Networks"].as_object();
    assert_eq!(networks.expect("a map").len(), 2);
    // The way out is another one then.
    network(world, &["disconnect", &front, &web]).success();
    assert!(reaches(world, &db, "page") && reaches(world, &web, &db));
    let routes = exec(world, &web, &["ip", "route"]);
    assert!(routes.success().contains("dev eth1"), "{routes:?}");
    assert!(!routes.success().contains("dev eth0"), "{routes:?}");
    let twice = network(world, &["disconnect", &front, &web]);
    assert_eq!(twice.code(), Some(125), "{twice:?}");
    for (network, container) in [("no-such", &*web), (&back, "no-such")] {
        let missing = world.try_coracle(&["network", "connect", network, container]);
        assert_eq!(missing.code(), Some(125), "{missing:?}");
    }
    // One that is in no networks has nothing that could be put into one.
    let alone = unique("alone");
    world.detach(&alone, &["--network", "none"], &["sleep", "1000"]);
    let refused = network(world, &["connect", &back, &alone]);
    assert!(refused.stderr.contains("in no networks"), "{refused:?}");
    network(world, &["disconnect", &back, &web]).success();
    assert!(!looks_up(world, &db, "page"));
    remove(world, &[&web, &db, &alone]);
    network(world, &["rm", &front, &back]).success();
}

/// The processes below this one of that name.
fn processes(name: &str) -> Vec<i32> {
    let mut found = Vec::new();
    let mut left = children_of(std::process::id() as i32);
    while let Some(pid) = left.pop() {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm"));
        if is_running(pid) && comm.is_ok_and(|comm| comm.trim_end() == name) {
            found.push(pid);
        }
        left.extend(children_of(pid));
    }
    found
}

fn whichever_process_is_killed_networks_come_back(world: &World) {
    need_tun();
    let net = create(world, &[]);
    let [web, db] = ["web", "db"].map(unique);
    let port = TcpListener::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .expect("a port");
    let publish = format!("127.0.0.1:{}:7", port.port());
    serve(world, &db, &["--network", &net]);
    serve(world, &web, &["--network", &net, "-p", &publish]);
    let published = || {
        let mut said = String::new();
        let stream = TcpStream::connect_timeout(&port, Duration::from_secs(2));
        let read = stream.and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream.read_to_string(&mut said)
        });
        read.is_ok() && said == "here\n"
    };
    let before = [&web, &db].map(|name| address(world, name, &net));
    for name in ["coracle-net", "coracle-bridge", "coracle-nets"] {
        let killed = processes(name);
        assert!(!killed.is_empty(), "{name}");
        for pid in &killed {
            kill(Pid::from_raw(*pid), Signal::SIGKILL).expect("killed");
        }
        eventually("another takes its place", || {
            let now = processes(name);
            !now.is_empty() && now.iter().all(|pid| !killed.contains(pid))
        });
        eventually("all is as before", || {
            reaches(world, &web, &db) && reaches(world, &db, &web) && published()
        });
        let after = [&web, &db].map(|name| address(world, name, &net));
        assert_eq!(before, after, "{name}");
    }
    // A monitor takes its container along, and gives back what that had.
    kill(
        Pid::from_raw(parent_of(world.init_of(&web))),
        Signal::SIGKILL,
    )
    .expect("killed");
    eventually("the name is gone", || !looks_up(world, &db, &web));
    eventually("the port is free", || TcpListener::bind(port).is_ok());
    remove(world, &[&web, &db]);
    eventually("nobody keeps networks", || {
        processes("coracle-nets").is_empty() && processes("coracle-bridge").is_empty()
    });
    network(world, &["rm", &net]).success();
}

fn many_containers_start_at_once(world: &World) {
    need_tun();
    const COUNT: usize = 8;
    let net = create(world, &[]);
    let script = "ip -4 -o addr show eth0; read line; true";
    let args = [
        "run",
        "--rm",
        "-i",
        "--network",
        &net,
        "--rootfs",
        "rootfs",
        "sh",
        "-c",
        script,
    ];
    let start = || {
        let mut command = world.coracle(args);
        command.stdin(std::process::Stdio::piped());
        command.stdout(std::process::Stdio::piped());
        command.stderr(std::process::Stdio::piped());
        command.spawn().expect("coracle")
    };
    for _ in 0..2 {
        let mut children: Vec<_> = (0..COUNT).map(|_| start()).collect();
        let mut addresses = BTreeSet::new();
        for child in &mut children {
            let mut line = String::new();
            let stdout = child.stdout.as_mut().expect("a pipe");
            let mut byte = [0];
            while stdout.read(&mut byte).expect("read") == 1 && byte != *b"\n" {
                line.push(byte[0] as char);
            }
            let address = line.split_ascii_whitespace().nth(3).map(str::to_owned);
            assert!(addresses.insert(address.clone()), "{address:?} twice");
        }
        assert!(!addresses.contains(&None));
        for mut child in children {
            // The end of its input.
            drop(child.stdin.take());
            assert_eq!(collect(child).code(), Some(0));
        }
    }
    network(world, &["rm", &net]).success();
}

fn networks_are_made_listed_and_removed(world: &World) {
    let [first, second] = [
        create(world, &["--label", "a=b"]),
        create(world, &["--ipv6"]),
    ];
    let listed = network(world, &["ls", "-q"]);
    assert_eq!(listed.success().lines().count(), 2);
    let listed = network(
        world,
        &["ls", "--filter", "label=a", "--format", "{{.Name}}"],
    );
    assert_eq!(listed.success().trim_end(), first);
    let inspected = network(world, &["inspect", &first, &second]);
    let seen: Value = serde_json::from_str(inspected.success()).expect("JSON");
    assert_eq!(seen[0]["labels"]["a"], "b");
    assert_eq!(seen[1]["subnets"].as_array().expect("a list").len(), 2);
    assert_ne!(seen[0]["subnets"][0], seen[1]["subnets"][0]);
    let id = seen[0]["id"].as_str().expect("an id");
    assert_eq!(network(world, &["exists", &id[..12]]).code(), Some(0));
    assert_eq!(network(world, &["exists", "no-such"]).code(), Some(1));
    let subnet = seen[0]["subnets"][0]["subnet"].as_str().expect("a subnet");
    for args in [
        &["create", first.as_str()][..],
        &["create", "host"],
        &["create", "none"],
        &["create", "a b"],
        &["create", "--subnet", subnet, "taken"],
        &["create", "--gateway", "10.9.9.9", "lost"],
        &["create", "--driver", "macvlan", "other"],
        &["create", "--opt", "vlan=7", "other"],
        &["inspect", "no-such"],
    ] {
        assert_eq!(network(world, args).code(), Some(125), "{args:?}");
    }
    let ignored = network(world, &["create", "--ignore", &first]);
    assert_eq!(ignored.success().trim_end(), first);
    assert_eq!(network(world, &["rm", "no-such"]).code(), Some(1));
    network(world, &["rm", "-f", "no-such"]).success();
    assert_eq!(network(world, &["rm", &first]).success().trim_end(), first);
    assert_eq!(
        network(world, &["prune", "-f"]).success().trim_end(),
        second
    );
    assert_eq!(network(world, &["ls", "-q"]).success(), "");
}

fn a_network_in_use_stays(world: &World) {
    let net = create(world, &["--internal"]);
    let name = unique("user");
    world.detach(&name, &["--network", &net], &["sleep", "1000"]);
    let refused = network(world, &["rm", &net]);
    assert_eq!(refused.code(), Some(2));
    assert!(refused.stderr.contains(&name), "{refused:?}");
    assert_eq!(network(world, &["prune", "-f"]).success(), "");
    world.try_coracle(&["stop", "-t", "0", &name]).success();
    // It may be started again.
    assert_eq!(network(world, &["rm", &net]).code(), Some(2));
    let users = world.try_coracle(&["ps", "-a", "-q", "--filter", &format!("network={net}")]);
    assert_eq!(users.success().lines().count(), 1);
    network(world, &["disconnect", &net, &name]).success();
    network(world, &["connect", &net, &name]).success();
    network(world, &["rm", "-f", &net]).success();
    assert!(world.inspect(&name).is_none());
}

fn the_hosts_network_can_be_a_containers(world: &World) {
    let own = fs::read_link("/proc/self/ns/net").expect("a namespace");
    let name = unique("host");
    world.detach(&name, &["--network", "host"], &["sleep", "1000"]);
    let inside = world.try_coracle(&["exec", &name, "readlink", "/proc/self/ns/net"]);
    assert_eq!(inside.success().trim_end(), own.to_str().expect("text"));
    let publish = [
        "run",
        "--network",
        "host",
        "-p",
        "80",
        "--rootfs",
        "rootfs",
        "true",
    ];
    assert_eq!(world.try_coracle(&publish).code(), Some(125));
    remove(world, &[&name]);
}
