//! Containers on a bridge inside the guest, behind its masquerading and its firewall, as Docker and
//! netavark make them: their hauling connections leave the engine too, and see nothing of it.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::traffic::{Pattern, accept, assert_end, connect, connect_from, listen, pass};
use crate::harness::{Bridge, Case, Family, Helper, Netns, World, case, eventually, nft};

pub const CASES: &[Case] = &[
    case("behind::outbound_is_promoted", |world| {
        promotion(world, Direction::Outbound)
    }),
    case("behind::published_is_promoted", |world| {
        promotion(world, Direction::Published)
    }),
    case("behind::ports_are_used_again", ports_are_used_again),
];

/// Who connects.
#[derive(Clone, Copy)]
enum Direction {
    /// The container, to a service elsewhere.
    Outbound,
    /// A client elsewhere, to the container's port 8000, which the guest has behind its own port
    /// 80.
    Published,
}

/// What an engine sets up: masquerading for what leaves the bridge, a published port, and a
/// firewall that forwards nothing but what belongs to a connection or comes from the bridge.
const RULES: &str = "
    table inet engine {
        chain nat_in {
            type nat hook prerouting priority dstnat;
            iifname tap0 tcp dport 80 dnat ip to 10.88.0.5:8000
            iifname tap0 tcp dport 80 dnat ip6 to [fd88::5]:8000
        }
        chain nat_out {
            type nat hook postrouting priority srcnat;
            oifname tap0 masquerade
        }
        chain forward {
            type filter hook forward priority filter; policy drop;
            ct state established,related accept
            iifname br88 accept
            ct status dnat accept
        }
    }";

/// The network that the rules speak of, with the container that they publish. The guest's tap must
/// be up.
fn add_container(world: &World) -> (Bridge<'_>, Netns) {
    let bridge = Bridge::add(world, 88);
    let container = bridge.add_container(5);
    world.guest.net.sysctl("ipv4/ip_forward", "1");
    world.guest.net.sysctl("ipv6/conf/all/forwarding", "1");
    nft(&world.guest.net, &["-f", "-"], RULES);
    (bridge, container)
}

/// The first flow's status.
pub fn flow(status_socket: &Path) -> serde_json::Value {
    crate::options::status(status_socket)["flows"][0].clone()
}

fn start(world: &World) -> (Helper, PathBuf) {
    let status_socket = world.dir.join("status.sock");
    let helper = world
        .helper()
        .option("--status-socket")
        .option(&status_socket)
        .publish("8080:80")
        .start();
    (helper, status_socket)
}

/// Sends `pieces` times 4 MiB each way, and compares them.
pub fn haul(one: &TcpStream, other: &TcpStream, pieces: usize) {
    const PIECE: usize = 4 << 20;
    for (sender, receiver) in [(one, other), (other, one)] {
        let mut patterns = [Pattern::new(9), Pattern::new(9)];
        for _ in 0..pieces {
            pass(sender, receiver, &mut patterns, PIECE);
        }
    }
}

fn promotion(world: &mut World, direction: Direction) {
    let (_helper, status_socket) = start(world);
    let (bridge, container) = add_container(world);
    for family in Family::BOTH {
        let (inside, remote) = match direction {
            Direction::Outbound => {
                let listener = listen(&world.elsewhere, family.elsewhere(), 0);
                let inside = connect(&container, listener.local_addr().unwrap());
                (inside, accept(&listener).0)
            }
            Direction::Published => {
                let service = listen(&container, bridge.address(family, 5), 8000);
                let client = connect(&world.elsewhere, (family.host(), 8080).into());
                let (inside, peer) = accept(&service);
                assert_eq!(peer, client.local_addr().unwrap(), "the client's address");
                (inside, client)
            }
        };
        assert_eq!(inside.local_addr().unwrap().ip(), bridge.address(family, 5));
        assert_eq!(flow(&status_socket)["path"], "engine");
        haul(&inside, &remote, 8);
        let promoted = flow(&status_socket);
        assert_eq!(promoted["path"], "kernel", "{promoted}");
        assert_eq!(promoted["reason"], "hauls");
        // On the tap it is the guest's.
        let shown: SocketAddr = promoted["guest"].as_str().unwrap().parse().unwrap();
        assert_eq!(shown.ip(), family.guest());

        // A firewall that is loaded anew does not touch what the kernel carries.
        nft(&world.guest.net, &["flush", "ruleset"], "");
        nft(&world.guest.net, &["-f", "-"], RULES);
        haul(&inside, &remote, 1);
        drop((inside, remote));
        eventually("the flow is forgotten", Duration::from_secs(10), || {
            flow(&status_socket).is_null()
        });
    }
}

/// Nothing of an ended connection is left that would stand in the way of the next one with the same
/// ends: no entry of the gate, no socket, no tracked connection.
fn ports_are_used_again(world: &mut World) {
    let (_helper, status_socket) = start(world);
    let (bridge, container) = add_container(world);
    let listener = listen(&world.elsewhere, Family::V4.elsewhere(), 0);
    let source = SocketAddr::new(bridge.address(Family::V4, 5), 40_000);
    for round in 0..20 {
        let mut inside = connect_from(&container, source, listener.local_addr().unwrap());
        let (remote, _) = accept(&listener);
        haul(&inside, &remote, 4);
        assert_eq!(flow(&status_socket)["path"], "kernel", "round {round}");
        // The remote closes first, so that the container keeps no TIME-WAIT.
        drop(remote);
        assert_end(&mut inside);
        drop(inside);
        eventually("the flow is forgotten", Duration::from_secs(10), || {
            flow(&status_socket).is_null()
        });
    }
    let gate = nft(
        &world.guest.net,
        &["list", "set", "ip", "coracle", "promoted"],
        "",
    );
    assert!(!gate.contains("elements"), "{gate}");
}
