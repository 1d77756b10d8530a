//! One direction of a bad link: frames arrive late, twice, in another order or not at all.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use netstack::core::{Duration, Instant};

use crate::entropy::Entropy;

/// How bad it is.
#[derive(Clone, Copy, Debug)]
pub struct Quality {
    /// Bounds of the delay, in microseconds.
    pub delay: (u64, u64),
    /// Out of 100 frames.
    pub lost: usize,
    pub repeated: usize,
    pub overtaken: usize,
}

/// Frames on their way.
pub struct Pipe {
    pub quality: Quality,
    /// By time of arrival; those of one time in the order in which they were sent.
    frames: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
    sent: u64,
    last_arrival: Instant,
}

impl Quality {
    pub fn any(entropy: &mut Entropy) -> Self {
        let perfect = Self {
            delay: (20, 100),
            lost: 0,
            repeated: 0,
            overtaken: 0,
        };
        match entropy.below(4) {
            // A tap: nothing is ever lost, but several frames may be in flight.
            0 | 1 => perfect,
            2 => Self {
                delay: (10, 5_000),
                repeated: 5,
                ..perfect
            },
            _ => Self {
                delay: (1_000, 40_000),
                lost: 3,
                repeated: 5,
                overtaken: 10,
            },
        }
    }
}

impl Quality {
    /// A FIN always gets through at once, because neither it nor a byte before it is lost or late.
    /// Where it does not, smoltcp 0.14 may never repeat it: when three duplicate ACKs meet a FIN
    /// that is in flight alone, it stops the retransmission timer, wants to repeat the first
    /// segment of its buffer, and that is empty.
    pub fn carries_fins(&self) -> bool {
        self.lost == 0 && self.overtaken == 0
    }
}

impl Pipe {
    pub fn new(quality: Quality) -> Self {
        Self {
            quality,
            frames: BinaryHeap::new(),
            sent: 0,
            last_arrival: Instant::ZERO,
        }
    }

    /// Sends a frame. A `precious` one is not lost: nobody repeats a RST.
    pub fn send(&mut self, frame: Vec<u8>, precious: bool, now: Instant, entropy: &mut Entropy) {
        let Quality {
            delay: (least, most),
            lost,
            repeated,
            overtaken,
        } = self.quality;
        if !precious && entropy.chance(lost) {
            return;
        }
        let copies = 1 + usize::from(entropy.chance(repeated));
        for _ in 0..copies {
            let delay = least + entropy.below((most - least) as usize) as u64;
            let mut arrival = now + Duration::from_micros(delay);
            if !entropy.chance(overtaken) {
                arrival = arrival.max(self.last_arrival);
                self.last_arrival = arrival;
            }
            self.sent += 1;
            self.frames
                .push(Reverse((arrival, self.sent, frame.clone())));
        }
    }

    /// The next frame that has arrived.
    pub fn receive(&mut self, now: Instant) -> Option<Vec<u8>> {
        let Reverse((arrival, ..)) = self.frames.peek()?;
        if *arrival > now {
            return None;
        }
        self.frames.pop().map(|Reverse((_, _, frame))| frame)
    }

    /// When the next frame arrives.
    pub fn next(&self) -> Option<Instant> {
        self.frames.peek().map(|Reverse((arrival, ..))| *arrival)
    }
}
