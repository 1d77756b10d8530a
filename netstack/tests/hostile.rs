//! A guest may send any frame. Here it does, to a core in memory, from seeds: the core must not
//! panic, must come to rest after each event, must send well-formed frames only, must keep its
//! limits, and must forget everything in the end.
//!
//! `CORACLE_SEED=n` runs one seed alone, to reproduce a failure, and `CORACLE_INPUT=file` what the
//! fuzz target was fed; `CORACLE_FULL=1` runs many more seeds.

use netstack::core::{Counters, Limits};
use testbed::entropy::Entropy;
use testbed::hostile::{World, frames};

/// Events in one scenario.
const STEPS: usize = 4_000;

#[test]
fn hostile_guest() {
    if let Some(input) = std::env::var_os("CORACLE_INPUT") {
        let input = std::fs::read(input).expect("CORACLE_INPUT is a file");
        scenario(Entropy::Bytes(&input));
        return;
    }
    let seeds = match std::env::var("CORACLE_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("CORACLE_SEED is a number");
            seed..=seed
        }
        Err(_) if std::env::var("CORACLE_FULL").is_ok_and(|value| value == "1") => 0..=499,
        Err(_) => 0..=49,
    };
    let alone = seeds.start() == seeds.end();
    let reached = seeds
        .map(run)
        .fold(Counters::default(), |sum, counters| Counters {
            connections: sum.connections + counters.connections,
            bytes_to_guest: sum.bytes_to_guest + counters.bytes_to_guest,
            bytes_from_guest: sum.bytes_from_guest + counters.bytes_from_guest,
            frames_dropped: sum.frames_dropped + counters.frames_dropped,
            prohibited: sum.prohibited + counters.prohibited,
            promotions: sum.promotions + counters.promotions,
            promotions_failed: sum.promotions_failed + counters.promotions_failed,
            ..sum
        });
    // Noise that never gets past the first check would prove nothing.
    let deep = [
        reached.connections,
        reached.promotions,
        reached.promotions_failed,
    ];
    let wide = [
        reached.bytes_to_guest,
        reached.bytes_from_guest,
        reached.frames_dropped,
        reached.prohibited,
    ];
    assert!(
        alone || deep.iter().chain(&wide).all(|count| *count > 100),
        "the scenarios are shallow: {reached:?}"
    );
    println!("{reached:?}");
}

/// Many more dials and mappings than may be under way: the oldest make way, and the driver is told
/// which.
#[test]
fn floods_are_bounded() {
    let mut entropy = Entropy::seeded(0);
    let mut world = World::new(&mut entropy);
    let remote = "198.51.100.7:80".parse().expect("address");
    for port in 1..=20_000 {
        world.send(&frames::syn(port, remote), &mut entropy);
        world.send(&frames::datagram(port, remote), &mut entropy);
    }
    let Limits { dials, udp, .. } = world.limits();
    assert_eq!(world.flows(), (dials, udp));
    world.wind_down();
}

fn run(seed: u64) -> Counters {
    // Shown when the scenario fails.
    println!("CORACLE_SEED={seed}");
    scenario(Entropy::seeded(seed))
}

fn scenario(mut entropy: Entropy) -> Counters {
    let mut world = World::new(&mut entropy);
    for _ in 0..STEPS {
        if entropy.is_exhausted() {
            break;
        }
        world.step(&mut entropy);
    }
    world.wind_down();
    world.counters()
}
