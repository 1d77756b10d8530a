//! The lives of a container after its first, as its policy asks for them.
//!
//! Between two of them the monitor rests, longer each time unless the last life was a long one: a
//! command that cannot work must not keep the machine busy. The record says meanwhile that the
//! container is about to be started again, and its ports stay bound. A signal ends the rest, and
//! the container for good.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::signalfd::SignalFd;
use portfwd::publish::Listener;
use rustix::event::PollFlags;
use tracing::{info, warn};

use super::start::is_asked_to_leave;
use super::{Life, Monitor};
use crate::events::Event;
use crate::failure::Failure;
use crate::isolation::cgroup;
use crate::poll;
use crate::spec::ContainerSpec;

/// The first rest, which doubles each time.
const REST_MIN: Duration = Duration::from_millis(100);

const REST_MAX: Duration = Duration::from_secs(60);

/// A life this long is followed by the shortest rest again.
const LONG_LIFE: Duration = Duration::from_secs(10);

impl Monitor<'_> {
    /// Starts the container again and again, until `life` is its last.
    pub(super) fn go_on(&mut self, mut life: Life, signals: &SignalFd, claim: &File) {
        let mut rest = REST_MIN;
        while matches!(life.goes_on, Ok(true)) {
            if life.lasted >= LONG_LIFE {
                rest = REST_MIN;
            }
            info!(code = life.code, ?rest, "the container is started again");
            life = match is_left_alone(signals, rest) {
                true => self.live_again(signals, claim),
                false => {
                    self.is_ending = true;
                    self.ended(life.code)
                }
            };
            rest = (rest * 2).min(REST_MAX);
        }
        if let Err(failure) = life.goes_on {
            warn!(%failure, "the container's end could not be recorded");
        }
    }

    fn live_again(&mut self, signals: &SignalFd, claim: &File) -> Life {
        let counting = self.store.modify(&self.container.id, |container| {
            container.restart_count += 1;
        });
        let lived = counting.map_err(Failure::from).and_then(|container| {
            self.container = container;
            // It may have other limits by now.
            self.spec = ContainerSpec::load(&self.dir.data)?;
            self.note(&Event::of(&self.container, "restart"));
            // What starts takes them, and a start that fails has them no more.
            let spare = duplicates(&self.listeners)?;
            self.live(signals, claim)
                .inspect_err(|_| self.listeners = spare)
        });
        lived.unwrap_or_else(|failure| {
            warn!(%failure, "the container was not started again");
            cgroup::remove(&self.container.cgroups);
            // What kept it from starting may pass, as a command's failure may.
            self.ended(failure.kind.exit_code().into())
        })
    }

    /// The end of a life that has hardly been one.
    fn ended(&self, code: i32) -> Life {
        Life {
            code,
            lasted: Duration::ZERO,
            goes_on: self.record_end(code),
        }
    }
}

fn duplicates(listeners: &[Listener]) -> Result<Vec<Listener>, Failure> {
    let duplicate = |listener: &Listener| {
        Ok(Listener {
            socket: listener.socket.try_clone()?,
            ..*listener
        })
    };
    let made: io::Result<_> = listeners.iter().map(duplicate).collect();
    made.map_err(Failure::context("cannot keep published ports"))
}

/// Rests, and says whether nobody has asked the monitor to leave.
fn is_left_alone(signals: &SignalFd, rest: Duration) -> bool {
    let until = Instant::now() + rest;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match poll::wait([Some((signals.as_fd(), PollFlags::IN))], Some(left)) {
            Ok(Some(_)) if is_asked_to_leave(signals) => return false,
            Ok(None) if left.is_zero() => return true,
            Ok(_) => {}
            // Out of memory at the worst: then the next start fails, and is counted.
            Err(_) => return true,
        }
    }
}
