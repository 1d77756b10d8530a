//! Handing flows over to the kernel, and what becomes of them there. Here is the whole story; the
//! parts tell only their own.
//!
//! A flow leaves the engine when it hauls and has come to rest (`core::tcp::promotion_policy`):
//! everything that was sent to the guest is acknowledged, and for a moment nothing has been said
//! either way. Each turn of the loop goes through three phases:
//!
//! 1. **Take over** every such flow, from a snapshot of its numbers:
//!    - connection tracking tells which ends the connection has inside the guest;
//!    - a socket in repair mode gets these ends and the numbers. It says nothing, not even when it
//!      is closed;
//!    - the gate diverts the guest's segments to it;
//!    - it leaves repair mode. A step that fails up to here leaves the flow in the engine, and no
//!      trace in the guest; from here there is no way back.
//!
//!    Then the engine lets go of the flow, and sends the guest one ACK in place of those that it
//!    held back while the flow rested. No frame is read in this phase, so each snapshot is still
//!    true when it is used.
//! 2. **Drain** the tap, once for all of them. Segments that the guest had sent before they were
//!    diverted are written back into the tap, and reach the socket. That has to be done before the
//!    socket sends data: once the guest has acknowledged a window of it, the kernel takes such a
//!    segment for a forged one, and drops it (RFC 5961 5.2). Where the guest translates the
//!    connection's addresses, nobody in it would know these segments again; TCP repeats what they
//!    carried.
//! 3. **Relay**: from here on a relay moves bytes between the socket and the flow's host socket,
//!    first those that the engine had received and the host had not taken yet.
//!
//! At the end the diversion outlives the last segment: without it the engine would answer with RST.
//! - When both sides have finished, the guest's socket is kept until it has reached CLOSED or
//!   TIME-WAIT. It is closed first, which says nothing any more, and then its diversion ends, and
//!   what is left in TIME-WAIT with it: the guest may use its port for the same remote again.
//! - When one side has broken off, the diversion ends first, and then the sockets are closed, which
//!   resets both connections. A guest that takes the RST's number for wrong asks back (RFC 5961
//!   3.2); it is heard on the tap, and the engine answers with a RST that it believes.
//! - When a SYN asks for the same ends again, whoever had them has vanished without a word, as a
//!   container does whose link is taken away. The connection is broken off, and the next SYN gets a
//!   new one.

use std::os::fd::OwnedFd;

use portfwd::relay::{End, Leg, Progress, Ready, Relay};
use tracing::{debug, warn};

use super::kernel_flow::{GUEST, HOST, KernelFlow, KernelStage, Relaying};
use super::poller::{Event, Interest, Token};
use super::promotion::Promotion;
use super::shard::Shard;
use super::sockets::{HostSocket, Stream};
use crate::core::Instant;
use crate::core::flow::{Cause, FlowId};
use crate::core::tcp::{NotPromoted, Snapshot};
use crate::device::Device;
use crate::guest::RING_FRAMES;
use crate::guest::promotion::{Diversion, is_closed};

/// A flow that the kernel has taken over and whose relay is still to come.
struct TakenOver {
    id: FlowId,
    host: OwnedFd,
    guest: OwnedFd,
    diversion: Diversion,
}

impl<D: Device> Shard<D> {
    /// Hands over every flow that has come to rest: see the head of this file.
    pub(super) fn promote_resting(&mut self, now: Instant, promotion: &mut Promotion) {
        let mut taken = Vec::new();
        while let Some((id, snapshot)) = self.core.poll_promotion() {
            match self.take_over(id, &snapshot, promotion) {
                Ok(flow) => {
                    let stragglers = flow.diversion.stragglers();
                    self.core
                        .promoted(id, &snapshot, stragglers, now, &mut self.link);
                    taken.push((flow, snapshot.unread));
                }
                Err(why) => self
                    .core
                    .promotion_failed(id, &snapshot, why, &mut self.link),
            }
        }
        if taken.is_empty() {
            return;
        }
        self.read_frames(RING_FRAMES as usize, now);
        for (flow, unread) in taken {
            self.start_relay(flow, unread, promotion);
        }
    }

    /// Makes the kernel carry the flow. On an error it is as it was before.
    fn take_over(
        &mut self,
        id: FlowId,
        snapshot: &Snapshot,
        promotion: &mut Promotion,
    ) -> Result<TakenOver, NotPromoted> {
        let Ok(promoter) = &mut promotion.promoter else {
            return Err(NotPromoted::Off);
        };
        if !self.core.admits_promotion(id) {
            return Err(NotPromoted::Refused(
                "its second socket has no descriptor left".to_owned(),
            ));
        }
        let Some(HostSocket::Stream(Stream(host))) = self.sockets.remove(id) else {
            return Err(NotPromoted::Off);
        };
        match promoter.take_over(snapshot) {
            Ok((guest, diversion)) => Ok(TakenOver {
                id,
                host,
                guest,
                diversion,
            }),
            Err(error) => {
                debug!(%error, "a connection stays in the engine");
                self.sockets.insert(id, HostSocket::stream(host));
                Err(NotPromoted::Refused(error.to_string()))
            }
        }
    }

    /// Joins the two sockets of a flow, which may speak from here on. `unread` is what the engine
    /// had received and the host has still to take.
    fn start_relay(&mut self, flow: TakenOver, unread: Vec<u8>, promotion: &mut Promotion) {
        let TakenOver {
            id,
            host,
            guest,
            diversion,
        } = flow;
        let registered = self
            .poller
            .change(&host, Token::Flow(id), Interest::Relay)
            .and_then(|()| self.poller.add(&guest, Token::Guest(id), Interest::Relay));
        let host = Leg {
            owed: unread,
            ..Leg::new(host)
        };
        match registered.and_then(|()| Relay::new(Leg::new(guest), host)) {
            Ok(relay) => {
                let stage = KernelStage::Relaying(Relaying::new(relay));
                self.sockets
                    .insert(id, HostSocket::Promoted(KernelFlow { diversion, stage }));
                self.drive_relay(id, promotion);
            }
            // Both sockets are closed by now, and so reset, for once before the diversion ends.
            Err(error) => {
                warn!(%error, "a promoted connection was lost");
                self.end_promoted(id, diversion, Cause::ResetByHost, promotion);
            }
        }
    }

    /// An event on either socket of a promoted flow.
    pub(super) fn handle_promoted(&mut self, id: FlowId, event: Event, promotion: &mut Promotion) {
        let side = match event.token {
            Token::Guest(_) => GUEST,
            _ => HOST,
        };
        let Some(HostSocket::Promoted(flow)) = self.sockets.get_mut(id) else {
            return;
        };
        match &mut flow.stage {
            KernelStage::Relaying(Relaying { relay, .. }) => {
                relay.handle_ready(side, Ready::from_epoll(event.flags));
                self.drive_relay(id, promotion);
            }
            KernelStage::Closing(_) => self.finish_closing(id, promotion),
        }
    }

    /// Ends a flow that may not be any more: both sides are reset.
    pub(super) fn break_off(&mut self, id: FlowId, cause: Cause, promotion: &mut Promotion) {
        if let Some(HostSocket::Promoted(flow)) = self.sockets.remove(id) {
            self.end_promoted(id, flow.diversion, cause, promotion);
            drop(flow.stage);
        }
    }

    /// Ends the flows whose ends the guest has given to other connections.
    pub(super) fn break_off_superseded(&mut self, promotion: &mut Promotion) {
        while let Some(id) = self.core.poll_superseded() {
            self.break_off(id, Cause::ResetByGuest, promotion);
        }
    }

    /// Goes on with the relays that had more to do than one turn allows.
    pub(super) fn drive_unfinished(&mut self, promotion: &mut Promotion) {
        for id in std::mem::take(&mut self.relays.unfinished) {
            self.drive_relay(id, promotion);
        }
    }

    fn drive_relay(&mut self, id: FlowId, promotion: &mut Promotion) {
        let Some(HostSocket::Promoted(flow)) = self.sockets.get_mut(id) else {
            return;
        };
        let KernelStage::Relaying(relaying) = &mut flow.stage else {
            return;
        };
        let progress = relaying.relay.drive(&mut self.relays.pipes);
        let (to_guest, from_guest) = relaying.moved_since();
        self.core.handle_relayed(id, to_guest, from_guest);
        match progress {
            Progress::Idle => {}
            Progress::Again => self.relays.unfinished.push(id),
            Progress::Done(end) => self.finish_relay(id, end, promotion),
        }
    }

    fn finish_relay(&mut self, id: FlowId, end: End, promotion: &mut Promotion) {
        let Some(HostSocket::Promoted(KernelFlow {
            diversion,
            stage: KernelStage::Relaying(Relaying { relay, .. }),
        })) = self.sockets.remove(id)
        else {
            return;
        };
        match end {
            End::Finished => {
                let (guest, _host) = relay.into_sockets();
                let stage = KernelStage::Closing(guest);
                self.sockets
                    .insert(id, HostSocket::Promoted(KernelFlow { diversion, stage }));
                self.finish_closing(id, promotion);
            }
            End::Aborted { by, kind } => {
                debug!(connection = %diversion.shown(), ?by, %kind, "a promoted connection broke");
                let cause = match by {
                    GUEST => Cause::ResetByGuest,
                    HOST => Cause::ResetByHost,
                };
                self.end_promoted(id, diversion, cause, promotion);
                // Closes both sockets: RST to whoever has neither sent nor got one.
                drop(relay);
            }
        }
    }

    /// Ends a flow whose kernel socket has reached CLOSED (or TIME-WAIT, which the socket does not
    /// live to see).
    fn finish_closing(&mut self, id: FlowId, promotion: &mut Promotion) {
        if let Some(HostSocket::Promoted(KernelFlow {
            diversion,
            stage: KernelStage::Closing(guest),
        })) = self.sockets.get_mut(id)
            && is_closed(&*guest).unwrap_or(true)
        {
            let diversion = *diversion;
            self.sockets.remove(id);
            self.end_promoted(id, diversion, Cause::Finished, promotion);
        }
    }

    fn end_promoted(
        &mut self,
        id: FlowId,
        diversion: Diversion,
        cause: Cause,
        promotion: &mut Promotion,
    ) {
        if let Ok(promoter) = &mut promotion.promoter
            && let Err(error) = promoter.release(&diversion)
        {
            debug!(%error, "cannot end a diversion");
        }
        self.core.handle_relay_ended(id, cause);
    }
}
