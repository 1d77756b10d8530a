//! RootlessKit, on which Docker's rootless daemon and nerdctl run. Debian 12's (1.1) knows
//! slirp4netns, that of Debian 13 (2.0) pasta and detached namespaces too. The guest's program is
//! its child: no container is needed.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use testbed::resolver::Resolver;
use testbed::traffic::{EchoServer, udp_echo};

use crate::harness::{
    Case, Daemon, Family, Helper, Machine, Outcome, SERVICE_PORT, Service, case, eventually,
    newer_case, skip,
};

pub const CASES: &[Case] = &[
    case("rootlesskit::builtin", |machine| {
        published(machine, SLIRP4NETNS, "builtin", Family::V4.loopback())
    }),
    case("rootlesskit::slirp4netns", |machine| {
        published(machine, SLIRP4NETNS, "slirp4netns", Family::V4.elsewhere())
    }),
    newer_case("rootlesskit::pasta", |machine| {
        published(machine, PASTA, "implicit", Family::V4.elsewhere())
    }),
    newer_case("rootlesskit::detached_builtin", |machine| {
        detached(machine, SLIRP4NETNS, "builtin")
    }),
    newer_case("rootlesskit::detached_slirp4netns", |machine| {
        detached(machine, SLIRP4NETNS, "slirp4netns")
    }),
    newer_case("rootlesskit::detached_pasta", |machine| {
        detached(machine, PASTA, "implicit")
    }),
    case("rootlesskit::outbound", |machine| {
        outbound(machine, SLIRP4NETNS)
    }),
    newer_case("rootlesskit::pasta_outbound", |machine| {
        outbound(machine, PASTA)
    }),
    case("rootlesskit::names", |machine| names(machine, SLIRP4NETNS)),
    newer_case("rootlesskit::pasta_names", |machine| names(machine, PASTA)),
    case("rootlesskit::sandboxed", sandboxed),
    case("rootlesskit::two_at_once", two_at_once),
    case("rootlesskit::killed", |machine| {
        killed(machine, SLIRP4NETNS, "slirp4netns")
    }),
    newer_case("rootlesskit::pasta_killed", |machine| {
        killed(machine, PASTA, "implicit")
    }),
];

const SLIRP4NETNS: Helper = Helper::Slirp4netns;
const PASTA: Helper = Helper::Pasta;

const GUEST: &str = "/opt/programs/guest";

/// RootlessKit with a helper, whose last words are the program to run.
pub fn rootlesskit(machine: &Machine, name: &str, helper: Helper, options: &[&str]) -> Command {
    machine.need("rootlesskit");
    let help = machine.run(&["rootlesskit", "--help"]).expect();
    if helper == PASTA && !help.contains("--pasta-binary") {
        skip("this RootlessKit does not know pasta");
    }
    let state = machine.make_dir(name).join("state");
    let mut command = machine.command("rootlesskit");
    command
        .arg(format!("--state-dir={}", state.display()))
        .arg(format!("--net={}", helper.name()))
        .arg(format!(
            "--{}-binary={}",
            helper.name(),
            machine.path_of(helper)
        ))
        .args(["--copy-up=/etc", "--disable-host-loopback"])
        .args(options);
    command
}

/// The words that publish the guest's service.
pub fn publishing(driver: &str, entry: &str) -> Vec<String> {
    let ports =
        ["tcp", "udp"].map(|protocol| format!("--publish={entry}:{SERVICE_PORT}/{protocol}"));
    [format!("--port-driver={driver}")]
        .into_iter()
        .chain(ports)
        .collect()
}

fn serve(machine: &Machine, name: &str, helper: Helper, driver: &str, entry: &str) -> Daemon {
    let mut command = rootlesskit(machine, name, helper, &[]);
    command
        .args(publishing(driver, entry))
        .args([GUEST, "serve"]);
    Daemon::start(command)
}

/// The service knows clients elsewhere as `known_as`: the driver `builtin` connects from inside.
fn published(machine: &Machine, helper: Helper, driver: &str, known_as: IpAddr) {
    // What a driver `implicit` publishes has the same number on both sides.
    let port = match driver {
        "implicit" => SERVICE_PORT,
        _ => 8080,
    };
    let entry = format!("0.0.0.0:{port}");
    let daemon = serve(machine, "kit", helper, driver, &entry);
    let service = Service::at(&machine.elsewhere, Family::V4.host(), port);
    service.wait();
    assert_eq!(service.tcp_client(), known_as);
    assert_eq!(service.udp_client(), known_as);
    service.exchange(100_000_000);
    daemon.terminate();
    eventually_closed(&service);
    // At once again.
    let daemon = serve(machine, "again", helper, driver, &entry);
    service.wait();
    daemon.terminate();
}

/// RootlessKit's child stays in the host's network, as Docker 25 has it, beside a network namespace
/// for its own children.
fn detached(machine: &Machine, helper: Helper, driver: &str) {
    let help = machine.run(&["rootlesskit", "--help"]).expect();
    if !help.contains("--detach-netns") {
        skip("this RootlessKit does not detach its network namespace");
    }
    let server = EchoServer::start(&machine.elsewhere, Family::V4.elsewhere(), 0);
    let entry = format!("0.0.0.0:{SERVICE_PORT}");
    let mut command = rootlesskit(machine, "kit", helper, &["--detach-netns"]);
    let script = format!(
        "set -e
        inside=\"nsenter --net=$ROOTLESSKIT_STATE_DIR/netns\"
        $inside {GUEST} exchange {} 1000000
        exec $inside {GUEST} serve",
        server.address
    );
    command
        .args(publishing(driver, &entry))
        .args(["sh", "-c", &script]);
    let daemon = Daemon::start(command);
    let service = Service::at(&machine.elsewhere, Family::V4.host(), SERVICE_PORT);
    service.wait().exchange(1_000_000);
    service.udp_client();
    daemon.terminate();
    eventually_closed(&service);
}

fn outbound(machine: &Machine, helper: Helper) {
    // RootlessKit 2.0 leaves IPv6 to router advertisements, which it then asks pasta not to send.
    let families = match helper {
        SLIRP4NETNS => Family::BOTH.as_slice(),
        PASTA => &[Family::V4],
    };
    for &family in families {
        let server = EchoServer::start(&machine.elsewhere, family.elsewhere(), 0);
        let echo = udp_echo(&machine.elsewhere, family.elsewhere(), 0);
        // slirp4netns leaves pings by IPv6 alone.
        let ping = match family == Family::V6 && helper == SLIRP4NETNS && machine.has_peers {
            true => "true".into(),
            false => format!("ping -c 1 -w 10 {}", family.elsewhere()),
        };
        let version = if family == Family::V4 { 4 } else { 6 };
        // The guest's kernel takes up to a second to ask for a router.
        let script = format!(
            "set -e
            until busybox ip -{version} route | grep -q default; do sleep 0.1; done
            {GUEST} exchange {} 100000000
            {GUEST} datagram {}
            {ping}",
            server.address, echo.address,
        );
        let mut command = rootlesskit(machine, &format!("{family:?}"), helper, &["--ipv6"]);
        command.args(["sh", "-c", &script]);
        Outcome::of(command).expect();
    }
}

fn names(machine: &Machine, helper: Helper) {
    let resolver = Resolver::start(&machine.elsewhere, Family::V4.elsewhere(), 53);
    let mut command = rootlesskit(machine, "kit", helper, &[]);
    command.args(["busybox", "nslookup", "example.test"]);
    let answer = Outcome::of(command).expect();
    assert!(answer.contains("192.0.2.53"), "{answer}");
    assert!(resolver.asked() > 0);
}

/// With what the helper is asked to give up.
fn sandboxed(machine: &Machine) {
    let server = EchoServer::start(&machine.elsewhere, Family::V4.elsewhere(), 0);
    let options = ["--slirp4netns-sandbox=true", "--slirp4netns-seccomp=true"];
    let mut command = rootlesskit(machine, "kit", SLIRP4NETNS, &options);
    command.args([GUEST, "exchange", &server.address.to_string(), "1000"]);
    Outcome::of(command).expect();
}

fn two_at_once(machine: &Machine) {
    let [first, second] = [("first", "0.0.0.0:8081"), ("second", "0.0.0.0:8082")]
        .map(|(name, entry)| serve(machine, name, SLIRP4NETNS, "slirp4netns", entry));
    let [at_first, at_second] =
        [8081, 8082].map(|port| Service::at(&machine.elsewhere, Family::V4.host(), port));
    at_first.wait().exchange(1_000_000);
    at_second.wait();
    first.terminate();
    at_second.exchange(1_000_000);
    second.terminate();
}

/// Nothing of the helper outlives a RootlessKit that could not end it.
fn killed(machine: &Machine, helper: Helper, driver: &str) {
    let entry = format!("0.0.0.0:{SERVICE_PORT}");
    let daemon = serve(machine, "kit", helper, driver, &entry);
    let service = Service::at(&machine.elsewhere, Family::V4.host(), SERVICE_PORT);
    service.wait();
    drop(daemon);
    eventually("the helper has ended", Duration::from_secs(10), || {
        machine.running(helper).is_empty()
    });
    assert!(service.is_closed());
}

fn eventually_closed(service: &Service) {
    eventually("the port is free", Duration::from_secs(10), || {
        service.is_closed()
    });
}
