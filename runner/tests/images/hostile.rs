//! Layers that want out of their image, or to fill the disk.

use std::fs;
use std::process::Command;

use tar::EntryType;

use crate::harness::{World, cases, snapshot};
use crate::recipe::{Layer, Packed, Recipe, layer_dirs, load, pack, run_image, tar_of};

cases![
    no_layer_writes_outside_its_image,
    what_cannot_be_a_layer_is_refused,
    devices_are_left_out,
    a_bomb_ends_early,
];

/// Every way out that somebody has found in some program, around a file of the host's.
fn no_layer_writes_outside_its_image(world: &World) {
    let outside = world.path("outside");
    fs::create_dir(&outside).expect("a directory");
    fs::write(outside.join("secret"), "secret").expect("written");
    world.give_away(&outside);
    let before = snapshot(&outside);
    let path = outside.to_str().expect("a plain path");
    let dir = path.trim_start_matches('/');
    let ups = "../".repeat(12);
    let file = |layer: Layer, path: &str| layer.file(path, 0o666, 0, b"evil");
    let base = || Layer::busybox(world);
    let layers = [
        file(base(), &format!("{ups}{dir}/secret")),
        file(base(), &format!("{path}/secret")),
        file(base().symlink("way", path), "way/secret"),
        file(base().symlink("way", &format!("{ups}{dir}")), "way/secret"),
        file(
            base()
                .symlink("way", "/")
                .symlink("on", &format!("way{path}")),
            "on/secret",
        ),
        file(base().symlink("way", &format!("{path}/secret")), "way"),
        base()
            .link("stolen", &format!("{path}/secret"))
            .file("stolen", 0o666, 0, b"evil"),
        file(
            base().link("stolen", &format!("{ups}{dir}/secret")),
            "stolen",
        ),
        file(
            base().symlink("way", path).dir("way", 0o777, 0),
            "way/secret",
        ),
        base()
            .symlink("way", path)
            .entry(EntryType::Fifo, "way/secret", "", 0o666, 0, b""),
        base()
            .symlink("way", path)
            .file("way/.wh.secret", 0o666, 0, b""),
        base()
            .symlink("way", path)
            .file("way/.wh..wh..opq", 0o666, 0, b""),
        base().file(&format!("{ups}{dir}/.wh.secret"), 0o666, 0, b""),
    ];
    for (number, layer) in layers.into_iter().enumerate() {
        // As the lowest layer, and with one below.
        let below = Layer::busybox(world);
        let tar = layer.finish();
        for layers in [vec![tar.clone()], vec![below.finish(), tar]] {
            let image = Recipe {
                diff_ids: layers
                    .iter()
                    .map(|layer| crate::recipe::digest(layer))
                    .collect(),
                layers,
                ..Recipe::new("localhost/evil:1", [])
            };
            let loaded = load(world, &image.docker_archive());
            if loaded.code() == Some(0) {
                run_image(world, &["evil:1", "true"]);
            }
            assert_eq!(snapshot(&outside), before, "layer {number}: {loaded:?}");
        }
    }
    world.try_coracle(&["rmi", "-a"]).success();
    assert_eq!(snapshot(&outside), before);
}

fn what_cannot_be_a_layer_is_refused(world: &World) {
    let refused = |layer: Layer, why: &str| {
        let image = Recipe::new("localhost/bad:1", [Layer::busybox(world), layer]);
        let refused = load(world, &image.docker_archive());
        assert_eq!(refused.code(), Some(125), "{why}: {refused:?}");
        assert!(refused.stderr.contains(why), "{why}: {refused:?}");
        assert!(refused.stderr.contains("layer sha256:"), "{refused:?}");
    };
    refused(Layer::new().link("x", "/no/such"), "no/such");
    refused(Layer::new().link("x", "/"), "link to the root");
    refused(
        Layer::new().file("etc/passwd/x", 0o644, 0, b""),
        "etc/passwd",
    );
    refused(
        Layer::new()
            .symlink("way", "/no")
            .file("way/x", 0o644, 0, b""),
        "leads nowhere",
    );
    refused(
        Layer::new().file(".wh.x/y", 0o644, 0, b""),
        "within a whiteout",
    );
    refused(
        Layer::new().file(".wh...", 0o644, 0, b""),
        "whiteout's name",
    );
    refused(Layer::new().file(".wh.", 0o644, 0, b""), "whiteout's name");
    refused(
        Layer::new().entry(EntryType::GNUSparse, "s", "", 0o644, 0, b""),
        "sparse",
    );
    if !world.has_single_id() && !world.is_root() {
        refused(Layer::new().file("x", 0o644, 2_000_000, b""), "2000000");
    }
    assert_eq!(world.try_coracle(&["images", "-q"]).success(), "");
    let left = layer_dirs(world);
    world.try_coracle(&["rmi", "-a"]).success();
    assert!(left.len() <= 1, "{left:?}");
}

fn devices_are_left_out(world: &World) {
    let layer = Layer::busybox(world)
        .entry(EntryType::Char, "null", "", 0o666, 0, b"")
        .entry(EntryType::Block, "disk", "", 0o666, 0, b"")
        // What overlayfs takes for a whiteout.
        .entry(EntryType::Char, "bin/echo", "", 0, 0, b"");
    let upper = Layer::new().entry(EntryType::Char, "bin/cat", "", 0, 0, b"");
    Recipe::new("localhost/image:1", [layer, upper]).load(world);
    let words = [
        "image:1",
        "sh",
        "-c",
        "ls null disk 2>&1; busybox ls bin/true",
    ];
    let ran = run_image(world, &words);
    assert!(
        ran.stdout.contains("null: No such file") && ran.stdout.contains("disk: No such"),
        "{ran:?}"
    );
    assert!(ran.stdout.ends_with("bin/true\n"), "{ran:?}");
}

/// 3 GiB of zeros in a layer of a few kilobytes.
fn a_bomb_ends_early(world: &World) {
    const GIB: usize = 1 << 30;
    let frame = pack(&vec![0; 64 << 20], Packed::Zstd);
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").expect("a path");
    header.set_size(3 * GIB as u64);
    header.set_mode(0o644);
    header.set_cksum();
    let mut bomb = pack(header.as_bytes(), Packed::Zstd);
    bomb.extend(frame.repeat(3 * GIB / (64 << 20)));
    let image = Recipe::new("localhost/bomb:1", []);
    let image = Recipe {
        diff_ids: vec![crate::recipe::digest(b"never reached")],
        ..image
    };
    let config = image.whole_config();
    let manifest = serde_json::json!([{
        "Config": "config.json", "RepoTags": ["localhost/bomb:1"], "Layers": ["layer.tar"],
    }]);
    let archive = tar_of(&[
        (
            "manifest.json".to_owned(),
            manifest.to_string().into_bytes(),
        ),
        ("config.json".to_owned(), config),
        ("layer.tar".to_owned(), bomb),
    ]);
    let refused = load(world, &archive);
    assert_eq!(refused.code(), Some(125));
    assert!(refused.stderr.contains("100-fold"), "{refused:?}");
    let used = Command::new("du")
        .arg("-sm")
        .arg(world.storage())
        .output()
        .expect("du");
    let used = String::from_utf8_lossy(&used.stdout).into_owned();
    let used: u64 = used
        .split_ascii_whitespace()
        .next()
        .expect("a size")
        .parse()
        .expect("a number");
    assert!(used < 100, "{used} MiB are left");
}
