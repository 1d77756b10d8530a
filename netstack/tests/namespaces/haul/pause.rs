//! How long a promotion keeps the guest waiting. The clock decides nothing here: `--nocapture`
//! shows the figures, and those of the same downloads without promotion beside them. The longest
//! gap between two arrivals has the machine's own pauses in it; the helper's account of its
//! hand-over has not.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::{Watched, ends_of};
use crate::harness::traffic::{Pattern, accept, connect, listen};
use crate::harness::{Family, World, full};

pub fn longest_gap(world: &mut World) {
    for policy in ["off", "auto"] {
        let setup = world.helper().option(format!("--promote={policy}"));
        let watched = Watched::start(setup, &world.dir);
        let rounds = if full() { 125 } else { 5 };
        let (mut gaps, mut pauses) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            for (gap, pause) in round(world, &watched) {
                gaps.push(gap);
                pauses.extend(pause);
            }
        }
        println!(
            "--promote={policy}: {} of {} flows promoted",
            pauses.len(),
            gaps.len()
        );
        assert_eq!(pauses.is_empty(), policy == "off");
        print_percentiles("longest gap", gaps);
        print_percentiles("pause at the hand-over", pauses);
    }
}

fn print_percentiles(what: &str, mut times: Vec<Duration>) {
    times.sort();
    if let Some(last) = times.len().checked_sub(1) {
        let [p50, p99, max] = [50, 99, 100].map(|percent| times[last * percent / 100]);
        println!("  {what}: p50 {p50:?}, p99 {p99:?}, max {max:?}");
    }
}

/// [`FLOWS`] downloads at once: the longest time between two arrivals of each, and its pause if it
/// was promoted.
fn round(world: &World, watched: &Watched) -> Vec<(Duration, Option<Duration>)> {
    let service = listen(&world.elsewhere, Family::V4.elsewhere(), 0);
    let address = service.local_addr().unwrap();
    let pattern = Pattern::new(41);
    std::thread::scope(|scope| {
        let flows: Vec<_> = (0..FLOWS)
            .map(|_| {
                let guest = connect(&world.guest.net, address);
                let (remote, _) = accept(&service);
                let (sending, receiving) = (pattern.at(0), pattern.at(0));
                scope.spawn(move || send_steadily(remote, sending));
                scope.spawn(move || {
                    let gap = longest_wait(&guest, receiving);
                    (gap, watched.pause(ends_of(&guest)))
                })
            })
            .collect();
        let flows = flows.into_iter().map(|flow| flow.join().expect("a flow"));
        flows.collect()
    })
}

/// A steady stream that hauls, but leaves the processors time: a gap is then due to the helper and
/// not to a queue.
fn send_steadily(mut stream: TcpStream, mut pattern: Pattern) {
    for _ in 0..PIECES {
        pattern.send(&mut stream, PIECE).expect("send");
        std::thread::sleep(Duration::from_millis(1));
    }
    // Open until the other end has looked.
    let _ = stream.read(&mut [0]);
}

fn longest_wait(mut stream: &TcpStream, mut pattern: Pattern) -> Duration {
    let mut buffer = vec![0; PIECE];
    let (mut received, mut longest) = (0, Duration::ZERO);
    let mut last = Instant::now();
    while received < PIECES * PIECE {
        let count = stream.read(&mut buffer).expect("read");
        let now = Instant::now();
        if received > 0 {
            longest = longest.max(now - last);
        }
        last = now;
        assert!(count > 0, "the end comes after {received} bytes");
        pattern.compare(&buffer[..count]).expect("the same bytes");
        received += count;
    }
    longest
}

const FLOWS: usize = 8;
/// 32 KiB each millisecond haul: twice the bytes that it takes, for 100 ms.
const PIECE: usize = 32 * 1024;
const PIECES: usize = 100;
