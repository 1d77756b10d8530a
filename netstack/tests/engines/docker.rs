//! Docker's rootless daemon, which RootlessKit gives its network.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::Duration;

use testbed::resolver::Resolver;
use testbed::traffic::EchoServer;

use crate::harness::{
    Case, Daemon, Family, Machine, Outcome, SERVICE_PORT, Service, eventually, image, newer_case,
    skip,
};

pub const CASES: &[Case] = &[
    newer_case("docker::slirp4netns", |machine| {
        published(machine, "slirp4netns", Family::V4.elsewhere())
    }),
    newer_case("docker::builtin", |machine| {
        published(machine, "builtin", BRIDGE)
    }),
    newer_case("docker::outbound", outbound),
];

struct Docker<'a> {
    machine: &'a Machine,
    daemon: Daemon,
}

impl<'a> Docker<'a> {
    /// Returns once the daemon answers and has the image.
    fn start(machine: &'a Machine, port_driver: &str) -> Self {
        for program in ["dockerd", "docker", "rootlesskit"] {
            machine.need(program);
        }
        if !Path::new(START).is_file() {
            skip(format!("{START} is not there (package docker.io)"));
        }
        let mut command = machine.command(START);
        command
            .env("DOCKERD_ROOTLESS_ROOTLESSKIT_NET", "slirp4netns")
            .env("DOCKERD_ROOTLESS_ROOTLESSKIT_PORT_DRIVER", port_driver)
            .arg("--storage-driver=vfs");
        let docker = Self {
            machine,
            daemon: Daemon::start(command),
        };
        eventually("the daemon answers", Duration::from_secs(30), || {
            docker.call(&["version"]).status.success()
        });
        let archive = image::archive(machine);
        docker.call(&["import", &archive, IMAGE]).expect();
        docker
    }

    fn call(&self, words: &[&str]) -> Outcome {
        let mut command = self.machine.command("docker");
        command
            .env("DOCKER_HOST", "unix:///run/user/1000/docker.sock")
            .args(words);
        Outcome::of(command)
    }

    fn run(&self, program: &[&str]) -> String {
        self.call(&[&["run", "--rm", GUEST_VOLUME, IMAGE], program].concat())
            .expect()
    }
}

fn published(machine: &Machine, port_driver: &str, known_as: IpAddr) {
    let docker = Docker::start(machine, port_driver);
    let [tcp, udp] = ["tcp", "udp"].map(|kind| format!("--publish=8080:{SERVICE_PORT}/{kind}"));
    let service = Service::at(&machine.elsewhere, Family::V4.host(), 8080);
    let serve = [
        "run",
        "--detach",
        "--name=service",
        GUEST_VOLUME,
        &tcp,
        &udp,
        IMAGE,
        "/guest",
        "serve",
    ];
    docker.call(&serve).expect();
    service.wait();
    assert_eq!(service.tcp_client(), known_as);
    service.udp_client();
    service.exchange(100_000_000);
    docker.call(&["restart", "service"]).expect();
    service.wait();
    docker.call(&["rm", "--force", "service"]).expect();
    eventually("the port is free", Duration::from_secs(10), || {
        service.is_closed()
    });
    docker.daemon.terminate();
}

fn outbound(machine: &Machine) {
    let docker = Docker::start(machine, "builtin");
    let _resolver = Resolver::start(&machine.elsewhere, Family::V4.elsewhere(), 53);
    let server = EchoServer::start(&machine.elsewhere, Family::V4.elsewhere(), 0);
    docker.run(&[
        "/guest",
        "exchange",
        &server.address.to_string(),
        "100000000",
    ]);
    docker.run(&[
        "ping",
        "-c",
        "1",
        "-w",
        "10",
        &Family::V4.elsewhere().to_string(),
    ]);
    let answer = docker.run(&["nslookup", "example.test"]);
    assert!(answer.contains("192.0.2.53"), "{answer}");
    docker.daemon.terminate();
}

const START: &str = "/usr/share/docker.io/contrib/dockerd-rootless.sh";
const IMAGE: &str = "test";
const GUEST_VOLUME: &str = "--volume=/opt/programs/guest:/guest:ro";
/// The host's end of Docker's bridge, from where its ports are served if not by the helper.
const BRIDGE: IpAddr = IpAddr::V4(Ipv4Addr::new(172, 17, 0, 1));
