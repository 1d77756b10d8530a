//! Super-frames and segment sizes: what the virtio header and the MSS option say, at both ends of
//! the range of MTUs and for both families.

use netstack::core::CoreConfig;
use netstack::core::vnet::{Checksum, Segmentation};
use testbed::core_config;

use crate::packet::{FIN, Packet};
use crate::peer::Peer;
use crate::world::World;

const CASES: [(&str, u16, u16); 6] = [
    ("198.51.100.7:443", 1280, 40),
    ("[2001:db8::7]:443", 1280, 60),
    ("198.51.100.7:443", 1500, 40),
    ("[2001:db8::7]:443", 1500, 60),
    ("198.51.100.7:443", 65_520, 40),
    ("[2001:db8::7]:443", 65_520, 60),
];

fn world(mtu: u16) -> World {
    World::new(CoreConfig {
        mtu,
        ..core_config()
    })
}

#[test]
fn the_mss_is_what_the_guests_link_holds() {
    for (remote, mtu, headers) in CASES {
        let mut world = world(mtu);
        let mut guest = Peer {
            mss: Some(mtu - headers),
            ..Peer::new(remote)
        };
        world.send(guest.syn());
        let (flow, _) = world.dialled();
        world.dial_ends(flow, Ok(()));
        assert_eq!(world.segment().mss, Some(mtu - headers), "{remote} {mtu}");
    }
}

/// The guest's kernel is given up to 64 KiB at once, and told to cut it into what the guest asked
/// for.
#[test]
fn bulk_to_the_guest_is_super_frames_of_its_segment_size() {
    for (remote, mtu, headers) in CASES {
        for mss in [mtu - headers, 1000, 536] {
            let mut world = world(mtu);
            let mut guest = Peer {
                mss: Some(mss),
                ..Peer::new(remote)
            };
            let flow = guest.open(&mut world);
            let bytes: Vec<u8> = (0..250_000u32).map(|index| (index % 251) as u8).collect();
            world.host_sends(flow, &bytes);
            let frames = world.frames();
            let mut heard = Vec::new();
            for frame in &frames {
                let Packet::Tcp(segment) = &frame.packet else {
                    panic!("TCP is expected");
                };
                guest.hear(segment);
                heard.extend_from_slice(&segment.payload);
                let ip_header = headers - 20;
                let start = 14 + ip_header;
                assert_eq!(
                    frame.offload.checksum,
                    Checksum::Partial { start, offset: 16 }
                );
                match frame.offload.super_frame {
                    Some(cut) => {
                        assert_eq!(cut.size.get(), mss);
                        assert_eq!(cut.header_len, start + 20);
                        let is_v4 = guest.remote.is_ipv4();
                        assert_eq!(cut.kind == Segmentation::Tcp4, is_v4);
                        assert!(segment.payload.len() > usize::from(mss));
                    }
                    None => assert!(segment.payload.len() <= usize::from(mss)),
                }
                assert!(frame.ip_len <= 65_535);
            }
            assert!(heard == bytes, "{} of 250000 bytes", heard.len());
            assert!(frames.len() <= 6, "{} frames of 64 KiB", frames.len());
        }
    }
}

/// A short last segment in the middle of a transfer would cost the guest as much as a full one.
#[test]
fn super_frames_are_whole_numbers_of_segments() {
    let mut world = world(1500);
    let mut guest = Peer::new("198.51.100.7:443");
    let flow = guest.open(&mut world);
    world.host_sends(flow, &vec![7; 200_000]);
    let mut segments = world.segments();
    segments.pop();
    assert!(segments.len() >= 2);
    for segment in segments {
        assert_eq!(segment.payload.len() % 1460, 0);
    }
}

/// RFC 9293 3.7.1: a guest that does not say gets 536; RFC 6691: less than that is taken at its
/// word, within reason.
#[test]
fn odd_segment_sizes_are_honoured_within_reason() {
    for (mss, size) in [(None, 536), (Some(0), 536), (Some(1), 48), (Some(100), 100)] {
        let mut world = world(1500);
        let mut guest = Peer {
            mss,
            ..Peer::new("198.51.100.7:443")
        };
        let flow = guest.open(&mut world);
        world.host_sends(flow, &[7; 5_000]);
        let mut count = 0;
        for frame in world.frames() {
            let cut = frame.offload.super_frame.expect("above any of these sizes");
            assert_eq!(cut.size.get(), size, "{mss:?}");
            let Packet::Tcp(segment) = frame.packet else {
                panic!("TCP is expected");
            };
            count += segment.payload.len();
        }
        assert_eq!(count, 5_000);
    }
}

#[test]
fn super_frames_of_the_guest_are_taken_whole() {
    for (remote, _, headers) in [CASES[2], CASES[3]] {
        let mut world = world(1500);
        let mut guest = Peer::new(remote);
        let flow = guest.open(&mut world);
        let bytes: Vec<u8> = (0..64_000u32).map(|index| (index % 251) as u8).collect();
        let mut last = guest.data(&bytes);
        last.flags |= FIN;
        let mut frame = last.frame();
        let start = 14 + headers - 20;
        frame[0] = 1;
        frame[1] = if guest.remote.is_ipv4() { 1 } else { 4 };
        frame[2..4].copy_from_slice(&(start + 20).to_ne_bytes());
        frame[4..6].copy_from_slice(&1460u16.to_ne_bytes());
        frame[6..8].copy_from_slice(&start.to_ne_bytes());
        frame[8..10].copy_from_slice(&16u16.to_ne_bytes());
        world.send_frame(&frame);
        assert!(world.host_reads(flow) == bytes);
        assert!(world.host(flow).is_at_end());
    }
}
