//! Root file systems of several layers, which the example `engine` asks the library for.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};

use crate::harness::{Outcome, World, cases, example, finish, snapshot};

cases![
    an_upper_layer_hides_and_adds,
    a_great_number_of_layers_is_one_tree,
    layers_that_cannot_be_are_refused,
];

/// Runs a shell script on `lowers`, the uppermost first, and then the busybox tree.
fn run(world: &World, mode: &str, lowers: &[PathBuf], script: &str) -> Outcome {
    let lowers = [lowers, &[world.rootfs()]].concat();
    let count = OsString::from(lowers.len().to_string());
    let words = ["layers".into(), mode.into(), count];
    let paths = lowers.into_iter().map(PathBuf::into_os_string);
    let command = ["sh", "-c", script].map(OsString::from);
    let words: Vec<_> = words.into_iter().chain(paths).chain(command).collect();
    finish(world.command(&[example().as_os_str()], words))
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a directory")).expect("made");
    fs::write(path, text).expect("written");
}

fn whiteout(path: &Path) {
    fs::create_dir_all(path.parent().expect("a directory")).expect("made");
    mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).expect("a whiteout");
}

fn opaque(dir: &Path) {
    fs::create_dir_all(dir).expect("made");
    setxattr(dir, "user.overlay.opaque", b"y", XattrFlags::empty()).expect("an opaque directory");
}

fn an_upper_layer_hides_and_adds(world: &World) {
    // What the options of mounts are divided by.
    let lower = world.path("lower: a,b\\c=d");
    let upper = world.path("upper:,\\:");
    write(&lower.join("gone"), "lower");
    write(&lower.join("kept"), "lower");
    write(&lower.join("replaced"), "lower");
    write(&lower.join("opaque/lower"), "");
    write(&lower.join("merged/lower"), "");
    whiteout(&upper.join("gone"));
    write(&upper.join("replaced"), "upper");
    opaque(&upper.join("opaque"));
    write(&upper.join("opaque/upper"), "");
    write(&upper.join("merged/upper"), "");
    // Of the busybox tree, which is the lowest.
    whiteout(&lower.join("bin/false"));
    let layers = [upper, lower];
    for layer in &layers {
        world.give_away(layer);
    }
    let before = layers.each_ref().map(|layer| snapshot(layer));

    let look = "cat kept replaced; echo; ls opaque; ls merged; ls gone bin/false 2>&1 | wc -l; \
                { echo new >kept; rm replaced; } 2>/dev/null && cat kept && ls replaced || true; \
                ls -d tmp proc/self";
    let seen = "lowerupper\nupper\nlower\nupper\n2\n";
    let changed = run(world, "rw", &layers, look);
    let expected = format!("{seen}new\nproc/self\ntmp\nexit code 0\n");
    assert_eq!(changed.success(), expected, "{changed:?}");
    let unchanged = run(world, "ro", &layers, look);
    let expected = format!("{seen}proc/self\ntmp\nexit code 0\n");
    assert_eq!(unchanged.success(), expected, "{unchanged:?}");
    // What is mounted upon it can be.
    let write =
        "for d in / /tmp /etc /dev/shm; do { echo x >$d/x; } 2>/dev/null && echo $d; done; true";
    let written = run(world, "ro", &layers, write);
    let expected = "/tmp\n/dev/shm\nexit code 0\n";
    assert_eq!(written.success(), expected, "{written:?}");
    assert_eq!(before, layers.each_ref().map(|layer| snapshot(layer)));
}

fn a_great_number_of_layers_is_one_tree(world: &World) {
    const COUNT: usize = 120;
    let layers: Vec<_> = (0..COUNT)
        .map(|number| {
            // Longer, all together, than a page.
            let layer = world.path(&format!("layer-{number}-{}", "x".repeat(60)));
            write(&layer.join("top"), &number.to_string());
            write(&layer.join(format!("all/{number}")), "");
            // Each takes away what the one below it has made.
            write(&layer.join(format!("brief/{number}")), "");
            if number + 1 < COUNT {
                whiteout(&layer.join(format!("brief/{}", number + 1)));
            }
            world.give_away(&layer);
            layer
        })
        .collect();
    for mode in ["rw", "ro"] {
        let ended = run(
            world,
            mode,
            &layers,
            "cat top; echo; ls all | wc -l; ls brief",
        );
        let expected = format!("0\n{COUNT}\n0\nexit code 0\n");
        assert_eq!(ended.success(), expected, "{mode}: {ended:?}");
    }
}

fn layers_that_cannot_be_are_refused(world: &World) {
    let engine = |words: &[&str]| {
        finish(world.command(&[example().as_os_str()], words.iter().map(OsStr::new)))
    };
    let rootfs = world.rootfs();
    let rootfs = rootfs.to_str().expect("a plain path");
    let many = vec![rootfs; 501];
    for (words, said) in [
        (
            [&["layers", "rw", "0"][..], &["true"]].concat(),
            "Layers { count: 0 }",
        ),
        (
            [&["layers", "rw", "501"][..], &many, &["true"]].concat(),
            "Layers { count: 501 }",
        ),
        (
            vec!["layers", "rw", "2", rootfs, "/no/such/dir", "true"],
            "/no/such/dir",
        ),
        (
            vec!["layers", "rw", "2", rootfs, "/etc/passwd", "true"],
            "/etc/passwd",
        ),
        // The kernel's word: one of them is within another.
        (
            vec!["layers", "rw", "2", rootfs, rootfs, "true"],
            "cannot mount an overlay over",
        ),
    ] {
        let refused = engine(&words);
        assert_eq!(refused.code(), Some(1));
        assert!(refused.stderr.contains(said), "{refused:?}");
    }
}
