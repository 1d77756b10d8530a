//! What layers make of each other, and whose files they hold.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;

use tar::EntryType;

use crate::harness::{OverlayStore, World, cases, unique};
use crate::recipe::{Layer, RUN, Recipe, layer_dirs, run_image};

cases![
    owners_are_the_images,
    upper_layers_take_away_and_replace,
    a_layer_goes_on_where_the_lower_ones_ended,
    attributes_and_times_are_kept,
    owners_of_whatever_kind_of_file_leave_with_it,
    layers_are_unpacked_once,
    other_sub_ids_have_other_layers;
    layers_are_copied_where_no_overlay_can_be,
];

#[track_caller]
fn sh(world: &World, script: &str) -> String {
    let words = ["-u", "0", "image:1", "sh", "-c", script];
    run_image(world, &words).success().to_owned()
}

fn load(world: &World, layers: impl IntoIterator<Item = Layer>) {
    let all = [Layer::busybox(world)].into_iter().chain(layers);
    Recipe::new("localhost/image:1", all).load(world);
}

fn owners_are_the_images(world: &World) {
    let layer = Layer::new()
        .dir("home", 0o2750, 1001)
        .file("home/own", 0o600, 1001, b"own")
        .file("setuid", 0o4755, 48, b"")
        .symlink("link", "home")
        .entry(EntryType::Fifo, "fifo", "", 0o640, 48, b"");
    load(world, [layer]);
    let look = "stat -c '%n %u %a' home home/own setuid fifo; stat -c %u link; cat home/own";
    if world.has_single_id() {
        let expected = "home 0 750\nhome/own 0 600\nsetuid 0 755\nfifo 0 640\n0\nown";
        assert_eq!(sh(world, look), expected);
        // Who should own them is kept for whoever has more IDs.
        let dirs = layer_dirs(world);
        let file = dirs
            .iter()
            .map(|dir| dir.join("home/own"))
            .find(|file| file.exists());
        let mut owner = [0; 64];
        let file = file.expect("unpacked");
        let len = rustix::fs::getxattr(&file, "user.containers.override_stat", &mut owner);
        assert_eq!(&owner[..len.expect("kept")], b"1001:1001:0600");
        return;
    }
    let expected = "home 1001 2750\nhome/own 1001 600\nsetuid 48 4755\nfifo 48 640\n0\nown";
    assert_eq!(sh(world, look), expected);
    let who = "ls -ld home setuid bin";
    let seen = sh(world, who);
    for name in ["default", "apache", "root"] {
        assert!(seen.contains(name), "{seen}");
    }
}

/// Also where there is but one ID.
fn owners_of_whatever_kind_of_file_leave_with_it(world: &World) {
    let lower = Layer::new()
        .dir("home", 0o750, 1001)
        .file("home/file", 0o600, 48, b"")
        .entry(EntryType::Symlink, "home/link", "file", 0o777, 48, b"")
        .entry(EntryType::Symlink, "home/remade", "file", 0o777, 48, b"")
        .entry(EntryType::Fifo, "home/fifo", "", 0o640, 48, b"");
    let long = "l".repeat(90);
    let upper = Layer::new().entry(
        EntryType::Symlink,
        &format!("home/{long}"),
        "/",
        0o777,
        7,
        b"",
    );
    load(world, [lower, upper]);
    let name = unique("owners");
    let words = [
        "run",
        "--name",
        &name,
        "--network",
        "none",
        "-u",
        "0",
        "image:1",
        "sh",
        "-c",
    ];
    let script = "cd home; rm remade; ln -s new remade; echo x >new; mv link moved; mv moved link";
    world
        .try_coracle(&[&words[..], &[script]].concat())
        .success();
    world
        .try_coracle(&["export", "-o", "all.tar", &name])
        .success();
    let tar = fs::read(world.path("all.tar")).expect("a tar");
    let mut owners = std::collections::BTreeMap::new();
    for entry in tar::Archive::new(&tar[..]).entries().expect("a tar") {
        let entry = entry.expect("an entry");
        let path = entry.path().expect("a path").display().to_string();
        owners.insert(path, entry.header().uid().expect("a number"));
    }
    let expected = [
        ("home/", 1001),
        ("home/file", 48),
        ("home/link", 48),
        ("home/fifo", 48),
        ("home/remade", 0),
        ("home/new", 0),
        (&format!("home/{long}"), 7),
    ];
    for (path, owner) in expected {
        assert_eq!(owners.get(path), Some(&owner), "{path}: {owners:?}");
    }
    world.try_coracle(&["rm", &name]).success();
}

fn upper_layers_take_away_and_replace(world: &World) {
    let lower = Layer::new()
        .dir("d", 0o755, 0)
        .file("d/gone", 0o644, 0, b"")
        .file("d/kept", 0o644, 0, b"")
        .dir("whole", 0o755, 0)
        .file("whole/a/b/c", 0o644, 0, b"")
        .dir("opaque", 0o700, 0)
        .file("opaque/old", 0o644, 0, b"")
        .file("opaque/deep/old", 0o644, 0, b"")
        .file("late/old", 0o644, 0, b"")
        .file("late/deep/old", 0o644, 0, b"")
        .file("file", 0o644, 0, b"lower")
        .dir("dir", 0o755, 0)
        .file("dir/in", 0o644, 0, b"");
    let upper = Layer::new()
        .file("d/.wh.gone", 0o644, 0, b"")
        .file(".wh.whole", 0o644, 0, b"")
        .file("opaque/.wh..wh..opq", 0o644, 0, b"")
        .file("opaque/new", 0o644, 0, b"")
        // What comes before the marker stays.
        .file("late/new", 0o644, 0, b"")
        .file("late/deep/new", 0o644, 0, b"")
        .file("late/.wh..wh..opq", 0o644, 0, b"")
        .dir("file", 0o755, 0)
        .file("file/in", 0o644, 0, b"")
        .symlink("dir", "d")
        .file(".wh.no-such", 0o644, 0, b"")
        .file("d/.wh..wh.plnk", 0o644, 0, b"");
    let third = Layer::new()
        .file("whole/new", 0o644, 0, b"")
        .file("d/gone", 0o644, 0, b"back");
    load(world, [lower, upper]);
    let look = "for d in d file late late/deep opaque; do echo $d:; ls -A $d; done; ls whole 2>/dev/null; readlink dir; ls -A dir/";
    assert_eq!(
        sh(world, look),
        "d:\nkept\nfile:\nin\nlate:\ndeep\nnew\nlate/deep:\nnew\nopaque:\nnew\nd\nkept\n"
    );
    let lower = Layer::new()
        .file("whole/a", 0o644, 0, b"")
        .file("d/gone", 0o644, 0, b"");
    let upper = Layer::new()
        .file(".wh.whole", 0o644, 0, b"")
        .file("d/.wh.gone", 0o644, 0, b"");
    load(world, [lower, upper, third]);
    assert_eq!(sh(world, "ls whole; cat d/gone"), "new\nback");
}

fn a_layer_goes_on_where_the_lower_ones_ended(world: &World) {
    let lower = Layer::new()
        .dir("private", 0o700, 0)
        .file("private/one", 0o644, 0, b"one")
        .dir("usr", 0o755, 0)
        .dir("usr/lib", 0o755, 0)
        .symlink("lib", "usr/lib");
    let upper = Layer::new()
        .file("private/two", 0o644, 0, b"two")
        .file("lib/through", 0o644, 0, b"through")
        .link("linked", "private/one")
        .link("again", "linked");
    load(world, [lower, upper]);
    assert_eq!(
        sh(
            world,
            "stat -c %a private; cat usr/lib/through linked again; readlink lib"
        ),
        "700\nthroughoneoneusr/lib\n"
    );
}

fn attributes_and_times_are_kept(world: &World) {
    // CAP_NET_RAW, permitted and effective, with a newline's byte in it.
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let layer = Layer::new()
        .dir("kept", 0o755, 0)
        .attributed(
            "kept/file",
            &[
                ("security.capability", &capability),
                ("user.mine", b"a\nb"),
                ("user.overlay.opaque", b"y"),
                ("trusted.overlay.opaque", b"y"),
            ],
        )
        .attributed("kept/other", &[("user.overlay.redirect", b"/etc")]);
    load(world, [layer]);
    assert_eq!(
        sh(world, "stat -c %Y kept kept/file"),
        "1700000000\n1700000000\n"
    );
    let dirs = layer_dirs(world);
    let file = dirs
        .iter()
        .map(|dir| dir.join("kept/file"))
        .find(|file| file.exists());
    let file = file.expect("unpacked");
    let mut names = [0; 1024];
    let len = rustix::fs::listxattr(&file, &mut names).expect("a list");
    let names = String::from_utf8_lossy(&names[..len]).into_owned();
    assert!(
        names.contains("user.mine") && names.contains("security.capability"),
        "{names}"
    );
    assert!(!names.contains("overlay.opaque\0"), "{names}");
}

fn layers_are_unpacked_once(world: &World) {
    let base = || Layer::busybox(world);
    Recipe::new(
        "localhost/one:1",
        [base(), Layer::new().file("a", 0o644, 0, b"")],
    )
    .load(world);
    let inodes = || {
        let mut inodes: Vec<_> = layer_dirs(world)
            .iter()
            .map(|dir| fs::metadata(dir).expect("a layer").ino())
            .collect();
        inodes.sort_unstable();
        inodes
    };
    let first = inodes();
    assert_eq!(first.len(), 2);
    Recipe::new(
        "localhost/two:1",
        [base(), Layer::new().file("b", 0o644, 0, b"")],
    )
    .load(world);
    let both = inodes();
    assert_eq!(both.len(), 3);
    assert!(first.iter().all(|inode| both.contains(inode)));
    world.try_coracle(&["rmi", "one:1"]).success();
    assert_eq!(inodes().len(), 2);
    run_image(world, &["two:1", "true"]).success();
}

/// Files keep to the IDs that they were unpacked with: with others they are unpacked anew.
fn other_sub_ids_have_other_layers(world: &World) {
    if world.has_single_id() || world.is_root() {
        return;
    }
    load(world, [Layer::new().file("own", 0o644, 1001, b"")]);
    assert_eq!(sh(world, "stat -c %u own"), "1001\n");
    // Without newuidmap there is but one ID.
    let program = crate::harness::coracle().to_str().expect("a plain path");
    let words = ["image:1", "stat", "-c", "%u", "own"];
    let words = [&["PATH=/nowhere", program][..], &RUN, &words].concat();
    let command = world.command(&[OsStr::new("/usr/bin/env")], words);
    let ran = crate::harness::finish(command);
    assert_eq!(ran.success(), "0\n", "{ran:?}");
    assert!(ran.stderr.contains("newuidmap"), "{ran:?}");
    assert_eq!(sh(world, "stat -c %u own"), "1001\n");
    world.try_coracle(&["rmi", "-a"]).success();
    assert!(layer_dirs(world).is_empty());
}

fn layers_are_copied_where_no_overlay_can_be(world: &World) {
    let overlay = OverlayStore::of(world);
    let lower = Layer::new()
        .dir("d", 0o750, 0)
        .file("d/a", 0o644, 0, b"lower")
        .file("d/gone", 0o644, 0, b"")
        .dir("whole", 0o755, 0)
        .file("whole/old", 0o644, 0, b"")
        .link("linked", "d/a");
    let upper = Layer::new()
        .file("d/.wh.gone", 0o644, 0, b"")
        .file("whole/.wh..wh..opq", 0o644, 0, b"")
        .file("whole/new", 0o644, 0, b"")
        .link("again", "linked");
    let top = Layer::new().file("d/b", 0o644, 0, b"top");
    load(world, [lower, upper, top]);
    if world.is_root() {
        // Its containers have other IDs, and an overlay cannot show files with others.
        let refused = run_image(world, &["image:1", "true"]);
        assert_eq!(refused.code(), Some(125), "{refused:?}");
        assert!(refused.stderr.contains("cannot copy"), "{refused:?}");
        return;
    }
    let look = "cat d/a d/b; ls d whole; stat -c %h d/a; stat -c %a d; echo x >d/mine";
    let expected = "lowertopd:\na\nb\n\nwhole:\nnew\n3\n750\n";
    assert_eq!(sh(world, look), expected);
    // What one changes is not the next one's.
    assert_eq!(sh(world, look), expected);
    let saved = crate::building::saved(world, "image:1").1;
    assert_eq!(saved.len(), 4, "the layers are the image's own");
    // Changes stay with their container.
    let words = ["run", "--network", "none", "--name", "kept", "image:1"];
    let script = ["sh", "-c", "echo x >>/changed; cat /changed"];
    let first = world.try_coracle(&[&words[..], &script].concat());
    assert_eq!(first.success(), "x\n");
    assert_eq!(first.stderr.matches("copy of its whole image").count(), 1);
    world.try_coracle(&["rm", "kept"]).success();
    // Making images takes an overlay, and that is said.
    crate::recipe::put(world, "context/Containerfile", b"FROM image:1\nRUN true\n");
    let refused = world.try_coracle(&["build", "context"]);
    drop(overlay);
    assert_eq!(refused.code(), Some(125), "{refused:?}");
    assert!(refused.stderr.contains("an overlay itself"), "{refused:?}");
}
