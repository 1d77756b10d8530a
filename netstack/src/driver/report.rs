//! The core's flows and counters as the status document.

use smoltcp::socket::tcp::State;

use super::PromotionUnavailable;
use super::splice_table::{Joined, Place, Splice, Splices};
use crate::control::{
    DeviceStatus, FlowInitiator, FlowPath, FlowPromotion, FlowProtocol, FlowStatus, LimitStatus,
    LimitsStatus, MemoryStatus, PromotionStatus, Reason, Status,
};
use crate::core::datagram::{Mapping, Role};
use crate::core::flow::{Protocol, Tuple};
use crate::core::tcp::{
    self, Handover, MAX_BUFFERED, MemoryUse, Motive, NotPromoted, Phase, TcpFlow,
};
use crate::core::{Core, Instant, Share, Usage};

/// Everything that is known now; `unavailable` says why flows are not handed over to the kernel at
/// all, `frames_lost` how many frames the device did not take.
pub fn status(
    core: &Core,
    device: DeviceStatus,
    unavailable: Option<&PromotionUnavailable>,
    frames_lost: u64,
    now: Instant,
) -> Status {
    let counters = core.counters();
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        guest: core.addresses().guest.clone(),
        guest_networks: core
            .addresses()
            .behind
            .iter()
            .map(ToString::to_string)
            .collect(),
        names: core
            .names()
            .iter()
            .map(|(_, name)| name.to_string())
            .collect(),
        names_answered: counters.names_answered,
        device,
        connections_total: counters.connections,
        bytes_to_guest: counters.bytes_to_guest,
        bytes_from_guest: counters.bytes_from_guest,
        frames_dropped: counters.frames_dropped,
        frames_lost,
        prohibited: counters.prohibited,
        limit_reached: core.limit_reached(),
        limits: limits(core),
        promotion: PromotionStatus {
            unavailable: unavailable.map(ToString::to_string),
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
    let limit = |usage: Usage| LimitStatus {
        used: usage.count,
        limit: usage.limit,
        reached: usage.reached,
    };
    let share = |share| limit(core.usage(share));
    let counters = core.counters();
    LimitsStatus {
        connections: limit(core.stream_usage()),
        waiting: share(Share::Waiting),
        dials: share(Share::Dials),
        half_open: share(Share::HalfOpen),
        udp: share(Share::Udp),
        published_udp: share(Share::PublishedUdp),
        icmp: share(Share::Echo),
        out_of_descriptors: counters.out_of_descriptors,
        out_of_ports: counters.out_of_ports,
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
            tcp::Initiator::Guest => FlowInitiator::Guest,
            tcp::Initiator::Host => FlowInitiator::Host,
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

/// What is joined socket to socket.
pub fn spliced(splices: &Splices, now: Instant) -> impl Iterator<Item = FlowStatus> {
    let connection = move |splice: &Splice| FlowStatus {
        protocol: FlowProtocol::Tcp,
        state: splice.state_name().to_owned(),
        path: FlowPath::Kernel,
        reason: Some(Reason::Spliced),
        ..joined(&splice.joined, now)
    };
    let connections = splices.iter().map(connection);
    let mappings = splices.datagrams.iter();
    connections.chain(mappings.map(move |mapping| joined(&mapping.joined, now)))
}

/// As UDP is shown.
fn joined(joined: &Joined, now: Instant) -> FlowStatus {
    let Joined {
        client,
        way,
        born,
        moved,
    } = joined;
    let (initiator, guest, remote) = match way.place {
        Place::Host => (FlowInitiator::Guest, *client, way.to),
        Place::Guest => (FlowInitiator::Host, way.to, *client),
    };
    let (bytes_to_guest, bytes_from_guest) = way.place.to_and_from_guest(*moved);
    FlowStatus {
        protocol: FlowProtocol::Udp,
        initiator,
        guest,
        remote: Some(remote),
        state: "OPEN".to_owned(),
        path: FlowPath::Engine,
        reason: None,
        bytes_to_guest,
        bytes_from_guest,
        age_ms: (now - *born).total_millis(),
    }
}

fn reason(flow: &TcpFlow, now: Instant) -> Reason {
    match flow.phase() {
        Phase::Dialling { .. } => Reason::Opening,
        Phase::Open(_) => match flow.not_promoted() {
            NotPromoted::Talking => Reason::Talks,
            NotPromoted::Off => Reason::Off,
            NotPromoted::Leaving => Reason::Leaving,
            NotPromoted::NoRest => Reason::Restless,
            NotPromoted::Refused(detail) => Reason::Refused { detail },
        },
        Phase::Promoted(handover) => match handover.motive {
            Motive::Hauling => Reason::Hauls(promoted(handover, now)),
            Motive::Asked => Reason::Asked(promoted(handover, now)),
        },
    }
}

fn promoted(handover: &Handover, now: Instant) -> FlowPromotion {
    FlowPromotion {
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
            Role::Published { .. } => FlowInitiator::Host,
            _ => FlowInitiator::Guest,
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use etherparse::PacketBuilder;
    use serde_json::Value;

    use super::*;
    use crate::core::autoconf::Autoconf;
    use crate::core::datagram::Visit;
    use crate::core::flow::HashKey;
    use crate::core::link::Link;
    use crate::core::policy::Policy;
    use crate::core::vnet::VNET_HEADER_LEN;
    use crate::core::{CoreConfig, Limits};
    use crate::network::Network;

    const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const NOW: Instant = Instant::ZERO;

    struct Nobody;

    impl Link for Nobody {
        fn has_room(&self) -> bool {
            true
        }

        fn transmit(&mut self, _head: &[u8], _payload: &[u8]) {}
    }

    /// A core that may keep one flow of each kind.
    fn core() -> Core {
        let config = CoreConfig {
            addresses: Network::default().addresses(),
            autoconf: Autoconf::default(),
            policy: Policy::default(),
            mtu: 1500,
            mac: [2, 0, 0, 0, 0, 2],
            guest_mac: Some(GUEST_MAC),
            udp_segmentation: false,
            promote: tcp::Promote::Off,
            limits: Limits::share_out(1),
            random_seed: 0,
            hash_key: HashKey(0, 0),
        };
        Core::new(config, NOW)
    }

    fn packet(to: [u8; 4]) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
        PacketBuilder::ethernet2(GUEST_MAC, [2, 0, 0, 0, 0, 2]).ipv4([10, 0, 2, 100], to, 64)
    }

    fn framed(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut frame = vec![0; VNET_HEADER_LEN];
        write(&mut frame);
        frame
    }

    fn datagram(from_port: u16, to: [u8; 4]) -> Vec<u8> {
        let packet = packet(to).udp(from_port, 7);
        framed(|frame| packet.write(frame, b"x").unwrap())
    }

    fn syn(from_port: u16) -> Vec<u8> {
        let packet = packet([198, 51, 100, 7]).tcp(from_port, 7, 1, 1000).syn();
        framed(|frame| packet.write(frame, b"").unwrap())
    }

    fn echo(identifier: u16) -> Vec<u8> {
        let packet = packet([198, 51, 100, 7]).icmpv4_echo_request(identifier, 1);
        framed(|frame| packet.write(frame, b"x").unwrap())
    }

    fn hear(core: &mut Core, frame: &[u8]) {
        core.handle_frame(frame, NOW, &mut Nobody);
    }

    fn document(core: &Core, frames_lost: u64) -> Value {
        serde_json::to_value(status(core, DeviceStatus::TAP, None, frames_lost, NOW)).unwrap()
    }

    #[test]
    fn whatever_is_counted_is_shown() {
        const REMOTE: [u8; 4] = [198, 51, 100, 7];
        let client = |port| (Ipv4Addr::new(203, 0, 113, 9), port).into();
        let published = |core: &mut Core, port| {
            let visit = Visit {
                client: client(port),
                asked: client(53),
            };
            core.handle_published_datagram(visit, 53, b"?", None, NOW, &mut Nobody);
        };
        type Step<'s> = (&'s str, &'s dyn Fn(&mut Core));
        let steps: [Step; 10] = [
            ("/frames_dropped", &|core| hear(core, &[0; 40])),
            ("/prohibited", &|core| {
                hear(core, &datagram(1, [127, 0, 0, 1]));
            }),
            ("/bytes_from_guest", &|core| {
                hear(core, &datagram(1, REMOTE));
            }),
            ("/limits/udp/reached", &|core| {
                hear(core, &datagram(2, REMOTE));
            }),
            ("/limits/icmp/reached", &|core| {
                (1..=2).for_each(|id| hear(core, &echo(id)));
            }),
            ("/limits/published_udp/reached", &|core| {
                (0..=core.limits().published_udp as u16).for_each(|port| published(core, 1 + port));
            }),
            ("/limits/waiting/reached", &|core| {
                (0..=core.limits().waiting as u16).for_each(|port| hear(core, &syn(1 + port)));
            }),
            ("/limits/half_open/reached", &|core| {
                for port in 1..=2 {
                    core.handle_accepted(client(port), 80, NOW);
                }
            }),
            ("/limits/out_of_descriptors", &|core| {
                core.yield_descriptor(None);
            }),
            ("/connections_total", &|core| {
                core.handle_accepted(client(3), 80, NOW);
            }),
        ];
        let mut core = core();
        for (counter, step) in steps {
            let count = |core: &Core| document(core, 0).pointer(counter).unwrap().as_u64();
            let before = count(&core);
            step(&mut core);
            assert!(count(&core) > before, "{counter}: still {before:?}");
        }
        assert_eq!(document(&core, 7)["frames_lost"], 7);
    }

    #[test]
    fn the_limits_that_were_reached_add_up() {
        let mut core = core();
        (1..5).for_each(|port| hear(&mut core, &datagram(port, [198, 51, 100, 7])));
        (1..4).for_each(|id| hear(&mut core, &echo(id)));
        core.yield_descriptor(None);
        let document = document(&core, 0);
        assert_eq!(document["limits"]["udp"]["reached"], 3);
        assert_eq!(document["limits"]["icmp"]["reached"], 2);
        assert_eq!(document["limit_reached"], 6);
    }
}
