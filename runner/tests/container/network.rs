//! The network of a container, as far as it is the runner's business.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{
    World, cases, children_of, collect, eventually, finish, need_tun, parent_of, unique,
};

cases![
    a_container_without_a_network_has_loopback,
    the_built_in_image_serves_its_page_and_ends_at_once,
    a_helper_that_dies_is_replaced,
    ports_that_the_kernel_chose_are_shown,
    more_ports_than_the_soft_limit_has_descriptors,
    a_network_may_have_other_addresses_and_rules,
];

fn a_container_without_a_network_has_loopback(world: &World) {
    let links = world.sh(
        &[],
        "ls /sys/class/net; ip addr show lo | grep -c 'inet 127.0.0.1/8'",
    );
    assert_eq!(links, "lo\n1\n");
    assert_eq!(
        world.sh(&[], "cat /proc/sys/net/ipv4/ip_unprivileged_port_start"),
        "0\n"
    );
    let range = world.sh(&[], "cat /proc/sys/net/ipv4/ping_group_range");
    let groups = world.sh(&[], "cat /proc/self/gid_map");
    let counts = groups
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().nth(2)?.parse::<u64>().ok());
    // All of the container's groups, as far as the setting goes.
    let last = (counts.sum::<u64>() - 1).min(u64::from(u32::MAX / 2));
    assert_eq!(range, format!("0\t{last}\n"));
    assert_eq!(world.run(&["-p", "8080:80"], &["true"]).code(), Some(125));
}

fn the_built_in_image_serves_its_page_and_ends_at_once(world: &World) {
    need_tun();
    let (address, publish) = free_port();
    let child = world.start(["run", "-p", &publish], Stdio::piped());
    let mut page = String::new();
    eventually("the page is served", || {
        get(address, "/status.json")
            .inspect(|text| page.clone_from(text))
            .is_some()
    });
    assert!(page.contains("\"address\":\"10.0.2.2\""), "{page}");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("signalled");
    let outcome = collect(child);
    assert_eq!(outcome.code(), Some(0), "{outcome:?}");
    // The port inside is of no use to whoever typed another.
    let url = format!("coracle: open http://{address}\n");
    assert!(outcome.stderr.contains(&url), "{outcome:?}");
    // The port is free the moment coracle has ended.
    TcpListener::bind(address).expect("a free port");
}

fn a_helper_that_dies_is_replaced(world: &World) {
    need_tun();
    let (address, publish) = free_port();
    let name = unique("helper");
    world
        .try_coracle(&["run", "-d", "--rm", "--name", &name, "-p", &publish])
        .success();
    eventually("the page is served", || get(address, "/").is_some());
    let monitor = parent_of(world.init_of(&name));
    for _ in 0..2 {
        let mut helper = None;
        eventually("there is a helper", || {
            helper = children_of(monitor).into_iter().find(|pid| is_helper(*pid));
            helper.is_some()
        });
        kill(Pid::from_raw(helper.expect("found")), Signal::SIGKILL).expect("killed");
        eventually("another serves the page", || {
            children_of(monitor)
                .into_iter()
                .any(|pid| Some(pid) != helper && is_helper(pid))
                && get(address, "/").is_some()
        });
    }
    world.try_coracle(&["stop", &name]).success();
    TcpListener::bind(address).expect("a free port");
}

fn free_port() -> (SocketAddr, String) {
    let address = TcpListener::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .expect("a port");
    (address, format!("127.0.0.1:{}:8080", address.port()))
}

/// The answer to a GET request, if there is one.
pub fn get(address: SocketAddr, path: &str) -> Option<String> {
    let timeout = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, timeout).ok()?;
    stream.set_read_timeout(Some(timeout)).expect("a timeout");
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.starts_with("HTTP/1.1 200").then_some(answer)
}

fn is_helper(pid: i32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"coracle-net"))
}

fn ports_that_the_kernel_chose_are_shown(world: &World) {
    let name = unique("ports");
    let publish = [
        "-p",
        "80",
        "-p",
        "127.0.0.1::81",
        "-p",
        "90-92",
        "-p",
        "53/udp",
    ];
    let args = ["run", "-d", "--name", &name];
    let command = ["--rootfs", "rootfs", "sleep", "1000"];
    world
        .try_coracle(&[&args[..], &publish, &command].concat())
        .success();
    let listed = world.inspect(&name).expect("listed")["ports"].clone();
    let ports = listed.as_array().expect("ports");
    let is_chosen = |port: &serde_json::Value| port["host_port"].as_u64() > Some(0);
    assert!(ports.len() == 4 && ports.iter().all(is_chosen), "{ports:?}");
    let port = |wanted: &str| -> Vec<u16> {
        let said = world.try_coracle(&["port", &name, wanted]);
        let lines = said.success().lines();
        lines
            .map(|line| {
                line.rsplit(':')
                    .next()
                    .expect("a port")
                    .parse()
                    .expect("a number")
            })
            .collect()
    };
    let [first, second, third] = ["90", "91/tcp", "92"].map(|wanted| port(wanted)[0]);
    assert_eq!((second, third), (first + 1, first + 2));
    assert_eq!(port("80").len(), 2, "both families");
    assert_ne!(port("53/udp"), [0]);
    assert_eq!(world.try_coracle(&["port", &name, "53"]).code(), Some(125));
    assert_eq!(
        world
            .try_coracle(&["port", &name])
            .success()
            .lines()
            .count(),
        11
    );

    // A clash names the owner.
    let taken = format!("127.0.0.1:{}:80", port("81")[0]);
    let refused = world.run_with_network(&["-p", &taken], &["true"]);
    assert_eq!(refused.code(), Some(126));
    assert!(refused.stderr.contains(&name), "{refused:?}");
    let twice = format!("127.0.0.1:{}:82", port("81")[0]);
    world.try_coracle(&["rm", "-f", &name]).success();
    let refused = world.run_with_network(&["-p", &taken, "-p", &twice], &["true"]);
    assert_eq!(refused.code(), Some(126));
    assert!(refused.stderr.contains("this command"), "{refused:?}");
}

fn more_ports_than_the_soft_limit_has_descriptors(world: &World) {
    // So many in a row are free only at an address that nothing else uses.
    let publish = "127.91.3.7::1000-1599";
    let script = r#"ulimit -Sn 256; exec "$@""#;
    let mut words = vec!["-c", script, "sh"];
    let program = crate::harness::coracle()
        .to_str()
        .expect("plain")
        .to_owned();
    let run = [
        "run",
        "--rm",
        "--ulimit",
        "host",
        "-p",
        publish,
        "--rootfs",
        "rootfs",
        "sh",
        "-c",
        "ulimit -Sn",
    ];
    words.push(&program);
    words.extend(run);
    let limited = finish(world.command(&["sh".as_ref()], &words));
    assert_eq!(
        limited.success(),
        "256\n",
        "the container has the caller's limit"
    );
}

impl World {
    #[track_caller]
    fn run_with_network(&self, flags: &[&str], command: &[&str]) -> crate::harness::Outcome {
        let words = [
            &["run", "--rm"][..],
            flags,
            &["--rootfs", "rootfs"],
            command,
        ]
        .concat();
        self.try_coracle(&words)
    }
}

/// Once more after a kill: the helper that takes over is told the same.
fn a_network_may_have_other_addresses_and_rules(world: &World) {
    need_tun();
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = server.local_addr().expect("bound").port();
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port");
    let closed_port = closed.local_addr().expect("bound").port();
    let options = format!(
        "coracle:cidr=10.9.8.0/24,cidr6=fd09:8::/64,mtu=1400,map-host=192.0.2.200,\
         egress=allow:tcp:host:{port},egress=deny:host"
    );
    let name = unique("network");
    let flags = ["run", "-d", "--name", &name, "--network", &options];
    let command = ["--rootfs", "rootfs", "sleep", "1000"];
    world
        .try_coracle(&[&flags[..], &command].concat())
        .success();
    let exec = |script: &str| world.try_coracle(&["exec", &name, "sh", "-c", script]);
    let link = exec("ip addr show tap0; cat /etc/resolv.conf /etc/hosts");
    let link = link.success();
    for part in [
        "mtu 1400",
        "10.9.8.100/24",
        "nameserver 10.9.8.3",
        "192.0.2.200\thost.containers.internal host.docker.internal",
    ] {
        assert!(link.contains(part), "{part}: {link}");
    }
    let call = |port: u16| {
        let script = format!("echo hello | nc -w 3 host.containers.internal {port}");
        exec(&script).code()
    };
    let answer = |server: &TcpListener| {
        let (mut client, _) = server.accept().expect("a client");
        let mut said = String::new();
        client.read_to_string(&mut said).expect("all of it");
        assert_eq!(said, "hello\n");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| answer(&server));
        assert_eq!(call(port), Some(0));
    });
    assert_eq!(call(closed_port), Some(1));

    let monitor = parent_of(world.init_of(&name));
    let helper = children_of(monitor).into_iter().find(|pid| is_helper(*pid));
    let helper = helper.expect("a helper");
    kill(Pid::from_raw(helper), Signal::SIGKILL).expect("killed");
    eventually("another helper is at work", || {
        let is_new = |pid: i32| pid != helper && is_helper(pid);
        children_of(monitor).into_iter().any(is_new)
            && exec("ip addr show tap0").stdout.contains("10.9.8.100/24")
    });
    std::thread::scope(|scope| {
        scope.spawn(|| answer(&server));
        eventually("the host is reached again", || call(port) == Some(0));
    });
    assert_eq!(call(closed_port), Some(1));
    closed.set_nonblocking(true).expect("set");
    closed.accept().expect_err("nobody has come");
    world.try_coracle(&["rm", "-f", &name]).success();

    let refused = world.try_coracle(&[
        "run",
        "--network",
        "coracle:mtu=9",
        "--rootfs",
        "rootfs",
        "true",
    ]);
    assert_eq!(refused.code(), Some(125));
    assert!(
        refused.stderr.contains("expected 1280 to 65520"),
        "{refused:?}"
    );
}
