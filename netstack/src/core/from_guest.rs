//! What the guest's packets set off: a packet finds its flow, or makes one if policy allows, or is
//! answered with the refusal that it would get without us.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Slice, Icmpv4Type, Icmpv6Slice, Icmpv6Type, TcpSlice, UdpSlice};

use super::datagram::Role;
use super::dns::Questions;
use super::flow::{Cause, FlowId, Protocol, Tuple};
use super::icmp::{self, Unreachable};
use super::link::{Hardware, Link};
use super::neighbour;
use super::packet::{HopsLeft, Packet, Transport};
use super::policy::Verdict;
use super::shares::Share;
use super::tcp::{Initiator, Phase, Stragglers, TcpFlow};
use super::vnet::Segmentation;
use super::{Action, Core, CoreConfig, IN_FLIGHT, Instant, Kind};

impl Core {
    pub(super) fn handle_packet<'f>(
        &mut self,
        packet: Packet<'f>,
        now: Instant,
        link: &mut impl Link,
    ) -> Option<Action<'f>> {
        if self.guest_mac.is_none() || self.config.addresses.is_guest(packet.source) {
            self.guest_mac = Some(packet.source_mac);
        }
        if packet.hops_left() == HopsLeft::None && self.is_passed_on(&packet) {
            self.report(&packet, Unreachable::TimeExceeded, link);
            return None;
        }
        match &packet.transport {
            Transport::Tcp(tcp) => self.handle_tcp(&packet, tcp, now, link),
            Transport::Udp(udp) => self.handle_udp(&packet, udp, now, link),
            Transport::Icmpv4(icmp) => self.handle_icmpv4(&packet, icmp, now, link),
            Transport::Icmpv6(icmp) => self.handle_icmpv6(&packet, icmp, now, link),
        }
    }

    fn handle_tcp<'f>(
        &mut self,
        packet: &Packet<'f>,
        tcp: &TcpSlice<'f>,
        now: Instant,
        link: &mut impl Link,
    ) -> Option<Action<'f>> {
        let remote = packet.remote_addr(tcp.destination_port());
        let tuple = Tuple {
            protocol: Protocol::Tcp,
            guest: packet.guest_addr(tcp.source_port()),
            remote: Some(remote),
        };
        let opens = tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin();
        if opens {
            self.make_way(&tuple, tcp.sequence_number());
        }
        if let Some(id) = self.flows.find(&tuple) {
            let flow = self.flows.tcp_mut(id)?;
            match flow.phase() {
                Phase::Dialling { .. } if opens => flow.repeat_syn(packet.ip),
                Phase::Dialling { .. } if tcp.rst() => self.close(id, Cause::Cancelled),
                Phase::Dialling { .. } => {}
                // It was in flight at the hand-over, or the mark that diverts it is gone. A SYN is
                // never diverted and would come back for ever.
                Phase::Promoted(handover) if !tcp.syn() => {
                    self.stray_seen |= now >= handover.at + IN_FLIGHT;
                    if handover.stragglers == Stragglers::Return {
                        let hardware = self.hardware_of(packet);
                        hardware.send_packet(link, packet.offload, packet.ip);
                    }
                }
                // Whoever had the connection has gone without a word, and the next one to have the
                // address knows nothing of it: a container in the place of another.
                Phase::Promoted(handover)
                    if opens
                        && handover.irs != tcp.sequence_number()
                        && flow.initiator == Initiator::Guest =>
                {
                    self.superseded.push_back(id);
                }
                Phase::Promoted(_) => {}
                Phase::Open(_) => {
                    flow.ingest(&mut self.engine, packet.ip, tcp, now, link);
                    if flow.is_refused() {
                        self.try_other_family(id, now);
                    }
                    self.touch(id);
                }
            }
            return None;
        }
        let hardware = self.hardware_of(packet);
        if !opens || tcp.destination_port() == 0 || tcp.source_port() == 0 {
            self.engine.refuse(packet.ip, hardware, now, link);
            return None;
        }
        let to = match self.judge(Protocol::Tcp, remote) {
            Verdict::Dial(to) => to,
            Verdict::Resolve => self.forwarder.dial()?,
            Verdict::Refuse => {
                self.engine.refuse(packet.ip, hardware, now, link);
                return None;
            }
            verdict => {
                self.reject(packet, verdict, link);
                return None;
            }
        };
        if !self.admits_stream(packet.source) {
            // Nothing is said: the guest repeats its SYN, and there may be room by then.
            return None;
        }
        self.make_room(Share::Waiting);
        let flow = TcpFlow::dialling(packet.ip, to, self.may_promote(&tuple), now);
        let flow = self.insert(tuple, packet.source_mac, Kind::Tcp(Box::new(flow)))?;
        self.begin(flow, Share::Waiting, now);
        Some(Action::Dial { flow, to })
    }

    /// A guest may use a port again as soon as its own half is closed: what is left of ours must
    /// not take the new SYN, whose number is `isn`.
    fn make_way(&mut self, tuple: &Tuple, isn: u32) {
        if let Some(id) = self.flows.find(tuple)
            && let Some(cause) = self.flows.tcp(id).and_then(|flow| flow.makes_way(isn))
        {
            self.close(id, cause);
        }
    }

    /// The mapping of a client of a published port that looks like a link-local `remote`. A service
    /// that has bound no address answers such a one by the guest's link-local address, not by the
    /// one that was asked (RFC 6724 5, rule 2).
    fn answered_by_link_local(&self, guest: SocketAddr, remote: SocketAddr) -> Option<FlowId> {
        let IpAddr::V6(ip) = guest.ip() else {
            return None;
        };
        if !ip.is_unicast_link_local() {
            return None;
        }
        let asked = self.config.addresses.guest(guest.ip())?;
        let tuple = Tuple {
            protocol: Protocol::Udp,
            guest: SocketAddr::new(asked, guest.port()),
            remote: Some(remote),
        };
        let id = self.flows.find(&tuple)?;
        match &self.flows.get(id)?.kind {
            Kind::Mapping(mapping) if matches!(mapping.role, Role::Published { .. }) => Some(id),
            _ => None,
        }
    }

    fn handle_udp<'f>(
        &mut self,
        packet: &Packet<'f>,
        udp: &UdpSlice<'f>,
        now: Instant,
        link: &mut impl Link,
    ) -> Option<Action<'f>> {
        let guest = packet.guest_addr(udp.source_port());
        let remote = packet.remote_addr(udp.destination_port());
        if self.is_for_server(remote) {
            self.serve_client(packet, udp, link);
            return None;
        }
        if remote.port() == 0 || remote.ip().is_multicast() {
            return None;
        }
        let payload = udp.payload();
        let segment = packet
            .offload
            .super_frame
            .filter(|super_frame| super_frame.kind == Segmentation::Udp)
            .map(|super_frame| super_frame.size);
        let size = segment.map_or(payload.len(), |size| size.get().into());
        let queries = payload.chunks(size.max(1));
        let hardware = self.hardware_of(packet);
        if self.answer_queries(guest, remote, queries, hardware, link) {
            return None;
        }
        let with = |remote| Tuple {
            protocol: Protocol::Udp,
            guest,
            remote,
        };
        let known = self.flows.find(&with(Some(remote)));
        let flow = match known.or_else(|| self.answered_by_link_local(guest, remote)) {
            Some(flow) => flow,
            None => {
                let (tuple, role) = match self.judge(Protocol::Udp, remote) {
                    Verdict::Dial(to) if to == remote => (
                        with(None),
                        Role::Direct {
                            peers: HashSet::new(),
                        },
                    ),
                    Verdict::Dial(host) => (
                        with(Some(remote)),
                        Role::Translated {
                            appears: remote,
                            host,
                        },
                    ),
                    Verdict::Resolve => (
                        with(Some(remote)),
                        Role::Dns {
                            appears: remote,
                            questions: Questions::default(),
                        },
                    ),
                    verdict => {
                        self.reject(packet, verdict, link);
                        return None;
                    }
                };
                match self.flows.find(&tuple) {
                    Some(flow) => flow,
                    None => self.insert_mapping(tuple, packet.source_mac, role, now)?,
                }
            }
        };
        let mapping = self.flows.mapping_mut(flow)?;
        let to = mapping.route(remote, payload, &self.forwarder)?;
        mapping.last_used = now;
        mapping.bytes_from_guest += payload.len() as u64;
        self.counters.bytes_from_guest += payload.len() as u64;
        Some(Action::SendDatagram {
            flow,
            to,
            hops: packet.hops_left().count(),
            payload: Cow::Borrowed(payload),
            segment,
        })
    }

    fn handle_icmpv4<'f>(
        &mut self,
        packet: &Packet<'f>,
        icmp: &Icmpv4Slice<'f>,
        now: Instant,
        link: &mut impl Link,
    ) -> Option<Action<'f>> {
        match icmp.icmp_type() {
            Icmpv4Type::EchoRequest(echo) => {
                self.handle_echo(packet, echo.id, echo.seq, icmp.payload(), now, link)
            }
            Icmpv4Type::DestinationUnreachable(why) => match why {
                DestUnreachableHeader::FragmentationNeeded { .. } => None,
                _ => self.handle_unreachable(icmp.payload(), now, link),
            },
            _ => None,
        }
    }

    fn handle_icmpv6<'f>(
        &mut self,
        packet: &Packet<'f>,
        icmp: &Icmpv6Slice<'f>,
        now: Instant,
        link: &mut impl Link,
    ) -> Option<Action<'f>> {
        match icmp.icmp_type() {
            Icmpv6Type::EchoRequest(echo) => {
                self.handle_echo(packet, echo.id, echo.seq, icmp.payload(), now, link)
            }
            Icmpv6Type::NeighborSolicitation | Icmpv6Type::RouterSolicitation
                if self.servers.ignores_ndp() =>
            {
                None
            }
            Icmpv6Type::RouterSolicitation => {
                self.handle_router_solicitation(packet, now, link);
                None
            }
            Icmpv6Type::NeighborSolicitation => {
                if let Some(ip) = neighbour::claimed_by_ndp(packet, icmp) {
                    self.note_claim(ip);
                }
                let addresses = &self.config.addresses;
                neighbour::handle_ndp(packet, icmp, addresses, self.config.mac, link);
                None
            }
            Icmpv6Type::DestinationUnreachable(_) => {
                self.handle_unreachable(icmp.payload(), now, link)
            }
            _ => None,
        }
    }

    fn handle_echo<'f>(
        &mut self,
        packet: &Packet<'f>,
        identifier: u16,
        sequence: u16,
        payload: &'f [u8],
        now: Instant,
        link: &mut impl Link,
    ) -> Option<Action<'f>> {
        let remote = packet.destination;
        let CoreConfig {
            addresses, policy, ..
        } = &self.config;
        if addresses.is_ours(remote) && policy.carries(Protocol::Echo) {
            let hardware = self.hardware_of(packet);
            icmp::send_echo_reply(
                hardware,
                link,
                remote,
                packet.source,
                identifier,
                sequence,
                payload,
            );
            return None;
        }
        let verdict = self.judge(Protocol::Echo, SocketAddr::new(remote, 0));
        let Verdict::Dial(to) = verdict else {
            self.reject(packet, verdict, link);
            return None;
        };
        let tuple = Tuple {
            protocol: Protocol::Echo,
            guest: packet.guest_addr(identifier),
            remote: Some(SocketAddr::new(remote, 0)),
        };
        let flow = match self.flows.find(&tuple) {
            Some(flow) => flow,
            None => self.insert_mapping(tuple, packet.source_mac, Role::Echo { remote }, now)?,
        };
        if let Some(mapping) = self.flows.mapping_mut(flow) {
            mapping.last_used = now;
        }
        Some(Action::SendEcho {
            flow,
            to: to.ip(),
            hops: packet.hops_left().count(),
            sequence,
            payload: Cow::Borrowed(payload),
        })
    }

    /// Whether it is for another host than us, who are a router to its sender.
    fn is_passed_on(&self, packet: &Packet) -> bool {
        let (protocol, port) = match &packet.transport {
            Transport::Tcp(tcp) => (Protocol::Tcp, tcp.destination_port()),
            Transport::Udp(udp) => (Protocol::Udp, udp.destination_port()),
            Transport::Icmpv4(icmp) => match icmp.icmp_type() {
                Icmpv4Type::EchoRequest(_) => (Protocol::Echo, 0),
                _ => return false,
            },
            Transport::Icmpv6(icmp) => match icmp.icmp_type() {
                Icmpv6Type::EchoRequest(_) => (Protocol::Echo, 0),
                _ => return false,
            },
        };
        let remote = packet.remote_addr(port);
        self.judge(protocol, remote) == Verdict::Dial(remote)
    }

    /// Tells the guest why a packet of it goes nowhere.
    fn reject(&mut self, packet: &Packet, verdict: Verdict, link: &mut impl Link) {
        let why = match verdict {
            Verdict::Prohibit => {
                self.counters.prohibited += 1;
                Unreachable::Prohibited
            }
            Verdict::Refuse => Unreachable::Port,
            Verdict::NoRoute => Unreachable::Network,
            _ => Unreachable::Host,
        };
        self.report(packet, why, link);
    }

    /// Says why `packet` does not arrive. Silent for one that was not meant for one host.
    fn report(&mut self, packet: &Packet, why: Unreachable, link: &mut impl Link) {
        let reporter = match why {
            Unreachable::Port => Some(packet.destination),
            _ => self.config.addresses.gateway(packet.source),
        };
        let is_broadcast = matches!(packet.destination, IpAddr::V4(ip) if ip.is_broadcast());
        if let Some(reporter) = reporter
            && !packet.ip.is_empty()
            && !packet.destination.is_multicast()
            && !is_broadcast
            && !packet.source.is_unspecified()
        {
            let hardware = self.hardware_of(packet);
            icmp::send_unreachable(hardware, link, reporter, packet.source, why, packet.ip);
        }
    }

    pub(super) fn hardware_of(&self, packet: &Packet) -> Hardware {
        Hardware {
            ours: self.config.mac,
            guests: packet.source_mac,
        }
    }
}
