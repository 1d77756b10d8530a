//! The ends of connections: FIN and RST from each side in each state, both halves in each order,
//! and what becomes of bytes that were on their way.

use netstack::core::flow::Cause;
use netstack::core::tcp::Promote;
use netstack::core::{CoreConfig, Duration};
use smoltcp::socket::tcp::State;
use testbed::core_config;

use crate::host::Host;
use crate::packet::{ACK, FIN, RST, SYN, Segment};
use crate::peer::{Peer, STATES};
use crate::world::World;

const REMOTE: &str = "198.51.100.7:443";

#[test]
fn the_guests_fin_in_each_state() {
    for state in STATES {
        let mut world = World::default();
        let mut guest = Peer::new(REMOTE);
        let flow = guest.open_into(&mut world, state);
        let repeats = matches!(state, State::Closing | State::CloseWait | State::LastAck);
        if repeats {
            // It has been said already; the core hears it again.
            guest.snd_nxt -= 1;
        }
        world.send(guest.fin());
        world.wait(Duration::from_millis(50));
        let answers = world.segments();
        assert!(
            answers.iter().all(|answer| answer.flags & RST == 0),
            "{state:?}: {answers:?}"
        );
        let acknowledged = answers.last().is_some_and(|last| last.ack == guest.snd_nxt);
        assert!(acknowledged, "{state:?}: {answers:?}");
        match state {
            State::FinWait1 | State::FinWait2 => {
                assert_eq!(world.ended(), (flow, Cause::Finished), "{state:?}");
            }
            // The repeated FIN acknowledges ours.
            State::Closing | State::LastAck => {
                world.send(guest.ack());
                assert_eq!(world.ended(), (flow, Cause::Finished), "{state:?}");
            }
            _ => {
                assert_eq!(world.states(), [State::CloseWait], "{state:?}");
                assert!(world.host(flow).has_guest_fin(), "{state:?}");
            }
        }
    }
}

#[test]
fn the_remotes_fin_in_each_state() {
    for state in [State::SynReceived, State::Established, State::CloseWait] {
        let mut world = World::default();
        let mut guest = Peer::new(REMOTE);
        let flow = guest.open_into(&mut world, state);
        world.host_finishes(flow);
        if state == State::SynReceived {
            // The handshake first.
            world.assert_quiet();
            world.send(guest.ack());
        }
        assert_eq!(guest.hear(&world.segment()), FIN | ACK, "{state:?}");
        world.send(guest.ack());
        if state == State::CloseWait {
            assert_eq!(world.ended(), (flow, Cause::Finished));
        } else {
            assert_eq!(world.states(), [State::FinWait2]);
        }
    }
}

#[test]
fn the_guests_rst_in_each_state() {
    for state in STATES {
        for hear_all in [true, false] {
            let mut world = World::default();
            let mut guest = Peer::new(REMOTE);
            let flow = guest.open_into(&mut world, state);
            // A process that dies resets without an ACK number, or with an old one.
            let rst = match hear_all {
                true => guest.rst(),
                false => Segment {
                    flags: RST,
                    ack: 0,
                    ..guest.rst()
                },
            };
            world.send(rst);
            let cause = match state {
                // Both have finished before.
                State::Closing | State::LastAck => Cause::Finished,
                _ => Cause::ResetByGuest,
            };
            assert_eq!(world.ended(), (flow, cause), "{state:?}");
            world.wait(Duration::from_secs(60));
            world.assert_quiet();
        }
    }
}

#[test]
fn a_rst_outside_the_window_is_ignored_in_each_state() {
    for state in STATES {
        let mut world = World::default();
        let mut guest = Peer::new(REMOTE);
        guest.open_into(&mut world, state);
        world.send(Segment {
            seq: guest.snd_nxt.wrapping_sub(100_000),
            ..guest.rst()
        });
        assert_eq!(world.states(), [state]);
        assert_eq!(world.closed, []);
    }
}

#[test]
fn the_remotes_rst_reaches_the_guest() {
    for state in [State::SynReceived, State::Established, State::CloseWait] {
        let mut world = World::default();
        let mut guest = Peer::new(REMOTE);
        let flow = guest.open_into(&mut world, state);
        world.host_resets(flow);
        if state == State::SynReceived && world.wire.frames.is_empty() {
            world.send(guest.ack());
        }
        let rst = world.segment();
        assert_eq!(guest.hear(&rst) & RST, RST, "{state:?}");
        assert_eq!(world.ended(), (flow, Cause::ResetByHost), "{state:?}");
        world.wait(Duration::from_secs(60));
        world.assert_quiet();
    }
}

/// After its FIN a remote that goes away is noticed when the guest sends more.
#[test]
fn the_remotes_rst_after_its_fin_meets_the_guests_next_bytes() {
    for state in [State::FinWait1, State::FinWait2] {
        let mut world = World::default();
        let mut guest = Peer::new(REMOTE);
        let flow = guest.open_into(&mut world, state);
        world.host_resets(flow);
        world.send(guest.data(b"anyone there?"));
        let answers = world.segments();
        let rst = answers.last().expect("an answer");
        assert_eq!(rst.flags & RST, RST, "{state:?}: {answers:?}");
        assert_eq!(rst.seq, guest.rcv_nxt, "{state:?}");
        assert_eq!(world.ended(), (flow, Cause::ResetByHost));
    }
}

#[test]
fn the_remotes_last_bytes_before_a_rst_arrive() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTE);
    let flow = guest.open(&mut world);
    world.host(flow).write(b"last words");
    world.host_resets(flow);
    let segments = world.segments();
    let said: Vec<u8> = segments.iter().flat_map(|s| s.payload.clone()).collect();
    assert!(
        b"last words".starts_with(&said),
        "nothing that was not said: {segments:?}"
    );
    assert_eq!(segments.last().map(|s| s.flags & RST), Some(RST));
}

#[test]
fn half_closed_by_the_guest_the_remote_goes_on() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTE);
    let flow = guest.open(&mut world);
    world.send(guest.data(b"question"));
    world.send(guest.fin());
    assert_eq!(world.host_reads(flow), b"question");
    assert!(world.host(flow).is_at_end());
    world.wait(Duration::from_secs(3600));
    world.frames();
    for round in 0..5u8 {
        world.host_sends(flow, &[round; 3000]);
        let mut heard = Vec::new();
        for segment in world.segments() {
            guest.hear(&segment);
            heard.extend(segment.payload);
        }
        assert_eq!(heard, [round; 3000]);
        world.send(guest.ack());
    }
    world.host_finishes(flow);
    assert_eq!(guest.hear(&world.segment()), FIN | ACK);
    world.send(guest.ack());
    assert_eq!(world.ended(), (flow, Cause::Finished));
}

#[test]
fn half_closed_by_the_remote_the_guest_goes_on() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTE);
    let flow = guest.open_into(&mut world, State::FinWait2);
    world.wait(Duration::from_secs(3600));
    world.assert_quiet();
    for round in 0..5u8 {
        world.send(guest.data(&[round; 1000]));
        assert_eq!(world.host_reads(flow), [round; 1000]);
        world.wait(Duration::from_millis(20));
        assert_eq!(guest.hear(&world.segment()), ACK);
    }
    world.send(guest.fin());
    assert_eq!(guest.hear(&world.segment()), ACK);
    assert_eq!(world.ended(), (flow, Cause::Finished));
    assert!(world.host(flow).is_at_end());
}

#[test]
fn fins_that_cross_close_the_connection() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTE);
    let flow = guest.open_into(&mut world, State::Closing);
    world.send(guest.ack());
    assert_eq!(world.ended(), (flow, Cause::Finished));
    assert!(world.host(flow).is_at_end());
    assert_eq!(world.states(), []);
}

#[test]
fn a_fin_with_data_is_both() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTE);
    let flow = guest.open(&mut world);
    let last = guest.data(b"all there is");
    world.send(Segment {
        flags: FIN | ACK,
        ..last
    });
    assert_eq!(world.host_reads(flow), b"all there is");
    assert!(world.host(flow).is_at_end());
}

/// The guest has closed and forgotten the connection while a slow remote has read nothing yet.
#[test]
fn bytes_before_the_guests_fin_outlive_the_guests_connection() {
    for remote_first in [true, false] {
        let mut world = World::default();
        let mut guest = Peer::new(REMOTE);
        let (flow, _) = guest.dial(&mut world, Host::with_capacity(1000));
        let bytes: Vec<u8> = (0..200_000u32).map(|index| index as u8).collect();
        if remote_first {
            world.host_finishes(flow);
            world.send(guest.ack());
            guest.hear(&world.segment());
        }
        for chunk in bytes.chunks(1400) {
            world.send(guest.data(chunk));
        }
        world.send(guest.fin());
        if !remote_first {
            world.host_finishes(flow);
        }
        world.wait(Duration::from_millis(100));
        // Whatever is still to be said to the guest has been said; it acknowledges.
        let last = world.segments().pop().expect("an answer");
        assert_eq!(last.ack, guest.snd_nxt);
        guest.rcv_nxt = last.seq + last.seg_len();
        world.send(guest.ack());
        // A stray segment of ours may have met a kernel that knows the connection no more.
        world.send(guest.rst());
        world.wait(Duration::from_secs(600));
        world.frames();

        let mut arrived = Vec::new();
        while !world.host(flow).is_at_end() {
            let read = world.host_reads(flow);
            assert!(!read.is_empty(), "{} of 200000", arrived.len());
            arrived.extend(read);
        }
        assert!(arrived == bytes, "{} of 200000 bytes", arrived.len());
        assert_eq!(world.ended(), (flow, Cause::Finished));
        world.assert_quiet();
    }
}

/// As above, and the guest takes the port again for a new connection: the old bytes still arrive,
/// the new connection works when they have.
#[test]
fn a_port_reused_while_bytes_wait_costs_none() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTE);
    let (flow, _) = guest.dial(&mut world, Host::with_capacity(1000));
    world.host_finishes(flow);
    world.send(guest.ack());
    guest.hear(&world.segment());
    world.send(guest.data(&[1; 5000]));
    world.send(guest.fin());
    world.wait(Duration::from_millis(100));
    world.frames();

    let mut again = Peer {
        snd_nxt: 9_000_000,
        ..Peer::new(REMOTE)
    };
    let syn = again.syn();
    let mut arrived = Vec::new();
    for second in 0..30 {
        world.send(syn.clone());
        for answer in world.segments() {
            // A kernel in SYN-SENT resets what does not acknowledge its SYN (RFC 9293 3.10.7.3).
            if answer.flags & (SYN | RST) == 0 && answer.ack != syn.seq + 1 {
                world.send(Segment {
                    flags: RST,
                    seq: answer.ack,
                    ..syn.clone()
                });
            }
        }
        if second > 5 {
            arrived.extend(world.host_reads(flow));
        }
        if let Some((next, _)) = world.dials.pop_front() {
            assert_eq!(arrived.len(), 5000);
            world.dial_ends(next, Ok(()));
            assert_eq!(again.hear(&world.segment()), SYN | ACK);
            return;
        }
        world.wait(Duration::from_secs(1));
    }
    panic!("the port stays blocked; {} of 5000 bytes", arrived.len());
}

#[test]
fn a_port_is_free_for_reuse_as_soon_as_both_have_finished() {
    for remote_first in [true, false] {
        let mut world = World::default();
        let mut previous = None;
        for round in 0..3u8 {
            let mut guest = Peer {
                snd_nxt: 1000 * u32::from(round),
                ..Peer::new(REMOTE)
            };
            let flow = guest.open(&mut world);
            assert_ne!(previous.replace(flow), Some(flow));
            world.send(guest.data(&[round]));
            assert_eq!(
                world.host_reads(flow),
                [round],
                "nothing of the flow before"
            );
            if remote_first {
                world.host_finishes(flow);
                guest.hear(&world.segment());
                world.send(guest.fin());
            } else {
                world.send(guest.fin());
                world.host_finishes(flow);
                let answers = world.segments();
                answers.iter().for_each(|answer| {
                    guest.hear(answer);
                });
                world.send(guest.ack());
            }
            world.frames();
            assert_eq!(world.ended(), (flow, Cause::Finished));
        }
    }
}

/// A guest whose kernel has forgotten a connection (FIN-WAIT-2 timed out, a restored container)
/// opens it anew. Whether the core challenges it or believes it, the new connection must come about
/// within its first few SYNs.
#[test]
fn a_port_reused_while_the_flow_is_open_gets_a_new_connection() {
    for state in STATES {
        let mut world = World::default();
        let mut old = Peer::new(REMOTE);
        let flow = old.open_into(&mut world, state);
        let mut guest = Peer {
            snd_nxt: 3_000_000_000,
            ..Peer::new(REMOTE)
        };
        let syn = guest.syn();
        for _ in 0..5 {
            world.send(syn.clone());
            for answer in world.segments() {
                if answer.flags & (SYN | RST) == 0 && answer.ack != syn.seq + 1 {
                    world.send(Segment {
                        flags: RST,
                        seq: answer.ack,
                        ..syn.clone()
                    });
                }
            }
            if !world.dials.is_empty() {
                break;
            }
            world.wait(Duration::from_secs(1));
        }
        assert!(!world.dials.is_empty(), "{state:?}: no new connection");
        let (next, _) = world.dialled();
        assert_eq!(world.ended(), (flow, Cause::ResetByGuest), "{state:?}");
        world.dial_ends(next, Ok(()));
        let answer = world.segments().pop().expect("an answer");
        assert_eq!(guest.hear(&answer), SYN | ACK, "{state:?}");
        world.send(guest.ack());
        world.send(guest.data(b"new"));
        assert_eq!(world.host_reads(next), b"new");
    }
}

#[test]
fn our_fin_is_repeated_until_it_is_acknowledged() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTE);
    let flow = guest.open_into(&mut world, State::FinWait1);
    world.wait(Duration::from_secs(10));
    let fins = world.segments();
    assert!((2..=4).contains(&fins.len()), "{fins:?}");
    assert!(
        fins.iter()
            .all(|fin| fin.flags == FIN | ACK && fin.seq == guest.rcv_nxt - 1)
    );
    world.send(guest.fin());
    assert_eq!(world.ended(), (flow, Cause::Finished));
}

/// A flow that has come to rest is still the engine's until its numbers are taken.
#[test]
fn a_fin_keeps_a_resting_flow_in_the_engine() {
    let mut world = World::new(CoreConfig {
        promote: Promote::Always,
        ..core_config()
    });
    let mut guest = Peer::new(REMOTE);
    let flow = guest.open(&mut world);
    world.now = world.core.poll_deadline().expect("silence is waited for");
    world.core.handle_deadline(world.now, &mut world.wire);
    world.serve();
    world.ingest(&guest.data(b"last words").frame());
    world.ingest(&guest.fin().frame());
    assert_eq!(world.core.poll_promotion(), None);
    assert_eq!(world.core.counters().promotions_failed, 1, "it rested");
    world.turn();
    world.wait(Duration::from_millis(50));
    assert_eq!(world.segments().pop().expect("ACK").ack, guest.snd_nxt);
    assert_eq!(world.host_reads(flow), b"last words");
    assert!(world.host(flow).is_at_end());
}
