//! Bulk over promoted flows: downloads in sequence, a remote that is far away, guests with a poor
//! TCP.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use super::{Watched, connection, ends_of};
use crate::harness::traffic::{Pattern, accept, assert_end, connect, listen, pass};
use crate::harness::{Family, FarLink, World, eventually, full};

/// A flow that hauls leaves the engine in the middle of it, without a byte lost; its counters go
/// on.
pub fn in_mid_flow(world: &mut World, published: Option<u16>) {
    const PIECE: usize = 4 << 20;
    const PIECES: usize = 8;
    let helper = Watched::start(world.helper().publish("8080:8080"), &world.dir);
    for family in Family::BOTH {
        let (guest, remote) = connection(world, family, published);
        assert!(!helper.is_promoted(ends_of(&guest)));
        for (sender, receiver) in [(&guest, &remote), (&remote, &guest)] {
            let mut patterns = [Pattern::new(9), Pattern::new(9)];
            // Promotion waits for a moment of rest; several pieces give it several.
            for _ in 0..PIECES {
                pass(sender, receiver, &mut patterns, PIECE);
            }
        }
        assert!(helper.is_promoted(ends_of(&guest)));
        let flow = &helper.document()["flows"][0];
        for counter in ["bytes_to_guest", "bytes_from_guest"] {
            assert_eq!(flow[counter], PIECES * PIECE, "{counter}");
        }
        drop((guest, remote));
        eventually("the flow is forgotten", Duration::from_secs(20), || {
            helper.flows().is_empty()
        });
    }
}

/// Downloads as with HTTP's `Connection: close`, one after another: the server closes as soon as it
/// has said everything, so that its FIN races with the hand-over.
pub fn downloads(world: &mut World, published: bool) {
    let helper = Watched::start(world.helper().publish("8080:80"), &world.dir);
    let family = Family::V4;
    let (service, address) = if published {
        let service = listen(&world.guest.net, family.guest(), 80);
        (service, (family.host(), 8080).into())
    } else {
        let service = listen(&world.elsewhere, family.elsewhere(), 80);
        (service, (family.elsewhere(), 80).into())
    };
    let client_netns = match published {
        true => &world.elsewhere,
        false => &world.guest.net,
    };
    let rounds = if full() { 200 } else { 20 };
    let pattern = Pattern::new(23);
    let mut promoted = [0; LENGTHS.len()];
    std::thread::scope(|scope| {
        scope.spawn(|| serve(&service, rounds, &pattern));
        for _ in 0..rounds {
            for (length, promoted) in LENGTHS.iter().zip(&mut promoted) {
                let mut client = connect(client_netns, address);
                client.write_all(REQUEST).expect("ask");
                pattern.at(0).expect(&mut client, *length);
                assert_end(&mut client);
                // Not forgotten while this end is open.
                *promoted += helper.promoted().count();
            }
        }
    });
    println!("{rounds} downloads of each of {LENGTHS:?} bytes, {promoted:?} promoted");
    // The FIN of the short ones may win every time; that of the longest is far away.
    assert!(
        promoted.last() > Some(&0),
        "no long download was promoted: {promoted:?}"
    );
}

/// Answers the requests of [`downloads`], one by one.
fn serve(service: &TcpListener, rounds: usize, pattern: &Pattern) {
    for length in LENGTHS.repeat(rounds) {
        let (mut client, _) = accept(service);
        let mut request = [0; REQUEST.len()];
        client.read_exact(&mut request).expect("a request");
        pattern.at(0).send(&mut client, length).expect("answer");
    }
}

/// A round trip of 200 ms, and one frame in a hundred lost. Flows go both ways at once.
pub fn far_away(world: &mut World) {
    const FLOWS: usize = 4;
    let length = if full() { 8 << 20 } else { 1 << 20 };
    let _link = FarLink::lay(world, Duration::from_millis(100), 10);
    let setup = world.helper().option("--promote=always");
    let helper = Watched::start(setup, &world.dir);
    let service = listen(&world.elsewhere, FarLink::FAR, 0);
    let address = service.local_addr().unwrap();
    let pairs: Vec<(TcpStream, TcpStream)> = (0..FLOWS)
        .map(|_| {
            let guest = connect(&world.guest.net, address);
            (guest, accept(&service).0)
        })
        .collect();
    for (guest, remote) in &pairs {
        helper.haul_pieces(guest, remote, 4096);
    }
    let pattern = Pattern::new(29);
    std::thread::scope(|scope| {
        for (guest, remote) in &pairs {
            for (mut sender, mut receiver) in [(guest, remote), (remote, guest)] {
                let pattern = &pattern;
                scope.spawn(move || {
                    pattern.at(0).send(&mut sender, length).expect("send");
                    sender.shutdown(std::net::Shutdown::Write).expect("FIN");
                });
                scope.spawn(move || {
                    pattern.at(0).expect(&mut receiver, length);
                    assert_end(&mut receiver);
                });
            }
        }
    });
}

/// A guest whose sysctls say `settings`, both ways and in both families. net.core.rmem_max, which
/// caps the window of the helper's sockets, is not among them: it is one for the whole machine, and
/// namespaces may only read it.
pub fn poor_guest(world: &mut World, settings: &[(&str, &str)]) {
    let length = if full() { 64 << 20 } else { 16 << 20 };
    for (name, value) in settings {
        world.guest.net.sysctl(name, value);
    }
    let helper = Watched::start(world.helper(), &world.dir);
    for family in Family::BOTH {
        let (guest, remote) = connection(world, family, None);
        helper.haul(&guest, &remote);
        let pattern = Pattern::new(31);
        std::thread::scope(|scope| {
            for (mut sender, mut receiver) in [(&guest, &remote), (&remote, &guest)] {
                let pattern = &pattern;
                scope.spawn(move || pattern.at(0).send(&mut sender, length).expect("send"));
                scope.spawn(move || pattern.at(0).expect(&mut receiver, length));
            }
        });
        assert!(helper.is_promoted(ends_of(&guest)));
    }
}

/// Of downloads: from what may be over before the hand-over to what never is.
const LENGTHS: [usize; 5] = [1 << 20, 2 << 20, 4 << 20, 8 << 20, 16 << 20];
const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";
