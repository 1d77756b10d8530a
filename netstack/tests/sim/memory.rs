//! What connections buffer together: bounded whatever the guest and its remotes do, and no
//! connection is without any.

use netstack::core::Duration;
use netstack::core::flow::FlowId;
use netstack::core::tcp::{MAX_BUFFERED, MemoryUse};

use crate::host::Host;
use crate::packet::Segment;
use crate::peer::{MSS, Peer};
use crate::world::World;

const REMOTE: &str = "198.51.100.7:443";

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index % 251) as u8).collect()
}

/// Connects from `port`; the guest says `window` with its last ACK of the handshake. Returns the
/// SYN-ACK as well.
fn connect_from(port: u16, window: u16, host: Host, world: &mut World) -> (Peer, FlowId, Segment) {
    let mut guest = Peer::new(REMOTE);
    guest.guest.set_port(port);
    let (flow, answer) = guest.dial(world, host);
    guest.window = window;
    world.send(guest.ack());
    (guest, flow, answer)
}

fn assert_bounded(world: &World) -> MemoryUse {
    let memory = world.core.memory();
    assert!(
        memory.receive + memory.send + memory.owed <= MAX_BUFFERED,
        "{memory:?}"
    );
    memory
}

/// The guest acknowledges what comes until it has `len` bytes.
fn hear(guest: &mut Peer, len: usize, world: &mut World) -> Vec<u8> {
    let mut heard = Vec::new();
    while heard.len() < len {
        let segments = world.segments();
        assert!(!segments.is_empty(), "{} bytes arrived", heard.len());
        for segment in segments {
            if segment.destination == guest.guest {
                guest.hear(&segment);
                heard.extend(segment.payload);
            }
        }
        world.send(guest.ack());
        assert_bounded(world);
    }
    heard
}

/// A guest may open any number of connections that nobody reads from: the more there are, the less
/// each of them gets.
#[test]
fn windows_are_smaller_when_many_connections_are_open() {
    const CONNECTIONS: u16 = 4_000;
    let mut world = World::default();
    let mut open = Vec::new();
    let mut last = usize::MAX;
    for port in 1..=CONNECTIONS {
        let host = Host::with_capacity(0);
        let (guest, flow, answer) = connect_from(port, 65_535, host, &mut world);
        let window = usize::from(answer.window) << answer.scale.expect("offered, so answered");
        assert!(window <= last, "number {port}");
        last = window;
        match port {
            1..=64 => assert_eq!(window, 65_535 << 4, "number {port}"),
            65..=900 => assert!(window >= 65_535, "number {port}"),
            _ => {}
        }
        assert_bounded(&world);
        open.push((guest, flow));
    }
    // The smallest window can be filled to its end, and is opened again.
    let (guest, flow) = open.last_mut().expect("some");
    let bytes = pattern(last);
    for chunk in bytes.chunks(usize::from(MSS)) {
        world.send(guest.data(chunk));
    }
    world.wait(Duration::from_millis(50));
    let closed = world.segments().pop().expect("ACK");
    assert_eq!((closed.ack, closed.window), (guest.snd_nxt, 0));
    world.host(*flow).widen(last);
    world.turn();
    let opened = world.segments().pop().expect("ACK");
    assert_eq!(usize::from(opened.window), last);
    assert_eq!(world.host_reads(*flow), bytes);
    for (guest, _) in &open {
        world.send(guest.rst());
    }
    let (.., answer) = connect_from(1, 65_535, Host::default(), &mut world);
    assert_eq!(answer.scale, Some(4));
}

/// Remotes send to a guest that reads nothing, on many connections, until memory is short. A
/// connection that is read goes on all the same, and what the others had is there again once they
/// are gone.
#[test]
fn what_no_guest_reads_is_bounded() {
    const CONNECTIONS: u16 = 1_200;
    let mut world = World::default();
    let bytes = pattern(65_000);
    let mut unread = Vec::new();
    for port in 1..=CONNECTIONS {
        let (guest, flow, _) = connect_from(port, 0, Host::default(), &mut world);
        world.host_sends(flow, &bytes);
        // Probes of the closed window.
        world.frames();
        assert_bounded(&world);
        unread.push((guest, flow));
    }
    let memory = assert_bounded(&world);
    assert!(memory.exhausted > 0 && memory.send > 0, "{memory:?}");

    let (mut guest, flow, _) = connect_from(CONNECTIONS + 1, 65_535, Host::default(), &mut world);
    world.host_sends(flow, &bytes);
    assert!(hear(&mut guest, bytes.len(), &mut world) == bytes);

    // One that is read at last has lost nothing either.
    let (late, _) = unread.last_mut().expect("some");
    late.window = 65_535;
    world.send(late.ack());
    assert!(hear(late, bytes.len(), &mut world) == bytes);

    for (guest, _) in &unread {
        world.send(guest.rst());
    }
    world.send(guest.rst());
    let memory = world.core.memory();
    assert_eq!((memory.receive, memory.send, memory.owed), (0, 0, 0));
}

/// A send buffer that was full once and is empty now goes back when others need it.
#[test]
fn idle_send_buffers_are_given_back() {
    const IDLE: u16 = 64;
    const UNREAD: u16 = 400;
    const MUCH: usize = 1_000_000;
    let mut world = World::default();
    let bytes = pattern(MUCH);
    for port in 1..=IDLE {
        let host = Host::with_capacity(MUCH);
        let (mut guest, flow, _) = connect_from(port, 65_535, host, &mut world);
        world.host_sends(flow, &bytes);
        assert!(hear(&mut guest, MUCH, &mut world) == bytes);
    }
    let idle = world.core.memory().send;
    assert!(idle > usize::from(IDLE) * MUCH / 2, "{idle}");
    for port in IDLE + 1..=IDLE + UNREAD {
        let (_, flow, _) = connect_from(port, 0, Host::default(), &mut world);
        world.host_sends(flow, &bytes[..65_000]);
        world.frames();
    }
    let memory = assert_bounded(&world);
    assert!(memory.send < idle, "{memory:?} after {idle}");
    assert_eq!(memory.exhausted, 0);
}
