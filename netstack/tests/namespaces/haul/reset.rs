//! Promoted flows that one side resets while segments get lost.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::Duration;

use netstack::guest::promotion::KEEPALIVE;

use super::{Watched, connection};
use crate::harness::traffic::reset;
use crate::harness::{Family, Netns, World, eventually, nft};

/// The remote resets a flow whose last segments the guest has missed, so that the number of the RST
/// is not the one that the guest expects. It must find out all the same: it asks back (RFC 5961
/// 3.2), and is answered.
pub fn reset_after_a_loss(world: &mut World) {
    let setup = world.helper().option("--promote=always");
    let helper = Watched::start(setup, &world.dir);
    for family in Family::BOTH {
        // A retransmission may come before the RST; then nothing was to be proven, and it is tried
        // again.
        let is_proven = (0..20).any(|_| {
            let (guest, mut remote) = connection(world, family, None);
            helper.haul_pieces(&guest, &remote, 1000);
            let port = guest.local_addr().expect("address").port();
            let asked_before = challenges(&world.guest.net);
            nft(&world.guest.net, &["-f", "-"], &loss("dport", port));
            remote.write_all(&[0; 1000]).expect("send");
            eventually("the guest misses something", PATIENCE, || {
                losses(&world.guest.net) > 0
            });
            nft(&world.guest.net, &["delete", "table", "inet", "loss"], "");
            reset(remote);
            expect_reset(guest, PATIENCE);
            challenges(&world.guest.net) > asked_before
        });
        assert!(is_proven, "the guest never had to ask back");
    }
    eventually("no flow is left", PATIENCE, || helper.flows().is_empty());
}

/// The guest resets a flow, and nobody hears of it: the remote must find out when the guest is
/// asked whether it is still there.
pub fn reset_that_is_lost(world: &mut World) {
    let setup = world.helper().option("--promote=always");
    let helper = Watched::start(setup, &world.dir);
    for family in Family::BOTH {
        let (guest, remote) = connection(world, family, None);
        helper.haul_pieces(&guest, &remote, 1000);
        let port = guest.local_addr().expect("address").port();
        nft(&world.guest.net, &["-f", "-"], &loss("sport", port));
        reset(guest);
        eventually("the RST is lost", PATIENCE, || losses(&world.guest.net) > 0);
        nft(&world.guest.net, &["delete", "table", "inet", "loss"], "");
        expect_reset(remote, 2 * KEEPALIVE.idle);
    }
    eventually("no flow is left", PATIENCE, || helper.flows().is_empty());
}

/// Reads until the reset.
fn expect_reset(mut stream: TcpStream, patience: Duration) {
    stream.set_read_timeout(Some(patience)).expect("a timeout");
    let error =
        std::io::copy(&mut stream, &mut std::io::sink()).expect_err("a reset is not an end");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// Loses what arrives in the guest to (`dport`) or from (`sport`) its port.
fn loss(which: &str, port: u16) -> String {
    let rule = format!("tcp {which} {port} counter drop");
    format!(
        "add table inet loss; add chain inet loss input {{ type filter hook input priority 0; }}; add rule inet loss input {rule}\n"
    )
}

/// How many packets [`loss`] has lost.
fn losses(guest: &Netns) -> u64 {
    let table = nft(guest, &["list", "table", "inet", "loss"], "");
    let mut words = table.split_whitespace();
    words.find(|word| *word == "packets");
    let packets = words.next().expect("a number of packets");
    packets.parse().expect("a number")
}

/// How many challenge ACKs were sent (TCPChallengeACK in the namespace's statistics).
fn challenges(guest: &Netns) -> u64 {
    let statistics = guest.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat"));
    let statistics = statistics.expect("statistics");
    let mut lines = statistics
        .lines()
        .filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let mut both = names.split(' ').zip(values.split(' '));
    let (_, value) = both
        .find(|(name, _)| *name == "TCPChallengeACK")
        .expect("the counter");
    value.parse().expect("a number")
}

const PATIENCE: Duration = Duration::from_secs(10);
