//! Windows: what happens when one side takes nothing, takes everything at once, or the device is
//! full.

use netstack::core::flow::Cause;
use netstack::core::tcp::Promote;
use netstack::core::{CoreConfig, Duration};
use smoltcp::socket::tcp::State;
use testbed::core_config;

use crate::host::Host;
use crate::packet::{ACK, FIN, Segment};
use crate::peer::{MSS, Peer};
use crate::world::World;

const REMOTE: &str = "198.51.100.7:443";
/// The largest window at a shift of 4.
const BUFFER_LEN: usize = 65_535 << 4;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index % 251) as u8).collect()
}

#[test]
fn a_guest_with_a_closed_window_is_probed_and_loses_nothing() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTE);
    let flow = guest.open(&mut world);
    guest.window = 0;
    world.send(guest.ack());
    let bytes = pattern(20_000);
    world.host_sends(flow, &bytes);
    world.wait(Duration::from_secs(60));
    let probes = world.segments();
    assert!(
        (1..=10).contains(&probes.len()),
        "{} segments in a minute",
        probes.len()
    );
    for probe in &probes {
        assert!(probe.payload.len() <= 1, "{probe:?}");
        assert_eq!(probe.seq, guest.rcv_nxt);
    }
    guest.window = 65_535;
    world.send(guest.ack());
    let mut heard = Vec::new();
    for segment in world.segments() {
        guest.hear(&segment);
        heard.extend(segment.payload);
    }
    assert!(heard == bytes, "{} of 20000 bytes", heard.len());
}

#[test]
fn a_guest_that_opens_its_window_bit_by_bit_gets_just_that() {
    let mut world = World::default();
    let mut guest = Peer {
        scale: Some(0),
        ..Peer::new(REMOTE)
    };
    let flow = guest.open(&mut world);
    guest.window = 0;
    world.send(guest.ack());
    let bytes = pattern(5_000);
    world.host_sends(flow, &bytes);
    world.frames();
    let mut heard = Vec::new();
    while heard.len() < bytes.len() {
        guest.window = 700;
        world.send(guest.ack());
        let segments = world.segments();
        let count: usize = segments.iter().map(|segment| segment.payload.len()).sum();
        assert!(0 < count && count <= 700, "{count} bytes into 700");
        for segment in segments {
            guest.hear(&segment);
            heard.extend(segment.payload);
        }
    }
    assert_eq!(heard, bytes);
}

#[test]
fn a_slow_remote_closes_the_window_and_opens_it_again() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTE);
    let (flow, answer) = guest.dial(&mut world, Host::with_capacity(10_000));
    let scale = answer.scale.expect("offered, so answered");
    world.send(guest.ack());

    let bytes = pattern(2 * BUFFER_LEN);
    let (mut said, mut window) = (0, 60_000);
    // As much as the core lets in while the remote reads nothing.
    while window > 0 {
        let count = window.min(1400).min(bytes.len() - said);
        world.send(guest.data(&bytes[said..said + count]));
        said += count;
        world.wait(Duration::from_millis(15));
        let answer = world.segments().pop().expect("an ACK");
        assert_eq!(answer.ack, guest.snd_nxt);
        window = usize::from(answer.window) << scale;
    }
    assert!(
        (BUFFER_LEN..=BUFFER_LEN + 10_000).contains(&said),
        "{said} bytes let in"
    );
    world.wait(Duration::from_secs(600));
    world.assert_quiet();
    // The remote reads; the core says so without being asked.
    let mut arrived = Vec::new();
    let mut opened = false;
    while arrived.len() < said {
        arrived.extend(world.host_reads(flow));
        let updates = world.segments();
        opened |= updates
            .last()
            .is_some_and(|update| update.window > 0 && update.ack == guest.snd_nxt);
    }
    assert!(opened, "a window update");
    assert!(arrived == bytes[..said]);
    world.send(guest.data(&bytes[said..said + 1400]));
    assert_eq!(world.host_reads(flow), &bytes[said..said + 1400]);
}

/// A guest may take the unscaled window of the SYN-ACK for a scaled one and fill all of it at once.
#[test]
fn a_whole_window_before_the_first_ack_is_taken() {
    for beyond in [0, 1, 65_000] {
        let mut world = World::new(CoreConfig {
            mtu: 65_520,
            ..core_config()
        });
        let mut guest = Peer {
            mss: Some(65_480),
            ..Peer::new(REMOTE)
        };
        let (flow, _) = guest.dial(&mut world, Host::with_capacity(10));
        let bytes = pattern(BUFFER_LEN + beyond);
        for chunk in bytes.chunks(65_480) {
            world.ingest(&guest.data(chunk).frame());
        }
        world.turn();
        let mut arrived = Vec::new();
        loop {
            let read = world.host_reads(flow);
            if read.is_empty() {
                break;
            }
            arrived.extend(read);
        }
        assert!(arrived == bytes[..BUFFER_LEN], "{} bytes", arrived.len());
        assert_eq!(world.states(), [State::Established]);
    }
}

/// The trap: smoltcp's zero-window probe is armed, and our FIN is acknowledged without the window
/// opening.
#[test]
fn fin_wait_2_with_a_closed_window_comes_to_rest() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTE);
    let flow = guest.open(&mut world);
    world.host_sends(flow, &pattern(4_000));
    world.host_finishes(flow);
    let mut segments = world.segments();
    assert_eq!(segments.pop().map(|last| last.flags & FIN), Some(FIN));
    let una = guest.rcv_nxt;
    guest.window = 0;
    // A part, with a closed window: the probe is armed. Then everything, FIN included.
    for acknowledged in [1_000, 4_001] {
        guest.rcv_nxt = una + acknowledged;
        world.send(guest.ack());
    }
    let at_once = world.frames().len();
    assert!(at_once <= 100, "{at_once} frames at once");
    world.wait(Duration::from_secs(60));
    let later = world.frames().len();
    assert!(later <= 70, "{later} frames in a minute");
}

#[test]
fn a_full_device_loses_nothing() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTE);
    let flow = guest.open(&mut world);
    world.wire.full = true;
    let bytes = pattern(200_000);
    world.host_sends(flow, &bytes);
    world.host_finishes(flow);
    world.assert_quiet();
    world.now += Duration::from_secs(3);
    world.turn();
    world.assert_quiet();
    world.wire.full = false;
    world.turn();
    let segments = world.segments();
    let mut heard = Vec::new();
    for segment in &segments {
        guest.hear(segment);
        heard.extend_from_slice(&segment.payload);
    }
    assert!(heard == bytes, "{} of 200000 bytes", heard.len());
    assert_eq!(segments.last().map(|last| last.flags & FIN), Some(FIN));
}

/// More than a window in both directions at once, each side reading only when it has written.
#[test]
fn both_directions_full_is_no_deadlock() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTE);
    let flow = guest.open(&mut world);
    let bytes = pattern(100_000);
    guest.window = 4_000 >> 4;
    world.send(guest.ack());
    let (mut up, mut down, mut offered, mut said) = (Vec::new(), Vec::new(), 0, 0);
    for _ in 0..2_000 {
        if offered < bytes.len() {
            offered += world.host(flow).write(&bytes[offered..]);
            world.turn();
        }
        if said < bytes.len() {
            let chunk = &bytes[said..bytes.len().min(said + usize::from(MSS))];
            said += chunk.len();
            world.send(guest.data(chunk));
        }
        for segment in world.segments() {
            guest.rcv_nxt = segment.seq + segment.seg_len();
            down.extend(segment.payload);
        }
        world.send(guest.ack());
        up.extend(world.host_reads(flow));
        world.wait(Duration::from_millis(1));
        if up.len() == bytes.len() && down.len() == bytes.len() {
            break;
        }
    }
    assert!(up == bytes, "{} up", up.len());
    assert!(down == bytes, "{} down", down.len());
}

/// The guest retransmits what was acknowledged already, or what overlaps: nothing arrives twice.
#[test]
fn repeated_and_overlapping_segments_arrive_once() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTE);
    let flow = guest.open(&mut world);
    let start = guest.snd_nxt;
    let bytes = pattern(3_000);
    let piece = |from: usize, to: usize| Segment {
        seq: start + from as u32,
        payload: bytes[from..to].to_vec(),
        ..guest.ack()
    };
    for (from, to) in [
        (0, 1000),
        (0, 1000),
        (500, 1500),
        (2000, 3000),
        (1000, 2500),
    ] {
        world.send(piece(from, to));
    }
    assert_eq!(world.host_reads(flow), bytes);
    world.wait(Duration::from_millis(20));
    let last = world.segments().pop().expect("an ACK");
    assert_eq!((last.flags, last.ack), (ACK, start + 3000));
}

#[test]
fn a_quiet_connection_costs_nothing() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTE);
    guest.open(&mut world);
    // What the handshake armed may run out once.
    world.wait(Duration::from_secs(60));
    world.assert_quiet();
    assert_eq!(world.core.poll_deadline(), None);
    assert_eq!(world.closed, Vec::<(_, Cause)>::new());
}

/// A page of a download that a pager holds back: the remote is long done, the guest's window stays
/// closed, and its kernel answers every probe (RFC 9293 3.8.6.1: the connection stays open as long
/// as it does).
#[test]
fn a_guest_that_reads_nothing_for_hours_loses_nothing() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTE);
    let flow = guest.open(&mut world);
    guest.window = 0;
    world.send(guest.ack());
    let bytes = pattern(20_000);
    world.host_sends(flow, &bytes);
    world.host_finishes(flow);
    for _ in 0..240 {
        world.wait(Duration::from_secs(30));
        if !world.segments().is_empty() {
            world.send(guest.ack());
        }
    }
    assert_eq!(world.closed, []);
    guest.window = 65_535;
    world.send(guest.ack());
    let mut heard = Vec::new();
    let mut flags = 0;
    for segment in world.segments() {
        flags |= guest.hear(&segment);
        heard.extend(segment.payload);
    }
    assert!(heard == bytes, "{} of 20000 bytes", heard.len());
    assert_eq!(flags & FIN, FIN);
}

/// The right edge that the core offers may move back by less than a unit of the window scale, while
/// the guest's last segment up to the old edge is on its way. What is beyond the new edge is not
/// lost, and neither is the FIN after it.
#[test]
fn a_fin_beyond_the_window_waits_for_the_bytes_before_it() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTE);
    let (flow, answer) = guest.dial(&mut world, Host::with_capacity(1));
    let scale = answer.scale.expect("offered, so answered");
    let start = guest.snd_nxt;
    let right_edge = |world: &mut World| {
        world.wait(Duration::from_millis(15));
        let last = world.segments().pop().expect("an ACK");
        last.ack + (u32::from(last.window) << scale)
    };
    world.send(guest.data(&[0; 32]));
    assert_eq!(world.host_reads(flow).len(), 1);
    let mut edge = right_edge(&mut world);
    while edge - guest.snd_nxt > 40_000 {
        let chunk = vec![0; 31_984];
        world.send(guest.data(&chunk));
        edge = right_edge(&mut world);
    }
    world.send(guest.data(&[0; 7]));
    let newer = right_edge(&mut world);
    assert!(newer < edge, "the case in question: {newer} {edge}");
    let last = Segment {
        flags: FIN | ACK,
        ..guest.data(&vec![0; (edge - guest.snd_nxt) as usize])
    };
    world.send(last.clone());
    assert!(!world.host(flow).has_guest_fin());
    // The remote reads; the guest repeats what is not acknowledged.
    world.host(flow).widen(2 * BUFFER_LEN);
    let mut arrived = 1 + world.host_reads(flow).len();
    world.send(last);
    arrived += world.host_reads(flow).len();
    assert_eq!(arrived, (edge - start) as usize);
    assert!(world.host(flow).is_at_end());
}

/// While a flow rests for its promotion the remote's bytes wait: an acknowledgement that the guest
/// holds back is asked for.
#[test]
fn a_held_back_acknowledgement_does_not_keep_a_resting_flow_waiting() {
    /// So much at once makes a flow haul.
    const HAUL: usize = 256 * 1024;
    let mut world = World::new(CoreConfig {
        promote: Promote::Auto,
        ..core_config()
    });
    let mut guest = Peer::new(REMOTE);
    let flow = guest.open(&mut world);
    world.host_sends(flow, &pattern(HAUL));
    for segment in world.segments() {
        guest.hear(&segment);
    }
    world.wait(Duration::from_millis(5));
    let question = world.segment();
    assert_eq!((question.flags, question.seg_len()), (ACK, 0));
    let before_all = guest.rcv_nxt.wrapping_sub(HAUL as u32 + 1);
    assert_eq!((question.seq, question.ack), (before_all, guest.snd_nxt));
    world.send(guest.ack());
    world.wait(Duration::from_millis(2));
    assert_eq!(world.promotions.len(), 1);
    assert_eq!(world.promotions[0].1.wire.snd_nxt, guest.rcv_nxt);
}

/// The segments that the core sends in `seconds`, without an answer.
fn segments_within(world: &mut World, seconds: u64) -> Vec<Segment> {
    world.wait(Duration::from_secs(seconds));
    world.segments()
}

/// Linux drops data that fit its window when its memory does not suffice (TCPRcvQDrop), and says so
/// by a closed window.
#[test]
fn what_the_guest_drops_within_its_window_is_repeated() {
    for fin in [false, true] {
        let mut world = World::default();
        let mut guest = Peer::new(REMOTE);
        let flow = guest.open(&mut world);
        let bytes = pattern(4_000);
        let una = guest.rcv_nxt;
        world.host_sends(flow, &bytes);
        if fin {
            world.host_finishes(flow);
        }
        world.frames();
        guest.rcv_nxt += 1_000;
        for window in [0, 65_535] {
            guest.window = window;
            world.send(guest.ack());
        }
        let mut heard = vec![false; 4_001];
        for _ in 0..10 {
            for segment in segments_within(&mut world, 1) {
                let start = (segment.seq - una) as usize;
                let end = start + segment.seg_len() as usize;
                heard[start..end].fill(true);
            }
        }
        let missing = heard[1_000..4_000 + usize::from(fin)]
            .iter()
            .filter(|heard| !**heard);
        assert_eq!(missing.count(), 0, "FIN: {fin}");
    }
}

/// Linux drops a FIN at the edge of a closed window, and answers it with an ACK.
#[test]
fn a_fin_that_the_guest_drops_is_repeated() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTE);
    let flow = guest.open(&mut world);
    guest.window = 0;
    world.send(guest.ack());
    world.host_finishes(flow);
    let mut fins = world.segments().len();
    for _ in 0..60 {
        for segment in segments_within(&mut world, 1) {
            assert_eq!(segment.flags, FIN | ACK);
            fins += 1;
            world.send(guest.ack());
        }
    }
    assert!((4..=60).contains(&fins), "{fins} in a minute");
    guest.window = 65_535;
    world.send(guest.ack());
    let last = segments_within(&mut world, 60).pop().expect("FIN again");
    assert_eq!(guest.hear(&last), FIN | ACK);
    world.send(guest.fin());
    assert_eq!(world.ended(), (flow, Cause::Finished));
}

/// The window closes over data on their way, which are lost: there must be probes until it opens.
#[test]
fn a_window_that_closes_over_lost_data_is_probed() {
    let mut world = World::default();
    let mut guest = Peer::new(REMOTE);
    let flow = guest.open(&mut world);
    let bytes = pattern(1_000);
    world.host_sends(flow, &bytes);
    world.frames();
    guest.window = 0;
    world.send(guest.ack());
    let probes = segments_within(&mut world, 60).len();
    assert!((3..=60).contains(&probes), "{probes} in a minute");
    guest.window = 65_535;
    world.send(guest.ack());
    let mut segments = segments_within(&mut world, 10);
    segments.retain(|segment| segment.seq == guest.rcv_nxt && segment.payload.len() == 1_000);
    assert!(!segments.is_empty());
}

/// smoltcp heeds no window in LAST-ACK: the FIN must wait for the bytes before it.
#[test]
fn a_guest_that_has_finished_may_still_close_and_open_its_window() {
    let mut world = World::default();
    let mut guest = Peer {
        window: 1_000,
        scale: Some(0),
        ..Peer::new(REMOTE)
    };
    let flow = guest.open(&mut world);
    world.send(guest.fin());
    let bytes = pattern(5_000);
    world.host_sends(flow, &bytes);
    world.host_finishes(flow);
    let mut heard = Vec::new();
    let mut flags = 0;
    while flags & FIN == 0 {
        let segments = world.segments();
        assert!(!segments.is_empty(), "after {} bytes", heard.len());
        for segment in segments.iter().filter(|segment| segment.seg_len() > 0) {
            flags |= guest.hear(segment);
            heard.extend_from_slice(&segment.payload);
        }
        for window in [0, 1_000] {
            guest.window = window;
            world.send(guest.ack());
        }
    }
    assert_eq!(heard, bytes);
    assert_eq!(world.ended(), (flow, Cause::Finished));
}
