//! The routers of a path, as traceroute looks for them: a packet with a small hop limit brings back
//! who gave it up. Behind elsewhere, which is a router here, lies a host that answers:
//!
//! ```text
//! guest ── the helper ── host ── elsewhere ── beyond
//! ```

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU8;
use std::os::fd::AsFd;
use std::time::Duration;

use netstack::core::icmp::Unreachable;
use netstack::host::udp::Destination;
use netstack::host::{Outbound, PingSocket, UdpSocket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::harness::{Case, Family, Netns, World, case, eventually};

pub const CASES: &[Case] = &[
    case("hops::datagrams_find_the_routers", datagrams),
    case("hops::echo_requests_find_the_routers", echo_requests),
];

/// Where nobody listens (traceroute's first port).
const PORT: u16 = 33_434;
const SEQUENCE: u16 = 5;

fn datagrams(world: &mut World) {
    let _beyond = beyond(world);
    let _helper = world.helper().start();
    for family in Family::BOTH {
        let to = SocketAddr::new(family.silent(), PORT);
        let socket = world
            .guest
            .net
            .run(|| UdpSocket::open(to, Outbound::default()));
        let socket = socket.expect("a UDP socket");
        let probe = |hops: u8| {
            let hops = NonZeroU8::new(hops);
            let to = Destination { address: to, hops };
            socket
                .send(b"who is there?", None, None, to)
                .expect("send a datagram");
            wait_for_error(&socket);
            let error = socket.take_error().expect("an answer");
            assert_eq!(error.to, to.address);
            (error.why, error.reporter)
        };
        for (hops, router) in (1..).zip(routers(family)) {
            assert_eq!(probe(hops), (Unreachable::TimeExceeded, Some(router)));
        }
        assert_eq!(probe(3), (Unreachable::Port, Some(family.silent())));
    }
}

fn echo_requests(world: &mut World) {
    let _beyond = beyond(world);
    let _helper = world.helper().start();
    for family in Family::BOTH {
        let to = family.silent();
        let socket = world
            .guest
            .net
            .run(|| PingSocket::open(to, Outbound::default()));
        let socket = socket.expect("a ping socket");
        let send = |hops: u8| {
            let sent = socket.send(to, NonZeroU8::new(hops), SEQUENCE, b"who is there?");
            sent.expect("send an echo request");
        };
        for (hops, router) in (1..).zip(routers(family)) {
            send(hops);
            wait_for_error(&socket);
            let (sequence, error) = socket.take_error().expect("an answer");
            assert_eq!(sequence, SEQUENCE);
            assert_eq!(
                (error.why, error.reporter),
                (Unreachable::TimeExceeded, Some(router))
            );
        }
        send(3);
        let mut buffer = [0; 100];
        eventually("the host beyond answers", Duration::from_secs(5), || {
            let reply = socket.receive(&mut buffer);
            matches!(reply, Ok(Some((SEQUENCE, b"who is there?"))))
        });
    }
}

/// The two on the way, nearest first.
fn routers(family: Family) -> [IpAddr; 2] {
    [family.gateway(), family.elsewhere()]
}

/// A host that has the addresses where otherwise nobody answers.
fn beyond(world: &World) -> Netns {
    const LINK: &str = "far0";
    let beyond = Netns::create();
    world
        .elsewhere
        .link(|links| links.add_veth(LINK, LINK, beyond.as_fd()));
    for sysctl in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        world.elsewhere.sysctl(sysctl, "1");
    }
    for family in Family::BOTH {
        let (far, prefix, any) = match family {
            Family::V4 => (family.silent(), 24, 0),
            Family::V6 => (family.silent(), 64, 0),
        };
        let near = near(far);
        beyond.link(|links| links.up(LINK)?.add_address(LINK, far, prefix));
        world
            .elsewhere
            .link(|links| links.up(LINK)?.add_address(LINK, near, prefix));
        beyond.link(|links| links.add_route(family.unspecified(), any, near));
    }
    beyond.wait_until_local(Family::V6.silent());
    world.elsewhere.wait_until_local(near(Family::V6.silent()));
    beyond
}

/// The router's address on the link of `far`.
fn near(far: IpAddr) -> IpAddr {
    match far {
        IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() & !0xff | 1).into()),
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() & !0xffff | 1).into()),
    }
}

fn wait_for_error(socket: &impl AsFd) {
    let mut polled = [PollFd::new(socket, PollFlags::empty())];
    let timeout = Timespec {
        tv_sec: 5,
        tv_nsec: 0,
    };
    let ready = poll(&mut polled, Some(&timeout)).expect("poll");
    assert_eq!(ready, 1, "nobody has answered");
}
