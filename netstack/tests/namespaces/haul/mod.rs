//! Connections that haul leave the engine for the kernel in mid-flow. Here is the proof that nobody
//! can tell: random programs at both ends compare every byte and every end (`random`, `program`),
//! and each trap that is known has a case of its own. Every case also makes sure that its flows
//! really were promoted.

mod bulk;
mod many;
mod pause;
mod program;
mod random;
mod reset;
mod reuse;

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::harness::traffic::{Pattern, accept, connect, listen, pass};
use crate::harness::{Case, Family, Helper, Setup, World, case, long_case, skip};
use random::Scene;
use reuse::Ender;

pub const CASES: &[Case] = &[
    long_case("haul::random_outbound_1500_cubic", |world| {
        Scene::outbound(1500, "cubic").play(world)
    }),
    long_case("haul::random_outbound_1500_bbr", |world| {
        Scene::outbound(1500, "bbr").play(world)
    }),
    long_case("haul::random_outbound_65520_cubic", |world| {
        Scene::outbound(65520, "cubic").play(world)
    }),
    long_case("haul::random_outbound_65520_bbr", |world| {
        Scene::outbound(65520, "bbr").play(world)
    }),
    long_case("haul::random_published_1500_cubic", |world| {
        Scene::published(1500, "cubic").play(world)
    }),
    long_case("haul::random_published_1500_bbr", |world| {
        Scene::published(1500, "bbr").play(world)
    }),
    long_case("haul::random_published_65520_cubic", |world| {
        Scene::published(65520, "cubic").play(world)
    }),
    long_case("haul::random_published_65520_bbr", |world| {
        Scene::published(65520, "bbr").play(world)
    }),
    case("haul::outbound_in_mid_flow", |world| {
        bulk::in_mid_flow(world, None)
    }),
    case("haul::published_in_mid_flow", |world| {
        bulk::in_mid_flow(world, Some(8080))
    }),
    long_case("haul::downloads_outbound", |world| {
        bulk::downloads(world, false)
    }),
    long_case("haul::downloads_published", |world| {
        bulk::downloads(world, true)
    }),
    long_case("haul::far_away", bulk::far_away),
    long_case("haul::guest_without_sack", |world| {
        bulk::poor_guest(world, &[("ipv4/tcp_sack", "0")])
    }),
    long_case("haul::guest_without_window_scaling", |world| {
        bulk::poor_guest(world, &[("ipv4/tcp_window_scaling", "0")])
    }),
    long_case("haul::guest_with_small_buffers", |world| {
        bulk::poor_guest(
            world,
            &[
                ("ipv4/tcp_rmem", "4096 16384 65536"),
                ("ipv4/tcp_wmem", "4096 16384 65536"),
            ],
        )
    }),
    long_case("haul::thousands_at_once", many::thousands),
    case("haul::same_tuple_after_guest_closes", |world| {
        reuse::same_tuple(world, Ender::GuestCloses)
    }),
    case("haul::same_tuple_after_remote_closes", |world| {
        reuse::same_tuple(world, Ender::RemoteCloses)
    }),
    case("haul::same_tuple_after_guest_resets", |world| {
        reuse::same_tuple(world, Ender::GuestResets)
    }),
    case("haul::same_tuple_after_remote_resets", |world| {
        reuse::same_tuple(world, Ender::RemoteResets)
    }),
    case("haul::reset_after_a_loss", reset::reset_after_a_loss),
    long_case("haul::reset_that_is_lost", reset::reset_that_is_lost),
    case("haul::same_port_number", reuse::same_port_number),
    long_case("haul::longest_gap", pause::longest_gap),
];

/// A helper whose flows can be watched.
pub struct Watched {
    pub helper: Helper,
    status: PathBuf,
}

/// A TCP flow by the ends that it has in the guest.
pub type Ends = (SocketAddr, SocketAddr);

impl Watched {
    /// Starts the helper. `dir` is where its status socket goes.
    pub fn start(setup: Setup, dir: &Path) -> Self {
        require_nftables();
        let status = dir.join("status.sock");
        let helper = setup.option("--status-socket").option(&status).start();
        Self { helper, status }
    }

    fn document(&self) -> serde_json::Value {
        crate::options::status(&self.status)
    }

    /// How many flows it has handed over to the kernel.
    fn promotions(&self) -> u64 {
        let promotions = &self.document()["promotion"]["promoted"];
        promotions.as_u64().expect("a number")
    }

    /// The flows that are alive, and which of them the kernel carries.
    fn flows(&self) -> Vec<(Ends, bool)> {
        let document = self.document();
        let flows = document["flows"].as_array().expect("a list of flows");
        let end = |flow: &serde_json::Value, which| {
            let end = flow[which].as_str().expect("an address");
            end.parse::<SocketAddr>().expect("address and port")
        };
        flows
            .iter()
            .map(|flow| {
                let ends = (end(flow, "guest"), end(flow, "remote"));
                (ends, flow["path"] == "kernel")
            })
            .collect()
    }

    /// What the helper says of the flow with these ends.
    fn flow(&self, (guest, remote): Ends) -> Option<serde_json::Value> {
        let document = self.document();
        let flows = document["flows"].as_array().expect("a list of flows");
        let mut flows = flows.iter();
        let named = flows.find(|flow| {
            flow["guest"] == guest.to_string() && flow["remote"] == remote.to_string()
        });
        named.cloned()
    }

    /// How long the hand-over of a promoted flow kept the remote's bytes waiting.
    fn pause(&self, ends: Ends) -> Option<Duration> {
        let pause = self.flow(ends)?["promoted_pause_us"].as_u64();
        pause.map(Duration::from_micros)
    }

    /// The flows that the kernel carries.
    fn promoted(&self) -> impl Iterator<Item = Ends> {
        let flows = self.flows().into_iter();
        flows.filter_map(|(ends, promoted)| promoted.then_some(ends))
    }

    pub fn is_promoted(&self, ends: Ends) -> bool {
        self.promoted().any(|promoted| promoted == ends)
    }

    /// Sends much from one end to the other and back, until the kernel carries the flow.
    pub fn haul(&self, guest: &TcpStream, remote: &TcpStream) {
        self.haul_pieces(guest, remote, MUCH);
    }

    /// The same with pieces of `length` bytes, for helpers that promote at once. On a busy machine
    /// a flow may find no rest in time, and then has to haul after all.
    fn haul_pieces(&self, guest: &TcpStream, remote: &TcpStream, length: usize) {
        /// Promotion waits for a moment of rest; several pieces give it several.
        const PIECES: usize = 64;
        const FEW_PIECES: usize = 8;
        let mut patterns = [Pattern::new(3), Pattern::new(3)];
        for piece in 0.. {
            if piece > 0 && self.is_promoted(ends_of(guest)) {
                return;
            }
            assert!(piece < PIECES, "not promoted after {piece} pieces");
            let length = if piece < FEW_PIECES { length } else { MUCH };
            let (sender, receiver) = match piece % 2 {
                0 => (guest, remote),
                _ => (remote, guest),
            };
            pass(sender, receiver, &mut patterns, length);
        }
    }
}

/// Enough for a flow to haul.
const MUCH: usize = 1 << 20;

/// The ends, in the guest and elsewhere, of a new connection: one of the guest, or one to a port
/// that is `published` under its own number.
pub fn connection(world: &World, family: Family, published: Option<u16>) -> (TcpStream, TcpStream) {
    if let Some(port) = published {
        let service = listen(&world.guest.net, family.guest(), port);
        let remote = connect(&world.elsewhere, (family.host(), port).into());
        (accept(&service).0, remote)
    } else {
        let service = listen(&world.elsewhere, family.elsewhere(), 0);
        let guest = connect(&world.guest.net, service.local_addr().expect("address"));
        (guest, accept(&service).0)
    }
}

/// The flow of the guest's end `guest`.
pub fn ends_of(guest: &TcpStream) -> Ends {
    (
        guest.local_addr().expect("local address"),
        guest.peer_addr().expect("remote address"),
    )
}

/// Without nftables every flow stays in the engine.
pub fn require_nftables() {
    let (family, kind) = (AddressFamily::Netlink, SockType::Raw);
    let netfilter = SockProtocol::NetlinkNetFilter;
    if let Err(errno) = socket(family, kind, SockFlag::SOCK_CLOEXEC, netfilter) {
        skip(format!("the kernel has no nf_tables: {errno}"));
    }
}
