//! ICMP and ICMPv6 echo from unprivileged ping sockets in the guest.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::harness::{Case, Family, Netns, World, case};

pub const CASES: &[Case] = &[
    case("icmp::gateway_answers", |world| {
        pings(world, Family::gateway)
    }),
    case("icmp::elsewhere_answers", |world| {
        pings(world, Family::elsewhere)
    }),
    case("icmp::silence_stays_silence", silence_stays_silence),
];

pub fn pings(world: &mut World, whom: fn(Family) -> IpAddr) {
    let _helper = world.helper().start();
    for family in Family::BOTH {
        for length in [0, 56, 1400, 20_000] {
            assert!(
                ping(&world.guest.net, whom(family), length),
                "{} answers {length} bytes",
                whom(family)
            );
        }
    }
}

/// The helper answers for itself only.
fn silence_stays_silence(world: &mut World) {
    let _helper = world.helper().start();
    for family in Family::BOTH {
        assert!(
            !ping(&world.guest.net, family.silent(), 56),
            "somebody answered for {}",
            family.silent()
        );
    }
}

/// Whether `remote` answers one echo request of `length` payload bytes within two seconds. The
/// kernel fills in the identifier and the checksum, and returns only answers to this socket.
pub fn ping(netns: &Netns, remote: IpAddr, length: usize) -> bool {
    let (family, protocol, request, reply) = match remote {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
    };
    let socket: OwnedFd = netns
        .run(|| socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol))
        .expect("ping socket");
    // A ping socket is a datagram socket, which is all that UdpSocket's methods ask for.
    let socket = UdpSocket::from(socket);
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    socket.connect(SocketAddr::new(remote, 0)).unwrap();
    let mut message = vec![request, 0, 0, 0, 0, 0, 0, 1];
    message.extend((0..length).map(|index| index as u8));
    socket.send(&message).expect("send an echo request");

    let mut answer = vec![0; 65536];
    let Ok(count) = socket.recv(&mut answer) else {
        return false;
    };
    assert_eq!(answer[0], reply);
    assert_eq!(
        answer[6..count],
        message[6..],
        "sequence number and payload come back"
    );
    true
}
