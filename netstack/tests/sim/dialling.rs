//! From the guest's SYN to the end of the dial: each thing that can happen in between, and each
//! order.

use netstack::core::flow::Cause;
use netstack::core::icmp::Unreachable;
use netstack::core::{DialError, Duration, MAX_DIALS, Share};
use smoltcp::socket::tcp::State;

use crate::packet::{ACK, FIN, Packet, RST, SYN, Segment};
use crate::peer::{ISS, Peer};
use crate::world::World;

const REMOTES: [&str; 2] = ["198.51.100.7:443", "[2001:db8::7]:443"];

#[test]
fn a_syn_is_answered_when_the_host_has_answered() {
    for remote in REMOTES {
        let mut world = World::default();
        let mut guest = Peer::new(remote);
        world.send(guest.syn());
        world.assert_quiet();
        let (flow, to) = world.dialled();
        assert_eq!(to, guest.remote);
        world.wait(Duration::from_secs(5));
        world.assert_quiet();
        world.dial_ends(flow, Ok(()));
        assert_eq!(guest.hear(&world.segment()), SYN | ACK);
        world.send(guest.ack());
        world.send(guest.data(b"hello"));
        assert_eq!(world.host_reads(flow), b"hello");
        world.host_sends(flow, b"welcome");
        let reply = world.segment();
        guest.hear(&reply);
        assert_eq!(reply.payload, b"welcome");
        assert_eq!(world.core.counters().connections, 1);
    }
}

#[test]
fn a_repeated_syn_is_the_same_dial() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTES[0]);
    let syn = guest.syn();
    world.send(syn.clone());
    let (flow, _) = world.dialled();
    world.send(syn.clone());
    world.send(syn);
    assert_eq!(world.dials, []);
    world.dial_ends(flow, Ok(()));
    assert_eq!(guest.hear(&world.segment()), SYN | ACK);
}

#[test]
fn a_repeated_syn_after_the_answer_does_no_harm() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTES[0]);
    let syn = guest.syn();
    world.send(syn.clone());
    let (flow, _) = world.dialled();
    world.dial_ends(flow, Ok(()));
    guest.hear(&world.segment());
    world.send(syn.clone());
    world.frames();
    assert_eq!(world.states(), [State::SynReceived]);
    world.send(guest.ack());
    // A late copy, when the connection is open already.
    world.send(syn);
    world.frames();
    world.send(guest.data(b"x"));
    assert_eq!(world.host_reads(flow), b"x");
}

#[test]
fn a_lost_answer_is_repeated() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTES[0]);
    world.send(guest.syn());
    let (flow, _) = world.dialled();
    world.dial_ends(flow, Ok(()));
    let answer = world.segment();
    world.wait(Duration::from_millis(1100));
    assert_eq!(world.segment(), answer);
}

#[test]
fn a_syn_with_another_number_while_dialling_starts_over() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTES[0]);
    world.send(guest.syn());
    let (flow, _) = world.dialled();
    guest.snd_nxt = 123_456;
    world.send(guest.syn());
    assert_eq!(world.dials, [], "the dial serves both");
    world.dial_ends(flow, Ok(()));
    assert_eq!(guest.hear(&world.segment()), SYN | ACK);
}

#[test]
fn a_reset_while_dialling_cancels_the_dial_and_late_news_are_ignored() {
    for result in [Ok(()), Err(DialError::Refused), Err(DialError::Silent)] {
        let mut world = World::default();
        let mut guest = Peer::new(REMOTES[0]);
        world.send(guest.syn());
        let (flow, _) = world.dialled();
        world.send(guest.rst());
        assert_eq!(world.ended(), (flow, Cause::Cancelled));
        world
            .core
            .handle_dialled(flow, result, world.now, &mut world.wire);
        world.turn();
        world.assert_quiet();
        assert_eq!(world.closed, []);
        // The same tuple again is another flow, which the old news must not touch.
        let mut again = Peer::new(REMOTES[0]);
        world.send(again.syn());
        let (next, _) = world.dialled();
        assert_ne!(next, flow);
        world
            .core
            .handle_dialled(flow, result, world.now, &mut world.wire);
        world.turn();
        world.assert_quiet();
        world.dial_ends(next, Ok(()));
        assert_eq!(again.hear(&world.segment()), SYN | ACK);
    }
}

#[test]
fn other_segments_while_dialling_wait_for_the_dial() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTES[0]);
    world.send(guest.syn());
    let (flow, _) = world.dialled();
    for flags in [ACK, FIN | ACK, SYN | ACK] {
        world.send(Segment {
            flags,
            ..guest.ack()
        });
    }
    world.assert_quiet();
    assert_eq!(world.dials, []);
    world.dial_ends(flow, Ok(()));
    assert_eq!(guest.hear(&world.segment()), SYN | ACK);
}

#[test]
fn refused_is_a_reset_that_the_guest_believes() {
    for remote in REMOTES {
        let mut world = World::default();
        let mut guest = Peer::new(remote);
        world.send(guest.syn());
        let (flow, _) = world.dialled();
        world.dial_ends(flow, Err(DialError::Refused));
        let reset = world.segment();
        assert_eq!(reset.flags, RST | ACK);
        // RFC 9293 3.10.7.3: in SYN-SENT only a RST that acknowledges the SYN counts.
        assert_eq!((reset.seq, reset.ack), (0, ISS + 1));
        assert_eq!(
            (reset.source, reset.destination),
            (guest.remote, guest.guest)
        );
        assert_eq!(world.ended(), (flow, Cause::DialFailed));
    }
}

#[test]
fn refused_acknowledges_the_latest_syn() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTES[0]);
    world.send(guest.syn());
    let (flow, _) = world.dialled();
    guest.snd_nxt = 5;
    world.send(guest.syn());
    world.dial_ends(flow, Err(DialError::Refused));
    assert_eq!(world.segment().ack, 6);
}

#[test]
fn unreachable_is_icmp_that_quotes_the_syn() {
    let cases = [
        (Unreachable::Network, (3, 0), (1, 0)),
        (Unreachable::Host, (3, 1), (1, 3)),
        (Unreachable::Port, (3, 3), (1, 4)),
        (Unreachable::Prohibited, (3, 13), (1, 1)),
        (Unreachable::TooBig { mtu: 1400 }, (3, 4), (2, 0)),
    ];
    for (why, v4, v6) in cases {
        for (remote, expected) in [(REMOTES[0], v4), (REMOTES[1], v6)] {
            let mut world = World::default();
            let mut guest = Peer::new(remote);
            let syn = guest.syn();
            world.send(syn.clone());
            let (flow, _) = world.dialled();
            world.dial_ends(flow, Err(DialError::Unreachable(why)));
            let Packet::Icmp(icmp) = world.frame().packet else {
                panic!("ICMP is expected");
            };
            assert_eq!((icmp.message[0], icmp.message[1]), expected, "{why:?}");
            assert_eq!(icmp.destination, guest.guest.ip());
            let packet = &syn.frame()[10 + 14..];
            assert_eq!(&icmp.message[8..], packet, "the SYN, from its IP header on");
            assert_eq!(world.ended(), (flow, Cause::DialFailed));
        }
    }
}

#[test]
fn silent_stays_silent_and_the_next_syn_dials_again() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTES[0]);
    let syn = guest.syn();
    world.send(syn.clone());
    let (flow, _) = world.dialled();
    world.dial_ends(flow, Err(DialError::Silent));
    world.wait(Duration::from_secs(60));
    world.assert_quiet();
    assert_eq!(world.ended(), (flow, Cause::DialFailed));
    world.send(syn);
    let (flow, _) = world.dialled();
    world.dial_ends(flow, Ok(()));
    assert_eq!(guest.hear(&world.segment()), SYN | ACK);
}

#[test]
fn a_dial_ends_once() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTES[0]);
    let flow = guest.open(&mut world);
    for result in [Ok(()), Err(DialError::Refused), Err(DialError::Silent)] {
        world
            .core
            .handle_dialled(flow, result, world.now, &mut world.wire);
        world.turn();
        world.assert_quiet();
    }
    world.send(guest.data(b"still open"));
    assert_eq!(world.host_reads(flow), b"still open");
}

#[test]
fn tuples_that_differ_in_one_number_are_different_flows() {
    let mut world = World::default();
    let base = Peer::new(REMOTES[0]);
    let mut peers = [
        base.clone(),
        Peer {
            guest: "10.0.2.100:40001".parse().unwrap(),
            ..base.clone()
        },
        Peer {
            guest: "10.0.2.101:40000".parse().unwrap(),
            ..base.clone()
        },
        Peer {
            remote: "198.51.100.7:444".parse().unwrap(),
            ..base.clone()
        },
        Peer {
            remote: "198.51.100.8:443".parse().unwrap(),
            ..base
        },
    ];
    let flows: Vec<_> = peers.iter_mut().map(|peer| peer.open(&mut world)).collect();
    for (index, (peer, flow)) in peers.iter_mut().zip(&flows).enumerate() {
        world.send(peer.data(&[index as u8]));
        assert_eq!(world.host_reads(*flow), [index as u8]);
    }
}

#[test]
fn what_belongs_to_no_flow_is_reset() {
    for remote in REMOTES {
        let mut world = World::default();
        let guest = Peer {
            snd_nxt: 100,
            rcv_nxt: 900,
            ..Peer::new(remote)
        };
        // RFC 9293 3.10.7.1: with ACK, the RST takes its number from there.
        world.send(guest.ack());
        let reset = world.segment();
        assert_eq!((reset.flags & RST, reset.seq), (RST, 900));
        world.send(Segment {
            flags: FIN | ACK,
            ..guest.ack()
        });
        assert_eq!(world.segment().seq, 900);
        world.send(guest.rst());
        world.assert_quiet();
        assert_eq!(world.dials, []);
    }
}

#[test]
fn port_zero_is_refused_without_a_dial() {
    let mut world = World::default();
    let mut guest = Peer::new("198.51.100.7:0");
    world.send(guest.syn());
    let mut from_zero = Peer::new(REMOTES[0]);
    from_zero.guest.set_port(0);
    world.send(from_zero.syn());
    assert_eq!(world.dials, []);
    assert_eq!(world.states(), []);
}

/// A guest that dials without end (a scanner) must not keep others from dialling: the oldest dial
/// gives way.
#[test]
fn dials_are_limited_and_counted() {
    let mut world = World::default();
    let syn = |port| {
        let mut guest = Peer::new(REMOTES[0]);
        guest.guest.set_port(port);
        guest.syn()
    };
    let mut flows = Vec::new();
    for index in 0..MAX_DIALS + 2 {
        world.send(syn(1024 + index as u16));
        let (flow, _) = world.dialled();
        flows.push(flow);
    }
    assert_eq!(world.core.usage(Share::Waiting).reached, 0);
    assert_eq!(world.core.usage(Share::Dials).reached, 2);
    assert_eq!(world.core.limit_reached(), 2);
    let cancelled = [(flows[0], Cause::Cancelled), (flows[1], Cause::Cancelled)];
    assert_eq!(world.closed, cancelled);
    world.assert_quiet();
    // Each way for a dial to end makes room for one more, and ended dials are not given up again.
    let ends = [Ok(()), Err(DialError::Refused), Err(DialError::Silent)];
    for (flow, result) in flows[2..].iter().zip(ends) {
        world.dial_ends(*flow, result);
    }
    world.send(Segment {
        flags: RST,
        ..syn(1024 + 5)
    });
    world.closed.clear();
    for port in 60_000..60_005 {
        world.send(syn(port));
    }
    assert_eq!(world.core.limit_reached(), 3);
    assert_eq!(world.ended(), (flows[6], Cause::Cancelled));
    assert_eq!(world.states().len(), MAX_DIALS + 1);
}

/// A SYN that the engine cannot read must not leave a flow behind that waits for another one for
/// ever.
#[test]
fn a_syn_with_broken_options_leaves_nothing_behind() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTES[0]);
    let mut frame = Segment {
        mss: Some(1460),
        scale: Some(7),
        ..guest.syn()
    }
    .frame();
    // The MSS option claims to be longer than the header; the virtio header vouches for the sum.
    frame[10 + 14 + 20 + 20 + 1] = 200;
    frame[0] = 1;
    world.send_frame(&frame);
    while let Some((flow, _)) = world.dials.pop_front() {
        world.dial_ends(flow, Ok(()));
    }
    world.wait(Duration::from_secs(120));
    assert_eq!(world.states(), []);
}
