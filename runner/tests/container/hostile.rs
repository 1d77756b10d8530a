//! Images that try to reach the host, or to hang whoever starts them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::harness::{World, cases, finish, snapshot};

cases![
    kernel_directories_that_are_links_are_refused,
    files_that_are_links_are_followed_inside_only,
    a_directory_of_a_volume_cannot_be_moved_outside,
    volumes_do_not_follow_links_into_proc,
    working_directories_through_descriptors_are_refused,
    a_passwd_file_that_is_none_hangs_nobody,
    coracle_cannot_be_made_the_entry_point,
];

/// Starts `true` in a tree that `spoil` has changed, `outside` being a directory that must stay as
/// it is.
fn start_spoiled(
    world: &World,
    name: &str,
    spoil: impl FnOnce(&Path, &Path),
) -> crate::harness::Outcome {
    let outside = world.path(&format!("{name}-outside"));
    fs::create_dir(&outside).expect("a directory");
    fs::write(outside.join("file"), "untouched").expect("a file");
    let rootfs = world.make_rootfs(name);
    spoil(&rootfs, &outside);
    world.give_away(&rootfs);
    world.give_away(&outside);
    let (tree, host) = (snapshot(&rootfs), snapshot(&outside));
    let args = [
        "run",
        "--rm",
        "--network",
        "none",
        "--rootfs",
        rootfs.to_str().expect("plain"),
        "cat",
        "/etc/hosts",
    ];
    let outcome = finish(world.coracle(args));
    assert_eq!(snapshot(&outside), host, "{name}: the host's directory");
    assert_eq!(snapshot(&rootfs), tree, "{name}: the image's directory");
    outcome
}

fn replace_by_link(rootfs: &Path, name: &str, target: &Path) {
    let path = rootfs.join(name);
    let _ = fs::remove_dir(&path);
    symlink(target, path).expect("a link");
}

fn kernel_directories_that_are_links_are_refused(world: &World) {
    for name in ["dev", "proc", "sys"] {
        for (kind, climb) in [("absolute", ""), ("relative", "../../../../../..")] {
            let outcome = start_spoiled(world, &format!("{name}-{kind}"), |rootfs, outside| {
                let target = format!("{climb}{}", outside.display());
                replace_by_link(rootfs, name, Path::new(&target));
            });
            assert_eq!(outcome.code(), Some(125), "{name} {kind}: {outcome:?}");
            assert!(outcome.stderr.contains(&format!("/{name}")), "{outcome:?}");
        }
    }
}

fn files_that_are_links_are_followed_inside_only(world: &World) {
    for (kind, climb) in [("absolute", ""), ("relative", "../../../../../../..")] {
        let outcome = start_spoiled(world, &format!("hosts-{kind}"), |rootfs, outside| {
            for (file, target) in [
                ("hosts", "file"),
                ("resolv.conf", "new"),
                ("hostname", "deep/er/new"),
            ] {
                let target = format!("{climb}{}/{target}", outside.display());
                symlink(target, rootfs.join("etc").join(file)).expect("a link");
            }
        });
        // What the link names inside has been made, and is the container's own.
        assert!(outcome.success().contains("localhost"), "{outcome:?}");
    }
    let looped = start_spoiled(world, "loop", |rootfs, _| {
        symlink("hosts", rootfs.join("etc/hosts")).expect("a link");
    });
    assert!(
        looped.stderr.contains("goes without /etc/hosts"),
        "{looped:?}"
    );
}

fn a_directory_of_a_volume_cannot_be_moved_outside(world: &World) {
    let outcome = start_spoiled(world, "etc-link", |rootfs, outside| {
        replace_by_link(
            rootfs,
            "etc",
            &Path::new("../../../../../../..").join(outside.strip_prefix("/").expect("absolute")),
        );
    });
    assert!(outcome.success().contains("localhost"), "{outcome:?}");
}

fn volumes_do_not_follow_links_into_proc(world: &World) {
    symlink("/proc", world.rootfs().join("innocent")).expect("a link");
    let refused = world.run(
        &[
            "-v",
            &format!("{}:/innocent/sys", world.path("home").display()),
        ],
        &["true"],
    );
    assert_eq!(refused.code(), Some(125));
    assert!(refused.stderr.contains("/innocent/sys"), "{refused:?}");
}

fn working_directories_through_descriptors_are_refused(world: &World) {
    for fd in 3..20 {
        let refused = world.run(&["-w", &format!("/proc/self/fd/{fd}")], &["pwd"]);
        assert_eq!(refused.code(), Some(126), "{refused:?}");
    }
    symlink("/proc/self/fd/7/../..", world.rootfs().join("work")).expect("a link");
    assert_eq!(world.run(&["-w", "/work"], &["pwd"]).code(), Some(126));
    assert_eq!(
        world.run(&["-w", "/proc/self/cwd"], &["pwd"]).code(),
        Some(126)
    );
}

fn a_passwd_file_that_is_none_hangs_nobody(world: &World) {
    let passwd = world.rootfs().join("etc/passwd");
    nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::from_bits_truncate(0o644)).expect("a fifo");
    world.give_away(&passwd);
    let refused = world.run(&[], &["true"]);
    assert_eq!(refused.code(), Some(125));
    assert!(
        refused.stderr.contains("/etc/passwd") || refused.stderr.contains("etc/passwd"),
        "{refused:?}"
    );
    fs::remove_file(&passwd).expect("removed");
    symlink("/dev/zero", &passwd).expect("a link");
    assert_eq!(world.run(&[], &["true"]).code(), Some(125));
    fs::remove_file(&passwd).expect("removed");
    symlink("../../../../../../../etc/shadow", &passwd).expect("a link");
    world.run(&[], &["true"]).success();
}

/// An entry point that is coracle itself, CVE-2019-5736.
fn coracle_cannot_be_made_the_entry_point(world: &World) {
    let script = world.rootfs().join("bin/entry");
    fs::write(&script, "#!/proc/self/exe\n").expect("a script");
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("executable");
    let before = fs::read(crate::harness::coracle()).expect("the program");
    let outcome = world.run(&[], &["/bin/entry"]);
    assert_ne!(outcome.code(), Some(0), "{outcome:?}");
    assert!(fs::read(crate::harness::coracle()).expect("the program") == before);
}
