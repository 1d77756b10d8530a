//! The event loop: the only clock, and the owner of every descriptor. It carries frames and events
//! to the core, carries out what the core asks for, and knows nothing of protocols.
//!
//! One thread, one epoll, one wake-up for many events. tokio is not used here on purpose: the loop
//! needs typed tokens and one turn over all flows that a batch touched, and a task per socket costs
//! a wake-up each.
//!
//! A turn: take events, read a bounded number of frames, dial a bounded number of remotes, serve
//! every flow that was touched once, close what has ended. Work left over shortens the next wait to
//! nothing, so no source starves another.
//!
//! Two types share the work. [`Shard`] has what carries flows, [`Driver`] what there is once in a
//! helper: published ports, resolvers, the status socket, the watch for the end, and the promoter.
//! Whatever concerns a flow is a method of the shard.

mod datagrams;
mod device_link;
mod dials;
mod forwards;
mod gather;
mod hand_over;
mod kernel_flow;
mod listeners;
mod pause;
mod poller;
mod promotion;
mod query_stream;
mod report;
mod scarcity;
mod shard;
mod slirp_api;
mod sockets;
mod splice;
mod splice_datagrams;
mod splice_table;
mod streams;
#[cfg(test)]
mod tests;

use std::io;

use libc::c_long;
use tracing::{debug, info};

pub use self::forwards::ForwardParts;
use self::forwards::Forwarding;
use self::listeners::{Listeners, Published};
use self::pause::Pause;
use self::poller::{Interest, ListenerId, Token};
use self::promotion::Promotion;
pub use self::promotion::PromotionUnavailable;
use self::shard::Shard;
use self::slirp_api::Api;
use crate::broker::Broker;
use crate::companion::{Companion, News};
use crate::control::{DeviceStatus, ExitWatch, SlirpApi, StatusSocket};
use crate::core::{Core, Duration, Instant};
use crate::device::Device;
use crate::forwards::OpenPort;
use crate::guest::promotion::Promoter;
use crate::host::{LocalLeg, Outbound};

/// How soon a full device is tried again, and listeners that ran out of descriptors.
const RETRY: Duration = Duration::from_millis(10);

/// What the loop runs on.
pub struct Parts<D> {
    pub core: Core,
    pub device: D,
    pub device_status: DeviceStatus,
    pub published: Vec<OpenPort>,
    pub outbound: Outbound,
    pub companion: Companion,
    /// What hands flows over to the kernel.
    pub promoter: Result<Promoter, PromotionUnavailable>,
    pub status: Vec<StatusSocket>,
    /// With what opens the ports that are asked for.
    pub slirp_api: Option<(SlirpApi, Broker)>,
    pub forwards: Option<ForwardParts>,
    pub exit: ExitWatch,
}

/// Why the loop cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error("cannot watch {0}: {1}")]
    Watch(&'static str, #[source] io::Error),
    #[error("cannot wait for events: {0}")]
    Wait(#[source] io::Error),
}

/// The loop and what there is once in a helper.
pub struct Driver<D> {
    shard: Shard<D>,
    device_status: DeviceStatus,
    listeners: Listeners,
    companion: Companion,
    promotion: Promotion,
    /// Each with when nobody is told the status for a moment.
    status: Vec<(StatusSocket, Pause)>,
    slirp_api: Option<Api>,
    forwarding: Option<Forwarding>,
    exit: ExitWatch,
    clock: Clock,
}

/// Time since the start, as the core counts it.
#[derive(Clone, Copy)]
pub struct Clock(std::time::Instant);

impl Clock {
    pub fn start() -> Self {
        Self(std::time::Instant::now())
    }

    pub fn now(self) -> Instant {
        Instant::from_micros(self.0.elapsed().as_micros() as i64)
    }
}

/// What the loop calls, for the sandbox; sockets are `host`'s and `guest`'s.
pub const SYSTEM_CALLS: &[c_long] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_create1,
    libc::SYS_accept4,
];

impl<D: Device> Driver<D> {
    /// Registers everything; no packet moves before [`Driver::run`]. `clock` is the one that
    /// `parts.core` was made by.
    pub fn new(parts: Parts<D>, clock: Clock) -> Result<Self, DriverError> {
        let mut core = parts.core;
        core.set_resolvers(parts.companion.resolvers().to_vec());
        let local_leg = LocalLeg::find();
        let mut listeners = Listeners::new(local_leg.clone());
        let mut shard = Shard::new(core, parts.device, parts.outbound, local_leg)?;
        let poller = &shard.poller;
        let watch =
            |what, result: io::Result<()>| result.map_err(|error| DriverError::Watch(what, error));
        for status in &parts.status {
            watch(
                "the status socket",
                poller.add(status, Token::Status, Interest::Readable),
            )?;
        }
        watch(
            "for the end",
            poller.add(&parts.exit, Token::Exit, Interest::Readable),
        )?;
        watch(
            "the resolvers",
            poller.add(&parts.companion, Token::Companion, Interest::Readable),
        )?;
        let slirp_api = parts
            .slirp_api
            .map(|(socket, broker)| Api::new(socket, broker));
        if let Some(api) = &slirp_api {
            watch("the API socket", api.watch(poller))?;
        }
        for port in parts.published {
            watch("a published port", listeners.add(poller, port).map(drop))?;
        }
        let forwarding = parts
            .forwards
            .map(|forwards| Forwarding::new(forwards, &mut listeners, poller))
            .transpose();
        let forwarding =
            forwarding.map_err(|error| DriverError::Watch("forwarded ports", error))?;
        let forwarding = forwarding.map(|(forwarding, ways)| {
            shard.splices.ways = ways;
            forwarding
        });
        let mut driver = Self {
            shard,
            device_status: parts.device_status,
            listeners,
            companion: parts.companion,
            promotion: Promotion::new(parts.promoter),
            status: parts
                .status
                .into_iter()
                .map(|socket| (socket, Pause::default()))
                .collect(),
            slirp_api,
            forwarding,
            exit: parts.exit,
            clock,
        };
        // Services that are there already are forwarded to from the start.
        driver.follow_ports(clock.now());
        Ok(driver)
    }

    /// Runs until it is time to stop or the device is gone.
    pub fn run(&mut self) -> Result<(), DriverError> {
        let mut events = Vec::new();
        let mut timeout = None;
        if self.exit.is_over() {
            return Ok(());
        }
        // Not before "ready": no connection hauls in its first millisecond.
        if !self.promotion.prepare() {
            self.shard.core.promote_nothing();
        }
        loop {
            self.shard
                .poller
                .wait(timeout, &mut events)
                .map_err(DriverError::Wait)?;
            let now = self.clock.now();
            for event in events.drain(..) {
                match event.token {
                    Token::Device
                    | Token::Flow(_)
                    | Token::Guest(_)
                    | Token::Splice(..)
                    | Token::SplicedDatagrams(_) => {
                        self.shard.handle_event(event, now, &mut self.promotion);
                    }
                    Token::Listener(port) => self.handle_listener(port, now),
                    Token::Companion => self.hear_companion(),
                    Token::Status => self.handle_status(now),
                    Token::SlirpApi => self.handle_slirp_api(now),
                    Token::PortControl => self.handle_port_control(now),
                    Token::Exit if self.exit.is_over() => return Ok(()),
                    Token::Exit => {}
                }
            }
            if !self.shard.turn(now, &mut self.promotion) {
                return Ok(());
            }
            if self.shard.core.take_stray_seen() {
                self.promotion.heal(now);
            }
            self.listeners.resume(&self.shard.poller, now);
            self.resume_status(now);
            self.resume_slirp_api(now);
            self.resume_forwarding(now);
            timeout = self.timeout(now);
        }
    }

    /// Somebody has come to a published port.
    fn handle_listener(&mut self, port: ListenerId, now: Instant) {
        let has_room = match self.listeners.get(port) {
            Some(Published::Tcp { lead, socket }) => self.shard.accept(socket, *lead, now),
            Some(Published::Udp { lead, socket }) => {
                self.shard.read_published(port, socket, *lead, now);
                true
            }
            None => true,
        };
        if !has_room {
            self.listeners.pause(&self.shard.poller, now);
        }
    }

    fn hear_companion(&mut self) {
        match self.companion.news() {
            News::Nothing => {}
            News::Resolvers => {
                let resolvers = self.companion.resolvers().to_vec();
                info!(?resolvers, "the host's resolvers have changed");
                self.shard.core.set_resolvers(resolvers);
            }
            // It stays readable for ever.
            News::Gone => drop(self.shard.poller.remove(&self.companion)),
        }
    }

    fn handle_status(&mut self, now: Instant) {
        let unpromoted = self.promotion.unavailable();
        let device = &self.device_status;
        for (socket, pause) in &mut self.status {
            let status = || self.shard.status(device.clone(), unpromoted, now);
            if let Err(error) = socket.serve(status) {
                debug!(%error, "a client of the status socket waits");
                pause.silence(&self.shard.poller, socket, Token::Status, now);
            }
        }
    }

    fn resume_status(&mut self, now: Instant) {
        for (socket, pause) in &mut self.status {
            pause.wake(&self.shard.poller, socket, Token::Status, now);
        }
    }

    fn timeout(&self, now: Instant) -> Option<Duration> {
        let status_waits = self.status.iter().any(|(_, pause)| pause.is_on());
        let pauses = self.listeners.is_paused() || status_waits;
        let retry = pauses.then_some(RETRY);
        let until = |deadline: Instant| deadline.max(now) - now;
        let api = self.slirp_api.as_ref().and_then(Api::deadline).map(until);
        let ports = self.forwarding.as_ref().and_then(Forwarding::deadline);
        let ports = ports.map(until);
        let waits = [retry, api, ports, self.shard.timeout(now)];
        waits.into_iter().flatten().min()
    }
}
