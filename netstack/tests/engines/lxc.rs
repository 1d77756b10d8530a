//! LXC without its bridge, its list of users or its setuid helper: `coracle-net hook` gives an
//! unprivileged container its network.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use testbed::traffic::EchoServer;

use crate::harness::{Case, Daemon, Family, Machine, Outcome, SERVICE_PORT, Service, case, image};

pub const CASES: &[Case] = &[
    case("lxc::published", published),
    case("lxc::outbound", outbound),
    case("lxc::without_its_network", without_its_network),
];

/// A container of the user's.
struct Container {
    /// LXC with all options, to which the program to run is added.
    command: Command,
    log: PathBuf,
}

impl Container {
    /// Its hook has the options `hook`.
    fn new(machine: &Machine, hook: &str) -> Self {
        machine.need("lxc-execute");
        machine.need_ours("have a hook");
        let root = image::make(machine);
        for dir in ["proc", "sys", "dev"] {
            fs::create_dir(root.join(dir)).expect("make a directory of the container's");
        }
        let root = root.display().to_string();
        let given = Command::new("chown")
            .args(["-R", "2000:2000", &root])
            .status();
        assert!(given.expect("run chown").success());
        let home = machine.make_dir("lxc");
        let [config, log] = ["config", "log"].map(|name| home.join(name));
        let lines = [
            format!("lxc.rootfs.path = dir:{root}"),
            "lxc.idmap = u 0 2000 60000".into(),
            "lxc.idmap = g 0 2000 60000".into(),
            "lxc.mount.entry = /opt/programs/guest guest none bind,ro,create=file 0 0".into(),
            "lxc.net.0.type = empty".into(),
            format!("lxc.hook.start-host = {PROGRAM} hook {hook} 2>&1"),
            format!("lxc.hook.post-stop = {PROGRAM} hook"),
        ];
        fs::write(&config, lines.join("\n") + "\n").expect("write the configuration");
        let mut command = machine.command("lxc-execute");
        command
            .arg(format!("--lxcpath={}", home.display()))
            .arg(format!("--rcfile={}", config.display()))
            .arg(format!("--logfile={}", log.display()))
            .args(["--name=web", "--logpriority=DEBUG", "--"]);
        Self { command, log }
    }

    fn start(mut self, program: &[&str]) -> Daemon {
        self.command.args(program);
        Daemon::start(self.command)
    }
}

const PROGRAM: &str = "/opt/programs/coracle-net";

fn published(machine: &Machine) {
    let hook = format!("--publish 8080:{SERVICE_PORT} --publish 8080:{SERVICE_PORT}/udp");
    let daemon = Container::new(machine, &hook).start(&["/guest", "serve"]);
    let service = Service::at(&machine.elsewhere, Family::V4.host(), 8080);
    service.wait();
    assert_eq!(service.tcp_client(), Family::V4.elsewhere());
    assert_eq!(service.udp_client(), Family::V4.elsewhere());
    service.exchange(10_000_000);
    daemon.terminate();
    assert!(service.is_closed(), "the port is free when LXC has ended");
}

fn outbound(machine: &Machine) {
    let servers =
        Family::BOTH.map(|family| EchoServer::start(&machine.elsewhere, family.elsewhere(), 0));
    let [v4, v6] = servers.each_ref().map(|server| server.address);
    let script = format!("/guest exchange {v4} 10000000 && /guest exchange {v6} 10000000");
    let daemon = Container::new(machine, "").start(&["/bin/sh", "-c", &script]);
    daemon.wait().expect();
}

/// The container does not start then, and LXC's log says why.
fn without_its_network(machine: &Machine) {
    let container = Container::new(machine, "--mtu 9");
    let log = container.log.clone();
    let outcome: Outcome = container.start(&["/bin/sh", "-c", "true"]).wait();
    outcome.expect_failure();
    let log = fs::read_to_string(log).expect("LXC's log");
    assert!(log.contains("9 is not in 1280..=65520"), "{log}");
}
