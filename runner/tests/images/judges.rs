//! Other programs read what is written here, and the other way round: skopeo, umoci, Podman.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use serde_json::json;

use crate::harness::caller::program;
use crate::harness::{Outcome, World, cases, finish, skip, snapshot};
use crate::recipe::{Layer, Packed, Recipe, load, put, run_image};

cases![
    skopeo_reads_what_is_stored_and_saved,
    skopeo_writes_what_is_loaded,
    umoci_unpacks_the_same_tree;
    podman_loads_what_is_saved,
    what_podman_has_is_run,
];

fn image(world: &World) -> Recipe {
    let upper = Layer::new()
        .file("etc/upper", 0o640, 0, b"upper")
        .file("tmp/.wh.x", 0o644, 0, b"");
    let image = Recipe::new("localhost/judged:1", [Layer::busybox(world), upper]);
    image.config(json!({"Cmd": ["cat", "/etc/upper"], "Env": ["A=b"]}))
}

/// Another program, as the world's user.
#[track_caller]
pub fn other(world: &World, name: &str, words: &[&str]) -> Outcome {
    if program(name).is_none() {
        skip(format!("{name} is not installed"));
    }
    let mut command = world.command(&[OsStr::new(name)], words);
    command.env_remove("XDG_RUNTIME_DIR");
    let done = finish(command);
    assert_eq!(done.code(), Some(0), "{name} {words:?}: {done:?}");
    done
}

fn skopeo_reads_what_is_stored_and_saved(world: &World) {
    let image = image(world);
    load(world, &image.oci_archive(Packed::Gzip)).success();
    for format in ["docker-archive", "oci-archive", "oci-dir"] {
        let words = ["save", "--format", format, "-o", format, "judged:1"];
        world.try_coracle(&words).success();
    }
    let stored = format!("oci:{}/oci:localhost/judged:1", world.storage().display());
    for place in [
        "docker-archive:docker-archive",
        "oci-archive:oci-archive",
        "oci:oci-dir",
        &stored,
    ] {
        let seen = other(world, "skopeo", &["inspect", "--config", place]);
        let seen: serde_json::Value = serde_json::from_str(&seen.stdout).expect("JSON");
        assert_eq!(seen["rootfs"]["diff_ids"], json!(image.diff_ids), "{place}");
        assert_eq!(seen["config"]["Env"], json!(["A=b"]), "{place}");
    }
}

fn skopeo_writes_what_is_loaded(world: &World) {
    let image = image(world);
    put(world, "from.tar", &image.oci_archive(Packed::Gzip));
    for (place, path) in [
        ("docker-archive:d.tar:localhost/judged:1", "d.tar"),
        ("oci-archive:o.tar:localhost/judged:1", "o.tar"),
        ("oci:layout:localhost/judged:1", "layout"),
    ] {
        let words = ["--insecure-policy", "copy", "oci-archive:from.tar", place];
        other(world, "skopeo", &words);
        let loaded = world.try_coracle(&["load", "-i", path]);
        assert_eq!(loaded.success(), "Loaded image: localhost/judged:1\n");
        let ran = run_image(world, &["judged:1"]);
        assert_eq!(ran.success(), "upper", "{place}");
        world.try_coracle(&["rmi", "judged:1"]).success();
    }
}

/// Both unpack the same layers, with what is odd in them.
fn umoci_unpacks_the_same_tree(world: &World) {
    let lower = Layer::new()
        .dir("usr", 0o755, 0)
        .dir("usr/lib", 0o755, 0)
        .symlink("lib", "usr/lib")
        .dir("opaque", 0o755, 0)
        .file("opaque/old", 0o644, 0, b"")
        .file("gone", 0o644, 0, b"")
        .file("../climbing", 0o644, 0, b"")
        .file("/absolute", 0o600, 0, b"");
    let upper = Layer::new()
        .file(".wh.gone", 0o644, 0, b"")
        .file("opaque/.wh..wh..opq", 0o644, 0, b"")
        .file("opaque/new", 0o644, 0, b"")
        .file("lib/through", 0o644, 0, b"through")
        .link("linked", "lib/through");
    let image = Recipe::new("localhost/judged:1", [Layer::busybox(world), lower, upper]);
    image.load(world);
    let words = ["save", "--format", "oci-dir", "-o", "layout", "judged:1"];
    world.try_coracle(&words).success();
    // umoci takes a plain tag only.
    let index = world.path("layout/index.json");
    let text = fs::read_to_string(&index).expect("an index");
    fs::write(&index, text.replace("localhost/judged:1", "one")).expect("written");
    let words = ["unpack", "--rootless", "--image", "layout:one", "bundle"];
    other(world, "umoci", &words);
    let script = "cd /; for f in $(busybox find . -xdev | busybox sort); do \
                  case $f in ./proc*|./sys*|./dev*|./etc/hosts|./etc/resolv.conf|./etc/hostname|./run*) ;; \
                  *) stat -c '%n %a %F %Y' $f; readlink $f; esac; done; true";
    let words = ["judged:1", "sh", "-c", script];
    let ours = run_image(world, &words);
    let theirs = listing(&world.path("bundle/rootfs"));
    let mut ours: Vec<_> = ours.success().lines().map(str::to_owned).collect();
    let mut theirs = theirs;
    // A container starts with places for its own files in these.
    for lines in [&mut ours, &mut theirs] {
        lines.retain(|line| !line.starts_with(". ") && !line.starts_with("./etc "));
        lines.sort();
    }
    assert!(
        ours.iter().any(|line| line.starts_with("./climbing ")),
        "{ours:?}"
    );
    assert_eq!(ours, theirs);
}

/// As the script above prints it.
fn listing(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for line in snapshot(root) {
        let path = line.split('"').nth(1).expect("a path").to_owned();
        let path = Path::new(&path);
        let found = fs::symlink_metadata(path).expect("there");
        let name = match path
            .strip_prefix(root)
            .expect("within")
            .to_str()
            .expect("plain")
        {
            "" => ".".to_owned(),
            name => format!("./{name}"),
        };
        let skipped = ["./proc", "./sys", "./dev", "./run"];
        if skipped.iter().any(|skipped| name.starts_with(skipped)) {
            continue;
        }
        use std::os::unix::fs::MetadataExt;
        let kind = match (found.is_dir(), found.is_symlink(), found.len()) {
            (true, ..) => "directory",
            (_, true, _) => "symbolic link",
            (_, _, 0) => "regular empty file",
            _ => "regular file",
        };
        lines.push(format!(
            "{name} {:o} {kind} {}",
            found.mode() & 0o7777,
            found.mtime()
        ));
        if let Ok(target) = fs::read_link(path) {
            lines.push(target.display().to_string());
        }
    }
    lines.sort();
    lines
}

/// By its name and by its id, with both drivers, and after Podman has built on it.
fn what_podman_has_is_run(world: &World) {
    if !world.is_root() {
        return;
    }
    let image = image(world);
    put(world, "image.tar", &image.docker_archive());
    for driver in ["vfs", "overlay"] {
        let root = world.path(&format!("podman-{driver}"));
        let run_root = world.path("podman-run");
        let (shown, run) = (root.display().to_string(), run_root.display().to_string());
        let base = [
            "--root",
            &shown,
            "--runroot",
            &run,
            "--storage-driver",
            driver,
        ];
        let base = [
            &base[..],
            &["--cgroup-manager", "cgroupfs", "--runtime", "runc"],
        ]
        .concat();
        other(
            world,
            "podman",
            &[&base[..], &["load", "-q", "-i", "image.tar"]].concat(),
        );
        let conf = format!("[storage]\ndriver = \"{driver}\"\ngraphroot = \"{shown}\"\n");
        let conf = put(world, "storage.conf", conf.as_bytes());
        let coracle = |words: &[&str]| {
            let mut command = world.coracle(words);
            command.env("CONTAINERS_STORAGE_CONF", &conf);
            finish(command)
        };
        let run = ["run", "--rm", "--network", "none"];
        for name in ["judged:1", "localhost/judged:1", &image.id()[..12]] {
            let place = format!("containers-storage:{name}");
            let ran = coracle(&[&run[..], &[&place]].concat());
            assert_eq!(ran.success(), "upper", "{driver} {name}: {ran:?}");
        }
        let pulled = coracle(&["pull", "containers-storage:judged:1"]);
        assert_eq!(pulled.success(), format!("{}\n", image.id()));
        let listed = world.try_coracle(&["images", "--format", "{{.Names}}"]);
        assert_eq!(listed.success(), "[localhost/judged:1]\n");
        let missing = coracle(&["pull", "containers-storage:none"]);
        assert!(
            missing.stderr.contains("Podman has no such image"),
            "{missing:?}"
        );
        world.try_coracle(&["rmi", "-a", "-f"]).success();
        // What has changed is not what was pulled.
        let files = match driver {
            "vfs" => root.join("vfs/dir"),
            _ => root.join("overlay"),
        };
        for layer in fs::read_dir(files).expect("layers").flatten() {
            for below in ["etc/upper", "diff/etc/upper"] {
                let path = layer.path().join(below);
                if path.exists() {
                    fs::write(path, "UPPER").expect("written");
                }
            }
        }
        let changed = coracle(&["pull", "containers-storage:judged:1"]);
        assert!(
            changed.stderr.contains("cannot use the image"),
            "{changed:?}"
        );
        other(world, "podman", &[&base[..], &["rmi", "-a", "-f"]].concat());
    }
}

/// Podman with a store of the world's. For root, since it takes a session of its own from others.
#[track_caller]
pub fn podman(world: &World, words: &[&str]) -> Outcome {
    let (root, run) = (world.path("podman"), world.path("podman-run"));
    let base = [
        "--root",
        root.to_str().expect("plain"),
        "--runroot",
        run.to_str().expect("plain"),
        "--storage-driver",
        "vfs",
        "--cgroup-manager",
        "cgroupfs",
        "--runtime",
        "runc",
    ];
    other(world, "podman", &[&base, words].concat())
}

fn podman_loads_what_is_saved(world: &World) {
    if !world.is_root() {
        return;
    }
    let image = image(world);
    let id = image.load(world);
    let podman = |words: &[&str]| podman(world, words);
    for format in ["docker-archive", "oci-archive"] {
        let words = ["save", "--format", format, "-o", format, "judged:1"];
        world.try_coracle(&words).success();
        let loaded = podman(&["load", "-q", "-i", format]);
        assert_eq!(loaded.stdout, "Loaded image: localhost/judged:1\n");
        let seen = podman(&["images", "-q", "--no-trunc"]);
        assert_eq!(seen.stdout, format!("sha256:{id}\n"), "{format}");
        let back = format!("back-{format}");
        podman(&["save", "-q", "--format", format, "-o", &back, "judged:1"]);
        podman(&["rmi", "-a", "-f"]);
        world.try_coracle(&["rmi", "-a"]).success();
        let loaded = world.try_coracle(&["load", "-i", &back]);
        assert_eq!(loaded.success(), "Loaded image: localhost/judged:1\n");
        let ran = run_image(world, &["judged:1"]);
        assert_eq!(ran.success(), "upper");
    }
}
