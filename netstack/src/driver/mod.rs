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

mod datagrams;
mod device_link;
mod dials;
mod listeners;
mod poller;
mod promotion;
mod report;
mod scarcity;
mod sockets;
mod streams;

use std::io;

use libc::c_long;
use portfwd::Listener;
use tracing::{debug, info};

use crate::companion::{Companion, News};
use crate::control::{ExitWatch, StatusSocket};
use crate::core::flow::{Cause, FlowId};
use crate::core::link::Link;
use crate::core::{Action, Core, Duration, Instant};
use crate::device::{Device, MAX_FRAME_LEN};
use crate::guest::promotion::Promoter;
use crate::host::Outbound;
use crate::sys;

use self::device_link::DeviceLink;
use self::dials::DialQueue;
use self::listeners::Listeners;
use self::poller::{Event, Interest, Poller, Token};
use self::promotion::Promotion;
pub use self::promotion::PromotionUnavailable;
use self::scarcity::Pause;
use self::sockets::{HostSocket, HostSockets};

/// Frames read in one turn. With super-frames that is up to 2 MiB.
const FRAMES_PER_TURN: usize = 32;
/// SYNs read in one turn besides: more than are dialled, so that in a flood of them other frames,
/// such as the last one of a handshake, do not have to wait for each.
const SYNS_PER_TURN: usize = 512;
/// How soon a full device is tried again, and listeners that ran out of descriptors.
const RETRY: Duration = Duration::from_millis(10);

/// What fewer flows leave behind is less than it costs to look for it.
const WORTH_TRIMMING: usize = 1024;

/// What the loop runs on.
pub struct Parts<D> {
    pub core: Core,
    pub device: D,
    pub listeners: Vec<Listener>,
    pub outbound: Outbound,
    pub companion: Companion,
    /// What hands flows over to the kernel.
    pub promoter: Result<Promoter, PromotionUnavailable>,
    pub status: Option<StatusSocket>,
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

/// The loop's state.
pub struct Driver<D> {
    core: Core,
    link: DeviceLink<D>,
    poller: Poller,
    sockets: HostSockets,
    dials: DialQueue,
    listeners: Listeners,
    outbound: Outbound,
    companion: Companion,
    promotion: Result<Promotion, PromotionUnavailable>,
    status: Option<StatusSocket>,
    /// Nobody is told the status for a moment.
    status_pause: Pause,
    exit: ExitWatch,
    clock: Clock,
    /// Where frames and datagrams are read to.
    buffer: Vec<u8>,
    warned_about_ping: bool,
    /// Most flows at a time since the heap was last trimmed.
    peak_flows: usize,
}

/// Time since the start, as the core counts it.
#[derive(Clone, Copy)]
pub struct Clock(std::time::Instant);

impl Clock {
    pub fn start() -> Clock {
        Clock(std::time::Instant::now())
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
    pub fn new(parts: Parts<D>, clock: Clock) -> Result<Driver<D>, DriverError> {
        let poller = Poller::new().map_err(|error| DriverError::Watch("epoll", error))?;
        let watch =
            |what, result: io::Result<()>| result.map_err(|error| DriverError::Watch(what, error));
        watch(
            "the device",
            poller.add(&parts.device, Token::Device, Interest::Readable),
        )?;
        if let Some(status) = &parts.status {
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
        let mut core = parts.core;
        let pipes = core.limits().pipes;
        core.set_resolvers(parts.companion.resolvers().to_vec());
        let mut listeners = Listeners::default();
        for listener in parts.listeners {
            watch(
                "a published port",
                listeners.add(&poller, listener).map(drop),
            )?;
        }
        Ok(Driver {
            core,
            link: DeviceLink::new(parts.device),
            poller,
            sockets: HostSockets::default(),
            dials: DialQueue::default(),
            listeners,
            outbound: parts.outbound,
            companion: parts.companion,
            promotion: parts
                .promoter
                .map(|promoter| Promotion::new(promoter, pipes)),
            status: parts.status,
            status_pause: Pause::default(),
            exit: parts.exit,
            clock,
            buffer: vec![0; MAX_FRAME_LEN],
            warned_about_ping: false,
            peak_flows: 0,
        })
    }

    /// Runs until it is time to stop or the device is gone.
    pub fn run(&mut self) -> Result<(), DriverError> {
        let mut events = Vec::new();
        let mut timeout = None;
        if self.exit.is_over() {
            return Ok(());
        }
        loop {
            self.poller
                .wait(timeout, &mut events)
                .map_err(DriverError::Wait)?;
            let now = self.clock.now();
            let mut frames = false;
            for event in events.drain(..) {
                match event.token {
                    Token::Device if event.error => return Ok(()),
                    Token::Device => frames = true,
                    Token::Flow(id) | Token::Guest(id) => self.handle_socket(id, event, now),
                    Token::Listener(port) => self.handle_listener(port, now),
                    Token::Companion => self.hear_companion(),
                    Token::Status => self.handle_status(now),
                    Token::Exit if self.exit.is_over() => return Ok(()),
                    Token::Exit => {}
                }
            }
            if !self.link.has_room() {
                self.link.retry();
            }
            if frames && !self.read_frames(FRAMES_PER_TURN, now) {
                return Ok(());
            }
            self.start_dials(now);
            self.core.handle_deadline(now);
            if self.link.has_room() {
                self.serve_touched(now);
            }
            self.promote_resting(now);
            self.drive_unfinished();
            if self.core.take_stray_seen() {
                self.heal_gate(now);
            }
            self.close_ended();
            self.listeners.resume(&self.poller, now);
            self.resume_status(now);
            timeout = self.timeout(now);
        }
    }

    fn hear_companion(&mut self) {
        match self.companion.news() {
            News::Nothing => {}
            News::Resolvers => {
                let resolvers = self.companion.resolvers().to_vec();
                info!(?resolvers, "the host's resolvers have changed");
                self.core.set_resolvers(resolvers);
            }
            // It stays readable for ever.
            News::Gone => drop(self.poller.remove(&self.companion)),
        }
    }

    /// Takes the frames that are there, `most` at most but for SYNs. False when the device is gone.
    fn read_frames(&mut self, most: usize, now: Instant) -> bool {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut there = true;
        let mut left = most;
        for _ in 0..most + SYNS_PER_TURN {
            if left == 0 {
                break;
            }
            match self.link.device().receive(&mut buffer) {
                Ok(len) => {
                    let action = self.core.handle_frame(&buffer[..len], now, &mut self.link);
                    if let Some(Action::Dial { flow, to }) = action {
                        self.dials.push(flow, to);
                        continue;
                    }
                    left -= 1;
                    if let Some(action) = action {
                        // A new flow may take the place of one that has just ended.
                        self.close_ended();
                        self.perform(action);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    debug!(%error, "the device is gone");
                    there = false;
                    break;
                }
            }
        }
        self.buffer = buffer;
        there
    }

    fn perform(&mut self, action: Action<'_>) {
        match action {
            Action::Dial { flow, to } => self.dials.push(flow, to),
            Action::SendDatagram {
                flow,
                to,
                payload,
                segment,
            } => self.send_datagram(flow, to, &payload, segment),
            Action::SendEcho {
                flow,
                to,
                sequence,
                payload,
            } => self.send_echo(flow, to, sequence, &payload),
            Action::ShareSocket { flow, with } => self.share_socket(flow, with),
        }
    }

    fn handle_socket(&mut self, id: FlowId, event: Event, now: Instant) {
        match self.sockets.get_mut(id) {
            Some(HostSocket::Dialling(_)) => self.finish_dial(id, event, now),
            Some(HostSocket::Stream(_)) => self.core.host_ready(id, event.readiness()),
            Some(HostSocket::Promoted(_)) => self.handle_promoted(id, event),
            Some(HostSocket::Udp(_)) => self.read_datagrams(id, event.error, now),
            Some(HostSocket::Ping(_)) => self.read_echo_replies(id, now),
            // Its socket is the listener's.
            Some(HostSocket::PublishedUdp(_)) | None => {}
        }
    }

    /// One turn for each flow that this batch touched; what they touch again waits for the next
    /// batch.
    fn serve_touched(&mut self, now: Instant) {
        for _ in 0..self.core.touched_len() {
            let Some(id) = self.core.poll_touched() else {
                return;
            };
            if let Some(HostSocket::Stream(stream)) = self.sockets.get_mut(id) {
                self.core.serve(id, now, stream, &mut self.link);
            }
        }
    }

    fn close_ended(&mut self) {
        while let Some((id, cause)) = self.core.poll_closed() {
            // Closing a descriptor takes it out of the epoll and sends the FIN that may be due.
            let socket = self.sockets.remove(id);
            if let Cause::ResetByGuest | Cause::GuestSilent = cause
                && let Some(HostSocket::Stream(stream)) = socket
            {
                stream.reset();
            }
        }
        self.trim_memory();
    }

    /// Gives back what many flows have left behind in the heap, once most of them have gone.
    fn trim_memory(&mut self) {
        let flows = self.core.flow_count();
        self.peak_flows = self.peak_flows.max(flows);
        if self.peak_flows > WORTH_TRIMMING && flows < self.peak_flows / 4 {
            self.peak_flows = flows;
            sys::trim_heap();
        }
    }

    fn handle_status(&mut self, now: Instant) {
        if let Some(status) = &mut self.status {
            let promotion = self.promotion.as_ref().err();
            let frames_lost = self.link.frames_lost;
            let served = status.serve(|| report::status(&self.core, promotion, frames_lost, now));
            if let Err(error) = served {
                debug!(%error, "a client of the status socket waits");
                self.status_pause.begin(now);
                let _ = self
                    .poller
                    .change(&*status, Token::Status, Interest::HangUp);
            }
        }
    }

    fn resume_status(&mut self, now: Instant) {
        if self.status_pause.is_over(now)
            && let Some(status) = &self.status
        {
            let changed = self
                .poller
                .change(status, Token::Status, Interest::Readable);
            match changed {
                Ok(()) => self.status_pause.end(),
                Err(_) => self.status_pause.begin(now),
            }
        }
    }

    fn timeout(&self, now: Instant) -> Option<Duration> {
        if !self.link.has_room() || self.listeners.is_paused() || self.status_pause.is_on() {
            return Some(RETRY);
        }
        let relays_wait = self.promotion.as_ref().is_ok_and(Promotion::has_work);
        if self.core.touched_len() > 0 || relays_wait || self.dials.has_work() {
            return Some(Duration::ZERO);
        }
        let held_up = (!self.dials.is_empty()).then_some(RETRY);
        let until_deadline = self
            .core
            .poll_deadline()
            .map(|deadline| match deadline > now {
                // Rounded up, so that a timer is due when it has run out.
                true => deadline - now + Duration::from_micros(50),
                false => Duration::ZERO,
            });
        held_up.into_iter().chain(until_deadline).min()
    }
}
