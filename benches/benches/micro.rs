//! How long single operations take: `cargo bench -p coracle-benches --bench micro`. On a machine
//! where time says too little, see `instructions`.

mod cases;

use std::net::SocketAddr;

use criterion::Criterion;
use netstack::core::flow::Endpoints;
use netstack::guest::promotion::{Gate, Reach};
use nix::sched::{CloneFlags, unshare};

fn main() {
    // While there is one thread: later ones would stay outside.
    let gate = gate_in_new_namespace();
    let mut criterion = Criterion::default().configure_from_args();
    for mut case in cases::all() {
        criterion.bench_function(case.name, |bencher| bencher.iter(&mut case.run));
    }
    match gate {
        Ok(gate) => measure_gate(&mut criterion, gate),
        Err(reason) => println!("skipped gate: {reason}"),
    }
    criterion.final_summary();
}

/// A guest's namespace, and the gate in it.
fn gate_in_new_namespace() -> Result<Gate, Box<dyn std::error::Error>> {
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
    let mut gate = Gate::open()?;
    gate.install()?;
    Ok(gate)
}

/// A connection is diverted and given back while a thousand others stay diverted: encoding, and two
/// transactions of the kernel's.
fn measure_gate(criterion: &mut Criterion, mut gate: Gate) {
    let endpoints = |port: u16| {
        let remote: SocketAddr = ([192, 0, 2, 1], 443).into();
        let guest = ([10, 0, 2, 100], port).into();
        Endpoints::new(guest, remote).expect("of one family")
    };
    for port in 1..=1_000 {
        gate.add(endpoints(port), Reach::Own)
            .expect("the gate stands");
    }
    let connection = endpoints(40_000);
    criterion.bench_function("gate/add-and-remove", |bencher| {
        bencher.iter(|| {
            gate.add(connection, Reach::Own).expect("the gate stands");
            gate.remove(connection).expect("the gate stands");
        });
    });
}
