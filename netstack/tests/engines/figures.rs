//! How fast the network of an engine is: figures to compare helpers by, no tests. There are such
//! cases with `CORACLE_MEASURE=1` only; `ci/engine-figures` makes a table of what they print.

use std::net::TcpListener;

use crate::harness::{
    Case, Daemon, Family, Helper, Machine, Outcome, Service, case, load, newer_case,
};
use crate::podman::{GUEST, Podman, published};
use crate::rootlesskit::{publishing, rootlesskit};

pub fn cases() -> Vec<Case> {
    match std::env::var_os("CORACLE_MEASURE") {
        Some(_) => CASES.to_vec(),
        None => Vec::new(),
    }
}

const CASES: &[Case] = &[
    case("figures::podman_slirp4netns", |machine| {
        let podman = Podman::new(machine);
        by_podman(&podman, "--network=slirp4netns:port_handler=slirp4netns");
    }),
    newer_case("figures::podman_pasta", |machine| {
        by_podman(&Podman::new(machine).since(5), "--network=pasta");
    }),
    case("figures::rootlesskit_slirp4netns", |machine| {
        by_rootlesskit(machine, Helper::Slirp4netns, "slirp4netns");
    }),
    newer_case("figures::rootlesskit_pasta", |machine| {
        by_rootlesskit(machine, Helper::Pasta, "implicit");
    }),
];

fn by_podman(podman: &Podman, network: &str) {
    let machine = podman.machine;
    let server = serve_elsewhere(machine);
    show(
        "out",
        &podman.run(&[network], &[GUEST, "ask", &server]).expect(),
    );
    let [tcp, _] = published("7000");
    podman.start("service", &[network, &tcp], &[GUEST, "answer"]);
    show("in", &ask_from_elsewhere(machine));
    // It does not listen to a polite request.
    podman
        .call(&["rm", "--force", "--time=0", "service"])
        .expect();
}

fn by_rootlesskit(machine: &Machine, helper: Helper, driver: &str) {
    let program = "/opt/programs/guest";
    let server = serve_elsewhere(machine);
    let mut command = rootlesskit(machine, "out", helper, &[]);
    command.args([program, "ask", &server]);
    show("out", &Outcome::of(command).expect());
    let mut command = rootlesskit(machine, "in", helper, &[]);
    command
        .args(publishing(driver, "0.0.0.0:7000"))
        .args([program, "answer"]);
    let daemon = Daemon::start(command);
    show("in", &ask_from_elsewhere(machine));
    daemon.terminate();
}

/// Returns its address.
fn serve_elsewhere(machine: &Machine) -> String {
    let any = (Family::V4.elsewhere(), 0);
    let listener = machine
        .elsewhere
        .run(|| TcpListener::bind(any))
        .expect("listen");
    let address = listener.local_addr().expect("an address").to_string();
    std::thread::spawn(move || load::answer(&listener));
    address
}

fn ask_from_elsewhere(machine: &Machine) -> String {
    let service = Service::at(&machine.elsewhere, Family::V4.host(), 7000);
    service.wait_for_answer();
    machine
        .elsewhere
        .run(|| load::ask(service.entry))
        .to_string()
}

fn show(direction: &str, figures: &str) {
    for line in figures.lines() {
        println!("figure {direction} {line}");
    }
}
