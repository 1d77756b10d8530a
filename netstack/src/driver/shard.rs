//! A shard: a core with everything that its flows need and share with no other flow. That is a
//! device, a poller, host sockets, buffers, dials that wait, and relays of promoted flows.
//!
//! What there is once in a helper is the [`Driver`](super::Driver)'s, which lends a shard what it
//! needs of it for one call: a listener's socket, what promotes flows. So nothing here knows how
//! many shards there are. There is one now.
//!
//! A shard's methods are in several files: this one has its turn, `streams` TCP on the host,
//! `datagrams` UDP and echo, `hand_over` the way to the kernel, `splice` and `splice_datagrams`
//! what never comes by the device, `scarcity` what happens without a descriptor.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;

use rustix::net::sockopt::socket_cookie;
use tracing::debug;

use super::datagrams::ToHost;
use super::device_link::DeviceLink;
use super::dials::DialQueue;
use super::gather::Gathered;
use super::kernel_flow::Relays;
use super::poller::{Event, Interest, Poller, Token};
use super::promotion::{Promotion, PromotionUnavailable};
use super::query_stream::News;
use super::sockets::{HostSocket, HostSockets};
use super::splice_table::Splices;
use super::{DriverError, RETRY, report};
use crate::control::{DeviceStatus, Status};
use crate::core::datagram::Visit;
use crate::core::egress::Egress;
use crate::core::flow::{Cause, FlowId};
use crate::core::link::Link;
use crate::core::{Action, Core, Duration, Instant};
use crate::device::{Device, MAX_FRAME_LEN};
use crate::host::{LocalLeg, Outbound};
use crate::sys::{self, ReceiveBuffer};

/// Frames read in one turn. With super-frames that is up to 2 MiB.
const FRAMES_PER_TURN: usize = 32;
/// SYNs read in one turn besides: more than are dialled, so that in a flood of them other frames,
/// such as the last one of a handshake, do not have to wait for each.
const SYNS_PER_TURN: usize = 512;
/// What fewer flows leave behind is less than it costs to look for it.
const WORTH_TRIMMING: usize = 1024;

/// See the module's description.
pub struct Shard<D> {
    pub(super) core: Core,
    pub(super) link: DeviceLink<D>,
    /// Watches the device and the flows' sockets, and for the helper what it watches itself.
    pub(super) poller: Poller,
    pub(super) sockets: HostSockets,
    pub(super) outbound: Outbound,
    pub(super) local_leg: LocalLeg,
    pub(super) dials: DialQueue,
    pub(super) relays: Relays,
    pub(super) splices: Splices,
    /// Where frames and echo replies are read to.
    pub(super) buffer: Vec<u8>,
    /// Where datagrams are read to.
    pub(super) datagrams: ReceiveBuffer,
    /// Datagrams of one flow to one remote, and of one remote to one flow.
    pub(super) to_host: Gathered<ToHost>,
    pub(super) to_guest: Gathered<SocketAddr>,
    /// Those at published ports.
    pub(super) from_clients: Gathered<Visit>,
    pub(super) warned_about_ping: bool,
    /// What the device's events have told since the last turn.
    has_frames: bool,
    is_gone: bool,
    /// Most flows at a time since the heap was last trimmed.
    peak_flows: usize,
}

impl<D: Device> Shard<D> {
    /// No packet moves before the first turn.
    pub fn new(
        core: Core,
        device: D,
        outbound: Outbound,
        local_leg: LocalLeg,
    ) -> Result<Self, DriverError> {
        let poller = Poller::new().map_err(|error| DriverError::Watch("epoll", error))?;
        poller
            .add(&device, Token::Device, Interest::Readable)
            .map_err(|error| DriverError::Watch("the device", error))?;
        let relays = Relays::new(core.limits().pipes);
        Ok(Self {
            core,
            link: DeviceLink::new(device),
            poller,
            sockets: HostSockets::default(),
            outbound,
            local_leg,
            dials: DialQueue::default(),
            relays,
            splices: Splices::default(),
            buffer: vec![0; MAX_FRAME_LEN],
            datagrams: ReceiveBuffer::default(),
            to_host: Gathered::default(),
            to_guest: Gathered::default(),
            from_clients: Gathered::default(),
            warned_about_ping: false,
            has_frames: false,
            is_gone: false,
            peak_flows: 0,
        })
    }

    /// Takes an event of the device or of a flow's socket.
    pub fn handle_event(&mut self, event: Event, now: Instant, promotion: &mut Promotion) {
        match event.token {
            Token::Device if event.error => self.is_gone = true,
            Token::Device => self.has_frames = true,
            Token::Flow(id) | Token::Guest(id) => self.handle_socket(id, event, now, promotion),
            Token::Splice(id, side) => self.handle_spliced(id, side, event, now),
            Token::SplicedDatagrams(id) => self.pass_back(id, now),
            // The helper's.
            Token::Listener(_)
            | Token::Companion
            | Token::Status
            | Token::SlirpApi
            | Token::PortControl
            | Token::Exit => {}
        }
    }

    /// What a wake-up ends with, when its events have been handled. False when the device is gone.
    pub fn turn(&mut self, now: Instant, promotion: &mut Promotion) -> bool {
        if !self.link.has_room() {
            self.link.retry();
        }
        let has_frames = std::mem::take(&mut self.has_frames);
        if self.is_gone || has_frames && !self.read_frames(FRAMES_PER_TURN, now) {
            return false;
        }
        self.start_dials(now);
        self.core.handle_deadline(now, &mut self.link);
        if self.link.has_room() {
            self.serve_touched(now);
        }
        self.promote_resting(now, promotion);
        self.break_off_superseded(promotion);
        self.drive_unfinished(promotion);
        self.drive_unfinished_splices();
        self.sweep_spliced(now);
        self.close_ended();
        true
    }

    /// How long it can do without another turn, if no event comes.
    pub fn timeout(&self, now: Instant) -> Option<Duration> {
        if !self.link.has_room() {
            return Some(RETRY);
        }
        let has_work = self.relays.has_work() || self.dials.has_work() || self.splices.has_work();
        if has_work || self.core.touched_len() > 0 {
            return Some(Duration::ZERO);
        }
        let held_up = (!self.dials.is_empty()).then_some(RETRY);
        let deadlines = [self.core.poll_deadline(), self.splices.datagrams.deadline()];
        let until_deadline =
            deadlines
                .into_iter()
                .flatten()
                .min()
                .map(|deadline| match deadline > now {
                    // Rounded up, so that a timer is due when it has run out.
                    true => deadline - now + Duration::from_micros(50),
                    false => Duration::ZERO,
                });
        held_up.into_iter().chain(until_deadline).min()
    }

    /// The status document; `unpromoted` says why no flow is handed over at all.
    pub fn status(
        &self,
        device: DeviceStatus,
        unpromoted: Option<&PromotionUnavailable>,
        now: Instant,
    ) -> Status {
        let mut status = report::status(&self.core, device, unpromoted, self.link.frames_lost, now);
        status.flows.extend(report::spliced(&self.splices, now));
        status
    }

    /// What tells the UDP sockets of flows from those of services.
    pub fn own_datagram_cookies(&self) -> HashSet<u64> {
        let spliced = self.splices.datagrams.sockets();
        let sockets = self.sockets.udp().chain(spliced);
        sockets
            .filter_map(|socket| socket_cookie(socket).ok())
            .collect()
    }

    /// Takes the frames that are there, `most` at most but for SYNs. False when the device is gone.
    pub(super) fn read_frames(&mut self, most: usize, now: Instant) -> bool {
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
        self.flush_datagrams();
        self.buffer = buffer;
        there
    }

    fn perform(&mut self, action: Action<'_>) {
        match action {
            Action::Dial { flow, to } => self.dials.push(flow, to),
            Action::SendDatagram {
                flow,
                to,
                hops,
                payload,
                segment,
            } => self.gather_datagram(ToHost::new(flow, to, hops), &payload, segment),
            Action::SendEcho {
                flow,
                to,
                hops,
                sequence,
                payload,
            } => self.send_echo(flow, to, hops, sequence, &payload),
            Action::ShareSocket { flow, with } => self.share_socket(flow, with),
        }
    }

    fn handle_socket(&mut self, id: FlowId, event: Event, now: Instant, promotion: &mut Promotion) {
        match self.sockets.get_mut(id) {
            Some(HostSocket::Dialling(_)) => self.finish_dial(id, event, now),
            Some(HostSocket::Stream(_) | HostSocket::Queries(_)) => {
                self.core.host_ready(id, event.readiness());
            }
            Some(HostSocket::Promoted(_)) => self.handle_promoted(id, event, promotion),
            Some(HostSocket::Udp(_)) => self.read_datagrams(id, event.error, now),
            Some(HostSocket::Ping(_)) => self.read_echo_replies(id, event.error, now),
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
            match self.sockets.get_mut(id) {
                Some(HostSocket::Stream(stream)) => {
                    self.core.serve(id, now, stream, &mut self.link);
                }
                Some(HostSocket::Queries(stream)) => {
                    stream.go_on();
                    self.core.serve(id, now, &mut **stream, &mut self.link);
                    let News {
                        answered,
                        readiness,
                    } = stream.take_news();
                    self.core.names_answered(answered);
                    if let Some(readiness) = readiness {
                        self.core.host_ready(id, readiness);
                    }
                }
                _ => {}
            }
        }
    }

    /// Holds the guest to new rules, and ends what it may not have any more.
    pub(super) fn set_egress(&mut self, egress: Egress, now: Instant, promotion: &mut Promotion) {
        for id in self.core.set_egress(egress, now, &mut self.link) {
            self.break_off(id, Cause::Prohibited, promotion);
        }
        self.close_ended();
    }

    pub(super) fn close_ended(&mut self) {
        while let Some((id, cause)) = self.core.poll_closed() {
            // Closing a descriptor takes it out of the epoll and sends the FIN that may be due.
            let socket = self.sockets.remove(id);
            if let Cause::ResetByGuest | Cause::GuestSilent | Cause::Prohibited = cause {
                match socket {
                    Some(HostSocket::Stream(stream)) => stream.reset(),
                    Some(HostSocket::Queries(stream)) => stream.reset(),
                    _ => {}
                }
            }
        }
        self.trim_memory();
    }

    /// Gives back what many flows have left behind in the heap, once most of them have gone.
    fn trim_memory(&mut self) {
        let flows = self.core.flow_count();
        self.peak_flows = self.peak_flows.max(flows);
        if self.peak_flows > WORTH_TRIMMING && flows < self.peak_flows / 4 {
            // Once more when few are left, however many there are now.
            self.peak_flows = match flows < WORTH_TRIMMING / 4 {
                true => flows,
                false => flows.max(WORTH_TRIMMING + 1),
            };
            sys::trim_heap();
        }
    }
}
