//! `--pcap`: what is in the file of a helper that runs under its filter, and what becomes of
//! connections when there is no more room for it.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use rustix::process::{Pid, Resource, Rlimit};

use crate::harness::traffic::{EchoServer, assert_echo, connect};
use crate::harness::{Case, Family, World, case};

pub const CASES: &[Case] = &[
    case("capture::both_directions", both_directions),
    case("capture::a_full_file_ends_it", a_full_file_ends_it),
];

/// The packets of a capture, as an independent reader of the format sees them.
struct Packet {
    source: IpAddr,
    /// `None` unless it is TCP.
    payload: Option<Vec<u8>>,
}

fn packets(path: &Path) -> Vec<Packet> {
    let bytes = fs::read(path).expect("a capture");
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    assert_eq!(
        (word(0), word(20)),
        (0xa1b2_3c4d, 1),
        "nanoseconds, Ethernet"
    );
    let mut packets = Vec::new();
    let mut at = 24;
    while at < bytes.len() {
        let len = word(at + 8) as usize;
        assert_eq!(word(at + 12) as usize, len);
        at += 16;
        let sliced = SlicedPacket::from_ethernet(&bytes[at..at + len]).expect("a packet");
        at += len;
        let source: IpAddr = match &sliced.net {
            Some(NetSlice::Ipv4(ip)) => ip.header().source_addr().into(),
            Some(NetSlice::Ipv6(ip)) => ip.header().source_addr().into(),
            _ => continue,
        };
        let payload = match &sliced.transport {
            Some(TransportSlice::Tcp(tcp)) => Some(tcp.payload().to_vec()),
            _ => None,
        };
        packets.push(Packet { source, payload });
    }
    packets
}

/// What a party has said over TCP.
fn said_by(packets: &[Packet], source: IpAddr) -> Vec<u8> {
    let by = packets.iter().filter(|packet| packet.source == source);
    let payloads = by.filter_map(|packet| packet.payload.as_deref());
    payloads.collect::<Vec<_>>().concat()
}

fn both_directions(world: &mut World) {
    let path = world.dir.join("net.pcap");
    let helper = world.helper().option("--pcap").option(&path).start();
    for family in Family::BOTH {
        let _service = EchoServer::start(&world.elsewhere, family.elsewhere(), 7);
        let mut stream = connect(&world.guest.net, (family.elsewhere(), 7).into());
        assert_echo(&mut stream, b"seen both ways");
    }
    drop(helper);
    let packets = packets(&path);
    for end in Family::BOTH
        .map(|family| [family.guest(), family.elsewhere()])
        .concat()
    {
        // Or more, if a segment was repeated.
        assert!(
            said_by(&packets, end).starts_with(b"seen both ways"),
            "{end}"
        );
    }
    fs::remove_file(path).expect("the capture stays");
}

/// Neither a full disk nor a limit of the file's size touches connections.
fn a_full_file_ends_it(world: &mut World) {
    let path = world.dir.join("net.pcap");
    let helper = world.helper().option("--pcap").option(&path).start();
    let _service = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    let mut stream = connect(&world.guest.net, (Family::V4.elsewhere(), 7).into());
    assert_echo(&mut stream, b"captured");
    let limit = fs::metadata(&path).expect("a capture").len() + 20;
    let most = Rlimit {
        current: Some(limit),
        maximum: Some(limit),
    };
    let process = Pid::from_raw(helper.pid() as i32);
    rustix::process::prlimit(process, Resource::Fsize, most).expect("limit the file's size");
    for _ in 0..3 {
        assert_echo(&mut stream, b"not captured any more");
    }
    assert_eq!(fs::metadata(&path).expect("a capture").len(), limit);
    drop(helper);
    fs::remove_file(path).expect("the capture stays");
}
