//! Egress rules that change while there are flows: those of the guest that the new rules prohibit
//! end. Clients of published ports are no matter of these rules.

use super::datagram::Role;
use super::egress::Egress;
use super::flow::{Cause, FlowId};
use super::link::Link;
use super::policy::Verdict;
use super::tcp::{Initiator, Phase};
use super::{Core, Instant, Kind};

impl Core {
    /// New rules take the place of the old ones. Returns the prohibited flows that the kernel
    /// carries: they are the driver's to end.
    pub fn set_egress(
        &mut self,
        egress: Egress,
        now: Instant,
        link: &mut impl Link,
    ) -> Vec<FlowId> {
        self.config.policy.egress = egress;
        let ids: Vec<FlowId> = self.flows.iter().map(|(id, ..)| id).collect();
        let mut promoted = Vec::new();
        for id in ids {
            if !self.is_prohibited(id) {
                self.forget_peers(id);
            } else if self.is_promoted(id) {
                promoted.push(id);
            } else {
                if let Some(flow) = self.flows.tcp_mut(id) {
                    flow.abort(&mut self.engine, now, link);
                }
                self.close(id, Cause::Prohibited);
            }
        }
        promoted
    }

    pub fn egress(&self) -> &Egress {
        &self.config.policy.egress
    }

    /// Whether the guest may not send to the one remote of flow `id` any more.
    fn is_prohibited(&self, id: FlowId) -> bool {
        let (Some(tuple), Some(entry)) = (self.flows.tuple(id), self.flows.get(id)) else {
            return false;
        };
        let is_the_guests = match &entry.kind {
            Kind::Tcp(flow) => flow.initiator == Initiator::Guest,
            Kind::Mapping(mapping) => !matches!(mapping.role, Role::Published { .. }),
        };
        let judge = |remote| self.judge(tuple.protocol, remote);
        is_the_guests && tuple.remote.map(judge) == Some(Verdict::Prohibit)
    }

    /// A mapping that serves all remotes has let in who was talked to by the old rules. Whoever may
    /// still be talked to is let in again by the guest's next packet.
    fn forget_peers(&mut self, id: FlowId) {
        if let Some(Role::Direct { peers }) = self.flows.mapping_mut(id).map(|own| &mut own.role) {
            peers.clear();
        }
    }

    fn is_promoted(&self, id: FlowId) -> bool {
        let flow = self.flows.tcp(id);
        flow.is_some_and(|flow| matches!(flow.phase(), Phase::Promoted(_)))
    }
}
