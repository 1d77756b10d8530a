//! A guest may send any frame. Here it does, to a core in memory, from seeds: the core must not panic, must come to rest
//! after each event, must send well-formed frames only, must keep its limits, and must forget everything in the end.
//!
//! `CORACLE_SEED=n` runs one seed alone, to reproduce a failure; `CORACLE_FULL=1` runs many more.

mod entropy;
mod guest;
mod world;

use entropy::Entropy;
use world::World;

/// Events in one scenario.
const STEPS: usize = 4_000;

/// Seeds that once found a fault, each with what it was.
const REGRESSIONS: &[(u64, &str)] = &[];

#[test]
fn hostile_guest() {
    let seeds = match std::env::var("CORACLE_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("CORACLE_SEED is a number");
            seed..=seed
        }
        Err(_) if std::env::var("CORACLE_FULL").is_ok_and(|value| value == "1") => 0..=1999,
        Err(_) => 0..=49,
    };
    for seed in seeds {
        run(seed);
    }
}

#[test]
fn regressions() {
    for (seed, fault) in REGRESSIONS {
        println!("{fault}");
        run(*seed);
    }
}

fn run(seed: u64) {
    // Shown when the scenario fails.
    println!("CORACLE_SEED={seed}");
    let mut entropy = Entropy::seeded(seed);
    let mut world = World::new(&mut entropy);
    for _ in 0..STEPS {
        if entropy.is_exhausted() {
            break;
        }
        world.step(&mut entropy);
    }
    world.wind_down();
}
