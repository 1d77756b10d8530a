//! Helpers that the host's root starts: they end up as somebody else, without a capability over the
//! host, and work all the same. What a helper has is looked at thread by thread.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::dns::{assert_answered_by_elsewhere, replace_by_rename, resolv_conf_changes};
use crate::harness::traffic::{EchoServer, assert_echo, connect};
use crate::harness::{Case, Family, Guest, GuestUsers, Helper, Setup, World, root_case};
use crate::haul::{Watched, connection, ends_of};
use crate::icmp::pings;
use crate::options::{assert_works, status};

pub const CASES: &[Case] = &[
    root_case("root::hosts_own_namespace", hosts_own_namespace),
    root_case("root::resolv_conf_is_followed", |world| {
        resolv_conf_changes(world, replace_by_rename)
    }),
    root_case("root::unreadable_resolv_conf", unreadable_resolv_conf),
    root_case("root::pings", |world| {
        world.host.sysctl("ipv4/ping_group_range", "0 65534");
        pings(world, Family::elsewhere)
    }),
    root_case("root::host_net_admin_on_demand", host_net_admin_on_demand),
    root_case(
        "root::promote_always_asks_for_it",
        promote_always_asks_for_it,
    ),
    root_case("root::mapped_user_namespace", |world| {
        guest_of(world, GuestUsers::From(SUB_ID), SUB_ID)
    }),
    root_case("root::user_namespace_of_root_alone", |world| {
        guest_of(world, GuestUsers::Own, NOBODY)
    }),
    root_case("root::ip_netns", ip_netns),
];

const NOBODY: u32 = 65534;
/// Where the IDs of a mapped guest begin.
const SUB_ID: u32 = 300_000;
/// CAP_NET_ADMIN and CAP_NET_BIND_SERVICE.
const NETWORK: u64 = 1 << 12 | 1 << 10;

/// As with `ip netns add`: no capability stays, so nothing is promoted, and status says why.
fn hosts_own_namespace(world: &mut World) {
    let socket = world.dir.join("status.sock");
    let setup = world.helper().publish("80:80");
    let helper = setup.option("--status-socket").option(&socket).start();
    assert_privileges(&helper, NOBODY, 0);
    assert_works(world, &world.guest);
    let _service = EchoServer::start(&world.guest.net, Family::V4.guest(), 80);
    assert_echo(
        &mut connect(&world.elsewhere, (Family::V4.host(), 80).into()),
        b"published on a port of root's",
    );
    let unavailable = &status(&socket)["promotion"]["unavailable"];
    let why = unavailable.as_str().expect("a reason");
    assert!(why.contains("--keep-host-net-admin"), "{why}");
    drop(helper);
    // Though the directory is root's, and the helper is not.
    assert!(!socket.exists());
}

/// What was read stays known when it can be read no more: as root, without any capability, one may
/// not read what another user keeps to himself.
fn unreadable_resolv_conf(world: &mut World) {
    use std::os::unix::fs::{PermissionsExt, chown};
    let _helper = world.helper().start();
    chown("/etc", Some(NOBODY), None).expect("give /etc away");
    fs::set_permissions("/etc", fs::Permissions::from_mode(0o700)).expect("hide /etc");
    replace_by_rename("nameserver 203.0.113.9\n");
    // Time for the helper to notice.
    std::thread::sleep(Duration::from_millis(300));
    assert_answered_by_elsewhere(world, Family::V4.dns());
    chown("/etc", Some(0), None).expect("take /etc back");
    fs::set_permissions("/etc", fs::Permissions::from_mode(0o755)).expect("show /etc");
}

fn host_net_admin_on_demand(world: &mut World) {
    let setup = world.helper().option("--keep-host-net-admin");
    let helper = Watched::start(setup.option("--promote=always"), &world.dir);
    assert_privileges(&helper.helper, NOBODY, NETWORK);
    assert_promotes(world, helper);
}

fn promote_always_asks_for_it(world: &mut World) {
    let (code, text) = world.helper().option("--promote=always").fail();
    assert_eq!(code, 1, "{text}");
    assert!(
        text.starts_with("coracle-net: ") && text.contains("--keep-host-net-admin"),
        "{text}"
    );
}

/// In a user namespace of the guest's own the helper is `uid` of the host, and the capabilities
/// that it keeps are worth nothing outside.
fn guest_of(world: &mut World, users: GuestUsers, uid: u32) {
    world.guest = Guest::new(users);
    let helper = Watched::start(world.helper().option("--promote=always"), &world.dir);
    assert_privileges(&helper.helper, uid, NETWORK);
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).expect("a link");
    assert_ne!(
        namespace(&helper.helper.pid().to_string()),
        namespace("self")
    );
    assert_works(world, &world.guest);
    assert_promotes(world, helper);
}

fn assert_promotes(world: &World, helper: Watched) {
    let (guest, remote) = connection(world, Family::V4, None);
    helper.haul(&guest, &remote);
    assert!(helper.is_promoted(ends_of(&guest)));
    drop(helper);
    assert!(!world.dir.join("status.sock").exists());
}

/// A mounted namespace, in a directory that only root may enter.
fn ip_netns(world: &mut World) {
    use std::os::unix::fs::DirBuilderExt;
    let dir = world.dir.join("netns");
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&dir)
        .expect("make a directory");
    let path = dir.join("x");
    crate::lifecycle::bind(
        Path::new(&format!("/proc/{}/ns/net", world.guest.pid)),
        &path,
    );
    let mut helper = Setup::new(&path).start();
    assert_privileges(&helper, NOBODY, 0);
    assert_works(world, &world.guest);
    assert!(helper.is_running());
    nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH).expect("unmount");
    assert_eq!(helper.wait().code(), Some(0));
    fs::remove_dir_all(dir).expect("remove the directory");
}

/// Every thread has `id` for all its user and group IDs, no other group, and no more than
/// `capabilities`.
fn assert_privileges(helper: &Helper, id: u32, capabilities: u64) {
    let threads = helper.of_each_thread("status");
    assert!(threads.len() > 1, "the guest's thread is there");
    for status in threads {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let value = line.unwrap_or_else(|| panic!("{name} in {status}"));
            value.trim_start_matches(':').trim().to_owned()
        };
        let ids = [id; 4].map(|id| id.to_string()).join("\t");
        assert_eq!((field("Uid"), field("Gid")), (ids.clone(), ids), "{status}");
        assert_eq!(field("Groups"), "", "{status}");
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(field(set), format!("{capabilities:016x}"), "{set}");
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(field(set), format!("{:016x}", 0), "{set}");
        }
        assert_eq!(field("NoNewPrivs"), "1");
    }
}
