//! The core's flows and counters as the status document.

use std::net::IpAddr;

use smoltcp::socket::tcp::State;

use super::Unpromoted;
use crate::control::{
    FlowPath, FlowProtocol, FlowStatus, Initiator, LimitStatus, LimitsStatus, MemoryStatus,
    Promoted, PromotionStatus, Reason, Status,
};
use crate::core::datagram::{Mapping, Role};
use crate::core::flow::{Protocol, Tuple};
use crate::core::tcp::{
    self, Handover, MAX_BUFFERED, MemoryUse, Motive, Phase, Reluctance, TcpFlow,
};
use crate::core::{Core, Instant, Share, Usage};

/// Everything that is known now; `unpromoted` says why flows are not handed over to the kernel at
/// all, `frames_lost` how many frames the tap did not take.
pub fn status(
    core: &Core,
    unpromoted: Option<&Unpromoted>,
    frames_lost: u64,
    now: Instant,
) -> Status {
    let counters = core.counters();
    let network = core.network();
    let v6 = network.v6.map(|v6| IpAddr::from(v6.guest));
    Status {
        version: env!("CARGO_PKG_VERSION"),
        guest: std::iter::once(network.v4.guest.into()).chain(v6).collect(),
        connections_total: counters.connections,
        bytes_to_guest: counters.bytes_to_guest,
        bytes_from_guest: counters.bytes_from_guest,
        frames_dropped: counters.frames_dropped,
        frames_lost,
        prohibited: counters.prohibited,
        limit_reached: counters.limit_reached,
        limits: limits(core),
        promotion: PromotionStatus {
            unavailable: unpromoted.map(ToString::to_string),
            promoted: counters.promotions,
            failed: counters.promotions_failed,
        },
        memory: memory(core.memory()),
        flows: core
            .tcp_flows()
            .map(|(tuple, flow)| tcp_flow(tuple, flow, now))
            .chain(
                core.mappings()
                    .map(|(tuple, mapping)| mapping_flow(tuple, mapping, now)),
            )
            .collect(),
    }
}

fn limits(core: &Core) -> LimitsStatus {
    let limit = |Usage { count, limit }| LimitStatus { used: count, limit };
    let share = |share| limit(core.usage(share));
    LimitsStatus {
        connections: limit(core.stream_usage()),
        waiting: share(Share::Waiting),
        dials: share(Share::Dials),
        half_open: share(Share::HalfOpen),
        udp: share(Share::Udp),
        published_udp: share(Share::PublishedUdp),
        icmp: share(Share::Echo),
    }
}

fn memory(memory: MemoryUse) -> MemoryStatus {
    MemoryStatus {
        limit: MAX_BUFFERED,
        receive: memory.receive,
        send: memory.send,
        owed: memory.owed,
        exhausted: memory.exhausted,
    }
}

fn tcp_flow(tuple: &Tuple, flow: &TcpFlow, now: Instant) -> FlowStatus {
    FlowStatus {
        protocol: FlowProtocol::Tcp,
        initiator: match flow.initiator {
            tcp::Initiator::Guest => Initiator::Guest,
            tcp::Initiator::Host => Initiator::Host,
        },
        guest: tuple.guest,
        remote: tuple.remote,
        state: state_name(flow.state()).to_owned(),
        path: match flow.phase() {
            Phase::Promoted(_) => FlowPath::Kernel,
            Phase::Dialling { .. } | Phase::Open(_) => FlowPath::Engine,
        },
        reason: Some(reason(flow, now)),
        bytes_to_guest: flow.bytes_to_guest,
        bytes_from_guest: flow.bytes_from_guest,
        age_ms: (now - flow.born).total_millis(),
    }
}

fn reason(flow: &TcpFlow, now: Instant) -> Reason {
    match flow.phase() {
        Phase::Dialling { .. } => Reason::Opening,
        Phase::Open(_) => match flow.reluctance() {
            Reluctance::Talking => Reason::Talks,
            Reluctance::Off => Reason::Off,
            Reluctance::Leaving => Reason::Leaving,
            Reluctance::NoRest => Reason::Restless,
            Reluctance::Refused(detail) => Reason::Refused { detail },
        },
        Phase::Promoted(handover) => match handover.motive {
            Motive::Hauling => Reason::Hauls(promoted(handover, now)),
            Motive::Asked => Reason::Asked(promoted(handover, now)),
        },
    }
}

fn promoted(handover: &Handover, now: Instant) -> Promoted {
    Promoted {
        promoted_ms_ago: (now - handover.at).total_millis(),
        promoted_after_bytes: handover.after_bytes,
        promoted_pause_us: handover.pause.total_micros(),
    }
}

fn mapping_flow(tuple: &Tuple, mapping: &Mapping, now: Instant) -> FlowStatus {
    FlowStatus {
        protocol: match tuple.protocol {
            Protocol::Echo => FlowProtocol::Icmp,
            Protocol::Udp | Protocol::Tcp => FlowProtocol::Udp,
        },
        initiator: match mapping.role {
            Role::Published { .. } => Initiator::Host,
            _ => Initiator::Guest,
        },
        guest: tuple.guest,
        remote: tuple.remote,
        state: "OPEN".to_owned(),
        path: FlowPath::Engine,
        reason: None,
        bytes_to_guest: mapping.bytes_to_guest,
        bytes_from_guest: mapping.bytes_from_guest,
        age_ms: (now - mapping.born).total_millis(),
    }
}

/// The names of RFC 9293 3.3.2.
fn state_name(state: State) -> &'static str {
    match state {
        State::Closed => "CLOSED",
        State::Listen => "LISTEN",
        State::SynSent => "SYN-SENT",
        State::SynReceived => "SYN-RECEIVED",
        State::Established => "ESTABLISHED",
        State::FinWait1 => "FIN-WAIT-1",
        State::FinWait2 => "FIN-WAIT-2",
        State::CloseWait => "CLOSE-WAIT",
        State::Closing => "CLOSING",
        State::LastAck => "LAST-ACK",
        State::TimeWait => "TIME-WAIT",
    }
}
