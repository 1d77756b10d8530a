//! Nothing stays open after relays have ended, however they ended. Alone in its process, since it
//! counts descriptors.

#[allow(dead_code, reason = "shared with the other relay tests")]
#[path = "relay/harness.rs"]
mod harness;

use std::fs;
use std::io::Write;
use std::thread;

use portfwd::relay::{End, PipePool, Side};

use harness::{Loop, Stream, joined, reset};

#[test]
fn no_descriptor_is_left() {
    let before = open_descriptors();
    let stream = Stream { seed: 1 };
    for round in 0..100 {
        let (peer_a, peer_b, relay) = joined();
        let pool = PipePool::default();
        let ends = if round % 2 == 0 {
            thread::scope(|scope| {
                scope.spawn(|| stream.send(&peer_a, 1 << 20, 64 << 10));
                scope.spawn(|| stream.receive(&peer_b, 1 << 20, 64 << 10));
                scope.spawn(|| stream.send(&peer_b, 0, 1));
                Loop::new(pool, vec![relay]).run()
            })
        } else {
            // Nobody reads: the reset finds bytes in a pipe.
            let mut caller = Loop::new(pool, vec![relay]);
            peer_a.set_nonblocking(true).unwrap();
            while (&peer_a).write(&[0; 1 << 20]).is_ok() {
                caller.settle();
            }
            reset(peer_a);
            caller.run()
        };
        let expected = if round % 2 == 0 {
            ends == [End::Finished]
        } else {
            matches!(ends[..], [End::Aborted { by: Side::A, .. }])
        };
        assert!(expected, "{ends:?}");
    }
    assert_eq!(open_descriptors(), before);
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}
