//! A link that is far away: it delays every frame and loses some, at random but always the same
//! ones. Two taps and a thread, since many kernels have no netem.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netstack::device::{Device, MAX_FRAME_LEN, Tap};
use rustix::event::{PollFd, PollFlags};
use testbed::entropy::Entropy;

use super::{Netns, World};

/// The link between the host and elsewhere, until it is dropped.
pub struct FarLink {
    running: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FarLink {
    /// The address at the far end, in elsewhere.
    pub const FAR: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 18, 0, 7));
    const NEAR: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 18, 0, 1));

    /// A frame takes `delay` each way; `loss` of a thousand are lost, of which each may be a
    /// super-frame.
    pub fn lay(world: &World, delay: Duration, loss: usize) -> Self {
        let end = |netns: &Netns, address| {
            let tap = netns.run(|| Tap::open(LINK).expect("a tap"));
            netns.link(|links| links.up(LINK)?.add_address(LINK, address, 24));
            tap
        };
        let taps = [
            end(&world.host, Self::NEAR),
            end(&world.elsewhere, Self::FAR),
        ];
        let running = Arc::new(AtomicBool::new(true));
        let keep_running = running.clone();
        let thread = std::thread::spawn(move || {
            let mut wire = Wire {
                taps,
                under_way: Default::default(),
                delay,
                loss,
                entropy: Entropy::seeded(1),
            };
            while keep_running.load(Ordering::Relaxed) {
                wire.turn();
            }
        });
        Self {
            running,
            thread: Some(thread),
        }
    }
}

impl Drop for FarLink {
    fn drop(&mut self) {
        self.running.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Wire {
    taps: [Tap; 2],
    /// Frames on their way to the tap of this number, and when they arrive.
    under_way: [VecDeque<(Instant, Vec<u8>)>; 2],
    delay: Duration,
    loss: usize,
    entropy: Entropy<'static>,
}

impl Wire {
    /// Waits for frames, and delivers those that are due.
    fn turn(&mut self) {
        let due = self.under_way.iter().filter_map(|frames| frames.front());
        let next = due.map(|(due, _)| due.saturating_duration_since(Instant::now()));
        let timeout = next.min().unwrap_or(GLANCE).min(GLANCE);
        let mut ready = self.taps.each_ref().map(|tap| {
            let tap = tap.as_fd();
            PollFd::from_borrowed_fd(tap, PollFlags::IN)
        });
        let timeout = timeout.try_into().expect("a short time");
        let _ = rustix::event::poll(&mut ready, Some(&timeout));
        for from in [0, 1] {
            self.collect(from);
            self.deliver(from);
        }
    }

    fn collect(&mut self, from: usize) {
        let mut buffer = vec![0; MAX_FRAME_LEN];
        while let Ok(len) = self.taps[from].receive(&mut buffer) {
            if self.entropy.below(1000) >= self.loss {
                let arrival = Instant::now() + self.delay;
                self.under_way[1 - from].push_back((arrival, buffer[..len].to_vec()));
            }
        }
    }

    fn deliver(&mut self, to: usize) {
        let now = Instant::now();
        while let Some((_, frame)) = self.under_way[to].pop_front_if(|(due, _)| *due <= now) {
            // What a link does not take is lost.
            let _ = self.taps[to].transmit(&frame, &[]);
        }
    }
}

const LINK: &str = "far0";
/// How soon the thread notices its end.
const GLANCE: Duration = Duration::from_millis(50);
