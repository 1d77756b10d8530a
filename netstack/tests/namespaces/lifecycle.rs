//! How a helper begins and ends: readiness, signals, its guest's end, a crash, and set-up that
//! cannot succeed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::process::Signal;

use crate::harness::traffic::{EchoServer, assert_echo, connect};
use crate::harness::{Case, Family, Setup, World, case, sys};

pub const CASES: &[Case] = &[
    case("lifecycle::sigterm_is_exit_0", |world| {
        signal_ends_helper(world, Signal::TERM)
    }),
    case("lifecycle::sigint_is_exit_0", |world| {
        signal_ends_helper(world, Signal::INT)
    }),
    case(
        "lifecycle::ends_with_connections_open",
        ends_with_connections_open,
    ),
    case(
        "lifecycle::target_exit_ends_helper",
        target_exit_ends_helper,
    ),
    case("lifecycle::exit_fd_ends_helper", exit_fd_ends_helper),
    case("lifecycle::crash_leaves_nothing", crash_leaves_nothing),
    case("lifecycle::tap_exists", tap_exists),
    case("lifecycle::no_such_target", no_such_target),
    case("lifecycle::unmounting_the_path_ends_helper", |world| {
        path_goes(world, |path| {
            umount2(path, MntFlags::MNT_DETACH).expect("unmount, as `ip netns del` does");
        })
    }),
    case("lifecycle::a_plain_unmount_is_not_busy", |world| {
        path_goes(world, |path| umount(path).expect("nobody has it open"))
    }),
    case("lifecycle::removing_the_path_ends_helper", |world| {
        path_goes(world, remove_from_elsewhere)
    }),
    case("lifecycle::replacing_the_path_ends_helper", |world| {
        path_goes(world, |path| {
            umount2(path, MntFlags::MNT_DETACH).expect("unmount");
            bind(Path::new("/proc/self/ns/net"), path);
        })
    }),
    case("lifecycle::covering_the_path_ends_helper", |world| {
        path_goes(world, |path| bind(Path::new("/proc/self/ns/net"), path))
    }),
    case("lifecycle::link_to_a_process_ends_with_it", |world| {
        let link = world.dir.join("netns");
        symlink(format!("/proc/{}/ns/net", world.guest.pid), &link).expect("make a link");
        process_in_path_ends(world, &link);
        fs::remove_file(link).expect("remove the link");
    }),
    case("lifecycle::process_in_path_ends_helper", |world| {
        let path = format!("/proc/{}/ns/net", world.guest.pid);
        process_in_path_ends(world, Path::new(&path));
    }),
    case("lifecycle::goes_by_its_own_name", goes_by_its_own_name),
];

fn signal_ends_helper(world: &mut World, signal: Signal) {
    let helper = world.helper().start();
    helper.signal(signal);
    assert_eq!(helper.wait().code(), Some(0));
}

/// Open connections do not hold the helper back, and the remote learns that they are gone.
fn ends_with_connections_open(world: &mut World) {
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    let helper = world.helper().publish("8080:80").start();
    let _service = EchoServer::start(&world.guest.net, Family::V4.guest(), 80);
    let mut outbound = connect(&world.guest.net, server.address);
    let mut published = connect(&world.elsewhere, (Family::V4.host(), 8080).into());
    assert_echo(&mut outbound, b"outbound");
    assert_echo(&mut published, b"published");
    helper.signal(Signal::TERM);
    assert_eq!(helper.wait().code(), Some(0));
    use std::io::Read;
    assert!(
        !matches!(published.read(&mut [0]), Ok(1..)),
        "the client is let go"
    );
}

fn target_exit_ends_helper(world: &mut World) {
    let helper = world.helper().start();
    // A thread still keeps the namespace, so the helper has to watch the process.
    let _held = crate::harness::traffic::listen(&world.guest.net, Family::V4.loopback(), 0);
    world.guest.kill_process();
    assert_eq!(helper.wait().code(), Some(0));
}

fn exit_fd_ends_helper(world: &mut World) {
    let (watched, ours) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
    let mut helper = world
        .helper()
        .option("--exit-fd")
        .option(sys::inherit(&watched).to_string())
        .start();
    drop(watched);
    assert!(helper.is_running());
    drop(ours);
    assert_eq!(helper.wait().code(), Some(0));
}

/// After `kill -9` the next helper works in the same namespace and binds the same ports.
fn crash_leaves_nothing(world: &mut World) {
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    let _service = EchoServer::start(&world.guest.net, Family::V4.guest(), 80);
    for _ in 0..3 {
        let helper = world.helper().publish("8080:80").start();
        assert_echo(&mut connect(&world.guest.net, server.address), b"outbound");
        assert_echo(
            &mut connect(&world.elsewhere, (Family::V4.host(), 8080).into()),
            b"published",
        );
        helper.signal(Signal::KILL);
        assert_eq!(helper.wait().code(), None);
        assert!(
            world
                .guest
                .net
                .run(|| nix::net::if_::if_nametoindex("tap0").is_err()),
            "the tap is gone"
        );
    }
}

/// Two helpers on one namespace: the second says so and leaves the first alone.
fn tap_exists(world: &mut World) {
    let _first = world.helper().start();
    let (code, text) = world.helper().fail();
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("tap0"), "{text}");
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    assert_echo(
        &mut connect(&world.guest.net, server.address),
        b"the first goes on",
    );
}

fn no_such_target(_: &mut World) {
    for target in ["4194305", "/proc/self/ns/absent"] {
        let (code, text) = Setup::new(target).fail();
        assert_eq!(code, 1, "{text}");
        assert!(
            text.starts_with("coracle-net: ") && text.contains(target),
            "{text}"
        );
    }
}

/// A helper of a mounted namespace goes when the mount does, although the namespace lives on, and
/// not before.
fn path_goes(world: &mut World, go: fn(&Path)) {
    let path = world.dir.join("netns");
    let server = EchoServer::start(&world.elsewhere, Family::V4.elsewhere(), 7);
    bind(
        Path::new(&format!("/proc/{}/ns/net", world.guest.pid)),
        &path,
    );
    let mut helper = Setup::new(&path).start();
    // Changes in the list of mounts that have nothing to do with it.
    let other = world.dir.join("other");
    bind(&path, &other);
    umount(&other).expect("unmount the other");
    fs::remove_file(&other).expect("remove the other");
    assert_echo(&mut connect(&world.guest.net, server.address), b"mounted");
    assert!(helper.is_running());
    go(&path);
    assert_eq!(helper.wait().code(), Some(0));
    while umount2(&path, MntFlags::MNT_DETACH).is_ok() {}
    if path.exists() {
        fs::remove_file(&path).expect("remove the file");
    }
}

/// Mounts the namespace at `source` over a file, new if need be, as `unshare --net=FILE` does.
pub fn bind(source: &Path, target: &Path) {
    if !target.exists() {
        fs::File::create(target).expect("make a file to mount over");
    }
    let none = None::<&str>;
    mount(Some(source), target, none, MsFlags::MS_BIND, none).expect("mount a namespace");
}

/// Removes the file in a mount namespace where nothing is mounted over it, and with it the mount in
/// ours.
fn remove_from_elsewhere(path: &Path) {
    let remove = || {
        unshare(CloneFlags::CLONE_NEWNS).expect("unshare a mount namespace");
        umount(path).expect("unmount there");
        fs::remove_file(path).expect("remove the file");
    };
    std::thread::scope(|scope| scope.spawn(remove).join()).expect("remove the file");
}

fn process_in_path_ends(world: &mut World, path: &Path) {
    let mut helper = Setup::new(path).option("--netns-type=path").start();
    let _held = crate::harness::traffic::listen(&world.guest.net, Family::V4.loopback(), 0);
    assert!(helper.is_running());
    world.guest.kill_process();
    assert_eq!(helper.wait().code(), Some(0));
}

/// `ps`, `top` and `ss` show what it is, although the runner starts it as /proc/self/exe.
fn goes_by_its_own_name(world: &mut World) {
    let alias = world.dir.join("exe");
    symlink(env!("CARGO_BIN_EXE_coracle-net"), &alias).expect("make a link");
    let helper = world.helper().program(&alias).start();
    assert_eq!(helper.thread_names(), ["coracle-net", "coracle-guest"]);
    fs::remove_file(alias).expect("remove the link");
}
