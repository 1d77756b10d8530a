//! Networks of another shape than the usual one: one family alone, several addresses in one, and a
//! guest that has the host's own address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netstack::core::flow::Cause;
use netstack::core::policy::Policy;
use netstack::core::tcp::{NotPromoted, Promote};
use netstack::core::{CoreConfig, DialError};
use netstack::network::{Family as NetworkFamily, Network};
use smoltcp::socket::tcp::State;
use testbed::core_config;

use crate::packet::{ACK, Datagram, Packet, RST, SYN, Segment, echo};
use crate::peer::Peer;
use crate::world::{World, address, config_of, visit};

/// The ends of one family: guest, gateway, forwarder, a remote host.
struct Family {
    is_family: fn(&IpAddr) -> bool,
    guest: &'static str,
    gateway: &'static str,
    dns: &'static str,
    remote: &'static str,
    /// A remote host of the other family.
    foreign: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        is_family: IpAddr::is_ipv4,
        guest: "10.0.2.100",
        gateway: "10.0.2.2",
        dns: "10.0.2.3:53",
        remote: "198.51.100.7:443",
        foreign: "[2001:db8::7]:443",
    },
    Family {
        is_family: IpAddr::is_ipv6,
        guest: "fd00::100",
        gateway: "fd00::2",
        dns: "[fd00::3]:53",
        remote: "[2001:db8::7]:443",
        foreign: "198.51.100.7:443",
    },
];

/// A connection of the guest is dialled, accepted and carries bytes.
fn assert_dials(world: &mut World, guest: IpAddr, remote: &str) {
    let mut peer = Peer::new(remote);
    peer.guest.set_ip(guest);
    let flow = peer.open(world);
    world.send(peer.data(b"out"));
    assert_eq!(world.host_reads(flow), b"out");
    world.frames();
}

/// Who a client of a published port appears to be, and where in the guest it is led.
fn appearance(world: &mut World, client: &str) -> (SocketAddr, SocketAddr) {
    world.client_connects(client, 80).expect("accepted");
    let syn = world.segment();
    assert_eq!(syn.flags, SYN);
    (syn.source, syn.destination)
}

#[test]
fn one_family_is_enough() {
    for family in &FAMILIES {
        let mut world = World::new(config_of(family.is_family));
        let guest: IpAddr = address(family.guest);
        let resolver = address("192.0.2.53:53");
        world.core.set_resolvers(vec![resolver]);
        assert_dials(&mut world, guest, family.remote);

        let mut refused = Peer::new(family.remote);
        refused.guest.set_port(40_001);
        world.send(refused.syn());
        let (flow, _) = world.dialled();
        world.dial_ends(flow, Err(DialError::Refused));
        assert_eq!(world.segment().flags, RST | ACK);

        let question = Datagram {
            source: SocketAddr::new(guest, 5000),
            destination: address(family.dns),
            payload: b"\0\x01?".to_vec(),
        };
        world.send_frame(&question.frame());
        assert_eq!(world.sent().to, resolver);

        let client = appearance(&mut world, family.remote);
        assert_eq!(client, (address(family.remote), SocketAddr::new(guest, 80)));
        let loopback = appearance(&mut world, "127.0.0.1:1234");
        assert_eq!(loopback.0, SocketAddr::new(address(family.gateway), 1234));
        assert_eq!(loopback.1.ip(), guest);
    }
}

/// And there is no other family to try when the guest refuses it.
#[test]
fn a_client_of_the_family_that_is_missing_appears_as_the_gateway() {
    for family in &FAMILIES {
        let mut world = World::new(config_of(family.is_family));
        let flow = world.client_connects(family.foreign, 80).expect("accepted");
        let syn = world.segment();
        let gateway = SocketAddr::new(address(family.gateway), 443);
        assert_eq!((syn.source, syn.flags), (gateway, SYN));
        let mut service = Peer::new(&gateway.to_string());
        service.guest = SocketAddr::new(address(family.guest), 80);
        assert_eq!(syn.destination, service.guest);
        service.hear(&syn);
        world.send(Segment {
            seq: 0,
            ..service.rst()
        });
        assert_eq!(world.ended(), (flow, Cause::ResetByGuest));
        world.assert_quiet();
    }
}

/// The family that is missing has no gateway to speak for it, and nothing of it is dialled.
#[test]
fn the_family_that_is_missing_is_not_local() {
    for family in &FAMILIES {
        let addresses = config_of(family.is_family).addresses;
        let foreign: SocketAddr = address(family.foreign);
        assert!(!addresses.is_local(foreign.ip()));
        assert_eq!(addresses.gateway(foreign.ip()), None);
    }
}

#[test]
fn a_guest_may_have_several_addresses_in_one_family() {
    for [first, second] in [["10.0.2.100", "10.0.2.101"], ["fd00::100", "fd00::1:1"]] {
        let ips = [first, second].map(address::<IpAddr>);
        let mut config = core_config();
        config
            .addresses
            .guest
            .retain(|ip| ip.is_ipv4() != ips[0].is_ipv4());
        config.addresses.guest.extend(ips);
        let remote = match ips[0] {
            IpAddr::V4(_) => "198.51.100.7:443",
            IpAddr::V6(_) => "[2001:db8::7]:443",
        };
        let mut world = World::new(config);
        for guest in ips {
            assert_dials(&mut world, guest, remote);
        }
        assert_eq!(world.states(), [State::Established; 2]);
        // Clients are led to the first, and none can be taken for the second.
        let (from, to) = appearance(&mut world, &remote.replace("443", "50123"));
        assert_eq!(
            (from.ip(), to.ip()),
            (address::<SocketAddr>(remote).ip(), ips[0])
        );
        let (from, _) = appearance(&mut world, &SocketAddr::new(ips[1], 50124).to_string());
        let gateway = world.core.addresses().gateway(ips[1]);
        assert_eq!(Some(from.ip()), gateway);
    }
}

/// The guest has the host's address and network, in which others are. Its gateway is the router
/// there, or link-local.
fn shared() -> Network {
    let v4 =
        NetworkFamily::<Ipv4Addr>::isolated(address("192.0.2.10"), 24, address("192.0.2.1"), None);
    let v6 = NetworkFamily::<Ipv6Addr>::isolated(
        address("2001:db8:1::10"),
        64,
        address("fe80::1"),
        None,
    );
    Network {
        v4: Some(NetworkFamily {
            isolated: false,
            ..v4
        }),
        v6: Some(NetworkFamily {
            isolated: false,
            ..v6
        }),
    }
}

/// The same, but that the guest calls the host 192.0.2.254, and fe80::ff.
fn shared_with_names() -> Network {
    let Network { v4, v6 } = shared();
    Network {
        v4: v4.map(|v4| NetworkFamily {
            shared_host: Some(address("192.0.2.254")),
            ..v4
        }),
        v6: v6.map(|v6| NetworkFamily {
            shared_host: Some(address("fe80::ff")),
            ..v6
        }),
    }
}

fn on(network: &Network) -> CoreConfig {
    CoreConfig {
        addresses: network.addresses(),
        ..core_config()
    }
}

#[test]
fn a_guest_may_share_the_hosts_address() {
    for (own, neighbour, gateway) in [
        ("192.0.2.10", "192.0.2.20:443", "192.0.2.1"),
        ("2001:db8:1::10", "[2001:db8:1::20]:443", "fe80::1"),
    ] {
        let mut world = World::new(on(&shared()));
        let own: IpAddr = address(own);
        assert_dials(&mut world, own, neighbour);
        // A neighbour is a client like any other, the host itself is behind the gateway.
        let (from, to) = appearance(&mut world, &neighbour.replace("443", "50123"));
        assert_eq!(from.ip(), address::<SocketAddr>(neighbour).ip());
        assert_eq!(to, SocketAddr::new(own, 80));
        let (from, to) = appearance(&mut world, &SocketAddr::new(own, 50124).to_string());
        assert_eq!((from.ip(), to.ip()), (address(gateway), own));
        // What the guest sends to itself never gets here, and would not be let out.
        let mut itself = Peer::new(&SocketAddr::new(own, 443).to_string());
        itself.guest.set_ip(own);
        world.send(itself.syn());
        assert_eq!(world.dials, []);
        assert!(matches!(world.frame().packet, Packet::Icmp(_)));
    }
}

/// Linux answers a link-local client by a link-local address, where the service has bound none.
#[test]
fn a_service_may_answer_the_gateway_by_its_link_local_address() {
    let mut world = World::new(on(&shared()));
    let client = visit(address("[::1]:4000"));
    let (now, core, wire) = (world.now, &mut world.core, &mut world.wire);
    let flow = core.handle_published_datagram(client, 53, b"q", None, now, wire);
    let question = world.datagram();
    assert_eq!(question.source, address("[fe80::1]:4000"));
    assert_eq!(question.destination, address("[2001:db8:1::10]:53"));
    world.send_udp("[fe80::77]:53", "[fe80::1]:4000", b"a");
    let answer = world.sent();
    assert_eq!((Some(answer.flow), answer.to), (flow, client.client));
    // It is not what was asked.
    world.send_udp("[fe80::77]:54", "[fe80::1]:4000", b"a");
    assert!(world.datagrams.is_empty());
}

#[test]
fn an_alias_is_the_host_both_ways() {
    for (own, alias) in [
        ("192.0.2.10", "192.0.2.254"),
        ("2001:db8:1::10", "fe80::ff"),
    ] {
        let mut world = World::new(on(&shared_with_names()));
        let (own, alias) = (address::<IpAddr>(own), address::<IpAddr>(alias));
        let mut peer = Peer::new(&SocketAddr::new(alias, 443).to_string());
        peer.guest.set_ip(own);
        world.send(peer.syn());
        assert_eq!(world.dialled().1, SocketAddr::new(own, 443));
        let (from, to) = appearance(&mut world, &SocketAddr::new(own, 50124).to_string());
        assert_eq!((from.ip(), to.ip()), (alias, own));
        // It answers pings, being the host, and nobody is asked for that.
        world.send_frame(&echo(&own.to_string(), &alias.to_string(), 1, 1, b"?"));
        assert!(matches!(world.frame().packet, Packet::Icmp(reply) if reply.source == alias));
        assert!(world.datagrams.is_empty());
    }
}

#[test]
fn a_gateway_that_is_a_router_is_reached_and_a_link_local_one_is_us() {
    let mut world = World::new(on(&shared()));
    assert_dials(&mut world, address("192.0.2.10"), "192.0.2.1:80");
    world.send_frame(&echo("192.0.2.10", "192.0.2.1", 1, 1, b"?"));
    assert_eq!(world.sent().to.ip(), address::<IpAddr>("192.0.2.1"));

    let mut peer = Peer::new("[fe80::1]:80");
    peer.guest.set_ip(address("2001:db8:1::10"));
    world.send(peer.syn());
    assert_eq!(world.dials, []);
    assert_eq!(world.segment().flags & RST, RST);
    world.send_frame(&echo("2001:db8:1::10", "fe80::1", 1, 1, b"?"));
    assert!(matches!(world.frame().packet, Packet::Icmp(_)));
    assert!(world.datagrams.is_empty());
    // Other link-local addresses are nobody's.
    let mut peer = Peer::new("[fe80::2]:80");
    peer.guest.set_ip(address("2001:db8:1::10"));
    world.send(peer.syn());
    assert_eq!(world.dials, []);
    assert_eq!(world.core.counters().prohibited, 1);
}

/// The guest's kernel knows a link-local peer by the interface, which a promoted flow leaves.
#[test]
fn a_link_local_end_keeps_a_flow_here() {
    for (client, promoted) in [("[2001:db8::7]:50123", true), ("[::1]:50123", false)] {
        let mut world = World::new(CoreConfig {
            promote: Promote::Always,
            ..on(&shared_with_names())
        });
        world.client_connects(client, 80).expect("accepted");
        let (_, flow) = world.core.tcp_flows().next().expect("it is there");
        let is_off = flow.not_promoted() == NotPromoted::Off;
        assert_eq!(is_off, !promoted, "{client}");
    }
}

#[test]
fn protocols_can_be_switched_off() {
    let off = |policy| {
        World::new(CoreConfig {
            policy,
            ..core_config()
        })
    };
    for (policy, left) in [
        (
            Policy {
                no_tcp: true,
                ..Policy::default()
            },
            [false, true, true],
        ),
        (
            Policy {
                no_udp: true,
                ..Policy::default()
            },
            [true, false, true],
        ),
        (
            Policy {
                no_echo: true,
                ..Policy::default()
            },
            [true, true, false],
        ),
    ] {
        let mut world = off(policy);
        world.send(Peer::new("198.51.100.7:443").syn());
        let tcp = !world.dials.is_empty();
        world.send_udp("10.0.2.100:5000", "198.51.100.7:53", b"?");
        let udp = world.datagrams.pop_front().is_some();
        world.send_frame(&echo("10.0.2.100", "198.51.100.7", 1, 1, b"?"));
        let ping = world.datagrams.pop_front().is_some();
        assert_eq!([tcp, udp, ping], left);
        world.frames();
        // Nor does the gateway answer for itself.
        world.send_frame(&echo("10.0.2.100", "10.0.2.2", 1, 1, b"?"));
        let Packet::Icmp(answer) = world.frame().packet else {
            panic!("no answer of ICMP");
        };
        assert_eq!(answer.message[0], if ping { 0 } else { 3 });
    }
}

#[test]
fn encrypted_queries_go_to_the_first_resolver_where_that_is_wanted() {
    for encrypted_dns in [false, true] {
        let mut config = core_config();
        config.policy.encrypted_dns = encrypted_dns;
        let mut world = World::new(config);
        let resolvers = ["192.0.2.1:53", "192.0.2.2:53"];
        world.core.set_resolvers(resolvers.map(address).to_vec());
        world.send(Peer::new("10.0.2.3:853").syn());
        world.send_udp("10.0.2.100:5000", "10.0.2.3:853", b"?");
        let (dials, sent) = (world.dials.pop_front(), world.datagrams.pop_front());
        let to = encrypted_dns.then(|| address("192.0.2.1:853"));
        assert_eq!(dials.map(|(_, to)| to), to);
        assert_eq!(sent.map(|sent| sent.to), to);
    }
}
