//! `slirp4netns --netns-type=tapfd`: the caller has made the tap, and passes its descriptor. With
//! the namespace in reach such a guest is like any other; without it, flows stay in the engine.

use std::fs::File;
use std::net::IpAddr;
use std::time::Duration;

use libc::{IFF_NO_PI, IFF_TAP, IFF_TUN, IFF_VNET_HDR};

use crate::harness::traffic::{EchoServer, Pattern, assert_echo, connect, pass};
use crate::harness::{
    Case, Family, Guest, GuestUsers, Setup, World, case, eventually, sys, tcp_sockets,
};
use crate::haul::{connection, require_nftables};
use crate::sandbox::assert_closed;

pub const CASES: &[Case] = &[
    case("tapfd::plain_frames", |world| {
        promotes(world, IFF_TAP | IFF_NO_PI)
    }),
    case("tapfd::frames_with_a_header", |world| {
        promotes(world, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
    }),
    case("tapfd::namespace_out_of_reach", namespace_out_of_reach),
    case("tapfd::configure", configure),
    case("tapfd::what_is_no_tap", what_is_no_tap),
];

/// As many bytes as a flow is promoted for, several times over.
const MUCH: usize = 4 << 20;

/// Flows of a guest whose tap was passed haul in the kernel.
fn promotes(world: &mut World, flags: i32) {
    require_nftables();
    world.guest = Guest::new(GuestUsers::Own);
    // Without it nothing is promoted.
    world.guest.net.link(|links| links.up("lo"));
    let tap = attach(world, flags);
    let _helper = on(&tap).start();
    set_up(world);
    assert_small_and_large(world);
    let (guest, remote) = connection(world, Family::V4, None);
    let guests = guest.local_addr().expect("an address");
    let mut patterns = [Pattern::new(5), Pattern::new(5)];
    eventually("the kernel carries it", Duration::from_secs(20), || {
        pass(&guest, &remote, &mut patterns, MUCH);
        // The other end of the promoted flow is in the guest as well.
        let sockets = tcp_sockets(&world.guest.net);
        sockets.iter().any(|socket| socket.remote == guests)
    });
}

/// Nobody may enter it: no capability is left for that. Segments of all sizes are right.
fn namespace_out_of_reach(world: &mut World) {
    for mtu in [1500, 65520] {
        world.guest = Guest::new(GuestUsers::Cases);
        world.guest.net.link(|links| links.up("lo"));
        let tap = attach(world, IFF_TAP | IFF_NO_PI);
        let helper = on(&tap).mtu(mtu).powerless().start();
        assert_closed(&helper);
        set_up(world);
        assert_small_and_large(world);
        let theirs = |ip: IpAddr| ip == Family::V4.elsewhere();
        let sockets = tcp_sockets(&world.guest.net);
        assert!(!sockets.iter().any(|socket| theirs(socket.local.ip())));
    }
    let tap = attach(world, IFF_TAP | IFF_NO_PI);
    let (code, text) = on(&tap).option("-c").powerless().fail();
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("namespace of the tap"), "{text}");
}

/// With -c, too, where it can be.
fn configure(world: &mut World) {
    world.guest = Guest::new(GuestUsers::Own);
    let tap = attach(world, IFF_TAP | IFF_NO_PI);
    let _helper = on(&tap).option("-c").start();
    assert_small_and_large(world);
}

fn what_is_no_tap(world: &mut World) {
    let open = |path| File::options().read(true).write(true).open(path);
    let text = |file: &File| {
        let (code, text) = on(file).fail();
        assert_eq!(code, 1, "{text}");
        text
    };
    for path in ["/dev/null", "/dev/net/tun"] {
        let text = text(&open(path).expect("open a device"));
        assert!(text.contains("cannot be read as a tap"), "{text}");
    }
    let text = text(&attach(world, IFF_TUN | IFF_NO_PI));
    assert!(text.contains("is tap0, which is not a tap"), "{text}");
    let (code, text) = setup("1000").fail();
    assert!(code == 1 && text.contains("descriptor 1000"), "{text}");
}

fn attach(world: &World, flags: i32) -> File {
    let attach = || sys::attach_tap("tap0", flags);
    world.guest.net.run(attach).expect("make a tap")
}

fn on(tap: &File) -> Setup {
    setup(&sys::inherit(tap).to_string())
}

fn setup(descriptor: &str) -> Setup {
    let setup = Setup::new(descriptor)
        .by_name("slirp4netns")
        .without_configure();
    setup.mtu(1500).option("-6").option("--netns-type=tapfd")
}

/// What the caller of slirp4netns has to do.
fn set_up(world: &World) {
    world.guest.net.link(|links| {
        links.up("tap0")?;
        for family in Family::BOTH {
            let len = if family == Family::V4 { 24 } else { 64 };
            links.add_address("tap0", family.guest(), len)?;
            links.add_route(family.unspecified(), 0, family.gateway())?;
        }
        Ok(links)
    });
    world.guest.net.wait_until_local(Family::V6.guest());
}

/// Both families, both ways.
fn assert_small_and_large(world: &World) {
    for family in Family::BOTH {
        let elsewhere: IpAddr = family.elsewhere();
        let server = EchoServer::start(&world.elsewhere, elsewhere, 7);
        assert_echo(&mut connect(&world.guest.net, server.address), b"small");
        let (guest, remote) = connection(world, family, None);
        let mut patterns = [Pattern::new(3), Pattern::new(3)];
        pass(&guest, &remote, &mut patterns, MUCH);
        pass(&remote, &guest, &mut patterns, MUCH);
    }
}
