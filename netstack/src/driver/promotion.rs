//! Handing a flow over to the kernel, and what becomes of it there.
//!
//! The order matters, because each step but the last can be undone in silence: snapshot the resting
//! flow; make the kernel socket, which says nothing while it is in repair mode; divert the guest's
//! segments to it; let it speak; tell the guest how far we are. From then on a relay joins it to
//! the host socket. A step that fails leaves the flow in the engine.
//!
//! At the end the diversion outlives the last segment: without it the engine would answer with RST.

use std::os::fd::OwnedFd;

use portfwd::relay::{End, Leg, PipePool, Progress, Ready, Relay, Side};
use tracing::{debug, warn};

use super::Driver;
use super::poller::{Event, Interest, Token};
use super::sockets::{HostSocket, Stream};
use crate::core::flow::{Cause, FlowId};
use crate::core::tcp::{NotPromoted, Snapshot};
use crate::core::{Duration, Instant};
use crate::device::Device;
use crate::guest::RING_FRAMES;
use crate::guest::promotion::{Diversion, Promoter, PromoterError, is_closed};

/// The guest's side of a relay; the other is the host's.
const GUEST: Side = Side::A;
const HOST: Side = Side::B;
/// The gate is not looked after more often than this, whatever the guest does to its firewall.
const HEAL_PAUSE: Duration = Duration::from_secs(1);

/// What the driver needs to promote flows.
pub struct Promotion {
    promoter: Promoter,
    pipes: PipePool,
    /// Relays that want another turn without an event.
    unfinished: Vec<FlowId>,
    healed: Instant,
}

/// A flow that the kernel carries.
pub struct KernelFlow {
    diversion: Diversion,
    stage: KernelStage,
}

enum KernelStage {
    /// The relay has both sockets. The numbers are the bytes that the core has been told of.
    Relaying {
        relay: Box<Relay>,
        to_guest: u64,
        from_guest: u64,
    },
    /// Both sides have finished; TCP still has to see it through, with the guest on this socket.
    Closing(OwnedFd),
}

/// Why there is no promotion at all.
#[derive(Debug, thiserror::Error)]
pub enum Unpromoted {
    #[error("--promote off")]
    Off,
    #[error(
        "it needs CAP_NET_ADMIN over the host, to which this network namespace belongs; --keep-host-net-admin keeps that"
    )]
    NeedsHost,
    #[error(transparent)]
    Unavailable(#[from] PromoterError),
}

impl Promotion {
    /// Relays get `pipes` pipes at most.
    pub fn new(promoter: Promoter, pipes: usize) -> Promotion {
        Promotion {
            promoter,
            pipes: PipePool::default().with_at_most(pipes),
            unfinished: Vec::new(),
            healed: Instant::ZERO,
        }
    }

    pub fn has_work(&self) -> bool {
        !self.unfinished.is_empty()
    }
}

impl<D: Device> Driver<D> {
    /// Hands over every flow that has come to rest.
    pub(super) fn promote_resting(&mut self, now: Instant) {
        while let Some(id) = self.core.poll_promotion() {
            let mut snapshot = self.core.snapshot(id);
            let promoted = match &mut snapshot {
                Some(snapshot) => self.promote(id, snapshot, now),
                None => Err(NotPromoted::NoRest),
            };
            if let Err(why) = promoted {
                self.core
                    .promotion_failed(id, snapshot.as_ref(), why, &mut self.link);
            }
        }
    }

    /// The snapshot's unread bytes are taken once there is no way back.
    fn promote(
        &mut self,
        id: FlowId,
        snapshot: &mut Snapshot,
        now: Instant,
    ) -> Result<(), NotPromoted> {
        let Ok(promotion) = &mut self.promotion else {
            return Err(NotPromoted::Off);
        };
        if !self.core.admits_stream() {
            return Err(NotPromoted::Refused(
                "its second socket has no descriptor left".to_owned(),
            ));
        }
        let Some(HostSocket::Stream(host)) = self.sockets.remove(id) else {
            return Err(NotPromoted::Off);
        };
        let (guest, diversion) = match promotion.promoter.take_over(snapshot) {
            Ok(taken) => taken,
            Err(error) => {
                debug!(%error, "a connection stays in the engine");
                self.sockets.insert(id, HostSocket::Stream(host));
                return Err(NotPromoted::Refused(error.to_string()));
            }
        };
        // The kernel has the flow: there is no way back from here.
        self.core
            .promoted(id, snapshot, diversion.stragglers(), now, &mut self.link);
        // What the guest said before it was diverted goes back to it before the socket speaks. Once
        // a window more has been acknowledged, the kernel would take these segments for forged ones
        // and drop them (RFC 5961 5.2).
        self.read_frames(RING_FRAMES as usize, now);
        let Stream(host) = host;
        let registered = self
            .poller
            .change(&host, Token::Flow(id), Interest::Relay)
            .and_then(|()| self.poller.add(&guest, Token::Guest(id), Interest::Relay));
        let host_leg = Leg {
            owed: std::mem::take(&mut snapshot.unread),
            ..Leg::new(host)
        };
        let relay = registered.and_then(|()| Relay::new(Leg::new(guest), host_leg));
        match relay {
            Ok(relay) => {
                let stage = KernelStage::Relaying {
                    relay: Box::new(relay),
                    to_guest: 0,
                    from_guest: 0,
                };
                self.sockets
                    .insert(id, HostSocket::Promoted(KernelFlow { diversion, stage }));
                self.drive_relay(id);
            }
            // Both sockets are closed by now, which resets what is connected to them.
            Err(error) => {
                warn!(%error, "a promoted connection was lost");
                self.end_promoted(id, diversion, Cause::ResetByHost);
            }
        }
        Ok(())
    }

    /// An event on either socket of a promoted flow.
    pub(super) fn handle_promoted(&mut self, id: FlowId, event: Event) {
        let side = match event.token {
            Token::Guest(_) => GUEST,
            _ => HOST,
        };
        match self.sockets.get_mut(id) {
            Some(HostSocket::Promoted(KernelFlow {
                stage: KernelStage::Relaying { relay, .. },
                ..
            })) => {
                relay.handle_ready(side, Ready::from_epoll(event.flags));
                self.drive_relay(id);
            }
            Some(HostSocket::Promoted(_)) => self.finish_closing(id),
            _ => {}
        }
    }

    /// Goes on with the relays that had more to do than one turn allows.
    pub(super) fn drive_unfinished(&mut self) {
        let Ok(promotion) = &mut self.promotion else {
            return;
        };
        for id in std::mem::take(&mut promotion.unfinished) {
            self.drive_relay(id);
        }
    }

    /// Segments of promoted flows come out of the tap again: somebody has flushed the guest's
    /// firewall.
    pub(super) fn heal_gate(&mut self, now: Instant) {
        if let Ok(promotion) = &mut self.promotion
            && now >= promotion.healed + HEAL_PAUSE
        {
            promotion.healed = now;
            if let Err(error) = promotion.promoter.heal() {
                debug!(%error, "promoted connections stall");
            }
        }
    }

    fn drive_relay(&mut self, id: FlowId) {
        let (
            Ok(promotion),
            Some(HostSocket::Promoted(KernelFlow {
                diversion,
                stage:
                    KernelStage::Relaying {
                        relay,
                        to_guest,
                        from_guest,
                    },
            })),
        ) = (&mut self.promotion, self.sockets.get_mut(id))
        else {
            return;
        };
        let diversion = *diversion;
        let progress = relay.drive(&mut promotion.pipes);
        let before = (*to_guest, *from_guest);
        (*to_guest, *from_guest) = (relay.bytes_from(HOST), relay.bytes_from(GUEST));
        self.core
            .handle_relayed(id, *to_guest - before.0, *from_guest - before.1);
        match progress {
            Progress::Idle => {}
            Progress::Again => promotion.unfinished.push(id),
            Progress::Done(end) => {
                let Some(HostSocket::Promoted(KernelFlow {
                    stage: KernelStage::Relaying { relay, .. },
                    ..
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
                        self.finish_closing(id);
                    }
                    End::Aborted { by, kind } => {
                        debug!(connection = %diversion.shown(), ?by, %kind, "a promoted connection broke");
                        let cause = match by {
                            GUEST => Cause::ResetByGuest,
                            HOST => Cause::ResetByHost,
                        };
                        self.end_promoted(id, diversion, cause);
                        // Closes both sockets: RST to whoever has neither sent nor got one.
                        drop(relay);
                    }
                }
            }
        }
    }

    /// Ends a flow whose kernel socket has reached CLOSED (or TIME-WAIT, which the socket does not
    /// live to see).
    fn finish_closing(&mut self, id: FlowId) {
        if let Some(HostSocket::Promoted(KernelFlow {
            diversion,
            stage: KernelStage::Closing(guest),
        })) = self.sockets.get_mut(id)
            && is_closed(&*guest).unwrap_or(true)
        {
            let diversion = *diversion;
            self.sockets.remove(id);
            self.end_promoted(id, diversion, Cause::Finished);
        }
    }

    fn end_promoted(&mut self, id: FlowId, diversion: Diversion, cause: Cause) {
        if let Ok(promotion) = &mut self.promotion
            && let Err(error) = promotion.promoter.release(&diversion)
        {
            debug!(%error, "cannot end a diversion");
        }
        self.core.handle_relay_ended(id, cause);
    }
}
