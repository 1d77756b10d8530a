//! Where there is no /dev/net/tun: the pair of virtual Ethernet interfaces in the tap's place. With
//! `CORACLE_DEVICE=veth` all other cases run on one.

use std::process::Command;

use nix::mount::{MsFlags, mount};
use rustix::process::Signal;

use crate::harness::traffic::{Pattern, accept, connect, listen};
use crate::harness::{Case, Family, World, case};
use crate::options::{assert_works, status};

pub const CASES: &[Case] = &[
    case("veth::takes_the_taps_place", takes_the_taps_place),
    case("veth::under_other_names", under_other_names),
    case("veth::a_tap_that_is_asked_for", a_tap_that_is_asked_for),
    case("veth::back_after_a_kill", back_after_a_kill),
    case("veth::everything_arrives", everything_arrives),
    case("veth::the_guest_deletes_it", the_guest_deletes_it),
];

/// For this case, /dev/net is empty.
fn hide_tun() {
    let none = None::<&str>;
    mount(
        Some("none"),
        "/dev/net",
        Some("tmpfs"),
        MsFlags::empty(),
        none,
    )
    .expect("hide /dev/net");
}

fn takes_the_taps_place(world: &mut World) {
    hide_tun();
    let socket = world.dir.join("status.sock");
    let setup = world.helper().option("--status-socket").option(&socket);
    let _helper = setup.start();
    let device = status(&socket)["device"].clone();
    assert_eq!(device["kind"], "veth");
    let reason = device["reason"].as_str().expect("a reason");
    assert!(reason.contains("/dev/net/tun"), "{reason}");
    assert_works(world, &world.guest);
    let names = world.guest.net.run(|| {
        nix::net::if_::if_nameindex()
            .expect("interfaces")
            .iter()
            .count()
    });
    assert_eq!(names, 2, "lo and tap0: our end is not the guest's");
}

fn under_other_names(world: &mut World) {
    hide_tun();
    let setup = world
        .helper()
        .by_name("slirp4netns")
        .option("--enable-ipv6");
    let _helper = setup.start();
    assert_works(world, &world.guest);
}

fn a_tap_that_is_asked_for(world: &mut World) {
    hide_tun();
    let (code, text) = world.helper().option("--device=tap").fail();
    assert_eq!(code, 1, "{text}");
    assert!(
        text.starts_with("coracle-net: ") && text.contains("/dev/net/tun"),
        "{text}"
    );
}

/// The kernel takes a moment to remove the interface: the next helper waits for the name.
fn back_after_a_kill(world: &mut World) {
    for _ in 0..5 {
        let helper = world.helper().option("--device=veth").start();
        helper.signal(Signal::KILL);
        assert_eq!(helper.wait().code(), None);
    }
    let _helper = world.helper().option("--device=veth").start();
    assert_works(world, &world.guest);
}

/// More than its buffer holds, in user space all the time, at both MTUs.
fn everything_arrives(world: &mut World) {
    const LEN: usize = 64 << 20;
    for mtu in [1500, 65520] {
        let setup = world.helper().mtu(mtu).option("--device=veth");
        let _helper = setup.option("--promote=off").start();
        for family in Family::BOTH {
            let service = listen(&world.host, family.host(), 0);
            let mut guest = connect(&world.guest.net, service.local_addr().expect("bound"));
            let (mut remote, _) = accept(&service);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    Pattern::new(1).send(&mut guest, LEN).expect("send");
                    Pattern::new(2).expect(&mut guest, LEN);
                });
                Pattern::new(1).expect(&mut remote, LEN);
                Pattern::new(2).send(&mut remote, LEN).expect("send");
            });
        }
    }
}

fn the_guest_deletes_it(world: &mut World) {
    let helper = world.helper().option("--device=veth").start();
    let delete = || Command::new("ip").args(["link", "del", "tap0"]).status();
    let deleted = world.guest.net.run(delete).expect("run ip");
    assert!(deleted.success());
    assert_eq!(helper.wait().code(), Some(0));
}
